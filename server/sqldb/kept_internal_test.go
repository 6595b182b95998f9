package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
)

// keptOf looks into the writer's connection: how many statements it keeps, and which of these texts.
func keptOf(t *testing.T, db *sql.DB, texts ...string) (n int, has []bool) {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.Raw(func(raw any) error {
		c := raw.(*keeping)
		n = len(c.byText)
		if n != c.recent.Len() {
			t.Errorf("%d by text, %d in order", n, c.recent.Len())
		}
		for _, text := range texts {
			_, ok := c.byText[text]
			has = append(has, ok)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n, has
}

func keptDB(t *testing.T) *sql.DB {
	t.Helper()
	db, err := openHandle(filepath.Join(t.TempDir(), "kept.db"), writerPragmas, "immediate", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.Exec("CREATE TABLE numbers (n INTEGER PRIMARY KEY, word TEXT); INSERT INTO numbers VALUES (1, 'one'), (2, 'two'), (3, 'three')"); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestKeepsStatements(t *testing.T) {
	db := keptDB(t)
	const word, insert, pragma = "SELECT word FROM numbers WHERE n = $1", "INSERT INTO numbers (n, word) VALUES ($1, $2)", "PRAGMA busy_timeout"
	for i, want := range []string{"one", "two", "one"} {
		var got string
		if err := db.QueryRow(word, []int{1, 2, 1}[i]).Scan(&got); err != nil || got != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if _, err := db.Exec(insert, 4, "four"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(insert, 4, "four again"); err == nil {
		t.Fatal("a second row of one key")
	}
	if err := db.QueryRow(pragma).Scan(new(int)); err != nil {
		t.Fatal(err)
	}
	// What failed is not kept, and a PRAGMA never.
	if n, has := keptOf(t, db, word, insert, pragma); n != 1 || !has[0] {
		t.Errorf("%d are kept: %v", n, has)
	}
	// A statement outlives a change of what it names.
	if _, err := db.Exec("ALTER TABLE numbers RENAME COLUMN word TO was; ALTER TABLE numbers ADD COLUMN word TEXT NOT NULL DEFAULT 'new'"); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := db.QueryRow(word, 1).Scan(&got); err != nil || got != "new" {
		t.Errorf("%q, %v", got, err)
	}
}

// One text runs while rows of it are read, and a reader who stops early leaves nothing behind for the next.
func TestKeptStatementsInEachOther(t *testing.T) {
	db := keptDB(t)
	const from = "SELECT n FROM numbers WHERE n >= $1 ORDER BY n"
	count := func(tx *sql.Tx, first int, visit func(n int) error) (err error) {
		rows, err := tx.Query(from, first)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		for rows.Next() {
			var n int
			if err := rows.Scan(&n); err != nil {
				return err
			}
			if err := visit(n); err != nil {
				return err
			}
		}
		return rows.Err()
	}
	for range 2 {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		if err := count(tx, 1, func(outer int) error {
			return count(tx, outer, func(inner int) error {
				seen = append(seen, fmt.Sprint(outer, inner))
				return nil
			})
		}); err != nil || fmt.Sprint(seen) != "[1 1 1 2 1 3 2 2 2 3 3 3]" {
			t.Errorf("%v, %v", seen, err)
		}
		stop := errors.New("enough")
		if err := count(tx, 1, func(int) error { return stop }); !errors.Is(err, stop) {
			t.Error(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if n, has := keptOf(t, db, from); n != 1 || !has[0] {
			t.Errorf("%d are kept: %v", n, has)
		}
	}
}

func TestKeptStatementsAreBounded(t *testing.T) {
	db := keptDB(t)
	text := func(i int) string { return fmt.Sprintf("SELECT %d FROM numbers", i) }
	for i := range maxKept + 10 {
		if err := db.QueryRow(text(i)).Scan(new(int)); err != nil {
			t.Fatal(err)
		}
		if err := db.QueryRow(text(0)).Scan(new(int)); err != nil { // which so stays
			t.Fatal(err)
		}
	}
	if n, has := keptOf(t, db, text(0), text(1), text(maxKept+9)); n != maxKept || !has[0] || has[1] || !has[2] {
		t.Errorf("%d are kept: %v", n, has)
	}
	long := "SELECT 1 -- " + fmt.Sprintf("%*s", maxKeptText, "")
	if err := db.QueryRow(long).Scan(new(int)); err != nil {
		t.Fatal(err)
	}
	if _, has := keptOf(t, db, long); has[0] {
		t.Error("a long text is kept")
	}
}

// A statement whose request hung up is not kept half done.
func TestKeptStatementThatIsInterrupted(t *testing.T) {
	db := keptDB(t)
	const text = "SELECT n FROM numbers ORDER BY n"
	ctx, cancel := context.WithCancel(t.Context())
	rows, err := db.QueryContext(ctx, text)
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	cancel()
	_ = rows.Close() // says that it was cancelled, or nothing
	var n int
	if err := db.QueryRow(text).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}
