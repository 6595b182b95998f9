package buffer

import (
	"bytes"
	"cmp"
	"fmt"
	"sort"
	"time"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// What a receiver refused it may take later: a profile was put back, a server mended. So parked batches are offered again in rounds: the first
// with the first TakeParked after Open, the next a day after the last began. A batch that is offered stays parked until Ack names it, so a
// crash or a connection that ends costs nothing but the try.
const (
	roundEvery = 24 * time.Hour
	// roundMisses is how many tries that came to nothing end a lane's part of a round: each may cost the connection that other lanes use. Who is
	// refused again goes to the end of the line, so that no batch keeps others of its lane from being offered for ever.
	roundMisses = 3
)

// round is the one under way, or the last. Under mu.
type round struct {
	begun  bool
	at     time.Duration // Config.Elapsed when it began
	wait   []ID          // not offered yet
	missed [8]int        // tries that came to nothing, by lane
}

// TakeParked gives out one parked batch whose turn it is, for one more try; ok is false when there is none now. What it gives out meets Ack,
// Release or Park like what Take gives out; the latter two leave it parked. Lanes that rest are left out of the round.
func (b *Buffer) TakeParked() (batch Batch, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return batch, false, fmt.Errorf("take parked: %w", ErrClosed)
	}
	r := &b.round
	if now := b.c.Elapsed(); !r.begun || now-r.at >= roundEvery {
		*r = round{begun: true, at: now, wait: b.parkedByAge()}
	}
	for len(r.wait) > 0 {
		id := r.wait[0]
		r.wait = r.wait[1:]
		if _, held := b.parked[id]; !held || r.missed[id.Lane] >= roundMisses || b.resting>>id.Lane&1 != 0 {
			continue
		}
		s := b.lanes[id.Lane].find(id)
		if s == nil || s.taken.has(id.Number) { // its file cannot be read at present, or it is out
			continue
		}
		if batch, ok = b.takeAgain(s, id); ok {
			return batch, true, nil
		}
	}
	return batch, false, nil
}

// parkedByAge are all, who was refused the longest ago first.
func (b *Buffer) parkedByAge() []ID {
	ids := make([]ID, 0, len(b.parked))
	for id := range b.parked {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, k int) bool {
		x, y := &ids[i], &ids[k]
		return cmp.Or(cmp.Compare(b.parked[*x].at, b.parked[*y].at), cmp.Compare(x.Lane, y.Lane), bytes.Compare(x.Epoch[:], y.Epoch[:]), cmp.Compare(x.Number, y.Number)) < 0
	})
	return ids
}

// takeAgain reads one parked batch. One that does not verify any more is lost, and parked no longer.
func (b *Buffer) takeAgain(s *seg, id ID) (Batch, bool) {
	t := &taking{max: 1}
	err := b.read(s, func(tx *bbolt.Tx) error {
		if tx.Bucket([]byte(bucketBatches)) == nil {
			return fmt.Errorf("%w: no batches bucket", segment.ErrDamaged)
		}
		b.takeOne(tx, s, id.Number, t)
		return nil
	})
	if !b.took(s, err, t) || err != nil { // set aside, or left alone for a while: then it is still parked
		return Batch{}, false
	}
	s.held.remove(id.Number)
	if len(t.out) == 0 {
		delete(b.parked, id)
		b.touch()
		b.settled(s)
		return Batch{}, false
	}
	return t.out[0], true
}

// missed puts a try that came to nothing back. Under mu.
func (b *Buffer) missed(s *seg, id ID) {
	s.held.add(id.Number)
	b.round.missed[id.Lane]++
	b.round.wait = append(b.round.wait, id)
}

// nextRound is when parked batches are offered next; zero while a round is under way, or none has begun. Under mu.
func (b *Buffer) nextRound() time.Time {
	if !b.round.begun || len(b.round.wait) > 0 {
		return time.Time{}
	}
	return b.c.Now().Add(max(0, roundEvery-(b.c.Elapsed()-b.round.at)))
}
