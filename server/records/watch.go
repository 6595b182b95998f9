package records

import (
	"context"
	"fmt"
	"time"
)

// DeadCount is how many batches of one gateway could not be opened.
type DeadCount struct {
	Gateway string
	Batches int64
	Oldest  time.Time // received by the server
	Reason  string    // of one of them
}

// DeadByGateway counts at most limit gateways' dead batches. It reads their rows alone.
func (r *Records) DeadByGateway(ctx context.Context, limit int) ([]DeadCount, error) {
	rows, err := r.db.Query(ctx, deadByGateway, limit)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []DeadCount
	for rows.Next() {
		var d DeadCount
		var oldest int64
		if err := rows.Scan(&d.Gateway, &d.Batches, &oldest, &d.Reason); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
		d.Oldest = time.UnixMilli(oldest)
		out = append(out, d)
	}
	return out, rows.Err()
}

const deadByGateway = `SELECT s.gateway, COUNT(*), MIN(b.received), MAX(b.reason) FROM batches b JOIN streams s ON s.id = b.stream
	WHERE b.state <> 2 AND b.state = 3 GROUP BY s.gateway ORDER BY s.gateway LIMIT $1`

// Backlog is what has been journaled and is not visible yet.
type Backlog struct {
	Pending int64         // batches that wait for a sealing record or their next attempt
	Oldest  time.Time     // the oldest of them was received then; zero when none waits
	Lag     time.Duration // age of what is being settled now
}

// Backlog reads the rows of what waits alone.
func (r *Records) Backlog(ctx context.Context) (b Backlog, err error) {
	var oldest int64
	if err := r.db.QueryRow(ctx, backlogQuery).Scan(&b.Pending, &oldest); err != nil {
		return Backlog{}, fmt.Errorf("records: %w", err)
	}
	if oldest > 0 {
		b.Oldest = time.UnixMilli(oldest)
	}
	if behind := r.behind.Load(); behind > 0 {
		b.Lag = max(0, r.now().Sub(time.UnixMilli(behind)))
	}
	return b, nil
}

const backlogQuery = "SELECT COUNT(*), COALESCE(MIN(received), 0) FROM batches WHERE state <> 2 AND state IN (0, 1)"
