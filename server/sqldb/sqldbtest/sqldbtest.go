// Package sqldbtest gives tests a database that is checked when the test ends, and a journal in memory that is stricter than the
// real one.
package sqldbtest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"wardlink/audit"
	"wardlink/internal/pgtest"
	"wardlink/server/journal"
	"wardlink/server/sqldb"
)

// Postgres reports whether this run of the tests is on PostgreSQL: WARDLINK_ENGINE is postgres. Any other engine than sqlite fails.
func Postgres(t testing.TB) bool {
	t.Helper()
	switch engine := os.Getenv("WARDLINK_ENGINE"); engine {
	case "", "sqlite":
		return false
	case "postgres":
		return true
	default:
		t.Fatalf("WARDLINK_ENGINE=%s: expected sqlite or postgres", engine)
		return false
	}
}

// SQLite is for a test of what SQLite's file alone has: it ends a run on PostgreSQL with the reason. Nothing else may skip.
func SQLite(t testing.TB, because string) {
	t.Helper()
	if Postgres(t) {
		t.Skip("of SQLite alone: " + because)
	}
}

// Plan gives the steps of SQLite's plan of a query, one a line. It ends a run on PostgreSQL, whose plans go by how many rows there are.
func Plan(t testing.TB, db *sqldb.DB, query string, args ...any) string {
	t.Helper()
	SQLite(t, "it reads SQLite's plan; PostgreSQL's goes by how many rows there are")
	rows, err := db.Query(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(step + "\n")
	}
	if err := rows.Err(); err != nil || plan.Len() == 0 {
		t.Fatalf("no plan of %s: %v", query, err)
	}
	return plan.String()
}

// New makes a database and opens it: in a directory of the test's own, or on PostgreSQL where this run of the tests is on that.
func New(t testing.TB, migrations ...sqldb.Migration) (db *sqldb.DB, path string) {
	t.Helper()
	path = Path(t)
	if Postgres(t) {
		path = Filled(t, migrations...)
	} else if err := sqldb.Create(path, migrations...); err != nil {
		t.Fatal(err)
	}
	return Open(t, path, migrations...), path
}

// Path names a database that sqldb.Create can make: a file that is not there, or PostgreSQL's empty database.
func Path(t testing.TB) string {
	t.Helper()
	if Postgres(t) {
		return pgtest.New(t)
	}
	return filepath.Join(t.TempDir(), "wardlink.db")
}

// Filled makes a PostgreSQL database with the schema of migrations, whatever engine this run is on, and gives its URL. The schema is made
// once in a test process, and copied.
func Filled(t testing.TB, migrations ...sqldb.Migration) (url string) {
	t.Helper()
	hash := sha256.New()
	for _, m := range migrations {
		fmt.Fprintf(hash, "%q %d %q %q\n", m.Domain, m.Version, m.SQL, m.Postgres)
	}
	return pgtest.Template(t, string(hash.Sum(nil)), func(url string) error { return sqldb.Create(url, migrations...) })
}

// Open opens a database. Its consistency is checked when the test ends, so that no test can forget it.
func Open(t testing.TB, path string, migrations ...sqldb.Migration) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(path, migrations...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(db.Check(context.Background()), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return db
}

// Journal keeps entries in memory. It panics when an id comes twice and when a cursor goes back.
type Journal struct {
	mu      sync.Mutex
	counter uint64
	entries []journal.Entry
	cursors map[string]uint64
	grown   chan struct{} // closed at the next entry
	reads   int
	fail    func(e journal.Entry) (err error, kept bool)
}

// Fail makes the journal answer entries with an error; kept says whether the entry is in the journal all the same, as it can be
// after a failed fsync. nil mends it.
func (j *Journal) Fail(fail func(e journal.Entry) (err error, kept bool)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail = fail
}

// NextID gives ids that count from 1.
func (j *Journal) NextID() (id audit.EventID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counter++
	binary.BigEndian.PutUint64(id[8:], j.counter)
	return id
}

// Submit commits at once and calls done from another goroutine, as the real one does.
func (j *Journal) Submit(e journal.Entry, done func(seq uint64, err error)) error {
	seq, err := j.add(e)
	go done(seq, err)
	return nil
}

// Append commits at once.
func (j *Journal) Append(ctx context.Context, entries ...journal.Entry) error {
	for _, e := range entries {
		if _, err := j.add(e); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (j *Journal) add(e journal.Entry) (seq uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := true
	if j.fail != nil {
		err, kept = j.fail(e)
	}
	if !kept {
		return 0, err
	}
	if e.ID == (audit.EventID{}) || slices.ContainsFunc(j.entries, func(x journal.Entry) bool { return x.ID == e.ID }) {
		panic(fmt.Sprintf("journal: id %s is zero or there already", e.ID))
	}
	e.Seq = uint64(len(j.entries)) + 1
	j.entries = append(j.entries, e)
	if j.grown != nil {
		close(j.grown)
		j.grown = nil
	}
	return e.Seq, err
}

// Read gives entries from a sequence on.
func (j *Journal) Read(from uint64, limit int) ([]journal.Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reads++
	if from > uint64(len(j.entries)) {
		return nil, nil
	}
	out := j.entries[max(from, 1)-1:]
	return slices.Clone(out[:min(limit, len(out))]), nil
}

// Reads is how often Read was called.
func (j *Journal) Reads() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.reads
}

// Wait returns when there is an entry behind after.
func (j *Journal) Wait(ctx context.Context, after uint64) error {
	for {
		j.mu.Lock()
		if uint64(len(j.entries)) > after {
			j.mu.Unlock()
			return nil
		}
		if j.grown == nil {
			j.grown = make(chan struct{})
		}
		grown := j.grown
		j.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grown:
		}
	}
}

// Cursor is where a consumer stands.
func (j *Journal) Cursor(consumer string) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cursors[consumer]
}

// Resume is Cursor for the consumer itself.
func (j *Journal) Resume(consumer string) (uint64, error) { return j.Cursor(consumer), nil }

// SetCursor moves a consumer forward.
func (j *Journal) SetCursor(consumer string, seq uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if seq < j.cursors[consumer] || seq > uint64(len(j.entries)) {
		panic(fmt.Sprintf("journal: cursor %s moves from %d to %d of %d", consumer, j.cursors[consumer], seq, len(j.entries)))
	}
	if j.cursors == nil {
		j.cursors = make(map[string]uint64)
	}
	j.cursors[consumer] = seq
	return nil
}

// Rewind puts a consumer's cursor back, as a restored backup does.
func (j *Journal) Rewind(consumer string, seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cursors[consumer] = seq
}

// Len is how many entries there are.
func (j *Journal) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.entries)
}

// Events decodes the journaled events.
func (j *Journal) Events(t testing.TB) (out []audit.Event) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.entries {
		if e.Kind != journal.KindEvent {
			continue
		}
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			t.Fatal(err)
		}
		if ev.ID != e.ID {
			t.Errorf("entry %s holds event %s", e.ID, ev.ID)
		}
		out = append(out, ev)
	}
	return out
}

// Lines gives the journaled events as "type target outcome".
func (j *Journal) Lines(t testing.TB) (out []string) {
	t.Helper()
	for _, ev := range j.Events(t) {
		out = append(out, fmt.Sprintf("%s %s %s", ev.Type, ev.Target, ev.Outcome))
	}
	return out
}
