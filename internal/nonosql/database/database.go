// Package database has the types of smallstep/nosql/database that smallstep's authority names. No DB exists.
package database

// Option is of nosql.New.
type Option struct{}

// DB is never implemented.
type DB interface {
	Open(string, ...Option) error
	Close() error
	Get(bucket, key []byte) ([]byte, error)
	Set(bucket, key, value []byte) error
	CmpAndSwap(bucket, key, former, value []byte) ([]byte, bool, error)
	Del(bucket, key []byte) error
	List(bucket []byte) ([]*Entry, error)
	Update(*Tx) error
	CreateTable(bucket []byte) error
	DeleteTable(bucket []byte) error
}

// Entry is one row.
type Entry struct{ Bucket, Key, Value []byte }

// Tx is a transaction that is never run.
type Tx struct{}

// Set would add a write.
func (*Tx) Set(_, _, _ []byte) {}

// IsErrNotFound never holds: nothing was looked for.
func IsErrNotFound(error) bool { return false }
