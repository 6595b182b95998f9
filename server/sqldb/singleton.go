package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrSuperseded says that a singleton service lost its place: its connection to the database is gone, or another process has taken over.
var ErrSuperseded = errors.New("this process is no longer the one that runs the service")

const (
	// pulse is how often the holder of a place asks the database whether it is still there.
	pulse = time.Second
	// pulseTime is how long the answer may take.
	pulseTime = 5 * time.Second
)

// Place is what the process that runs a singleton service holds.
type Place struct {
	name       string
	generation int64 // 0: SQLite
}

// Generation grows with each process that took the place. It is 0 on SQLite.
func (p Place) Generation() int64 { return p.generation }

// Check fails with ErrSuperseded unless the place is still this process's; tx is of Write. A write that begins with it cannot land after
// another process has begun: that one raised the generation under the same write lock.
func (p Place) Check(tx *sql.Tx) error {
	if p.generation == 0 {
		return nil
	}
	var now int64
	if err := tx.QueryRow("SELECT generation FROM leases WHERE name = $1", p.name).Scan(&now); err != nil {
		return err
	}
	if now != p.generation {
		return fmt.Errorf("%s: %w: generation %d, and now there is %d", p.name, ErrSuperseded, p.generation, now)
	}
	return nil
}

// fence is the key of a service's context under which its place stands, with the database that has it.
type fence struct{ db *DB }

// fenced fails with ErrSuperseded when ctx is that of a service which has lost its place in this database.
func (d *DB) fenced(ctx context.Context, tx *sql.Tx) error {
	if p, ok := ctx.Value(fence{d}).(Place); ok {
		return p.Check(tx)
	}
	return nil
}

var placeName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,40}$`)

// Singleton runs a service of which one process at a time may run in this database, and returns when run has returned. It first waits for
// its turn, as a standby. run's context ends when the place is lost; run must then stop, and Singleton returns ErrSuperseded. On SQLite,
// whose directory has one server, it just runs.
//
// The place is a lock on a table of its own, in a transaction that does nothing else and stays open on a connection of its own: it is free
// again when the process dies, with whatever it was doing. How two are kept from running at once:
//   - The server ends, or its backend: its kernel closes the connection and run's context ends at once.
//   - The network is cut: run's context ends 6 s after the last answer (pulse, pulseTime). The server gives the place away when the
//     connection was silent for deadTime, 20 s.
//   - The machine stood still for longer than that, or the database moved to a standby: nobody can stop what does not run. So each Write of
//     this DB under run's context begins with Place.Check, and what is kept outside of the database needs a fence of its own.
func (d *DB) Singleton(ctx context.Context, name string, run func(ctx context.Context, p Place) error) error {
	if !placeName.MatchString(name) {
		return fmt.Errorf("singleton %q: expected a name that matches %s", name, placeName)
	}
	if d.url == "" {
		return run(ctx, Place{name: name})
	}
	err := d.Write(ctx, func(tx *sql.Tx) error {
		// Where it is there, nothing is asked of the login but that it owns the table or may lock it.
		_, err := tx.Exec("CREATE TABLE IF NOT EXISTS lease_" + name + " ()")
		return err
	})
	if err != nil {
		return err
	}
	conn, err := d.takePlace(ctx, name)
	if err != nil {
		return explain(d.path, err)
	}
	var p Place
	if p.generation, err = d.nextGeneration(ctx, name); err != nil {
		return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	p.name = name
	held, lose := context.WithCancelCause(context.WithValue(ctx, fence{d}, p))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		lose(watchPlace(held, conn))
	}()
	err = run(held, p)
	gone := errors.Is(context.Cause(held), ErrSuperseded)
	lose(nil)
	<-watched
	_ = conn.Close(context.WithoutCancel(ctx)) // frees the place, also when it cannot say so
	if gone {
		return fmt.Errorf("%s: %w", name, errors.Join(context.Cause(held), err))
	}
	return err
}

// takePlace waits for the lock on the service's table. The connection that it gives holds it, in an open transaction that has neither a
// number nor a snapshot and so keeps no vacuum from its work.
func (d *DB) takePlace(ctx context.Context, name string) (*pgx.Conn, error) {
	// The turn may take days; a standby that dies while it waits is noticed by the server.
	c, err := NativeConfig(d.url, map[string]string{
		"statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0", "idle_session_timeout": "0",
		"client_connection_check_interval": "5000", "application_name": "wardlink " + name,
	})
	if err != nil {
		return nil, err
	}
	conn, err := ConnectNative(ctx, c)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED; LOCK TABLE lease_"+name+" IN EXCLUSIVE MODE"); err != nil {
		return nil, errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return conn, nil
}

func (d *DB) nextGeneration(ctx context.Context, name string) (generation int64, err error) {
	err = d.Write(ctx, func(tx *sql.Tx) error {
		return tx.QueryRow(`INSERT INTO leases (name, generation) VALUES ($1, 1)
			ON CONFLICT (name) DO UPDATE SET generation = leases.generation + 1 RETURNING generation`, name).Scan(&generation)
	})
	return generation, err
}

// watchPlace returns when the connection that holds a place is gone, or ctx is over.
func watchPlace(ctx context.Context, conn *pgx.Conn) error {
	for {
		// Nobody notifies: it reads, and so sees the connection's end at once.
		turn, cancel := context.WithTimeout(ctx, pulse)
		_, err := conn.WaitForNotification(turn)
		over := turn.Err() != nil
		cancel()
		if err != nil && over && ctx.Err() == nil && !conn.IsClosed() {
			turn, cancel = context.WithTimeout(ctx, pulseTime)
			err = conn.Ping(turn)
			cancel()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrSuperseded, err)
		}
	}
}
