package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// Writes that wait for a turn share one transaction, and each is whole or not at all by itself.
func TestWriteTogether(t *testing.T) {
	db, _ := sqldbtest.New(t, things...)
	ctx := t.Context()
	begun, goOn := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { // the transaction that is on its way
		if err := db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
			close(begun)
			<-goOn
			_, err := tx.Exec("INSERT INTO things (name) VALUES ('first')")
			return err
		}); err != nil {
			t.Error(err)
		}
	})
	<-begun
	gone, hangUp := context.WithCancel(ctx)
	hangUp()
	if err := db.WriteTogether(gone, func(*sqldb.SharedTx) error { t.Error("a write ran whose caller was gone"); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wrong := errors.New("wrong")
	const n = 10
	shared, queued := make([]*sqldb.SharedTx, n), make(chan struct{}, n)
	for i := range n {
		all.Go(func() {
			defer func() {
				if p := recover(); (p != nil) != (i == 7) {
					t.Errorf("%d: panic %v", i, p)
				}
			}()
			queued <- struct{}{}
			err := db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
				shared[i] = tx
				if _, err := tx.Exec("INSERT INTO things (name) VALUES ($1)", fmt.Sprint("thing ", i)); err != nil {
					return err
				}
				switch i {
				case 3: // the statement fails
					_, err := tx.Exec("INSERT INTO things (name) VALUES ($1)", fmt.Sprint("thing ", i))
					return err
				case 5:
					return wrong
				case 7:
					panic("a fault")
				}
				return nil
			})
			if failed := i == 3 || i == 5; (err != nil) != failed || i == 5 && !errors.Is(err, wrong) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	for range n {
		<-queued
	}
	close(goOn)
	all.Wait()
	transactions := map[*sqldb.SharedTx]bool{}
	for _, tx := range shared {
		transactions[tx] = true
	}
	if len(transactions) == n {
		t.Error("each write had a transaction of its own")
	}
	var rows, bad int
	if err := db.QueryRow(ctx, "SELECT COUNT(*), COALESCE(SUM(CASE WHEN name IN ('thing 3', 'thing 5', 'thing 7') THEN 1 ELSE 0 END), 0) FROM things").Scan(&rows, &bad); err != nil || rows != 1+n-3 || bad != 0 {
		t.Errorf("%d rows, %d of writes that failed, %v", rows, bad, err)
	}
}

// A transaction that cannot be had fails all who would share it.
func TestWriteTogetherWithoutADatabase(t *testing.T) {
	sqldbtest.SQLite(t, "it closes a file that it made by itself")
	path := sqldbtest.Path(t)
	if err := sqldb.Create(path, things...); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(path, things...)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.WriteTogether(t.Context(), func(*sqldb.SharedTx) error { return nil }); err == nil {
		t.Error("durable in a database that is closed")
	}
}

// What one write is refused for is nobody else's business, also where the engine undoes what they shared.
func TestWriteTogetherKeepsVerdictsApart(t *testing.T) {
	db, _ := sqldbtest.New(t, things...)
	ctx := t.Context()
	begun, goOn := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		if err := db.WriteTogether(ctx, func(*sqldb.SharedTx) error { close(begun); <-goOn; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-begun
	verdict := errors.New("gateway gw-7 is revoked: stolen")
	queued := make(chan struct{}, 2)
	all.Go(func() {
		queued <- struct{}{}
		if err := db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
			if _, err := tx.Exec("ROLLBACK"); err != nil {
				t.Error(err)
			}
			return verdict
		}); !errors.Is(err, verdict) {
			t.Errorf("its own verdict: %v", err)
		}
	})
	<-queued
	time.Sleep(50 * time.Millisecond) // so that it stands before the other one; else there is nothing to see
	all.Go(func() {
		queued <- struct{}{}
		err := db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
			_, err := tx.Exec("INSERT INTO things (name) VALUES ('other')")
			return err
		})
		if err == nil || errors.Is(err, verdict) || strings.Contains(err.Error(), "gw-7") {
			t.Errorf("another's verdict: %v", err)
		}
	})
	<-queued
	time.Sleep(50 * time.Millisecond)
	close(goOn)
	all.Wait()
	if err := db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		_, err := tx.Exec("INSERT INTO things (name) VALUES ('later')")
		return err
	}); err != nil {
		t.Errorf("the next write: %v", err)
	}
}
