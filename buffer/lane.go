package buffer

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"wardlink/buffer/segment"
)

// lane is one class of urgency. Everything but current is guarded by Buffer.mu.
type lane struct {
	index uint8
	name  string

	write   sync.Mutex // held through an Append
	current *seg       // the segment being written, under write; nil until the first Append after a start or a failure

	segs []*seg // oldest first, damaged ones excluded
	acks map[[16]byte]*ranges
	next map[[16]byte]uint64 // 1 more than the greatest number given to the epoch, failed commits included

	nextSeq        uint64
	batches, bytes uint64 // committed before the segment nextSeq
	doubt          uint32 // how many more the segment before nextSeq may hold
	formerEpoch    [16]byte
	formerNext     uint64
	lost           uint64 // batches that did not verify or were in files set aside since the start
	losses         map[[16]byte]*loss
	evicted        episode
	kept           bool // nothing of it is ever evicted
	begun          bool // a segment of it is counted in Buffer.disk and not among segs yet
	bad            []badFile
	leaving        [][16]byte // epochs of files that are being evicted: their acknowledgements count until the file is gone

	mark position // of Take: from here on batches are live
	owed int      // of Take: what the backlog is owed, see share
}

// seg is what memory holds of one segment: a few hundred bytes, whatever the number of batches, and a filter as long as its file has none.
type seg struct {
	summary
	path    string
	disk    int64
	file    *segment.File // open for writing, or a read handle; nil when not open
	writing bool
	checked bool // its structure was checked, or written, by this process

	at       uint64 // the next number Take looks at
	taken    ranges
	released ranges
	gone     ranges        // did not verify
	held     ranges        // parked, as far as Take has met them
	tail     uint64        // batches from this number on may have been in the page cache only when they were read: Known skips them
	soft     bool          // its tail could not be made durable: not finished, not deleted, tried again
	illWait  time.Duration // not 0: the disk could not read it; it is left alone until illUntil
	illUntil time.Time
	waiting  uint64 // batches neither acknowledged nor gone
	since    int64  // age when waiting became 0; 0 while it is not

	fine   int    // bytes of the filter that ends its summary; 0: the file has none
	coarse filter // that filter, folded, until its group is on disk
	group  *group // where the sieve has it; nil: nowhere
	column int
}

// noTail is no number of a batch.
const noTail = math.MaxUint64

func (s *seg) id(number uint64) ID {
	return ID{Epoch: s.header.epoch, Lane: s.header.lane, Number: number}
}

// holds says whether number lies within the segment's range.
func (s *seg) holds(number uint64) bool {
	return s.count > 0 && s.first <= number && number <= s.last
}

// sort orders the segments by their sequence.
func (l *lane) sort() {
	sort.Slice(l.segs, func(i, k int) bool { return l.segs[i].header.seq < l.segs[k].header.seq })
}

// find is the segment whose range holds the id.
func (l *lane) find(id ID) *seg {
	for _, s := range slices.Backward(l.segs) {
		if s.header.epoch == id.Epoch && s.holds(id.Number) {
			return s
		}
	}
	return nil
}

func (l *lane) acked(epoch [16]byte) *ranges {
	r := l.acks[epoch]
	if r == nil {
		r = &ranges{}
		l.acks[epoch] = r
	}
	return r
}

// read runs fn over the open segment. The first use of a file in this process checks it.
func (b *Buffer) read(s *seg, fn func(tx *bbolt.Tx) error) error {
	if s.resting() {
		return errIll
	}
	if err := b.open(s); err != nil {
		return err
	}
	err := s.file.View(fn)
	if err == nil {
		b.healthy(s)
	}
	s.file.Rest()
	return err
}

func (b *Buffer) open(s *seg) error {
	if s.writing {
		return nil
	}
	if s.file != nil {
		if i := slices.Index(b.handles, s); i >= 0 {
			b.handles = append(slices.Delete(b.handles, i, i+1), s)
		}
		return nil
	}
	open := disk.open
	if s.checked {
		open = segment.Reopen
	}
	f, err := open(s.path)
	if err != nil {
		return err
	}
	if len(b.handles) >= maxOpen {
		b.shut(b.handles[0])
	}
	s.file = f
	b.handles = append(b.handles, s)
	if !s.checked {
		if err := s.confirm(); err != nil {
			return err
		}
		s.checked = true
	}
	return nil
}

// confirm compares a file with its summary: bits flipped in a parent page can hide batches without breaking the structure.
func (s *seg) confirm() error {
	count := uint64(0)
	err := s.file.View(func(tx *bbolt.Tx) error {
		h, err := readHeader(tx)
		if err != nil {
			return err
		}
		if h != s.header {
			return fmt.Errorf("%w: header and summary differ", segment.ErrDamaged)
		}
		return eachNumber(tx, 0, func(uint64) error { count++; return nil })
	})
	if err == nil && count != s.count {
		err = fmt.Errorf("%w: %s holds %d batches of %d", segment.ErrDamaged, s.path, count, s.count)
	}
	return err
}

// shut closes a read handle.
func (b *Buffer) shut(s *seg) {
	if i := slices.Index(b.handles, s); i >= 0 {
		b.handles = slices.Delete(b.handles, i, i+1)
	}
	if s.file == nil || s.writing {
		return
	}
	if err := s.file.Close(); err != nil {
		b.c.Log.Warn("segment did not close", "path", s.path, "error", err)
	}
	s.file = nil
}

func readHeader(tx *bbolt.Tx) (header, error) {
	bucket := tx.Bucket([]byte(bucketHeader))
	if bucket == nil {
		return header{}, fmt.Errorf("%w: no header", segment.ErrDamaged)
	}
	h, err := parseHeader(bucket.Get([]byte(keyHeader)))
	if err != nil {
		return h, fmt.Errorf("%w: %w", segment.ErrDamaged, err)
	}
	return h, nil
}

// eachNumber calls fn for the batch numbers of a segment from the given one on.
func eachNumber(tx *bbolt.Tx, from uint64, fn func(uint64) error) error {
	batches := tx.Bucket([]byte(bucketBatches))
	if batches == nil {
		return fmt.Errorf("%w: no batches bucket", segment.ErrDamaged)
	}
	c := batches.Cursor()
	for k, v := c.Seek(numberKey(from)); k != nil; k, v = c.Next() {
		if len(k) != 8 || v != nil {
			return fmt.Errorf("%w: a key among the batches is not a number", segment.ErrDamaged)
		}
		if err := fn(beUint64(k)); err != nil {
			return err
		}
	}
	return nil
}

// scan reads the summary of a file that has none: its writer did not get to finish it. The filter is not folded yet.
func scan(f *segment.File) (s summary, err error) {
	filter := newFilter()
	err = f.View(func(tx *bbolt.Tx) error {
		if s.header, err = readHeader(tx); err != nil {
			return err
		}
		batches, sealings := tx.Bucket([]byte(bucketBatches)), tx.Bucket([]byte(bucketSealings))
		if batches == nil || sealings == nil {
			return fmt.Errorf("%w: a bucket is missing", segment.ErrDamaged)
		}
		err := eachNumber(tx, 0, func(n uint64) error {
			if s.count == 0 {
				s.first = n
			}
			s.count++
			s.last = n
			batch := batches.Bucket(numberKey(n))
			s.bytes += uint64(len(batch.Get([]byte(keyFrame))))
			eachSeen(batch.Get([]byte(keySeen)), func(m Seen) {
				filter.add(&m.Digest)
				s.seen++
			})
			return nil
		})
		if err != nil {
			return err
		}
		return sealings.ForEach(func(k, _ []byte) error {
			if len(k) != 16 {
				return fmt.Errorf("%w: a sealing id of %d bytes", segment.ErrDamaged, len(k))
			}
			s.sealings = append(s.sealings, [16]byte(k))
			return nil
		})
	})
	s.filter = filter
	return s, err
}

// aside sets a damaged segment aside and goes on without it. Under mu.
//
// Crash argument: what is lost by it is stored before the file gets its other name. A crash in between leaves the file in its place, and
// the next start takes its numbers out of the loss again. Where the state cannot be stored the file goes all the same, since it cannot
// be used; the state is then tried again each second.
func (b *Buffer) aside(s *seg, cause error) {
	l := b.lanes[s.header.lane]
	b.shut(s)
	if s.writing {
		// Its writer, who reads s.file without mu, meets ErrClosed at the next commit and begins a new segment.
		if err := s.file.Close(); err != nil {
			b.c.Log.Warn("segment did not close", "path", s.path, "error", err)
		}
		s.writing = false
	}
	l.segs = slices.DeleteFunc(l.segs, func(o *seg) bool { return o == s })
	b.unsift(s)
	b.lose(b.takes(s, false), false)
	for id := range b.parked {
		if id.Lane == s.header.lane && id.Epoch == s.header.epoch && s.holds(id.Number) {
			delete(b.parked, id)
		}
	}
	b.storeUnderMu("a damaged segment's losses are not durable yet")
	path := b.moveAside(s.path, asideFile{lane: l, seq: s.header.seq, disk: s.disk})
	b.c.Log.Error("a damaged segment was set aside; its batches are kept in the file but not sent", "path", path, "lane", l.name,
		"epoch", fmt.Sprintf("%x", s.header.epoch), "first", s.first, "last", s.last, "waiting", s.waiting, "error", cause)
	b.touch()
}

// asideFile is a file that was set aside.
type asideFile struct {
	path string
	lane *lane // nil: of none
	seq  uint64
	disk int64 // bytes that count in Buffer.disk
}

// moveAside renames the file and notes it as f. A file that cannot even be renamed is left out of this run all the same.
func (b *Buffer) moveAside(path string, f asideFile) string {
	aside, err := segment.SetAside(path)
	if err != nil {
		b.c.Log.Error("a damaged segment could not be renamed; it is left out of this run", "path", path, "error", err)
		aside = path
	}
	f.path = aside
	b.damaged = append(b.damaged, f)
	return aside
}

// storeUnderMu stores the state; an error is logged as what, and the state is tried again each second. Under mu.
func (b *Buffer) storeUnderMu(what string) bool {
	b.storing.Lock()
	defer b.storing.Unlock()
	err := b.store(b.encodeState())
	if err != nil {
		b.c.Log.Error(what, "error", err)
		b.touch()
	}
	return err == nil
}

// transient says of an error that it lies in this process or machine and not in the file, so that the file must not be set aside.
// ErrClosed is met between a failed commit and its Append's taking note of it. EIO is not among them: see ill.
func transient(err error) bool {
	return errors.Is(err, errIll) || errors.Is(err, segment.ErrClosed) || errors.Is(err, bbolterrors.ErrTimeout) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) ||
		errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)
}
