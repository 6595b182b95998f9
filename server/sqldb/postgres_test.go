package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

var numbers = sqldb.Migration{Domain: "t", Version: 1, SQL: "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL, b BLOB)"}

func insert(ctx context.Context, db *sqldb.DB, a string) error {
	return db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO t (a) VALUES ($1)", a)
		return err
	})
}

func count(t *testing.T, db *sqldb.DB) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), "SELECT COUNT(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPostgresCreateRefuses(t *testing.T) {
	url := pgtest.New(t)
	if _, err := sqldb.Open(url, numbers); err == nil || !strings.Contains(err.Error(), "not a wardlink database") {
		t.Errorf("opened an empty database: %v", err)
	}
	if err := sqldb.Create(url, numbers); err != nil {
		t.Fatal(err)
	}
	if err := sqldb.Create(url, numbers); !errors.Is(err, sqldb.ErrExists) {
		t.Errorf("made twice: %v", err)
	}
	foreign := pgtest.Template(t, "foreign", func(url string) error {
		db, err := sql.Open("pgx", url)
		if err != nil {
			return err
		}
		_, err = db.Exec("CREATE TABLE schema_versions (domain TEXT, version INTEGER)")
		return errors.Join(err, db.Close())
	})
	if err := sqldb.Create(foreign, numbers); err == nil || errors.Is(err, sqldb.ErrExists) || !strings.Contains(err.Error(), "not empty (public.schema_versions") {
		t.Errorf("filled another's database: %v", err)
	}
	if _, err := sqldb.Open(foreign, numbers); err == nil || !strings.Contains(err.Error(), "not a wardlink database") {
		t.Errorf("opened another's database: %v", err)
	}
}

// Two processes fill one database at once: one does, the other is told.
func TestPostgresCreateTwice(t *testing.T) {
	url := pgtest.New(t)
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = sqldb.Create(url, numbers) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, sqldb.ErrExists) {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d made it", made)
	}
}

// An upgrade is all or nothing, its hook in the same transaction; what a newer program left is refused; OpenBeside changes nothing.
func TestPostgresUpgrade(t *testing.T) {
	url := sqldbtest.Filled(t, numbers)
	two := []sqldb.Migration{numbers, {Domain: "t", Version: 2, SQL: "ALTER TABLE t ADD COLUMN c INTEGER NOT NULL DEFAULT 5", Postgres: "CREATE VIEW v AS SELECT c FROM t"}}
	if _, err := sqldb.OpenBeside(url, two...); err == nil || !strings.Contains(err.Error(), "expects version 2") {
		t.Error(err)
	}
	broken := append(two[:2:2], sqldb.Migration{Domain: "t", Version: 3, SQL: "INSERT INTO t (nothing) VALUES (1)"})
	if _, err := sqldb.Open(url, broken...); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Error(err)
	}
	boom := errors.New("boom")
	if _, err := sqldb.OpenConfig(sqldb.Config{Path: url, Migrations: two, Upgraded: func(*sql.Tx, sqldb.Upgrade) error { return boom }}); !errors.Is(err, boom) {
		t.Error(err)
	}
	if still, err := sqldb.Open(url, numbers); err != nil || still.Close() != nil {
		t.Fatal(err)
	}
	var hooked sqldb.Upgrade
	db, err := sqldb.OpenConfig(sqldb.Config{Path: url, Migrations: two, Upgraded: func(_ *sql.Tx, u sqldb.Upgrade) error { hooked = u; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := insert(t.Context(), db, "x"); err != nil {
		t.Fatal(err)
	}
	var c int
	if err := db.QueryRow(t.Context(), "SELECT c FROM v").Scan(&c); err != nil || c != 5 {
		t.Error(c, err)
	}
	if hooked.From.String() != "postgres 1, t 1" || hooked.To.String() != "postgres 1, t 2" || hooked.Copy != "" {
		t.Errorf("%+v", hooked)
	}
	if _, err := sqldb.Open(url, numbers); !errors.Is(err, sqldb.ErrNewer) {
		t.Error(err)
	}
}

// Writes of several processes go one after the other: what one read is still true when it writes.
func TestPostgresOneWriter(t *testing.T) {
	url := sqldbtest.Filled(t, numbers)
	ctx := t.Context()
	const processes, each = 4, 25
	var wg sync.WaitGroup
	for range processes {
		db := sqldbtest.Open(t, url, numbers)
		wg.Go(func() {
			for range each {
				if err := db.Write(ctx, func(tx *sql.Tx) error {
					var n int
					if err := tx.QueryRow("SELECT COUNT(*) FROM t").Scan(&n); err != nil {
						return err
					}
					_, err := tx.Exec("INSERT INTO t (a) VALUES ($1)", fmt.Sprint(n))
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var distinct int
	db := sqldbtest.Open(t, url, numbers)
	if err := db.QueryRow(ctx, "SELECT COUNT(DISTINCT a) FROM t").Scan(&distinct); err != nil || distinct != processes*each {
		t.Errorf("%d of %d writes saw all before them: %v", distinct, processes*each, err)
	}
}

func TestPostgresReadIsASnapshotAndWritesNothing(t *testing.T) {
	db := sqldbtest.Open(t, sqldbtest.Filled(t, numbers), numbers)
	ctx := t.Context()
	if err := db.Read(ctx, func(tx *sql.Tx) error {
		for range 2 {
			var n int
			if err := tx.QueryRow("SELECT COUNT(*) FROM t").Scan(&n); err != nil || n != 0 {
				t.Error(n, err)
			}
			if err := insert(ctx, db, "x"); err != nil {
				t.Error(err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Query(ctx, "INSERT INTO t (a) VALUES ('y') RETURNING id"); err == nil {
		t.Error("a reader wrote")
	}
	if n := count(t, db); n != 2 {
		t.Error(n)
	}
}

// Texts are compared by their bytes, as SQLite compares them, whatever the database's locale is.
func TestPostgresComparesBytes(t *testing.T) {
	db := sqldbtest.Open(t, sqldbtest.Filled(t, numbers), numbers)
	for _, a := range []string{"a", "B", "ä", "Z", "_"} {
		if err := insert(t.Context(), db, a); err != nil {
			t.Fatal(err)
		}
	}
	var order, collation string
	if err := db.QueryRow(t.Context(), `SELECT string_agg(a, '' ORDER BY a), MIN(pg_collation_for(a)) FROM t`).Scan(&order, &collation); err != nil || order != "BZ_aä" || collation != `"C"` {
		t.Error(order, collation, err)
	}
}

// The server is killed and comes back: an error says that it is the machine's, and then everything goes on by itself.
func TestPostgresKilledAndBack(t *testing.T) {
	s := pgtest.Own(t, pgserver.Config{})
	pgtest.Create(t, s, "w", "template0")
	url := s.URL("w", pgserver.Superuser)
	if err := sqldb.Create(url, numbers); err != nil {
		t.Fatal(err)
	}
	db := sqldbtest.Open(t, url, numbers)
	ctx := t.Context()
	if err := insert(ctx, db, "before"); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(ctx, "SELECT of_a_later_release FROM t").Scan(new(int)); !sqldb.Environment(err) {
		t.Errorf("a column that the schema has not: %v", err)
	}
	if err := db.Write(ctx, func(tx *sql.Tx) error {
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		_, err := tx.Exec("INSERT INTO t (a) VALUES ('killed')")
		return err
	}); !sqldb.Environment(err) {
		t.Errorf("killed in a write: %v", err)
	}
	if err := insert(ctx, db, "down"); !sqldb.Environment(err) || !strings.Contains(err.Error(), "used again by itself") {
		t.Errorf("down: %v", err)
	}
	if err := db.QueryRow(ctx, "SELECT 1").Scan(new(int)); !sqldb.Environment(err) {
		t.Errorf("down: %v", err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if err := insert(ctx, db, "after"); err != nil {
		t.Error(err)
	}
	if n := count(t, db); n != 2 {
		t.Errorf("%d rows, expected those of before and after", n)
	}
}

// A server that may forget is refused, and one that begins to is no longer used.
func TestPostgresRefusesToForget(t *testing.T) {
	s := pgtest.Own(t, pgserver.Config{})
	pgtest.Create(t, s, "w", "template0")
	url := s.URL("w", pgserver.Superuser)
	if err := sqldb.Create(url, numbers); err != nil {
		t.Fatal(err)
	}
	db := sqldbtest.Open(t, url, numbers)
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		for _, value := range []string{"off", "on"} {
			if err := errors.Join(s.Halt(), s.Set(map[string]string{setting: value}), s.Start()); err != nil {
				t.Fatal(err)
			}
			other, opening := sqldb.Open(url, numbers)
			if opening == nil {
				_ = other.Close()
			}
			writing := insert(t.Context(), db, setting)
			if value == "on" {
				if opening != nil || writing != nil {
					t.Errorf("%s on: %v, %v", setting, opening, writing)
				}
				continue
			}
			for what, err := range map[string]error{"opening": opening, "writing": writing} {
				if err == nil || !strings.Contains(err.Error(), setting+" is off") || !strings.Contains(err.Error(), "set "+setting+" = on") {
					t.Errorf("%s with %s off: %v", what, setting, err)
				}
			}
			if !sqldb.Environment(writing) {
				t.Error(writing)
			}
		}
	}
	// Of a role alone, too.
	if err := s.Exec(t.Context(), "postgres", "CREATE ROLE lax LOGIN SUPERUSER; ALTER ROLE lax SET synchronous_commit = off"); err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Open(s.URL("w", "lax"), numbers); err == nil || !strings.Contains(err.Error(), "synchronous_commit is off") {
		t.Error(err)
	}
	if err := s.Exec(t.Context(), "postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'"); err != nil {
		t.Fatal(err)
	}
	if err := sqldb.Create(s.URL("latin", pgserver.Superuser), numbers); err == nil || !strings.Contains(err.Error(), "expected UTF8") {
		t.Error(err)
	}
}

func TestPostgresURLs(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://u:hunter2@db.example:5432/w?sslmode=prefer":                        "falls back to plain text",
		"postgres://u:hunter2@db.example/w?sslmode=allow":                              "falls back to plain text",
		"postgres://u:hunter2@db.example/?sslmode=verify-full":                         "names no database",
		"postgres://u:hunter2@db.example:nonsense/w":                                   "cannot be read",
		"postgres://u:hun%zzter2@db.example/w":                                         "cannot be read",
		"postgres://u:hunter2@db.example/w?sslmode=hunter2":                            "cannot be used",
		"postgres://u:hunter2@db.example/w?sslrootcert=/nowhere/ca.pem":                "does not exist",
		"postgres://u:hunter2@127.0.0.1:1/w":                                           "does not answer",
		"postgres://u:hunter2@localhost:1/w?password=hunter2":                          "does not answer",
		"postgres:///w?host=/nowhere&user=u&password=hunter2":                          "does not answer",
		"postgres://u:hunter2@127.0.0.1,db.example/w?sslmode=prefer":                   "falls back to plain text",
		"postgres://u:hunter2@/w?host=127.0.0.1,db.example&sslmode=prefer":             "falls back to plain text",
		"postgres://u:hunter2@127.0.0.1:1/w?options=" + strings.Repeat("hunter2", 3):   "does not answer",
		"postgres://u:hunter2@127.0.0.1:1/w?target_session_attrs=hunter2":              "cannot be used",
		"postgres://u:hunter2@127.0.0.1:1/w?connect_timeout=hunter2":                   "cannot be used",
		"postgres://u:hunter2@127.0.0.1:1/w?sslmode=verify-full&sslrootcert=/dev/null": "cannot be used",
	} {
		_, err := sqldb.Open(url, numbers)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; expected %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a password is in: %v", err)
		}
		for _, shown := range []string{sqldb.Display(url)} {
			if strings.Contains(shown, "hunter2") {
				t.Errorf("a password is in: %s", shown)
			}
		}
	}
}

// One of three processes runs the service; when its connection is cut the next one does, and a write of the former no longer lands.
func TestPostgresSingleton(t *testing.T) {
	url := sqldbtest.Filled(t, numbers)
	ctx := t.Context()
	type start struct {
		db    *sqldb.DB
		place sqldb.Place
		run   context.Context
		end   chan struct{}
		over  chan error
	}
	started := make(chan *start)
	var wg sync.WaitGroup
	for range 3 {
		s := &start{db: sqldbtest.Open(t, url, numbers), end: make(chan struct{}), over: make(chan error, 1)}
		wg.Go(func() {
			s.over <- s.db.Singleton(ctx, "service", func(ctx context.Context, p sqldb.Place) error {
				s.place, s.run = p, ctx
				started <- s
				<-s.end
				return nil
			})
		})
	}
	write := func(s *start) error {
		return s.db.Write(ctx, func(tx *sql.Tx) error {
			if err := s.place.Check(tx); err != nil {
				return err
			}
			_, err := tx.Exec("INSERT INTO t (a) VALUES ('x')")
			return err
		})
	}
	first := <-started
	if err := write(first); err != nil {
		t.Fatal(err)
	}
	select {
	case <-started:
		t.Fatal("two run")
	case <-time.After(300 * time.Millisecond):
	}
	if err := pgtest.Server(t).Exec(ctx, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wardlink service' AND state = 'idle in transaction'"); err != nil {
		t.Fatal(err)
	}
	<-first.run.Done()
	second := <-started
	if second.place.Generation() != first.place.Generation()+1 {
		t.Error(first.place, second.place)
	}
	if err := write(first); !errors.Is(err, sqldb.ErrSuperseded) {
		t.Errorf("the former one wrote: %v", err)
	}
	// Nor does it where nobody thought of the place: not even with what it does after its end.
	if err := first.db.Write(context.WithoutCancel(first.run), func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO t (a) VALUES ('x')")
		return err
	}); !errors.Is(err, sqldb.ErrSuperseded) {
		t.Errorf("the former one wrote by its context: %v", err)
	}
	if err := write(second); err != nil {
		t.Error(err)
	}
	close(first.end)
	if err := <-first.over; !errors.Is(err, sqldb.ErrSuperseded) {
		t.Error(err)
	}
	close(second.end)
	if err := <-second.over; err != nil {
		t.Error(err)
	}
	third := <-started
	if err := write(third); err != nil {
		t.Error(err)
	}
	close(third.end)
	wg.Wait()
	if n := count(t, third.db); n != 3 {
		t.Error(n)
	}
}

func TestSingletonOnSQLite(t *testing.T) {
	path := t.TempDir() + "/w.db"
	if err := sqldb.Create(path, numbers); err != nil {
		t.Fatal(err)
	}
	db := sqldbtest.Open(t, path, numbers)
	if err := db.Singleton(t.Context(), "service", func(ctx context.Context, p sqldb.Place) error {
		return db.Write(ctx, p.Check)
	}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// A node's login gets in by its password alone, may do what its role may in this database and nothing else, and is gone when it is dropped.
func TestPostgresLogin(t *testing.T) {
	s := pgtest.Own(t, pgserver.Config{HBA: []string{"local all postgres,owner trust", "local all all scram-sha-256"}})
	if err := s.Exec(t.Context(), "postgres", "CREATE ROLE owner LOGIN CREATEROLE"); err != nil { // as OPERATING.md says, no superuser
		t.Fatal(err)
	}
	if err := s.Exec(t.Context(), "postgres", "CREATE DATABASE w OWNER owner TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
		t.Fatal(err)
	}
	url := s.URL("w", "owner")
	if err := sqldb.Create(url, numbers); err != nil {
		t.Fatal(err)
	}
	db := sqldbtest.Open(t, url, numbers)
	ctx, name := t.Context(), sqldb.IngestRole+"_a"
	for _, bad := range [][2]string{{"postgres", strings.Repeat("x", 16)}, {name + "'", strings.Repeat("x", 16)}, {name, "short"}, {name, strings.Repeat("x", 15) + " "}} {
		if err := db.SetLogin(ctx, bad[0], bad[1]); err == nil || strings.Contains(err.Error(), "xxxx") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	open := func(password, database string) (*sql.DB, error) {
		return sqldb.Look(strings.Replace(s.URL(database, name), name+"@", name+":"+password+"@", 1))
	}
	const former, password = "a-former-password", "of-16-characters!"
	if err := errors.Join(db.SetLogin(ctx, name, former), db.SetLogin(ctx, name, password)); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{former, "", "another-password-"} {
		if _, err := open(wrong, "w"); !sqldb.Environment(err) || !strings.Contains(err.Error(), "refuses the login") || wrong != "" && strings.Contains(err.Error(), wrong) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	node, err := open(password, "w")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = node.Close() }()
	if err := node.QueryRow("SELECT version FROM schema_versions WHERE domain = 't'").Scan(new(int)); err != nil {
		t.Error(err)
	}
	for _, s := range []string{
		"SELECT * FROM t", "INSERT INTO t (a) VALUES ('x')", "CREATE TABLE mine (a INT)", "CREATE TEMPORARY TABLE mine (a INT)", "SELECT * FROM public.schema_versions",
		"UPDATE schema_versions SET version = 9", "DO $$ BEGIN LOCK TABLE public.write_lock IN ACCESS SHARE MODE; END $$", "SELECT begin_write(1, 1)", "SELECT * FROM leases",
		"CREATE SCHEMA mine", "CREATE FUNCTION ingest_view.f() RETURNS INT LANGUAGE sql AS 'SELECT 1'", "SET ROLE postgres", "SELECT pg_read_file('/etc/passwd')",
		"COPY (SELECT 1) TO PROGRAM 'true'", "SELECT rolpassword FROM pg_authid", "CREATE ROLE mine", "ALTER ROLE postgres PASSWORD 'x'",
	} {
		if _, err := node.Exec("SET default_transaction_read_only = off"); err != nil {
			t.Fatal(err)
		}
		if _, err := node.Exec(s); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("%s: %v; expected it to be denied", s, err)
		}
	}
	if log, err := os.ReadFile(s.Log()); err != nil || strings.Contains(string(log), password) {
		t.Errorf("PostgreSQL's log has the password, or %v", err)
	}
	// It is dropped also while it keeps a transaction about itself open.
	if _, err := node.Exec("BEGIN; ALTER ROLE " + name + " PASSWORD 'another-password-'"); err != nil {
		t.Fatal(err)
	}
	if err := db.DropLogin(ctx, name); err != nil {
		t.Fatal(err)
	}
	if err := node.Ping(); err == nil {
		t.Error("a login that was dropped is still there")
	}
	if err := db.DropLogin(ctx, name); err != nil {
		t.Error(err)
	}
}
