package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"wardlink/internal/secret"
	"wardlink/telemetry"
)

// A sealing period's bounds. Nonces are random: 2^31 seals of one key leave the chance of a collision below 2^-34, half of what
// NIST SP 800-38D, 8.3 allows.
const (
	maxAge   = time.Hour
	maxSeals = 1 << 31
)

// The labels that bind a derived key to its purpose.
const (
	infoLabel   = "wardlink/sealing-period/1\x00"
	exportLabel = "wardlink/batch-key/1"
	keySize     = 32
)

// ErrOver is returned by Seal when the period has ended: it was forgotten or has made all its seals. The caller begins another.
var ErrOver = errors.New("sealing period is over")

// Period seals batches to the records key with one derived key. It is safe for concurrent use.
//
// BUG(memory): Forget drops the key, but Go keeps expanded AES keys and HPKE's secrets in memory that cannot be wiped, until it is
// used again. Who can read the agent's memory can read the period's batches; who takes its disk cannot.
type Period struct {
	id      [16]byte
	key     [8]byte
	epoch   telemetry.Epoch
	started time.Time
	record  []byte
	aead    atomic.Pointer[cipher.AEAD]
	seals   atomic.Int64
}

// NewPeriod makes a fresh key for pub. now is the period's start; pass time.Now() as it is, since its monotonic reading keeps Over
// right when the clock is set.
func NewPeriod(pub PublicKey, epoch telemetry.Epoch, now time.Time) (*Period, error) {
	if pub.key == nil {
		return nil, errors.New("begin sealing period: no records public key")
	}
	p := &Period{key: pub.ID(), epoch: epoch, started: now}
	rand.Read(p.id[:]) // never fails: the program ends if the system has no randomness
	encapsulation, sender, err := hpke.NewSender(pub.key, kdf, aead, info(p.id, epoch))
	if err != nil {
		return nil, fmt.Errorf("begin sealing period: %w", err)
	}
	gcm, err := batchKey(sender.Export)
	if err != nil {
		return nil, fmt.Errorf("begin sealing period: %w", err)
	}
	p.aead.Store(&gcm)
	p.record, err = encodeRecord(Record{ID: p.id, Key: p.key, Epoch: epoch, Encapsulation: encapsulation, Started: startedAt(now)})
	if err != nil {
		return nil, fmt.Errorf("begin sealing period: %w", err)
	}
	return p, nil
}

// startedAt holds a clock that is out of what a record can say at the nearest end: a period begins whatever the date.
func startedAt(now time.Time) int64 { return min(max(now.UnixMilli(), 0), maxWall) }

// info binds the derived key to the sealing id and epoch: a record whose id or epoch was changed opens nothing.
func info(id [16]byte, epoch telemetry.Epoch) []byte {
	b := append([]byte(infoLabel), id[:]...)
	return append(b, epoch[:]...)
}

// batchKey derives the AES-256-GCM key from either end of the encapsulation and wipes its bytes.
func batchKey(export func(context string, length int) ([]byte, error)) (cipher.AEAD, error) {
	b, err := export(exportLabel, keySize)
	if err != nil {
		return nil, fmt.Errorf("derive batch key: %w", err)
	}
	key := secret.Bytes(b)
	defer key.Wipe()
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive batch key: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// ID is the sealing id: 16 random bytes.
func (p *Period) ID() [16]byte { return p.id }

// Record is the unsigned sealing record, which whoever keeps or sends frames of this period must keep or send with them.
func (p *Period) Record() []byte { return append([]byte(nil), p.record...) }

// Over reports whether the caller must begin another period before its next seal. A clock that went back ends the period too.
func (p *Period) Over(now time.Time) bool {
	age := now.Sub(p.started)
	return age < 0 || age >= maxAge || p.seals.Load() >= maxSeals || p.aead.Load() == nil
}

// Seal makes the frame of one batch. It sets h's Epoch, Sealing and Key itself. Sealing the same batch twice gives different bytes.
// ErrOver means that the period has ended; any other error means that h or plain is outside the limits.
func (p *Period) Seal(h Header, plain []byte) ([]byte, error) {
	h.Epoch, h.Sealing, h.Key = p.epoch, p.id, p.key
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("seal batch: %w", err)
	}
	if len(plain) > MaxPlain {
		return nil, fmt.Errorf("seal batch: %d bytes, at most %d", len(plain), MaxPlain)
	}
	gcm := p.aead.Load()
	if gcm == nil || p.seals.Add(1) > maxSeals {
		return nil, fmt.Errorf("seal batch: %w", ErrOver)
	}
	length := len(plain) + sealOverhead
	header := h.appendTo(make([]byte, 0, headerSize+length+hashSize), length)
	frame := (*gcm).Seal(header, nil, plain, header)
	sum := sha256.Sum256(frame)
	return append(frame, sum[:]...), nil
}

// Forget drops the key: from here on not even this gateway can read what it sealed. Seals that already began are completed.
func (p *Period) Forget() { p.aead.Store(nil) }
