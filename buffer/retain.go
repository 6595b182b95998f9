package buffer

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// dropOldest deletes the segment that was delivered first; false when there is none.
func (b *Buffer) dropOldest() bool {
	for {
		var oldest *seg
		for _, l := range b.lanes {
			for _, s := range l.segs {
				if s.deliverable() && (oldest == nil || cmp.Or(cmp.Compare(s.since, oldest.since), cmp.Compare(s.header.seq, oldest.header.seq)) < 0) {
					oldest = s
				}
			}
		}
		if oldest == nil {
			return false
		}
		if b.drop(oldest) {
			return true
		}
		if !oldest.resting() { // else the disk cannot read it, which is no reason to keep the others
			return false
		}
	}
}

// deliverable: the whole segment has arrived, nobody writes to it, what it holds is known, and the disk reads it.
func (s *seg) deliverable() bool {
	return !s.writing && !s.soft && s.waiting == 0 && len(s.gone.spans) == 0 && !s.resting()
}

// setAge begins age at the latest that is kept: a start goes on from there.
func (b *Buffer) setAge(delivered []deliveredAt) {
	b.ageFrom, b.ageAt = max(1, b.c.Now().Unix()), b.c.Elapsed()
	for i, d := range delivered {
		if i == 0 || d.at > b.ageFrom {
			b.ageFrom = d.at
		}
	}
}

// age is what delivered segments are dated by, in seconds: Unix time when the buffer was made, from then on only what has passed while it
// was open. A wall clock that jumps ahead, or that a start finds ahead, would else delete what a restored hospital may ask for. The time
// that a gateway is off, and at a start that since the last delivery, do not count: files stay longer, which costs nothing, since they go
// when their space is needed.
func (b *Buffer) age() int64 { return b.ageFrom + int64((b.c.Elapsed()-b.ageAt)/time.Second) }

// expire deletes what was delivered longer than Keep ago.
func (b *Buffer) expire() {
	if b.closed {
		return
	}
	now := b.age()
	for _, l := range b.lanes {
		for _, s := range slices.Clone(l.segs) {
			if s.deliverable() && s.since != 0 && now-s.since >= int64(b.c.Keep/time.Second) && !b.drop(s) {
				return
			}
		}
	}
}

// drop deletes a delivered segment. Its acknowledgements and the lane's counters are made durable before, and the file itself is
// asked once more: a batch in it that nobody acknowledged keeps it.
//
// Crash argument: before the removal is durable the file is there again after a crash, with all its numbers acknowledged; after it,
// the counters in the state file carry on what its header and count said.
func (b *Buffer) drop(s *seg) bool {
	acks := b.lanes[s.header.lane].acks[s.header.epoch]
	missing := uint64(0)
	err := b.read(s, func(tx *bbolt.Tx) error {
		return eachNumber(tx, 0, func(n uint64) error {
			if !acks.has(n) {
				missing++
			}
			return nil
		})
	})
	if err == nil && missing > 0 {
		err = fmt.Errorf("%w: %d batches are not acknowledged though their count says so", segment.ErrDamaged, missing)
	}
	if err != nil {
		if !b.spares(s, err) {
			b.aside(s, err)
		}
		return false
	}
	if !b.storeUnderMu("a delivered segment is not deleted") {
		return false
	}
	b.shut(s)
	if err = os.Remove(s.path); err != nil {
		b.c.Log.Error("a delivered segment could not be deleted", "path", s.path, "error", err)
		return false
	}
	if err = durable.SyncDir(b.c.Dir); err != nil { // it is gone; should a power cut bring it back, it is sent again at worst
		b.c.Log.Warn("the removal of a delivered segment may not be durable", "path", s.path, "error", err)
	}
	l := b.lanes[s.header.lane]
	l.segs = slices.DeleteFunc(l.segs, func(o *seg) bool { return o == s })
	b.unsift(s)
	b.disk -= s.disk
	return true
}

// encodeState is the state as it is now; sets of epochs without a segment are forgotten. Under mu.
func (b *Buffer) encodeState() []byte {
	st := state{parked: b.parked}
	for _, l := range b.lanes {
		st.lanes = append(st.lanes, laneState{l.nextSeq, l.batches, l.bytes, l.evicted})
		live := map[[16]byte]bool{}
		for _, s := range l.segs {
			live[s.header.epoch] = true
			if s.since != 0 {
				st.delivered = append(st.delivered, deliveredAt{l.index, s.header.seq, s.since})
			}
		}
		for _, epoch := range l.leaving {
			live[epoch] = true
		}
		if len(b.unread) > 0 { // what cannot be read at present may be of any epoch
			for epoch := range l.losses {
				live[epoch] = true
			}
		}
		st.losses = l.allLosses(live, st.losses)
		for epoch, r := range l.acks {
			if !live[epoch] && len(b.unread) == 0 {
				delete(l.acks, epoch)
			} else if len(r.spans) > 0 {
				st.acks = append(st.acks, ackSet{epoch: epoch, lane: l.index, spans: r.spans})
			}
		}
	}
	sort.Slice(st.acks, func(i, k int) bool {
		x, y := &st.acks[i], &st.acks[k]
		return cmp.Or(cmp.Compare(x.lane, y.lane), bytes.Compare(x.epoch[:], y.epoch[:])) < 0
	})
	return st.encode()
}

// Known looks for a message among all batches kept here, acknowledged ones included: the highest Copy of which every lane of its mask
// holds it. A miss costs some reads of a few bytes for each 32 segments (see sieve), whatever they hold; a hit, or a false hit of all
// filters, a walk over one segment.
func (b *Buffer) Known(digest [32]byte) (copies uint32, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := map[uint32]uint8{} // copy: the lanes that hold it
	masks := map[uint32]uint8{}
	for _, s := range b.sifted(&digest) {
		err := b.read(s, func(tx *bbolt.Tx) error {
			return seenIn(tx, s, digest, func(m Seen) {
				held[m.Copy] |= 1 << s.header.lane
				masks[m.Copy] |= m.Mask
			})
		})
		if err != nil && !b.spares(s, err) {
			b.aside(s, err)
		}
	}
	for n, mask := range masks {
		if held[n]&mask == mask && (!known || n > copies) {
			copies, known = n, true
		}
	}
	return copies, known
}

// seenIn calls fn for each time the digest stands in the segment's committed batches.
func seenIn(tx *bbolt.Tx, s *seg, digest [32]byte, fn func(Seen)) error {
	batches := tx.Bucket([]byte(bucketBatches))
	return eachNumber(tx, 0, func(n uint64) error {
		if n > s.last || s.count == 0 || n >= s.tail {
			return nil // Append has not returned, or not with nil
		}
		if s.gone.has(n) {
			return nil // it is lost: what comes again is taken anew
		}
		eachSeen(batches.Bucket(numberKey(n)).Get([]byte(keySeen)), func(m Seen) {
			if m.Digest == digest {
				fn(m)
			}
		})
		return nil
	})
}

// Sealing returns the sealing record with that id, of any batch kept here. ErrNoRecord: there is none, or none that verifies; any
// other error says that it could not be looked for everywhere, and may be had later.
func (b *Buffer) Sealing(id [16]byte) (record []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("sealing record %x: %w", id, ErrClosed)
	}
	var later error
	if len(b.unread) > 0 {
		later = fmt.Errorf("%s: %w", b.unread[0].path, errIll)
	}
	for _, l := range b.lanes {
		for _, s := range slices.Backward(slices.Clone(l.segs)) {
			if !slices.Contains(s.sealings, id) {
				continue
			}
			err := b.read(s, func(tx *bbolt.Tx) error {
				r, err := parseRecord(id[:], tx.Bucket([]byte(bucketSealings)).Get(id[:]))
				record = bytes.Clone(r)
				return err
			})
			if err == nil {
				return record, nil
			}
			if errors.Is(err, errIll) {
				later = err
				continue
			}
			b.c.Log.Error("a sealing record cannot be read from one segment; others are tried", "path", s.path, "error", err)
			if b.spares(s, err) {
				later = err
			}
		}
	}
	if later != nil {
		return nil, fmt.Errorf("sealing record %x: %w", id, later)
	}
	return nil, fmt.Errorf("sealing record %x: %w", id, ErrNoRecord)
}

// Sealings gives the ids of the sealing records that are here, oldest first within a lane.
func (b *Buffer) Sealings() (ids [][16]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		for _, s := range l.segs {
			for _, id := range s.sealings {
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
		}
	}
	return ids
}

// Stats is the buffer at one instant.
type Stats struct {
	Lanes         []LaneStats `json:"lanes"`
	Disk          int64       `json:"disk"`           // bytes in use and reserved
	Cap           int64       `json:"cap"`            // bytes that are never exceeded
	Damaged       []string    `json:"damaged"`        // base names of files set aside
	Unread        []string    `json:"unread"`         // base names of files that the disk cannot read at present; they are tried again
	NextParked    time.Time   `json:"next_parked"`    // when parked batches are offered to the receiver again; zero: now, or with the next connection
	FlushFailures uint64      `json:"flush_failures"` // times acknowledgements could not be stored
}

// LaneStats is one lane at one instant, in batches where nothing else is said.
type LaneStats struct {
	Name     string `json:"name"`
	Segments int    `json:"segments"`
	Bytes    int64  `json:"bytes"`   // on disk
	Stored   uint64 `json:"stored"`  // in readable segments
	Waiting  uint64 `json:"waiting"` // of them not acknowledged, given out and parked ones included
	Out      uint64 `json:"out"`     // given out, not acknowledged yet
	Parked   uint64 `json:"parked"`
	Lost     uint64 `json:"lost"` // since the start: did not verify, or waited in files that were set aside
	// Batches that were deleted undelivered for the room of others, in the latest time without a day's pause in it, also before the start.
	Evicted      uint64    `json:"evicted"`
	EvictedSince time.Time `json:"evicted_since"` // when that time began; zero when nothing was
	EvictedAt    time.Time `json:"evicted_at"`    // the latest
}

// Stats counts.
func (b *Buffer) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := Stats{NextParked: b.nextRound(), Disk: b.disk, Cap: b.c.Cap, Unread: b.unreadNames(), FlushFailures: b.flushFail.Load()}
	for _, f := range b.damaged {
		st.Damaged = append(st.Damaged, filepath.Base(f.path))
	}
	for _, l := range b.lanes {
		ls := LaneStats{Name: l.name, Segments: len(l.segs), Lost: l.lost, Evicted: l.evicted.batches}
		if l.evicted.batches > 0 {
			ls.EvictedSince, ls.EvictedAt = time.Unix(l.evicted.since, 0), time.Unix(l.evicted.at, 0)
		}
		for _, s := range l.segs {
			ls.Bytes += s.disk
			ls.Stored += s.count
			ls.Waiting += s.waiting
			ls.Out += s.taken.size()
		}
		for id := range b.parked {
			if id.Lane == l.index {
				ls.Parked++
			}
		}
		st.Lanes = append(st.Lanes, ls)
	}
	return st
}
