package records

import (
	"context"
	"database/sql"

	"wardlink/telemetry"
)

// SetDecode puts a decoder with a fault in the place of the right one.
func (r *Records) SetDecode(decode func([]byte) (telemetry.Batch, error)) { r.decode = decode }

// WatchQueries are what the watchers of alerts ask every minute.
func WatchQueries() []string { return []string{deadByGateway, backlogQuery} }

// WaitingTimes is what is asked each second.
const WaitingTimes = waitingTimes

// Dispose takes one step of disposal, as Run does.
func (r *Records) Dispose(ctx context.Context) (more bool, err error) { return r.dispose(ctx) }

// UpdatesOfMany are the statements that change many rows at once, as SQLite is given them.
func UpdatesOfMany() []string {
	return []string{storeBatches.statement(4, false), findBatches.statement(4, false), extendRuns.statement(4, false)}
}

// Prepare makes ready what Dispose needs, as Run does.
func (r *Records) Prepare(ctx context.Context) error {
	return r.in.prepare(ctx, r.db, internQueries...)
}

// Uncount takes one attempt back, as settling does when the machine failed it, and says how many are still owed. One look at what is
// pending follows where retry is asked for.
func (r *Records) Uncount(ctx context.Context, stream int64, number uint64) (owed int) {
	r.uncount(ctx, []*work{{stream: stream, number: number, counted: true}})
	return len(r.owed)
}

// Retry takes one look at what is pending, as Run does.
func (r *Records) Retry(ctx context.Context) error {
	_, err := r.retry(ctx)
	return err
}

// LookAheadFreely lets it look ahead for as long as it needs after each pass, up to the most that is saved up.
func (r *Records) LookAheadFreely() { r.aheadMore = aheadDebt + aheadCredit }

// WalkHolds says how many places a search finds before it loads its page, and how many bytes of text it holds with them.
func (s *Store) WalkHolds(ctx context.Context, q Query) (places, size int, err error) {
	err = s.db.Read(ctx, func(tx *sql.Tx) error {
		series, err := matching(ctx, tx, &q)
		if err != nil {
			return err
		}
		top, err := newest(ctx, tx, series, &q)
		for i := range top {
			size += len(top[i].value) + len(top[i].time.String)
		}
		places = len(top)
		return err
	})
	return places, size, err
}
