package records

import (
	"encoding/hex"
	"testing"
)

// A message's key is in FHIR's ids and in every database: it must never change.
func TestMessageKeyStays(t *testing.T) {
	key := messageKey("gw-0001", "monitor-7", [32]byte{1, 2, 3, 31: 255}, 4_000_000_000)
	if got := hex.EncodeToString(key[:]); got != "49df275e78dc14e9eefa3c85db67284c" {
		t.Errorf("the key of a message is %s", got)
	}
}
