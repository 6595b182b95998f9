package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
)

// ErrNoSnapshot says that the database is PostgreSQL's, which has its own backups.
var ErrNoSnapshot = errors.New("a backup of PostgreSQL is made by its own tools; see OPERATING.md, PostgreSQL")

// Snapshot writes the database at path, as of one committed transaction, into a new file: one file, without a write-ahead log, compact.
// A server may be writing to path meanwhile, in this process or another; it is not held up, but its write-ahead log cannot shrink until
// Snapshot returns. Nothing is migrated. The new file needs as much room as the old one holds, is readable by this user alone, and is
// durable when Snapshot returns nil; on an error it is removed. dst must not exist. There is none of a PostgreSQL database, whose backups are
// pg_dump's and pg_basebackup's: ErrNoSnapshot.
func Snapshot(ctx context.Context, path, dst string) (err error) {
	if IsPostgres(path) {
		return fmt.Errorf("database %s: %w", Display(path), ErrNoSnapshot)
	}
	if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("copy of database %s: %s is there already", path, dst)
	}
	db, err := Look(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	// SQLite takes an empty file for a database that is not there yet, and keeps its mode.
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("copy of database %s: %w", path, err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, Remove(dst))
		}
	}()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", dst); err != nil {
		return fmt.Errorf("copy of database %s to %s: %w; it needs as much room as the database", path, dst, explain(path, err))
	}
	return f.Sync()
}

// Look opens the database at path for a command that only looks, beside a server or without one, and migrates nothing: one connection of the standard
// library. A missing file is ErrMissing.
func Look(path string) (*sql.DB, error) {
	if IsPostgres(path) {
		db, err := openPostgres(path, 1, readerParameters())
		return db, explain(Display(path), err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("database %s: %w", path, ErrMissing)
	}
	uri, err := fileURI(path, url.Values{"_pragma": {"busy_timeout(5000)", "trusted_schema(0)"}})
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", uri)
	if err != nil {
		return nil, explain(path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}
