package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

func newOutbox(t *testing.T, j *sqldbtest.Journal) (*sqldb.DB, *sqldb.Outbox, string) {
	t.Helper()
	db, path := sqldbtest.New(t, sqldb.OutboxMigrations()...)
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

func targets(t *testing.T, j *sqldbtest.Journal) (out []string) {
	t.Helper()
	for _, ev := range j.Events(t) {
		if ev.Time != 1234 {
			t.Errorf("%+v", ev)
		}
		out = append(out, ev.Target)
	}
	return out
}

func TestOutboxMovesInOrderAndOnce(t *testing.T) {
	j := &sqldbtest.Journal{}
	db, o, _ := newOutbox(t, j)
	ctx := context.Background()
	add(t, db, o, "a", "b")
	if j.Len() != 0 {
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
	if j.Reads() != 0 {
		t.Errorf("the usual case read the journal %d times", j.Reads())
	}
}

func TestOutboxRolledBackActHasNoEvent(t *testing.T) {
	j := &sqldbtest.Journal{}
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
	if err := o.Flush(context.Background()); err != nil || j.Len() != 0 {
		t.Fatal(err, j.Len())
	}
}

// A crash can come after the append and before the row is gone: the next life must find the event and not append it again.
func TestOutboxCrashBetweenAppendAndDelete(t *testing.T) {
	j := &sqldbtest.Journal{}
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
	if err := j.Append(ctx, journal.Entry{ID: audit.EventID(id), Kind: journal.KindEvent, Head: event}); err != nil {
		t.Fatal(err)
	}

	again, err := sqldb.NewOutbox(sqldbtest.Open(t, path, sqldb.OutboxMigrations()...), j, nil)
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
			j := &sqldbtest.Journal{}
			db, o, _ := newOutbox(t, j)
			ctx := context.Background()
			add(t, db, o, "a", "b")
			failing := 0
			j.Fail(func(journal.Entry) (error, bool) {
				failing++
				if failing == 2 {
					return boom, kept
				}
				return nil, true
			})
			if err := o.Flush(ctx); !errors.Is(err, boom) {
				t.Fatal(err)
			}
			j.Fail(nil)
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
	j := &sqldbtest.Journal{}
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
	if j.Len() != 1600 {
		t.Fatalf("%d events, expected 1600", j.Len())
	}
}
