package records

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"

	"wardlink/telemetry"
)

//go:embed times_0001.sql
var times1 string

const (
	clockSlot = 6 * 3600 * 1000 // milliseconds of times_0001.sql's slots
	// drift is how far a boot clock may be out, in parts: a quartz is within 100 ppm over the range of temperatures that devices bear.
	drift = 10_000
	// maxAhead is how far beyond our own clock a gateway's account of the hospital's time may be: it learnt it from us.
	maxAhead = 60_000
	// repairMessages of one transaction, so that other writers get their turn.
	repairMessages = 500
)

// Time is an instant by the hospital's clock, repaired from a gateway's monotonic clock.
type Time struct {
	At          int64 // Unix milliseconds
	Uncertainty int64 // milliseconds: of what the gateway was told, and of its clock's drift since or before
}

// learnClock takes what a gateway reports of its clock. It speaks for its own times alone, so what it says harms nobody else's.
func (r *Records) learnClock(tx *sql.Tx, o *opened, boot int64, report *telemetry.Report) error {
	c := report.Clock
	if !c.Trusted {
		return nil
	}
	server := report.At.Wall + c.Offset
	if server < minAt || server > MaxAt || server > o.received+maxAhead {
		r.log.Warn("a gateway's account of the hospital's time is ahead of it; not used", "gateway", o.gateway)
		return nil
	}
	_, err := tx.Exec(`INSERT INTO boot_clocks (boot, slot, mono, server, uncertainty, wall) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (boot, slot) DO NOTHING`, boot, report.At.Mono/clockSlot, report.At.Mono, server, int64(c.Uncertainty), report.At.Wall)
	return err
}

type queryRower interface {
	QueryRow(query string, args ...any) *sql.Row
}

// repaired is the hospital's time at a reading of a boot's monotonic clock, false while nothing is known of that boot's clock.
func repaired(q queryRower, boot, mono int64) (t Time, known bool, err error) {
	const (
		columns = "SELECT mono, server, uncertainty FROM boot_clocks WHERE boot = $1 AND slot "
		before  = columns + "<= $2 ORDER BY slot DESC LIMIT 1"
		after   = columns + "> $2 ORDER BY slot LIMIT 1"
	)
	for _, query := range []string{before, after} {
		var at, server, uncertainty int64
		err := q.QueryRow(query, boot, mono/clockSlot).Scan(&at, &server, &uncertainty)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return Time{}, false, err
		}
		away := mono - at
		repaired := Time{At: min(max(server+away, minAt), MaxAt), Uncertainty: uncertainty + max(away, -away)/drift}
		if !known || repaired.Uncertainty < t.Uncertainty {
			t, known = repaired, true
		}
	}
	return t, known, nil
}

// unreadTime tells whether a message has readings that stand at the time of its arrival.
func unreadTime(m *telemetry.Message) bool {
	for i := range m.Observations {
		if _, marks := placed(m, m.Observations[i].At, m.Observations[i].Marks); marks&telemetry.MarkTimeUnread != 0 {
			return true
		}
	}
	for i := range m.Waveforms {
		if _, marks := placed(m, m.Waveforms[i].At, m.Waveforms[i].Marks); marks&telemetry.MarkTimeUnread != 0 {
			return true
		}
	}
	return false
}

// repairArrival gives the message with the time of its arrival repaired, for placing its readings; or as it is, when nothing is known of the
// boot's clock yet, and then it waits for that.
func (r *Records) repairArrival(tx *sql.Tx, boot, id int64, m *telemetry.Message) (*telemetry.Message, error) {
	if !unreadTime(m) {
		return m, nil
	}
	t, known, err := repaired(tx, boot, m.Received.Mono)
	if err != nil {
		return nil, err
	}
	if !known {
		_, err := tx.Exec("INSERT INTO times_waiting (boot, message) VALUES ($1, $2) ON CONFLICT (boot, message) DO NOTHING", boot, id)
		return m, err
	}
	again := *m
	again.Received.Wall = t.At
	return &again, nil
}

// waitingTimes are the messages that need wait no longer. A gateway that never learns the time leaves millions waiting, and this is asked
// each second: it jumps from boot to boot and looks at none of their messages.
const waitingTimes = `WITH RECURSIVE b (boot) AS (SELECT MIN(boot) FROM times_waiting
		UNION ALL SELECT (SELECT MIN(w.boot) FROM times_waiting w WHERE w.boot > b.boot) FROM b WHERE b.boot IS NOT NULL)
	SELECT w.boot, w.message, m.mono FROM b CROSS JOIN times_waiting w JOIN messages m ON m.id = w.message
	WHERE w.boot = b.boot AND EXISTS (SELECT 1 FROM boot_clocks c WHERE c.boot = b.boot) LIMIT $1`

// repairTimes moves readings that stand at a gateway's unrepaired time of arrival to the hospital's time, once that is known. more says
// that it is not done yet.
//
// Crash argument: a message leaves times_waiting in the transaction that moves its readings.
func (r *Records) repairTimes(ctx context.Context) (more bool, err error) {
	type waiting struct{ boot, message, mono int64 }
	var todo []waiting
	rows, err := r.db.Query(ctx, waitingTimes, repairMessages)
	if err != nil {
		return false, fmt.Errorf("repair times: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var w waiting
		if err := rows.Scan(&w.boot, &w.message, &w.mono); err != nil {
			return false, fmt.Errorf("repair times: %w", err)
		}
		todo = append(todo, w)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(todo) == 0 {
		return false, err
	}
	err = r.db.Write(ctx, func(tx *sql.Tx) error {
		for _, w := range todo {
			t, known, err := repaired(tx, w.boot, w.mono)
			if err != nil || !known {
				return err
			}
			first, last := rowsOf(w.message)
			if _, err := tx.Exec("UPDATE readings SET at = $1 WHERE id BETWEEN $2 AND $3 AND unread = 1", t.At, first, last); err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE waveforms SET at = $1 WHERE message = $2 AND marks & $3 <> 0", t.At, w.message, int64(telemetry.MarkTimeUnread)); err != nil {
				return err
			}
			if _, err := tx.Exec("DELETE FROM times_waiting WHERE boot = $1 AND message = $2", w.boot, w.message); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("repair times: %w", err)
	}
	r.log.Info("times of arrival are repaired", "messages", len(todo))
	return len(todo) == repairMessages, nil
}

// setArrival says when the gateway had the message of a reading whose own time could not be read, if that is known.
func (o *Observation) setArrival(q queryRower) error {
	if o.Marks&telemetry.MarkTimeUnread == 0 {
		return nil
	}
	var boot int64
	if err := q.QueryRow("SELECT boot FROM messages WHERE id = $1", o.position.Message).Scan(&boot); err != nil {
		return err
	}
	t, known, err := repaired(q, boot, o.Received.Mono)
	if known {
		o.Arrived = &t
	}
	return err
}

// ArrivedAt is when the gateway had a reading's message, in Unix milliseconds: by the hospital's clock where that is known of the gateway's
// boot, else by the gateway's, but never after the server had it.
func (s *Store) ArrivedAt(ctx context.Context, o *Observation) (at int64, err error) {
	err = s.db.Read(ctx, func(tx *sql.Tx) error {
		var boot int64
		if err := tx.QueryRow("SELECT boot FROM messages WHERE id = $1", o.position.Message).Scan(&boot); err != nil {
			return err
		}
		t, known, err := repaired(tx, boot, o.Received.Mono)
		if at = o.Received.Wall; known {
			at = t.At
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("records: %w", err)
	}
	return min(at, o.Journaled), nil
}
