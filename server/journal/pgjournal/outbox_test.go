package pgjournal_test

import (
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"testing"

	"wardlink/audit"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

var _ sqldb.Adjoining = (*pgjournal.Journal)(nil)

// Two processes share the outbox of a database that also holds the journal: every event is journaled once, those of each in its order.
func TestOutboxOfTheSameDatabase(t *testing.T) {
	all := append(pgjournal.Migrations(), sqldb.OutboxMigrations()...)
	url := sqldbtest.Filled(t, all...)
	var wg sync.WaitGroup
	var readers []*pgjournal.Journal
	for process := range 2 {
		db := sqldbtest.Open(t, url, all...)
		j := must(t, pgjournal.Config{URL: url, Consumers: []string{"log"}})
		readers = append(readers, j)
		o, err := sqldb.NewOutbox(db, j, nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for i := range 30 {
				if err := db.Write(t.Context(), func(tx *sql.Tx) error {
					return o.Add(tx, audit.Event{Type: audit.GatewayImported, Target: fmt.Sprintf("%d-%02d", process, i), Outcome: audit.Success})
				}); err != nil {
					t.Error(err)
				}
				if err := o.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	entries, err := readers[0].Read(1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil || ev.ID != e.ID {
			t.Fatal(ev.ID, e.ID, err)
		}
		got = append(got, ev.Target)
	}
	for process := range 2 {
		own := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s[0] != byte('0'+process) })
		if len(own) != 30 || !slices.IsSorted(own) || len(slices.Compact(own)) != 30 {
			t.Errorf("process %d: %v", process, own)
		}
	}
}
