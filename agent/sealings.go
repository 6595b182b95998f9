package agent

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"wardlink/agent/card"
	"wardlink/agent/uplink"
	"wardlink/buffer"
	"wardlink/internal/durable"
	"wardlink/telemetry/seal"
)

// storeSealings is how many signatures are made before they are stored together: each store writes the whole file.
const storeSealings = 16

// errNoSigner: nobody can sign yet.
var errNoSigner = errors.New("not enrolled yet, so there is no key to sign it")

// missingFor is how long a record must be missing before it counts as gone for good and its batches are parked: a file that cannot
// be read for a moment (no descriptors left) must not cost a batch its turn.
const missingFor = time.Minute

// missGap is the longest time between two misses of one wait: the uplink asks every 5 s, and 30 s more are allowed for it to be busy.
// Two unlucky reads hours apart say nothing of what lay between.
const missGap = 35 * time.Second

// absence is a record's wait: misses from first to last with no gap longer than missGap.
type absence struct{ first, last time.Time }

// sealings keeps the sealing records that the TPM device key has signed, in an A/B file of their own. Losing the file loses
// nothing: the unsigned records are with the segments that need them, and are signed again.
type sealings struct {
	record func(id [16]byte) ([]byte, error) // the buffer's unsigned record; buffer.ErrNoRecord when it has none

	mu     sync.Mutex
	file   *durable.AB
	signed []card.Sealing // oldest first
	signer crypto.Signer  // nil until the gateway has enrolled
	missed map[[16]byte]absence
}

func openSealings(path string, record func([16]byte) ([]byte, error), log *slog.Logger) (*sealings, error) {
	file, data, aside, lost, err := durable.OpenABOrAside(path, card.MaxSealingsFile)
	if err != nil {
		return nil, fmt.Errorf("sealing signatures: %w", err)
	}
	if lost != nil {
		log.Error("the sealing signatures are lost and are made again as they are needed", "set_aside", aside, "error", lost)
	}
	s := &sealings{file: file, record: record, missed: map[[16]byte]absence{}}
	if data != nil {
		if s.signed, err = card.ParseSealings(data); err != nil {
			log.Error("the sealing signatures are of no known format and are made again as they are needed", "path", path, "error", err)
			s.signed = nil
		}
	}
	return s, nil
}

// use sets the key that signs from now on. Signatures by another key stay valid as long as the registry knows that key; a TPM that
// was replaced has another key, and its gateway's records are then signed anew.
func (s *sealings) use(signer crypto.Signer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	spki, err := seal.SPKIHash(signer.Public())
	if err != nil {
		return fmt.Errorf("sealing signatures: %w", err)
	}
	kept := s.signed[:0]
	for _, e := range s.signed {
		if parsed, err := seal.ParseSigned(e.Signed); err == nil && parsed.SPKI == spki {
			kept = append(kept, e)
		}
	}
	s.signed, s.signer = kept, signer
	return nil
}

// get is uplink's Sealing: the signed record, made and stored if it is not there. It takes one TPM signature, off the data path.
func (s *sealings) get(_ context.Context, id [16]byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	signed, made, err := s.sign(id)
	if err == nil && made {
		err = s.store()
	}
	if err != nil {
		return nil, fmt.Errorf("sealing %x: %w", id, err)
	}
	return signed, nil
}

// signAll signs and stores what is not signed of the newest of ids, which are all that the buffer holds, oldest first. A board that dies
// takes its key with it: what it sealed during an outage can be proven only if it was signed before. Others are let in between two
// signatures, since a TPM takes a while for each.
func (s *sealings) signAll(ctx context.Context, ids [][16]byte) error {
	ids = ids[max(0, len(ids)-card.MaxSealings):]
	unstored := 0
	for i, id := range ids {
		s.mu.Lock()
		if i == 0 && len(s.signed)+len(ids) > card.MaxSealings {
			// What the buffer holds no more is needed by nobody, unless a file was set aside; so only when room is needed.
			s.signed = slices.DeleteFunc(s.signed, func(e card.Sealing) bool { return !slices.Contains(ids, e.ID) })
		}
		_, made, err := s.sign(id)
		if made {
			unstored++
		}
		if unstored > 0 && (err != nil || unstored == storeSealings || i == len(ids)-1) {
			err, unstored = errors.Join(err, s.store()), 0
		}
		s.mu.Unlock()
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fmt.Errorf("sealing %x: %w", id, err)
		}
	}
	if unstored == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store()
}

// sign gives the signed record and says whether it was made now, and is yet to be stored. Under mu.
func (s *sealings) sign(id [16]byte) (signed []byte, made bool, err error) {
	for _, e := range s.signed {
		if e.ID == id {
			return e.Signed, false, nil
		}
	}
	if s.signer == nil {
		return nil, false, errNoSigner
	}
	record, err := s.record(id)
	if errors.Is(err, buffer.ErrNoRecord) {
		return nil, false, s.miss(id, time.Now())
	}
	if err != nil {
		return nil, false, fmt.Errorf("its record cannot be read at the moment: %w", err)
	}
	delete(s.missed, id)
	if signed, err = seal.SignRecord(record, s.signer); err != nil {
		return nil, false, err
	}
	s.signed = append(s.signed, card.Sealing{ID: id, Signed: signed})
	if over := len(s.signed) - card.MaxSealings; over > 0 {
		s.signed = append([]card.Sealing(nil), s.signed[over:]...)
	}
	return signed, true, nil
}

// store writes the file. Under mu.
func (s *sealings) store() error {
	data, err := card.EncodeSealings(s.signed)
	if err != nil {
		return err
	}
	return s.file.Store(data)
}

// runSealings signs each period's record once its first batch is durable, whether the hospital can be reached or not.
func (a *Agent) runSealings(ctx context.Context) error {
	for ctx.Err() == nil {
		var again <-chan time.Time
		if err := a.seals.signAll(ctx, a.buf.Sealings()); err != nil && !errors.Is(err, errNoSigner) && ctx.Err() == nil {
			a.log.Warn("sealing records are not signed yet; tried again in a minute", "error", err)
			again = time.After(time.Minute)
		}
		select {
		case <-ctx.Done():
		case <-a.intake.begun:
		case <-again:
		}
	}
	return nil
}

// miss says that a record is not in the buffer: for now, or, after missingFor, for good.
func (s *sealings) miss(id [16]byte, now time.Time) error {
	a, ok := s.missed[id]
	if !ok && len(s.missed) >= card.MaxSealings {
		clear(s.missed) // bounded; those still missing begin to count again
	}
	if !ok || now.Sub(a.last) > missGap {
		a.first = now
	}
	a.last = now
	s.missed[id] = a
	if now.Sub(a.first) < missingFor {
		return errors.New("its record is not found in the buffer")
	}
	return fmt.Errorf("its record is not in the buffer: %w", uplink.ErrNoSealing)
}
