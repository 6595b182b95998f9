package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestSnapshotOfADatabaseThatIsWrittenTo: every transaction keeps two tables equal, so a copy that mixed two states would show it.
func TestSnapshotOfADatabaseThatIsWrittenTo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "live.db")
	schema := []Migration{{Domain: "pair", Version: 1, SQL: `CREATE TABLE a (n INTEGER, pad BLOB); CREATE TABLE b (n INTEGER, pad BLOB);
		INSERT INTO a VALUES (0, ''); INSERT INTO b VALUES (0, '');`}}
	if err := Create(path, schema...); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path, schema...)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		for ctx.Err() == nil {
			_ = db.Write(ctx, func(tx *sql.Tx) error {
				_, err := tx.Exec("UPDATE a SET n = n + 1, pad = randomblob(60000); UPDATE b SET n = n + 1, pad = randomblob(60000)")
				return err
			})
		}
	})
	defer writer.Wait()
	defer cancel()
	last := int64(-1)
	for i := range 5 {
		copied := filepath.Join(dir, "copy", string(rune('a'+i)))
		if err := os.MkdirAll(filepath.Dir(copied), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := Snapshot(t.Context(), path, copied); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(copied); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v; want mode 0600", info.Mode(), err)
		}
		c, err := Open(copied, schema...)
		if err != nil {
			t.Fatal(err)
		}
		var a, b int64
		if err := c.QueryRow(t.Context(), "SELECT a.n, b.n FROM a, b").Scan(&a, &b); err != nil || a != b || a < last {
			t.Fatalf("%d and %d after %d, %v", a, b, last, err)
		}
		last = a
		if err := errors.Join(c.Check(t.Context()), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if last <= 0 {
		t.Fatal("nothing was written meanwhile")
	}
	if err := Snapshot(t.Context(), path, filepath.Join(dir, "copy", "a")); err == nil {
		t.Fatal("a file that was there was overwritten")
	}
	if err := Snapshot(t.Context(), filepath.Join(dir, "none.db"), filepath.Join(dir, "new")); !errors.Is(err, ErrMissing) {
		t.Fatalf("%v; want ErrMissing", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "none.db")); err == nil {
		t.Fatal("a database was made")
	}
}
