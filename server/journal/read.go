package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// Read returns committed entries with Seq >= from, in order: at most max, and at most 8 MB beyond the first. None when there are
// none yet. Sequence numbers have no holes, except where a commit or a file was damaged; Read then goes on behind it. A finished file
// that the disk does not give is an error for readTries tries and readTime, so that a disk may come back; then it is damaged as well.
func (j *Journal) Read(from uint64, max int) ([]Entry, error) {
	return j.read(&reading{from: from, max: max})
}

// ReadHeads is Read without the blobs: they are not copied, do not count among the 8 MB, and Blob is nil.
func (j *Journal) ReadHeads(from uint64, max int) ([]Entry, error) {
	return j.read(&reading{from: from, max: max, heads: true})
}

func (j *Journal) read(r *reading) ([]Entry, error) {
	j.reading.Lock()
	defer j.reading.Unlock()
	for !r.full() {
		s, until := j.next(r.from)
		if s == nil {
			return r.out, nil
		}
		r.until, r.bad = until, nil
		err := j.open(s)
		if err == nil {
			err = s.file.View(r.segment)
		}
		for _, bad := range r.bad {
			if s.noteBad(bad) {
				j.c.Log.Error("a commit of the journal does not verify and is passed over; its file will be kept", "path", s.path, "error", bad)
			}
		}
		switch {
		case err == nil:
			s.failed = 0
		case errors.Is(err, segment.ErrDamaged):
			j.drop(s, err)
		case j.lost(s, err):
			j.drop(s, err)
		default:
			return r.out, fmt.Errorf("journal: %w", err)
		}
		if !r.full() && r.from <= until {
			r.from = until + 1
		}
	}
	return r.out, nil
}

// next is the first segment that holds entries from the given number on, and the last number in it that counts.
func (j *Journal) next(from uint64) (*seg, uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, 0
	}
	for i, s := range j.segs {
		until := min(s.last, j.committed)
		if i+1 < len(j.segs) {
			until = min(until, j.segs[i+1].header.first-1)
		}
		if until >= from && until >= s.header.first {
			return s, until
		}
	}
	return nil, 0
}

type reading struct {
	from  uint64 // the next number wanted
	until uint64 // the last that counts in the segment
	max   int
	heads bool // blobs are not wanted
	bytes int
	done  bool
	out   []Entry
	bad   []error // commits that do not verify
}

func (r *reading) full() bool { return r.done || len(r.out) >= r.max }

// segment reads from one segment, from the commit that holds r.from on. A commit that does not verify is passed over: its neighbours
// are whole.
func (r *reading) segment(tx *bbolt.Tx) error {
	commits := tx.Bucket([]byte(bucketCommits))
	if commits == nil {
		return fmt.Errorf("%w: no commits bucket", segment.ErrDamaged)
	}
	c := commits.Cursor()
	k, _ := c.Seek(seqKey(r.from))
	if k == nil || !bytes.Equal(k, seqKey(r.from)) {
		// The commit before may reach up to from.
		if k == nil {
			k, _ = c.Last()
		} else if k, _ = c.Prev(); k == nil {
			k, _ = c.First()
		}
	}
	for ; k != nil && !r.full(); k, _ = c.Next() {
		if len(k) != 8 {
			return fmt.Errorf("%w: a commit's key has %d bytes", segment.ErrDamaged, len(k))
		}
		first := binary.BigEndian.Uint64(k)
		if first > r.until {
			return nil
		}
		if _, err := unpack(first, commits.Bucket(k).Get([]byte(keyEntries)), r.entry); err != nil {
			r.bad = append(r.bad, err)
		}
	}
	return nil
}

func (r *reading) entry(e Entry) bool {
	if r.heads {
		e.Blob = nil
	}
	switch {
	case e.Seq < r.from:
		return true
	case e.Seq > r.until:
		return false
	case r.full() || len(r.out) > 0 && r.bytes+e.Size() > readBytes:
		r.done = true
		return false
	}
	own := append(append(make([]byte, 0, e.Size()), e.Head...), e.Blob...) // what is mapped is not ours
	head := len(e.Head)
	if e.Head = own[:head:head]; !r.heads {
		e.Blob = own[head:]
	}
	r.out = append(r.out, e)
	r.bytes += e.Size()
	r.from = e.Seq + 1
	return true
}

// open gives the segment a read handle; the first use in this process checks the file. Under reading.
func (j *Journal) open(s *seg) error {
	if s.file != nil {
		return nil
	}
	open := segment.Open
	if s.checked {
		open = segment.Reopen
	}
	f, err := open(s.path)
	if err != nil {
		return err
	}
	if j.handle != nil {
		j.shut(j.handle)
	}
	s.file, s.checked, j.handle = f, true, s
	return nil
}

// shut closes a read handle. Under reading.
func (j *Journal) shut(s *seg) {
	if j.handle == s {
		j.handle = nil
	}
	if s.file == nil || s.writing {
		return
	}
	if err := s.file.Close(); err != nil {
		j.c.Log.Warn("a segment did not close in order", "path", s.path, "error", err)
	}
	s.file = nil
}

// lost counts a read that failed and says whether the file is to be given up. Under reading.
func (j *Journal) lost(s *seg, err error) bool {
	if s.writing || transient(err) {
		return false
	}
	now := j.c.Now()
	if s.failed++; s.failed == 1 {
		s.since = now
	}
	j.c.Log.Error("a journal file cannot be read", "path", s.path, "tries", s.failed, "error", err)
	return s.failed >= readTries && now.Sub(s.since) >= readTime
}

// drop sets a damaged segment aside. One that is being written stays under its name until it is finished: its writer holds it open,
// and what it still commits is readable. Under reading.
func (j *Journal) drop(s *seg, cause error) {
	if s.writing {
		j.c.Log.Error("the journal's current segment is damaged; entries in it cannot be read", "path", s.path, "error", cause)
		return
	}
	j.shut(s)
	j.mu.Lock()
	j.segs = slices.DeleteFunc(j.segs, func(o *seg) bool { return o == s })
	j.mu.Unlock()
	j.setAside(s.path, cause)
}

func (j *Journal) setAside(path string, cause error) {
	aside, err := segment.SetAside(path)
	if err != nil {
		j.c.Log.Error("a damaged journal file could not be renamed; it is left out of this run", "path", path, "error", err)
		aside = path
	}
	j.mu.Lock()
	j.damaged = append(j.damaged, aside)
	j.mu.Unlock()
	j.c.Log.Error("a damaged journal file was set aside; its entries are kept in it but not read", "path", aside, "error", cause)
}

// transient says of an error that it lies in this process or machine and not in the file.
func transient(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) ||
		errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)
}

// scan reads a whole segment. Its commits must follow each other without a hole and every one must verify; what does not is in
// bad, and the scan goes on behind it.
func scan(f *segment.File) (s summary, bad []error, err error) {
	err = f.View(func(tx *bbolt.Tx) error {
		head, all := tx.Bucket([]byte(bucketHeader)), tx.Bucket([]byte(bucketCommits))
		if head == nil || all == nil {
			return fmt.Errorf("%w: a bucket is missing", segment.ErrDamaged)
		}
		h, err := parseHeader(head.Get([]byte(keyHeader)))
		if err != nil {
			return fmt.Errorf("%w: %w", segment.ErrDamaged, err)
		}
		s = summary{header: h, last: h.first - 1}
		return all.ForEach(func(k, v []byte) error {
			if len(k) != 8 || v != nil || binary.BigEndian.Uint64(k) <= s.last {
				return fmt.Errorf("%w: a key among the commits is %x", segment.ErrDamaged, k)
			}
			first := binary.BigEndian.Uint64(k)
			if first != s.last+1 {
				bad = append(bad, fmt.Errorf("%w: entries %d to %d are missing", segment.ErrDamaged, s.last+1, first-1))
			}
			count, err := unpack(first, all.Bucket(k).Get([]byte(keyEntries)), func(e Entry) bool {
				s.bytes += uint64(e.Size())
				return true
			})
			if err != nil {
				// How many entries it held shows in the next commit's key; a number too high only makes a hole.
				bad, count = append(bad, err), 1
				if next, _ := all.Cursor().Seek(seqKey(first + 1)); next == nil {
					count = commitEntries
				} else if len(next) == 8 {
					count = binary.BigEndian.Uint64(next) - first
				}
			}
			s.last = first + count - 1
			return nil
		})
	})
	return s, bad, err
}
