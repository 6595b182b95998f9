package hl7

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// AckCode is what an acknowledgement says, whatever the mode in which it says it.
type AckCode byte

// The codes: AA, AE, AR in original mode, CA, CE, CR in enhanced mode.
const (
	Accept AckCode = 'A'
	Error  AckCode = 'E'
	Reject AckCode = 'R'
)

// Ack answers the message raw, or what came in place of one. The answer's mode follows the message's MSH-15 and MSH-16 (HL7 v2,
// chapter 2.9): both empty is original mode (AA, AE, AR); a sender that wants an accept acknowledgement gets CA, CE or CR; one that
// wants only an application acknowledgement (NE and AL, as GE's monitors send) gets AA, AE or AR; one that wants neither gets nil.
//
// text goes into MSA-3 and must be ours. Of the message the answer holds the addresses, control id, event, processing id, version and
// character set, and no value.
func Ack(raw []byte, code AckCode, text string, now time.Time) []byte {
	d, msh, _, err := header(string(raw))
	// Also what has no header gets an answer that parses: a sender that only waits for some answer must not hang.
	if err != nil {
		d, msh = standard, `MSH|^~\&|`
	}
	var f [18]string // f[k-1] is MSH-k
	split(msh, d.field, f[:])
	field := func(k int) string { return printable(f[k-1]) }
	mode := byte('A')
	if err == nil {
		if mode = ackMode(field(15), field(16), code); mode == 0 {
			return nil
		}
	}
	sep := string(d.field)
	// MSH-9 echoes the event only where it is one: whatever else stood there could be a value.
	kind := "ACK"
	if d.comp != 0 {
		var parts [2]string
		split(field(9), d.comp, parts[:])
		if isEvent(parts[1]) {
			kind = "ACK" + string(d.comp) + parts[1] + string(d.comp) + "ACK"
		}
	}
	// Unique for each answer: the same message acknowledged again is answered at another time.
	id := sha256.Sum256(strconv.AppendInt(append([]byte(nil), raw...), now.UnixNano(), 10))
	answer := []string{"MSH", f[1], field(5), field(6), field(3), field(4), now.Format("20060102150405.000-0700"), "", kind,
		"WL" + hex.EncodeToString(id[:8]), or(field(11), "P"), or(field(12), "2.6"), "", "", "", "", "", field(18)}
	msa := []string{"MSA", string([]byte{mode, byte(code)}), field(10), d.escape(printable(text))}
	return []byte(strings.TrimRight(strings.Join(answer, sep), sep) + "\r" + strings.TrimRight(strings.Join(msa, sep), sep) + "\r")
}

// ackMode is 'A' or 'C' for the first letter of MSA-1, and 0 when nothing is to be sent.
func ackMode(accept, application string, code AckCode) byte {
	accept, application = strings.ToUpper(strings.TrimSpace(accept)), strings.ToUpper(strings.TrimSpace(application))
	// HL7 table 0155. A condition that is not in it counts as AL.
	wants := func(condition string) bool {
		switch condition {
		case "", "NE":
			return false
		case "ER":
			return code != Accept
		case "SU":
			return code == Accept
		}
		return true
	}
	switch {
	case wants(accept):
		return 'C'
	case wants(application):
		return 'A'
	case accept == "" && (application == "" || application == "NE"):
		return 'A' // an answer that nobody reads harms less than a sender that waits for ever
	}
	return 0
}

// isEvent tells a trigger event: one letter and two digits or letters.
func isEvent(s string) bool {
	if len(s) != 3 {
		return false
	}
	for i := range len(s) {
		if (s[i] < 'A' || s[i] > 'Z') && (i == 0 || s[i] < '0' || s[i] > '9') {
			return false
		}
	}
	return true
}

// printable drops control bytes, which could end the answer's segment or its frame. Other bytes stay as they are, in whatever
// character set: a control id must come back byte for byte.
func printable(s string) string {
	clean := func(b byte) bool { return b >= ' ' && b != 0x7f }
	for i := range len(s) {
		if !clean(s[i]) {
			b := make([]byte, 0, len(s))
			for i := range len(s) {
				if clean(s[i]) {
					b = append(b, s[i])
				}
			}
			return string(b)
		}
	}
	return s
}

// escape writes text of ours so that the message's own delimiters do not cut it.
func (d delims) escape(s string) string {
	if d.esc == 0 {
		d.esc = '\\'
	}
	var b strings.Builder
	for i := range len(s) {
		code := byte(0)
		switch c := s[i]; {
		case c == d.field:
			code = 'F'
		case c == d.esc:
			code = 'E'
		case c == d.comp:
			code = 'S'
		case c == d.rep:
			code = 'R'
		case c == d.sub:
			code = 'T'
		default:
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{d.esc, code, d.esc})
	}
	return b.String()
}

// or is other where s is missing: MSH-11 and MSH-12 must not be empty.
func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
