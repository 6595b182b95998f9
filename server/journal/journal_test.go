package journal

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"wardlink/audit"
)

func testConfig(dir string) Config {
	return Config{Dir: dir, Node: 7, SegmentSize: minSegment, Consumers: []string{"log", "records"}}
}

func mustOpen(t testing.TB, c Config) *Journal {
	t.Helper()
	j, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		// Nobody can forget the check: every journal that a test opened is verified when the test is over.
		mustCheck(t, c.Dir)
	})
	return j
}

func mustCheck(t testing.TB, dir string) Report {
	t.Helper()
	r, err := Check(dir)
	if err != nil {
		t.Error(err)
	}
	for _, f := range r.Findings {
		t.Errorf("check: %s: %s", f.Path, f.Problem)
	}
	return r
}

func fresh(t testing.TB) (Config, *Journal) {
	t.Helper()
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	return c, mustOpen(t, c)
}

func entryOf(j *Journal, text string, blob int) Entry {
	return Entry{ID: j.NextID(), Kind: KindPublish, Head: []byte(text), Blob: bytes.Repeat([]byte("b"), blob)}
}

func readAll(t testing.TB, j *Journal, from uint64) []Entry {
	t.Helper()
	var all []Entry
	for {
		got, err := j.Read(from, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
		from = got[len(got)-1].Seq + 1
	}
}

func TestAppendReadAcrossRestart(t *testing.T) {
	ctx := context.Background()
	c, j := fresh(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 60 {
				if err := j.Append(ctx, entryOf(j, fmt.Sprintf("%d/%d", g, i), (i*977)%20000)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := AppendEvent(ctx, j, audit.Event{Type: audit.ServerStopped, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success}); err != nil {
		t.Fatal(err)
	}
	check := func(j *Journal) {
		t.Helper()
		all := readAll(t, j, 1)
		if len(all) != 481 {
			t.Fatalf("read %d entries of 481", len(all))
		}
		next := map[int]int{}
		for i, e := range all[:480] {
			var g, n int
			if _, err := fmt.Sscanf(string(e.Head), "%d/%d", &g, &n); err != nil {
				t.Fatal(err)
			}
			if e.Seq != uint64(i+1) || n != next[g] || len(e.Blob) != (n*977)%20000 {
				t.Fatalf("entry %d has seq %d, head %s, blob of %d bytes", i, e.Seq, e.Head, len(e.Blob))
			}
			next[g]++
		}
		if ev, err := audit.DecodeEvent(all[480].Head); err != nil || ev.Type != audit.ServerStopped || ev.ID != all[480].ID {
			t.Fatalf("event %+v, %v", ev, err)
		}
	}
	check(j)
	if err := j.SetCursor("log", 100); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	k := mustOpen(t, c)
	check(k)
	if k.Cursor("log") != 100 || k.Cursor("records") != 0 {
		t.Fatalf("cursors %d, %d", k.Cursor("log"), k.Cursor("records"))
	}
	if got := readAll(t, k, 300); len(got) != 182 || got[0].Seq != 300 {
		t.Fatalf("from 300: %d entries", len(got))
	}
	if err := k.Append(ctx, entryOf(k, "next", 0)); err != nil {
		t.Fatal(err)
	}
	if err := k.Wait(ctx, 481); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, k, 482); len(got) != 1 || got[0].ID == (audit.EventID{}) || string(got[0].Head) != "next" {
		t.Fatalf("after the restart: %v", got)
	}
}
