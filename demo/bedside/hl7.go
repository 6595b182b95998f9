package bedside

import (
	"fmt"
	"strings"
	"time"
)

// pcd01 is MSH-21: the message follows IHE PCD-01 (IHE PCD TF-2, appendix B).
const pcd01 = "IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO"

// writer writes rows as HL7 v2.6 ORU^R01 messages by IHE PCD-01.
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

	var b strings.Builder
	segment(&b, `MSH|^~\&`, // MSH-1 is the separator itself, so MSH-n is field n-1 of the split text
		"BEDSIDE^"+w.device+"^EUI-64", // MSH-3 sending application
		escape(w.patient.Namespace),   // MSH-4 sending facility
		"", "",
		w.time(now), // MSH-7
		"",
		"ORU^R01^ORU_R01", // MSH-9
		id,                // MSH-10
		"T",               // MSH-11: training, never a patient's present state
		"2.6",             // MSH-12
		"", "",
		"AL", "NE", // MSH-15, -16: enhanced mode, so the receiver answers CA, and no application acknowledgement
		"",
		"UNICODE UTF-8", // MSH-18
		"", "",
		pcd01) // MSH-21
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
		fmt.Sprintf("%d^%s^MDC", v.Signal.MDC, v.Signal.Ref),
		v.Signal.Path,
		v.Text,
		fmt.Sprintf("%d^%s^MDC", v.Signal.Unit.MDC, v.Signal.Unit.Ref),
		"", // OBX-7 would hold alarm limits
		flag,
		"", "",
		status,
		"", "",
		at, // OBX-14
		"", "", "",
		w.device+"^^"+w.device+"^EUI-64") // OBX-18
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
