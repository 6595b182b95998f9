package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"wardlink/internal/secret"
)

// The recovery file's parameters. 600,000 rounds of PBKDF2-HMAC-SHA-256 is what OWASP's Password Storage Cheat Sheet asks of
// people's passwords (2023); the passphrase that init makes has 120 bits of its own.
const (
	recoveryVersion = 1
	recoveryRounds  = 600_000
	maxRounds       = 10_000_000 // bounds the work that a forged file can ask for
	maxRecovery     = 64 << 10
)

// Recovered are the keys that only the recovery file keeps for bad days: the root key, which signs the next issuing CA and is
// nowhere else, the records key, without which no stored batch can be opened again and no pseudonym found, and the config key, which
// the kits in the field trust and no other.
type Recovered struct {
	Root    secret.Bytes `cbor:"1,keyasint"` // PKCS #8
	Records secret.Bytes `cbor:"2,keyasint"` // as seal.PrivateKey.Bytes
	Config  secret.Bytes `cbor:"3,keyasint"` // PKCS #8
}

// recoveryFile is the JSON form. Everything but Sealed is authenticated as AAD, so that no parameter can be weakened unseen.
type recoveryFile struct {
	Version     int    `json:"wardlink_recovery"`
	TrustDomain string `json:"trust_domain"`
	KDF         string `json:"kdf"`
	Rounds      int    `json:"rounds"`
	Salt        string `json:"salt"`
	Cipher      string `json:"cipher"`
	Sealed      string `json:"sealed"`
}

func (f recoveryFile) aad() []byte {
	f.Sealed = ""
	b, _ := json.Marshal(f) // strings and integers always marshal
	return append([]byte("wardlink/recovery/1\x00"), b...)
}

// NewPassphrase makes a passphrase of 120 random bits, in groups that a person can copy from a screen to paper.
func NewPassphrase() string {
	var raw [15]byte
	rand.Read(raw[:])
	s := strings.ToLower(base32.StdEncoding.EncodeToString(raw[:]))
	var groups []string
	for i := 0; i < len(s); i += 4 {
		groups = append(groups, s[i:i+4])
	}
	return strings.Join(groups, "-")
}

// spoken is a passphrase without what is lost between paper and keyboard: case, hyphens and spaces.
func spoken(passphrase string) string {
	return strings.NewReplacer("-", "", " ", "", "\t", "", "\n", "", "\r", "").Replace(strings.ToLower(passphrase))
}

// WrapRecovery makes the recovery file.
func WrapRecovery(trustDomain, passphrase string, keys Recovered) ([]byte, error) {
	// What is measured is what is used: recoveryAEAD trims as well, and sixteen blanks are no passphrase.
	if len(spoken(passphrase)) < 16 {
		return nil, errors.New("recovery passphrase: at least 16 characters; leave it out and init makes one")
	}
	var salt [16]byte
	rand.Read(salt[:])
	f := recoveryFile{
		Version: recoveryVersion, TrustDomain: trustDomain, KDF: "PBKDF2-HMAC-SHA256", Rounds: recoveryRounds,
		Salt: base64.StdEncoding.EncodeToString(salt[:]), Cipher: "AES-256-GCM",
	}
	aead, err := recoveryAEAD(passphrase, salt[:], f.Rounds)
	if err != nil {
		return nil, err
	}
	plain, err := cbor.Marshal(keys)
	if err != nil {
		return nil, fmt.Errorf("recovery file: %w", err)
	}
	defer clear(plain)
	f.Sealed = base64.StdEncoding.EncodeToString(aead.Seal(nil, nil, plain, f.aad()))
	out, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("recovery file: %w", err)
	}
	return append(out, '\n'), nil
}

// OpenRecovery opens the recovery file. A wrong passphrase and a damaged file look alike on purpose: authentication fails.
func OpenRecovery(data []byte, passphrase string) (Recovered, error) {
	var none Recovered
	if len(data) > maxRecovery {
		return none, fmt.Errorf("recovery file: %d bytes; at most %d", len(data), maxRecovery)
	}
	var f recoveryFile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return none, fmt.Errorf("recovery file: %w", err)
	}
	if f.Version != recoveryVersion || f.KDF != "PBKDF2-HMAC-SHA256" || f.Cipher != "AES-256-GCM" {
		return none, fmt.Errorf("recovery file: version %d, %s, %s is not what this program reads", f.Version, f.KDF, f.Cipher)
	}
	if f.Rounds < recoveryRounds || f.Rounds > maxRounds {
		return none, fmt.Errorf("recovery file: %d rounds; expected %d to %d", f.Rounds, recoveryRounds, maxRounds)
	}
	salt, err := base64.StdEncoding.DecodeString(f.Salt)
	if err != nil || len(salt) != 16 {
		return none, errors.New("recovery file: salt: expected 16 bytes in base64")
	}
	sealed, err := base64.StdEncoding.DecodeString(f.Sealed)
	if err != nil {
		return none, fmt.Errorf("recovery file: sealed: %w", err)
	}
	aead, err := recoveryAEAD(passphrase, salt, f.Rounds)
	if err != nil {
		return none, err
	}
	plain, err := aead.Open(nil, nil, sealed, f.aad())
	if err != nil {
		return none, errors.New("recovery file: does not open: the passphrase is wrong or the file was changed")
	}
	defer clear(plain)
	var keys Recovered
	if err := cbor.Unmarshal(plain, &keys); err != nil {
		return none, fmt.Errorf("recovery file: contents: %w", err)
	}
	return keys, nil
}

func recoveryAEAD(passphrase string, salt []byte, rounds int) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, spoken(passphrase), salt, rounds, 32)
	if err != nil {
		return nil, fmt.Errorf("recovery passphrase: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("recovery passphrase: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}
