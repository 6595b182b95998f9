package pgjournal_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/journal"
	"wardlink/server/journal/journaltest"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
)

// Whoever has an ingest node's login takes the turn to append and keeps it. Everybody else appends again within seconds, and the login that does
// so again is shut out; the owner is no superuser.
func TestAStolenLoginDoesNotKeepTheTurn(t *testing.T) {
	s := pgtest.Own(t, pgserver.Config{})
	for _, q := range []string{"CREATE ROLE hospital LOGIN CREATEROLE", "CREATE DATABASE cell OWNER hospital TEMPLATE template0 ENCODING 'UTF8'"} {
		if err := s.Exec(t.Context(), "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	owner := s.URL("cell", "hospital")
	if err := sqldb.Create(owner, migrations()...); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(owner, migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	const stolen = sqldb.IngestRole + "_stolen"
	if err := db.SetLogin(t.Context(), stolen, "of-16-characters!"); err != nil {
		t.Fatal(err)
	}
	fault := func() string {
		t.Helper()
		faults, err := db.LoginFaults(t.Context(), []string{stolen})
		if err != nil {
			t.Fatal(err)
		}
		return faults[stolen]
	}
	for _, drift := range [][3]string{
		{"SELECT", "SELECT", ""},
		{"GRANT SELECT ON journal_groups TO " + stolen, "REVOKE SELECT ON journal_groups FROM " + stolen, "granted to it by name"},
		{"GRANT EXECUTE ON FUNCTION pg_ls_waldir() TO " + stolen, "REVOKE EXECUTE ON FUNCTION pg_ls_waldir() FROM " + stolen, "granted to it by name"},
		{"ALTER ROLE " + stolen + " CREATEDB", "ALTER ROLE " + stolen + " NOCREATEDB", "attribute"},
		{"GRANT pg_read_all_data TO " + stolen, "REVOKE pg_read_all_data FROM " + stolen, "another role"},
		{"GRANT SELECT (size) ON journal_groups TO " + stolen, "REVOKE SELECT (size) ON journal_groups FROM " + stolen, "granted to it by name: column size of table journal_groups"},
		{"GRANT CREATE ON SCHEMA public TO " + stolen, "REVOKE CREATE ON SCHEMA public FROM " + stolen, "granted to it by name: schema public"},
		{"GRANT CREATE ON DATABASE cell TO " + stolen, "REVOKE CREATE ON DATABASE cell FROM " + stolen, "granted to it by name: database cell"},
		{"GRANT TEMPORARY ON DATABASE cell TO PUBLIC", "REVOKE TEMPORARY ON DATABASE cell FROM PUBLIC", "temporary tables"},
		{"SELECT lo_create(4711); GRANT SELECT ON LARGE OBJECT 4711 TO " + stolen, "SELECT lo_unlink(4711)", "granted to it by name: large object 4711"},
		{"SELECT lo_create(4712); GRANT SELECT ON LARGE OBJECT 4712 TO PUBLIC", "SELECT lo_unlink(4712)", "large object 4712"},
		{"CREATE TABLE its (n INTEGER); ALTER TABLE its OWNER TO " + stolen, "DROP TABLE its", "it owns table its"},
		{"GRANT SELECT ON journal_cursors TO " + sqldb.IngestRole, "REVOKE SELECT ON journal_cursors FROM " + sqldb.IngestRole, "its role was granted or owns table journal_cursors"},
		{"GRANT CREATE ON SCHEMA ingest_view TO " + sqldb.IngestRole, "REVOKE CREATE ON SCHEMA ingest_view FROM " + sqldb.IngestRole, "create in schema ingest_view"},
		{"GRANT INSERT ON ingest_view.schema_versions TO " + sqldb.IngestRole, "REVOKE INSERT ON ingest_view.schema_versions FROM " + sqldb.IngestRole, "may use ingest_view.schema_versions"},
		{"GRANT SELECT (seq) ON journal_cursors TO PUBLIC", "REVOKE SELECT (seq) ON journal_cursors FROM PUBLIC", "may use journal_cursors"},
		{"GRANT DELETE ON journal_groups TO PUBLIC", "REVOKE DELETE ON journal_groups FROM PUBLIC", "may use journal_groups"},
		{"CREATE SEQUENCE s; GRANT USAGE ON SEQUENCE s TO PUBLIC", "DROP SEQUENCE s", "may use s"},
		{"CREATE FUNCTION f() RETURNS INTEGER LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; GRANT EXECUTE ON FUNCTION f() TO PUBLIC", "DROP FUNCTION f()", "may call f()"},
		{"GRANT pg_read_all_data TO " + sqldb.IngestRole, "REVOKE pg_read_all_data FROM " + sqldb.IngestRole, "its role is a member"},
		{"GRANT " + sqldb.IngestRole + " TO " + stolen + " WITH ADMIN OPTION", "REVOKE ADMIN OPTION FOR " + sqldb.IngestRole + " FROM " + stolen, "give its role"},
		{"ALTER ROLE " + stolen + " NOLOGIN", "ALTER ROLE " + stolen + " LOGIN", "shut out"},
	} {
		if err := s.Exec(t.Context(), "cell", drift[0]); err != nil {
			t.Fatal(err)
		}
		if got := fault(); !strings.Contains(got, drift[2]) || (got == "") != (drift[2] == "") {
			t.Errorf("%s: %q", drift[0], got)
		}
		if err := s.Exec(t.Context(), "cell", drift[1]); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- db.Warden(ctx, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	j := must(t, pgjournal.Config{URL: owner})
	// As it idles after the call, as it sleeps in it, and idle again.
	for i, after := range []string{"SELECT 1", "SELECT pg_sleep(100)", "SELECT 1"} {
		thief := connect(t, s.URL("cell", stolen))
		e := journaltest.EntryOf(j, "thief", 100)
		taken, slept := make(chan error, 1), make(chan struct{})
		go func() {
			defer close(slept)
			for _, q := range []string{"SET statement_timeout = 0", "SET idle_in_transaction_session_timeout = 0", "BEGIN"} {
				if _, err := thief.Exec(t.Context(), q); err != nil {
					taken <- err
					return
				}
			}
			_, err := thief.Exec(t.Context(), "SELECT public.journal_append($1, 1, $2)", journal.Pack([]journal.Entry{e}), e.Size())
			taken <- err
			_, _ = thief.Exec(t.Context(), after)
		}()
		if err := <-taken; err != nil {
			t.Fatal(i, err)
		}
		begun := time.Now()
		if err := j.Append(t.Context(), journaltest.EntryOf(j, "honest", 100)); err != nil {
			t.Errorf("%d: nobody can append: %v", i, err)
		}
		if took := time.Since(begun); took < time.Second {
			t.Errorf("%d: the turn was not held: %v", i, took)
		}
		<-slept
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		db, err := sqldb.Look(s.URL("cell", stolen))
		if err != nil && strings.Contains(err.Error(), "28000") { // not permitted to log in
			break
		}
		if err == nil {
			_ = db.Close()
		}
		if time.Now().After(deadline) {
			t.Fatal("a login that held up the others three times is still let in: ", err)
		}
	}
	if got := fault(); !strings.Contains(got, "shut out") {
		t.Errorf("a login that is shut out: %q", got)
	}
}
