package line

import (
	"encoding/binary"
	"strconv"
)

// OK is the acknowledgement of a message that is sealed and on disk, in the form in which the message came: {"ok":id}, with a line feed
// behind JSON.
func OK(id ID, cbor bool) []byte {
	if cbor {
		return appendID(append([]byte{0xa1}, "\x62ok"...), id)
	}
	return append(quoteID([]byte(`{"ok":`), id), "}\n"...)
}

// Refusal is the answer to a message that is not taken, and would not be if it came again: {"error":why,"id":id}. The id is null where
// none could be read.
func Refusal(id ID, why *RefusedError, cbor bool) []byte {
	if cbor {
		b := append([]byte{0xa2}, "\x65error"...)
		b = appendHead(b, 3, uint64(len(why.Error())))
		b = append(b, why.Error()...)
		return appendID(append(b, "\x62id"...), id)
	}
	b := quote([]byte(`{"error":`), why.Error())
	return append(quoteID(append(b, `,"id":`...), id), "}\n"...)
}

func quoteID(b []byte, id ID) []byte {
	switch {
	case id.Text == "":
		return append(b, "null"...)
	case id.Number:
		return append(b, id.Text...)
	}
	return quote(b, id.Text)
}

// quote writes a text without control characters as JSON, letter for letter.
func quote(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

func appendID(b []byte, id ID) []byte {
	n, err := strconv.ParseInt(id.Text, 10, 64)
	switch {
	case id.Text == "":
		return append(b, 0xf6)
	case !id.Number || err != nil:
		return append(appendHead(b, 3, uint64(len(id.Text))), id.Text...)
	case n < 0:
		return appendHead(b, 1, uint64(-1-n))
	}
	return appendHead(b, 0, uint64(n))
}

// appendHead writes a CBOR head in its shortest form.
func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}
