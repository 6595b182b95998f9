package translog

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb/sqldbtest"
)

// back puts the journal back to its first to entries, and lets it grow again by n others.
func (j *fakeJournal) back(t *testing.T, to, n int) {
	j.mu.Lock()
	j.entries = j.entries[:to]
	j.mu.Unlock()
	j.append(t, n)
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := to; i < len(j.entries); i++ {
		e := &j.entries[i]
		e.ID[0] = 9
		var err error
		if e.Kind == journal.KindPublish {
			row := makeRow(e.Seq)
			row.ID = e.ID
			e.Head, err = audit.EncodeRow(row)
		} else {
			e.Head, err = audit.EncodeEvent(audit.Event{ID: e.ID, Type: audit.ServerStarted, Time: firstTime, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestJournalComesBackShorter: a step of a pass fails because the database moves to a standby that has not all that was read. Acts that the
// journal has since then under the numbers of lost ones are in no leaf: so the writer stops, whether or not the journal has grown past the
// mark again, and the cursor passes none of them. One that comes back with all that was logged goes on.
func TestJournalComesBackShorter(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"mark", "cursor"} {
		for name, c := range map[string]struct {
			logged, read, to, grown int
			sound                   bool
		}{
			"shorter": {20, 40, 30, 0, false}, "grown again": {20, 40, 30, 60, false}, "to the mark again": {20, 40, 30, 10, false},
			"as many publishes": {10, 14, 10, 4, false}, // there is no event among them
			"complete":          {20, 40, 40, 10, true},
		} {
			t.Run(step+"/"+name, func(t *testing.T) {
				t.Parallel()
				dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
				cfg := testConfig(t, dir, j)
				create(t, cfg)
				j.append(t, c.logged)
				l := open(t, cfg)
				if err := turn(t, l); err != nil {
					t.Fatal(err)
				}
				j.append(t, c.read-c.logged)
				l.step = func(name string) error {
					if name != step {
						return nil
					}
					l.step = func(string) error { return nil }
					j.back(t, c.to, c.grown)
					return errStep
				}
				if c.sound {
					runUntil(t, l, func() uint64 { return uint64(c.read + c.grown) })
					return
				}
				if err := runBriefly(t, l); !errors.Is(err, ErrUnsound) {
					t.Errorf("Run: %v", err)
				}
				if j.cursor != uint64(c.logged) {
					t.Errorf("the cursor is at %d", j.cursor)
				}
				if step == "cursor" {
					if err := Current(dir, j); c.grown > 0 && !errors.Is(err, ErrUnsound) {
						t.Errorf("Current: %v", err)
					}
				}
			})
		}
	}
}

// TestPostgresComesBackShorter is the same with the journal in PostgreSQL, which keeps what it has read in memory.
func TestPostgresComesBackShorter(t *testing.T) {
	t.Parallel()
	for _, again := range []int{0, 9} {
		url := sqldbtest.Filled(t, pgjournal.Migrations()...)
		j, err := openJournal(url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = j.Close() }()
		other, err := openJournal(url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Close() }()
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		dir := filepath.Join(t.TempDir(), "log")
		create(t, testConfig(t, dir, nil))
		growReal(t, j, 4)
		growReal(t, j, 4)
		l := open(t, testConfig(t, dir, j))
		l.step = func(name string) error {
			if name != "cursor" {
				return nil
			}
			if _, err := conn.Exec(t.Context(), "DELETE FROM journal_groups WHERE first > 4; DELETE FROM journal_pieces WHERE first > 4"); err != nil {
				t.Error(err)
			}
			for i := range again {
				ev := audit.Event{Type: audit.ServerStarted, Time: firstTime + int64(i), Actor: audit.Actor{ID: "server"}, Outcome: audit.Success}
				if err := journal.AppendEvent(t.Context(), other, ev); err != nil {
					t.Error(err)
				}
			}
			return errStep
		}
		if err := runBriefly(t, l); !errors.Is(err, ErrUnsound) {
			t.Errorf("%d others: Run: %v", again, err)
		}
		if at := other.Cursor(consumer); at != 0 {
			t.Errorf("%d others: the cursor is at %d", again, at)
		}
		if err := Current(dir, other); again > 0 && !errors.Is(err, ErrUnsound) {
			t.Errorf("%d others: Current: %v", again, err)
		}
	}
}
