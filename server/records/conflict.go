package records

import (
	"database/sql"
	"errors"
	"fmt"

	"wardlink/audit"
	"wardlink/telemetry/seal"
)

// What is kept of frames that came under a number that another one has. A gateway that makes them without end fills no disk, and takes
// its share of the room and no other's; the window rows of the transparency log name every frame in any case.
const (
	maxConflicts        = 4096 // rows; what comes then is only logged
	maxConflictFrames   = 256  // rows with their frame, at most 64 MB
	gatewayConflicts    = maxConflicts / 8
	gatewayConflictData = maxConflictFrames / 8
)

// takeConflict is for a frame whose number another one has. That can only be a gateway whose state was cloned or put back, or one
// that lies. The first stands, unless it is dead: then it cannot be the one that matters.
func (r *Records) takeConflict(tx *sql.Tx, w *work, first [32]byte, state int) error {
	r.log.Warn("two frames under one batch number; the first stands unless it is dead", "gateway", w.gateway, "batch", w.id().String())
	var rows, frames, own, ownFrames int
	if err := tx.QueryRow(`SELECT COUNT(*), COUNT(data) FROM batch_conflicts WHERE stream IN (SELECT id FROM streams WHERE gateway = $1)`, w.gateway).
		Scan(&own, &ownFrames); err != nil || own >= gatewayConflicts {
		return err
	}
	if err := tx.QueryRow("SELECT COUNT(*), COUNT(data) FROM batch_conflicts").Scan(&rows, &frames); err != nil || rows >= maxConflicts {
		return err
	}
	var data []byte
	if frames < maxConflictFrames && ownFrames < gatewayConflictData {
		data = w.frame
	} else {
		r.log.Error("no room for a second frame under one batch number; only its hash is kept", "batch", w.String())
	}
	res, err := tx.Exec(`INSERT INTO batch_conflicts (stream, number, frame, seq, received, tried, data, quarantined) VALUES ($1, $2, $3, $4, $5, 0, $6, $7)
		ON CONFLICT (stream, number, frame) DO NOTHING`, w.stream, int64(w.number), w.hash[:], int64(w.seq), r.clock.aged(w.received), data, flag(w.quarantined))
	if err != nil {
		return err
	}
	// A resend of either, or a journal that is read again, is no news.
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	if err := r.outbox.Add(tx, audit.Event{
		Type: audit.BatchConflict, Actor: audit.Actor{ID: "server"}, Target: w.gateway, Outcome: audit.Failed, Reason: "two frames under one batch number",
		Detail: map[string]string{
			"epoch": w.epoch.String(), "lane": w.lane.String(), "number": fmt.Sprint(w.number),
			"frame_sha256": fmt.Sprintf("%x", w.hash), "first_sha256": fmt.Sprintf("%x", first),
		},
	}); err != nil || state != stateDead {
		return err
	}
	return r.tryNext(tx, w.stream, int64(w.number))
}

// tryNext puts the oldest frame that was not tried in the place of a dead one and makes it pending; the dead one stays as evidence
// in the row that becomes free. Without such a frame the batch stays dead.
func (r *Records) tryNext(tx *sql.Tx, stream, number int64) error {
	var hash, data []byte
	var seq, received, quarantined int64
	err := tx.QueryRow(`SELECT frame, seq, received, data, quarantined FROM batch_conflicts
		WHERE stream = $1 AND number = $2 AND tried = 0 AND data IS NOT NULL ORDER BY seq LIMIT 1`, stream, number).Scan(&hash, &seq, &received, &data, &quarantined)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	sealing := []byte{}
	if h, err := seal.CheckFrame(data); err == nil {
		sealing = h.Sealing[:]
	}
	for _, step := range []struct {
		query string
		args  []any
	}{
		{`INSERT INTO batch_conflicts (stream, number, frame, seq, received, tried, data, quarantined)
			SELECT b.stream, b.number, b.frame, b.seq, b.received, 1, f.frame, b.quarantined
			FROM batches b LEFT JOIN batch_frames f ON f.stream = b.stream AND f.number = b.number WHERE b.stream = $1 AND b.number = $2`,
			[]any{stream, number}},
		{"DELETE FROM batch_conflicts WHERE stream = $1 AND number = $2 AND frame = $3", []any{stream, number, hash}},
		{"INSERT INTO batch_frames (stream, number, frame) VALUES ($1, $2, $3) ON CONFLICT (stream, number) DO UPDATE SET frame = excluded.frame",
			[]any{stream, number, data}},
		{"DELETE FROM frames_unkept WHERE stream = $1 AND number = $2", []any{stream, number}},
		{`UPDATE batches SET frame = $3, sealing = $4, seq = $5, received = $6, state = $7, attempts = 0, due = 0, reason = '', quarantined = $8
			WHERE stream = $1 AND number = $2`, []any{stream, number, hash, sealing, seq, received, statePending, quarantined}},
	} {
		if _, err := tx.Exec(step.query, step.args...); err != nil {
			return err
		}
	}
	return nil
}
