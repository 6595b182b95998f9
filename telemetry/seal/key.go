package seal

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"fmt"

	"wardlink/internal/secret"
)

// The HPKE suite (RFC 9180; the KEM from draft-ietf-hpke-pq): MLKEM768-P256 (0x0050), HKDF-SHA256 (0x0001), export only (0xffff).
// The hybrid keeps a recording of today's traffic closed to tomorrow's quantum computer, and to a flaw in either half.
var (
	kem  = hpke.MLKEM768P256()
	kdf  = hpke.HKDFSHA256()
	aead = hpke.ExportOnly()
)

// The sizes of serialised keys and encapsulations of this KEM.
const (
	PublicKeySize     = 1184 + 65
	PrivateKeySize    = 32
	EncapsulationSize = 1088 + 65
)

// PublicKey is the hospital's records key as gateways know it. The zero value is no key.
type PublicKey struct {
	key   hpke.PublicKey
	bytes []byte
}

// PrivateKey is the hospital's records key. Only the records service holds it. The zero value is no key.
type PrivateKey struct {
	key    hpke.PrivateKey
	seed   secret.Bytes
	public PublicKey
}

// GenerateKey makes a new records key.
func GenerateKey() (PrivateKey, error) {
	key, err := kem.GenerateKey()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate records key: %w", err)
	}
	return newPrivateKey(key)
}

// ParsePublicKey reads what PublicKey.Bytes gives.
func ParsePublicKey(data []byte) (PublicKey, error) {
	if len(data) != PublicKeySize {
		return PublicKey{}, fmt.Errorf("records public key of %d bytes; expected %d", len(data), PublicKeySize)
	}
	key, err := kem.NewPublicKey(data)
	if err != nil {
		return PublicKey{}, fmt.Errorf("records public key: %w", err)
	}
	return PublicKey{key: key, bytes: bytes.Clone(data)}, nil
}

// ParsePrivateKey reads what PrivateKey.Bytes gives.
func ParsePrivateKey(data secret.Bytes) (PrivateKey, error) {
	if len(data) != PrivateKeySize {
		return PrivateKey{}, fmt.Errorf("records private key of %d bytes; expected %d", len(data), PrivateKeySize)
	}
	key, err := kem.NewPrivateKey(data)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("records private key: %w", err)
	}
	return newPrivateKey(key)
}

func newPrivateKey(key hpke.PrivateKey) (PrivateKey, error) {
	seed, err := key.Bytes()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("records private key: %w", err)
	}
	public, err := ParsePublicKey(key.PublicKey().Bytes())
	if err != nil {
		return PrivateKey{}, err
	}
	return PrivateKey{key: key, seed: bytes.Clone(seed), public: public}, nil
}

// Bytes is the key as RFC 9180's SerializePublicKey gives it, PublicKeySize bytes: ML-KEM-768 encapsulation key, then the P-256
// point, uncompressed.
func (k PublicKey) Bytes() []byte { return bytes.Clone(k.bytes) }

// ID is the first 8 bytes of the SHA-256 of Bytes. It tells keys apart; it is too short to prove anything.
func (k PublicKey) ID() [8]byte {
	sum := sha256.Sum256(k.bytes)
	return [8]byte(sum[:8])
}

// Bytes is the key's seed, PrivateKeySize bytes.
func (k PrivateKey) Bytes() secret.Bytes { return bytes.Clone(k.seed) }

// Public is the public half.
func (k PrivateKey) Public() PublicKey { return k.public }

// String keeps the key out of whatever prints the struct.
func (k PrivateKey) String() string { return "records private key " + fmt.Sprintf("%x", k.public.ID()) }

// GoString is String: %#v would print the halves.
func (k PrivateKey) GoString() string { return k.String() }
