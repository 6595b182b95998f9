package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wardlink/internal/build"
)

// Migration is one step of one domain's schema. Versions of a domain count from 1 without holes. A migration that has been
// released is never changed: the next one mends it.
type Migration struct {
	Domain  string // "outbox", "registry", "records": who owns the tables
	Version int
	SQL     string // one or more statements of SQLite's dialect, in the words that postgresDDL knows

	// Postgres is run after SQL on PostgreSQL, as it is: functions, views, grants. Tables that both engines have belong in SQL. A domain
	// whose migrations have no SQL at all is PostgreSQL's alone: SQLite knows nothing of it.
	Postgres string

	// Step, unless nil, runs after these on both engines, in the same transaction: for what SQL cannot say. progress tells how far it is; one
	// that works for long calls it every few seconds.
	Step func(ctx context.Context, tx *sql.Tx, progress func(doing string)) error
}

// Schema is the version of each domain.
type Schema map[string]int

// String is "alerts 1, records 3".
func (s Schema) String() string {
	var words []string
	for _, domain := range slices.Sorted(maps.Keys(s)) {
		words = append(words, fmt.Sprintf("%s %d", domain, s[domain]))
	}
	return strings.Join(words, ", ")
}

// Upgrade is one change of an existing database's schema.
type Upgrade struct {
	From, To Schema
	Copy     string // path of the copy as it was before; empty on PostgreSQL
}

// planSQLite is plan without the domains that are PostgreSQL's alone.
func planSQLite(migrations []Migration) ([]Migration, Schema, error) {
	both := make(map[string]bool)
	for _, m := range migrations {
		both[m.Domain] = both[m.Domain] || m.SQL != "" || m.Postgres == ""
	}
	return plan(slices.DeleteFunc(slices.Clone(migrations), func(m Migration) bool { return !both[m.Domain] }))
}

// plan orders migrations by domain and version, and says which schema they end in.
func plan(migrations []Migration) ([]Migration, Schema, error) {
	sorted := slices.Clone(migrations)
	slices.SortStableFunc(sorted, func(a, b Migration) int {
		if c := strings.Compare(a.Domain, b.Domain); c != 0 {
			return c
		}
		return a.Version - b.Version
	})
	newest := make(Schema)
	for _, m := range sorted {
		if m.Domain == "" || m.Version != newest[m.Domain]+1 {
			return nil, nil, fmt.Errorf("migration %q %d: expected version %d", m.Domain, m.Version, newest[m.Domain]+1)
		}
		newest[m.Domain] = m.Version
	}
	return sorted, newest, nil
}

// fillSchema gives an empty database its schema.
func fillSchema(ctx context.Context, w *sql.DB, migrations []Migration) error {
	sorted, _, err := planSQLite(migrations)
	if err != nil {
		return err
	}
	tx, err := w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `CREATE TABLE schema_versions (
		domain TEXT NOT NULL PRIMARY KEY,
		version INTEGER NOT NULL
	) WITHOUT ROWID`); err != nil {
		return err
	}
	for _, m := range sorted {
		if err := apply(ctx, tx, m, func(string) {}); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// upgrade applies what is missing, all of it in one transaction: after a crash the schema is the old one or the new one. The transaction
// has the write lock before it looks, so what is copied is what is changed, and a second process that starts meanwhile finds it done.
func upgrade(ctx context.Context, w *sql.DB, c Config) error {
	sorted, newest, err := planSQLite(c.Migrations)
	if err != nil {
		return err
	}
	// Nearly always nothing is missing; then the lock is not waited for.
	if _, missing, err := look(ctx, w, c.Path, sorted, newest); err != nil || len(missing) == 0 {
		return err
	}
	tx, err := w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	have, missing, err := look(ctx, tx, c.Path, sorted, newest)
	if err != nil || len(missing) == 0 {
		return err
	}
	began := time.Now()
	c.Progress("copying the database before its schema is changed")
	c.step("before the copy")
	copied, err := copyBefore(ctx, c, have)
	if err != nil {
		return err
	}
	c.step("copied")
	for _, m := range missing {
		c.Log.Info("the database's schema is changed", "domain", m.Domain, "version", m.Version)
		c.Progress(fmt.Sprintf("changing the database's schema: %s %d", m.Domain, m.Version))
		if err := apply(ctx, tx, m, c.Progress); err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
		c.step(fmt.Sprintf("applied %s %d", m.Domain, m.Version))
	}
	if c.Upgraded != nil {
		if err := c.Upgraded(tx, Upgrade{From: have, To: newest, Copy: copied}); err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
	}
	c.step("before the commit")
	if err := tx.Commit(); err != nil {
		return err
	}
	c.step("committed")
	c.Log.Info("the database has this program's schema", "schema", newest.String(), "copy", copied, "took", time.Since(began).Round(time.Millisecond).String())
	return nil
}

// look says which schema the database has, and which migrations it has not.
func look(ctx context.Context, q querier, path string, sorted []Migration, newest Schema) (have Schema, missing []Migration, err error) {
	if have, err = versions(ctx, q); err != nil {
		return nil, nil, err
	}
	if err := refuseNewer(path, have, newest); err != nil {
		return nil, nil, err
	}
	for _, m := range sorted {
		if m.Version > have[m.Domain] {
			missing = append(missing, m)
		}
	}
	return have, missing, nil
}

func apply(ctx context.Context, tx *sql.Tx, m Migration, progress func(string)) error {
	if m.SQL == "" { // it has something for PostgreSQL alone
	} else if _, err := tx.ExecContext(ctx, m.SQL); err != nil {
		return fmt.Errorf("migration %s %d: %w", m.Domain, m.Version, err)
	}
	return finish(ctx, tx, m, progress)
}

// finish takes a migration's step and notes its version.
func finish(ctx context.Context, tx *sql.Tx, m Migration, progress func(string)) error {
	if m.Step != nil {
		if err := m.Step(ctx, tx, progress); err != nil {
			return fmt.Errorf("migration %s %d: %w", m.Domain, m.Version, err)
		}
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO schema_versions (domain, version) VALUES ($1, $2)
		ON CONFLICT (domain) DO UPDATE SET version = excluded.version`, m.Domain, m.Version)
	return err
}

// refuseNewer looks for what this program does not know. A domain that it does not have counts too: the rows of the others may lean on it.
func refuseNewer(path string, have, newest Schema) error {
	var unknown []string
	for _, domain := range slices.Sorted(maps.Keys(have)) {
		switch known, ok := newest[domain]; {
		case !ok:
			unknown = append(unknown, fmt.Sprintf("%s %d (this program has no %[1]s)", domain, have[domain]))
		case have[domain] > known:
			unknown = append(unknown, fmt.Sprintf("%s %d (this program knows version %d)", domain, have[domain], known))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	mend := "install the wardlink-server that ran last"
	if IsPostgres(path) {
		path = Display(path)
	} else if copies, err := Copies(path); err == nil && len(copies) > 0 {
		last := copies[len(copies)-1]
		mend = fmt.Sprintf("install wardlink-server %s or a later one; or stop, move %s and its -wal away and put %s in its place: it is the database as it was on %s; what gateways sent since is read again from the journal, acts since, revocations among them, are to be done again",
			last.Version, filepath.Base(path), last.Path, last.Made.UTC().Format(time.DateTime))
	}
	return fmt.Errorf("database %s: %w than this one, which is %s: its schema has %s; nothing was changed. %s", path, ErrNewer, build.Version, strings.Join(unknown, ", "), mend)
}

// expect refuses a database whose domains are not at the versions of migrations.
func expect(ctx context.Context, w *sql.DB, wanted Schema, err error) error {
	if err != nil {
		return err
	}
	have, err := versions(ctx, w)
	if err != nil {
		return err
	}
	for domain, version := range wanted {
		switch {
		case have[domain] > version:
			return fmt.Errorf("%w than this one, which is %s: its schema has %s %d, this program knows version %d; use the program that belongs to the running server", ErrNewer, build.Version, domain, have[domain], version)
		case have[domain] < version:
			return fmt.Errorf("the schema has %s %d, this program (%s) expects version %d; start wardlink-server run of this version once, it brings the database up to date", domain, have[domain], build.Version, version)
		}
	}
	return nil
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func versions(ctx context.Context, q querier) (Schema, error) {
	rows, err := q.QueryContext(ctx, "SELECT domain, version FROM schema_versions")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	have := make(Schema)
	for rows.Next() {
		var domain string
		var version int
		if err := rows.Scan(&domain, &version); err != nil {
			return nil, err
		}
		have[domain] = version
	}
	return have, rows.Err()
}
