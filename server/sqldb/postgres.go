package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// mark is the comment on schema_versions that says that the tables are ours, as SQLite's application id does.
const mark = "wardlink"

// IngestRole is the role whose members are the logins of ingest nodes. Migrations grant it what such a node may do, and nothing else.
const IngestRole = "wardlink_ingest"

// postgresMigrations are tables that only PostgreSQL needs.
//
// write_lock has no rows: the lock on it is what makes the writes of all processes one after the other, as SQLite's file does. A lock on a
// table and not an advisory one, which any login could take and never give back.
func postgresMigrations() []Migration {
	return []Migration{{Domain: postgresDomain, Version: 1, Postgres: `
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
CREATE TABLE write_lock ();
-- The last write of each process, by which one whose commit was not answered knows what became of it.
CREATE TABLE last_writes (
	process BIGINT NOT NULL PRIMARY KEY,
	write BIGINT NOT NULL,
	at TIMESTAMP WITH TIME ZONE NOT NULL
) WITH (fillfactor = 10);
CREATE FUNCTION begin_write(p BIGINT, w BIGINT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
	LOCK TABLE write_lock IN EXCLUSIVE MODE; -- waits for lock_timeout at most; readers, a backup among them, are not held up
	UPDATE last_writes SET write = w, at = now() WHERE process = p;
	IF NOT FOUND THEN
		DELETE FROM last_writes WHERE at < now() - INTERVAL '1 day';
		INSERT INTO last_writes (process, write, at) VALUES (p, w, now());
	END IF;
END $$;
CREATE FUNCTION outbox_take(positions BIGINT[]) RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
	n BIGINT;
BEGIN
	LOCK TABLE events_out_mark IN EXCLUSIVE MODE; -- who moves events does so alone, and holds up nobody who writes them
	DELETE FROM events_out WHERE position = ANY (positions);
	GET DIAGNOSTICS n = ROW_COUNT;
	IF n <> cardinality(positions) THEN
		RAISE EXCEPTION 'moved by another process' USING ERRCODE = 'WL002';
	END IF;
END $$;
CREATE TABLE leases (
	name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
	generation BIGINT NOT NULL
);
CREATE SCHEMA ingest_view;
GRANT USAGE ON SCHEMA public, ingest_view TO wardlink_ingest;
CREATE VIEW ingest_view.schema_versions AS SELECT domain, version FROM public.schema_versions;
COMMENT ON VIEW ingest_view.schema_versions IS 'wardlink';
GRANT SELECT ON ingest_view.schema_versions TO wardlink_ingest;
`}}
}

const postgresDomain = "postgres"

// openPostgres opens at most conns connections to the database at path.
func openPostgres(path string, conns int, parameters map[string]string) (*sql.DB, error) {
	db, err := handlePostgres(path, conns, parameters)
	if err != nil {
		return nil, err
	}
	if err := db.PingContext(context.Background()); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// handlePostgres is openPostgres that makes no connection yet.
func handlePostgres(path string, conns int, parameters map[string]string) (*sql.DB, error) {
	c, err := NativeConfig(path, parameters)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector{stdlib.GetConnector(*c, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		err := suitable(ctx, conn)
		if err != nil {
			_ = conn.Close(context.WithoutCancel(ctx)) // the driver does not when this hook fails
		}
		return err
	}))})
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// sessionParameters are every connection's. The keepalives are the server's half of deadTime: a process whose machine is gone must not hold
// the write lock.
func sessionParameters() map[string]string {
	ms := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	return map[string]string{
		"application_name": "wardlink", "statement_timeout": ms(statementTime), "tcp_keepalives_idle": strconv.Itoa(int(deadTime / 4 / time.Second)),
		"tcp_keepalives_interval": strconv.Itoa(int(deadTime / 4 / time.Second)), "tcp_keepalives_count": "3", "tcp_user_timeout": ms(deadTime),
		"jit": "off", "client_min_messages": "warning",
	}
}

func writerParameters() map[string]string {
	return map[string]string{
		"lock_timeout":                        strconv.FormatInt(turnTime.Milliseconds(), 10),
		"idle_in_transaction_session_timeout": strconv.FormatInt(idleTime.Milliseconds(), 10),
	}
}

func readerParameters() map[string]string {
	return map[string]string{"default_transaction_read_only": "on"}
}

// createPostgres fills an empty database, in one transaction.
func createPostgres(path string, migrations []Migration) (err error) {
	w, err := openPostgres(path, 1, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	ctx := context.Background()
	if err := makeRole(ctx, w); err != nil {
		return err
	}
	tx, err := w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	// Two that fill one database at once: the second waits here, and then finds it filled. There is no table yet to lock.
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(applicationID)); err != nil {
		return err
	}
	if err := isOurs(ctx, tx); err == nil {
		return fmt.Errorf("database %s: %w; to use it, run the server without init, to start afresh drop it and make an empty one", Display(path), ErrExists)
	}
	var name sql.NullString
	if err := tx.QueryRowContext(ctx, `SELECT MIN(n.nspname || '.' || c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_%'
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')`).Scan(&name); err != nil {
		return err
	}
	if name.Valid {
		return fmt.Errorf("database %s: not empty (%s is in it) and not wardlink's; nothing was changed. Give wardlink a database of its own: CREATE DATABASE wardlink TEMPLATE template0 ENCODING 'UTF8'", Display(path), name.String)
	}
	if _, err := tx.ExecContext(ctx, `CREATE TABLE schema_versions (domain TEXT COLLATE "C" NOT NULL PRIMARY KEY, version BIGINT NOT NULL)`); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "COMMENT ON TABLE schema_versions IS '"+mark+"'"); err != nil {
		return err
	}
	sorted, _, err := planPostgres(migrations)
	if err != nil {
		return err
	}
	for _, m := range sorted {
		if err := applyPostgres(ctx, tx, m, func(string) {}); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// makeRole makes IngestRole, which belongs to the whole server and not to one database.
func makeRole(ctx context.Context, w *sql.DB) error {
	var there bool
	if err := w.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", IngestRole).Scan(&there); err != nil || there {
		return err
	}
	if _, err := w.ExecContext(ctx, "CREATE ROLE "+IngestRole+" NOLOGIN"); err != nil {
		if code := sqlState(err); code == "42710" || code == "23505" { // another process made it meanwhile
			return nil
		}
		return fmt.Errorf("role %s, which ingest nodes' logins get: %w; as superuser run CREATE ROLE %[1]s NOLOGIN, or ALTER ROLE ... CREATEROLE for the database's owner", IngestRole, err)
	}
	return nil
}

var errNotOurs = errors.New("not a wardlink database; check the URL, or fill an empty database with wardlink-server init")

// isOurs looks for the mark on schema_versions, by whatever search_path the login has.
func isOurs(ctx context.Context, q querier) error {
	rows, err := q.QueryContext(ctx, "SELECT COALESCE(obj_description(to_regclass('schema_versions'), 'pg_class'), '')")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var comment string
	if rows.Next() {
		err = rows.Scan(&comment)
	}
	if err = errors.Join(err, rows.Err()); err == nil && comment != mark {
		return errNotOurs
	}
	return err
}

// openPostgresDB opens a database that is there.
func openPostgresDB(path string, prepare func(ctx context.Context, w *sql.DB) error) (*DB, error) {
	db := &DB{path: Display(path), url: path, process: rand.Int64()}
	var err error
	if db.writer, err = openPostgres(path, 1, writerParameters()); err != nil {
		return nil, explain(db.path, err)
	}
	ctx := context.Background()
	if err := isOurs(ctx, db.writer); err != nil {
		if errors.Is(err, errNotOurs) {
			err = fmt.Errorf("database %s: %w", db.path, err)
		}
		return nil, errors.Join(explain(db.path, err), db.writer.Close())
	}
	if err := prepare(ctx, db.writer); err != nil {
		return nil, errors.Join(explain(db.path, err), db.writer.Close())
	}
	if db.readers, err = openPostgres(path, maxReaders, readerParameters()); err != nil {
		return nil, errors.Join(explain(db.path, err), db.writer.Close())
	}
	if db.callers, err = handlePostgres(path, maxCallers, writerParameters()); err != nil {
		return nil, errors.Join(explain(db.path, err), db.writer.Close(), db.readers.Close())
	}
	return db, nil
}

// planPostgres is plan with the tables of this engine first, and otherwise in an order in which each migration finds the tables that it
// names: PostgreSQL looks for them when a foreign key is declared, SQLite when it is used.
func planPostgres(migrations []Migration) ([]Migration, Schema, error) {
	sorted, newest, err := plan(append(postgresMigrations(), migrations...))
	if err != nil {
		return nil, nil, err
	}
	makes, needs := make([][]string, len(sorted)), make([][]string, len(sorted))
	for i, m := range sorted {
		tokens, err := tokenize(m.SQL)
		if err != nil {
			return nil, nil, fmt.Errorf("migration %s %d: %w", m.Domain, m.Version, err)
		}
		for j, t := range tokens {
			switch name := next(tokens, j); {
			case name.kind != tokenName:
			case t.is("TABLE") && tokens[max(j, 1)-1].is("CREATE"):
				makes[i] = append(makes[i], name.text)
			case t.is("TABLE", "REFERENCES", "FROM", "JOIN", "INTO", "UPDATE", "ON"):
				needs[i] = append(needs[i], name.text)
			}
		}
	}
	var out []Migration
	done := make([]bool, len(sorted))
	ready := func(i int) bool {
		for j, m := range sorted {
			if done[j] || j == i {
				continue
			}
			if m.Domain == postgresDomain || m.Domain == sorted[i].Domain && j < i || slices.ContainsFunc(makes[j], func(t string) bool { return slices.Contains(needs[i], t) }) {
				return false
			}
		}
		return true
	}
	for len(out) < len(sorted) {
		i := slices.IndexFunc(done, func(d bool) bool { return !d })
		for i < len(sorted) && (done[i] || !ready(i)) {
			i++
		}
		if i == len(sorted) {
			return nil, nil, errors.New("migrations name each other's tables in a circle")
		}
		done[i] = true
		out = append(out, sorted[i])
	}
	return out, newest, nil
}

// applyPostgres runs one migration, and what it has for this engine alone.
func applyPostgres(ctx context.Context, tx *sql.Tx, m Migration, progress func(string)) error {
	statements, err := postgresDDL(m.SQL)
	if err != nil {
		return fmt.Errorf("migration %s %d: %w", m.Domain, m.Version, err)
	}
	if strings.TrimSpace(m.Postgres) != "" {
		statements = append(statements, m.Postgres)
	}
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("migration %s %d: %w: %s", m.Domain, m.Version, err, s)
		}
	}
	return finish(ctx, tx, m, progress)
}

// upgradePostgres applies what is missing, all of it in one transaction under the write lock: after a crash the schema is the old one or
// the new one, and other processes' writes wait. There is no copy before: a database server's copies are those of whoever runs it.
func upgradePostgres(ctx context.Context, w *sql.DB, c Config) error {
	sorted, newest, err := planPostgres(c.Migrations)
	if err != nil {
		return err
	}
	if _, missing, err := look(ctx, w, c.Path, sorted, newest); err != nil || len(missing) == 0 {
		return err
	}
	began := time.Now()
	tx, err := w.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE write_lock IN EXCLUSIVE MODE"); err != nil {
		return err
	}
	have, missing, err := look(ctx, tx, c.Path, sorted, newest)
	if err != nil || len(missing) == 0 {
		return err
	}
	c.Log.Warn("the database's schema is changed, in one transaction; no copy is made before: on PostgreSQL the way back is the backup of whoever runs the database server", "from", have.String())
	for _, m := range missing {
		c.Log.Info("the database's schema is changed", "domain", m.Domain, "version", m.Version)
		c.Progress(fmt.Sprintf("changing the database's schema: %s %d", m.Domain, m.Version))
		if err := applyPostgres(ctx, tx, m, c.Progress); err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
		c.step(fmt.Sprintf("applied %s %d", m.Domain, m.Version))
	}
	if c.Upgraded != nil {
		if err := c.Upgraded(tx, Upgrade{From: have, To: newest}); err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
	}
	c.step("before the commit")
	if err := tx.Commit(); err != nil {
		return err
	}
	c.step("committed")
	c.Log.Info("the database has this program's schema", "schema", newest.String(), "took", time.Since(began).Round(time.Millisecond).String())
	return nil
}

// outcomeTime bounds how long Write waits for the server to come back and say what became of a commit.
const outcomeTime = 10 * time.Second

var errOutcome = errors.New("the connection was lost while a write was committed, and whether it is kept is not known")

// outcome asks what became of a write whose commit was not answered: nil, it is durable. It takes the write lock, so the transaction is over
// then, and looks at this process's row, which nobody writes meanwhile, since the caller keeps the process's turn. (A transaction's own
// number would not do: a server that recovers from a crash gives the numbers of what it forgot again.) The server that answers may be
// another one that took over; then the write is as that one has it.
func (d *DB) outcome(ctx context.Context, write int64, commit error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outcomeTime)
	defer cancel()
	for {
		last, err := d.lastWrite(ctx)
		switch {
		case err == nil && last == write:
			return nil
		case err == nil:
			return fmt.Errorf("nothing was written: %w", commit)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errOutcome, commit)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// lastWrite is this process's last write, as of no write being under way.
func (d *DB) lastWrite(ctx context.Context) (write int64, err error) {
	db, err := openPostgres(d.url, 1, writerParameters())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "LOCK TABLE write_lock IN EXCLUSIVE MODE"); err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, "SELECT write FROM last_writes WHERE process = $1", d.process).Scan(&write)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return write, err
}

// checkPostgres is Check.
func (d *DB) checkPostgres(ctx context.Context) error {
	return d.Read(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "SET LOCAL statement_timeout = 0"); err != nil {
			return err
		}
		var failures int64
		var invalid sql.NullString
		var amcheck bool
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE((SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()), 0),
			(SELECT MIN(indexrelid::regclass::text) FROM pg_index WHERE NOT indisvalid OR NOT indisready),
			EXISTS (SELECT FROM pg_extension WHERE extname = 'amcheck')`).Scan(&failures, &invalid, &amcheck); err != nil {
			return err
		}
		switch {
		case failures > 0:
			return fmt.Errorf("database %s: damaged (%d pages failed their checksums); restore the last backup", d.path, failures)
		case invalid.Valid:
			return fmt.Errorf("database %s: index %s is not valid; run REINDEX INDEX %[2]s", d.path, invalid.String)
		case !amcheck:
			return nil
		}
		_, err := tx.ExecContext(ctx, `SELECT bt_index_check(c.oid) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
			WHERE c.relkind = 'i' AND a.amname = 'btree' AND c.relnamespace = 'public'::regnamespace`)
		return err
	})
}
