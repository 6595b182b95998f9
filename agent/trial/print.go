package trial

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Print writes the report for a person. With onlyOdd, messages of which everything was understood are left out, and observations
// without marks or problems. Whatever a message holds, no control character of it reaches the terminal.
func (r Report) Print(out io.Writer, onlyOdd bool) error {
	w := &writer{out: out}
	for i := range r.Messages {
		m := &r.Messages[i]
		if onlyOdd && m.Refused == "" && !m.odd() {
			continue
		}
		w.printf("message %d of %d: %s\n", i+1, len(r.Messages), m.place())
		if m.Refused != "" {
			w.refused(m)
		} else {
			w.message(m, onlyOdd)
		}
		w.printf("\n")
	}
	content := plural(r.Observations, "observation")
	if r.Waveforms > 0 {
		content += " and " + plural(r.Waveforms, "waveform")
	}
	w.printf("%s with %s: %d understood, %d in part, %d not readable\n", plural(len(r.Messages), "message"), content, r.Understood, r.InPart, r.Refused)
	return w.err
}

func (m *Message) place() string {
	how := "without a frame"
	switch {
	case m.Framed:
		how = "in an MLLP frame"
	case m.Form == "JSON":
		how = "a line of JSON"
	case m.Form != "":
		how = "a map of CBOR"
	}
	return fmt.Sprintf("%s from byte %d, %s", plural(m.Bytes, "byte"), m.Offset, how)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// writer keeps the first error, so that the lines below read as what they print.
type writer struct {
	out io.Writer
	err error
}

func (w *writer) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format, args...)
	}
}

// field prints one line; nothing for what is not there.
func (w *writer) field(indent int, label, value string) {
	if value != "" {
		w.printf("%*s%-10s  %s\n", indent, "", label, value)
	}
}

func (w *writer) refused(m *Message) {
	w.field(2, "not taken", m.Refused)
	w.answer(m.Answer)
}

func (w *writer) message(m *Message, onlyOdd bool) {
	w.field(2, "lane", m.Lane)
	w.field(2, "type", shown(m.Type))
	w.field(2, "control id", shown(m.ControlID))
	w.field(2, "sender", shown(m.Sender))
	w.field(2, "processing", meaning(m.Processing, processing))
	w.field(2, "sent", shown(m.SentAt))
	w.field(2, "patient", or(shown(m.Patient.ID), "none: the device names no patient"))
	w.field(2, "authority", shown(m.Patient.Authority))
	w.field(2, "location", shown(m.Patient.Location))
	w.field(2, "visit", shown(m.Patient.Visit))
	for i := range m.Observations {
		if o := &m.Observations[i]; !onlyOdd || len(o.Marks) > 0 || m.problemAt(o.Index) {
			w.observation(o)
		}
	}
	for i := range m.Waveforms {
		if !onlyOdd || len(m.Waveforms[i].Marks) > 0 || m.problemAt(m.Waveforms[i].Index) {
			w.waveform(&m.Waveforms[i])
		}
	}
	if len(m.Problems) > 0 {
		w.printf("\n  not understood; the message travels sealed as it came, beside what was understood:\n")
		for _, p := range m.Problems {
			w.printf("  - %s: %s\n", shown(p.Where), shown(p.Reason))
			for _, s := range p.Segments {
				w.printf("      %s\n", shown(s))
			}
		}
	}
	w.printf("\n")
	w.answer(m.Answer)
	w.field(2, "carries", fmt.Sprintf("%d bytes encoded, key sha256 %s", m.Encoded, m.Digest[:16]))
}

// problemAt tells whether something of an observation was not understood.
func (m *Message) problemAt(index uint32) bool {
	if m.Form != "" {
		return len(m.Problems) > 0 // which say where by the place in a list
	}
	place := fmt.Sprintf("OBX[%d]", index)
	return slices.ContainsFunc(m.Problems, func(p Problem) bool { return p.Where == place || strings.HasPrefix(p.Where, place+"-") })
}

func (w *writer) answer(a Answer) {
	if a.HL7 == "" {
		w.field(2, "answer", or(shown(a.Line), "none"))
		return
	}
	for i, segment := range segmentsOf([]byte(a.HL7)) {
		w.field(2, []string{"answer", ""}[min(i, 1)], shown(segment))
	}
}

func (w *writer) observation(o *Observation) {
	name := or(o.Code.Name, or(o.Code.Ref, or(o.Code.Sent, "no code")))
	value := "no reading"
	if o.Judgement != "no reading" {
		value = strings.TrimSpace(shown(o.Value) + " " + shown(or(o.Unit.UCUM, o.Unit.Sent)))
	}
	w.printf("\n  OBX[%d]  %s: %s\n", o.Index, shown(name), value)
	const in = 10
	w.field(in, "code", arrow(o.Code.Sent, codeRead(o.Code)))
	if o.Judgement == "no reading" && o.Value != "" {
		w.field(in, "value", shown(o.Value)+" -> no reading")
	}
	if o.Unit.Sent != "" || o.Unit.UCUM != "" {
		w.field(in, "unit", arrow(o.Unit.Sent, or(o.Unit.UCUM, "not known")))
	}
	w.field(in, "time", arrow(o.Time.Sent, o.Time.read()))
	w.field(in, "type", shown(o.Type))
	w.field(in, "status", meaning(o.Status, statuses))
	w.field(in, "flags", shown(o.Flags))
	w.field(in, "limits", shown(o.Limits))
	w.field(in, "sub-id", shown(o.SubID))
	w.field(in, "device", shown(o.Device))
	w.field(in, "judged", judged(o))
	w.field(in, "marks", strings.Join(o.Marks, ", "))
	w.field(in, "FHIR", o.FHIR.line())
}

func codeRead(c Code) string {
	switch {
	case c.MDC == 0:
		return "not known"
	case c.Ref == "":
		return fmt.Sprintf("MDC %d, not in the table", c.MDC)
	}
	return fmt.Sprintf("MDC %d %s", c.MDC, c.Ref)
}

func judged(o *Observation) string {
	if o.Range == nil || o.Judgement == "not judged" || o.Judgement == "no reading" {
		return o.Judgement
	}
	g := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	return fmt.Sprintf("%s (%s to %s %s)", o.Judgement, g(o.Range.Low), g(o.Range.High), o.Range.UCUM)
}

func (f FHIR) line() string {
	var parts []string
	if len(f.LOINC) > 0 {
		parts = append(parts, "LOINC "+strings.Join(f.LOINC, " "))
	} else if f.Text != "" {
		parts = append(parts, "no LOINC code")
	}
	if f.Category != "" {
		parts = append(parts, f.Category)
	}
	if f.Profile != "" {
		parts = append(parts, "profile "+f.Profile[strings.LastIndexByte(f.Profile, '/')+1:])
	}
	return strings.Join(parts, ", ")
}

func arrow(sent, read string) string { return or(shown(sent), "(nothing)") + " -> " + shown(read) }

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

var processing = map[string]string{"P": "production", "T": "training: marked as test data", "D": "debugging: marked as test data"}

// statuses are those of OBX-11 (HL7 table 0085).
var statuses = map[string]string{
	"R": "entered, not verified", "F": "final", "P": "preliminary", "S": "partial", "C": "corrected", "X": "cannot be obtained",
	"N": "not asked for", "U": "final without retransmission", "I": "pending", "O": "order detail only", "W": "wrong, withdrawn", "D": "deleted",
}

func meaning(code string, of map[string]string) string {
	if words, ok := of[code]; ok {
		return code + " (" + words + ")"
	}
	return shown(code)
}

// shown makes text of a message safe for a terminal: control characters, and bytes that are no UTF-8, become escapes, so that a
// message can neither move the cursor nor hide what it holds.
func shown(s string) string {
	safe := func(r rune, size int) bool { return (r != utf8.RuneError || size > 1) && unicode.IsPrint(r) }
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case safe(r, size):
			b.WriteString(s[i : i+size])
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		i += size
	}
	return b.String()
}
