package buffer

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/buffer/segment"
)

func TestCreateAndOpenAreDifferent(t *testing.T) {
	c := testConfig(filepath.Join(t.TempDir(), "buffer"))
	if _, err := open(c); !errors.Is(err, ErrMissing) {
		t.Fatalf("open of nothing: %v; want ErrMissing", err)
	}
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	if err := Create(c); !errors.Is(err, ErrExists) {
		t.Fatalf("second create: %v; want ErrExists", err)
	}
	b := mustOpen(t, c)
	if _, err := Open(c); !errors.Is(err, ErrLocked) {
		t.Fatalf("second open: %v; want ErrLocked", err)
	}
	if _, err := Check(c.Dir, verifyFrame); !errors.Is(err, ErrLocked) {
		t.Fatalf("check of an open buffer: %v; want ErrLocked", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	other := c
	other.Lanes = []string{"alarm", "self", "vitals"}
	if _, err := open(other); err == nil || !strings.Contains(err.Error(), "lanes are fixed") {
		t.Fatalf("open with other lanes: %v", err)
	}
	if err := b.Append([]Item{itemOf(1, 0, 0, 10)}); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after close: %v; want ErrClosed", err)
	}
}

func TestInvalidItems(t *testing.T) {
	_, b := fresh(t)
	if err := b.Append([]Item{itemOf(1, 1, 5, 10)}); err != nil {
		t.Fatal(err)
	}
	bad := map[string]Item{
		"number again":    itemOf(1, 1, 5, 10),
		"lower number":    itemOf(1, 1, 4, 10),
		"unknown lane":    itemOf(1, 3, 0, 10),
		"too large":       itemOf(1, 1, 6, 200_000),
		"no frame":        {ID: ID{Lane: 1, Number: 6}, Record: []byte("r")},
		"no record":       {ID: ID{Lane: 1, Number: 6}, Frame: []byte("f")},
		"the last number": itemOf(1, 1, ^uint64(0), 10),
	}
	for name, it := range bad {
		if err := b.Append([]Item{itemOf(9, 0, uint64(len(name)), 10), it}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v; want ErrInvalid", name, err)
		}
	}
	if err := b.Append([]Item{itemOf(1, 1, 6, 10), itemOf(1, 1, 6, 10)}); !errors.Is(err, ErrInvalid) {
		t.Errorf("one number twice in one call: %v", err)
	}
}

// realDisk is what all files of the directory occupy.
func realDisk(t *testing.T, dir string) (total int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, err := segment.DiskBytes(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}

func TestFullThenAckThenAppend(t *testing.T) {
	c := testConfig(filepath.Join(t.TempDir(), "buffer"))
	c.Cap = 5*minSegment + overhead
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, c)
	number := uint64(0)
	fill := func() (appended uint64) {
		t.Helper()
		for {
			err := b.Append([]Item{itemOf(1, 1, number, 9000)})
			number++
			if errors.Is(err, ErrFull) {
				return appended
			}
			if err != nil {
				t.Fatal(err)
			}
			appended++
			if disk := realDisk(t, c.Dir); disk > c.Cap || b.Stats().Disk > c.Cap {
				t.Fatalf("%d bytes on disk, %d by own account, cap %d", disk, b.Stats().Disk, c.Cap)
			}
			if appended > 10_000 {
				t.Fatal("the cap never holds")
			}
		}
	}
	first := fill()
	if got := uint64(len(takeAll(t, b))); got != first {
		t.Fatalf("appended %d, took %d: something was dropped", first, got)
	}
	if n := fill(); n != 0 {
		t.Fatalf("appended %d more to a full buffer", n)
	}
	for n := range first {
		b.Ack(ID{Epoch: epochOf(1), Lane: 1, Number: n})
	}
	if n := fill(); n < first/2 {
		t.Fatalf("after all was acknowledged only %d batches found room", n)
	}
	if w := b.Stats().Lanes[1].Waiting; w == 0 {
		t.Fatal("nothing waits")
	}
}

func TestKnownNeedsEveryLane(t *testing.T) {
	c, b := fresh(t)
	digest := sha256.Sum256([]byte("a message for two lanes"))
	put := func(lane uint8, number uint64, n uint32) {
		t.Helper()
		it := itemOf(1, lane, number, 100)
		it.Seen = []Seen{{Digest: digest, Copy: n, Mask: 0b011}}
		if err := b.Append([]Item{it}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(copies uint32, known bool) {
		t.Helper()
		if n, k := b.Known(digest); n != copies || k != known {
			t.Fatalf("known: %d, %v; want %d, %v", n, k, copies, known)
		}
	}
	want(0, false)
	put(1, 0, 0) // only one lane committed
	want(0, false)
	put(0, 0, 0)
	want(0, true)
	put(0, 1, 1) // the copy is half there: the former one counts
	want(0, true)
	put(1, 1, 1)
	want(1, true)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	want(1, true)
	b = mustOpen(t, testConfigOf(c, copyDirClosed(t, b, c.Dir)))
	want(1, true)
	if _, known := b.Known(sha256.Sum256([]byte("never seen"))); known {
		t.Fatal("an unseen message is known")
	}
}

func idsOf(batches []Batch) (ids []string) {
	for _, b := range batches {
		ids = append(ids, b.ID.String())
	}
	return ids
}

func testConfigOf(c Config, dir string) Config { c.Dir = dir; return c }

func copyDirClosed(t *testing.T, b *Buffer, dir string) string {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return copyDir(t, dir)
}

func TestReleaseAndPark(t *testing.T) {
	c, b := fresh(t)
	for n := range uint64(5) {
		if err := b.Append([]Item{itemOf(1, 1, n, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := b.Take(3)
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	b.Release(got[0].ID, got[2].ID)
	b.Ack(ID{Epoch: epochOf(1), Lane: 1, Number: 4}) // never given out: ignored
	next := takeAll(t, b)
	if len(next) != 4 || next[0].ID.Number != 0 || next[1].ID.Number != 2 || next[2].ID.Number != 3 || next[3].ID.Number != 4 {
		t.Fatalf("took %s", idsOf(next))
	}
	b.Park(got[1].ID, strings.Repeat("refused ", 100))
	b.Release(next[0].ID)
	b.Ack(next[0].ID) // its acknowledgement came after all
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if r := mustCheck(t, c.Dir); r.Lanes[1].Parked != 1 || r.Lanes[1].Acked != 1 {
		t.Fatalf("%+v", r.Lanes[1])
	}
	b = mustOpen(t, c)
	if st := b.Stats().Lanes[1]; st.Parked != 1 || st.Waiting != 4 {
		t.Fatalf("after the restart %+v", st)
	}
	if again := takeAll(t, b); len(again) != 3 || again[0].ID.Number != 2 {
		t.Fatalf("after the restart took %s", idsOf(again))
	}
}

// TestStateTorn tears the newer acknowledgement file at every byte: Open never fails, and at most the last flush is forgotten.
func TestStateTorn(t *testing.T) {
	c, b := fresh(t)
	for n := range uint64(4) {
		if err := b.Append([]Item{itemOf(1, 1, n, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	all := takeAll(t, b)
	for _, g := range all[:2] {
		b.Ack(g.ID)
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	base := copyDir(t, c.Dir)
	newer := filepath.Join(base, stateName+".b")
	raw, err := os.ReadFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(raw) {
		if err := os.WriteFile(newer, raw[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := open(testConfigOf(c, base))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if got := takeAll(t, b); len(got) != 3 {
			t.Fatalf("cut at %d: %d batches wait; want those after the first", cut, len(got))
		}
		// Not Close: it would write the state.
		close(b.stop)
		b.keeper.Wait()
		b.lock.Close()
	}
	// Both gone: everything is given out again, and the files are kept for whoever asks why.
	for _, name := range []string{".a", ".b"} {
		if err := os.WriteFile(filepath.Join(base, stateName+name), []byte("noise"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err = open(testConfigOf(c, base))
	if err != nil {
		t.Fatal(err)
	}
	if got := takeAll(t, b); len(got) != 4 || len(b.Stats().Damaged) != 2 {
		t.Fatalf("both torn: %d batches, set aside %v", len(got), b.Stats().Damaged)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// breakFile makes every later write through this process's open descriptors of path fail with EBADF, as a disk that went read-only.
func breakFile(t *testing.T, path string) {
	t.Helper()
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	broken := 0
	for _, fd := range fds {
		var n int
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err != nil || target != path {
			continue
		}
		for _, digit := range fd.Name() {
			n = n*10 + int(digit-'0')
		}
		if n == int(reader.Fd()) {
			continue
		}
		if err := syscall.Dup3(int(reader.Fd()), n, syscall.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		broken++
	}
	if broken == 0 {
		t.Fatalf("no descriptor of %s is open", path)
	}
}

func TestFailedCommitClosesTheSegment(t *testing.T) {
	c, b := fresh(t)
	if err := b.Append([]Item{itemOf(1, 1, 0, 500), itemOf(1, 0, 0, 500)}); err != nil {
		t.Fatal(err)
	}
	broken := b.lanes[1].current.path
	breakFile(t, broken)
	err := b.Append([]Item{itemOf(1, 1, 1, 500), itemOf(1, 0, 1, 500)})
	if err == nil {
		t.Fatal("nil although one lane's write failed")
	}
	if _, known := b.Known(itemOf(1, 1, 1, 500).Seen[0].Digest); known {
		t.Fatal("a batch whose write failed is known")
	}
	// The number is spent; the next one goes into a new file.
	if err := b.Append([]Item{itemOf(1, 1, 1, 500)}); !errors.Is(err, ErrInvalid) {
		t.Fatalf("the failed number again: %v; want ErrInvalid", err)
	}
	if err := b.Append([]Item{itemOf(1, 1, 2, 500)}); err != nil {
		t.Fatal(err)
	}
	if now := b.lanes[1].current; now.path == broken || now.header.doubt != 1 || now.header.batches != 1 {
		t.Fatalf("wrote on in %s with header %+v", now.path, now.header)
	}
	got := takeAll(t, b)
	if len(got) != 4 || got[2].ID.Number != 0 || got[3].ID.Number != 2 {
		t.Fatalf("took %s", idsOf(got))
	}
	if st := b.Stats(); len(st.Damaged) != 0 {
		t.Fatalf("a whole file was set aside: %v", st.Damaged)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	if got := takeAll(t, b); len(got) != 4 {
		t.Fatalf("after the restart took %d of 4", len(got))
	}
}

// TestAcksAreDurableAfterASecond: nobody calls Flush, and a crash a second later forgets nothing.
func TestAcksAreDurableAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(filepath.Join(t.TempDir(), "buffer"))
		if err := Create(c); err != nil {
			t.Fatal(err)
		}
		b, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Append([]Item{itemOf(1, 1, 0, 100), itemOf(1, 1, 1, 100)}); err != nil {
			t.Fatal(err)
		}
		b.Ack(takeAll(t, b)[0].ID)
		synctest.Wait()
		time.Sleep(ackDelay + time.Millisecond) // the bubble's clock
		synctest.Wait()
		crash, err := open(testConfigOf(c, copyDir(t, c.Dir)))
		if err != nil {
			t.Fatal(err)
		}
		if got := takeAll(t, crash); len(got) != 1 || got[0].ID.Number != 1 {
			t.Fatalf("after the crash took %s", idsOf(got))
		}
		if err := errors.Join(crash.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestKeep(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := testConfig(filepath.Join(t.TempDir(), "buffer"))
	var elapsed time.Duration
	c.Now, c.Elapsed = func() time.Time { return now }, func() time.Duration { return elapsed }
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, c)
	for n := uint64(0); len(b.lanes[1].segs) < 3; n++ {
		if err := b.Append([]Item{itemOf(1, 1, n, 9000)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range takeAll(t, b) {
		b.Ack(g.ID)
	}
	expire := func(want int) {
		t.Helper()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.expire()
		if got := len(b.lanes[1].segs); got != want {
			t.Fatalf("%d segments are kept; want %d", got, want)
		}
	}
	elapsed += 70 * time.Hour
	expire(3)
	for _, year := range []int{1970, 2036} { // where a wall clock stands, and where a start finds it, deletes nothing
		now = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		expire(3)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = mustOpen(t, c)
		expire(3)
	}
	elapsed += 3 * time.Hour
	expire(1) // which Close finished, 70 hours after the others
	elapsed += 70 * time.Hour
	expire(0)
	batches := b.lanes[1].batches
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	if b.lanes[1].batches != batches {
		t.Fatalf("the lane counts %d batches after the restart; want %d", b.lanes[1].batches, batches)
	}
}
