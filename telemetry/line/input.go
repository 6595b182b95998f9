package line

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"wardlink/telemetry"
)

// kind is what a value is, in either form.
type kind byte

const (
	kindNone   kind = iota // not there
	kindObject             // an object, or a map
	kindArray
	kindText
	kindNumber // an integer, a decimal or a float
	kindNull   // null, or undefined
	kindOther  // true and false, byte strings, simple values
)

// input is a message that check has found well-formed, and a place in it. What is read twice is read from the same place again.
type input struct {
	text string
	at   int
	cbor bool
}

// blanks passes over what stands between JSON's tokens.
func (in *input) blanks() {
	for in.at < len(in.text) {
		switch in.text[in.at] {
		case ' ', '\t', '\r', '\n', ',', ':':
			in.at++
			continue
		}
		return
	}
}

// peek tells the kind of the next value.
func (in *input) peek() kind {
	if in.cbor {
		return in.peekCBOR()
	}
	in.blanks()
	if in.at == len(in.text) {
		return kindNone
	}
	switch c := in.text[in.at]; {
	case c == '{':
		return kindObject
	case c == '[':
		return kindArray
	case c == '"':
		return kindText
	case c == 'n':
		return kindNull
	case c == 't', c == 'f':
		return kindOther
	}
	return kindNumber
}

// each calls fn before each value of the object or array that comes next; of an object with the value's key read, which fn is given.
// fn must pass over the value.
func (in *input) each(fn func(key int)) {
	if in.cbor {
		in.eachCBOR(fn)
		return
	}
	object := in.text[in.at] == '{'
	in.at++
	for {
		in.blanks()
		if c := in.text[in.at]; c == '}' || c == ']' {
			in.at++
			return
		}
		key := 0
		if object {
			key = keyOf(in.textJSON())
		}
		in.blanks()
		fn(key)
	}
}

// skip passes over a value.
func (in *input) skip() {
	if in.cbor {
		var s scanner
		for done := false; !done && in.at < len(in.text); in.at++ {
			done, _ = s.next(in.text[in.at]) // it is known to be well-formed
		}
		return
	}
	in.blanks()
	switch in.peek() {
	case kindObject, kindArray:
		for depth := 0; ; {
			switch in.text[in.at] {
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			case '"':
				in.quoted()
				continue
			}
			if in.at++; depth == 0 {
				return
			}
		}
	case kindText:
		in.quoted()
	default:
		in.token()
	}
}

// quoted passes over a JSON string, and gives it with its quotes.
func (in *input) quoted() string {
	start := in.at
	for in.at++; in.text[in.at] != '"'; in.at++ {
		if in.text[in.at] == '\\' {
			in.at++
		}
	}
	in.at++
	return in.text[start:in.at]
}

// token passes over a JSON number or word.
func (in *input) token() string {
	start := in.at
	for in.at < len(in.text) && strings.IndexByte(" \t\r\n,]}", in.text[in.at]) < 0 {
		in.at++
	}
	return in.text[start:in.at]
}

// string reads a text; what is not UTF-8 in it is U+FFFD.
func (in *input) string() string {
	s := ""
	if in.cbor {
		_, n := in.headCBOR()
		s = in.text[in.at : in.at+int(n)]
		in.at += int(n)
	} else {
		s = in.textJSON()
	}
	if !utf8.ValidString(s) {
		return strings.ToValidUTF8(s, "\ufffd")
	}
	return s
}

func (in *input) textJSON() string {
	q := in.quoted()
	if strings.IndexByte(q, '\\') < 0 {
		return q[1 : len(q)-1]
	}
	var s string
	_ = json.Unmarshal([]byte(q), &s) // a well-formed string has no error
	return s
}

// number reads a number as decimal text. What has no decimal of a reasonable length stays as it is spelled.
func (in *input) number() string {
	if in.cbor {
		return in.numberCBOR()
	}
	return plain(in.token())
}

// plain writes out a number's exponent: 7.25e1 is 72.5, digit for digit.
func plain(s string) string {
	i := strings.IndexAny(s, "eE")
	if i < 0 {
		return s
	}
	e, err := strconv.Atoi(s[i+1:])
	if err != nil || e > telemetry.MaxDecimal || e < -telemetry.MaxDecimal || i > telemetry.MaxDecimal {
		return s
	}
	sign, digits := "", s[:i]
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	whole, fraction, _ := strings.Cut(digits, ".")
	if e >= 0 {
		fraction += strings.Repeat("0", max(0, e-len(fraction)))
		whole, fraction = whole+fraction[:e], fraction[e:]
	} else {
		whole = strings.Repeat("0", max(0, 1-e-len(whole))) + whole
		cut := len(whole) + e
		whole, fraction = whole[:cut], whole[cut:]+fraction
	}
	if whole = strings.TrimLeft(whole, "0"); whole == "" {
		whole = "0"
	}
	if fraction != "" {
		fraction = "." + fraction
	}
	return sign + whole + fraction
}

// headCBOR reads a head and the tags before it. n is its argument; 1<<64-1 for a length left open.
func (in *input) headCBOR() (head byte, n uint64) {
	for {
		head = in.text[in.at]
		in.at++
		info := head & 31
		switch n = uint64(info); {
		case info == 31:
			n = 1<<64 - 1
		case info >= 24:
			size := 1 << (info - 24)
			var b [8]byte
			copy(b[8-size:], in.text[in.at:in.at+size])
			n = binary.BigEndian.Uint64(b[:])
			in.at += size
		}
		if head>>5 != 6 || n == tagDecimal {
			return head, n
		}
	}
}

const tagDecimal = 4 // RFC 8949, 3.4.4: an array of exponent and mantissa

func (in *input) peekCBOR() kind {
	at := in.at
	head, _ := in.headCBOR()
	in.at = at
	switch head >> 5 {
	case 0, 1, 6:
		return kindNumber
	case 3:
		return kindText
	case 4:
		return kindArray
	case 5:
		return kindObject
	case 7:
		switch {
		case head == 0xf6, head == 0xf7:
			return kindNull
		case head&31 >= 25:
			return kindNumber
		}
	}
	return kindOther
}

func (in *input) eachCBOR(fn func(key int)) {
	head, n := in.headCBOR()
	for ; n > 0; n-- {
		if in.text[in.at] == 0xff { // the end of a length left open; nothing else begins so
			in.at++
			return
		}
		key := 0
		if head>>5 == 5 {
			key = in.keyCBOR()
		}
		fn(key)
	}
}

// keyCBOR reads a key: its name, or its number.
func (in *input) keyCBOR() int {
	switch at := in.at; in.peek() {
	case kindText:
		return keyOf(in.string())
	case kindNumber:
		if head, n := in.headCBOR(); head>>5 == 0 && n < keyCount {
			return int(n)
		}
		in.at = at
	}
	in.skip()
	return 0
}

func (in *input) numberCBOR() string {
	at := in.at
	head, n := in.headCBOR()
	switch head >> 5 {
	case 0:
		return strconv.FormatUint(n, 10)
	case 1:
		if n == math.MaxUint64 {
			return "-18446744073709551616"
		}
		return "-" + strconv.FormatUint(n+1, 10)
	case 6:
		s, ok := in.decimalCBOR()
		if !ok {
			in.at = at
			in.skip()
		}
		return s
	}
	switch head & 31 {
	case 25:
		return float(half(uint16(n)), 32)
	case 26:
		return float(float64(math.Float32frombits(uint32(n))), 32)
	}
	return float(math.Float64frombits(n), 64)
}

// decimalCBOR reads tag 4's array. Anything but two integers is left to the caller.
func (in *input) decimalCBOR() (s string, ok bool) {
	if in.at >= len(in.text) || in.text[in.at] != 0x82 {
		return "", false
	}
	in.at++
	var parts [2]string
	for i := range parts {
		if in.text[in.at]>>5 > 1 {
			return "", false
		}
		parts[i] = in.numberCBOR()
	}
	return plain(parts[1] + "e" + parts[0]), true
}

// float is the shortest decimal that reads back as v, which is what a person would write for it.
func float(v float64, bits int) string { return plain(strconv.FormatFloat(v, 'g', -1, bits)) }

// half is a float of 16 bits (RFC 8949, appendix D).
func half(h uint16) float64 {
	v := float64(h & 0x3ff)
	switch exp := int(h >> 10 & 31); exp {
	case 0:
		v = math.Ldexp(v, -24)
	case 31:
		if v = math.Inf(1); h&0x3ff != 0 {
			v = math.NaN()
		}
	default:
		v = math.Ldexp(v+1024, exp-25)
	}
	if h>>15 != 0 {
		v = -v
	}
	return v
}
