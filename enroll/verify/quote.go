package verify

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"

	"github.com/google/go-tpm/tpm2"
)

// QuotedPCRs are the PCRs that our agent quotes, a bit for each: all that tell how a machine booted, so that a hospital may change its policy
// without its gateways. 10 is not among them: the kernel extends it with every program that starts (IMA), and no policy of boots is about it.
// Those from 16 on can be reset while the machine runs, or are for other purposes (TCG PC Client Platform Firmware Profile 1.06, 3.3.4).
const QuotedPCRs = 0xffff &^ (1 << 10)

// Bounds of what comes with an answered challenge.
const (
	// MaxEventLog bounds an event log in bytes. Logs of servers with many drivers and revocation lists have about 100 KB.
	MaxEventLog      = 256 << 10
	maxPCRs          = 24
	maxWords         = 300                             // bytes of a reason
	MaxSecretRequest = (MaxEventLog+8<<10)*4/3 + 8<<10 // bytes of JSON
)

// Boot is what a gateway says of how it booted, with the answer to its challenge. It is a claim; Quote turns it into a Measured.
type Boot struct {
	Quote     []byte   `json:"quote,omitempty"`     // TPMS_ATTEST
	Signature []byte   `json:"signature,omitempty"` // TPMT_SIGNATURE by the AK
	PCRs      [][]byte `json:"pcrs,omitempty"`      // SHA-256 values of those quoted, in order
	Log       []byte   `json:"log,omitempty"`       // the TCG event log, absent where the machine has none
	// Missing says why there is no quote, or no log, in the gateway's words.
	Missing string `json:"missing,omitempty"`
}

// ParseSecretRequest reads the answer to a challenge. Fields that it does not know are ignored.
func ParseSecretRequest(data []byte) (*SecretRequest, error) {
	if len(data) > MaxSecretRequest {
		return nil, fmt.Errorf("secret: %d bytes; expected at most %d", len(data), MaxSecretRequest)
	}
	var r SecretRequest
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, errors.New("secret: expected {\"secret\": base64}") // not what it holds: that may be the secret
	}
	if len(r.Code) > MaxCode {
		return nil, fmt.Errorf("one-time code: %d bytes; expected at most %d", len(r.Code), MaxCode)
	}
	b := r.Boot
	switch {
	case b == nil:
	case len(b.Quote) > maxStructure || len(b.Signature) > maxStructure:
		return nil, fmt.Errorf("quote: a structure of more than %d bytes", maxStructure)
	case len(b.PCRs) > maxPCRs:
		return nil, fmt.Errorf("quote: %d PCRs; expected at most %d", len(b.PCRs), maxPCRs)
	case len(b.Log) > MaxEventLog:
		return nil, fmt.Errorf("event log: %d bytes; expected at most %d", len(b.Log), MaxEventLog)
	case len(b.Missing) > maxWords:
		return nil, fmt.Errorf("quote: a reason of %d bytes; expected at most %d", len(b.Missing), maxWords)
	}
	return &r, nil
}

// Qualifying is what a quote is made over: it proves that the quote was made for this challenge, by the TPM that opened it.
func Qualifying(secret []byte) [32]byte {
	return sha256.Sum256(append([]byte("wl-quote"), secret...))
}

// Measured is a quote that passed every check: what the PCRs of a gateway that has just proven its EK hold.
type Measured struct {
	Selected uint32 // a bit for each PCR that was quoted
	Values   [maxPCRs][32]byte
}

// The reasons why a quote does not count, one for each check.
var (
	ErrQuote          = errors.New("quote: not one TPMS_ATTEST")
	ErrQuoteMagic     = errors.New("quote: it was not made by a TPM")
	ErrQuoteType      = errors.New("quote: the attestation is of another kind")
	ErrQualifying     = errors.New("quote: it was made for another challenge")
	ErrSelection      = errors.New("quote: expected PCRs 0 to 23 of the SHA-256 bank, and of no other")
	ErrPCRValues      = errors.New("quote: expected one value of 32 bytes for each PCR that is quoted")
	ErrPCRDigest      = errors.New("quote: the values are not those that the TPM quotes")
	ErrQuoteSigFormat = errors.New("quote: the signature is not RSASSA with SHA-256")
	ErrQuoteSignature = errors.New("quote: the signature does not verify under the AK")
)

// Quote judges a quote under the AK that was challenged, made for the challenge that secret answers: one line, one check. The log is not
// looked at: it proves nothing by itself (package eventlog).
func Quote(b *Boot, ak *rsa.PublicKey, secret []byte) (*Measured, error) {
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](b.Quote)
	if err != nil || !bytes.Equal(tpm2.Marshal(attest), b.Quote) {
		return nil, ErrQuote
	}
	if attest.Magic != tpm2.TPMGeneratedValue { // a restricted key signs outside data too, but never with this prefix
		return nil, ErrQuoteMagic
	}
	info, err := attest.Attested.Quote() // go-tpm ties the union's member to the attested type
	if err != nil {
		return nil, ErrQuoteType
	}
	if want := Qualifying(secret); !bytes.Equal(attest.ExtraData.Buffer, want[:]) {
		return nil, ErrQualifying
	}
	m := &Measured{}
	if m.Selected, err = selected(info.PCRSelect); err != nil {
		return nil, err
	}
	if len(b.PCRs) != bits.OnesCount32(m.Selected) {
		return nil, ErrPCRValues
	}
	digest := sha256.New()
	for i, left := 0, m.Selected; left != 0; i, left = i+1, left&(left-1) {
		if len(b.PCRs[i]) != 32 {
			return nil, ErrPCRValues
		}
		copy(m.Values[bits.TrailingZeros32(left)][:], b.PCRs[i])
		digest.Write(b.PCRs[i])
	}
	if !bytes.Equal(digest.Sum(nil), info.PCRDigest.Buffer) {
		return nil, ErrPCRDigest
	}
	if err := rsassa(ak, b.Quote, b.Signature, ErrQuoteSigFormat, ErrQuoteSignature); err != nil {
		return nil, err
	}
	return m, nil
}

func selected(list tpm2.TPMLPCRSelection) (pcrs uint32, err error) {
	if len(list.PCRSelections) != 1 || list.PCRSelections[0].Hash != tpm2.TPMAlgSHA256 || len(list.PCRSelections[0].PCRSelect) != 3 {
		return 0, ErrSelection
	}
	for i, b := range list.PCRSelections[0].PCRSelect {
		pcrs |= uint32(b) << (8 * i)
	}
	if pcrs == 0 {
		return 0, ErrSelection
	}
	return pcrs, nil
}
