package buffer

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

const (
	maxRecord   = 64 << 10 // bytes of a sealing record
	maxSealings = 512      // sealing records in one segment
	// fixedPages is what a commit rewrites whatever it holds: the path to the last leaf of each of the three buckets, the root, and
	// the pages that splitting them adds.
	fixedPages = 12
	// emptyPages is what a segment has in use before its first batch.
	emptyPages = 10
)

// Append makes items durable, each lane's in the given order. nil: all are flushed to disk in every lane, and their sources may be
// acknowledged. On an error nothing may be acknowledged; items of a lane that did commit, and an item whose own commit failed, may
// still be given out by Take, now or after a restart, so their numbers must not be used again for anything else.
//
// Numbers must be greater than every number that was tried before in their epoch and lane, failed ones included.
func (b *Buffer) Append(items []Item) error {
	groups := make([][]Item, len(b.lanes))
	for _, it := range items {
		if err := b.validate(it); err != nil {
			return err
		}
		groups[it.ID.Lane] = append(groups[it.ID.Lane], it)
	}
	var touched []*lane
	kept := 0
	for i, g := range groups {
		if len(g) > 0 {
			touched = append(touched, b.lanes[i])
			if b.lanes[i].kept {
				kept++
			}
		}
	}
	if kept > 0 && kept < len(touched) && b.c.Report != nil {
		// Report appends to a kept lane while an Append to another holds that one's lock.
		return fmt.Errorf("append %s: %w: lanes that are never evicted are appended to apart", items[0].ID, ErrInvalid)
	}
	// Ascending order of lanes, so that two Appends cannot wait for each other.
	for _, l := range touched {
		l.write.Lock()
		defer l.write.Unlock()
	}
	defer b.signal()
	if len(touched) == 1 {
		return b.appendLane(touched[0], groups[touched[0].index])
	}
	// The lanes' flushes run side by side: an alarm that also belongs to the vitals waits for the slower, not for the sum.
	errs := make([]error, len(touched))
	var wg sync.WaitGroup
	for i, l := range touched {
		wg.Go(func() { errs[i] = b.appendLane(l, groups[l.index]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (b *Buffer) validate(it Item) error {
	switch {
	case int(it.ID.Lane) >= len(b.lanes):
		return fmt.Errorf("append %s: %w: the buffer has %d lanes", it.ID, ErrInvalid, len(b.lanes))
	case len(it.Frame) == 0:
		return fmt.Errorf("append %s: %w: it has no frame", it.ID, ErrInvalid)
	case it.ID.Number == math.MaxUint64:
		return fmt.Errorf("append %s: %w: the number is the last one, which is never used", it.ID, ErrInvalid)
	case len(it.Record) == 0 || len(it.Record) > maxRecord:
		return fmt.Errorf("append %s: %w: its sealing record has %d bytes; expected 1 to %d", it.ID, ErrInvalid, len(it.Record), maxRecord)
	case bound([]Item{it}) > b.c.SegmentSize-segment.Reserve-emptyPages*segment.PageSize:
		return fmt.Errorf("append %s: %w: a frame of %d bytes with %d messages does not fit into a segment of %d bytes", it.ID, ErrInvalid, len(it.Frame), len(it.Seen), b.c.SegmentSize)
	}
	return nil
}

// bound is the most bytes of pages that a commit of items can need. Each batch gets a page run of its own when it is not inlined
// into a leaf of its parent, and a page for what it adds to the parents; each record likewise.
func bound(items []Item) int64 {
	const perBatch = 16 + 3*(16+1) + batchMetaSize
	pages := int64(fixedPages)
	var last []byte
	for _, it := range items {
		pages += int64(perBatch+len(it.Seen)*seenSize+len(it.Frame))/segment.PageSize + 2
		if &it.Record[0] != &firstByte(last)[0] {
			pages += int64(len(it.Record))/segment.PageSize + 2
			last = it.Record
		}
	}
	return pages * segment.PageSize
}

// firstByte lets two slices be compared by identity: one period's record comes with each of its batches.
func firstByte(b []byte) []byte {
	if len(b) == 0 {
		return []byte{0}
	}
	return b
}

// appendLane commits items in as few transactions as segments and epochs allow.
func (b *Buffer) appendLane(l *lane, items []Item) error {
	for len(items) > 0 {
		if err := b.admit(l, items); err != nil {
			return err
		}
		s, n, err := b.place(l, items)
		if err != nil {
			return err
		}
		if err := b.commit(l, s, items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// admit checks the order of numbers.
func (b *Buffer) admit(l *lane, items []Item) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("append: %w", ErrClosed)
	}
	next, epoch := l.next[items[0].ID.Epoch], items[0].ID.Epoch
	for _, it := range items {
		if it.ID.Epoch != epoch {
			next, epoch = l.next[it.ID.Epoch], it.ID.Epoch
		}
		if it.ID.Number < next {
			return fmt.Errorf("append %s: %w: the least number still free is %d", it.ID, ErrInvalid, next)
		}
		next = it.ID.Number + 1
	}
	return nil
}

// place returns the segment to write and how many of the items to write into it now.
func (b *Buffer) place(l *lane, items []Item) (*seg, int, error) {
	n := 1
	for n < len(items) && items[n].ID.Epoch == items[0].ID.Epoch {
		n++
	}
	for {
		if s := l.current; s != nil {
			room := s.file.Room()
			for n > 1 && bound(items[:n]) > room {
				// Halving wastes some room at a segment's end and keeps the search short.
				n = (n + 1) / 2
			}
			if s.header.epoch == items[0].ID.Epoch && bound(items[:n]) <= room && len(s.sealings) < maxSealings {
				return s, n, nil
			}
		}
		if err := b.begin(l, items[0].ID); err != nil {
			return nil, 0, err
		}
	}
}

// begin finishes the lane's segment and creates the next.
func (b *Buffer) begin(l *lane, id ID) error {
	b.mu.Lock()
	if err := b.finish(l); err != nil {
		b.c.Log.Warn("a full segment did not close in order", "lane", l.name, "error", err)
	}
	b.mu.Unlock()
	if err := b.makeRoom(l); err != nil {
		return fmt.Errorf("append to lane %s: %w", l.name, err)
	}
	b.mu.Lock()
	h := header{lane: l.index, epoch: id.Epoch, seq: l.nextSeq, first: max(id.Number, l.next[id.Epoch]),
		batches: l.batches, bytes: l.bytes, doubt: l.doubt, formerEpoch: l.formerEpoch, formerNext: l.formerNext}
	b.mu.Unlock()
	s := &seg{summary: summary{header: h, filter: newFilter()}, path: filepath.Join(b.c.Dir, fileName(l.name, h.seq)), tail: noTail, writing: true, checked: true}
	file, err := disk.create(s.path, b.c.SegmentSize, h)
	if err != nil {
		b.mu.Lock()
		b.disk -= b.c.SegmentSize
		l.begun = false
		b.mu.Unlock()
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			// The disk is smaller than the cap, or others fill it.
			if err = b.makeRoomOnDisk(l, err); err == nil {
				return nil // place finds no current segment and begins again
			}
		}
		return fmt.Errorf("append to lane %s: %w", l.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.file, s.disk = file, b.c.SegmentSize
	if size, err := segment.DiskBytes(s.path); err == nil && size > s.disk {
		b.disk += size - s.disk
		s.disk = size
	}
	l.segs, l.begun = append(l.segs, s), false
	l.current = s
	l.nextSeq++
	l.doubt, l.formerEpoch, l.formerNext = 0, h.epoch, h.first
	b.roomThere()
	b.restock()
	return nil
}

func createSegment(path string, size int64, h header) (*segment.File, error) {
	return segment.Create(path, size, func(tx *bbolt.Tx) error {
		for _, name := range []string{bucketHeader, bucketBatches, bucketSealings} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		return tx.Bucket([]byte(bucketHeader)).Put([]byte(keyHeader), h.encode())
	})
}

// finish closes the lane's current segment for writing and gives it its summary. Under mu and the lane's write lock.
func (b *Buffer) finish(l *lane) error {
	s := l.current
	l.current = nil
	if s == nil || !s.writing {
		return nil
	}
	err := s.file.Close()
	s.file, s.writing = nil, false
	s.filter = filter(s.filter).folded(s.seen)
	b.writeSummary(s)
	b.sift(s)
	b.settled(s)
	return err
}

// commit writes items into s in one transaction.
func (b *Buffer) commit(l *lane, s *seg, items []Item) error {
	var fresh [][16]byte
	err := s.file.Commit(bound(items), func(tx *bbolt.Tx) error {
		batches, sealings := tx.Bucket([]byte(bucketBatches)), tx.Bucket([]byte(bucketSealings))
		batches.FillPercent = 1 // numbers ascend: pages are filled once and left alone
		for _, it := range items {
			if !slices.Contains(s.sealings, it.Sealing) && !slices.Contains(fresh, it.Sealing) {
				if err := sealings.Put(it.Sealing[:], encodeRecord(it.Sealing, it.Record)); err != nil {
					return err
				}
				fresh = append(fresh, it.Sealing)
			}
			if err := putBatch(batches, s.header, it); err != nil {
				return err
			}
		}
		return nil
	})
	s.file.Rest()
	b.mu.Lock()
	defer b.mu.Unlock()
	last := items[len(items)-1].ID
	// Tried numbers are spent, whatever became of them.
	l.next[last.Epoch], l.formerNext = last.Number+1, last.Number+1
	if err == nil && !s.writing {
		// Set aside while the commit ran, and what is lost with it was counted without these. They are durable where nobody reads, so
		// their sources are told nothing; should a crash come before the file has its other name, they flow.
		l.doubt = uint32(len(items))
		err = fmt.Errorf("%w: it was set aside meanwhile", segment.ErrDamaged)
	}
	if err != nil {
		b.failed(l, s, len(items))
		return fmt.Errorf("append %s: %w", items[0].ID, err)
	}
	s.sealings = append(s.sealings, fresh...)
	for _, it := range items {
		if s.count == 0 {
			s.first, s.at = it.ID.Number, it.ID.Number
		}
		s.last = it.ID.Number
		s.count++
		s.waiting++
		s.bytes += uint64(len(it.Frame))
		s.seen += uint64(len(it.Seen))
		l.batches++
		l.bytes += uint64(len(it.Frame))
		for i := range it.Seen {
			filter(s.filter).add(&it.Seen[i].Digest)
		}
	}
	return nil
}

// putBatch writes a batch as a bucket of its own: bbolt then gives a large frame its own pages, instead of copying its neighbours
// in the same leaf at every commit.
func putBatch(batches *bbolt.Bucket, h header, it Item) error {
	batch, err := batches.CreateBucket(numberKey(it.ID.Number))
	if err != nil {
		return err
	}
	seen := encodeSeen(it.Seen)
	if err := batch.Put([]byte(keyMeta), encodeMeta(h, it.ID.Number, it.Sealing, seen, it.Frame)); err != nil {
		return err
	}
	if err := batch.Put([]byte(keySeen), seen); err != nil {
		return err
	}
	return batch.Put([]byte(keyFrame), it.Frame)
}

// failed deals with a commit that did not succeed. Whether it is on disk is unknown, so the file is read again as after a crash:
// what it shows is given out (harmless when the receiver has it twice), and the next segment's header says how many may be there.
// Known does not count it in this run, because its source was told nothing; its resend is stored as the same message again.
func (b *Buffer) failed(l *lane, s *seg, items int) {
	l.current = nil
	if !s.writing {
		return // set aside meanwhile
	}
	if err := s.file.Close(); err != nil {
		b.c.Log.Warn("a segment did not close after a failed commit", "path", s.path, "error", err)
	}
	s.file, s.writing, s.checked = nil, false, false
	former := s.summary
	l.doubt = uint32(items)
	s.tail = 0
	if former.count > 0 {
		s.tail = former.last + 1
	}
	err := b.recover(s)
	if err != nil || s.soft {
		// It stays with what is known to be in it; what the failed commit may have added is looked for again, here or at the next start.
		s.summary, s.checked, s.soft = former, true, true
		if err != nil && !b.spares(s, err) {
			b.aside(s, err)
		}
		return
	}
	b.sift(s)
	if former.count == 0 {
		s.at = s.first
	}
	s.waiting += s.count - former.count
	l.batches += s.count - former.count
	l.bytes += s.bytes - former.bytes
}
