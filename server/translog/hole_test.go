package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

// holes are the ranges that the log in dir says cannot be read, as "first-last", in its order.
func holes(t *testing.T, dir string) (found []string) {
	t.Helper()
	for it, err := range audit.List(dir, audit.Filter{Type: audit.EntryUnreadable}) {
		if err != nil {
			t.Fatal(err)
		}
		d := it.Event.Detail
		found = append(found, d["first"]+"-"+d["last"])
		first, err1 := strconv.ParseUint(d["first"], 10, 64)
		last, err2 := strconv.ParseUint(d["last"], 10, 64)
		if err1 != nil || err2 != nil || it.Event.Count != last-first+1 || it.Event.Reason != fmt.Sprintf("journal entries %d..%d unreadable", first, last) {
			t.Errorf("event of a hole: %+v", it.Event)
		}
	}
	return found
}

// cut takes the entries first to last out of the journal, as damage does.
func (j *fakeJournal) cut(first, last uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = slices.DeleteFunc(j.entries, func(e journal.Entry) bool { return first <= e.Seq && e.Seq <= last })
	j.lost += last - first + 1
}

// TestFailedPassLeavesNoFiles lets one pass fail behind its window files, with more publishes before the repeat, which therefore
// cuts its window elsewhere. At no time afterwards may a file of the failed pass lie there.
func TestFailedPassLeavesNoFiles(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	last := j.append(t, 12)
	l := open(t, cfg)
	failAt(l, "add")
	if err := turn(t, l); !errors.Is(err, errStep) {
		t.Fatal(err)
	}
	last = j.append(t, int(30-last))
	last = runUntil(t, l, func() uint64 { return last })
	if r := verify(t, dir, last); r.Pending != 0 || r.Strays != 0 {
		t.Errorf("files of the failed pass are left over: %+v", r)
	}
}

// TestEndedPassKeepsFiles: a pass that was broken off by the end of its context may still reach the log, so its window's files stay.
func TestEndedPassKeepsFiles(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	j.append(t, 4)
	l := open(t, cfg)
	defer l.Close()
	failAt(l, "add")
	if err := turn(t, l); !errors.Is(err, errStep) {
		t.Fatal(err)
	}
	j.append(t, 8) // a repeat would cut the window elsewhere
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.turn(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("turn after the end: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, audit.WindowFile(1, 4, audit.RowsSuffix))); err != nil {
		t.Errorf("window file after the end: %v", err)
	}
}

// TestHoleIsLogged: a hole in the journal costs its own entries, once, and nothing else; also one before the first entry, and also
// when the writer dies after its leaf reached the log.
func TestHoleIsLogged(t *testing.T) {
	for _, step := range []string{"none", "add", "mark", "cursor"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
			cfg := testConfig(t, dir, j)
			create(t, cfg)
			last := j.append(t, 40)
			j.cut(1, 2)
			j.cut(12, 14) // amid publishes: 11, 16, 17 are rows
			if step != "none" {
				l := open(t, cfg)
				failAt(l, step)
				if err := turn(t, l); !errors.Is(err, errStep) {
					t.Fatal(err)
				}
				l.Close()
			}
			l, stop := start(t, cfg)
			waitFor(t, l, last)
			last = j.append(t, 10)
			waitFor(t, l, last)
			stop()
			if got := holes(t, dir); !slices.Equal(got, []string{"1-2", "12-14"}) {
				t.Errorf("holes in the log: %v", got)
			}
			_, vkey := testKey()
			r, err := audit.Verify(dir, vkey)
			if err != nil || r.Events+r.Rows != last-5+2 {
				t.Errorf("Verify: %+v, %v", r, err)
			}
		})
	}
}

// TestUnsoundHole: what the log holds past its mark must still be in the journal, and numbers never go back.
func TestUnsoundHole(t *testing.T) {
	for name, change := range map[string]func(j *fakeJournal){
		"in a logged window": func(j *fakeJournal) { j.cut(7, 7) },
		"of a logged event":  func(j *fakeJournal) { j.cut(5, 5) },
		"going back":         func(j *fakeJournal) { j.entries[9] = j.entries[3] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
			cfg := testConfig(t, dir, j)
			create(t, cfg)
			j.append(t, 20)
			l := open(t, cfg)
			failAt(l, "mark")
			if err := turn(t, l); !errors.Is(err, errStep) {
				t.Fatal(err)
			}
			l.Close()
			change(j)
			if err := runBriefly(t, open(t, cfg)); !errors.Is(err, ErrUnsound) {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

// TestHoleAtTheMark: the entries up to the mark were damaged after they were logged and before the cursor moved.
func TestHoleAtTheMark(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	j.append(t, 20)
	l := open(t, cfg)
	failAt(l, "cursor")
	if err := turn(t, l); !errors.Is(err, errStep) {
		t.Fatal(err)
	}
	l.Close()
	j.cut(18, 20)
	l, stop := start(t, cfg)
	last := j.append(t, 5)
	waitFor(t, l, last)
	stop()
	if got := holes(t, dir); len(got) != 0 {
		t.Errorf("what was logged is called unreadable: %v", got)
	}
	verify(t, dir, last)
}

// TestDamagedJournalCommit changes a commit of the real journal that was not logged yet: the log tells which entries are
// gone and holds all others, now and after a restart.
func TestDamagedJournalCommit(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	jc := journal.Config{Dir: filepath.Join(base, "journal"), Node: 7, Consumers: []string{consumer}}
	if err := journal.Create(jc); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "log")
	create(t, testConfig(t, dir, nil))
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for round := range 3 {
		j, err := journal.Open(jc)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 10 {
			ev := audit.Event{Type: audit.ServerStarted, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success, Reason: fmt.Sprintf("act %d of start %d", n, round)}
			if err := journal.AppendEvent(ctx, j, ev); err != nil {
				t.Fatal(err)
			}
		}
		if round == 0 { // the log is not running yet
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			flip(t, jc.Dir, "act 4 of start 0")
			continue
		}
		l, stop := start(t, testConfig(t, dir, j))
		waitFor(t, l, uint64(10*(round+1)))
		stop()
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := holes(t, dir); !slices.Equal(got, []string{"5-5"}) {
		t.Errorf("holes in the log: %v", got)
	}
	_, vkey := testKey()
	if r, err := audit.Verify(dir, vkey); err != nil || r.Events != 30 {
		t.Errorf("Verify: %+v, %v", r, err)
	}
}

// flip changes the text, wherever a segment in dir holds it.
func flip(t *testing.T, dir, text string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// Small values lie in pages that bbolt copies: a former copy may still be there.
		changed := bytes.ReplaceAll(raw, []byte(text), []byte(strings.ToUpper(text)))
		if !bytes.Equal(changed, raw) {
			put(t, path, changed)
			found = true
		}
	}
	if !found {
		t.Fatalf("%s is in no segment", text)
	}
}
