package records

import (
	"context"

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
	return []string{storeBatches.statement(4, false), extendRuns.statement(4, false)}
}

// Prepare makes ready what Dispose needs, as Run does.
func (r *Records) Prepare(ctx context.Context) error {
	return r.in.prepare(ctx, r.db, internQueries...)
}
