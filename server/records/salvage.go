package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// ProveSealing says why a sealing record is not that gateway's, "" when it is: takeSealing's decision, made before anything is journaled.
// It binds no epoch.
func (r *Records) ProveSealing(ctx context.Context, gateway string, signed seal.Signed) (reason string, err error) {
	rec, reason, err := r.verify(ctx, gateway, signed)
	switch {
	case errors.Is(err, registry.ErrUnknown):
		return "it is signed by a key that the registry does not know", nil
	case err != nil || reason != "":
		return reason, err
	}
	var owner string
	err = r.db.QueryRow(ctx, "SELECT gateway FROM epochs WHERE epoch = $1", rec.Epoch[:]).Scan(&owner)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return "", fmt.Errorf("records: %w", err)
	case owner != gateway:
		return "its epoch belongs to another gateway", nil
	}
	return "", nil
}

// SealingOf gives the signed record of a gateway's sealing period that was found valid, or nil.
func (r *Records) SealingOf(ctx context.Context, gateway string, id [16]byte) (signed []byte, err error) {
	err = r.db.QueryRow(ctx, "SELECT signed FROM sealings WHERE gateway = $1 AND sealing = $2 AND state = $3", gateway, id[:], sealingValid).Scan(&signed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	return signed, nil
}

// Journaled says whether that frame of a batch need not be journaled again. Where the number's first frame was not opened, another one is to
// come in: anybody can write a frame that verifies and opens to nothing, and what the gateway sealed takes the place of a dead one.
func (r *Records) Journaled(ctx context.Context, gateway string, id telemetry.BatchID, frame [32]byte) (bool, error) {
	var n int
	err := r.db.QueryRow(ctx, `SELECT COUNT(*) FROM streams s JOIN account_runs r ON r.stream = s.id
		WHERE s.gateway = $1 AND s.epoch = $2 AND s.lane = $3 AND r.first <= $4 AND r.last >= $4
		AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.stream = s.id AND b.number = $4 AND b.state <> $5 AND b.frame <> $6
			AND NOT EXISTS (SELECT 1 FROM batch_conflicts c WHERE c.stream = s.id AND c.number = $4 AND c.frame = $6))`,
		gateway, id.Epoch[:], uint8(id.Lane), int64(id.Number), stateStored, frame[:]).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("records: %w", err)
	}
	return n > 0, nil
}

// Passed waits until everything that the journal holds up to seq is entered, or for ctx.
func (r *Records) Passed(ctx context.Context, seq uint64) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for r.journal.Cursor(Consumer) < seq {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// salvaged tells whether a batch came from a card, and whether from that of a board that was replaced.
func salvaged(verdict string) (card, former bool) {
	switch verdict {
	case audit.Salvaged, audit.SalvagedQuarantined:
		return true, false
	case audit.SalvagedFormer:
		return true, true
	}
	return false, false
}

// heard is when the gateway of a report was heard of: a report that came from its card is no sign of life.
func heard(tx *sql.Tx, o *opened) (int64, error) {
	if !o.card {
		return o.received, nil
	}
	var received int64
	err := tx.QueryRow("SELECT received FROM gateway_reports WHERE gateway = $1", o.gateway).Scan(&received)
	if errors.Is(err, sql.ErrNoRows) {
		return o.received, nil
	}
	return received, err
}
