package sqldb_test

import (
	"bytes"
	"context"
	"database/sql"
	"os"
	"testing"
	"time"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// What was deleted is in neither file after Reclaim, a file that is mostly free becomes small, and a reader that holds the log makes nobody
// wait long.
func TestReclaimLeavesNoTraces(t *testing.T) {
	sqldbtest.SQLite(t, "PostgreSQL's files are whoever's who runs it; what Reclaim does there is in TestPostgresReclaimVacuumsWhatWasDeletedFrom")
	db, path := sqldbtest.New(t, sqldb.Migration{Domain: "t", Version: 1, SQL: "CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)"})
	ctx := t.Context()
	write := func(query string, args ...any) {
		t.Helper()
		if err := db.Write(ctx, func(tx *sql.Tx) error {
			_, err := tx.Exec(query, args...)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	holds := func() bool {
		t.Helper()
		for _, suffix := range []string{"", "-wal"} {
			data, err := os.ReadFile(path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(data, []byte("JOHN-DOE")) {
				return true
			}
		}
		return false
	}
	for range 40 {
		write("INSERT INTO t (v) SELECT 'JOHN-DOE' || hex(randomblob(2000)) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150) SELECT i FROM n)")
	}
	before, _, err := db.Sizes(ctx)
	if err != nil || before < 20<<20 || !holds() {
		t.Fatal(before, err)
	}
	write("DELETE FROM t WHERE id > 10")
	write("UPDATE t SET v = 'kept'")
	if !holds() {
		t.Fatal("the log does not hold what was deleted: this test looks at the wrong thing")
	}
	if err := db.Read(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRow("SELECT COUNT(*) FROM t").Scan(new(int)); err != nil {
			return err
		}
		write("INSERT INTO t (v) VALUES ('later')")
		limited, cancel := context.WithTimeout(ctx, 4*time.Second) // far below the busy handler's usual patience
		defer cancel()
		if err := db.Reclaim(limited); err == nil || limited.Err() != nil {
			t.Errorf("under a reader: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Reclaim(ctx); err != nil {
		t.Fatal(err)
	}
	after, free, err := db.Sizes(ctx)
	if err != nil || after > before/4+8<<20 || holds() {
		t.Errorf("%d bytes of %d, %d free, traces: %v, %v", after, before, free, holds(), err)
	}
}

// A run of disposal may be one transaction: what it deleted from is vacuumed at once, and nothing else is.
func TestPostgresReclaimVacuumsWhatWasDeletedFrom(t *testing.T) {
	tables := sqldb.Migration{Domain: "t", Version: 1, SQL: "CREATE TABLE gone (a INTEGER); CREATE TABLE stays (a INTEGER)"}
	db := sqldbtest.Open(t, sqldbtest.Filled(t, tables), tables)
	for _, query := range []string{"INSERT INTO gone (a) VALUES (1), (2)", "INSERT INTO stays (a) VALUES (1)", "DELETE FROM gone WHERE a = 1"} {
		if err := db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(query)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	for table, want := range map[string]bool{"gone": true, "stays": false} {
		var vacuumed bool
		if err := db.QueryRow(t.Context(), "SELECT vacuum_count > 0 FROM pg_stat_user_tables WHERE relname = $1", table).Scan(&vacuumed); err != nil || vacuumed != want {
			t.Errorf("%s: vacuumed: %v, %v; expected %v", table, vacuumed, err, want)
		}
	}
}
