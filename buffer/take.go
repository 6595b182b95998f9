package buffer

import (
	"bytes"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// Take gives out up to max batches that are not acknowledged, not parked and not out already. First come the lanes of Config.First, each
// whole before the next; then what is live of all others, lane by lane in Config.Order; then their backlog, lane by lane, the oldest
// first. While live batches wait a quarter is taken from the backlog all the same. Nothing is live before Began was called, except in the
// lanes of Config.First, where everything is. It stops early at 1 MB of frames, so its memory is bounded; fewer than max does not mean
// there are no more. None means there are none.
func (b *Buffer) Take(max int) ([]Batch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("take: %w", ErrClosed)
	}
	t := &taking{max: max, most: takeBytes}
	for i := range b.c.First {
		b.share(b.order[i:i+1], t)
	}
	b.share(b.order[b.c.First:], t)
	if t.failed != nil && len(t.out) == 0 {
		return nil, fmt.Errorf("take: %w", t.failed)
	}
	return t.out, nil
}

type taking struct {
	out    []Batch
	max    int
	bytes  int
	most   int   // of bytes, beyond the first batch
	failed error // of a file that is left alone
	// The number that is being read: a page that the disk does not give up ends the walk in its middle.
	number uint64
	busy   bool
}

func (t *taking) full() bool { return len(t.out) >= t.max || t.bytes >= t.most }

// oldest takes from a lane, the oldest first.
func (b *Buffer) oldest(l *lane, t *taking) {
	for i := 0; i < len(l.segs) && !t.full(); {
		s := l.segs[i]
		if b.took(s, b.takeFrom(s, t), t) {
			i++ // else the next one is at i
		}
	}
}

// took deals with what went wrong with a segment; false when it was set aside.
func (b *Buffer) took(s *seg, err error, t *taking) bool {
	if err == nil {
		return true
	}
	if !b.spares(s, err) {
		b.aside(s, err)
		return false
	}
	// Not this time; the other files flow. After a failed commit its Append is about to read the file again.
	if !errors.Is(err, segment.ErrClosed) && s.illWait == 0 {
		t.failed = err
	}
	return true
}

// takeFrom takes what one segment has, the oldest first: what was given back of the numbers that it has passed, then from where the last
// Take stopped.
func (b *Buffer) takeFrom(s *seg, t *taking) error {
	if s.waiting == 0 || len(s.released.spans) == 0 && s.at > s.last {
		return nil
	}
	err := b.read(s, func(tx *bbolt.Tx) error {
		for !t.full() && len(s.released.spans) > 0 && s.released.spans[0].from < s.at {
			b.takeOne(tx, s, s.released.spans[0].from, t)
		}
		return b.walk(tx, s, t)
	})
	b.stumbled(s, t)
	b.settled(s)
	return err
}

// stumbled gives back the batch whose page the disk did not give up.
func (b *Buffer) stumbled(s *seg, t *taking) {
	if t.busy {
		t.busy = false
		s.released.add(t.number)
	}
}

// walk goes from s.at to the segment's last number, and jumps over what is acknowledged instead of visiting it.
func (b *Buffer) walk(tx *bbolt.Tx, s *seg, t *taking) error {
	batches := tx.Bucket([]byte(bucketBatches))
	if batches == nil {
		return fmt.Errorf("%w: no batches bucket", segment.ErrDamaged)
	}
	acks := b.lanes[s.header.lane].acks[s.header.epoch]
	c := batches.Cursor()
	k, _ := c.Seek(numberKey(s.at))
	for !t.full() {
		// A commit that is flushed but not yet counted is beyond s.last: its turn comes when Append has returned.
		if k == nil || len(k) != 8 || beUint64(k) > s.last {
			s.at = s.last + 1
			return nil
		}
		number := beUint64(k)
		s.at = number + 1
		if to, in := acks.end(number); in {
			if to >= s.last {
				s.at = s.last + 1
				return nil
			}
			s.at = to + 1
			k, _ = c.Seek(numberKey(s.at))
			continue
		}
		if _, held := b.parked[s.id(number)]; !held && !s.taken.has(number) && !s.gone.has(number) {
			b.takeOne(tx, s, number, t)
		}
		k, _ = c.Next()
	}
	return nil
}

// takeOne reads one batch; one that does not verify is counted as gone and costs its neighbours nothing.
func (b *Buffer) takeOne(tx *bbolt.Tx, s *seg, number uint64, t *taking) {
	s.released.remove(number)
	t.number, t.busy = number, true
	batch, err := readBatch(tx, s.header, number)
	t.busy = false
	if err == nil {
		err = b.c.Verify(batch.Frame)
	}
	if err != nil {
		s.gone.add(number)
		s.waiting--
		// Durable with the next state. A crash before has it found once more.
		b.lose(deprived{epoch: s.header.epoch, lane: s.header.lane, runs: []Run{{number, number}}, count: 1, next: number + 1}, false)
		b.c.Log.Error("a batch on disk does not verify and is not sent; its file will be kept", "path", s.path, "batch", s.id(number).String(), "error", err)
		return
	}
	s.taken.add(number)
	t.out = append(t.out, batch)
	t.bytes += len(batch.Frame)
}

// readBatch copies a batch out of the file.
func readBatch(tx *bbolt.Tx, h header, number uint64) (Batch, error) {
	key := numberKey(number)
	bucket := tx.Bucket([]byte(bucketBatches)).Bucket(key)
	if bucket == nil {
		return Batch{}, fmt.Errorf("batch %d is missing", number)
	}
	frame := bytes.Clone(bucket.Get([]byte(keyFrame)))
	sealing, err := parseBatch(h, key, bucket.Get([]byte(keyMeta)), bucket.Get([]byte(keySeen)), frame)
	if err != nil {
		return Batch{}, err
	}
	return Batch{ID: ID{Epoch: h.epoch, Lane: h.lane, Number: number}, Sealing: sealing, Frame: frame}, nil
}

// Ack says that batches have arrived for good. Ids that Take did not give out are ignored.
func (b *Buffer) Ack(ids ...ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		s := b.out(id)
		if s == nil {
			// It was on its way when its file went: it is not lost.
			if !b.closed && int(id.Lane) < len(b.lanes) && b.lanes[id.Lane].find(id) == nil {
				b.found(id.Lane, id.Epoch, id.Number, id.Number)
			}
			continue
		}
		l := b.lanes[id.Lane]
		if l.acked(id.Epoch).add(id.Number) {
			s.waiting--
			b.touch()
		}
		b.settled(s)
	}
}

// out finds the segment of a batch that was given out (taken, given back, or parked) and takes that mark off it.
func (b *Buffer) out(id ID) *seg {
	if b.closed || int(id.Lane) >= len(b.lanes) {
		return nil
	}
	s := b.lanes[id.Lane].find(id)
	if s == nil {
		return nil
	}
	_, held := b.parked[id]
	delete(b.parked, id)
	s.held.remove(id.Number)
	if s.taken.remove(id.Number) || s.released.remove(id.Number) || held {
		return s
	}
	return nil
}

// Release gives batches back that were taken and will not be acknowledged: they wait as before.
func (b *Buffer) Release(ids ...ID) {
	b.mu.Lock()
	any := false
	for _, id := range ids {
		if b.closed || int(id.Lane) >= len(b.lanes) {
			continue
		}
		if s := b.lanes[id.Lane].find(id); s != nil && s.taken.remove(id.Number) {
			if _, held := b.parked[id]; held { // it was offered once more, and nobody said anything
				b.missed(s, id)
				continue
			}
			s.released.add(id.Number)
			any = true
		}
	}
	b.mu.Unlock()
	if any {
		b.signal()
	}
}

// Park keeps a batch that the receiver refused: Take does not give it out again, also after a restart, and its file stays. TakeParked does. reason is
// cut at 200 bytes.
func (b *Buffer) Park(id ID, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, again := b.parked[id]
	if b.out(id) == nil {
		return
	}
	s := b.lanes[id.Lane].find(id)
	s.held.add(id.Number)
	if again {
		b.round.missed[id.Lane]++ // it waits for the next round
	}
	b.parked[id] = parked{at: b.c.Now().Unix(), reason: reason[:min(len(reason), maxReason)]}
	b.touch()
}

// settled looks whether a segment has nothing left to send: then its time begins to run, or, when some of it did not verify, it is
// set aside to be kept. Under mu.
func (b *Buffer) settled(s *seg) {
	if s.waiting > 0 || s.writing || s.since != 0 {
		return
	}
	s.since = b.age()
	if len(s.gone.spans) > 0 {
		b.aside(s, fmt.Errorf("%w: %d batches do not verify", segment.ErrDamaged, s.gone.size()))
		return
	}
	b.touch()
}
