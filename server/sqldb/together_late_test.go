package sqldb

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A write whose turn does not come in time is told so, and is not made.
func TestWriteTogetherTooLate(t *testing.T) {
	late := &joined{fn: func(*SharedTx) error { t.Error("a write was made that was given up"); return nil }, since: time.Now().Add(-turnTime - time.Second), done: make(chan struct{})}
	d := &DB{path: "late.db"}
	d.together.waiting, d.together.busy = []*joined{late}, true
	d.carry()
	<-late.done
	if !errors.Is(late.err, errTurn) || !Environment(late.err) || d.together.busy {
		t.Errorf("%v; busy %v", late.err, d.together.busy)
	}
}

// A statement ends with the time of the transaction that is shared: a database that says nothing must not hold up all that wait.
func TestSharedTxHasTime(t *testing.T) {
	path := t.TempDir() + "/shared.db"
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	tx, err := db.writer.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	over, end := context.WithCancel(t.Context())
	end()
	shared := &SharedTx{over, tx}
	if _, err := shared.Exec("SELECT 1"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := shared.QueryRow("SELECT 1").Scan(new(int)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := shared.Query("SELECT 1"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
