package buffer

import (
	"errors"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"wardlink/buffer/segment"
)

// A disk that answers with EIO today may answer tomorrow, and what it cannot read now is most likely whole: the file is left where it
// is, under its name, and tried again after a while. The waits grow, because each try may take the disk half a minute, under mu.
const (
	illFirst = time.Minute
	illMost  = time.Hour
)

// errIll: the disk could not read the file a moment ago, so it was not asked again.
var errIll = errors.New("the disk could not read the file; it is tried again later")

// ill says of an error that the disk, or the kernel on its behalf, did not answer, which tells nothing about what it holds. Whatever the
// number (EIO, EUCLEAN, ENOLCK, ENOSPC of a file system that copies): content is judged by this program alone, and its verdict is no errno.
// What is not among them says that the name leads to no file, or that a file's length makes no mapping.
func ill(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) || transient(err) {
		return false
	}
	switch errno {
	case syscall.ENOENT, syscall.EISDIR, syscall.ENOTDIR, syscall.ELOOP, syscall.EINVAL:
		return false
	}
	return true
}

// judge gives a fault on mapped memory its real name by reading the file plainly: EIO, damage, or, when all can be read, EIO too,
// since the fault has passed.
func judge(path string, err error) error {
	if !errors.Is(err, segment.ErrFault) {
		return err
	}
	if _, plain := segment.Inspect(path); plain != nil {
		return plain
	}
	return errors.Join(syscall.EIO, errors.New("a page could not be read for a moment"))
}

// spares says whether a file is to be left in place after err, and for how long it is left alone. Under mu.
func (b *Buffer) spares(s *seg, err error) bool {
	if s.writing && errors.Is(err, segment.ErrFault) {
		err = syscall.EIO // its pages change while they would be inspected
	}
	if err = judge(s.path, err); !ill(err) {
		return transient(err)
	}
	b.shut(s)
	if !s.writing && !s.soft {
		s.checked = false // read plainly before it is mapped again: a fault leaves its mapping behind
	}
	if s.illWait == 0 {
		b.c.Log.Error("the disk cannot read a segment; it stays and is tried again", "path", s.path, "waiting", s.waiting, "error", err)
	}
	s.illWait = min(max(2*s.illWait, illFirst), illMost)
	s.illUntil = time.Now().Add(s.illWait)
	return true
}

// healthy notes that the file could be read.
func (b *Buffer) healthy(s *seg) {
	if s.illWait != 0 {
		b.c.Log.Info("a segment can be read again", "path", s.path)
		s.illWait, s.illUntil = 0, time.Time{}
	}
}

func (s *seg) resting() bool { return s.illWait != 0 && time.Now().Before(s.illUntil) }

// unread is a segment that the disk could not read at the start. What it holds is not known in this run until it can be read.
type unread struct {
	lane uint8
	seq  uint64
	path string
	disk int64
}

// leave notes a file that the disk could not read at the start.
func (b *Buffer) leave(l *lane, seq uint64, path string, disk int64, cause error) {
	b.unread = append(b.unread, unread{lane: l.index, seq: seq, path: path, disk: disk})
	if seq+1 == l.nextSeq {
		// The segment that follows counts from here and cannot know how many it holds.
		l.doubt, l.formerEpoch, l.formerNext = uint32(b.c.SegmentSize/minBatch), [16]byte{}, 0
	}
	b.c.Log.Error("the disk cannot read a segment; it stays and is tried again", "path", path, "lane", l.name, "error", cause)
}

// retry looks again at what could not be read or made durable. Under mu.
func (b *Buffer) retry() {
	if b.closed {
		return
	}
	again := false
	b.unread = slices.DeleteFunc(b.unread, func(u unread) bool {
		done := b.readLate(u)
		again = again || done
		return done
	})
	b.restock()
	for _, l := range b.lanes {
		for _, s := range slices.Clone(l.segs) {
			if s.soft && !s.resting() {
				b.adopt(s)
				again = true
			}
			again = again || s.illWait != 0 && !s.resting()
		}
	}
	if again {
		b.signal() // for a Take, which tries them
	}
}

// readLate takes in a segment that could not be read at the start; true when it need not be tried again.
func (b *Buffer) readLate(u unread) bool {
	l := b.lanes[u.lane]
	s := &seg{path: u.path, disk: u.disk, tail: noTail}
	err := b.loadSeg(s, u.lane, u.seq)
	b.body = nil
	if err != nil {
		b.shut(s)
		if err = judge(u.path, err); ill(err) || transient(err) {
			return false
		}
		l.bad = append(l.bad, badFile{seq: u.seq, path: u.path, disk: u.disk, cause: err})
		b.setBadAside()
		return true
	}
	l.segs = append(l.segs, s)
	l.sort()
	b.foundIn(s)
	if u.seq+1 == l.nextSeq {
		l.countIn(s)
	} else if s.count > 0 {
		// Its successors' headers have counted without it, within their doubt; only its numbers are news.
		l.next[s.header.epoch] = max(l.next[s.header.epoch], s.last+1)
	}
	b.c.Log.Info("a segment can be read again", "path", u.path, "batches", s.count)
	return true
}

// adopt reads a segment again whose tail could not be made durable, and takes in what it holds now. Under mu.
func (b *Buffer) adopt(s *seg) {
	former, checked := s.summary, s.checked
	b.shut(s)
	err := b.recover(s)
	if err == nil && !s.soft {
		var waiting uint64
		if waiting, err = b.unacked(s); err == nil {
			b.sift(s)
			l := b.lanes[s.header.lane]
			s.waiting = waiting - min(waiting, s.gone.size())
			if former.count == 0 {
				s.at = s.first
			}
			if s.tail == 0 {
				s.tail = noTail
			}
			if s.header.seq+1 == l.nextSeq { // else its successor has counted without the tail, which is in its doubt
				l.batches += s.count - former.count
				l.bytes += s.bytes - former.bytes
			}
			s.since = 0
			b.settled(s)
			b.c.Log.Info("the tail of a segment is durable now", "path", s.path)
			return
		}
	}
	s.summary, s.checked, s.soft = former, checked, true
	if err != nil && !b.spares(s, err) {
		b.aside(s, err)
	}
}

// unreadNames are the base names of the files that the disk does not read at present.
func (b *Buffer) unreadNames() (names []string) {
	for _, u := range b.unread {
		names = append(names, filepath.Base(u.path))
	}
	for _, l := range b.lanes {
		for _, s := range l.segs {
			if s.illWait != 0 {
				names = append(names, filepath.Base(s.path))
			}
		}
	}
	return names
}
