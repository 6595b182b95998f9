// Package boot judges how gateways booted: what their TPMs quoted, against what is known to be right. It is pure. The registry keeps what it
// judges by, and what followed.
package boot

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"wardlink/enroll/verify"
	"wardlink/enroll/verify/eventlog"
)

// Digest is a SHA-256 value; in JSON and for people it is lower-case hex.
type Digest [32]byte

// String is the whole digest.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 64 {
		return fmt.Errorf("digest %.80q: expected 64 hex digits", text)
	}
	_, err := hex.Decode(d[:], text)
	if err != nil {
		return fmt.Errorf("digest %.80q: expected 64 hex digits", text)
	}
	return nil
}

// Measurement is how a gateway booted, in the words of its TPM.
type Measurement struct {
	PCRs map[int]Digest `json:"pcrs,omitempty"` // that were quoted; none: there was no quote
	// Events are those of the log that account for PCRs quoted, in the order of the log.
	Events []Event `json:"events,omitempty"`
	Note   string  `json:"note,omitempty"` // why there is no quote, or are no events of some PCR
}

// Event is one entry of the event log. Its digest is what the PCR was extended with; type and text are the gateway's words.
type Event struct {
	Index  int    `json:"index"` // in the log, from 0
	PCR    int    `json:"pcr"`
	Type   string `json:"type"`
	Text   string `json:"text,omitempty"`
	Digest Digest `json:"digest"`
}

// String names the entry for a person.
func (e Event) String() string {
	text := fmt.Sprintf("entry %d, %s", e.Index, e.Type)
	if e.Text != "" {
		text += fmt.Sprintf(" %q", e.Text)
	}
	return text
}

// Bounds of a measurement, so that what is kept of a gateway stays below 128 KB.
const (
	maxEvents   = 512
	maxPCR      = 23
	maxNote     = 300
	maxDocument = 256 << 10 // bytes of JSON that Parse takes
)

// Of makes the measurement of a quote that was judged, and of the log that came with it. A log that does not account for a PCR tells nothing
// about it: its events of that PCR are left out, and the note says so. m is nil where there was no quote; missing is the gateway's word why.
func Of(m *verify.Measured, log []byte, missing string) Measurement {
	if m == nil {
		return Measurement{Note: note("the gateway sent no quote", missing)}
	}
	out := Measurement{PCRs: map[int]Digest{}}
	for pcr := range m.Values {
		if m.Selected>>pcr&1 != 0 {
			out.PCRs[pcr] = Digest(m.Values[pcr])
		}
	}
	if len(log) == 0 {
		out.Note = note("the gateway sent no event log", missing)
		return out
	}
	l, err := eventlog.Parse(log)
	switch {
	case err != nil:
		out.Note = err.Error()
		return out
	case l.SHA1:
		out.Note = "the event log has SHA-1 digests alone, and accounts for no PCR by SHA-256"
		return out
	}
	replayed, unaccounted := l.Replay(), []string(nil)
	for _, pcr := range slices.Sorted(maps.Keys(out.PCRs)) {
		if replayed[pcr] != out.PCRs[pcr] {
			unaccounted = append(unaccounted, strconv.Itoa(pcr))
		}
	}
	if len(unaccounted) > 0 {
		out.Note = "the event log does not account for PCR " + strings.Join(unaccounted, ", ")
	}
	for _, e := range l.Events {
		if e.Type == eventlog.NoAction || m.Selected>>e.PCR&1 == 0 || replayed[e.PCR] != out.PCRs[e.PCR] {
			continue
		}
		if len(out.Events) == maxEvents {
			out.Note = note(out.Note, fmt.Sprintf("only the first %d events are kept", maxEvents))
			break
		}
		out.Events = append(out.Events, Event{Index: e.Index, PCR: e.PCR, Type: e.Type.String(), Text: e.Describe(), Digest: e.Digest})
	}
	return out
}

// note joins what is said, on one line of printable ASCII.
func note(what, why string) string {
	why = strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, why)
	switch {
	case why == "":
	case what == "":
		what = why
	default:
		what += ": " + why
	}
	return what[:min(len(what), maxNote)]
}

// of gives the events of one PCR.
func (m Measurement) of(pcr int) (out []Event) {
	for _, e := range m.Events {
		if e.PCR == pcr {
			out = append(out, e)
		}
	}
	return out
}

// Same tells whether PCRs in mask, a bit for each, are quoted by both and hold the same.
func (m Measurement) Same(o Measurement, mask uint32) bool {
	for left := mask; left != 0; left &= left - 1 {
		pcr := bits.TrailingZeros32(left)
		a, ok := m.PCRs[pcr]
		b, there := o.PCRs[pcr]
		if !ok || !there || a != b {
			return false
		}
	}
	return true
}

// Parse reads the JSON of a measurement that a person gives: PCR values, with or without events.
func Parse(data []byte) (m Measurement, err error) {
	if len(data) > maxDocument {
		return m, fmt.Errorf("PCR values: %d bytes; expected at most %d", len(data), maxDocument)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return Measurement{}, fmt.Errorf("PCR values: %w; expected {\"pcrs\": {\"0\": \"64 hex digits\", ...}}", err)
	}
	return m, m.Check()
}

// Check says what is wrong with a measurement that a person gives.
func (m Measurement) Check() error {
	if len(m.PCRs) == 0 {
		return errors.New("PCR values: there are none; expected {\"pcrs\": {\"0\": \"64 hex digits\", ...}}")
	}
	for pcr := range m.PCRs {
		if pcr < 0 || pcr > maxPCR {
			return fmt.Errorf("PCR values: PCR %d; expected 0 to %d", pcr, maxPCR)
		}
	}
	if len(m.Events) > maxEvents || len(m.Note) > maxNote {
		return fmt.Errorf("PCR values: %d events; expected at most %d", len(m.Events), maxEvents)
	}
	for _, e := range m.Events {
		if len(e.Type) > 64 || len(e.Text) > 80 {
			return fmt.Errorf("PCR values: event %d: a text that is too long", e.Index)
		}
	}
	return nil
}
