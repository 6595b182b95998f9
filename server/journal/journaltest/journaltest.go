// Package journaltest is what every journal must hold, whichever keeps it: the same tests run on segment files and on PostgreSQL.
package journaltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

// Consumers are those with which a Place must be opened.
func Consumers() []string { return []string{"log", "records"} }

// Place is where one journal is.
type Place struct {
	Name string                        // for a child process, which opens the journal by it
	Open func() (journal.Store, error) // anew each time; the former is closed
	// Check fails the test where an invariant of the journal is broken, and says what it read. No journal is open.
	Check func(t testing.TB) journal.Report
}

// MustOpen opens the journal; when the test is over it is closed and checked.
func (p Place) MustOpen(t testing.TB) journal.Store {
	t.Helper()
	j, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		p.Check(t)
	})
	return j
}

// EntryOf is an entry with a text as head and a blob of some length.
func EntryOf(j journal.Appender, text string, blob int) journal.Entry {
	return journal.Entry{ID: j.NextID(), Kind: journal.KindPublish, Head: []byte(text), Blob: bytes.Repeat([]byte("b"), blob)}
}

// ReadAll reads to the end.
func ReadAll(t testing.TB, j journal.Store, from uint64) []journal.Entry {
	t.Helper()
	var all []journal.Entry
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

// Run runs all tests, each on a fresh journal. A Place's name is passed to children, whose TestMain must begin with Child.
func Run(t *testing.T, fresh func(t testing.TB) Place) {
	for name, test := range map[string]func(t *testing.T, p Place){
		"AppendReadAcrossRestart": appendReadAcrossRestart, "InvalidEntries": invalidEntries, "CallbacksInOrderAndQueueBound": callbacksInOrder,
		"WaitAndCursor": waitAndCursor, "AliveGoesTheWayOfACommit": alive, "ReadGivesWhatIsAskedFor": readBounds, "Kill": kill, "IDsAcrossFastRestarts": IDs,
		"ClosedSaysSo": closed,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, fresh(t))
		})
	}
}

func appendReadAcrossRestart(t *testing.T, p Place) {
	ctx := context.Background()
	j := p.MustOpen(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 60 {
				if err := j.Append(ctx, EntryOf(j, fmt.Sprintf("%d/%d", g, i), (i*977)%20000)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := journal.AppendEvent(ctx, j, audit.Event{Type: audit.ServerStopped, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success}); err != nil {
		t.Fatal(err)
	}
	check := func(j journal.Store) {
		t.Helper()
		all := ReadAll(t, j, 1)
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
	k := p.MustOpen(t)
	check(k)
	if k.Cursor("log") != 100 || k.Cursor("records") != 0 {
		t.Fatalf("cursors %d, %d", k.Cursor("log"), k.Cursor("records"))
	}
	if st := k.Stats(); st.Committed != 481 || st.Cursors["log"] != 100 || st.CommitFailures != 0 || len(st.Damaged) != 0 {
		t.Fatalf("%+v", st)
	}
	if got := ReadAll(t, k, 300); len(got) != 182 || got[0].Seq != 300 {
		t.Fatalf("from 300: %d entries", len(got))
	}
	if err := k.Append(ctx, EntryOf(k, "next", 0)); err != nil {
		t.Fatal(err)
	}
	if err := k.Wait(ctx, 481); err != nil {
		t.Fatal(err)
	}
	if got := ReadAll(t, k, 482); len(got) != 1 || got[0].ID == (audit.EventID{}) || string(got[0].Head) != "next" {
		t.Fatalf("after the restart: %v", got)
	}
}

func invalidEntries(t *testing.T, p Place) {
	j := p.MustOpen(t)
	good := EntryOf(j, "head", 10)
	for name, change := range map[string]func(*journal.Entry){
		"no id":        func(e *journal.Entry) { e.ID = audit.EventID{} },
		"no head":      func(e *journal.Entry) { e.Head = nil },
		"unknown kind": func(e *journal.Entry) { e.Kind = 9 },
		"too large":    func(e *journal.Entry) { e.Blob = make([]byte, journal.MaxEntry+1) },
	} {
		e := good
		change(&e)
		if err := j.Submit(e, func(uint64, error) { t.Errorf("%s: done ran", name) }); !errors.Is(err, journal.ErrInvalid) {
			t.Errorf("%s: %v; want ErrInvalid", name, err)
		}
	}
}

func callbacksInOrder(t *testing.T, p Place) {
	j := p.MustOpen(t)
	const n = 300 // of 200 KB: more than the queue and than many files hold
	order := make(chan uint64, n)
	for i := range n {
		if err := j.Submit(EntryOf(j, strconv.Itoa(i), 200_000), func(seq uint64, err error) {
			if err != nil {
				t.Error(err)
			}
			order <- seq
		}); err != nil {
			t.Fatal(err)
		}
		if q := j.Stats().Queued; q > 16<<20 {
			t.Fatalf("%d bytes are queued", q)
		}
	}
	for want := range uint64(n) {
		if got := <-order; got != want+1 {
			t.Fatalf("callback of entry %d came at %d", got, want+1)
		}
	}
	if got, err := j.Read(1, 1000); err != nil || len(got) > 45 || len(got) < 15 {
		t.Fatalf("%d entries of 200 KB in one read, %v; want at most 8 MB", len(got), err)
	}
	if all := ReadAll(t, j, 1); len(all) != n {
		t.Fatalf("read %d of %d", len(all), n)
	}
}

func waitAndCursor(t *testing.T, p Place) {
	j := p.MustOpen(t)
	ctx, cancel := context.WithCancel(context.Background())
	waited := make(chan error, 1)
	go func() { waited <- j.Wait(context.Background(), 0) }()
	cancel()
	if err := j.Wait(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := j.Append(context.Background(), EntryOf(j, "a", 0), EntryOf(j, "b", 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	for _, refused := range []struct {
		consumer string
		seq      uint64
	}{{"log", 3}, {"nobody", 1}} {
		if err := j.SetCursor(refused.consumer, refused.seq); err == nil {
			t.Fatalf("%s may be at %d of 2", refused.consumer, refused.seq)
		}
	}
	for range 2 { // again is no step back
		if err := j.SetCursor("log", 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.SetCursor("log", 1); err == nil {
		t.Fatal("a cursor went back")
	}
	if at, err := j.Resume("log"); err != nil || j.Cursor("log") != 2 || at != 2 || j.Cursor("records") != 0 {
		t.Fatalf("cursors %d, %d (%v), %d", j.Cursor("log"), at, err, j.Cursor("records"))
	}
}

// alive: idle, ill and busy journals live; one whose results nobody takes does not.
func alive(t *testing.T, p Place) {
	j := p.MustOpen(t)
	if err := j.Alive(t.Context()); err != nil {
		t.Fatalf("idle: %v", err)
	}
	hold := make(chan struct{})
	if err := j.Submit(EntryOf(j, "held", 10), func(uint64, error) { <-hold }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := j.Alive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with a done that does not end: %v", err)
	}
	close(hold)
	if err := j.Alive(t.Context()); err != nil {
		t.Fatalf("after it ended: %v", err)
	}
}

func closed(t *testing.T, p Place) {
	j := p.MustOpen(t)
	waited := make(chan error, 1)
	go func() { waited <- j.Wait(context.Background(), 5) }()
	if err := j.Append(context.Background(), EntryOf(j, "a", 0)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"append": j.Append(context.Background(), EntryOf(j, "a", 0)), "alive": j.Alive(t.Context()), "wait": j.Wait(context.Background(), 5),
		"a wait from before": <-waited, "cursor": j.SetCursor("log", 1),
	} {
		if !errors.Is(err, journal.ErrClosed) {
			t.Errorf("%s: %v; want ErrClosed", name, err)
		}
	}
	if got, err := j.Read(1, 10); err != nil || len(got) != 0 {
		t.Errorf("read: %d entries, %v", len(got), err)
	}
}

// readBounds reads from each place with each limit, in groups of one and of many entries.
func readBounds(t *testing.T, p Place) {
	j := p.MustOpen(t)
	const n = 40
	results := make(chan error, n)
	for i := range n {
		if err := j.Submit(EntryOf(j, strconv.Itoa(i+1), i), func(_ uint64, err error) { results <- err }); err != nil {
			t.Fatal(err)
		}
		if i%7 == 0 {
			if err := j.Append(context.Background()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Millisecond) // another group, as a rule
		}
	}
	for range n {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	for from := uint64(0); from <= n+2; from++ {
		for _, limit := range []int{1, 2, 7, 1000} {
			next := max(from, 1)
			for {
				got, err := j.Read(next, limit)
				if err != nil || len(got) > limit {
					t.Fatalf("from %d at most %d: %d entries, %v", next, limit, len(got), err)
				}
				if len(got) == 0 {
					break
				}
				heads, err := j.ReadHeads(next, limit)
				if err != nil || len(heads) == 0 || len(heads) > limit {
					t.Fatalf("heads from %d at most %d: %d entries, %v", next, limit, len(heads), err)
				}
				for i := range min(len(got), len(heads)) {
					if h, e := heads[i], got[i]; h.Seq != e.Seq || h.ID != e.ID || h.Kind != e.Kind || string(h.Head) != string(e.Head) || h.Blob != nil {
						t.Fatalf("heads from %d at most %d: %+v in the place of %+v", next, limit, h, e)
					}
				}
				for _, e := range got {
					if e.Seq != next || string(e.Head) != strconv.FormatUint(next, 10) || len(e.Blob) != int(next-1) {
						t.Fatalf("from %d at most %d: entry %d with head %s in the place of %d", from, limit, e.Seq, e.Head, next)
					}
					next++
				}
			}
			if next != max(from, n+1) {
				t.Fatalf("from %d at most %d: it ended at %d", from, limit, next)
			}
		}
	}
	if got, err := j.Read(1, 0); err != nil || len(got) != 0 {
		t.Fatalf("at most none: %d, %v", len(got), err)
	}
}

// IDs opens the journal several times within a second, and wants no id twice.
func IDs(t *testing.T, p Place) {
	seen := map[audit.EventID]bool{}
	for range 4 {
		j, err := p.Open()
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					id := j.NextID()
					mu.Lock()
					if seen[id] {
						t.Errorf("id %s was given twice", id)
					}
					seen[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
