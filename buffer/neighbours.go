package buffer

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"sort"

	"go.etcd.io/bbolt"
)

// badFile is a damaged file of which nothing is known but its name, not set aside yet.
type badFile struct {
	seq   uint64
	path  string
	disk  int64
	cause error
}

// takes is what a segment takes with it when it goes: what waits in it. Its summary names first, last and how many; exact has the file
// read where the numbers between have holes. Under mu.
func (b *Buffer) takes(s *seg, exact bool) deprived {
	d := deprived{epoch: s.header.epoch, lane: s.header.lane}
	if s.count == 0 || s.waiting == 0 {
		return d
	}
	acks := b.lanes[s.header.lane].acks[s.header.epoch]
	d.count, d.next = s.waiting, s.last+1
	d.runs = subtract(subtract([]Run{{s.first, s.last}}, acks), &s.gone)
	if size(d.runs) == d.count {
		return d
	}
	var found []Run
	if exact && b.read(s, func(tx *bbolt.Tx) error {
		return eachNumber(tx, s.first, func(n uint64) error {
			if n <= s.last && !acks.has(n) && !s.gone.has(n) {
				found = append(found, Run{n, n})
			}
			return nil
		})
	}) == nil && uint64(len(found)) == d.count {
		d.runs = Join(found)
		return d
	}
	d.upper = true
	return d
}

// setBadAside counts what is lost with the lanes' bad files, stores that, and sets them aside. Under mu.
//
// Crash argument: until the loss is stored the files keep their names, and the next start counts again.
func (b *Buffer) setBadAside() {
	any := false
	for _, l := range b.lanes {
		sort.Slice(l.bad, func(i, k int) bool { return l.bad[i].seq < l.bad[k].seq })
		for _, f := range l.bad {
			any = true
			d, perhaps := b.unreadable(l, f.seq, f.path)
			b.lose(d, false)
			b.lose(perhaps, false)
			b.c.Log.Error("a damaged segment is set aside; its batches are kept in the file but not sent", "path", f.path, "lane", l.name,
				"lost", d.count+perhaps.count, "at_most", d.upper || perhaps.upper, "error", f.cause)
		}
	}
	if !any {
		return
	}
	b.storeUnderMu("damaged segments' losses are not durable yet")
	for _, l := range b.lanes {
		for _, f := range l.bad {
			b.moveAside(f.path, asideFile{lane: l, seq: f.seq, disk: f.disk})
		}
		l.bad = nil
	}
}

// unreadable is what is lost with a file that cannot be read, counted from its neighbours: its successor's header says how many batches
// came before it and which number was the last; the file's own header, of which a copy is nearly always found, or its predecessor, says where
// it begins. What was acknowledged, is held elsewhere, or was lost before is not in it. Nothing follows a lane's last segment: of it no
// more is known than that so many batches find room in one; and where neither it nor a successor tells its epoch, that may be its
// predecessor's (d) or the latest (perhaps). Under mu.
func (b *Buffer) unreadable(l *lane, seq uint64, path string) (d, perhaps deprived) {
	var prev, next *seg
	for _, s := range l.segs { // ascending
		if s.header.seq < seq {
			prev = s
		} else if s.header.seq > seq && next == nil {
			next = s
		}
	}
	own, known := findHeader(path, l.index, seq)
	follows := next != nil && next.header.seq == seq+1 && next.header.formerNext > 0 // 0: its writer did not know either
	from, until := uint64(0), uint64(0)                                              // until: 1 more than the greatest
	switch {
	case known:
		d.epoch, from = own.epoch, own.first
	case follows:
		d.epoch = next.header.formerEpoch
	default:
		if next == nil {
			perhaps = b.ofLastStart(l, prev)
		}
		if prev == nil {
			return deprived{lane: l.index}, perhaps // with a successor: whoever gets the numbers of the others sees a gap
		}
		d.epoch = prev.header.epoch
	}
	if !known && prev != nil && prev.header.epoch == d.epoch && prev.count > 0 {
		from = prev.last + 1
	}
	counted := uint64(0)
	if follows && next.header.formerEpoch == d.epoch {
		until = next.header.formerNext
		before, sure := own.batches, known || seq == 1 // nothing came before a lane's first
		if !sure && prev != nil && prev.header.seq+1 == seq {
			before, sure = prev.header.batches+prev.count, true
		}
		if sure {
			counted = next.header.batches - min(before, next.header.batches) + uint64(next.header.doubt)
		}
		d.upper = next.header.doubt > 0
	} else {
		for _, s := range l.segs {
			if s.header.seq > seq && s.header.epoch == d.epoch {
				until = s.header.first
				break
			}
		}
	}
	d.lane, d.next = l.index, max(from, until)
	if until == 0 {
		counted = uint64(b.c.SegmentSize / minBatch)
		until = from + counted
		d.upper = true
	}
	return b.lessKnown(l, d, from, until, counted), perhaps
}

// ofLastStart is what may be lost of the latest epoch with a lane's last file: that which wrote last to a lane that is never evicted, as an
// agent's first report does at each start. A file that is being written is of an epoch whose numbers are still to come. Under mu.
func (b *Buffer) ofLastStart(l *lane, prev *seg) (d deprived) {
	for _, o := range b.lanes {
		if !o.kept || o == l || len(o.segs) == 0 {
			continue
		}
		s := o.segs[len(o.segs)-1]
		if s.writing || prev != nil && prev.header.epoch == s.header.epoch {
			continue
		}
		most := uint64(b.c.SegmentSize / minBatch)
		d = b.lessKnown(l, deprived{epoch: s.header.epoch, lane: l.index, upper: true}, 0, most, most)
	}
	return d
}

// lessKnown takes out of the numbers from up to until what is known of them. counted is how many batches are among them, 0 when unknown.
func (b *Buffer) lessKnown(l *lane, d deprived, from, until, counted uint64) deprived {
	if from >= until {
		return d
	}
	all := []Run{{from, until - 1}}
	left := subtract(all, l.acks[d.epoch])
	elsewhere := size(all) - size(left) // of those counted
	if e := l.losses[d.epoch]; e != nil {
		before := size(left)
		left = subtract(left, &e.numbers)
		if !e.upper { // else some of these numbers never held a batch
			elsewhere += before - size(left)
		}
	}
	for _, s := range l.segs {
		if s.header.epoch == d.epoch && s.count > 0 {
			left = subtract(left, &ranges{spans: []span{{s.first, s.last}}})
		}
	}
	d.runs, d.count = left, size(left)
	if counted > 0 {
		d.count = min(d.count, counted-min(counted, elsewhere))
	}
	d.upper = d.upper || counted == 0 || d.count != size(left)
	return d
}

// findHeader looks for a whole copy of a segment's header anywhere in its file: bbolt writes one with each of its root pages. A file may be
// as long as a segment; little of it is in memory at a time.
func findHeader(path string, lane uint8, seq uint64) (h header, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return h, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return h, false
	}
	mark, want := []byte{formatVersion, lane}, binary.BigEndian.AppendUint64(nil, seq)
	buf := make([]byte, 64<<10)
	for at := int64(0); at < info.Size(); at += int64(len(buf) - headerSize + 1) {
		n, _ := f.ReadAt(buf, at) // a piece that cannot be read is passed over
		for b := buf[:n]; ; b = b[1:] {
			i := bytes.Index(b, mark)
			if i < 0 || len(b)-i < headerSize {
				break
			}
			b = b[i:]
			if !slices.Equal(b[18:26], want) {
				continue
			}
			if h, err := parseHeader(b[:headerSize]); err == nil {
				return h, true
			}
		}
	}
	return h, false
}
