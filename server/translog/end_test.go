package translog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/audit"
)

// ended makes a log of 40 entries of a journal, which nobody writes any more: its passes ended at an event (20), a publish (24) and the last.
func ended(t *testing.T, j *fakeJournal) Config {
	t.Helper()
	cfg := testConfig(t, filepath.Join(t.TempDir(), "log"), j)
	create(t, cfg)
	l := open(t, cfg)
	for _, n := range []int{20, 4, 16} {
		j.append(t, n)
		if err := turn(t, l); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// successor begins a log behind an end, with a first leaf that no journal holds, and logs what the journal has behind it.
func successor(t *testing.T, j *fakeJournal, end End) (dir, vkey string) {
	t.Helper()
	origin := "ward.example/log/2"
	skey, vkey, err := NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := audit.EncodeEvent(audit.Event{ID: entryID(1 << 40), Type: audit.LogSucceeded, Time: firstTime, Actor: audit.Actor{ID: "server"}, Target: testOrigin, Outcome: audit.Success})
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, filepath.Join(t.TempDir(), "log"), j)
	cfg.Origin, cfg.Signer, cfg.Begin, cfg.Entry, cfg.First = origin, signer(t, skey), end.Begin, end.Entry, leaf
	create(t, cfg)
	if _, cp, err := audit.ReadCheckpoint(cfg.Dir, vkey); err != nil || cp.Size != 1 {
		t.Fatalf("checkpoint of a log with a first leaf: %+v, %v", cp, err)
	}
	l, stop := start(t, cfg)
	waitFor(t, l, j.end())
	stop()
	return cfg.Dir, vkey
}

// holdsOnce asserts that a log is whole and holds its first leaf and then the journal's entries from first on, each once.
func holdsOnce(t *testing.T, j *fakeJournal, dir, vkey string, first uint64) {
	t.Helper()
	if _, err := audit.Verify(dir, vkey); err != nil {
		t.Fatal(err)
	}
	times := timesInLog(t, dir)
	n := 0
	for _, e := range j.entries {
		if e.Seq < first {
			continue
		}
		n++
		if times[e.ID] != 1 {
			t.Errorf("journal entry %d is %d times in the successor", e.Seq, times[e.ID])
		}
	}
	if len(times) != n+1 {
		t.Errorf("the successor holds %d acts; expected %d behind its first leaf", len(times), n)
	}
}

// TestEnd: a successor takes what its log has not, whether log and journal are of one moment or the one or the other went back; and a journal
// that was never this log's is refused.
func TestEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		back  func(t *testing.T, j *fakeJournal)
		begin uint64
		apart string
		wrong string
	}{
		"of one moment":          {func(*testing.T, *fakeJournal) {}, 40, "", ""},
		"of one moment, more":    {func(t *testing.T, j *fakeJournal) { j.append(t, 9) }, 40, "", ""},
		"behind":                 {func(t *testing.T, j *fakeJournal) { j.append(t, 9); j.cursor = 47 }, 40, "the log was put back", ""},
		"ahead":                  {func(t *testing.T, j *fakeJournal) { j.back(t, 20, 0); j.cursor = 20 }, 20, "the journal ends before 40", ""},
		"ahead, within a pass":   {func(t *testing.T, j *fakeJournal) { j.back(t, 26, 0); j.cursor = 24 }, 24, "the journal ends before 40", ""},
		"ahead, and grown again": {func(t *testing.T, j *fakeJournal) { j.back(t, 22, 30); j.cursor = 20 }, 20, "another journal, or it was put back", ""},
		"ahead, never logged":    {func(t *testing.T, j *fakeJournal) { j.back(t, 5, 0); j.cursor = 0 }, 0, "", "another server's database"},
		"foreign, an event":      {func(t *testing.T, j *fakeJournal) { j.back(t, 0, 30); j.cursor = 25 }, 0, "", "another server's database"},
		"foreign, a publish":     {func(t *testing.T, j *fakeJournal) { j.back(t, 0, 30); j.cursor = 24 }, 0, "", "another server's database"},
		"foreign, beyond":        {func(t *testing.T, j *fakeJournal) { j.back(t, 0, 60); j.cursor = 55 }, 0, "", "this is another journal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := newFakeJournal()
			cfg := ended(t, j)
			before := readTree(t, cfg.Dir)
			c.back(t, j)
			end, err := FindEnd(cfg)
			if c.wrong != "" {
				if !errors.Is(err, ErrUnsound) || !strings.Contains(err.Error(), c.wrong) {
					t.Errorf("%+v, %v; expected %q", end, err, c.wrong)
				}
				return
			}
			if err != nil || end.Begin != c.begin || end.Logged != 40 || end.Entry != entryID(c.begin) {
				t.Fatalf("%+v, %v; expected it to begin behind %d", end, err, c.begin)
			}
			if (end.Apart == nil) != (c.apart == "") || end.Apart != nil && !strings.Contains(end.Apart.Error(), c.apart) {
				t.Errorf("apart: %v; expected %q", end.Apart, c.apart)
			}
			if err := SignRest(t.Context(), cfg); err != nil {
				t.Error(err)
			}
			if after := readTree(t, cfg.Dir); len(after) != len(before) {
				t.Errorf("the log that ended has %d files, and had %d", len(after), len(before))
			}
			j.cursor = min(j.cursor, end.Begin) // as Rewind
			j.append(t, 5)
			dir, vkey := successor(t, j, end)
			holdsOnce(t, j, dir, vkey, end.Begin+1)
		})
	}
}

// TestEndOfADoubtfulLog: one whose leaves are not those of its mark has no successor.
func TestEndOfADoubtfulLog(t *testing.T) {
	t.Parallel()
	j := newFakeJournal()
	cfg := ended(t, j)
	marks, m, _, err := openMark(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	m.Root[0] ^= 1
	if err := marks.store(m); err != nil {
		t.Fatal(err)
	}
	if end, err := FindEnd(cfg); !errors.Is(err, ErrUnsound) {
		t.Errorf("%+v, %v", end, err)
	}
}

// TestSignRest: a writer that was killed between its leaves and their checkpoint leaves a rest, which its key signs, and nothing more.
func TestSignRest(t *testing.T) {
	t.Parallel()
	j := newFakeJournal()
	cfg := ended(t, j)
	path := filepath.Join(cfg.Dir, audit.CheckpointFile)
	former, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	j.append(t, 10)
	l, stop := start(t, cfg)
	waitFor(t, l, 50)
	stop()
	if err := os.WriteFile(path, former, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := SignRest(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, cfg.Dir, 50); r.Unpublished != 0 || r.Size != l.Stats().Size {
		t.Errorf("%+v; expected a checkpoint over %d leaves", r, l.Stats().Size)
	}
	l = open(t, cfg)
	if err := SignRest(t.Context(), cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("beside a writer: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
