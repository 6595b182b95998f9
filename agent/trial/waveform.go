package trial

import (
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/codes"
)

// Waveform is the OBX segment that holds a channel's samples, with what the segments beside it say of the channel.
type Waveform struct {
	Index  uint32   `json:"index"` // of the OBX with the samples within its message, from 0
	Type   string   `json:"type"`  // OBX-2
	Label  string   `json:"label"` // the channel's name as the device shows it
	Code   Code     `json:"code"`
	Unit   Unit     `json:"unit"`
	Time   Time     `json:"time"`             // of the first sample
	Period string   `json:"period_ms"`        // between two samples; this and the following are exact decimals
	Factor string   `json:"factor"`           // a sample's value is origin + sample * factor, in the unit
	Origin string   `json:"origin"`           //
	Lower  string   `json:"lower,omitempty"`  // what the channel can give at least and at most, in the unit
	Upper  string   `json:"upper,omitempty"`  //
	Status string   `json:"status"`           // OBX-11
	Flags  string   `json:"flags,omitempty"`  // OBX-8
	SubID  string   `json:"sub_id,omitempty"` // OBX-4
	Device string   `json:"device,omitempty"` // OBX-18
	Marks  []string `json:"marks"`
	FHIR   FHIR     `json:"fhir"`

	Missing int      `json:"missing"` // samples that are
	Samples []*int32 `json:"samples"` // null where one is missing
}

func waveform(w *telemetry.Waveform) Waveform {
	out := Waveform{
		Index: w.Index, Type: w.Type, Label: w.Label, Unit: Unit(w.Unit), Time: Time{Sent: w.Time},
		Period: w.Period, Factor: or(w.Factor, "1"), Origin: or(w.Origin, "0"), Lower: w.Lower, Upper: w.Upper,
		Status: w.Status, Flags: w.Flags, SubID: w.SubID, Device: w.Device, Marks: marks(w.Marks),
		Code: Code{Sent: joined(w.Code.ID, w.Code.Name, w.Code.Sys), MDC: w.Code.MDC}, Samples: make([]*int32, len(w.Samples)),
		FHIR: FHIR{Category: "procedure"},
	}
	if w.Marks&telemetry.MarkTimeUnread == 0 {
		at := time.UnixMilli(w.At).UTC()
		out.Time.Read = &at
	}
	if item, known := codes.For(w.Code.MDC, w.Unit.UCUM); known {
		out.Code.Ref, out.Code.Name = item.Ref, item.Name
		out.FHIR = naming(&telemetry.Observation{Code: w.Code, Unit: w.Unit, Marks: w.Marks}, item)
		out.FHIR.Category, out.FHIR.Profile = "procedure", ""
	}
	for i := range w.Samples {
		if w.Samples[i] == telemetry.MissingSample {
			out.Missing++
		} else {
			out.Samples[i] = &w.Samples[i]
		}
	}
	return out
}

// odd tells a message of which something was noticed, though all of it was understood.
func (m *Message) odd() bool {
	return len(m.Problems) > 0 || slices.ContainsFunc(m.Waveforms, func(w Waveform) bool { return len(w.Marks) > 0 })
}

// fewSamples are shown to a person, who wants to see that they are the device's; JSON has them all.
const fewSamples = 12

func (w *writer) waveform(o *Waveform) {
	name := or(o.Code.Name, or(o.Code.Ref, or(o.Code.Sent, "no code")))
	if o.Label != "" && !strings.HasSuffix(name, " "+o.Label) {
		name += " (" + o.Label + ")"
	}
	w.printf("\n  OBX[%d]  %s: %s\n", o.Index, shown(name), o.extent())
	const in = 10
	w.field(in, "code", arrow(o.Code.Sent, codeRead(o.Code)))
	w.field(in, "unit", arrow(o.Unit.Sent, or(o.Unit.UCUM, "not known")))
	w.field(in, "time", arrow(o.Time.Sent, o.Time.read()))
	w.field(in, "period", o.Period+" ms"+hertz(o.Period))
	w.field(in, "scale", fmt.Sprintf("value = %s + sample * %s %s", o.Origin, o.Factor, shown(or(o.Unit.UCUM, o.Unit.Sent))))
	if o.Lower != "" || o.Upper != "" {
		w.field(in, "channel", fmt.Sprintf("from %s to %s", or(o.Lower, "?"), or(o.Upper, "?")))
	}
	w.field(in, "samples", o.few())
	w.field(in, "type", shown(o.Type))
	w.field(in, "status", meaning(o.Status, statuses))
	w.field(in, "flags", shown(o.Flags))
	w.field(in, "sub-id", shown(o.SubID))
	w.field(in, "device", shown(o.Device))
	w.field(in, "marks", strings.Join(o.Marks, ", "))
	w.field(in, "FHIR", o.FHIR.line())
}

// extent is how many samples there are, and how long they take.
func (o *Waveform) extent() string {
	if len(o.Samples) == 0 {
		return "no samples"
	}
	text := plural(len(o.Samples), "sample")
	if ms, ok := new(big.Rat).SetString(o.Period); ok {
		ms.Mul(ms, big.NewRat(int64(len(o.Samples)), 1))
		text += " in " + trimmed(ms.FloatString(3)) + " ms"
	}
	if o.Missing > 0 {
		text += fmt.Sprintf(", %d missing", o.Missing)
	}
	return text
}

func (o *Waveform) few() string {
	var b strings.Builder
	for i, s := range o.Samples {
		if i == fewSamples {
			fmt.Fprintf(&b, " ... %d more", len(o.Samples)-fewSamples)
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		if s == nil {
			b.WriteByte('-')
		} else {
			b.WriteString(strconv.Itoa(int(*s)))
		}
	}
	return b.String()
}

// hertz is a period as a frequency, for humans.
func hertz(period string) string {
	ms, ok := new(big.Rat).SetString(period)
	if !ok || ms.Sign() <= 0 {
		return ""
	}
	return " (" + trimmed(new(big.Rat).Quo(big.NewRat(1000, 1), ms).FloatString(3)) + " Hz)"
}

func trimmed(decimal string) string {
	return strings.TrimSuffix(strings.TrimRight(decimal, "0"), ".")
}

func (t Time) read() string {
	if t.Read == nil {
		return "cannot be read"
	}
	return t.Read.Format("2006-01-02 15:04:05.000 UTC")
}
