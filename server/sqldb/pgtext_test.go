package sqldb_test

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

var texts = sqldb.Migration{Domain: "texts", Version: 1, SQL: `CREATE TABLE texts (
	name TEXT NOT NULL PRIMARY KEY, again TEXT, number INTEGER CHECK (number < 100), data BLOB) WITHOUT ROWID`}

// named is a text of another type, as states and lanes are.
type named string

// Whatever bytes a text has, both engines keep it, find it and give it back.
func TestTextsComeBackAsTheyWere(t *testing.T) {
	db, _ := sqldbtest.New(t, texts)
	ctx := t.Context()
	hostile := []string{"", "plain", "Größe", "O\x00BX", "\x00", "\x00\x00", "\xff\xfe", "ends in \xc3", "\ufdd0", "\ufdd000", "\ufdd0\x00", "\ufffd", strings.Repeat("\x00", 1000)}
	insert, err := db.Prepare(ctx, "INSERT INTO texts (name, again) VALUES ($1, $2) RETURNING again")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = insert.Close() }()
	if err := db.Write(ctx, func(tx *sql.Tx) error {
		for i, s := range hostile {
			var again string
			if err := tx.Stmt(insert).QueryRow(s, named(s)).Scan(&again); err != nil || again != s {
				t.Errorf("%q is kept as %q: %v", s, again, err)
			}
			if _, err := tx.Exec("UPDATE texts SET number = $1 WHERE again = $2", i, sql.NullString{String: s, Valid: true}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i, s := range hostile {
		var name string
		var number int
		if err := db.QueryRow(ctx, "SELECT name, number FROM texts WHERE name = $1", s).Scan(&name, &number); err != nil || name != s || number != i {
			t.Errorf("%q comes back as %q, %d of %d: %v", s, name, number, i, err)
		}
	}
}

// An error goes to logs, to operators and perhaps into the log of all accesses: it names tables and columns, never what was to stand there.
func TestErrorsQuoteNoRows(t *testing.T) {
	db, _ := sqldbtest.New(t, texts)
	ctx := t.Context()
	const secret = "DOE-JOHN-1957"
	exec := func(query string, args ...any) error {
		return db.Write(ctx, func(tx *sql.Tx) error { _, err := tx.Exec(query, args...); return err })
	}
	if err := exec("INSERT INTO texts (name) VALUES ($1)", secret); err != nil {
		t.Fatal(err)
	}
	errs := map[string]error{
		"unique":     exec("INSERT INTO texts (name, again) VALUES ($1, 'x')", secret),
		"check":      exec("INSERT INTO texts (name, again, number) VALUES ('other', $1, 100)", secret),
		"null":       exec("INSERT INTO texts (name, again) VALUES (NULL, $1)", secret),
		"statement":  exec("INSERT INTO nowhere (name) VALUES ($1)", secret),
		"conversion": db.QueryRow(ctx, "SELECT number FROM texts WHERE name = $1", secret).Scan(new(int)),
	}
	if sqldbtest.Postgres(t) { // SQLite takes any value for any type
		errs["parameter"] = exec("INSERT INTO texts (name, number) VALUES ('third', $1)", secret)
		errs["cast"] = db.QueryRow(ctx, "SELECT CAST(again AS BIGINT) FROM (SELECT CAST($1 AS TEXT) AS again) x", secret).Scan(new(int))
		errs["range"] = db.QueryRow(ctx, "SELECT CAST(CAST($1 AS TEXT) AS SMALLINT)", "19570213").Scan(new(int))
		errs["bytes"] = db.QueryRow(ctx, "SELECT decode(CAST($1 AS TEXT), 'hex')", secret).Scan(new([]byte))
	}
	for name, err := range errs {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			for _, text := range []string{e.Error(), fmt.Sprintf("%+v", e), fmt.Sprintf("%#v", e)} {
				if strings.Contains(text, secret) || strings.Contains(text, "DOE") || strings.Contains(text, "19570213") {
					t.Errorf("%s: %s", name, text)
				}
			}
		}
	}
}
