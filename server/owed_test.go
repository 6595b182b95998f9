package server

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/pgtest"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// TestAnEventOfItsOwnIsJournaledOnce: whichever answer of PostgreSQL is lost after it has committed, to the event or on its way through the outbox, an
// event that the server journals later is there once.
func TestAnEventOfItsOwnIsJournaledOnce(t *testing.T) {
	url := sqldbtest.Filled(t, sharedMigrations()...)
	g, through := pgtest.NewGate(t, url)
	j, err := pgjournal.Open(t.Context(), pgjournal.Config{URL: through, Consumers: []string{"log"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	s := &Server{log: slog.New(slog.NewTextHandler(t.Output(), nil)), journal: j, db: sqldbtest.Open(t, through, sharedMigrations()...)}
	s.cfg.Database = through
	if s.outbox, err = sqldb.NewOutbox(s.db, j, nil); err != nil {
		t.Fatal(err)
	}
	group := string([]byte{'F', 0}) // of the protocol: a function call, as the journal's groups are
	var want []string
	for _, answer := range []string{group, "commit", "outbox_take", "nothing"} {
		g.LoseAnswer(answer)
		s.own(t.Context(), audit.Event{Type: audit.CARotated, Target: answer})
		want = append(want, answer)
	}
	g.LoseAnswer("nothing")
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := s.settle(t.Context())
		if err == nil {
			err = s.outbox.Flush(t.Context())
		}
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if n := g.Lost(); n < 2 {
		t.Fatalf("%d answers were lost", n)
	}
	all, err := pgjournal.Open(t.Context(), pgjournal.Config{URL: url, Consumers: []string{"log"}}) // one that is open already reads on some time later
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = all.Close() })
	entries, err := all.Read(1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.Target)
	}
	if !slices.Equal(got, want) {
		t.Errorf("journaled %q, expected %q", got, want)
	}
}

// TestWhatCannotBeEncodedHoldsNobodyUp: an event of the server's own that no journal takes is counted and there without its details, and what comes
// behind it is journaled; own returns when its time is over, whoever settles meanwhile.
func TestWhatCannotBeEncodedHoldsNobodyUp(t *testing.T) {
	url := sqldbtest.Filled(t, sharedMigrations()...)
	j, err := pgjournal.Open(t.Context(), pgjournal.Config{URL: url, Consumers: []string{"log"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	s := &Server{log: slog.New(slog.NewTextHandler(t.Output(), nil)), journal: j, db: sqldbtest.Open(t, url, sharedMigrations()...)}
	s.cfg.Database = url
	if s.outbox, err = sqldb.NewOutbox(s.db, j, nil); err != nil {
		t.Fatal(err)
	}
	s.own(t.Context(), audit.Event{Type: audit.CARotated, Target: strings.Repeat("x", 1<<20)})
	s.own(t.Context(), audit.Event{Type: audit.CARotated, Target: "behind"})
	if err := j.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	entries, err := j.Read(1, 10)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%d events: %v", len(entries), err)
	}
	for i, target := range []string{"", "behind"} {
		if ev, err := audit.DecodeEvent(entries[i].Head); err != nil || ev.Type != audit.CARotated || ev.Target != target || (target == "") != (ev.Reason != "") {
			t.Errorf("%+v, %v", ev, err)
		}
	}
	if n := s.owed.aside.Load(); n != 1 {
		t.Errorf("%d are counted", n)
	}
	done, err := s.owed.turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.own(ended, audit.Event{Type: audit.CARotated, Target: "owed"}) // returns
	done()
	if err := s.settle(t.Context()); err != nil || len(s.owed.events) != 0 {
		t.Errorf("%d are owed: %v", len(s.owed.events), err)
	}
}
