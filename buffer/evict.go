package buffer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"time"

	"wardlink/internal/durable"
)

// Eviction. When the cap, or the disk, is reached and nothing more is delivered, whole files go for the room of a new one, the oldest of the
// least urgent lane first, up to the lane that asks: an alarm's room may cost waveforms, a waveform's never an alarm. What a file holds goes
// with it, given out, parked or not; one with nothing on its way goes before one that has.
//
// Crash argument, in the order of the steps:
//
//  1. The loss (epoch, lane, numbers, how many, why) is stored in the state, and flushed. A crash from here on finds the file in its place,
//     takes its numbers out of the loss again, and gives them out.
//  2. Config.Report appends what tells the receiver, from a reserve that is there for it (reserve.go), and has it flushed. Where that fails
//     the loss is in the state all the same, and in Accounts until somebody has told it.
//  3. The file is deleted, the directory flushed, its bytes given back. Before that a power cut may bring the file back (as after 1); after
//     it, the loss stands.
//
// A lane that is never evicted, whose segment is begun when even its reserve is gone, does without step 2: what it is about to append
// is the report.

// The disk's own fullness. Deleting frees room that any other program may take before we do. So room is made for one segment, and if that
// segment cannot be made then, nothing more is evicted for a while, and the while doubles: who fills the disk costs us a handful of segments
// a day, not everything.
const (
	eatenFirst = 10 * time.Minute
	eatenMost  = 24 * time.Hour
)

// errNothing: nothing may go for this lane.
var errNothing = errors.New("nothing may be deleted for it")

// makeRoom counts a segment of l in, and makes the room for it where it must. Under the lane's write lock.
func (b *Buffer) makeRoom(l *lane) error {
	for {
		for _, stock := range []bool{true, false} { // with room for the reserve where it was used, else without
			if b.reserve(l, stock) {
				return nil
			}
			if l.kept && b.useReserve() {
				break
			}
			err := b.makeWay(l, func() int64 { return b.lacking(l, stock) })
			if err == nil {
				break
			}
			if !errors.Is(err, errNothing) {
				return err
			}
			if !stock {
				b.mu.Lock()
				defer b.mu.Unlock()
				return fmt.Errorf("%w: %d of %d bytes are in use, and nothing more is delivered", ErrFull, b.disk, b.c.Cap)
			}
		}
	}
}

// lacking is how many bytes must go before a segment of l finds room. Lanes that have no segment to write to, or to evict, keep room
// for one: else those that are busy would leave them none that they may take. Under mu.
func (b *Buffer) lacking(l *lane, stock bool) int64 {
	need := b.disk + b.c.SegmentSize - b.c.Cap
	if l.kept {
		return need
	}
	for _, o := range b.evict {
		if o != l && !o.begun {
			need += max(0, b.c.SegmentSize-o.owned())
		}
	}
	if stock && b.keeps() && !b.stocked {
		need += b.c.SegmentSize
	}
	return need
}

// owned is the bytes of the lane's files. Under mu.
func (l *lane) owned() (n int64) {
	for _, s := range l.segs {
		n += s.disk // of the one that is written: all of its size
	}
	return n
}

// reserve counts a segment of l in if there is room, deleting delivered segments for it, the longest delivered first.
//
// The cap holds by construction: a segment's whole size is counted before its file exists, a file never grows past it, and what it
// gives back when it is finished is counted only after the file is shorter.
func (b *Buffer) reserve(l *lane, stock bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.lacking(l, stock) > 0 {
		if !b.dropOldest() {
			return false
		}
	}
	b.disk += b.c.SegmentSize
	l.begun = true
	return true
}

// makeRoomOnDisk is called when a segment of l could not be made for want of room on the disk.
func (b *Buffer) makeRoomOnDisk(l *lane, cause error) error {
	full := fmt.Errorf("%w: %w", ErrFull, cause)
	b.mu.Lock()
	dropped := b.dropOldest()
	b.mu.Unlock()
	if dropped || l.kept && b.useReserve() {
		return nil
	}
	b.mu.Lock()
	now := time.Now()
	if b.eaten {
		b.eaten = false
		b.rest = min(max(2*b.rest, eatenFirst), eatenMost)
		b.noEvict = now.Add(b.rest)
		b.c.Log.Error("the room that was made on the disk is taken by others; nothing more is deleted for it for a while", "dir", b.c.Dir, "pause", b.rest)
	}
	resting := now.Before(b.noEvict)
	b.mu.Unlock()
	if resting {
		return full
	}
	// A segment and a bit, whatever is free at present: the report may take that, a file system wants something for itself, and a quota does
	// not show.
	err := b.makeWay(l, func() int64 { return b.c.SegmentSize + b.c.SegmentSize/8 })
	if err != nil {
		return errors.Join(full, err)
	}
	b.mu.Lock()
	b.eaten = true
	b.mu.Unlock()
	return nil
}

// roomThere notes that a segment could be made. Under mu.
func (b *Buffer) roomThere() { b.eaten, b.rest, b.noEvict = false, 0, time.Time{} }

// victim is a file that goes.
type victim struct {
	lane     *lane // nil: of none
	seg      *seg  // nil: one that cannot be read, or was set aside
	seq      uint64
	path     string
	disk     int64
	onItsWay bool
	aside    bool
	parked   map[ID]parked
	lost     deprived
}

// makeWay evicts until lacking says that nothing lacks, all at once: one store and one report for all files that go. It evicts nothing
// where all that may go would not suffice (errNothing).
func (b *Buffer) makeWay(l *lane, lacking func() int64) error {
	if !l.kept {
		b.evicting.Lock()
		defer b.evicting.Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	need := lacking()
	if need <= 0 { // another lane's eviction has made room meanwhile
		return nil
	}
	going := b.victims(l, need)
	if len(going) == 0 {
		return errNothing
	}
	told := true
	for i := range going {
		b.expel(&going[i])
		defer b.left(&going[i])
		told = told && going[i].lost.count == 0
	}
	entries := 0
	for _, o := range b.lanes {
		entries += len(o.losses)
	}
	if entries > mostLosses || !b.storeUnderMu("nothing is deleted, since its loss cannot be made durable") {
		for i := range going {
			b.readmit(&going[i])
		}
		return fmt.Errorf("%w: %d of %d bytes are in use, and what would be lost cannot be noted", ErrFull, b.disk, b.c.Cap)
	}
	if !told && !l.kept && b.c.Report != nil {
		b.mu.Unlock()
		err := b.c.Report()
		b.mu.Lock()
		if err != nil {
			b.c.Log.Warn("what is deleted undelivered is noted durably, and not told yet", "error", err)
		}
	}
	return b.remove(going)
}

// left notes that what expel did is done, or undone. Under mu.
func (b *Buffer) left(v *victim) {
	if v.seg == nil {
		return
	}
	if i := slices.Index(v.lane.leaving, v.seg.header.epoch); i >= 0 {
		v.lane.leaving = slices.Delete(v.lane.leaving, i, i+1)
	}
}

// remove deletes what was expelled.
func (b *Buffer) remove(going []victim) error {
	var failed error
	for i := range going {
		v := &going[i]
		if err := disk.remove(v.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, err)
			b.readmit(v)
			continue
		}
		b.disk -= v.disk
		if v.lost.count > 0 {
			b.c.Log.Warn("the buffer is full: batches were deleted undelivered", "lane", v.lane.name, "epoch", fmt.Sprintf("%x", v.lost.epoch),
				"first", v.lost.runs[0].First, "last", v.lost.runs[len(v.lost.runs)-1].Last, "batches", v.lost.count, "at_most", v.lost.upper)
		}
	}
	if err := durable.SyncDir(b.c.Dir); err != nil { // they are gone or come back; both are accounted for
		b.c.Log.Warn("deleted segments may be back after a crash", "error", err)
	}
	if failed != nil {
		return fmt.Errorf("%w: %w", ErrFull, failed)
	}
	return nil
}

// victims are the files to go for l, none when all that may go have less than need bytes. Files of no lane come first: a former state, set
// aside. Under mu.
func (b *Buffer) victims(l *lane, need int64) []victim {
	var out []victim
	for _, f := range b.damaged {
		if f.lane == nil && len(b.evict) > 0 {
			out = append(out, victim{path: f.path, disk: f.disk, aside: true})
		}
	}
	for _, o := range b.evict {
		from := len(out)
		for _, f := range b.damaged {
			if f.lane == o {
				out = append(out, victim{lane: o, seq: f.seq, path: f.path, disk: f.disk, aside: true})
			}
		}
		for _, u := range b.unread {
			if u.lane == o.index {
				out = append(out, victim{lane: o, seq: u.seq, path: u.path, disk: u.disk})
			}
		}
		for _, s := range o.segs {
			if !s.writing && !s.soft { // a soft one may hold a batch of which nothing is known yet
				out = append(out, victim{lane: o, seg: s, seq: s.header.seq, path: s.path, disk: s.disk, onItsWay: len(s.taken.spans) > 0})
			}
		}
		mine := out[from:]
		sort.Slice(mine, func(i, k int) bool {
			if mine[i].onItsWay != mine[k].onItsWay {
				return mine[k].onItsWay
			}
			return mine[i].seq < mine[k].seq
		})
		if o == l {
			break
		}
	}
	for i := range out {
		if need -= out[i].disk; need <= 0 {
			return out[:i+1]
		}
	}
	return nil
}

// expel takes a file out of memory and notes what is lost with it. Under mu.
func (b *Buffer) expel(v *victim) {
	switch {
	case v.seg != nil:
		s := v.seg
		v.lost = b.takes(s, true)
		b.shut(s)
		v.lane.leaving = append(v.lane.leaving, s.header.epoch)
		v.lane.segs = slices.DeleteFunc(v.lane.segs, func(o *seg) bool { return o == s })
		b.unsift(s)
		v.parked = map[ID]parked{}
		for id, p := range b.parked {
			if id.Lane == s.header.lane && id.Epoch == s.header.epoch && s.holds(id.Number) {
				v.parked[id] = p
				delete(b.parked, id)
			}
		}
	case v.aside: // its losses are stored since it was
		b.damaged = slices.DeleteFunc(b.damaged, func(f asideFile) bool { return f.path == v.path })
	default:
		v.lost, _ = b.unreadable(v.lane, v.seq, v.path) // an epoch that only may be meant is that of a file being written
		b.unread = slices.DeleteFunc(b.unread, func(u unread) bool { return u.path == v.path })
	}
	b.lose(v.lost, true)
}

// readmit undoes expel. Under mu.
func (b *Buffer) readmit(v *victim) {
	for _, r := range v.lost.runs {
		b.found(v.lost.lane, v.lost.epoch, r.First, r.Last)
	}
	switch {
	case v.seg != nil:
		v.lane.segs = append(v.lane.segs, v.seg)
		v.lane.sort()
		for id, p := range v.parked {
			b.parked[id] = p
		}
	case v.aside:
		b.damaged = append(b.damaged, asideFile{path: v.path, lane: v.lane, seq: v.seq, disk: v.disk})
	default:
		b.unread = append(b.unread, unread{lane: v.lane.index, seq: v.seq, path: v.path, disk: v.disk})
	}
}
