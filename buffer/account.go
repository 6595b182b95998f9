package buffer

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// Run is a run of batch numbers, both ends included.
type Run struct{ First, Last uint64 }

// Account is what one lane has of one epoch.
type Account struct {
	Epoch   [16]byte
	Lane    uint8
	Next    uint64 // 1 more than the greatest number that a readable file holds, or that is known to be lost; 0 when none is
	Waiting uint64 // batches that are not acknowledged, parked ones included
	Parked  uint64
	Bytes   uint64 // of the frames that wait, about: files count in proportion

	Held []Run // the numbers that wait, ascending
	Lost []Run // numbers of batches that were evicted, did not verify, or waited in files that were set aside, ascending
	// Upper bounds name other numbers besides: some that were used up and hold nothing, and of Lost some that cannot be told from lost ones.
	HeldUpper, LostUpper bool

	Evicted, Damaged uint64    // batches of Lost, by cause; of a file of which no count is known, the most that it may have held
	LostAt           time.Time // when the latest of them were lost; zero when none is
	LossID           LossID    // for Told; zero when nothing is lost
	Told             bool      // the receiver knows it
}

// Accounts gives the account of every epoch of which something waits, was appended since the start, or was lost (until the receiver knows it
// and nothing else of the epoch is left), by lane and epoch. It reads no file. What lies in files that the disk cannot read at present (Stats.Unread) is in none of them.
func (b *Buffer) Accounts() []Account {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Account
	for _, l := range b.lanes {
		byEpoch := map[[16]byte]*Account{}
		of := func(epoch [16]byte) *Account {
			a := byEpoch[epoch]
			if a == nil {
				a = &Account{Epoch: epoch, Lane: l.index}
				byEpoch[epoch] = a
			}
			return a
		}
		for epoch := range l.next {
			of(epoch)
		}
		for epoch, e := range l.losses {
			a := of(epoch)
			a.Lost, a.LostUpper, a.Evicted, a.Damaged, a.Next = runs(e.numbers.spans), e.upper, e.evicted, e.damaged, e.next
			a.LostAt, a.LossID, a.Told = time.Unix(e.at, 0), LossID{epoch, l.index, e.rev}, e.told
		}
		for _, s := range l.segs {
			if s.count == 0 || s.waiting == 0 && byEpoch[s.header.epoch] == nil {
				continue
			}
			of(s.header.epoch).add(s, l.acks[s.header.epoch])
		}
		for id := range b.parked {
			if a := byEpoch[id.Epoch]; a != nil && id.Lane == l.index {
				a.Parked++
			}
		}
		for _, a := range byEpoch {
			a.Held = Join(a.Held)
			out = append(out, *a)
		}
	}
	// Not slices.SortFunc, which is built anew for each type: a hundredth of the agent's program goes to such sorts.
	sort.Slice(out, func(i, k int) bool {
		return cmp.Or(cmp.Compare(out[i].Lane, out[k].Lane), bytes.Compare(out[i].Epoch[:], out[k].Epoch[:])) < 0
	})
	return out
}

func (a *Account) add(s *seg, acks *ranges) {
	a.Next = max(a.Next, s.last+1)
	if s.waiting == 0 {
		return
	}
	a.Waiting += s.waiting
	a.Bytes += s.bytes / s.count * s.waiting
	held := subtract(subtract([]Run{{s.first, s.last}}, acks), &s.gone)
	a.Held = append(a.Held, held...)
	a.HeldUpper = a.HeldUpper || size(held) != s.waiting
}

// Oldest gives the frame of a lane's batch that has waited longest; nil when none waits, or when the disk does not give it.
func (b *Buffer) Oldest(lane uint8) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || int(lane) >= len(b.lanes) {
		return nil
	}
	l := b.lanes[lane]
	for _, s := range l.segs {
		if s.waiting == 0 || s.count == 0 {
			continue
		}
		first := subtract(subtract([]Run{{s.first, s.last}}, l.acks[s.header.epoch]), &s.gone)
		if len(first) == 0 {
			continue
		}
		var frame []byte
		err := b.read(s, func(tx *bbolt.Tx) error {
			batches := tx.Bucket([]byte(bucketBatches))
			if batches == nil {
				return fmt.Errorf("%w: no batches bucket", segment.ErrDamaged)
			}
			// A number that was used up and holds nothing is passed over.
			k, _ := batches.Cursor().Seek(numberKey(first[0].First))
			if len(k) == 8 && beUint64(k) <= s.last {
				frame = slices.Clone(batches.Bucket(k).Get([]byte(keyFrame)))
			}
			return nil
		})
		if err != nil { // Take meets it too, and deals with it
			return nil
		}
		return frame
	}
	return nil
}

// Withdraw takes back a batch that Append has taken and that is not given out at the moment, as if it had arrived: its maker has put a
// newer one in its place. It tells whether it did. A crash within a second may give it out all the same.
func (b *Buffer) Withdraw(id ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || int(id.Lane) >= len(b.lanes) {
		return false
	}
	l := b.lanes[id.Lane]
	s := l.find(id)
	if s == nil || s.taken.has(id.Number) || s.gone.has(id.Number) || !l.acked(id.Epoch).add(id.Number) {
		return false
	}
	delete(b.parked, id)
	s.held.remove(id.Number)
	s.released.remove(id.Number)
	s.waiting--
	b.touch()
	b.settled(s)
	return true
}

// subtract takes a set out of ascending runs.
func subtract(from []Run, set *ranges) (out []Run) {
	if set == nil {
		return from
	}
	for _, r := range from {
		for i := set.after(r.First); i < len(set.spans) && set.spans[i].from <= r.Last; i++ {
			if s := set.spans[i]; s.from > r.First {
				out = append(out, Run{r.First, s.from - 1})
			}
			r.First = set.spans[i].to + 1
		}
		if r.First <= r.Last {
			out = append(out, r)
		}
	}
	return out
}

// Join sorts runs, in place, and joins those that touch.
func Join(in []Run) (out []Run) {
	sort.Slice(in, func(i, k int) bool { return in[i].First < in[k].First })
	for _, r := range in {
		if n := len(out); n > 0 && r.First <= out[n-1].Last+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

func runs(spans []span) (out []Run) {
	for _, s := range spans {
		out = append(out, Run{s.from, s.to})
	}
	return out
}

func size(in []Run) (n uint64) {
	for _, r := range in {
		n += r.Last - r.First + 1
	}
	return n
}
