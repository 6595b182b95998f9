// Package acmedb is smallstep's acme.DB on the server's database: nonces, accounts and orders of enrolments that are under way, and the
// challenges of the attestation CA. Any number of processes share one database; what must happen once is one compare-and-set, whoever does it.
//
// Nothing here is worth keeping for long. A certificate is proven by the registry and the log; a row that is gone costs its gateway one more
// enrolment, which takes a second. So every row ends by itself (Life), every text is bounded, tables have caps (Limits), and Run prunes.
//
// An order is one row and changes only by these steps, each one statement that names the state it comes from:
//
//	pending -> attested   the challenge was answered; the key's fingerprint and the EK are entered by the same statement
//	attested -> claimed   one request, of all that try, makes the certificate
//	claimed -> issued     that request alone; the certificate is entered by the same statement
//	pending -> refused
//
// After a crash an order stands between two steps. A client goes on from pending and attested; what is claimed and was never issued is not
// claimed again, since its certificate may have been signed, and the client orders anew.
package acmedb

import (
	"context"
	"crypto/rand"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"wardlink/server/sqldb"
)

//go:embed sqlite_0001.sql
var schema1 string

// Migrations is the schema that this package owns.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "ca", Version: 1, SQL: schema1}}
}

// Forget deletes everything, in a restore: what a backup knows of enrolments under way is over, and nonces that were used since it was made
// would be good again but for a new key.
func Forget(tx *sql.Tx) error {
	for _, table := range []string{"ca_state", "ca_nonces", "ca_pending", "ca_accounts", "ca_orders"} {
		if _, err := tx.Exec("DELETE FROM " + table); err != nil {
			return err
		}
	}
	return nil
}

// How long rows mean something. An honest client is done within seconds; a slow TPM makes its attestation within a minute.
const (
	LifePending   = 10 * time.Minute // of accounts and of orders that are not attested
	LifeAttested  = 5 * time.Minute  // from the attestation to the certificate
	LifeIssued    = time.Hour        // of an order and its account from the certificate on: a client whose connection broke fetches it again
	LifeChallenge = time.Minute      // of the attestation CA's challenges
	lifeNonces    = 5 * time.Minute  // of a generation of nonces: each is good for one to two of them
)

// Limits bound the tables, each process by itself: with several, a table may exceed them by what the others added within pruneInterval.
type Limits struct {
	Accounts, Orders int // 0: 100,000 each, some 120 MB together
	Pending          int // 0: 16,384, some 20 MB
}

// Config is what a Store needs.
type Config struct {
	DB     *sqldb.DB // with Migrations
	Now    func() time.Time
	Log    *slog.Logger
	Limits Limits
}

// Store is the CA's tables. Its methods may be called at the same time; what changed the database is durable when they return nil.
type Store struct {
	db     *sqldb.DB
	now    func() time.Time
	log    *slog.Logger
	limits Limits
	rows   struct{ accounts, orders, pending atomic.Int64 } // as far as this process knows
	nonces nonces
}

// ErrFull: a table has as many rows as it may. It passes as rows end.
var ErrFull = errors.New("too many enrolments are under way")

// Open reads the state that all processes share, and makes it in a new database.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Limits.Accounts == 0 {
		c.Limits.Accounts = 100_000
	}
	if c.Limits.Orders == 0 {
		c.Limits.Orders = 100_000
	}
	if c.Limits.Pending == 0 {
		c.Limits.Pending = 16_384
	}
	s := &Store{db: c.DB, now: c.Now, log: c.Log, limits: c.Limits}
	if err := s.openState(ctx); err != nil {
		return nil, fmt.Errorf("the CA's tables: %w", err)
	}
	s.nonces.began = s.now()
	if err := s.count(ctx); err != nil {
		return nil, fmt.Errorf("the CA's tables: %w", err)
	}
	return s, nil
}

// openState makes the row of ca_state unless there is one: of processes that start together one makes it.
func (s *Store) openState(ctx context.Context) error {
	read := func() error {
		var generation int64
		err := s.db.QueryRow(ctx, "SELECT nonce_key, generation FROM ca_state").Scan(&s.nonces.key, &generation)
		s.nonces.generation.Store(generation)
		return err
	}
	err := read()
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	key := make([]byte, nonceKeySize)
	_, _ = rand.Read(key) // crypto/rand never fails
	if err := s.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO ca_state (one, nonce_key, generation, advanced) VALUES (1, $1, 2, $2) ON CONFLICT (one) DO NOTHING",
			key, s.now().UnixMilli())
		return err
	}); err != nil {
		return err
	}
	return read()
}

// Probe proves that the tables can be read and written: a nonce is used up.
func (s *Store) Probe(ctx context.Context) error { return s.useNonce(ctx, s.newNonce()) }

// changed says whether a statement changed its one row.
func changed(r sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n == 1, err
}

// id is a new id: 26 characters of base32, 130 random bits.
func id() string { return rand.Text() }
