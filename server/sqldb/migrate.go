package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// Migration is one step of one domain's schema. Versions of a domain count from 1 without holes. A migration that has been
// released is never changed: the next one mends it.
type Migration struct {
	Domain  string // "outbox", "registry", "records": who owns the tables
	Version int
	SQL     string // one or more statements of SQLite's dialect
}

// migrate applies what is missing, all of it in one transaction: after a crash the schema is the old one or the new one.
func migrate(ctx context.Context, w *sql.DB, migrations []Migration) error {
	sorted := slices.Clone(migrations)
	slices.SortStableFunc(sorted, func(a, b Migration) int {
		if c := strings.Compare(a.Domain, b.Domain); c != 0 {
			return c
		}
		return a.Version - b.Version
	})
	newest := make(map[string]int)
	for _, m := range sorted {
		if m.Domain == "" || m.Version != newest[m.Domain]+1 {
			return fmt.Errorf("migration %q %d: expected version %d", m.Domain, m.Version, newest[m.Domain]+1)
		}
		newest[m.Domain] = m.Version
	}
	tx, err := w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_versions (
		domain TEXT NOT NULL PRIMARY KEY,
		version INTEGER NOT NULL
	) WITHOUT ROWID`); err != nil {
		return err
	}
	have, err := versions(ctx, tx)
	if err != nil {
		return err
	}
	for domain, version := range have {
		// A domain that this program does not carry is another service's business.
		if n, ok := newest[domain]; ok && version > n {
			return fmt.Errorf("schema of %s has version %d, this program knows version %d; install the newer wardlink-server, or restore the backup made before it ran", domain, version, n)
		}
	}
	for _, m := range sorted {
		if m.Version <= have[m.Domain] {
			continue
		}
		if _, err := tx.ExecContext(ctx, m.SQL); err != nil {
			return fmt.Errorf("migration %s %d: %w", m.Domain, m.Version, err)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO schema_versions (domain, version) VALUES ($1, $2)
			ON CONFLICT (domain) DO UPDATE SET version = excluded.version`, m.Domain, m.Version); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func versions(ctx context.Context, tx *sql.Tx) (map[string]int, error) {
	rows, err := tx.QueryContext(ctx, "SELECT domain, version FROM schema_versions")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	have := make(map[string]int)
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
