package records

import (
	"context"
	"fmt"
	"math"
	"slices"

	"wardlink/telemetry"
)

// heldStreams and heldRuns bound what Held gives, well above what a document has room for.
const (
	heldStreams = 1024
	heldRuns    = 1024
)

// Held gives the numbers of batches that this database has of a gateway, settled or with what is needed to settle them: the streams that brought
// something last come first, of each the highest runs. A batch that is being opened is not among them, for its frame is in a journal that
// need not be this database's.
func (s *Store) Held(ctx context.Context, gateway string) (out []telemetry.Held, err error) {
	return s.held(ctx, gateway, -1)
}

// HeldToSalvage is Held without the batches that could not be opened: another frame may come under their number, and be the gateway's.
func (s *Store) HeldToSalvage(ctx context.Context, gateway string) ([]telemetry.Held, error) {
	return s.held(ctx, gateway, stateDead)
}

// held leaves out what has no frame here, and what is of the state without; -1 is none.
func (s *Store) held(ctx context.Context, gateway string, without int) (out []telemetry.Held, err error) {
	fail := func(err error) ([]telemetry.Held, error) {
		return nil, fmt.Errorf("records: held of %s: %w", gateway, err)
	}
	rows, err := s.db.Query(ctx, `SELECT s.id, s.epoch, s.lane FROM streams s JOIN account_runs r ON r.stream = s.id
		WHERE s.gateway = $1 GROUP BY s.id ORDER BY MAX(r.since) DESC, s.id DESC LIMIT $2`, gateway, heldStreams)
	if err != nil {
		return fail(err)
	}
	var ids []int64
	for rows.Next() {
		var id int64
		var epoch []byte
		h := telemetry.Held{}
		if err := rows.Scan(&id, &epoch, &h.Lane); err != nil {
			_ = rows.Close()
			return fail(err)
		}
		h.Epoch = telemetry.Epoch(epoch)
		ids, out = append(ids, id), append(out, h)
	}
	if err := rows.Err(); err != nil {
		return fail(err)
	}
	for i, id := range ids {
		runs, err := s.spans(ctx, "SELECT first, last FROM account_runs WHERE stream = $1 ORDER BY first DESC LIMIT $2", id, heldRuns)
		if err != nil {
			return fail(err)
		}
		slices.Reverse(runs)
		opening, err := s.spans(ctx, `SELECT b.number, b.number FROM batches b WHERE b.stream = $1 AND b.state <> 2 AND b.state IN (0, 1, 3)
			AND (b.state = $2 OR NOT EXISTS (SELECT 1 FROM batch_frames f WHERE f.stream = b.stream AND f.number = b.number)) ORDER BY b.number LIMIT $3`,
			id, without, heldRuns)
		if err != nil {
			return fail(err)
		}
		if n := len(opening); without == stateDead && n == heldRuns { // of those beyond the bound nothing is known: they may come
			opening[n-1].Last = math.MaxInt64
		}
		// Reports that newer ones took the place of are as good as here: the gateway, which has them as delivered, need not send them. Upper
		// bounds name others besides.
		void, err := s.spans(ctx, "SELECT first, last FROM account_sets WHERE stream = $1 AND kind = $2 AND upper = 0 ORDER BY first", id, setVoid)
		if err != nil {
			return fail(err)
		}
		if out[i].Lane == telemetry.LaneSelf && len(void) > 0 {
			runs = joined(append(runs, void...))
		}
		out[i].Runs = subtract(runs, opening)
	}
	return out, nil
}

func (s *Store) spans(ctx context.Context, query string, args ...any) (out []telemetry.Span, err error) {
	rows, err := s.db.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var r telemetry.Span
		if err := rows.Scan(&r.First, &r.Last); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// joined makes ascending runs of which no two touch.
func joined(runs []telemetry.Span) (out []telemetry.Span) {
	sortSpans(runs)
	for _, r := range runs {
		if n := len(out); n > 0 && r.First <= out[n-1].Last+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}
