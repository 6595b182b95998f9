package hl7

import (
	"encoding/hex"
	"errors"
	"strings"
	"unicode/utf8"
)

// ErrNoMSH means that bytes are no HL7 v2 message: they do not begin with a usable MSH segment, so nothing in them can be read.
var ErrNoMSH = errors.New("no usable MSH segment; expected a message that begins with MSH and its delimiters, as in MSH|^~\\&|")

// delims are the delimiters that a message's MSH-1 and MSH-2 declare. A zero byte stands for one that is not declared.
type delims struct {
	field, comp, rep, esc, sub byte
}

var standard = delims{'|', '^', '~', '\\', '&'}

// header finds the MSH segment: its delimiters and its text up to the end of the segment. Blanks and a byte order mark before it are
// passed over.
func header(s string) (d delims, msh, rest string, err error) {
	s = strings.TrimPrefix(strings.TrimLeft(s, " \t\r\n\x00"), "\ufeff")
	msh, rest = nextSegment(s)
	if len(msh) < 5 || msh[:3] != "MSH" || !isDelimiter(msh[3]) {
		return d, "", "", ErrNoMSH
	}
	d.field = msh[3]
	declared, _, _ := strings.Cut(msh[4:], msh[3:4])
	// A fifth character is the truncation character of HL7 v2.7.
	if len(declared) == 0 || len(declared) > 5 {
		return d, "", "", ErrNoMSH
	}
	// Two delimiters that are one character would make every split a guess.
	for i := range len(declared) {
		if !isDelimiter(declared[i]) || strings.IndexByte(declared[:i], declared[i]) >= 0 {
			return d, "", "", ErrNoMSH
		}
	}
	for i, to := range []*byte{&d.comp, &d.rep, &d.esc, &d.sub} {
		if i < len(declared) {
			*to = declared[i]
		}
	}
	return d, msh, rest, nil
}

// isDelimiter tells what may be a delimiter: a letter or digit would make the message unreadable.
func isDelimiter(b byte) bool {
	switch {
	case b <= ' ' || b > '~', b >= '0' && b <= '9', b >= 'A' && b <= 'Z', b >= 'a' && b <= 'z':
		return false
	}
	return true
}

// nextSegment cuts at <CR>, <LF> or both: the standard says <CR>, but files and some devices have the others. A bare <LF> within a
// field is not legal, and cutting there loses nothing: the remainder is reported as a segment that is not read.
func nextSegment(s string) (segment, rest string) {
	i := strings.IndexByte(s, '\r')
	if i < 0 {
		i = len(s)
	}
	if j := strings.IndexByte(s[:i], '\n'); j >= 0 {
		i = j
	}
	segment = s[:i]
	for i < len(s) && (s[i] == '\r' || s[i] == '\n') {
		i++
	}
	return segment, s[i:]
}

// split fills parts with s cut at sep and empties what is left of parts; what does not fit is dropped.
func split(s string, sep byte, parts []string) {
	for i := range parts {
		if s == "" || sep == 0 {
			parts[i], s = s, ""
			continue
		}
		j := strings.IndexByte(s, sep)
		if j < 0 {
			parts[i], s = s, ""
			continue
		}
		parts[i], s = s[:j], s[j+1:]
	}
}

// first is what stands before the first sep. A sep of 0 is one that the message does not declare: nothing is cut.
func first(s string, sep byte) string {
	if sep == 0 {
		return s
	}
	if i := strings.IndexByte(s, sep); i >= 0 {
		return s[:i]
	}
	return s
}

// charset names the character sets that text is read in.
type charset int

const (
	charsetASCII charset = iota // also when MSH-18 is empty
	charsetUTF8
	charsetLatin1
	charsetOther
)

// charsetOf reads MSH-18 (HL7 table 0211), first repetition. GE monitors write UNICODE and send UTF-8.
func charsetOf(msh18 string) charset {
	switch strings.ToUpper(strings.TrimSpace(msh18)) {
	case "", "ASCII":
		return charsetASCII
	case "UNICODE UTF-8", "UNICODE", "UTF-8", "UTF8":
		return charsetUTF8
	case "8859/1", "8859-1", "ISO8859-1", "ISO-8859-1", "ISO_8859-1":
		return charsetLatin1
	}
	return charsetOther
}

// toUTF8 reads s, which is not ASCII, in its declared set. A reason that is not "" says what had to be guessed or replaced.
func toUTF8(s string, declared charset) (text, reason string) {
	switch {
	case declared == charsetLatin1:
		return latin1(s), ""
	case declared == charsetOther:
		// Two-byte sets hold bytes that look like delimiters, so even their cuts may be wrong: the message travels on as it came.
		var b strings.Builder
		for i := range len(s) {
			if s[i] < utf8.RuneSelf {
				b.WriteByte(s[i])
			} else {
				b.WriteRune(utf8.RuneError)
			}
		}
		return b.String(), "character set is not read; other characters than ASCII are replaced"
	case utf8.ValidString(s): // many devices send UTF-8 and declare nothing; by chance no other text is valid UTF-8
		return s, ""
	case declared == charsetASCII:
		return latin1(s), "characters outside the declared set are read as 8859/1"
	}
	return strings.ToValidUTF8(s, string(utf8.RuneError)), "text is not the UTF-8 that it declares; faulty bytes are replaced"
}

// latin1 reads ISO 8859-1, whose bytes are the first 256 code points.
func latin1(s string) string {
	var b strings.Builder
	b.Grow(len(s) + len(s)/8)
	for i := range len(s) {
		b.WriteRune(rune(s[i]))
	}
	return b.String()
}

// isASCII tells whether s needs no conversion, which is nearly always.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// unescape resolves HL7's escape sequences (chapter 2.7). Those that cannot be resolved stay as they came.
func (d delims) unescape(s string) string {
	if d.esc == 0 || strings.IndexByte(s, d.esc) < 0 {
		return s
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, d.esc)
		if i < 0 {
			break
		}
		j := strings.IndexByte(s[i+1:], d.esc)
		if j < 0 {
			break
		}
		b.WriteString(s[:i])
		sequence := s[i+1 : i+1+j]
		if text, ok := d.sequence(sequence); ok {
			b.WriteString(text)
			s = s[i+2+j:]
			continue
		}
		// Only the first escape character is passed over: the second may begin a sequence of its own.
		b.WriteByte(d.esc)
		s = s[i+1:]
	}
	b.WriteString(s)
	return b.String()
}

// sequence is the text of one escape sequence, given without its escape characters.
func (d delims) sequence(code string) (text string, ok bool) {
	switch code {
	case "F":
		return string(d.field), true
	case "S":
		return string(d.comp), d.comp != 0
	case "T":
		return string(d.sub), d.sub != 0
	case "R":
		return string(d.rep), d.rep != 0
	case "E":
		return string(d.esc), true
	case "P":
		return "#", true
	case "H", "N": // highlighting on and off
		return "", true
	case ".br", ".sp":
		return "\n", true
	}
	// Bytes in hex are in the message's own set; only what is UTF-8 in any case is resolved.
	if len(code) > 1 && code[0] == 'X' {
		b, err := hex.DecodeString(code[1:])
		if err == nil && utf8.Valid(b) {
			return string(b), true
		}
	}
	return "", false
}

// asSent is a whole field as it came, escapes included. A message with delimiters of its own is written in the standard ones, so
// that a reader of the field need not know them.
func (d delims) asSent(s string) string {
	if d == standard || s == "" {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == 0: // a delimiter that is not declared is zero here
			b.WriteByte(c)
		case c == d.comp:
			b.WriteByte('^')
		case c == d.rep:
			b.WriteByte('~')
		case c == d.esc:
			b.WriteByte('\\')
		case c == d.sub:
			b.WriteByte('&')
		case c == '|':
			b.WriteString(`\F\`)
		case c == '^':
			b.WriteString(`\S\`)
		case c == '~':
			b.WriteString(`\R\`)
		case c == '\\':
			b.WriteString(`\E\`)
		case c == '&':
			b.WriteString(`\T\`)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
