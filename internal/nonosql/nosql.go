// Package nosql stands in the place of smallstep/nosql, the key-value store of smallstep's authority, which wardlink does not use: its own tables
// are in server/ca/acmedb. It is what the authority needs to be built, and opens nothing; so neither that store nor any of its engines (two
// of Badger, bbolt, MySQL, PostgreSQL) is part of the server.
package nosql

import (
	"errors"

	"github.com/smallstep/nosql/database"
)

// DB and Option are database's.
type (
	DB     = database.DB
	Option = database.Option
)

var errNone = errors.New("smallstep's own store is not part of this program")

// New refuses.
func New(string, string, ...Option) (DB, error) { return nil, errNone }

// WithDatabase is an option of New.
func WithDatabase(string) Option { return database.Option{} }

// WithValueDir is an option of New.
func WithValueDir(string) Option { return database.Option{} }

// WithBadgerFileLoadingMode is an option of New.
func WithBadgerFileLoadingMode(string) Option { return database.Option{} }

// IsErrNotFound never holds: nothing was looked for.
func IsErrNotFound(error) bool { return false }
