package trial

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"

	"wardlink/agent/source"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// piece is one message of a file, or what stands in place of one.
type piece struct {
	offset  int
	raw     []byte
	framed  bool
	refused string // what is wrong with its frame
	cut     bool   // the file ends within it
}

// vt begins an MLLP frame.
const vt = 0x0b

// cut finds the messages of a file: by their MLLP frames if there is one, else by the MSH segments that they begin with.
func cut(data []byte) []piece {
	if bytes.IndexByte(data, vt) >= 0 {
		return cutFrames(data)
	}
	return cutPlain(data)
}

// cutFrames reads frames as an agent reads a device's stream, except that it goes on where an agent would hang up.
func cutFrames(data []byte) []piece {
	var out []piece
	r := hl7.NewReader(bytes.NewReader(data), telemetry.MaxMessage)
	for at := 0; ; {
		raw, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		p := piece{offset: at, raw: raw, framed: true}
		if i := bytes.Index(data[at:], raw); i >= 0 {
			p.offset = at + i
			at = p.offset + len(raw)
		}
		switch {
		case err == nil:
		case errors.Is(err, hl7.ErrFraming):
			p.refused = source.RefusedFrame
		case errors.Is(err, hl7.ErrTooLong):
			p.refused = source.RefusedLong
			next := bytes.IndexByte(data[at:], vt)
			if next < 0 {
				return append(out, p)
			}
			at += next
			r = hl7.NewReader(bytes.NewReader(data[at:]), telemetry.MaxMessage)
		default:
			p.refused, p.cut = "the file ends within the message; an agent gives no answer to it", true
			return append(out, p)
		}
		out = append(out, p)
	}
}

// envelopes are the segments of HL7's batch protocol (chapter 2.10.3), in which files of messages come: no part of a message.
var envelopes = []string{"FHS", "BHS", "BTS", "FTS"}

// cutPlain cuts before each MSH segment. Lines may end in CR, LF or both.
func cutPlain(data []byte) []piece {
	var out []piece
	open := false // the last piece goes on
	for at, end := 0, 0; at < len(data); at = end {
		end = at + lineLength(data[at:])
		line := data[at:end]
		switch {
		case isEnvelope(line):
			open = false
		case open && !isHeader(line):
			last := &out[len(out)-1]
			last.raw = data[last.offset:end]
		case open || len(bytes.Trim(line, " \t\r\n\x00")) > 0:
			out = append(out, piece{offset: at, raw: line})
			open = true
		}
	}
	return out
}

func isHeader(line []byte) bool {
	line = bytes.TrimPrefix(bytes.TrimLeft(line, " \t"), []byte("\ufeff"))
	return len(line) > 3 && string(line[:3]) == "MSH" && !isAlphanumeric(line[3])
}

func isAlphanumeric(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z'
}

func isEnvelope(line []byte) bool {
	return len(line) >= 3 && slices.Contains(envelopes, string(line[:3]))
}

// lineLength includes the line's end.
func lineLength(data []byte) int {
	i := bytes.IndexAny(data, "\r\n")
	if i < 0 {
		return len(data)
	}
	for i < len(data) && (data[i] == '\r' || data[i] == '\n') {
		i++
	}
	return i
}

// segments are a message's, as sent: the first is MSH.
type segments []string

func segmentsOf(raw []byte) segments {
	// As hl7 reads: blanks before the header are passed over, and runs of line ends are one.
	return strings.FieldsFunc(strings.TrimLeft(string(raw), " \t\r\n\x00"), func(c rune) bool { return c == '\r' || c == '\n' })
}

// at finds the segments that a problem's place names: "OBX[3]-6", "segment[2]", "PID-3", "MSH-9".
func (s segments) at(where string) []string {
	name, rest, counted := strings.Cut(where, "[")
	if !counted {
		name, _, _ = strings.Cut(where, "-")
		return s.named(name)
	}
	digits, _, _ := strings.Cut(rest, "]")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 {
		return nil
	}
	all := []string(s)
	if name != "segment" {
		all = s.named(name)
	}
	if n >= len(all) {
		return nil
	}
	return all[n : n+1]
}

func (s segments) named(name string) []string {
	var out []string
	for _, segment := range s {
		// The field separator is whatever stands behind the name.
		if t := strings.TrimPrefix(strings.TrimLeft(segment, " \t\x00"), "\ufeff"); strings.HasPrefix(t, name) && (len(t) == len(name) || !isAlphanumeric(t[len(name)])) {
			out = append(out, segment)
		}
	}
	return out
}
