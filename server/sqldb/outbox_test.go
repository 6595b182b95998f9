package sqldb_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/sqldb"
)

// fakeJournal is stricter than the real one: it refuses an id that it has.
type fakeJournal struct {
	mu      sync.Mutex
	counter uint64
	entries []journal.Entry
	reads   int
	// fail, when set, is returned for the entry; kept says whether the entry is in the journal all the same, as after a crash
	// or a failed fsync.
	fail func(e journal.Entry) (err error, kept bool)
}

func (j *fakeJournal) NextID() (id audit.EventID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counter++
	binary.BigEndian.PutUint64(id[8:], j.counter)
	return id
}

func (j *fakeJournal) Submit(e journal.Entry, done func(uint64, error)) error {
	j.mu.Lock()
	var err error
	kept := true
	if j.fail != nil {
		err, kept = j.fail(e)
	}
	if kept {
		if slices.ContainsFunc(j.entries, func(x journal.Entry) bool { return x.ID == e.ID }) {
			panic("journal: the id is there already")
		}
		e.Seq = uint64(len(j.entries)) + 1
		j.entries = append(j.entries, e)
	}
	j.mu.Unlock()
	go done(e.Seq, err)
	return nil
}

func (j *fakeJournal) Read(from uint64, limit int) ([]journal.Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reads++
	if from < 1 || from > uint64(len(j.entries)) {
		return nil, nil
	}
	out := j.entries[from-1:]
	return slices.Clone(out[:min(limit, len(out))]), nil
}

func newOutbox(t *testing.T, j *fakeJournal) (*sqldb.DB, *sqldb.Outbox, string) {
	t.Helper()
	db, path := create(t, sqldb.OutboxMigrations()...)
	o, err := sqldb.NewOutbox(db, j, func() time.Time { return time.UnixMilli(1234) })
	if err != nil {
		t.Fatal(err)
	}
	return db, o, path
}

func add(t *testing.T, db *sqldb.DB, o *sqldb.Outbox, targets ...string) {
	t.Helper()
	if err := db.Write(context.Background(), func(tx *sql.Tx) error {
		for _, target := range targets {
			if err := o.Add(tx, audit.Event{Type: audit.GatewayImported, Target: target, Outcome: audit.Success}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func targets(t *testing.T, j *fakeJournal) (out []string) {
	t.Helper()
	for _, e := range j.entries {
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			t.Fatal(err)
		}
		if ev.ID != e.ID || e.Kind != journal.KindEvent || ev.Time != 1234 {
			t.Errorf("entry %+v holds event %+v", e, ev)
		}
		out = append(out, ev.Target)
	}
	return out
}

func TestOutboxMovesInOrderAndOnce(t *testing.T) {
	j := &fakeJournal{}
	db, o, _ := newOutbox(t, j)
	ctx := context.Background()
	add(t, db, o, "a", "b")
	if len(j.entries) != 0 {
		t.Fatal("Add journaled before its transaction was flushed")
	}
	if err := o.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	add(t, db, o, "c")
	for range 2 {
		if err := o.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := targets(t, j); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatal(got)
	}
	if n, err := o.Waiting(ctx); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	if j.reads != 0 {
		t.Errorf("the usual case read the journal %d times", j.reads)
	}
}

func TestOutboxRolledBackActHasNoEvent(t *testing.T) {
	j := &fakeJournal{}
	db, o, _ := newOutbox(t, j)
	boom := errors.New("boom")
	err := db.Write(context.Background(), func(tx *sql.Tx) error {
		if err := o.Add(tx, audit.Event{Type: audit.GatewayImported, Outcome: audit.Success}); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := o.Flush(context.Background()); err != nil || len(j.entries) != 0 {
		t.Fatal(err, len(j.entries))
	}
}

// A crash can come after the append and before the row is gone: the next life must find the event and not append it again.
func TestOutboxCrashBetweenAppendAndDelete(t *testing.T) {
	j := &fakeJournal{}
	db, o, path := newOutbox(t, j)
	ctx := context.Background()
	add(t, db, o, "before")
	if err := o.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	add(t, db, o, "a", "b")
	// What the former life did before it died: it appended a, and another service's entry went in between.
	var id, event []byte
	if err := db.QueryRow(ctx, "SELECT id, event FROM events_out ORDER BY position LIMIT 1").Scan(&id, &event); err != nil {
		t.Fatal(err)
	}
	j.entries = append(j.entries, journal.Entry{Seq: 2, ID: audit.EventID(id), Kind: journal.KindEvent, Head: event})

	again, err := sqldb.NewOutbox(open(t, path, sqldb.OutboxMigrations()...), j, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got := targets(t, j); !slices.Equal(got, []string{"before", "a", "b"}) {
		t.Fatal(got)
	}
}

// An append that returns an error may have happened all the same.
func TestOutboxFailedAppend(t *testing.T) {
	for name, kept := range map[string]bool{"kept": true, "not kept": false} {
		t.Run(name, func(t *testing.T) {
			boom := errors.New("boom")
			j := &fakeJournal{}
			db, o, _ := newOutbox(t, j)
			ctx := context.Background()
			add(t, db, o, "a", "b")
			failing := 0
			j.fail = func(journal.Entry) (error, bool) {
				failing++
				if failing == 2 {
					return boom, kept
				}
				return nil, true
			}
			if err := o.Flush(ctx); !errors.Is(err, boom) {
				t.Fatal(err)
			}
			j.fail = nil
			add(t, db, o, "c")
			if err := o.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if got := targets(t, j); !slices.Equal(got, []string{"a", "b", "c"}) {
				t.Fatal(got)
			}
		})
	}
}

func TestOutboxManyChunksAndCallers(t *testing.T) {
	j := &fakeJournal{}
	db, o, _ := newOutbox(t, j)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 4 {
				add(t, db, o, make([]string, 100)...)
				if err := o.Flush(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(j.entries) != 1600 {
		t.Fatalf("%d events, expected 1600", len(j.entries))
	}
}
