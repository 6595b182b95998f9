package server

import (
	"context"
	"database/sql"
	"log/slog"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/sqldb"
)

// TestRestoredOutboxKnowsItsNewJournal: the lost server had moved events further into its journal than the records had come. The new
// journal uses those numbers again, and an event whose move a crash cuts short must still be found in it.
func TestRestoredOutboxKnowsItsNewJournal(t *testing.T) {
	h := newHospital(t)
	stop := h.run(slog.New(slog.DiscardHandler))
	h.moved()
	stop()
	change := func(dir string, fn func(tx *sql.Tx) error) {
		t.Helper()
		db, err := sqldb.Open(databaseFile(dir), migrations()...)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Write(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	change(h.dir, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE events_out_mark SET seq = seq + 1000")
		return err
	})
	n, _, err := h.restore(RestoreOptions{From: h.backup(BackupOptions{Wait: time.Millisecond}).File})
	if err != nil {
		t.Fatal(err)
	}
	n.run(slog.New(slog.DiscardHandler))()
	// A crash between the two steps of a move: the event is in the journal, and still waits.
	j, err := journal.Open(journalConfig(n.dir))
	if err != nil {
		t.Fatal(err)
	}
	ev := audit.Event{ID: j.NextID(), Time: time.Now().UnixMilli(), Type: audit.ServerStarted, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success}
	if err := journal.AppendEvent(context.Background(), j, ev); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	change(n.dir, func(tx *sql.Tx) error { return sqldb.AddEvent(tx, ev) })
	stop = n.run(slog.New(slog.DiscardHandler))
	n.moved()
	stop()
	report, _ := n.verify("log", "public/log.pub")
	times := 0
	for data, err := range audit.Leaves(logDir(n.dir), 0, report.Size) {
		if err != nil {
			t.Fatal(err)
		}
		if leaf, err := audit.DecodeLeaf(data); err == nil && leaf.ID() == ev.ID {
			times++
		}
	}
	if times != 1 {
		t.Errorf("the event is in the log %d times", times)
	}
}
