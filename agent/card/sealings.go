package card

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

const (
	// SealingsName is the A/B file of the signed sealing records in a gateway's state directory.
	SealingsName = "sealings"
	// MaxSealings is how many signed sealing records are kept: six weeks of hourly periods, for an outage of a month. An older one is
	// signed again when a backlog still needs it.
	MaxSealings = 1024
	// MaxSealingsFile is the limit of the A/B file's value in bytes.
	MaxSealingsFile = 4 << 20
)

// Sealing is a sealing record that the board's device key has signed.
type Sealing struct {
	ID     [16]byte `cbor:"1,keyasint"`
	Signed []byte   `cbor:"2,keyasint"`
}

// sealingsDec bounds what a damaged file can ask for; the file's checksum has been verified before.
var sealingsDec = func() cbor.DecMode {
	m, err := cbor.DecOptions{MaxArrayElements: MaxSealings, MaxNestedLevels: 4, MaxMapPairs: 16}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

// EncodeSealings gives the file's value.
func EncodeSealings(all []Sealing) ([]byte, error) { return cbor.Marshal(all) }

// ParseSealings reads what EncodeSealings wrote. No signature is verified.
func ParseSealings(data []byte) (all []Sealing, err error) {
	if err := sealingsDec.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("sealing signatures: %w", err)
	}
	return all, nil
}
