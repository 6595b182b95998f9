package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"

	"wardlink/enroll/verify"
)

// The challenges of the attestation CA that wait for their answer are in the database: which process challenged and which is answered need not
// be the same. The protocol has no session: the secret itself names its challenge.

// challenged is what is kept of a TPM until it answers. EKPublic and AKPublic are PKIX DER.
type challenged struct {
	EK, EKPublic, AKName, AKPublic       []byte
	Chain                                bool
	Manufacturer, Model, Version, Serial string
	Former                               string `json:",omitempty"`
}

func encodeChallenged(v *verify.Verified) ([]byte, error) {
	ak, err := x509.MarshalPKIXPublicKey(v.AKPublic)
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	return json.Marshal(challenged{EK: v.EK[:], EKPublic: v.EKPublic, AKName: v.AKName, AKPublic: ak, Chain: v.Chain,
		Manufacturer: v.Manufacturer, Model: v.Model, Version: v.Version, Serial: v.Serial, Former: v.Former})
}

// decodeChallenged trusts the row no further than that the key of the EK is what its hash says.
func decodeChallenged(row []byte) (*verify.Verified, error) {
	var c challenged
	if err := json.Unmarshal(row, &c); err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	ak, err := x509.ParsePKIXPublicKey(c.AKPublic)
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	v := &verify.Verified{EK: sha256.Sum256(c.EKPublic), EKPublic: c.EKPublic, AKName: c.AKName, AKPublic: ak, Chain: c.Chain,
		Manufacturer: c.Manufacturer, Model: c.Model, Version: c.Version, Serial: c.Serial, Former: c.Former}
	if string(c.EK) != string(v.EK[:]) {
		return nil, fmt.Errorf("challenge: the row of another endorsement key")
	}
	return v, nil
}
