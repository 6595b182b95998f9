package buffer

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"wardlink/buffer/segment"
	"wardlink/internal/mounttest"
)

// TestADiskSmallerThanTheCap: the same happens at the disk's end as at the cap, and intake goes on.
func TestADiskSmallerThanTheCap(t *testing.T) {
	if !mounttest.Inside(t) {
		return
	}
	c := testConfig(filepath.Join(t.TempDir(), "disk", "buffer"))
	c.Evict, c.Cap = []string{"vitals", "alarm"}, 1<<30
	mounttest.Mount(t, filepath.Dir(c.Dir), "4m")
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, c)
	reports := uint64(0)
	b.c.Report = func() error {
		reports++
		return b.Append([]Item{itemOf(1, 2, reports, 3000)})
	}
	mustAppend(t, b, itemOf(1, 0, 0, 9000))
	const batches = 600 // 5.4 MB
	for n := range uint64(batches) {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
	}
	held, lost, evicted, upper := ledger(b, 1)
	if held+lost != batches || evicted != lost || lost == 0 || upper || reports == 0 {
		t.Fatalf("%d held, %d lost (%d evicted, %t) of %d; %d reports", held, lost, evicted, upper, batches, reports)
	}
	if held, _, _, _ := ledger(b, 0); held != 1 {
		t.Fatal("the alarm is gone")
	}
}

// TestARoomThatOthersTake: when what was deleted on a full disk is room for others, it is not done again and again.
func TestARoomThatOthersTake(t *testing.T) {
	failDisk(t)
	b := mustOpen(t, evicting(t, 60))
	n := uint64(0)
	for ; len(b.lanes[1].segs) < 20; n++ {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
	}
	disk.create = func(path string, size int64, h header) (*segment.File, error) { return nil, syscall.ENOSPC }
	refused := func() {
		t.Helper()
		for range 40 {
			if err := b.Append([]Item{itemOf(1, 1, n, 9000)}); err != nil {
				if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				n++
				return
			}
			n++
		}
		t.Fatal("there is no end of room")
	}
	files := func() int { return len(b.lanes[1].segs) }
	refused()
	after := files()
	if after < 15 {
		t.Fatalf("%d of 20 files are left", after)
	}
	for range 50 { // sources that try again at once
		refused()
	}
	if files() != after {
		t.Fatalf("%d files, then %d: deleted within the rest", after, files())
	}
	rest := b.rest
	b.mu.Lock()
	b.noEvict = time.Now()
	b.mu.Unlock()
	refused()
	if b.rest != 2*rest || rest != eatenFirst || files() < after-4 || files() == after {
		t.Fatalf("rests for %s, then for %s; %d files, then %d", rest, b.rest, after, files())
	}
	for range 20 {
		b.mu.Lock()
		b.noEvict = time.Now()
		b.mu.Unlock()
		refused()
	}
	if b.rest > eatenMost {
		t.Fatalf("rests for %s", b.rest)
	}
	disk.create = createSegment
	b.mu.Lock()
	b.noEvict = time.Now()
	b.mu.Unlock()
	mustAppend(t, b, itemOf(1, 1, n, 9000))
	if b.rest != 0 || b.eaten {
		t.Error("room was found, and it is still not trusted")
	}
}

// TestNothingGoesForTooLittle: on a disk that others fill, what is there is not deleted when it would not be enough.
func TestNothingGoesForTooLittle(t *testing.T) {
	failDisk(t)
	c := evicting(t, 30)
	b := mustOpen(t, c)
	mustAppend(t, b, itemOf(1, 1, 0, 9000))
	if err := b.Close(); err != nil { // its file is cut to what it holds, far less than a segment
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	disk.create = func(path string, size int64, h header) (*segment.File, error) { return nil, syscall.ENOSPC }
	for n := range uint64(10) {
		if err := b.Append([]Item{itemOf(2, 1, n, 9000)}); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	if held, lost, _, _ := ledger(b, 1); held != 1 || lost != 0 {
		t.Fatalf("%d held, %d lost", held, lost)
	}
}
