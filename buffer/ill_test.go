package buffer

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"wardlink/buffer/segment"
)

// failDisk puts the real calls back when the test ends.
func failDisk(t *testing.T) {
	former := disk
	t.Cleanup(func() { disk = former })
}

func eio(path string) error { return fmt.Errorf("read %s: %w", path, syscall.EIO) }

// flushFails commits an item and then does what Append does when the last flush of that commit has failed: the page cache has it all.
func flushFails(t *testing.T, b *Buffer, it Item) *seg {
	t.Helper()
	l := b.lanes[it.ID.Lane]
	l.write.Lock()
	defer l.write.Unlock()
	s := l.current
	if err := s.file.Commit(bound([]Item{it}), func(tx *bbolt.Tx) error { return putBatch(tx.Bucket([]byte(bucketBatches)), s.header, it) }); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l.next[it.ID.Epoch], l.formerNext = it.ID.Number+1, it.ID.Number+1
	b.failed(l, s, 1)
	return s
}

func (b *Buffer) retryNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retry()
}

func known(b *Buffer, it Item) bool {
	_, known := b.Known(it.Seen[0].Digest)
	return known
}

// TestAFailedFlushIsNotKnown: the source of a batch whose last flush failed sends again, and must not be told that it is kept.
func TestAFailedFlushIsNotKnown(t *testing.T) {
	for name, hard := range map[string]bool{"the disk has recovered": true, "every flush fails": false} {
		t.Run(name, func(t *testing.T) {
			failDisk(t)
			c, b := fresh(t)
			kept, lost, next := itemOf(1, 1, 0, 100), itemOf(1, 1, 1, 100), itemOf(1, 1, 2, 100)
			if err := b.Append([]Item{kept}); err != nil {
				t.Fatal(err)
			}
			if !hard {
				disk.harden = eio
			}
			s := flushFails(t, b, lost)
			if known(b, lost) || !known(b, kept) {
				t.Fatalf("known: the failed batch %v, the one before it %v", known(b, lost), known(b, kept))
			}
			if err := b.Append([]Item{next}); err != nil {
				t.Fatal(err)
			}
			want := 3
			if !hard {
				want = 2
				if _, err := segment.Summary(s.path); !errors.Is(err, segment.ErrUnfinished) {
					t.Fatalf("the file has a summary, which the next start would believe: %v", err)
				}
			}
			all := takeAll(t, b)
			if len(all) != want {
				t.Fatalf("took %s", idsOf(all))
			}
			for _, g := range all {
				b.Ack(g.ID)
			}
			if !hard {
				b.mu.Lock()
				if b.dropOldest() {
					t.Error("a file was deleted although it may hold a batch that was not sent")
				}
				b.mu.Unlock()
				b.retryNow() // still failing
				disk.harden = segment.Harden
				b.retryNow()
				late := takeAll(t, b)
				if len(late) != 1 || late[0].ID != lost.ID {
					t.Fatalf("after the disk has recovered took %s", idsOf(late))
				}
				b.Ack(late[0].ID)
			}
			if st := b.Stats(); len(st.Damaged) > 0 || st.Lanes[1].Waiting != 0 || st.Lanes[1].Stored != 3 {
				t.Fatalf("%+v", st)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			b = mustOpen(t, c)
			if !known(b, lost) {
				t.Fatal("flushed since, and not known after the restart")
			}
		})
	}
}

// TestAStartThatCannotFlushKnowsNothing: after SIGKILL the last commit may be in the page cache only. While it cannot be made durable,
// batches of its file are given out, but no source is told that it is known.
func TestAStartThatCannotFlushKnowsNothing(t *testing.T) {
	failDisk(t)
	c, b := fresh(t)
	items := []Item{itemOf(1, 1, 0, 100), itemOf(1, 1, 1, 100)}
	for _, it := range items {
		if err := b.Append([]Item{it}); err != nil {
			t.Fatal(err)
		}
	}
	c.Dir = copyDir(t, c.Dir)
	disk.harden = eio
	for range 2 { // a second start reads the same page cache
		b, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		if known(b, items[0]) || known(b, items[1]) {
			t.Fatal("known from the page cache")
		}
		if got := takeAll(t, b); len(got) != 2 {
			t.Fatalf("took %s", idsOf(got))
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b = mustOpen(t, c)
	got := takeAll(t, b)
	b.Ack(got[0].ID)
	disk.harden = segment.Harden
	b.retryNow()
	if !known(b, items[0]) || !known(b, items[1]) {
		t.Fatal("made durable, and still not known")
	}
	if st := b.Stats().Lanes[1]; st.Waiting != 1 || st.Stored != 2 {
		t.Fatalf("%+v", st)
	}
}

// threeFiles is a buffer with three segments of the vitals lane and how many batches they hold.
func threeFiles(t *testing.T) (c Config, b *Buffer, batches int) {
	t.Helper()
	c, b = fresh(t)
	for n := uint64(0); len(b.lanes[1].segs) < 3; n++ {
		if err := b.Append([]Item{itemOf(1, 1, n, 9000)}); err != nil {
			t.Fatal(err)
		}
		batches++
	}
	return c, b, batches
}

// TestAReadErrorSetsNothingAside: EIO says nothing of the file. It is left alone for a while, the others flow, and it comes back.
func TestAReadErrorSetsNothingAside(t *testing.T) {
	failDisk(t)
	c, b, batches := threeFiles(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	victim := fileName("vitals", 2)
	tries := 0
	disk.open = func(path string) (*segment.File, error) {
		if filepath.Base(path) == victim {
			tries++
			return nil, eio(path)
		}
		return segment.Open(path)
	}
	b = mustOpen(t, c)
	s := b.lanes[1].segs[1]
	got := takeAll(t, b)
	if len(got) == 0 || len(got)+int(s.count) != batches {
		t.Fatalf("took %d of %d; the file holds %d", len(got), batches, s.count)
	}
	if st := b.Stats(); len(st.Damaged) > 0 || len(st.Unread) != 1 || st.Unread[0] != victim || st.Lanes[1].Lost != 0 {
		t.Fatalf("%+v", st)
	}
	if known(b, itemOf(1, 1, s.first, 9000)) {
		t.Fatal("known from a file that cannot be read")
	}
	if tries != 1 {
		t.Fatalf("asked the ill disk %d times within its rest", tries)
	}
	disk.open = segment.Open
	s.illUntil = time.Now().Add(-time.Second)
	if late := takeAll(t, b); len(late)+len(got) != batches {
		t.Fatalf("once it can be read again took %d of %d", len(late), s.count)
	}
	if st := b.Stats(); len(st.Unread) != 0 || len(st.Damaged) != 0 {
		t.Fatalf("%+v", st)
	}
}

// TestNoErrnoIsDamage: what the kernel says when it cannot give a file, whatever it says, sets none aside; found by ENOSPC from flock(2).
func TestNoErrnoIsDamage(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.ENOLCK, syscall.EUCLEAN, syscall.ETIMEDOUT} {
		failDisk(t)
		c, b, batches := threeFiles(t)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		disk.open = func(path string) (*segment.File, error) { return nil, fmt.Errorf("open %s: %w", path, errno) }
		b = mustOpen(t, c)
		if got := takeAll(t, b); len(got) != 0 {
			t.Fatalf("%v: took %s", errno, idsOf(got))
		}
		if st := b.Stats(); len(st.Damaged) > 0 || len(st.Unread) != 3 || st.Lanes[1].Waiting != uint64(batches) {
			t.Fatalf("%v: %+v", errno, st)
		}
		disk.open = segment.Open
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAFaultIsJudgedByPlainReads: a disk that does not answer shows as a fault on mapped memory, in the middle of a walk.
func TestAFaultIsJudgedByPlainReads(t *testing.T) {
	_, b, _ := threeFiles(t)
	s := b.lanes[1].segs[0]
	fault := fmt.Errorf("read: %w: %w", segment.ErrDamaged, segment.ErrFault)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.spares(s, fault) || !s.resting() {
		t.Fatal("a fault that plain reads do not confirm was taken for damage")
	}
	if b.spares(s, fmt.Errorf("read: %w", segment.ErrDamaged)) {
		t.Fatal("damage was spared")
	}
}

// TestAnUnreadableStartKeepsWhatIsKnown: a file that the disk cannot read at the start keeps its name, its acknowledgements and its
// parked batch, and is taken in when it can be read, in this run or in the next.
func TestAnUnreadableStartKeepsWhatIsKnown(t *testing.T) {
	for name, last := range map[string]bool{"in this run": false, "the newest file": true} {
		t.Run(name, func(t *testing.T) {
			failDisk(t)
			c, b, batches := threeFiles(t)
			victim := fileName("vitals", 1)
			at := 0
			if last {
				victim, at = fileName("vitals", 3), batches-1
			}
			all := takeAll(t, b)
			b.Park(all[at].ID, "refused")
			for i, g := range all {
				if i != at && i%2 == 0 {
					b.Ack(g.ID)
				}
			}
			waiting := b.Stats().Lanes[1].Waiting
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			disk.summary = func(path string, buf []byte) ([]byte, error) {
				if strings.HasSuffix(path, victim) {
					return nil, eio(path)
				}
				return segment.SummaryIn(path, buf)
			}
			b = mustOpen(t, c)
			if st := b.Stats(); len(st.Damaged) != 0 || len(st.Unread) != 1 || st.Unread[0] != victim {
				t.Fatalf("%+v", st)
			}
			if _, err := b.Sealing([16]byte{7}); err == nil || errors.Is(err, ErrNoRecord) {
				t.Fatalf("a record that may be in the file: %v; want an error that means later", err)
			}
			if err := b.Append([]Item{itemOf(2, 1, 0, 100)}); err != nil {
				t.Fatal(err)
			}
			b.retryNow()
			if err := b.Flush(); err != nil {
				t.Fatal(err)
			}
			disk.summary = segment.SummaryIn
			b.retryNow()
			if st := b.Stats(); len(st.Unread) != 0 || st.Lanes[1].Waiting != waiting+1 || st.Lanes[1].Parked != 1 {
				t.Fatalf("%+v; want %d waiting", st, waiting+1)
			}
			if _, err := b.Sealing([16]byte{7}); !errors.Is(err, ErrNoRecord) {
				t.Fatalf("%v; want ErrNoRecord", err)
			}
			if got := takeAll(t, b); len(got) != int(waiting) {
				t.Fatalf("took %d of %d", len(got), waiting)
			}
			// The headers of what follows still count alike; Check, when the test is over, compares them.
			for n := uint64(1); len(b.lanes[1].segs) < 6; n++ {
				if err := b.Append([]Item{itemOf(2, 1, n, 9000)}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestAcksOfAnUnreadableFileAreKept: no other file is of its epoch, and the state is stored while it cannot be read.
func TestAcksOfAnUnreadableFileAreKept(t *testing.T) {
	failDisk(t)
	c, b := fresh(t)
	if err := b.Append([]Item{itemOf(1, 1, 0, 100), itemOf(1, 1, 1, 100)}); err != nil {
		t.Fatal(err)
	}
	b.Ack(takeAll(t, b)[0].ID)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	disk.summary = func(path string, buf []byte) ([]byte, error) { return nil, eio(path) }
	b = mustOpen(t, c)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	disk.summary = segment.SummaryIn
	if got := takeAll(t, mustOpen(t, c)); len(got) != 1 || got[0].ID.Number != 1 {
		t.Fatalf("took %s; want the one that was not acknowledged", idsOf(got))
	}
}

// TestThousandsOfParkedBatches: what is refused stays refused after a restart; reasons give way to ids.
func TestThousandsOfParkedBatches(t *testing.T) {
	all := map[ID]parked{}
	for n := range uint64(3000) {
		all[ID{Epoch: epochOf(1), Lane: 1, Number: n}] = parked{at: int64(n), reason: strings.Repeat("r", maxReason)}
	}
	raw := state{lanes: make([]laneState, 3), parked: all}.encode()
	if len(raw) > maxState*3/4 {
		t.Fatalf("%d bytes leave too little room for acknowledgements", len(raw))
	}
	back, err := parseState(raw)
	if err != nil || len(back.parked) != len(all) {
		t.Fatalf("%d of %d came back, %v", len(back.parked), len(all), err)
	}
	if back.parked[ID{Epoch: epochOf(1), Lane: 1}].reason == "" {
		t.Fatal("no reason came back")
	}
}
