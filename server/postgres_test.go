package server

import (
	"testing"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// TestMigrationsOnPostgres applies the migrations of every domain, and compares tables and columns with SQLite's.
func TestMigrationsOnPostgres(t *testing.T) {
	url := sqldbtest.Filled(t, migrations()...)
	pg := sqldbtest.Open(t, url, migrations()...)
	path := t.TempDir() + "/wardlink.db"
	if err := sqldb.Create(path, migrations()...); err != nil {
		t.Fatal(err)
	}
	lite := sqldbtest.Open(t, path, migrations()...)
	columns := func(db *sqldb.DB, query string) map[string]string {
		rows, err := db.Query(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		out := make(map[string]string)
		for rows.Next() {
			var column, what string
			if err := rows.Scan(&column, &what); err != nil {
				t.Fatal(err)
			}
			out[column] = what
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	// A primary key is not null in PostgreSQL, and in effect in SQLite where it numbers rows.
	want := columns(lite, `SELECT m.name || '.' || c.name, c.type || CASE WHEN c."notnull" = 1 OR c.pk > 0 THEN ' NOT NULL' ELSE '' END
		FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'`)
	got := columns(pg, `SELECT c.table_name || '.' || c.column_name,
		CASE data_type WHEN 'bigint' THEN 'INTEGER' WHEN 'bytea' THEN 'BLOB' WHEN 'text' THEN 'TEXT' || CASE WHEN collation_name = 'C' THEN '' ELSE '?' END ELSE data_type END
			|| CASE WHEN is_nullable = 'NO' THEN ' NOT NULL' ELSE '' END
		FROM information_schema.columns c WHERE table_schema = 'public' AND table_name NOT IN ('leases', 'last_writes')`)
	if len(want) < 200 {
		t.Fatalf("%d columns", len(want))
	}
	for column, what := range want {
		if got[column] != what {
			t.Errorf("%s: PostgreSQL has %q, SQLite %q", column, got[column], what)
		}
		delete(got, column)
	}
	if len(got) != 0 {
		t.Errorf("PostgreSQL alone has %v", got)
	}
	names := func(db *sqldb.DB, query string) map[string]string { return columns(db, query) }
	want = names(lite, `SELECT name, tbl_name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL OR type = 'trigger'`)
	got = names(pg, `SELECT indexname, tablename FROM pg_indexes WHERE schemaname = 'public' UNION ALL SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal`)
	if len(want) < 20 {
		t.Fatalf("%d indexes and triggers", len(want))
	}
	for name, table := range want {
		if got[name] != table {
			t.Errorf("index or trigger %s of %s: PostgreSQL has it on %q", name, table, got[name])
		}
	}
}
