package enroll

import (
	"encoding/base32"
	"strings"
)

// Fingerprint is the short form of an EK hash by which people match the box in their hands with a line on a screen: the first 80
// bits in base32, four groups of four letters. It selects among waiting gateways; the whole hash decides.
func Fingerprint(ek [32]byte) string {
	s := base32.StdEncoding.EncodeToString(ek[:10])
	return strings.Join([]string{s[0:4], s[4:8], s[8:12], s[12:16]}, "-")
}
