package records

import (
	"context"
	"fmt"
	"time"

	"wardlink/telemetry"
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

// GapCount is what is missing of one gateway.
type GapCount struct {
	Gateway string
	Batches int64
	Since   time.Time // when the oldest of them was noticed
	Firm    bool      // of one at least the gateway's own report says that it does not have it
}

// GapsByGateway counts at most limit gateways' batch numbers that nobody accounts for and that were noticed before a time.
func (r *Records) GapsByGateway(ctx context.Context, before time.Time, limit int) ([]GapCount, error) {
	rows, err := r.db.Query(ctx, gapsByGateway, before.UnixMilli(), limit)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []GapCount
	for rows.Next() {
		var g GapCount
		var since int64
		if err := rows.Scan(&g.Gateway, &g.Batches, &since, &g.Firm); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
		g.Since = time.UnixMilli(since)
		out = append(out, g)
	}
	return out, rows.Err()
}

// The table holds gaps alone, at most some thousand for each stream. No gap counts more than mostLost: a sum must not overflow at one gateway's word.
var gapsByGateway = fmt.Sprintf(`SELECT s.gateway, CAST(SUM(CASE WHEN g.last - g.first < %d THEN g.last - g.first + 1 ELSE %[1]d END) AS BIGINT), MIN(g.since), MAX(g.firm)
	FROM account_gaps g CROSS JOIN streams s WHERE s.id = g.stream AND g.since <= $1 GROUP BY s.gateway ORDER BY s.gateway LIMIT $2`, int64(mostLost))

// ParkedReport is what a gateway's newest report says of batches that it keeps and does not send again.
type ParkedReport struct {
	Received time.Time // the report, by the server
	Batches  uint64
}

// ParkedByReport reads the newest report of each gateway.
func (r *Records) ParkedByReport(ctx context.Context) (map[string]ParkedReport, error) {
	rows, err := r.db.Query(ctx, "SELECT gateway, received, report FROM gateway_reports")
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	defer func() { _ = rows.Close() }()
	out := make(map[string]ParkedReport)
	for rows.Next() {
		var gateway string
		var received int64
		var data []byte
		if err := rows.Scan(&gateway, &received, &data); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
		b, err := telemetry.Decode(data)
		if err != nil || b.Report == nil {
			continue // it was decoded before it was kept; a program of another version may have kept it
		}
		p := ParkedReport{Received: time.UnixMilli(received)}
		for _, l := range b.Report.Lanes {
			p.Batches += l.Parked
		}
		out[gateway] = p
	}
	return out, rows.Err()
}
