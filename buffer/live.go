package buffer

import (
	"fmt"
	"math"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// Which batches are live is said without a clock: those that were appended after the mark that Began sets, and the liveBefore batches
// before it, so that what was measured last before a connection came to be is among the first that it carries. What lies before the mark
// is backlog. The mark is memory alone: after a start everything is backlog until Began is called.
const (
	liveBefore = 64
	// backlogShare: of so many batches given out one is of the backlog, the oldest, while live ones wait; so neither starves the other.
	backlogShare = 4
	// maxRuns bounds how many runs newest-first may break a lane's acknowledged numbers into, 8 KB of memory and of the state file. Each
	// connection that ends before its lane is empty leaves one more. At the bound only the oldest are given out, which joins runs again.
	maxRuns = 512
)

var (
	nothingLive    = position{seq: math.MaxUint64}
	everythingLive = position{}
)

// Began says that a connection begins: what waits now, except the newest few of each lane, is backlog from here on. The lanes of
// Config.First have none.
func (b *Buffer) Began() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.order[b.c.First:] {
		l.mark, l.owed = position{seq: l.nextSeq}, 0
		for i := len(l.segs) - 1; i >= 0; i-- {
			if s := l.segs[i]; s.count > 0 {
				l.mark = position{s.header.seq, s.last - min(s.last-s.first, liveBefore-1)}
				break
			}
		}
	}
}

// Rest keeps Take from lanes until the next call: bit n stands for lane n. What is out stays out.
func (b *Buffer) Rest(lanes uint8) {
	b.mu.Lock()
	fewer := b.resting&^lanes != 0
	b.resting = lanes
	b.mu.Unlock()
	if fewer {
		b.signal()
	}
}

// share takes from lanes that stand together: what is live, lane by lane and in each the newest first, up to three quarters of the room;
// the rest, lane by lane, the oldest first. What it owes the backlog for a Take of less than four stands in the first lane's owed.
func (b *Buffer) share(lanes []*lane, t *taking) {
	if len(lanes) == 0 || t.full() {
		return
	}
	all, room := *t, t.max-len(t.out)
	owed := &lanes[0].owed
	*owed += room
	due := *owed / backlogShare
	t.max -= due
	if due > 0 {
		t.most -= (t.most - t.bytes) / backlogShare
	}
	began := len(t.out)
	for _, l := range lanes {
		if b.resting>>l.index&1 == 0 {
			b.newest(l, t)
		}
	}
	// Within one Take the live ones go in the order of their numbers: so few are no older for it, and the receiver, who counts numbers,
	// sees no holes that close at once.
	for i, k := began, len(t.out)-1; i < k; i, k = i+1, k-1 {
		t.out[i], t.out[k] = t.out[k], t.out[i]
	}
	t.max, t.most = all.max, all.most
	live := len(t.out)
	for _, l := range lanes {
		if b.resting>>l.index&1 == 0 {
			b.oldest(l, t)
		}
	}
	*owed = min(max(*owed-backlogShare*(len(t.out)-live), 0), backlogShare*room)
}

// newest takes from a lane's newest batch down to its mark.
func (b *Buffer) newest(l *lane, t *taking) {
	for i := len(l.segs) - 1; i >= 0 && !t.full(); i-- {
		s := l.segs[i]
		if s.header.seq < l.mark.seq {
			return
		}
		if r := l.acks[s.header.epoch]; r != nil && len(r.spans) >= maxRuns {
			return
		}
		from := s.first
		if s.header.seq == l.mark.seq {
			from = max(from, l.mark.number)
		}
		b.took(s, b.takeNewest(s, from, t), t)
	}
}

// takeNewest takes from a segment's newest batch down to the number from. What is out, parked or acknowledged is jumped over by runs, so
// that its cost does not grow with what was given out before.
func (b *Buffer) takeNewest(s *seg, from uint64, t *taking) error {
	if s.waiting <= s.taken.size()+s.held.size() {
		return nil
	}
	acks := b.lanes[s.header.lane].acks[s.header.epoch]
	n, some := s.below(s.last, acks)
	if !some || n < from {
		return nil
	}
	err := b.read(s, func(tx *bbolt.Tx) error {
		batches := tx.Bucket([]byte(bucketBatches))
		if batches == nil {
			return fmt.Errorf("%w: no batches bucket", segment.ErrDamaged)
		}
		c := batches.Cursor()
		for ; some && n >= from && !t.full(); n, some = s.below(n, acks) {
			k, _ := c.Seek(numberKey(n))
			if k == nil {
				k, _ = c.Last()
			}
			if len(k) == 8 && beUint64(k) > n { // the number was used up and holds nothing
				k, _ = c.Prev()
			}
			if len(k) != 8 || beUint64(k) < from {
				return nil
			}
			if at := beUint64(k); at != n {
				n = at
				continue
			}
			if _, held := b.parked[s.id(n)]; held {
				s.held.add(n)
				continue
			}
			b.takeOne(tx, s, n, t)
		}
		return nil
	})
	b.stumbled(s, t)
	b.settled(s)
	return err
}

// below is the greatest number up to n that may wait: not acknowledged, not out, not known to be parked, and not one that did not verify.
func (s *seg) below(n uint64, acks *ranges) (uint64, bool) {
	for {
		before := n
		for _, r := range [...]*ranges{acks, &s.taken, &s.held, &s.gone} {
			from, in := r.begin(n)
			if !in {
				continue
			}
			if from == 0 {
				return 0, false
			}
			n = from - 1
		}
		if n < s.first {
			return 0, false
		}
		if n == before {
			return n, true
		}
	}
}
