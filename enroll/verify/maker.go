package verify

import (
	"encoding/binary"
	"strconv"
	"strings"
)

// MakerName is a TPM maker's id as people read it: "IFX" of both "id:49465800", as certificates have it, and "1229346816", which is the same in decimal, as
// a TPM's property has it. The id is four ASCII characters (TCG TPM Vendor ID Registry). swtpm's certificates have IBM's
// PCI id in its place. What is neither stays as it is.
func MakerName(id string) string {
	text, base := id, 10
	if hex, ok := strings.CutPrefix(id, "id:"); ok {
		text, base = hex, 16
	}
	n, err := strconv.ParseUint(text, base, 32)
	if err != nil {
		return id
	}
	if n == 0x1014 {
		return "IBM"
	}
	name := strings.TrimRight(string(binary.BigEndian.AppendUint32(nil, uint32(n))), "\x00 ")
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return id
	}
	return name
}
