package journal

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/buffer/segment"
)

func TestCreateAndOpenAreDifferent(t *testing.T) {
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	if _, err := Open(c); !errors.Is(err, ErrMissing) {
		t.Fatalf("open of nothing: %v; want ErrMissing", err)
	}
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	if err := Create(c); !errors.Is(err, ErrExists) {
		t.Fatalf("second create: %v; want ErrExists", err)
	}
	j := mustOpen(t, c)
	if _, err := Open(c); !errors.Is(err, ErrLocked) {
		t.Fatalf("second open: %v; want ErrLocked", err)
	}
	if _, err := Check(c.Dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("check of an open journal: %v; want ErrLocked", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(context.Background(), entryOf(j, "late", 0)); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after close: %v; want ErrClosed", err)
	}
	if err := j.Wait(context.Background(), 0); !errors.Is(err, ErrClosed) {
		t.Fatalf("wait after close: %v; want ErrClosed", err)
	}
}

func TestFilesGoWhenAllHavePassedAndTimeIsOver(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	c.Now = func() time.Time { return now }
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, c)
	for range 20 {
		if err := j.Append(context.Background(), entryOf(j, "x", 200_000)); err != nil {
			t.Fatal(err)
		}
	}
	files := func() int {
		names, err := filepath.Glob(filepath.Join(c.Dir, "*.seg"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := files()
	if before < 5 {
		t.Fatalf("only %d files", before)
	}
	step := func(consumer string, seq uint64, want int) {
		t.Helper()
		if err := j.SetCursor(consumer, seq); err != nil {
			t.Fatal(err)
		}
		for _, f := range j.Expired(now) {
			if err := j.Dispose(context.Background(), f, now.Add(-7*24*time.Hour)); err != nil {
				t.Fatal(err)
			}
			if err := j.Dispose(context.Background(), f, now); err == nil {
				t.Fatal("a file was disposed of twice")
			}
		}
		if got := files(); got != want {
			t.Fatalf("%d files; want %d", got, want)
		}
	}
	step("log", 20, before) // records has not passed
	now = now.Add(8 * 24 * time.Hour)
	step("records", 0, before)
	step("records", 19, 1)
	events := 0
	for _, e := range readAll(t, j, 1) {
		if e.Seq <= 20 {
			continue
		}
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil || ev.Type != audit.RecordsDisposed || ev.Target != "journal" || ev.Detail["first_entry"] == "" || ev.Reason != "retention" {
			t.Fatalf("%+v %v", ev, err)
		}
		events++
	}
	if events != before-1 {
		t.Fatalf("%d events of %d files", events, before-1)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, c)
	if err := j.Append(context.Background(), entryOf(j, "next", 0)); err != nil {
		t.Fatal(err)
	}
	last := uint64(20 + events + 1)
	if got := readAll(t, j, last); len(got) != 1 || got[0].Seq != last {
		t.Fatalf("after the restart %v", got)
	}
}

// A file is as old as its neighbours say, not as a clock that was wrong for a while.
func TestAWrongClockMakesNoFileOld(t *testing.T) {
	sound := time.Unix(1_800_000_000, 0)
	now := sound
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	c.Now = func() time.Time { return now }
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, c)
	put := func(n int) {
		t.Helper()
		for range n {
			if err := j.Append(context.Background(), entryOf(j, "x", 200_000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(10)
	now = time.Unix(100, 0) // the clock's battery is dead
	put(10)
	now = sound.Add(20 * 365 * 24 * time.Hour) // and somebody set it wrong
	put(10)
	now = sound.Add(time.Hour)
	put(10)
	for _, consumer := range []string{"log", "records"} {
		if err := j.SetCursor(consumer, 39); err != nil {
			t.Fatal(err)
		}
	}
	if got := j.Expired(now); len(got) != 0 {
		t.Errorf("an hour later %d files are over: %+v", len(got), got)
	}
	all := j.Stats().Segments
	if got := j.Expired(sound.Add(8 * 24 * time.Hour)); len(got) != all-1 {
		t.Errorf("eight days later %d of %d files are over", len(got), all)
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
		n, err := strconv.Atoi(fd.Name())
		target, lerr := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err != nil || lerr != nil || target != path || n == int(reader.Fd()) {
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

func newest(t *testing.T, j *Journal) string {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segs[len(j.segs)-1].path
}

func TestFailedCommitBeginsAnewWithoutAHole(t *testing.T) {
	ctx := context.Background()
	c, j := fresh(t)
	for _, text := range []string{"one", "two"} {
		if err := j.Append(ctx, entryOf(j, text, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for round, path := range []string{newest(t, j), ""} {
		if path == "" {
			path = newest(t, j) // a segment that has just begun: its first commit may fail as well
		}
		breakFile(t, path)
		// One entry: two could fall into two groups, of which the second succeeds in the new segment.
		if err := j.Append(ctx, entryOf(j, "failed", 100)); err == nil {
			t.Fatal("nil although the write failed")
		}
		if got := j.Stats(); got.Committed != uint64(2+round) || got.CommitFailures == 0 {
			t.Fatalf("after the failure %+v", got)
		}
		if err := j.Append(ctx, entryOf(j, "after", 100)); err != nil {
			t.Fatalf("after the failed commit: %v", err)
		}
	}
	check := func(j *Journal) {
		t.Helper()
		all := readAll(t, j, 1)
		if len(all) != 4 {
			t.Fatalf("read %d entries of 4", len(all))
		}
		for i, text := range []string{"one", "two", "after", "after"} {
			if string(all[i].Head) != text || all[i].Seq != uint64(i+1) {
				t.Fatalf("entry %d is %q", all[i].Seq, all[i].Head)
			}
		}
	}
	check(j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	check(mustOpen(t, c))
}

// TestUncertainCommitIsVoid makes the file that a failed commit leaves when it did reach the disk: the next segment begins with the
// same number, and what the former one holds from there on does not count.
func TestUncertainCommitIsVoid(t *testing.T) {
	ctx := context.Background()
	c, j := fresh(t)
	for range 3 {
		if err := j.Append(ctx, entryOf(j, "before", 10)); err != nil {
			t.Fatal(err)
		}
	}
	j.mu.Lock()
	j.committed, j.segs[0].last = 2, 2 // as if the third commit's flush had failed
	j.mu.Unlock()
	j.finish()
	if err := j.Append(ctx, entryOf(j, "after", 10)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		all := readAll(t, j, 1)
		if len(all) != 3 || string(all[2].Head) != "after" || all[2].Seq != 3 {
			t.Fatalf("read %d entries, the last %q", len(all), all[len(all)-1].Head)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		// Without its summary the file is read whole at the next start, the void commit included.
		if err := os.Truncate(filepath.Join(c.Dir, fileName(1)), usedOf(t, filepath.Join(c.Dir, fileName(1)))); err != nil {
			t.Fatal(err)
		}
		j = mustOpen(t, c)
	}
}

func usedOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := segment.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Used
}

func TestDamagedCommitCostsOnlyItself(t *testing.T) {
	ctx := context.Background()
	c, j := fresh(t)
	for i := range 30 {
		if err := j.Append(ctx, entryOf(j, "entry "+strconv.Itoa(i), 5000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.Dir, fileName(1))
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, []byte("entry 17"))
	raw[at] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Check(c.Dir); err != nil || len(r.Findings) != 1 {
		t.Fatalf("check: %+v, %v; want one finding", r, err)
	}
	k, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	all := readAll(t, k, 1)
	if len(all) != 29 || all[17].Seq != 19 {
		t.Fatalf("read %d entries of 29", len(all))
	}
	// Now the structure: the whole file is set aside, and numbers are not used again.
	clear(raw[2*segment.PageSize : 6*segment.PageSize])
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	k, err = Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, k, 1); len(got) != 0 || len(k.Stats().Damaged) != 1 {
		t.Fatalf("read %d entries of a broken file; set aside %v", len(got), k.Stats().Damaged)
	}
	if err := k.Append(ctx, entryOf(k, "goes on", 10)); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, k, 1); len(got) != 1 || got[0].Seq <= 30 {
		t.Fatalf("the next entry is %v", got)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(uint64(1), []byte{})
	f.Add(uint64(9), pack(nil, 9, []Entry{{ID: audit.EventID{1}, Kind: KindEvent, Head: []byte("h")}, {Kind: KindPublish, Head: []byte("h"), Blob: []byte("b")}}))
	f.Add(uint64(8), pack(nil, 9, []Entry{{Kind: KindEvent, Head: []byte("h")}}))
	f.Fuzz(func(t *testing.T, first uint64, raw []byte) {
		var got []Entry
		count, err := unpack(first, raw, func(e Entry) bool { got = append(got, e); return true })
		if err == nil && (count != uint64(len(got)) || !bytes.Equal(pack(nil, first, got), raw)) {
			t.Fatal("another encoding of the same commit was accepted")
		}
	})
}

func FuzzParseCursors(f *testing.F) {
	f.Add([]byte{})
	f.Add(cursors{start: 5, seqs: map[string]uint64{"log": 3}}.encode([]string{"log", "records"}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := parseCursors(raw); err == nil && len(c.seqs) > 255 {
			t.Fatal("too many cursors")
		}
		if s, err := parseSummary(raw); err == nil && !bytes.Equal(s.encode(), raw) {
			t.Fatal("another encoding of the same summary was accepted")
		}
	})
}
