package buffer

import (
	"cmp"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// Held are numbers of one epoch and lane, as ascending runs.
type Held struct {
	Epoch [16]byte
	Lane  uint8
	Runs  []Run
}

type stream struct {
	epoch [16]byte
	lane  uint8
}

// Delivered gives delivered batches out once more, for a receiver that lost them. It takes nothing from Take: what it gives out stays delivered,
// is deleted when its space is needed, and Ack, Release and Park of it change nothing. It keeps its place in memory alone. Its methods may be called by one
// goroutine at a time, beside everything else.
type Delivered struct {
	b    *Buffer
	want map[stream]*ranges // delivered when it began, and not held by the receiver
	gone []Held
	lane int // index into Buffer.order
	at   map[int]position
}

// position is where a lane's walk goes on.
type position struct{ seq, number uint64 }

// Delivered begins a walk over what was acknowledged up to now, except what the receiver has.
func (b *Buffer) Delivered(held []Held) *Delivered {
	has := map[stream]*ranges{}
	for _, h := range held {
		r := &ranges{}
		for _, run := range h.Runs {
			r.spans = append(r.spans, span{run.First, run.Last})
		}
		has[stream{h.Epoch, h.Lane}] = r
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d := &Delivered{b: b, want: map[stream]*ranges{}, at: map[int]position{}}
	for _, l := range b.lanes {
		for epoch, acks := range l.acks {
			missing := subtract(runs(acks.spans), has[stream{epoch, l.index}])
			want := &ranges{}
			for _, r := range missing {
				want.spans = append(want.spans, span{r.First, r.Last})
			}
			present := &ranges{}
			for _, s := range slices.SortedFunc(slices.Values(l.segs), func(x, y *seg) int { return cmp.Compare(x.first, y.first) }) {
				if s.header.epoch == epoch && s.count > 0 {
					present.spans = append(present.spans, span{s.first, s.last})
				}
			}
			if lost := subtract(missing, present); len(lost) > 0 {
				d.gone = append(d.gone, Held{Epoch: epoch, Lane: l.index, Runs: lost})
			}
			if len(want.spans) > 0 {
				d.want[stream{epoch, l.index}] = want
			}
		}
	}
	return d
}

// Gone are the numbers that the receiver lacks and no file holds any more, of epochs of which there is still a file.
func (d *Delivered) Gone() []Held { return d.gone }

// Next gives out up to max batches, lane by lane in Config.Order, in each the oldest first, at most 1 MB beyond the first. None means that the walk is over. What cannot be
// read is left out.
func (d *Delivered) Next(max int) ([]Batch, error) {
	for d.lane < len(d.b.order) {
		out, err := d.step(max)
		if len(out) > 0 || err != nil {
			return out, err
		}
	}
	return nil, nil
}

// step looks at one segment, so that the buffer's lock is never held for a walk over many.
func (d *Delivered) step(max int) (out []Batch, err error) {
	b := d.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("delivered: %w", ErrClosed)
	}
	l := b.order[d.lane]
	at := d.at[d.lane]
	for _, s := range l.segs {
		if s.header.seq < at.seq {
			continue
		}
		if s.header.seq > at.seq {
			at = position{seq: s.header.seq}
		}
		want := d.want[stream{s.header.epoch, l.index}]
		if s.count == 0 || want == nil || !want.touches(s.first, s.last) {
			continue
		}
		next, err := d.from(s, want, at.number, max, &out)
		if err != nil {
			if !b.spares(s, err) {
				b.aside(s, err)
			}
			next = s.last + 1
		}
		at.number = next
		if next > s.last {
			at = position{seq: s.header.seq + 1}
		}
		d.at[d.lane] = at
		return out, nil
	}
	d.lane++
	return nil, nil
}

// from takes what is wanted of one segment from number on and says where to go on.
func (d *Delivered) from(s *seg, want *ranges, number uint64, max int, out *[]Batch) (next uint64, err error) {
	acks := d.b.lanes[s.header.lane].acks[s.header.epoch]
	bytes := 0
	next = number
	err = d.b.read(s, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(bucketBatches))
		if bucket == nil {
			return fmt.Errorf("%w: no batches bucket", segment.ErrDamaged)
		}
		c := bucket.Cursor()
		for k, _ := c.Seek(numberKey(number)); len(k) == 8; k, _ = c.Next() {
			n := beUint64(k)
			if n > s.last {
				break
			}
			if len(*out) >= max || bytes >= takeBytes {
				next = n
				return nil
			}
			if !want.has(n) || !acks.has(n) || s.gone.has(n) {
				continue
			}
			batch, err := readBatch(tx, s.header, n)
			if err == nil {
				err = d.b.c.Verify(batch.Frame)
			}
			if err != nil {
				d.b.c.Log.Warn("a delivered batch does not verify and is not sent again", "path", s.path, "batch", s.id(n).String(), "error", err)
				continue
			}
			*out = append(*out, batch)
			bytes += len(batch.Frame)
		}
		next = s.last + 1
		return nil
	})
	return next, err
}
