package bedside

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The messages that a monitor sends (MSH-9).
const (
	readingsMessage = "ORU^R01^ORU_R01"
	wavesMessage    = "ORU^W01^ORU_W01"
)

// pcd01 is MSH-21: the message follows IHE PCD-01 (IHE PCD TF-2, appendix B).
const pcd01 = "IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO"

// writer writes rows as HL7 v2.6 messages: readings as ORU^R01 by IHE PCD-01, waveforms as ORU^W01 by chapter 7 of the standard.
type writer struct {
	patient   Patient
	ward, bed string
	device    string // EUI-64, 16 hex digits
	zone      *time.Location
	prefix    string // of MSH-10
	written   uint64
}

// message writes one row and gives the message's control id (MSH-10), which no other message has.
func (w *writer) message(row Row, now time.Time) (id string, message []byte) {
	w.written++
	id = fmt.Sprintf("%s-%d", w.prefix, w.written)
	at := w.time(row.At)
	kind, profile := readingsMessage, pcd01
	if len(row.Waves) > 0 {
		kind, profile = wavesMessage, ""
	}

	var b strings.Builder
	segment(&b, `MSH|^~\&`, // MSH-1 is the separator itself, so MSH-n is field n-1 of the split text
		"BEDSIDE^"+w.device+"^EUI-64", // MSH-3 sending application
		escape(w.patient.Namespace),   // MSH-4 sending facility
		"", "",
		w.time(now), // MSH-7
		"",
		kind,  // MSH-9
		id,    // MSH-10
		"T",   // MSH-11: training, never a patient's present state
		"2.6", // MSH-12
		"", "",
		"AL", "NE", // MSH-15, -16: enhanced mode, so the receiver answers CA, and no application acknowledgement
		"",
		"UNICODE UTF-8", // MSH-18
		"", "",
		profile) // MSH-21
	segment(&b, "PID", "", "",
		fmt.Sprintf("%s^^^%s&%s&ISO^MR", escape(w.patient.ID), escape(w.patient.Namespace), escape(w.patient.OID)),
		"",
		"^^^^^^U") // PID-5 is required; U says that the name is not given
	segment(&b, "PV1", "", "I", escape(w.ward)+"^^"+escape(w.bed))
	segment(&b, "OBR", "1", "",
		id+"^BEDSIDE^"+w.device+"^EUI-64",     // OBR-3
		"182777000^monitoring of patient^SCT", // OBR-4
		"", "", at)                            // OBR-7
	for i, v := range row.Values {
		w.observation(&b, i+1, v, at)
	}
	for i, v := range row.Waves {
		w.wave(&b, 2*i+1, v)
	}
	return id, []byte(b.String())
}

// observation writes one OBX. A reading that is missing is sent as such: no value, flag NAV (not available), status X.
func (w *writer) observation(b *strings.Builder, set int, v Value, at string) {
	flag, status := "", "R"
	if v.Text == "" {
		flag, status = "NAV", "X"
	}
	segment(b, "OBX",
		fmt.Sprint(set),
		"NM",
		v.Signal.code(""),
		v.Signal.Path,
		v.Text,
		v.Signal.Unit.code("^"),
		"", // OBX-7 would hold alarm limits
		flag,
		"", "",
		status,
		"", "",
		at, // OBX-14
		"", "", "",
		w.device+"^^"+w.device+"^EUI-64") // OBX-18
}

// wave writes two OBX for a piece of a channel (HL7 v2, chapter 7, waveform result data): what the channel is (CHN), and its samples as the
// converter gave them (WAV). They belong together by their sub id.
func (w *writer) wave(b *strings.Builder, set int, v Wave) {
	s, at := v.Signal, w.time(v.At)
	channel := strings.Join([]string{
		fmt.Sprintf("%d&%s", v.Number, escape(s.Name)),            // WVI: number, name
		escape(s.Name) + "&",                                      // WVS: two sources, for differential amplifiers
		v.Sensitivity + "&" + s.Unit.code("&"),                    // CSU: units a step, and the unit
		fmt.Sprintf("1&%d&0", v.Baseline),                         // CCP: correction of the sensitivity, baseline, skew
		v.Frequency,                                               // Hz
		strconv.Itoa(int(v.Min)) + "&" + strconv.Itoa(int(v.Max)), // NR
	}, "^")
	// A missing sample is an empty component. The standard lets a sender leave out those at the end; with them their number would be lost.
	samples := make([]byte, 0, 6*len(v.Samples))
	for i, sample := range v.Samples {
		if i > 0 {
			samples = append(samples, '^')
		}
		samples = append(samples, arrayText(sample, v.Min)...)
	}
	obx := func(set int, kind, suffix, value string) {
		segment(b, "OBX", strconv.Itoa(set), kind, s.code(suffix), s.Path, value, "", "", "", "", "", "F", "", "", at)
	}
	obx(set, "CD", "&CHN", channel)
	obx(set+1, "NA", "&WAV", string(samples))
}

// code writes OBX-3, with a suffix to its identifier.
func (s Signal) code(suffix string) string {
	if s.MDC == 0 {
		return escape(s.Name) + suffix + "^" + escape(s.Name) + "^" + LocalSystem
	}
	return strconv.FormatUint(uint64(s.MDC), 10) + suffix + "^" + s.Ref + "^MDC"
}

// code writes a unit's identifier, text and system.
func (u Unit) code(separator string) string {
	switch {
	case u.MDC == 0 && u.UCUM == "":
		return escape(u.Label) + separator + escape(u.Label) + separator + LocalSystem
	case u.MDC == 0:
		return escape(u.UCUM) + separator + escape(u.Label) + separator + "UCUM"
	}
	return strconv.FormatUint(uint64(u.MDC), 10) + separator + u.Ref + separator + "MDC"
}

// time writes an instant as HL7's DTM with milliseconds and offset.
func (w *writer) time(at time.Time) string {
	return at.In(w.zone).Format("20060102150405.000-0700")
}

func segment(b *strings.Builder, fields ...string) {
	b.WriteString(strings.TrimRight(strings.Join(fields, "|"), "|"))
	b.WriteByte('\r')
}

var escapes = strings.NewReplacer(`\`, `\E\`, `|`, `\F\`, `^`, `\S\`, `&`, `\T\`, `~`, `\R\`)

// escape hides HL7's delimiters in a text that comes from the configuration.
func escape(text string) string { return escapes.Replace(text) }
