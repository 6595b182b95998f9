package acmedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	pruneInterval = 10 * time.Second
	pruneChunk    = 500 // rows of a transaction: some milliseconds, behind which the hospital's writes wait
	tellInterval  = 10 * time.Minute
)

// Run prunes until ctx ends. Every process may: what one has deleted is not there for the others. A failure is told and tried again.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	var told time.Time
	for {
		if err := s.Prune(ctx); err != nil && ctx.Err() == nil && time.Since(told) >= tellInterval {
			told = time.Now()
			s.log.Error("the CA's tables cannot be pruned", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pruned are the tables whose rows end by time, each with what it deletes at most $2 of at $1. An account that has an order stays with it.
var pruned = []string{
	"DELETE FROM ca_pending WHERE secret IN (SELECT secret FROM ca_pending WHERE ends <= $1 ORDER BY ends LIMIT $2)",
	"DELETE FROM ca_orders WHERE id IN (SELECT id FROM ca_orders WHERE ends <= $1 ORDER BY ends LIMIT $2)",
	`DELETE FROM ca_accounts WHERE id IN (SELECT id FROM ca_accounts WHERE ends <= $1
		AND NOT EXISTS (SELECT 1 FROM ca_orders WHERE account = ca_accounts.id) ORDER BY ends LIMIT $2)`,
}

// Prune deletes what has ended, and counts what is left. One call at a time.
func (s *Store) Prune(ctx context.Context) error {
	now := s.now().UnixMilli()
	for _, statement := range pruned {
		if err := s.prune(ctx, statement, now); err != nil {
			return fmt.Errorf("prune: %w", err)
		}
	}
	if err := s.pruneNonces(ctx); err != nil {
		return fmt.Errorf("prune nonces: %w", err)
	}
	return s.count(ctx)
}

// prune runs a statement of pruned until nothing is left, pruneChunk rows at a time.
func (s *Store) prune(ctx context.Context, statement string, until int64) error {
	for {
		var n int64
		if err := s.db.Write(ctx, func(tx *sql.Tx) error {
			r, err := tx.ExecContext(ctx, statement, until, pruneChunk)
			if err != nil {
				return err
			}
			n, err = r.RowsAffected()
			return err
		}); err != nil || n < pruneChunk {
			return err
		}
	}
}

// count reads how many rows there are. What is added meanwhile is counted twice or not at all, until the next time.
func (s *Store) count(ctx context.Context) error {
	for _, t := range []struct {
		table string
		rows  *atomic.Int64
	}{{"ca_accounts", &s.rows.accounts}, {"ca_orders", &s.rows.orders}, {"ca_pending", &s.rows.pending}} {
		var n int64
		if err := s.db.QueryRow(ctx, "SELECT COUNT(*) FROM "+t.table).Scan(&n); err != nil {
			return errors.Join(fmt.Errorf("count %s", t.table), err)
		}
		t.rows.Store(n)
	}
	return nil
}
