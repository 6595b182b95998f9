package trial

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/line"
)

// ReadLines makes a report of what would be sent to a line socket: JSON lines, CBOR maps, or both. An id that stands twice with different
// bytes is refused, as by an agent that holds the former message.
func ReadLines(data []byte, zone *time.Location) (Report, error) {
	r := Report{Messages: []Message{}}
	in := line.NewReader(bytes.NewReader(data), telemetry.MaxMessage)
	ids := map[string]string{}
	for at := 0; ; {
		if err := in.Await(); err != nil {
			break // the end: nothing else happens to bytes in memory
		}
		at += bytes.IndexFunc(data[at:], func(c rune) bool { return !strings.ContainsRune(" \t\r\n", c) })
		raw, whole, err := in.Next()
		m := Message{Offset: at, Bytes: len(raw), Form: "JSON", Observations: []Observation{}, Waveforms: []Waveform{}, Problems: []Problem{}}
		if line.IsCBOR(data[at:]) {
			m.Form = "CBOR"
		}
		switch {
		case err == nil:
			at += len(raw)
			m.line(raw, zone, ids)
		case errors.Is(err, line.ErrTooLong):
			m.refuse(line.ID{}, line.RefusedLong)
			if end := bytes.IndexByte(data[at:], '\n'); end >= 0 {
				at += end
			}
		case errors.Is(err, line.ErrFraming):
			m.refuse(line.ID{}, line.RefusedFrame)
		default:
			m.Refused = "the file ends within the message; an agent gives no answer to it"
		}
		r.add(m)
		if err != nil && !whole {
			break // nobody knows where the next message begins
		}
	}
	if len(r.Messages) == 0 {
		return r, errors.New("the file is empty; expected JSON objects, one a line, or CBOR maps")
	}
	return r, nil
}

func (m *Message) line(raw []byte, zone *time.Location, ids map[string]string) {
	u, id, err := line.Understand(raw, line.Options{Source: "trial", Zone: zone})
	var refused *line.RefusedError
	if former, used := ids[id.Text]; err == nil && used && former != string(raw) {
		err = line.RefusedReused
	}
	if errors.As(err, &refused) {
		m.refuse(id, refused)
		return
	}
	ids[id.Text] = string(raw)
	m.Answer = Answer{Code: "ok", Line: string(bytes.TrimSpace(line.OK(id, false)))}
	lane, _ := line.LaneOf(&u)
	m.fill(u, lane, raw)
	m.encode(u, raw)
}

func (m *Message) refuse(id line.ID, why *line.RefusedError) {
	m.Refused = why.Error()
	m.Answer = Answer{Code: "error", Text: m.Refused, Line: string(bytes.TrimSpace(line.Refusal(id, why, false)))}
}
