package buffer

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"

	"wardlink/buffer/segment"
)

// Which segments may hold a message is asked for every message that comes, and memory must not grow with what waits. So the filters of
// finished segments are on disk, and a question goes through three of them, each for those that the one before let through:
//
//  1. coarse filters of 32 segments beside each other, in a file without a name: a few reads of 32 bytes ask them all;
//  2. the segment's own filter, at the end of its summary: single bytes of it;
//  3. the segment.
//
// Only the third says that a message is known, so no damaged or torn filter can: a bit that is set wrongly costs a read. A bit that is
// wrongly clear (a disk that changed it after the start had checked the summary, and says nothing) makes a resend count as new. It is kept
// and sent once more: as the same message, by its key, if its source's ids are unique (as after a crash between two lanes), and else as a
// copy of its own. Nothing is lost by it. What cannot be read lets through.
const (
	sieveColumns = 32        // segments in a group
	sieveHeld    = 256 << 10 // bytes of memory for the coarse filters of the group that is not on disk yet
	sieveName    = "filters" + segment.TempSuffix
)

// sieve holds the coarse filters. Under Buffer.mu. Where it cannot write (the disk is full, the cap is reached) segments are in no group,
// and the second filter is the first: slower (an open of each file), and never wrong.
type sieve struct {
	file     *os.File // has no name: it ends with the process. nil: not made yet, or not to be had
	lacking  bool     // it could not be made
	end      int64    // where the next group begins
	waiting  []*seg   // of the group that is not on disk yet
	held     []byte   // their coarse filters; its capacity never changes, since they point into it
	question uint64
}

// group is the coarse filters of some segments, byte by byte: all their first bytes, all their second ones. A smaller one is repeated.
type group struct {
	at       int64
	rows     int
	columns  int
	live     uint32 // bit n: the segment of column n is still there
	question uint64 // the last that was asked
	answer   uint32
}

// sift takes a finished segment's filter out of memory. One whose summary could not be written keeps it there.
func (b *Buffer) sift(s *seg) {
	if s.fine == 0 || s.filter == nil {
		return
	}
	b.unsift(s)
	v, fine := &b.sieve, filter(s.filter)
	s.filter = nil
	size := fine.size(s.seen, coarseBits)
	if len(v.waiting) == sieveColumns || len(v.held)+size > sieveHeld {
		b.pour()
	}
	if v.held == nil {
		v.held = make([]byte, 0, sieveHeld)
	}
	from := len(v.held)
	v.held = v.held[:from+size]
	s.coarse = fine.into(v.held[from:])
	v.waiting = append(v.waiting, s)
}

// unsift forgets a segment.
func (b *Buffer) unsift(s *seg) {
	if g := s.group; g != nil && b.sieve.file != nil {
		// A file system without holes keeps the room, and it stays counted.
		const hole = 1 | 2 // FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
		if g.live &^= 1 << s.column; g.live == 0 && syscall.Fallocate(int(b.sieve.file.Fd()), hole, g.at, g.size()) == nil {
			b.disk -= g.size()
		}
	}
	s.coarse, s.group = nil, nil
}

// size is what a group occupies on disk.
func (g *group) size() int64 {
	return (int64(g.rows)*int64(g.columns) + segment.PageSize - 1) / segment.PageSize * segment.PageSize
}

// pour writes the group that waits to disk. Its segments are asked one by one when that fails.
func (b *Buffer) pour() {
	v := &b.sieve
	g := &group{at: v.end}
	var segs []*seg
	for _, s := range v.waiting {
		if s.coarse != nil { // else it is gone
			g.rows = max(g.rows, len(s.coarse))
			segs = append(segs, s)
		}
	}
	g.columns = len(segs)
	if g.columns > 0 && b.disk+g.size() <= b.c.Cap && v.write(b.c.Dir, g, segs) {
		g.live = uint32(1<<g.columns - 1)
		b.disk += g.size()
		v.end += g.size()
	} else {
		g = nil
	}
	for i, s := range segs {
		s.coarse, s.group, s.column = nil, g, i
	}
	clear(v.waiting)
	v.waiting, v.held = v.waiting[:0], v.held[:0]
}

// write is false when the disk does not take it.
func (v *sieve) write(dir string, g *group, segs []*seg) bool {
	if v.file == nil && !v.lacking {
		// The next start deletes the name, should the process end before it does so itself.
		path := filepath.Join(dir, sieveName)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err == nil {
			err = os.Remove(path)
		}
		v.file, v.lacking = f, err != nil
	}
	if v.lacking {
		return false
	}
	block := make([]byte, 0, 16<<10)
	at := g.at
	for row := range g.rows {
		for _, s := range segs {
			block = append(block, s.coarse[row&(len(s.coarse)-1)])
		}
		if len(block)+g.columns > cap(block) || row == g.rows-1 {
			if _, err := v.file.WriteAt(block, at); err != nil {
				return false
			}
			at += int64(len(block))
			block = block[:0]
		}
	}
	return true
}

// sifted are the segments that may hold a digest.
func (b *Buffer) sifted(d *[32]byte) (out []*seg) {
	if b.closed {
		return nil
	}
	b.sieve.question++
	for _, l := range b.lanes {
		for _, s := range l.segs {
			if b.may(s, d) {
				out = append(out, s)
			}
		}
	}
	return out
}

// may is false when the digest was never counted in the segment.
func (b *Buffer) may(s *seg, d *[32]byte) bool {
	switch {
	case s.filter != nil:
		return filter(s.filter).may(d)
	case s.coarse != nil:
		if !s.coarse.may(d) {
			return false
		}
	case s.group != nil:
		if b.sieve.ask(s.group, d)&(1<<s.column) == 0 {
			return false
		}
	}
	return s.fineMay(d)
}

// ask says which of a group's segments may hold the digest.
func (v *sieve) ask(g *group, d *[32]byte) uint32 {
	if g.question == v.question {
		return g.answer
	}
	var row [sieveColumns]byte
	g.question, g.answer = v.question, g.live
	for i := 0; i < filterHashes && g.answer != 0; i++ {
		n := binary.BigEndian.Uint32(d[4*i:]) & uint32(8*g.rows-1)
		if _, err := v.file.ReadAt(row[:g.columns], g.at+int64(n/8)*int64(g.columns)); err != nil {
			g.answer = g.live
			break
		}
		for c, bits := range row[:g.columns] {
			if bits>>(n%8)&1 == 0 {
				g.answer &^= 1 << c
			}
		}
	}
	return g.answer
}

// fineMay asks the filter in the segment's file.
func (s *seg) fineMay(d *[32]byte) bool {
	if s.fine == 0 || s.resting() {
		return true
	}
	end, err := segment.OpenEnd(s.path)
	if err != nil {
		return true
	}
	defer end.Close()
	for i := range filterHashes {
		n := binary.BigEndian.Uint32(d[4*i:]) & uint32(8*s.fine-1)
		bits, err := end.Byte(int64(s.fine) - int64(n/8))
		if err != nil {
			return true
		}
		if bits>>(n%8)&1 == 0 {
			return false
		}
	}
	return true
}

// close lets go of the file.
func (v *sieve) close() {
	if v.file != nil {
		_ = v.file.Close() // nothing in it outlives the process
	}
	v.file, v.lacking = nil, true
}
