// Package line reads and answers what devices send over the agent's line socket: one JSON object a line, or a sequence of CBOR maps. It
// gives a telemetry.Message (Understand), finds where messages end (Reader), and makes acknowledgements (OK, Refusal). LINE.md is the
// specification.
//
// Nothing is refused for its content. What is not understood is named in Problems without its value, and the whole message travels on as
// it came, so that a mapping can be mended later.
package line

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"wardlink/telemetry"
)

// Limits within one message; its bytes are at most telemetry.MaxMessage. What every reading of a message repeats is short: a short reading
// must not be able to copy a long text some thousand times.
const (
	MaxReadings = 4096 // observations, alarms and waveforms of one message that are read
	MaxDepth    = 16   // objects and arrays within each other, the message's own included
	MaxID       = 200  // bytes of an id
	maxShared   = 200  // bytes of a device, a time, and of all that names a patient or a bed
	maxProblems = 64
)

// Type is telemetry.Message.Type of what came over a line socket; of a message with alarms it is AlarmType.
const (
	Type      = "LINE"
	AlarmType = "LINE^ALARM"
)

// Options say what the message itself cannot.
type Options struct {
	Source string         // source id from the agent's configuration
	Zone   *time.Location // of times that name none; nil is UTC
}

// ID is what a device calls its message. The number 7 and the text "7" are one id.
type ID struct {
	Text   string // "" of a message without a usable id
	Number bool   // it came as a number, and is answered as one
}

// RefusedError says why a message is not taken: it cannot be read, or has no id to acknowledge it by. There is no other reason.
type RefusedError struct {
	Field string // "message" or "id"
	Why   string // what is wrong and what to do; never a value
}

// Error is the text of the answer.
func (r *RefusedError) Error() string { return r.Field + ": " + r.Why }

// Refusals that have no message to be read from.
var (
	RefusedLong   = &RefusedError{"message", fmt.Sprintf("longer than %d bytes; send its readings in several messages, each with an id of its own", telemetry.MaxMessage)}
	RefusedFrame  = &RefusedError{"message", "neither a JSON object on one line nor a CBOR map"}
	RefusedReused = &RefusedError{"id", "another message had it, with other bytes; give each message an id of its own, and repeat a message byte for byte"}
)

// IsCBOR tells the two forms of a message by its first byte: a CBOR map, tagged or not, or JSON.
func IsCBOR(raw []byte) bool { return len(raw) > 0 && raw[0] >= 0x80 && raw[0] != bom[0] }

// bom is what some editors put before a text.
var bom = [3]byte{0xef, 0xbb, 0xbf}

// Understand reads one message as it was framed. It fills everything but Copy, Received and Bed. The error is a *RefusedError; the id is that of a refused message, too, where it could be read.
//
// The strings of the result share the message's memory.
func Understand(raw []byte, o Options) (m telemetry.Message, id ID, err error) {
	if len(raw) > telemetry.MaxMessage {
		return m, id, RefusedLong
	}
	u := &understanding{in: input{text: string(raw), cbor: IsCBOR(raw)}, zone: o.Zone}
	if u.zone == nil {
		u.zone = time.UTC
	}
	if r := u.in.check(); r != nil {
		return m, id, r
	}
	f := u.fields(topKeys, "message")
	id, r := u.id(f)
	if r != nil {
		return m, id, r
	}
	m = telemetry.Message{Source: o.Source, Digest: sha256.Sum256(raw), Type: Type, ControlID: id.Text}
	if f.has(keyAlarms) {
		m.Type = AlarmType
	}
	u.msg = &m
	u.header(f)
	u.sections(f)
	m.Problems = u.problems
	if len(m.Problems) > 0 {
		m.Raw = append([]byte(nil), raw...)
	}
	return m, id, nil
}

// LaneOf is the lane in which a message travels. ours tells that it came over a line socket; of others nothing is known here.
func LaneOf(m *telemetry.Message) (lane telemetry.Lane, ours bool) {
	switch {
	case m.Type == AlarmType:
		return telemetry.LaneAlarm, true
	case m.Type == Type && len(m.Waveforms) > 0 && len(m.Observations) == 0:
		return telemetry.LaneWaveform, true
	}
	return telemetry.LaneVitals, m.Type == Type
}

// id is the message's.
func (u *understanding) id(f *fields) (ID, *RefusedError) {
	const mend = `give each message an "id" of its own, a text of 1 to 200 bytes or a whole number`
	s := f.text[keyID]
	switch {
	case !f.has(keyID):
		return ID{}, &RefusedError{"id", "missing; " + mend}
	case f.twice&(1<<keyID) != 0:
		return ID{}, &RefusedError{"id", "stands twice; " + mend}
	case f.kind[keyID] == kindNumber && isWhole(s):
		return ID{s, true}, nil
	case f.kind[keyID] == kindText && s != "" && len(s) <= MaxID && isPrintable(s):
		return ID{s, false}, nil
	}
	return ID{}, &RefusedError{"id", "is none; " + mend + " (of at most 18 digits), without control characters"}
}

// isWhole tells a whole number as an id can be: it fits 64 bits and has one spelling.
func isWhole(s string) bool {
	d := strings.TrimPrefix(s, "-")
	if d == "" || len(d) > 18 || d[0] == '0' && s != "0" {
		return false
	}
	for i := range len(d) {
		if d[i] < '0' || d[i] > '9' {
			return false
		}
	}
	return true
}

func isPrintable(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return false
		}
	}
	return true
}

// check makes sure that the text is one well-formed object, no deeper than MaxDepth: whoever reads it afterwards need not ask.
func (in *input) check() *RefusedError {
	const deep = "objects and arrays lie deeper than 16 within each other; send them flat"
	if in.cbor {
		s := scanner{}
		for i := range len(in.text) {
			done, err := s.next(in.text[i])
			switch {
			case errors.Is(err, errDeep):
				return &RefusedError{"message", deep}
			case err != nil || done && i+1 < len(in.text):
				return &RefusedError{"message", fmt.Sprintf("not one well-formed CBOR map; look at byte %d", i)}
			case done && in.peek() != kindObject:
				return &RefusedError{"message", "not a CBOR map"}
			case done:
				return nil
			}
		}
		return &RefusedError{"message", "the CBOR map is cut off"}
	}
	in.text = strings.TrimPrefix(in.text, string(bom[:]))
	if depthOf(in.text) > MaxDepth {
		return &RefusedError{"message", deep}
	}
	var whole json.RawMessage
	var bad *json.SyntaxError
	err := json.Unmarshal([]byte(in.text), &whole)
	switch {
	case errors.As(err, &bad):
		return &RefusedError{"message", fmt.Sprintf("not JSON; look at byte %d of the line (a message is one line)", bad.Offset)}
	case err != nil:
		return &RefusedError{"message", "not JSON"}
	case in.peek() != kindObject:
		return &RefusedError{"message", `not a JSON object; expected {"id": ..., "observations": [...]}`}
	}
	return nil
}

// depthOf is how deep brackets lie within each other. Of what is not JSON it may say anything.
func depthOf(s string) (deepest int) {
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}
