package seal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"wardlink/telemetry"
)

// Record is a sealing record: what the records service needs, beside its private key, to open the frames of one period.
type Record struct {
	ID            [16]byte // sealing id
	Key           [8]byte  // id of the records key it is sealed to
	Epoch         telemetry.Epoch
	Encapsulation []byte // EncapsulationSize bytes
	Started       int64  // Unix milliseconds by the gateway's clock, 0 to the end of the year 9999
}

const recordVersion = 1

type wireRecord struct {
	Version       uint64 `cbor:"1,keyasint"`
	ID            []byte `cbor:"2,keyasint"`
	Key           []byte `cbor:"3,keyasint"`
	Epoch         []byte `cbor:"4,keyasint"`
	Encapsulation []byte `cbor:"5,keyasint"`
	Started       int64  `cbor:"6,keyasint"`
}

// Signed is a sealing record with a gateway's signature, not verified.
type Signed struct {
	Record    []byte   // as it was signed
	SPKI      [32]byte // SHA-256 of the signer's SubjectPublicKeyInfo in DER
	Signature []byte   // ECDSA, ASN.1 DER
}

type wireSigned struct {
	Record    []byte `cbor:"1,keyasint"`
	SPKI      []byte `cbor:"2,keyasint"`
	Signature []byte `cbor:"3,keyasint"`
}

// signLabel begins what is signed, so that no signature made for another purpose by the same device key is one of ours.
const signLabel = "wardlink/sealing/1\x00"

// maxSignature is an ECDSA P-256 signature in DER at its longest.
const maxSignature = 72

var (
	encoding = newEncoding()
	decoding = newDecoding()
)

func newEncoding() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(fmt.Sprintf("seal: CBOR encoding options: %v", err))
	}
	return mode
}

func newDecoding() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements:  16,
		MaxMapPairs:       16,
		MaxNestedLevels:   4,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("seal: CBOR decoding options: %v", err))
	}
	return mode
}

// decodeExact reads one value and accepts only the bytes that encoding would write for it: one value has one form.
func decodeExact(data []byte, v any) error {
	if len(data) > telemetry.MaxDocument {
		return fmt.Errorf("%d bytes, at most %d", len(data), telemetry.MaxDocument)
	}
	if err := decoding.Unmarshal(data, v); err != nil {
		var twice *cbor.DupMapKeyError
		if errors.As(err, &twice) { // its text would carry the sender's bytes into a log
			return errors.New("cbor: a map has a key twice")
		}
		return err
	}
	again, err := encoding.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, data) {
		return errors.New("not in deterministic CBOR")
	}
	return nil
}

func encodeRecord(r Record) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return encoding.Marshal(wireRecord{
		Version: recordVersion, ID: r.ID[:], Key: r.Key[:], Epoch: r.Epoch[:], Encapsulation: r.Encapsulation, Started: r.Started,
	})
}

// ParseRecord reads an unsigned sealing record. It proves nothing about who made it.
func ParseRecord(data []byte) (Record, error) {
	var w wireRecord
	var r Record
	if err := decodeExact(data, &w); err != nil {
		return r, fmt.Errorf("sealing record: %w", err)
	}
	if w.Version != recordVersion {
		return r, fmt.Errorf("sealing record: version %d is unknown; expected %d", w.Version, recordVersion)
	}
	if len(w.ID) != len(r.ID) || len(w.Key) != len(r.Key) || len(w.Epoch) != len(r.Epoch) {
		return r, fmt.Errorf("sealing record: ids of %d, %d and %d bytes; expected %d, %d and %d",
			len(w.ID), len(w.Key), len(w.Epoch), len(r.ID), len(r.Key), len(r.Epoch))
	}
	r = Record{
		ID: [16]byte(w.ID), Key: [8]byte(w.Key), Epoch: telemetry.Epoch(w.Epoch), Encapsulation: w.Encapsulation, Started: w.Started,
	}
	if err := r.check(); err != nil {
		return Record{}, fmt.Errorf("sealing record: %w", err)
	}
	return r, nil
}

func (r *Record) check() error {
	if len(r.Encapsulation) != EncapsulationSize {
		return fmt.Errorf("encapsulation of %d bytes; expected %d", len(r.Encapsulation), EncapsulationSize)
	}
	if r.Started < 0 || r.Started > maxWall {
		return fmt.Errorf("started at %d ms; expected 0 to %d", r.Started, int64(maxWall))
	}
	return nil
}

// SignRecord signs an unsigned sealing record with a gateway's device key (ECDSA P-256) and gives the bytes for the key topic.
// It signs nothing that is not a sealing record, and returns nothing that would not verify.
func SignRecord(record []byte, signer crypto.Signer) ([]byte, error) {
	if _, err := ParseRecord(record); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("sign sealing record: device key is %T; expected ECDSA P-256", signer.Public())
	}
	spki, err := hashSPKI(pub)
	if err != nil {
		return nil, fmt.Errorf("sign sealing record: %w", err)
	}
	signature, err := signer.Sign(rand.Reader, signedDigest(record), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign sealing record: %w", err)
	}
	s := Signed{Record: record, SPKI: spki, Signature: signature}
	// A TPM or its bus can err; a signature that fails at the server would strand every batch of the period.
	if _, err := s.Verify(pub); err != nil {
		return nil, fmt.Errorf("sign sealing record: the device key made a wrong signature: %w", err)
	}
	return encoding.Marshal(wireSigned{Record: record, SPKI: spki[:], Signature: signature})
}

// ParseSigned reads what SignRecord wrote. It verifies nothing.
func ParseSigned(data []byte) (Signed, error) {
	var w wireSigned
	var s Signed
	if err := decodeExact(data, &w); err != nil {
		return s, fmt.Errorf("signed sealing record: %w", err)
	}
	if len(w.SPKI) != len(s.SPKI) {
		return s, fmt.Errorf("signed sealing record: key hash of %d bytes; expected %d", len(w.SPKI), len(s.SPKI))
	}
	if len(w.Signature) == 0 || len(w.Signature) > maxSignature {
		return s, fmt.Errorf("signed sealing record: signature of %d bytes; expected 1 to %d", len(w.Signature), maxSignature)
	}
	if _, err := ParseRecord(w.Record); err != nil {
		return s, fmt.Errorf("signed: %w", err)
	}
	return Signed{Record: w.Record, SPKI: [32]byte(w.SPKI), Signature: w.Signature}, nil
}

// Unverified is the record for routing only: which batches it belongs to. Nothing may be trusted for it.
func (s Signed) Unverified() (Record, error) { return ParseRecord(s.Record) }

// Verify is the one decision whether pub signed this record. Whether pub is a key of the gateway in question is the registry's to say.
func (s Signed) Verify(pub *ecdsa.PublicKey) (Record, error) {
	spki, err := hashSPKI(pub)
	if err != nil {
		return Record{}, fmt.Errorf("verify sealing record: %w", err)
	}
	if spki != s.SPKI {
		return Record{}, fmt.Errorf("verify sealing record: signed by key %x, not by %x", s.SPKI[:8], spki[:8])
	}
	if !ecdsa.VerifyASN1(pub, signedDigest(s.Record), s.Signature) {
		return Record{}, errors.New("verify sealing record: the signature does not match")
	}
	return ParseRecord(s.Record)
}

func signedDigest(record []byte) []byte {
	h := sha256.New()
	h.Write([]byte(signLabel))
	h.Write(record)
	return h.Sum(nil)
}

// SPKIHash names a device key: the SHA-256 of its PKIX public key, as Signed.SPKI holds it. Keys that are not ECDSA P-256 are refused.
func SPKIHash(pub crypto.PublicKey) ([32]byte, error) {
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return [32]byte{}, fmt.Errorf("device key is %T; expected ECDSA P-256", pub)
	}
	return hashSPKI(key)
}

func hashSPKI(pub *ecdsa.PublicKey) ([32]byte, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return [32]byte{}, errors.New("device key is not on P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("device key: %w", err)
	}
	return sha256.Sum256(der), nil
}
