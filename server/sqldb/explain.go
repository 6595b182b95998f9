package sqldb

import (
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// explained marks an error that already names the database and the mend.
type explained struct {
	error
	environment bool
}

func (e *explained) Unwrap() error { return e.error }

// mends are said for the engine's primary result codes that an operator can do something about. All of them are conditions of
// the machine, not of the data in hand.
var mends = map[int]string{
	sqlite3.SQLITE_BUSY:     "another process holds it locked; stop the second wardlink-server or the tool that has it open",
	sqlite3.SQLITE_LOCKED:   "another process holds it locked; stop the second wardlink-server or the tool that has it open",
	sqlite3.SQLITE_FULL:     "the disk is full; free space on its file system or move the data directory to a larger one",
	sqlite3.SQLITE_IOERR:    "the disk reports an error; check the file system and the kernel's log, then restore a backup if it is damaged",
	sqlite3.SQLITE_READONLY: "it cannot be written; check the owner, the mode and the mount of its directory",
	sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the owner and the mode of the file and its directory",
	sqlite3.SQLITE_PERM:     "it cannot be opened; check the owner and the mode of the file and its directory",
	sqlite3.SQLITE_NOMEM:    "out of memory; give the server more or lower its load",
	sqlite3.SQLITE_CORRUPT:  "it is damaged; stop the server and restore the last backup",
	sqlite3.SQLITE_NOTADB:   "it is not a database; check the path, or restore the last backup",
}

// explain names the database and the mend once, however many layers pass the error on. nil stays nil.
func explain(path string, err error) error {
	var done *explained
	if err == nil || errors.As(err, &done) {
		return err
	}
	var e *sqlite.Error
	if errors.As(err, &e) {
		// The low byte is the primary code, the rest says more precisely where.
		if mend, ok := mends[e.Code()&0xff]; ok {
			return &explained{error: fmt.Errorf("database %s: %s: %w", path, mend, err), environment: true}
		}
		return &explained{error: fmt.Errorf("database %s: %w", path, err)}
	}
	if mend, ok := postgresMend(err); ok {
		return &explained{error: fmt.Errorf("database %s: %s: %w", path, mend, err), environment: true}
	}
	if sqlState(err) != "" {
		return &explained{error: fmt.Errorf("database %s: %w", path, err)}
	}
	return err
}

// busy is the error of a write that never had its turn.
func busy(path string, err error) error {
	mend := mends[sqlite3.SQLITE_BUSY]
	if IsPostgres(path) {
		mend = postgresMends["55P03"]
	}
	return &explained{error: fmt.Errorf("database %s: %s: %w", path, mend, err), environment: true}
}

// Environment reports whether err comes from the machine (disk full, file locked, I/O error) and not from what was to be
// written, so that trying the same again later makes sense and blaming the data does not.
func Environment(err error) bool {
	var e *explained
	if errors.As(err, &e) {
		return e.environment
	}
	_, ok := postgresMend(err) // a row's Scan hands the driver's error on as it is
	return ok
}
