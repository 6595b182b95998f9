package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

var things = []sqldb.Migration{
	{Domain: "things", Version: 1, SQL: "CREATE TABLE things (name TEXT NOT NULL PRIMARY KEY); CREATE TABLE parts (thing TEXT NOT NULL REFERENCES things (name))"},
	{Domain: "things", Version: 2, SQL: "ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 0"},
}

func create(t *testing.T, ms ...sqldb.Migration) (*sqldb.DB, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a ward%?#.db")
	if err := sqldb.Create(path, ms...); err != nil {
		t.Fatal(err)
	}
	return sqldbtest.Open(t, path, ms...), path
}

func TestCreateAndOpenAreDifferentVerbs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if _, err := sqldb.Open(path); !errors.Is(err, sqldb.ErrMissing) || !strings.Contains(err.Error(), path) {
		t.Fatalf("Open of a missing file: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("Open made the file")
	}
	if err := sqldb.Create(path, things...); err != nil {
		t.Fatal(err)
	}
	if err := sqldb.Create(path, things...); !errors.Is(err, sqldb.ErrExists) {
		t.Fatalf("second Create: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, error %v", info.Mode(), err)
	}
	left, _ := filepath.Glob(filepath.Dir(path) + "/*")
	if len(left) != 1 {
		t.Fatalf("Create left %v", left)
	}
}

func TestCreateAfterInterruptedCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path+".making", []byte("half a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sqldb.Create(path, things...); err != nil {
		t.Fatal(err)
	}
	sqldbtest.Open(t, path, things...)
}

func TestDurabilitySettings(t *testing.T) {
	db, _ := create(t, things...)
	err := db.Write(context.Background(), func(tx *sql.Tx) error {
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
			var got string
			if err := tx.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s = %q, expected %q (%v)", pragma, got, want, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Query(context.Background(), "INSERT INTO things (name) VALUES ('x') RETURNING name"); err == nil {
		rows, _ := db.Query(context.Background(), "SELECT name FROM things")
		if rows.Next() {
			t.Error("a reader wrote")
		}
		_ = rows.Close()
	}
}

func TestMigrationsWithAHoleAreNotTaken(t *testing.T) {
	_, path := create(t, things[0])
	if _, err := sqldb.Open(path, things[1]); err == nil || !strings.Contains(err.Error(), "expected version 1") {
		t.Fatalf("%v", err)
	}
}

func TestFailedMigrationLeavesTheOldSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := sqldb.Create(path, things[0]); err != nil {
		t.Fatal(err)
	}
	bad := sqldb.Migration{Domain: "things", Version: 2, SQL: "CREATE TABLE halves (x); CREATE TABLE things (y)"}
	if _, err := sqldb.Open(path, things[0], bad); err == nil {
		t.Fatal("bad migration was taken")
	}
	db := sqldbtest.Open(t, path, things...)
	var n int
	if err := db.QueryRow(context.Background(), "SELECT COUNT(*) FROM sqlite_master WHERE name = 'halves'").Scan(&n); err != nil || n != 0 {
		t.Fatalf("half a migration stayed: %d %v", n, err)
	}
}

func TestOpenRefusesForeignFiles(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Open(text); err == nil || !strings.Contains(err.Error(), "not a database") {
		t.Errorf("text file: %v", err)
	}
	other := filepath.Join(dir, "other.db")
	raw, err := sql.Open("sqlite", other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Exec("CREATE TABLE theirs (x)"); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Open(other, things...); err == nil || !strings.Contains(err.Error(), "not a wardlink database") {
		t.Errorf("somebody else's database: %v", err)
	}
	if _, err := sqldb.Open(dir); err == nil || !strings.Contains(err.Error(), "regular file") {
		t.Errorf("directory: %v", err)
	}
}

func TestWriteRollsBackOnErrorAndPanic(t *testing.T) {
	db, _ := create(t, things...)
	ctx := context.Background()
	insert := func(tx *sql.Tx) {
		if _, err := tx.Exec("INSERT INTO things (name) VALUES ('x')"); err != nil {
			t.Error(err)
		}
	}
	boom := errors.New("boom")
	if err := db.Write(ctx, func(tx *sql.Tx) error { insert(tx); return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = db.Write(ctx, func(tx *sql.Tx) error { insert(tx); panic("boom") })
	}()
	if err := db.Write(ctx, func(tx *sql.Tx) error {
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM things").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows stayed (%v)", n, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestEnvironmentErrorsNameTheMend(t *testing.T) {
	db, path := create(t, things...)
	ctx := context.Background()
	err := db.Write(ctx, func(tx *sql.Tx) error {
		var pages int
		if err := tx.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
			return err
		}
		// SQLite's own bound stands in for a full disk: the same code comes back.
		if err := tx.QueryRow("PRAGMA max_page_count = 1").Scan(&pages); err != nil {
			return err
		}
		for {
			if _, err := tx.Exec("INSERT INTO things (name) VALUES (hex(randomblob(2000)))"); err != nil {
				return err
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), "free space") || !strings.Contains(err.Error(), path) || !sqldb.Environment(err) {
		t.Errorf("disk full: %v", err)
	}
	err = db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO parts (thing) VALUES ('missing')")
		return err
	})
	if err == nil || sqldb.Environment(err) {
		t.Errorf("foreign key: %v", err)
	}
	if sqldb.Environment(nil) {
		t.Error("nil is an environment error")
	}
}

func TestReadIsOneSnapshot(t *testing.T) {
	db, _ := create(t, things...)
	ctx := context.Background()
	count := func(tx *sql.Tx) (n int) {
		if err := tx.QueryRow("SELECT COUNT(*) FROM things").Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	err := db.Read(ctx, func(tx *sql.Tx) error {
		before := count(tx)
		if err := db.Write(ctx, func(w *sql.Tx) error {
			_, err := w.Exec("INSERT INTO things (name) VALUES ('x')")
			return err
		}); err != nil {
			return err
		}
		if after := count(tx); after != before {
			t.Errorf("the snapshot moved from %d to %d", before, after)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWriteWaitsABoundedTime: writes behind one that does not end fail together, and say so as a condition of the machine.
func TestWriteWaitsABoundedTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := sqldb.Create(path); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		db, err := sqldb.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		holding, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- db.Write(t.Context(), func(*sql.Tx) error { close(holding); <-release; return nil })
		}()
		<-holding
		began, errs := time.Now(), make(chan error, 3)
		for range cap(errs) {
			go func() { errs <- db.Write(t.Context(), func(*sql.Tx) error { return errors.New("it had its turn") }) }()
		}
		for range cap(errs) {
			if err := <-errs; !sqldb.Environment(err) || !strings.Contains(err.Error(), "locked") {
				t.Errorf("%v; expected a database that is busy", err)
			}
		}
		if waited := time.Since(began); waited != 5*time.Second {
			t.Errorf("waited %v; expected 5 s for all together", waited)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := db.Write(ctx, func(*sql.Tx) error { return nil }); !errors.Is(err, context.Canceled) || sqldb.Environment(err) {
			t.Errorf("%v; expected the caller's own end", err)
		}
		close(release)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
