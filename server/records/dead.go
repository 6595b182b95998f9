package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry"
)

// The room for frames that are not opened. Dead batches are accepted data, so nothing is thrown away to make room: a batch that
// finds none is dead at once, counted, and its frame stays where it was first, in the journal, for the journal's retention. Until then
// 'records reopen' takes it from there; when the journal's file goes, the loss is an event. So a gateway that sends nothing but
// batches that cannot be opened takes its share of the disk and no other's.
const (
	defaultGatewayRoom = 256 << 20 // bytes of one gateway: a week of a monitor's readings, sealed
	defaultRoom        = 4 << 30   // bytes of all

	// keyWait is how long a batch may wait for its sealing record, or for the key that signed it. A connection brings the records of
	// all that it publishes and lives a day at most, so a week is no hiccup; and the journal keeps as long.
	keyWait = 7 * 24 * time.Hour

	maxReopen     = 100_000 // batches of one reopening
	maxReopenings = 32      // whose outcome can still be asked for
)

// ErrNoBatch means that no dead batch matches.
var ErrNoBatch = errors.New("no dead batch matches")

// BatchFilter chooses dead batches. Zero fields choose all.
type BatchFilter struct {
	Gateway string
	Epoch   *telemetry.Epoch
	Lane    *telemetry.Lane
	Number  *uint64
	Reason  string // part of the reason
}

// where is the filter over batches b and streams s.
func (f BatchFilter) where() (string, []any) {
	clause, args := "b.state <> 2 AND b.state = 3", []any{}
	and := func(condition string, arg any) {
		args = append(args, arg)
		clause += fmt.Sprintf(" AND "+condition, len(args))
	}
	if f.Gateway != "" {
		and("s.gateway = $%d", f.Gateway)
	}
	if f.Epoch != nil {
		and("s.epoch = $%d", f.Epoch[:])
	}
	if f.Lane != nil {
		and("s.lane = $%d", int64(*f.Lane))
	}
	if f.Number != nil {
		and("b.number = $%d", int64(*f.Number))
	}
	if f.Reason != "" {
		and("replace(b.reason, $%d, '') <> b.reason", f.Reason)
	}
	return clause, args
}

// DeadBatch is one batch that could not be opened. Its contents are in nobody's sight.
type DeadBatch struct {
	Gateway  string
	ID       telemetry.BatchID
	Reason   string
	Received int64 // Unix milliseconds, server's clock
	Attempts int
	Bytes    int64
	Frame    [32]byte // SHA-256
	Seq      uint64   // position in the journal
	Kept     bool     // the frame is in the database; else in the journal, as long as that has it
}

// DeadBatches are those that match, in the order of gateway, epoch, lane and number.
type DeadBatches struct {
	Batches []DeadBatch
	Total   int64 // how many match, listed or not
}

// Dead lists at most limit dead batches.
func (r *Records) Dead(ctx context.Context, f BatchFilter, limit int) (out DeadBatches, err error) {
	where, args := f.where()
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM batches b JOIN streams s ON s.id = b.stream WHERE "+where, args...).Scan(&out.Total); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT s.gateway, s.epoch, s.lane, b.number, b.reason, b.received, b.attempts,
			COALESCE(length(f.frame), u.bytes, 0), b.frame, b.seq, f.number IS NOT NULL
			FROM batches b JOIN streams s ON s.id = b.stream
			LEFT JOIN batch_frames f ON f.stream = b.stream AND f.number = b.number
			LEFT JOIN frames_unkept u ON u.stream = b.stream AND u.number = b.number
			WHERE `+where+fmt.Sprintf(" ORDER BY s.gateway, s.epoch, s.lane, b.number LIMIT $%d", len(args)+1), append(args, limit)...)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var d DeadBatch
			var epoch, frame []byte
			if err := rows.Scan(&d.Gateway, &epoch, &d.ID.Lane, &d.ID.Number, &d.Reason, &d.Received, &d.Attempts, &d.Bytes, &frame, &d.Seq, &d.Kept); err != nil {
				return err
			}
			d.ID.Epoch, d.Frame = telemetry.Epoch(epoch), [32]byte(frame)
			out.Batches = append(out.Batches, d)
		}
		return rows.Err()
	})
	if err != nil {
		return DeadBatches{}, fmt.Errorf("records: %w", err)
	}
	return out, nil
}

// Reopening is what became of batches that an operator asked to be opened again. What is pending is tried within seconds, except
// where Outcomes say what it waits for.
type Reopening struct {
	ID       int64
	Batches  int64 // made pending by it
	NoRoom   int64 // left dead: their frames are in the journal only, and their gateway's room is full
	Gone     int64 // left dead: the journal has their frames no longer
	Stored   int64
	Pending  int64
	Dead     int64 // dead again
	Outcomes []Outcome
}

// Outcome counts the pending and dead batches of a reopening by reason.
type Outcome struct {
	Dead   bool
	Reason string // "" for a batch that was not tried yet
	Count  int64
}

// target is a dead batch to be reopened.
type target struct {
	stream, number int64
	gateway        string
	kept           bool
	bytes          int64
	seq            uint64
	hash           []byte
	frame          []byte // of one that was not kept
}

// Reopen makes dead batches pending with no attempts counted, in one transaction with its event; Run tries them, each alone. The
// event is journaled when it returns. ErrNoBatch: none matches.
func (r *Records) Reopen(ctx context.Context, actor audit.Actor, peer string, f BatchFilter) (out Reopening, err error) {
	targets, err := r.targets(ctx, f)
	if err != nil {
		return Reopening{}, fmt.Errorf("records: %w", err)
	}
	if len(targets) == 0 {
		return Reopening{}, ErrNoBatch
	}
	if err := r.fetchFrames(targets, &out); err != nil {
		return Reopening{}, fmt.Errorf("records: %w", err)
	}
	err = r.db.Write(ctx, func(tx *sql.Tx) error {
		noRoom := out.NoRoom
		if err := tx.QueryRow("INSERT INTO reopenings (asked, actor, no_room, gone) VALUES ($1, $2, 0, 0) RETURNING id", r.now().UnixMilli(), actor.ID).
			Scan(&out.ID); err != nil {
			return err
		}
		out.Batches = 0
		for i := range targets {
			done, err := r.reopen(tx, out.ID, &targets[i])
			if err != nil {
				return err
			}
			if done {
				out.Batches++
			} else if targets[i].frame != nil {
				noRoom++
			}
		}
		out.NoRoom, out.Pending = noRoom, out.Batches
		if _, err := tx.Exec("UPDATE reopenings SET no_room = $1, gone = $2 WHERE id = $3", out.NoRoom, out.Gone, out.ID); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM reopened WHERE reopening <= $1", out.ID-maxReopenings); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM reopenings WHERE id <= $1", out.ID-maxReopenings); err != nil {
			return err
		}
		return r.outbox.Add(tx, reopenedEvent(actor, peer, f, out))
	})
	if err != nil {
		return Reopening{}, fmt.Errorf("records: %w", err)
	}
	if err := r.outbox.Flush(ctx); err != nil {
		return Reopening{}, fmt.Errorf("records: %w", err)
	}
	return out, nil
}

// targets reads what the filter chooses.
func (r *Records) targets(ctx context.Context, f BatchFilter) (out []target, err error) {
	where, args := f.where()
	rows, err := r.db.Query(ctx, `SELECT b.stream, b.number, s.gateway, f.number IS NOT NULL, COALESCE(u.bytes, 0), b.seq, b.frame
		FROM batches b JOIN streams s ON s.id = b.stream
		LEFT JOIN batch_frames f ON f.stream = b.stream AND f.number = b.number
		LEFT JOIN frames_unkept u ON u.stream = b.stream AND u.number = b.number
		WHERE `+where+fmt.Sprintf(" ORDER BY b.seq LIMIT $%d", len(args)+1), append(args, maxReopen)...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var t target
		if err := rows.Scan(&t.stream, &t.number, &t.gateway, &t.kept, &t.bytes, &t.seq, &t.hash); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// fetchFrames reads from the journal what was not kept, as far as there may be room.
func (r *Records) fetchFrames(targets []target, out *Reopening) error {
	fetched := int64(0)
	for i := range targets {
		t := &targets[i]
		if t.kept {
			continue
		}
		if fetched += t.bytes; fetched > r.gatewayRoom {
			out.NoRoom++
			continue
		}
		entries, err := r.journal.Read(t.seq, 1)
		if err != nil {
			return err
		}
		if len(entries) == 0 || entries[0].Seq != t.seq || entries[0].Kind != journal.KindPublish {
			out.Gone++
			continue
		}
		t.frame = entries[0].Blob
	}
	return nil
}

// reopen makes one batch pending; false when it has no frame, no room, or is dead no longer.
func (r *Records) reopen(tx *sql.Tx, reopening int64, t *target) (bool, error) {
	if !t.kept {
		if t.frame == nil {
			return false, nil
		}
		if kept, err := r.keepFrame(tx, t.gateway, t.stream, t.number, t.frame); err != nil || !kept {
			return false, err
		}
	}
	res, err := tx.Exec("UPDATE batches SET state = $1, attempts = 0, due = 0, reason = '' WHERE stream = $2 AND number = $3 AND state = $4 AND frame = $5",
		statePending, t.stream, t.number, stateDead, t.hash)
	if err != nil {
		return false, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		t.frame = nil
		return false, err
	}
	_, err = tx.Exec("INSERT INTO reopened (reopening, stream, number) VALUES ($1, $2, $3)", reopening, t.stream, t.number)
	return err == nil, err
}

func reopenedEvent(actor audit.Actor, peer string, f BatchFilter, out Reopening) audit.Event {
	ev := audit.Event{
		Type: audit.BatchReopened, Actor: actor, Peer: peer, Target: f.Gateway, Outcome: audit.Success, Count: uint64(out.Batches),
		Detail: map[string]string{"reopening": fmt.Sprint(out.ID)},
	}
	if out.Batches == 0 {
		ev.Outcome, ev.Reason = audit.Failed, "no frame could be had"
	}
	if f.Epoch != nil {
		ev.Detail["epoch"] = f.Epoch.String()
	}
	if f.Lane != nil {
		ev.Detail["lane"] = f.Lane.String()
	}
	if f.Number != nil {
		ev.Detail["number"] = fmt.Sprint(*f.Number)
	}
	if f.Reason != "" {
		ev.Detail["reason"] = fmt.Sprintf("%.200q", f.Reason)
	}
	if out.NoRoom > 0 {
		ev.Detail["no_room"] = fmt.Sprint(out.NoRoom)
	}
	if out.Gone > 0 {
		ev.Detail["gone"] = fmt.Sprint(out.Gone)
	}
	return ev
}

// Reopening says how far one of the latest reopenings is; ErrNotFound for one that is not known any more.
func (r *Records) Reopening(ctx context.Context, id int64) (out Reopening, err error) {
	out.ID = id
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT no_room, gone FROM reopenings WHERE id = $1", id).Scan(&out.NoRoom, &out.Gone); err != nil {
			return err
		}
		// A batch whose row is gone was stored, and its bookkeeping went since.
		rows, err := tx.QueryContext(ctx, `SELECT COALESCE(b.state, 2), COALESCE(b.reason, ''), COUNT(*) FROM reopened r
			LEFT JOIN batches b ON b.stream = r.stream AND b.number = r.number WHERE r.reopening = $1 GROUP BY 1, 2 ORDER BY 1 DESC, 3 DESC`, id)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var state int
			var o Outcome
			if err := rows.Scan(&state, &o.Reason, &o.Count); err != nil {
				return err
			}
			out.Batches += o.Count
			switch o.Dead = state == stateDead; state {
			case stateStored:
				out.Stored += o.Count
				continue
			case stateDead:
				out.Dead += o.Count
			default:
				out.Pending += o.Count
			}
			out.Outcomes = append(out.Outcomes, o)
		}
		return rows.Err()
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Reopening{}, ErrNotFound
	}
	if err != nil {
		return Reopening{}, fmt.Errorf("records: %w", err)
	}
	return out, nil
}

// keepFrame puts a frame into the database unless its gateway's room, or all room, is used up.
func (r *Records) keepFrame(tx *sql.Tx, gateway string, stream, number int64, frame []byte) (kept bool, err error) {
	var have bool
	var used, total int64
	if err := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM batch_frames WHERE stream = $1 AND number = $2),
		COALESCE((SELECT bytes FROM frames_kept WHERE gateway = $3), 0), CAST(COALESCE((SELECT SUM(bytes) FROM frames_kept), 0) AS BIGINT)`,
		stream, number, gateway).Scan(&have, &used, &total); err != nil || have {
		return have, err
	}
	size := int64(len(frame))
	if used+size > r.gatewayRoom || total+size > r.room {
		_, err := tx.Exec("INSERT INTO frames_unkept (stream, number, bytes) VALUES ($1, $2, $3) ON CONFLICT (stream, number) DO NOTHING", stream, number, size)
		return false, err
	}
	if _, err := tx.Exec("DELETE FROM frames_unkept WHERE stream = $1 AND number = $2", stream, number); err != nil {
		return false, err
	}
	_, err = tx.Exec("INSERT INTO batch_frames (stream, number, frame) VALUES ($1, $2, $3)", stream, number, frame)
	return err == nil, err
}

// reviveWaiting makes those pending that died of waiting for a sealing record which has come now.
func (r *Records) reviveWaiting(tx *sql.Tx, k sealingKey) error {
	res, err := tx.Exec(`UPDATE batches SET state = $1, attempts = 0, due = 0, reason = '' WHERE state <> 2 AND state = $2 AND reason = $3 AND sealing = $4
		AND stream IN (SELECT id FROM streams WHERE gateway = $5)
		AND EXISTS (SELECT 1 FROM batch_frames f WHERE f.stream = batches.stream AND f.number = batches.number)`,
		statePending, stateDead, errNotYet.Error(), k.id[:], k.gateway)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil || n == 0 {
		return err
	}
	return r.outbox.Add(tx, audit.Event{
		Type: audit.BatchReopened, Actor: audit.Actor{ID: "server"}, Target: k.gateway, Outcome: audit.Success, Count: uint64(n),
		Reason: "the sealing record has come", Detail: map[string]string{"sealing": fmt.Sprintf("%x", k.id)},
	})
}
