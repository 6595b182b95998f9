package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"wardlink/internal/spiffe"
)

// Bounds of an attestation request. A real one has about 6 KB.
const (
	MaxRequest      = 64 << 10 // bytes of JSON
	maxCertificates = 8        // an EK's own, and a chain
	maxCertificate  = 8 << 10
	maxStructure    = 2 << 10 // any TPM structure; the largest, a TPMT_PUBLIC with an RSA-4096 key, has about 600 bytes
	maxText         = 64
	MaxSerial       = 64 // bytes of a serial number
	MaxCode         = 64 // bytes of a one-time code
)

// Request is the body of POST /attest, as the attestation clients of go.step.sm/crypto and stock step send it. Byte fields are
// standard base64 in JSON. It is what a stranger claims; Attestation turns it into a Verified.
type Request struct {
	TPMInfo      TPMInfo  `json:"tpmInfo"`
	EK           []byte   `json:"ek"`                // PKIX DER
	EKCerts      [][]byte `json:"ekCerts,omitempty"` // DER or as NV holds it (UnwrapCertificate): the EK's own first, then its chain
	AKCert       []byte   `json:"akCert,omitempty"`  // a former AK certificate; ignored
	AttestParams Params   `json:"params"`
	// Serial is the serial number of the box around the TPM, in the box's own words; stock clients send none.
	Serial string `json:"serial,omitempty"`
	// Former is the gateway that the disk beside the TPM was with another TPM, as the disk says; absent when it was none.
	Former string `json:"former,omitempty"`
}

// TPMInfo is what the TPM says of itself.
type TPMInfo struct {
	Version         int    `json:"version"`
	Manufacturer    string `json:"manufacturer"` // decimal of TPM_PT_MANUFACTURER
	Model           string `json:"model"`
	FirmwareVersion string `json:"firmwareVersion"`
}

// Params is the AK's public area and the account of its creation.
type Params struct {
	Public                  []byte `json:"public"` // TPMT_PUBLIC
	UseTCSDActivationFormat bool   `json:"useTCSDActivationFormat"`
	CreateData              []byte `json:"createData"`        // TPMS_CREATION_DATA
	CreateAttestation       []byte `json:"createAttestation"` // TPMS_ATTEST
	CreateSignature         []byte `json:"createSignature"`   // TPMT_SIGNATURE
}

// Challenge is the answer to POST /attest.
type Challenge struct {
	Credential []byte `json:"credential"` // TPM2B_ID_OBJECT
	Secret     []byte `json:"secret"`     // TPM2B_ENCRYPTED_SECRET
	Boot       bool   `json:"boot"`       // the answer may say how the gateway booted; stock clients do not know the member
}

// SecretRequest is the body of POST /secret: the decrypted secret, which is also the only name of the pending challenge.
type SecretRequest struct {
	Secret []byte `json:"secret"`
	Boot   *Boot  `json:"boot,omitempty"` // of our agent; stock clients send none
	Code   string `json:"code,omitempty"` // the one-time code of a first enrolment, at most MaxCode bytes
}

// SecretResponse is the answer: the AK certificate and its issuer, DER.
type SecretResponse struct {
	Chain [][]byte `json:"chain"`
}

// ParseRequest reads an attestation request. Fields that it does not know are ignored, since stock clients may send more.
func ParseRequest(data []byte) (*Request, error) {
	if len(data) > MaxRequest {
		return nil, fmt.Errorf("attestation request: %d bytes; expected at most %d", len(data), MaxRequest)
	}
	var r Request
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("attestation request: %w", err)
	}
	if len(r.EKCerts) > maxCertificates {
		return nil, fmt.Errorf("attestation request: %d EK certificates; expected at most %d", len(r.EKCerts), maxCertificates)
	}
	for _, c := range append(r.EKCerts, r.AKCert) {
		if len(c) > maxCertificate {
			return nil, fmt.Errorf("attestation request: a certificate of %d bytes; expected at most %d", len(c), maxCertificate)
		}
	}
	if !PlainSerial(r.Serial) {
		return nil, fmt.Errorf("attestation request: serial: expected at most %d printable ASCII characters", MaxSerial)
	}
	if r.Former != "" && spiffe.ValidName(r.Former) != nil {
		return nil, errors.New("attestation request: former: expected the name of a gateway")
	}
	p := r.AttestParams
	for _, s := range [][]byte{r.EK, p.Public, p.CreateData, p.CreateAttestation, p.CreateSignature} {
		if len(s) > maxStructure {
			return nil, fmt.Errorf("attestation request: a structure of %d bytes; expected at most %d", len(s), maxStructure)
		}
	}
	if p.UseTCSDActivationFormat || r.TPMInfo.Version == 1 {
		return nil, errors.New("attestation request: TPM 1.2 is not supported")
	}
	return &r, nil
}

// PlainSerial tells whether a serial number may stand in a request: printable ASCII, at most MaxSerial bytes, none included.
func PlainSerial(s string) bool {
	return len(s) <= MaxSerial && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) && s == strings.TrimSpace(s)
}
