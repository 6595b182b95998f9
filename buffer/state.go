package buffer

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"sort"

	"wardlink/internal/durable"
)

// maxState is the limit of the state in bytes. Acknowledged runs and parked batches that would exceed it are left out of the file, which
// costs batches sent twice after a restart, nothing else. Losses have a part of their own (maxLosses).
const maxState = 256 << 10

const (
	maxReason    = 200
	spanSize     = 16
	parkedSize   = 16 + 1 + 8 + 8 + 1
	maxParked    = maxState / 2 / parkedSize // 3855
	stateVersion = 2
)

// parked is a batch that the receiver refused: kept, not given out.
type parked struct {
	at     int64 // Unix seconds
	reason string
}

// delivered is when the last batch of a segment was acknowledged.
type deliveredAt struct {
	lane uint8
	seq  uint64
	at   int64 // Unix seconds
}

type ackSet struct {
	epoch [16]byte
	lane  uint8
	spans []span
}

type laneState struct {
	nextSeq, batches, bytes uint64
	evicted                 episode
}

// lossOf is a loss with the numbers' epoch and lane.
type lossOf struct {
	epoch [16]byte
	lane  uint8
	loss
}

// state is the content of the A/B file.
type state struct {
	lanes     []laneState
	losses    []lossOf
	acks      []ackSet
	parked    map[ID]parked
	delivered []deliveredAt
}

// encode writes what fits into maxState, most worth first: lane counters, losses, parked batches, acknowledged runs, delivery times.
func (s state) encode() []byte {
	b := []byte{stateVersion, byte(len(s.lanes))}
	for _, l := range s.lanes {
		b = binary.BigEndian.AppendUint64(b, l.nextSeq)
		b = binary.BigEndian.AppendUint64(b, l.batches)
		b = binary.BigEndian.AppendUint64(b, l.bytes)
		b = binary.BigEndian.AppendUint64(b, l.evicted.batches)
		b = binary.BigEndian.AppendUint64(b, uint64(l.evicted.since))
		b = binary.BigEndian.AppendUint64(b, uint64(l.evicted.at))
	}
	b = appendLosses(b, s.losses)
	b = appendParked(b, s.parked)
	room := maxState - len(b) - 8
	countAt, sets := len(b), 0
	b = append(b, 0, 0, 0, 0)
	for _, a := range s.acks {
		n := min(len(a.spans), max(0, room-21)/spanSize)
		if n == 0 {
			continue
		}
		room -= 21 + n*spanSize
		sets++
		b = appendSpans(append(append(b, a.epoch[:]...), a.lane), a.spans[:n])
	}
	binary.BigEndian.PutUint32(b[countAt:], uint32(sets))
	n := min(len(s.delivered), max(0, room)/17)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	for _, d := range s.delivered[len(s.delivered)-n:] {
		b = append(b, d.lane)
		b = binary.BigEndian.AppendUint64(b, d.seq)
		b = binary.BigEndian.AppendUint64(b, uint64(d.at))
	}
	return b
}

func appendParked(b []byte, all map[ID]parked) []byte {
	ids := make([]ID, 0, len(all))
	for id := range all {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, k int) bool {
		x, y := &ids[i], &ids[k]
		return cmp.Or(cmp.Compare(x.Lane, y.Lane), bytes.Compare(x.Epoch[:], y.Epoch[:]), cmp.Compare(x.Number, y.Number)) < 0
	})
	ids = ids[:min(len(ids), maxParked)]
	// Ids come before reasons: without its reason a batch is still not sent again.
	room := maxState/2 - len(ids)*parkedSize
	b = binary.BigEndian.AppendUint32(b, uint32(len(ids)))
	for _, id := range ids {
		p := all[id]
		if room -= len(p.reason); room < 0 {
			p.reason, room = "", 0
		}
		b = append(append(b, id.Epoch[:]...), id.Lane)
		b = binary.BigEndian.AppendUint64(b, id.Number)
		b = binary.BigEndian.AppendUint64(b, uint64(p.at))
		b = append(append(b, byte(len(p.reason))), p.reason...)
	}
	return b
}

// reader takes fixed-size values off a byte slice; once it ran short, all it gives is zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

// count reads a count of elements of at least size bytes each; more than can follow is bad, before anything is allocated.
func (r *reader) count(size int) int {
	n := int64(binary.BigEndian.Uint32(r.take(4)))
	if n > int64(len(r.b)/size) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

func parseState(b []byte) (s state, err error) {
	r := &reader{b: b}
	version := r.u8()
	if version > stateVersion { // the pair's checksum held
		return s, fmt.Errorf("state of version %d: %w", version, durable.ErrNewer)
	} else if version == 0 {
		return s, fmt.Errorf("state: %w", errFormat)
	}
	for n := int(r.u8()); n > 0 && !r.bad; n-- {
		l := laneState{nextSeq: r.u64(), batches: r.u64(), bytes: r.u64()}
		if version > 1 { // version 1 knew no losses
			l.evicted = episode{r.u64(), int64(r.u64()), int64(r.u64())}
		}
		s.lanes = append(s.lanes, l)
	}
	if version > 1 {
		if s.losses, err = parseLosses(r); err != nil {
			return s, err
		}
	}
	s.parked = map[ID]parked{}
	for n := r.count(34); n > 0 && !r.bad; n-- {
		id := ID{Epoch: [16]byte(r.take(16)), Lane: r.u8(), Number: r.u64()}
		p := parked{at: int64(r.u64())}
		p.reason = string(r.take(int(r.u8())))
		s.parked[id] = p
	}
	for n := r.count(21); n > 0 && !r.bad; n-- {
		a := ackSet{epoch: [16]byte(r.take(16)), lane: r.u8()}
		if a.spans, err = parseSpans(r); err != nil {
			return s, err
		}
		s.acks = append(s.acks, a)
	}
	for n := r.count(17); n > 0 && !r.bad; n-- {
		s.delivered = append(s.delivered, deliveredAt{r.u8(), r.u64(), int64(r.u64())})
	}
	if r.bad || len(r.b) > 0 {
		return s, fmt.Errorf("state: %w", errFormat)
	}
	return s, nil
}

// parseSpans reads a count and so many runs, which must ascend with a gap between any two.
func parseSpans(r *reader) (spans []span, err error) {
	last, first := uint64(0), true
	for n := r.count(spanSize); n > 0 && !r.bad; n-- {
		v := span{r.u64(), r.u64()}
		if v.from > v.to || !first && (v.from <= last || v.from-1 == last) {
			return nil, fmt.Errorf("state: runs out of order: %w", errFormat)
		}
		last, first = v.to, false
		spans = append(spans, v)
	}
	return spans, nil
}
