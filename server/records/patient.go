package records

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"regexp"
	"strings"

	"wardlink/internal/secret"
)

// patientIDBytes of the keyed hash make the id: 128 bits, which no two patients of any hospital share by chance.
const patientIDBytes = 16

// PatientID is the id under which a patient is known outside the records: a keyed hash of its identifier, so that ids, URLs and
// audit events reveal nothing to those who do not hold the key, though identifiers are few and easily tried out. The same key must
// be used for ever.
func PatientID(key secret.Bytes, system, value string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("wardlink/patient/1\x00"))
	mac.Write([]byte(system))
	mac.Write([]byte{0})
	mac.Write([]byte(value))
	return hex.EncodeToString(mac.Sum(nil)[:patientIDBytes])
}

var oidRE = regexp.MustCompile(`^[0-2](\.(0|[1-9][0-9]*))+$`)

// AuthoritySystem turns an assigning authority as sent (HL7 v2 HD in PID-3.4: NAME, NAME&OID&ISO, or the same with ^) into a URI:
// the universal id where there is one, else one of our own that keeps the name.
func AuthoritySystem(authority string) string {
	// Within PID-3.4 the separator is the subcomponents' one; what an agent hands on may show it as the components'.
	separator := "&"
	if !strings.Contains(authority, separator) {
		separator = "^"
	}
	parts := strings.Split(authority, separator)
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	if len(parts) >= 3 {
		switch id := parts[1]; {
		case parts[2] == "ISO" && oidRE.MatchString(id):
			return "urn:oid:" + id
		case parts[2] == "URI" && id != "":
			return id
		case (parts[2] == "UUID" || parts[2] == "GUID") && id != "":
			return "urn:uuid:" + strings.ToLower(id)
		}
	}
	name := parts[0]
	if name == "" {
		return ""
	}
	return "urn:wardlink:authority:" + url.PathEscape(name)
}
