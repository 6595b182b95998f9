package translog

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wardlink/audit"
)

func TestDrain(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	j.forget = true
	l, stop := start(t, cfg)
	waitFor(t, l, j.append(t, 1))
	waitFor(t, l, j.append(t, 700))
	last := j.append(t, 400)
	stop() // drains what was not waited for
	// All of it forgotten by the journal: the list below must come from the log alone.
	report := verify(t, dir, last)
	if report.Events == 0 || report.Windows < 2 || report.Rows+report.Events != last || report.Detailed != report.Rows {
		t.Errorf("report: %+v", report)
	}
	if report.Unpublished != 0 || report.Pending != 0 || report.Strays != 0 {
		t.Errorf("after a drain nothing may be left over: %+v", report)
	}
	if got := l.Stats(); got.Size != report.Size || got.Published != report.Size || got.JournalSeq != last || got.Signed != last {
		t.Errorf("stats: %+v; expected size %d and journal %d", got, report.Size, last)
	}
	if j.Cursor("log") != last {
		t.Errorf("cursor %d; expected %d", j.Cursor("log"), last)
	}
	noCanary(t, dir)
}

// noCanary demands that no byte of a frame is in any file of the log.
func noCanary(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(canary)) {
			t.Errorf("%s holds bytes of a frame", path)
		}
		files++
		return err
	})
	if err != nil || files < 6 {
		t.Errorf("scan of %d files: %v", files, err)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	var last uint64
	for range 3 {
		l, stop := start(t, cfg)
		waitFor(t, l, last) // nothing new: known from the mark at once
		last = j.append(t, 50)
		stop()
	}
	verify(t, dir, last)
}

func TestSeveralWindows(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	last := j.append(t, 3*audit.MaxWindowRows)
	l, stop := start(t, cfg)
	waitFor(t, l, last)
	stop()
	if report := verify(t, dir, last); report.Windows < 2 {
		t.Errorf("%d windows over %d rows", report.Windows, report.Rows)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir, j := filepath.Join(base, "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	if _, err := Open(cfg); !errors.Is(err, ErrMissing) {
		t.Errorf("Open of nothing: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open made a directory: %v", err)
	}
	create(t, cfg)
	if err := Create(cfg); !errors.Is(err, ErrExists) {
		t.Errorf("second Create: %v", err)
	}
	l := open(t, cfg)
	if _, err := Open(cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("second writer: %v", err)
	}
	if err := Create(cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("Create over a running log: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	other := cfg
	other.Origin = "other.example/log/1"
	if _, err := Open(other); err == nil {
		t.Error("Open with a key of another origin")
	}
	open(t, cfg).Close()
}

func TestWaitForEnds(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, filepath.Join(t.TempDir(), "log"), newFakeJournal())
	create(t, cfg)
	l, stop := start(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.WaitFor(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitFor: %v", err)
	}
	stop()
	if err := l.WaitFor(context.Background(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("WaitFor: %v", err)
	}
}

func TestUnreadableEntryIsLogged(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	last := j.append(t, 20)
	j.mu.Lock()
	j.entries[3].Head = []byte{0xff}      // a publish, position 4
	j.entries[6].ID = entryID(99)         // a publish whose head names another id, position 7
	j.entries[9].Kind = 9                 // position 10
	j.entries[0].Head = j.entries[4].Head // position 1 is a publish with an event's head
	j.mu.Unlock()
	l, stop := start(t, cfg)
	waitFor(t, l, last)
	stop()
	n := 0
	for it, err := range audit.List(dir, audit.Filter{Type: audit.EntryUnreadable}) {
		if err != nil {
			t.Fatal(err)
		}
		if it.Event.Detail["journal"] == "" || len(it.Event.Detail["head_sha256"]) != 64 {
			t.Errorf("event %+v", it.Event)
		}
		n++
	}
	if n != 4 {
		t.Errorf("%d unreadable entries logged; expected 4", n)
	}
	_, vkey := testKey()
	if report, err := audit.Verify(dir, vkey); err != nil || report.Rows+report.Events != last {
		t.Errorf("Verify: %+v, %v", report, err)
	}
}

func TestLag(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	cfg.Now = func() time.Time { return time.UnixMilli(firstTime + 1000 + 1500) }
	create(t, cfg)
	l, stop := start(t, cfg)
	waitFor(t, l, j.append(t, 1))
	stop()
	if lag := l.Stats().Lag; lag != 1500*time.Millisecond {
		t.Errorf("lag %v; expected 1.5 s", lag)
	}
}

// TestVerifyWhileWriting: the verifier, the listing and the proofs read beside the writer.
func TestVerifyWhileWriting(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	cfg.Now = func() time.Time { return time.UnixMilli(firstTime) }
	create(t, cfg)
	l, stop := start(t, cfg)
	_, vkey := testKey()
	var last uint64
	for sizes := map[uint64]bool{}; len(sizes) < 4; {
		last = j.append(t, 40)
		r, err := audit.Verify(dir, vkey)
		if err != nil {
			t.Fatalf("at %d leaves: %v", r.Size, err)
		}
		sizes[r.Size] = true
		for _, err := range audit.List(dir, audit.Filter{Publishes: true, Newest: true}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if r.Rows > 0 {
			q := audit.Query{Gateway: "gw-1", Lane: 1, Number: 1}
			if _, err := audit.Prove(dir, vkey, q); err != nil && (r.Size > 0 || !errors.Is(err, audit.ErrNotLogged)) {
				t.Fatal(err)
			}
		}
	}
	waitFor(t, l, last)
	stop()
	verify(t, dir, last)
}
