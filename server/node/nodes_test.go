package node

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"wardlink/server/sqldb/sqldbtest"
)

// TestTermOfANode: the newest certificate's, from the node's making on; and nothing of a node that was removed.
func TestTermOfANode(t *testing.T) {
	db, _ := sqldbtest.New(t, Migrations()...)
	begun := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	write := func(f func(tx *sql.Tx) error) {
		t.Helper()
		if err := db.Write(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	write(func(tx *sql.Tx) error {
		return errors.Join(Add(tx, Node{Name: "n-1", Login: "l", Added: begun, NotBefore: begun, NotAfter: begun.Add(Life)}), Add(tx, Node{Name: "n-2", Login: "m", Added: begun}))
	})
	shows := func(name string, from, until time.Time) {
		t.Helper()
		if n, err := Get(t.Context(), db, name); err != nil || !n.NotBefore.Equal(from) || !n.NotAfter.Equal(until) {
			t.Errorf("%s: %s to %s, %v; expected %s to %s", name, n.NotBefore, n.NotAfter, err, from, until)
		}
	}
	shows("n-1", begun, begun.Add(Life))
	shows("n-2", time.Time{}, time.Time{})
	next := begun.Add(Life / 2)
	for _, from := range []time.Time{next, begun} { // the former one last
		if err := Certified(t.Context(), db, "n-1", from, from.Add(Life)); err != nil {
			t.Fatal(err)
		}
		shows("n-1", next, next.Add(Life))
	}
	shows("n-2", time.Time{}, time.Time{})
	write(func(tx *sql.Tx) error { _, err := Remove(tx, "n-2", next); return err })
	if err := Certified(t.Context(), db, "n-2", begun, next); err != nil {
		t.Fatal(err)
	}
	if all, err := List(t.Context(), db); err != nil || len(all) != 1 || !all[0].NotAfter.Equal(next.Add(Life)) {
		t.Errorf("%+v, %v", all, err)
	}
	var ends int64
	if err := db.QueryRow(t.Context(), "SELECT not_after FROM nodes WHERE name = 'n-2'").Scan(&ends); err != nil || ends != 0 {
		t.Errorf("a node that was removed: %d, %v", ends, err)
	}
}
