package registry_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // what a thief of the login would use

	"wardlink/audit"
	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// cell is a PostgreSQL database as its owner has it, and the URL by which an ingest node logs in.
type cell struct {
	db   *sqldb.DB
	reg  *registry.Registry
	node string
}

// newCell makes both logins as an installation does: the owner is no superuser.
func newCell(t *testing.T) *cell {
	t.Helper()
	s := pgtest.Own(t, pgserver.Config{})
	ctx := t.Context()
	for _, q := range []string{"CREATE ROLE hospital LOGIN CREATEROLE", "CREATE DATABASE cell OWNER hospital TEMPLATE template0 ENCODING 'UTF8'"} {
		if err := s.Exec(ctx, "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	migrations := slices.Concat(sqldb.OutboxMigrations(), registry.Migrations(), records.Migrations())
	owner := s.URL("cell", "hospital")
	if err := sqldb.Create(owner, migrations...); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"CREATE ROLE node_1 LOGIN IN ROLE wardlink_ingest", "ALTER ROLE node_1 SET search_path = ingest_view"} {
		if err := s.Exec(ctx, "cell", q); err != nil {
			t.Fatal(err)
		}
	}
	c := &cell{db: sqldbtest.Open(t, owner, migrations...), node: s.URL("cell", "node_1")}
	outbox, err := sqldb.NewOutbox(c.db, &sqldbtest.Journal{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.reg, err = registry.New(registry.Config{DB: c.db, Outbox: outbox}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cell) enter(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		ek := [32]byte([]byte(fmt.Sprintf("%-32s", id)))
		if _, err := c.reg.Import(t.Context(), audit.Actor{ID: "op"}, "", []registry.Gateway{{ID: id, EKs: [][32]byte{ek}, Site: "north", Ward: "icu"}}); err != nil {
			t.Fatal(err)
		}
	}
}

// An ingest node's login admits as its server does, and sees nothing of why, where and whose.
func TestAnIngestNodeAdmits(t *testing.T) {
	c := newCell(t)
	ctx, op := t.Context(), audit.Actor{ID: "op"}
	c.enter(t, "gw-1", "gw-2", "gw-3")
	db, err := sqldb.OpenBeside(c.node, registry.Migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	v := registry.NewView(db)
	before, err := v.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.reg.Revoke(ctx, op, "", "gw-2", "stolen from bed 7"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.reg.Suspend(ctx, op, "", "gw-3", "in repair"); err != nil {
		t.Fatal(err)
	}
	key := [32]byte{1}
	if a, err := v.AdmitKey(ctx, "gw-1", key); err != nil || a.Gateway != "gw-1" || a.Lanes == 0 {
		t.Errorf("%+v %v", a, err)
	}
	held := (*registry.HeldError)(nil)
	if _, err := v.AdmitKey(ctx, "gw-2", key); !errors.Is(err, registry.ErrRevoked) || strings.Contains(err.Error(), "bed 7") {
		t.Error(err)
	}
	if _, err := v.AdmitKey(ctx, "gw-3", key); !errors.As(err, &held) || held.State != registry.Suspended || held.Reason != "" {
		t.Error(err)
	}
	if _, err := v.AdmitKey(ctx, "gw-4", key); !errors.Is(err, registry.ErrUnknown) {
		t.Error(err)
	}
	if after, err := v.Revision(ctx); err != nil || after <= before {
		t.Error(before, after, err)
	}
	if cut, err := v.CutOff(ctx); err != nil || len(cut) != 2 || cut[0].Gateway != "gw-2" || cut[1].Gateway != "gw-3" {
		t.Error(cut, err)
	}
	if holds, err := v.HoldsNewest(ctx, "gw-1", key, "00"); err != nil || holds {
		t.Error(holds, err)
	}
}

// Of two sessions of a gateway the later one passes the former, at whichever node each is; a gateway that nobody registered has none.
func TestSessionsPassEachOther(t *testing.T) {
	c := newCell(t)
	ctx := t.Context()
	c.enter(t, "gw-1", "gw-2")
	db, err := sqldb.OpenBeside(c.node, registry.Migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	node, main := registry.NewSessions(db), registry.NewSessions(c.db)
	first, err := node.Bump(ctx, "gw-1")
	if err != nil || first < time.Now().Add(-time.Minute).UnixMilli() {
		t.Fatal(first, err)
	}
	other, err := node.Bump(ctx, "gw-2")
	if err != nil {
		t.Fatal(err)
	}
	live := map[string]int64{"gw-1": first, "gw-2": other}
	if passed, err := node.Passed(ctx, live); err != nil || len(passed) != 0 {
		t.Error(passed, err)
	}
	second, err := main.Bump(ctx, "gw-1")
	if err != nil || second <= first {
		t.Fatal(second, err)
	}
	for name, s := range map[string]*registry.Sessions{"node": node, "main": main} {
		if passed, err := s.Passed(ctx, live); err != nil || !slices.Equal(passed, []string{"gw-1"}) {
			t.Error(name, passed, err)
		}
	}
	// One after the other, however many begin at once.
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[int64]bool{}
	for range 16 {
		wg.Go(func() {
			g, err := node.Bump(ctx, "gw-2")
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[g] {
				t.Error(g, err)
			}
			seen[g] = true
		})
	}
	wg.Wait()
	for _, id := range []string{"gw-9", "", strings.Repeat("g", 64), "gw-1\x00"} {
		if _, err := node.Bump(ctx, id); err == nil {
			t.Errorf("%q has a session", id)
		}
	}
	var rows int
	if err := c.db.QueryRow(ctx, "SELECT COUNT(*) FROM sessions").Scan(&rows); err != nil || rows != 2 {
		t.Error(rows, err)
	}
}

// Whoever has an ingest node's login has that, and nothing else: neither tables nor functions, nor the server's files, programs or disk.
func TestAnIngestNodesLoginIsRefusedTheRest(t *testing.T) {
	c := newCell(t)
	c.enter(t, "gw-1")
	ctx := t.Context()
	thief, err := sql.Open("pgx", c.node)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = thief.Close() }()
	thief.SetMaxOpenConns(1)
	names := func(query string) (out []string) {
		t.Helper()
		rows, err := c.db.Query(ctx, query)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var n string
			if err := rows.Scan(&n); err != nil {
				t.Fatal(err)
			}
			out = append(out, n)
		}
		return out
	}
	refused := func(statement string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := thief.ExecContext(ctx, statement, pgx.QueryExecModeSimpleProtocol)                                                             // which takes several at once
		if state := interface{ SQLState() string }(nil); !errors.As(err, &state) || state.SQLState() != "42501" && state.SQLState() != "55000" { // not permitted; or nobody can

			t.Errorf("%s: %v", statement, err)
		}
	}
	if err := thief.QueryRowContext(ctx, "SELECT revision FROM registry_state").Scan(new(int64)); err != nil {
		t.Fatal("the login does not work at all: ", err)
	}
	if faults, err := c.db.LoginFaults(ctx, []string{"node_1"}); err != nil || len(faults) != 0 {
		t.Errorf("a login that may what it should: %v, %v", faults, err)
	}
	tables := names("SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
	if len(tables) < 50 || !slices.Contains(tables, "public.readings") || !slices.Contains(tables, "public.events_out") {
		t.Fatalf("%d tables: %v", len(tables), tables)
	}
	for _, table := range tables {
		refused("SELECT 1 FROM " + table)
		refused("DELETE FROM " + table)
		refused("TRUNCATE " + table)
		refused("COPY " + table + " TO STDOUT")
		refused("BEGIN; LOCK TABLE " + table + " IN ACCESS SHARE MODE")
		if _, err := thief.ExecContext(ctx, "ROLLBACK"); err != nil {
			t.Fatal(err)
		}
		refused("INSERT INTO " + table + " DEFAULT VALUES")
	}
	views := names("SELECT 'ingest_view.' || quote_ident(viewname) FROM pg_views WHERE schemaname = 'ingest_view'")
	if len(views) < 10 {
		t.Fatalf("%d views", len(views))
	}
	for _, view := range views {
		refused("DELETE FROM " + view)
		refused("INSERT INTO " + view + " DEFAULT VALUES")
	}
	refused("UPDATE ingest_view.gateways SET state = 'active'")
	refused("UPDATE ingest_view.registry_state SET revision = 1")
	allowed := []string{"bump_session", "journal_append", "journal_open", "journal_try"}
	functions := names(`SELECT p.proname || '|' || p.oid::regprocedure || '|' || (SELECT COALESCE(string_agg('NULL::' || format_type(a, NULL), ', '), '') FROM unnest(p.proargtypes) a)
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN ('public', 'ingest_view') AND p.prorettype <> 'trigger'::regtype`)
	if len(functions) < 2 {
		t.Fatalf("%d functions", len(functions))
	}
	for _, f := range functions {
		part := strings.Split(f, "|")
		if !slices.Contains(allowed, part[0]) {
			refused("SELECT public." + part[0] + "(" + part[2] + ")")
		}
	}
	for _, statement := range []string{
		"SELECT pg_read_file('PG_VERSION')", "SELECT pg_read_binary_file('PG_VERSION')", "SELECT pg_ls_dir('.')", "SELECT lo_import('/etc/passwd')",
		"COPY (SELECT 1) TO PROGRAM 'true'", "COPY (SELECT 1) TO '/tmp/x'", "SELECT pg_reload_conf()", "SELECT pg_switch_wal()", "SELECT pg_create_restore_point('x')",
		"CREATE TABLE public.x (a INT)", "CREATE TABLE ingest_view.x (a INT)", "CREATE TEMPORARY TABLE x (a INT)", "CREATE SCHEMA x", "CREATE ROLE x",
		"CREATE FUNCTION public.x() RETURNS INT LANGUAGE sql AS 'SELECT 1'", "CREATE VIEW public.x AS SELECT 1", "CREATE EXTENSION amcheck", "CREATE DATABASE x",
		"ALTER ROLE wardlink_ingest SUPERUSER", "SET ROLE hospital", "SET SESSION AUTHORIZATION hospital", "GRANT SELECT ON public.readings TO node_1",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'hospital'", "ALTER SYSTEM SET fsync = off",
		"SELECT rolpassword FROM pg_authid", "ALTER TABLE public.gateways OWNER TO node_1", "DROP VIEW ingest_view.gateways",
	} {
		refused(statement)
	}
	var ward, who string
	if err := thief.QueryRowContext(ctx, "SELECT ward, (SELECT COUNT(*) FROM gateway_eks)::TEXT FROM gateways").Scan(&ward, &who); err != nil || ward != "" || who != "0" {
		t.Errorf("the view tells more than admission needs: %q %q %v", ward, who, err)
	}
}
