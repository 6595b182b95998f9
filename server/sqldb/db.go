// Package sqldb opens the server's database and brings its schema up to date. That is SQLite in one file, or PostgreSQL where several
// machines share one database; a path names the first and a postgres:// URL the second. Each domain (outbox, registry, records) owns its
// tables and hands its migrations in, which are written once, in SQLite's words (see postgresDDL).
//
// Statements are written in what both engines speak: $1, $2, ...; RETURNING; ON CONFLICT; comparisons are no numbers. Texts are compared by
// their bytes on both. On PostgreSQL a statement that fails ends its transaction; and a text holds no NUL and is UTF-8.
//
// On both engines one transaction writes at a time, so what is read in Write stays true until it commits. On PostgreSQL that holds for all
// processes of the database: Write takes a lock on the table write_lock, which nobody else has a right to (decisions/0031).
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // registers the "sqlite" driver

	"wardlink/internal/durable"
)

// The ways that opening can go wrong and a caller may branch on.
var (
	ErrMissing = errors.New("database is missing")
	ErrExists  = errors.New("database exists already")
	ErrNewer   = errors.New("database was made by a newer wardlink-server") // than this program
)

const (
	// applicationID marks the file as ours ("wdlk"), so that a mistyped path never migrates somebody else's database.
	applicationID = 0x77646c6b

	maxReaders = 8
)

// DB is one open database: a single writer, since SQLite has one anyway and queueing in Go is fairer than its busy handler, and
// a pool of readers, which under WAL neither wait for the writer nor make it wait.
type DB struct {
	path    string // as errors name it
	url     string // of PostgreSQL, password included; empty: SQLite
	writer  *sql.DB
	readers *sql.DB
	callers *sql.DB // of PostgreSQL: see Call

	together together // see WriteTogether

	// Of PostgreSQL: this opening's number among those of all processes, and its writes so far. See last_writes.
	process int64
	writes  atomic.Int64
}

// Create makes a new database at path (mode 0600) with the schema of the given migrations. It never touches an existing file:
// ErrExists. The file gets its name only when it is complete, so after a crash there is either a whole database or none. On PostgreSQL it
// fills a database that is there and empty, in one transaction; one that wardlink has filled is ErrExists, another's is refused.
func Create(path string, migrations ...Migration) error {
	if IsPostgres(path) {
		return explain(Display(path), createPostgres(path, migrations))
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("database %s: %w; to use it, run the server without init, to start afresh move it away", path, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("database %s: %w", path, err)
	}
	making := path + ".making"
	if err := Remove(making); err != nil {
		return fmt.Errorf("database %s: remove what an interrupted init left: %w", path, err)
	}
	f, err := os.OpenFile(making, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	if err := fill(making, migrations); err != nil {
		return explain(path, err)
	}
	if err := os.Rename(making, path); err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	return nil
}

// fill writes the schema into an empty file. The last close of a WAL database checkpoints and removes the log, so the file is
// whole by itself when fill returns.
func fill(path string, migrations []Migration) error {
	// Incremental vacuum must be on before the file has its first page.
	w, err := openHandle(path, append([]string{"auto_vacuum(2)"}, writerPragmas...), "immediate", 1)
	if err != nil {
		return err
	}
	ctx := context.Background()
	_, err = w.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID))
	if err == nil {
		err = fillSchema(ctx, w, migrations)
	}
	return errors.Join(err, w.Close())
}

// Config is how a database is opened.
type Config struct {
	Path       string       // a file's, or a postgres:// URL
	Migrations []Migration  // of every domain that the program has
	Log        *slog.Logger // nil: an upgrade goes on in silence

	// Progress, unless nil, hears of each part of an upgrade as it begins, and every few seconds how far the copy is: whoever waits for
	// the opening must know that it goes on. Reading the copy again and each change of schema may take minutes in a large database.
	Progress func(doing string)

	// Upgraded, unless nil, runs in the transaction of an upgrade, after its last step: what it writes is there exactly when the new
	// schema is.
	Upgraded func(tx *sql.Tx, u Upgrade) error

	step func(string) // tests kill the process here
}

// Open is OpenConfig without a log.
func Open(path string, migrations ...Migration) (*DB, error) {
	return OpenConfig(Config{Path: path, Migrations: migrations})
}

// OpenConfig opens a database and applies the migrations that it does not have yet, after a verified copy of it as it is was made in
// CopiesDir. A missing file is ErrMissing, never a silent fresh start; a schema with anything that this program does not know is ErrNewer,
// and is left as it is. On PostgreSQL no copy is made: the database server's backups are those of whoever runs it, and the log says so. A
// PostgreSQL that may forget what it has committed (fsync, full_page_writes or synchronous_commit off) is refused, also when it is met
// again later.
func OpenConfig(c Config) (*DB, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.step == nil {
		c.step = func(string) {}
	}
	if IsPostgres(c.Path) {
		return openPostgresDB(c.Path, func(ctx context.Context, w *sql.DB) error { return upgradePostgres(ctx, w, c) })
	}
	return open(c.Path, func(ctx context.Context, w *sql.DB) error { return upgrade(ctx, w, c) })
}

// OpenBeside opens a database for a command that works beside the server, or before it, with the tables of some domains. It changes no
// schema: the given domains must be at exactly the given versions.
func OpenBeside(path string, migrations ...Migration) (*DB, error) {
	if IsPostgres(path) {
		_, wanted, err := plan(migrations)
		return openPostgresDB(path, func(ctx context.Context, w *sql.DB) error { return expect(ctx, w, wanted, err) })
	}
	_, wanted, err := planSQLite(migrations)
	return open(path, func(ctx context.Context, w *sql.DB) error { return expect(ctx, w, wanted, err) })
}

func open(path string, prepare func(ctx context.Context, w *sql.DB) error) (*DB, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("database %s: %w; make it with wardlink-server init, or restore a backup", path, ErrMissing)
	case err != nil:
		return nil, fmt.Errorf("database %s: %w", path, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("database %s: not a regular file; point the server at the directory that init made", path)
	}
	db := &DB{path: path}
	if db.writer, err = openHandle(path, writerPragmas, "immediate", 1); err != nil {
		return nil, explain(path, err)
	}
	ctx := context.Background()
	var id int
	if err := db.writer.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return nil, errors.Join(explain(path, err), db.writer.Close())
	}
	if id != applicationID {
		return nil, errors.Join(fmt.Errorf("database %s: not a wardlink database (application id %#x, expected %#x); check the path", path, id, applicationID), db.writer.Close())
	}
	if err := prepare(ctx, db.writer); err != nil {
		return nil, errors.Join(explain(path, err), db.writer.Close())
	}
	if db.readers, err = openHandle(path, readerPragmas, "deferred", maxReaders); err != nil {
		return nil, errors.Join(explain(path, err), db.writer.Close())
	}
	return db, nil
}

// synchronous=FULL makes a commit return only after its fsync; WAL alone would lose the last commits at a power cut.
var (
	commonPragmas = []string{"busy_timeout(5000)", "foreign_keys(1)", "trusted_schema(0)", "journal_mode(WAL)", "synchronous(FULL)"}
	writerPragmas = append([]string{"secure_delete(1)", "cache_size(-65536)", "wal_autocheckpoint(4000)", "journal_size_limit(67108864)"}, commonPragmas...)
	readerPragmas = append([]string{"cache_size(-8192)", "query_only(1)"}, commonPragmas...)
)

// openHandle opens at most conns connections. The writer's transactions begin "immediate": one that finds the database locked
// waits at its beginning and cannot fail in its middle. Readers' begin "deferred" and take no lock.
func openHandle(path string, pragmas []string, txlock string, conns int) (*sql.DB, error) {
	q := url.Values{"_txlock": {txlock}}
	for _, p := range pragmas {
		q.Add("_pragma", p)
	}
	uri, err := fileURI(path, q)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(keeper{uri})
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	if err := db.Ping(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// fileURI is a file as SQLite names it, with parameters for SQLite and its driver.
func fileURI(path string, q url.Values) (string, error) {
	abs, err := filepath.Abs(path)
	return "file:" + (&url.URL{Path: abs}).EscapedPath() + "?" + q.Encode(), err
}

// turnTime bounds how long a write waits for its turn. While another process holds the file locked each turn takes busy_timeout, and
// without a bound whoever asks would queue behind all who asked before.
const turnTime = 5 * time.Second

var errTurn = errors.New("the writes before this one do not end")

// Write runs fn in a transaction of the single writer and commits it durably. If fn returns an error nothing of it remains. It waits at
// most 5 s for the writes before it and 5 s for another process that writes or, on SQLite, holds the file locked.
//
// nil means that it is durable. On PostgreSQL the connection may be lost while it commits; then Write asks the server, once it is back,
// what became of the transaction, for at most 10 s. Only if it does not learn that in time the error says that it is not known.
func (d *DB) Write(ctx context.Context, fn func(tx *sql.Tx) error) (err error) {
	turn, cancel := context.WithTimeoutCause(ctx, turnTime, errTurn)
	defer cancel()
	conn, tx, write, err := d.begin(ctx, turn)
	if err != nil && d.url != "" && lost(err) && ctx.Err() == nil {
		// The connection had died while it was idle. Nothing was done with it, and the next one may live.
		conn, tx, write, err = d.begin(ctx, turn)
	}
	if err != nil {
		if ctx.Err() == nil && errors.Is(context.Cause(turn), errTurn) {
			err = busy(d.path, errTurn)
		}
		return explain(d.path, err)
	}
	defer func() { _ = conn.Close() }() // gives it back
	defer func() {
		// Also after a panic in fn: a transaction left open would block every later write.
		if tx != nil {
			_ = tx.Rollback()
		}
	}()
	if err := d.fenced(ctx, tx); err != nil {
		return explain(d.path, err)
	}
	if err := fn(tx); err != nil {
		return explain(d.path, err)
	}
	err = tx.Commit()
	tx = nil
	if err != nil && d.url != "" && lost(err) {
		err = d.outcome(ctx, write, err)
	}
	return explain(d.path, err)
}

// begin waits for the turn and begins a transaction that has the write lock. write numbers it, on PostgreSQL.
func (d *DB) begin(ctx, turn context.Context) (conn *sql.Conn, tx *sql.Tx, write int64, err error) {
	taken, err := d.writer.Conn(turn)
	if err != nil {
		return nil, nil, 0, err
	}
	defer func() {
		if err != nil {
			_ = taken.Close()
		}
	}()
	if d.url == "" {
		tx, err = taken.BeginTx(ctx, nil)
		return taken, tx, 0, err
	}
	// A read committed statement sees what was committed before it began, so after the lock all that was written under it.
	if tx, err = taken.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted}); err != nil {
		return nil, nil, 0, err
	}
	write = d.writes.Add(1)
	if _, err = tx.ExecContext(ctx, "SELECT begin_write($1, $2)", d.process, write); err != nil {
		_ = tx.Rollback()
		return nil, nil, 0, err
	}
	return taken, tx, write, nil
}

// Prepare prepares a statement on the writer, for use with tx.Stmt inside Write.
func (d *DB) Prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	s, err := d.writer.PrepareContext(ctx, query)
	return s, explain(d.path, err)
}

// Query reads rows from the reader pool.
func (d *DB) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	rows, err := d.readers.QueryContext(ctx, query, args...)
	return rows, explain(d.path, err)
}

// QueryRow reads one row from the reader pool. Its Scan gives sql.ErrNoRows when there is none.
func (d *DB) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	return d.readers.QueryRowContext(ctx, query, args...)
}

// Read runs fn on one snapshot: what it queries belongs together, whatever is written meanwhile.
func (d *DB) Read(ctx context.Context, fn func(tx *sql.Tx) error) error {
	options := &sql.TxOptions{ReadOnly: true}
	if d.url != "" {
		options.Isolation = sql.LevelRepeatableRead
	}
	tx, err := d.readers.BeginTx(ctx, options)
	if err != nil {
		return explain(d.path, err)
	}
	defer func() { _ = tx.Rollback() }()
	return explain(d.path, fn(tx))
}

// Check runs the engine's own consistency checks: pages, indexes, foreign keys. nil means that all hold. On PostgreSQL it looks for pages
// that failed their checksums and indexes that are not valid, and has amcheck look into the indexes where that extension is installed.
func (d *DB) Check(ctx context.Context) error {
	if d.url != "" {
		return explain(d.path, d.checkPostgres(ctx))
	}
	var verdict string
	if err := d.QueryRow(ctx, "PRAGMA integrity_check(1)").Scan(&verdict); err != nil {
		return explain(d.path, err)
	}
	if verdict != "ok" {
		return fmt.Errorf("database %s: damaged (%s); restore the last backup", d.path, verdict)
	}
	rows, err := d.Query(ctx, "PRAGMA foreign_key_check")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	if rows.Next() {
		return fmt.Errorf("database %s: damaged (a row refers to one that is missing); restore the last backup", d.path)
	}
	return explain(d.path, rows.Err())
}

// Path is the database's file; PostgreSQL's URL without its password and parameters.
func (d *DB) Path() string { return d.path }

// Close closes all connections; the writer last, so that its close folds the write-ahead log into the file.
func (d *DB) Close() error {
	var err error
	if d.callers != nil {
		err = d.callers.Close()
	}
	return explain(d.path, errors.Join(err, d.readers.Close(), d.writer.Close()))
}
