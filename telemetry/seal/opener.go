package seal

import (
	"crypto/cipher"
	"crypto/hpke"
	"errors"
	"fmt"
)

// Opener opens the frames of one sealing period. It is safe for concurrent use. Making one costs a decapsulation; keep it while
// frames of its period come.
type Opener struct {
	record Record
	aead   cipher.AEAD
}

// NewOpener derives the period's key. rec comes from Signed.Verify: an opener of an unverified record opens what anyone sealed.
// A wrong record does not fail here, since ML-KEM rejects implicitly, but at the first Open.
func NewOpener(priv PrivateKey, rec Record) (*Opener, error) {
	if priv.key == nil {
		return nil, errors.New("open sealing period: no records private key")
	}
	if id := priv.Public().ID(); rec.Key != id {
		return nil, fmt.Errorf("open sealing period: it is sealed to records key %x; this service holds %x", rec.Key, id)
	}
	recipient, err := hpke.NewRecipient(rec.Encapsulation, priv.key, kdf, aead, info(rec.ID, rec.Epoch))
	if err != nil {
		return nil, fmt.Errorf("open sealing period: %w", err)
	}
	gcm, err := batchKey(recipient.Export)
	if err != nil {
		return nil, fmt.Errorf("open sealing period: %w", err)
	}
	return &Opener{record: rec, aead: gcm}, nil
}

// Open gives a frame's header and plaintext. After it the header is proven too: it is what the gateway sealed.
func (o *Opener) Open(frame []byte) (Header, []byte, error) {
	h, err := CheckFrame(frame)
	if err != nil {
		return Header{}, nil, fmt.Errorf("open: %w", err)
	}
	if h.Sealing != o.record.ID || h.Epoch != o.record.Epoch || h.Key != o.record.Key {
		return Header{}, nil, fmt.Errorf("open frame: it is of sealing %x, epoch %s, key %x; the record is of %x, %s, %x",
			h.Sealing, h.Epoch, h.Key, o.record.ID, o.record.Epoch, o.record.Key)
	}
	plain, err := o.aead.Open(nil, nil, frame[headerSize:len(frame)-hashSize], frame[:headerSize])
	if err != nil {
		return Header{}, nil, errors.New("open frame: it was not sealed by this period, or was changed since")
	}
	return h, plain, nil
}
