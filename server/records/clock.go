package records

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"wardlink/audit"
)

// A clock that jumps ahead must not dispose of everything, and one that was at 1970 must not make what came then look old. So the clock
// is watched: what it moved by, less what the process's own time did, is a jump. At a start the former life's last look is the measure,
// so time that the server was down counts as a jump too; nobody can tell the two apart. Jumps add up; past maxDrift nothing is disposed
// of until the clock is back, an operator says that it is right, or it has run steadily for steadyTime.
const (
	clockInterval = time.Minute
	jumpFrom      = time.Hour // across a restart; smaller ones are the time that it took
	// stepFrom is for looks of one life, which have a clock that cannot be set beside them: a machine that is paused for a moment, or a leap
	// second, stays below. Smaller than a look's interval by far, or whoever answers the server's NTP could walk the clock ahead unseen.
	stepFrom   = 10 * time.Second
	maxDrift   = 48 * time.Hour
	steadyTime = 7 * 24 * time.Hour

	// birth is 2026-01-01: this program is younger, so a clock that shows less is one whose battery is dead.
	birth = 1_767_225_600_000
)

// clockState is the row of retention_clock, in milliseconds.
type clockState struct{ clock, floor, drift, steady, ahead int64 }

func (c clockState) suspended() bool {
	return c.drift > maxDrift.Milliseconds() || c.drift < -maxDrift.Milliseconds()
}

// look takes the clock's next reading. elapsed is the time that passed since the former one by a clock that cannot be set, or negative
// when nobody knows.
func (c clockState) look(now int64, elapsed time.Duration) clockState {
	if now < birth {
		c.ahead = 1
	}
	if c.clock == 0 {
		return clockState{clock: now, floor: now, steady: now, ahead: c.ahead}
	}
	jump, least := now-c.clock, jumpFrom.Milliseconds()
	if elapsed >= 0 {
		jump, least = jump-elapsed.Milliseconds(), stepFrom.Milliseconds()
	}
	c.clock = now
	if jump > least || jump < -least {
		c.drift += jump
		c.steady = now
	} else if now-c.steady >= steadyTime.Milliseconds() {
		c.drift = 0
	}
	if c.drift > maxDrift.Milliseconds() {
		c.ahead = 1
	}
	if !c.suspended() {
		c.floor = max(c.floor, now)
	}
	return c
}

// aged is what an age counts from, for something received at that time by the server's clock: a time far below what the clock has shown
// before is of a clock that was behind.
func (c clockState) aged(received int64) int64 {
	if received < c.floor-maxDrift.Milliseconds() {
		return c.floor
	}
	return received
}

// watchClock looks at the clock about once a minute and tells when disposal stops or goes on.
func (r *Records) watchClock(ctx context.Context) error {
	now, elapsed := r.now(), r.elapsed()
	since := time.Duration(-1)
	if r.looked {
		since = elapsed - r.lookedAt
		if since < clockInterval && since >= 0 {
			return nil
		}
	}
	var next clockState
	err := r.db.Write(ctx, func(tx *sql.Tx) error {
		former, err := readClock(tx)
		if err != nil {
			return err
		}
		next = former.look(now.UnixMilli(), since)
		if err := writeClock(tx, next); err != nil || former.suspended() == next.suspended() {
			return err
		}
		ev := audit.Event{
			Type: audit.RetentionResumed, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success, Reason: "the server's clock is believed again",
			Detail: map[string]string{"drift": (time.Duration(next.drift) * time.Millisecond).String()},
		}
		if next.suspended() {
			ev.Type, ev.Outcome, ev.Reason = audit.RetentionSuspended, audit.Failed, "the server's clock moved by more than 48 h"
			ev.Detail["before"], ev.Detail["now"] = stamp(former.clock), stamp(next.clock)
			r.log.Error("nothing is disposed of: the server's clock moved by more than 48 h since it was last seen; set it right, or say that it is "+
				"right with 'wardlink clock confirm'", "before", stamp(former.clock), "now", stamp(next.clock))
		}
		return r.outbox.Add(tx, ev)
	})
	if err != nil {
		return err
	}
	r.clock, r.looked, r.lookedAt = next, true, elapsed
	return nil
}

// ClockIsRight is an operator's word that the server's clock is right: disposal goes on. If it was suspended, that is an event, which
// is journaled when it returns.
func (r *Records) ClockIsRight(ctx context.Context, actor audit.Actor, peer string) error {
	err := r.db.Write(ctx, func(tx *sql.Tx) error {
		c, err := readClock(tx)
		if err != nil {
			return err
		}
		drift, now := c.drift, r.now().UnixMilli()
		suspended := c.suspended()
		c.clock, c.steady, c.floor, c.drift = now, now, max(c.floor, now), 0
		if err := writeClock(tx, c); err != nil || !suspended {
			return err // what was not suspended is not resumed
		}
		return r.outbox.Add(tx, audit.Event{
			Type: audit.RetentionResumed, Actor: actor, Peer: peer, Outcome: audit.Success, Reason: "an operator says that the clock is right",
			Detail: map[string]string{"drift": (time.Duration(drift) * time.Millisecond).String(), "clock": stamp(now)},
		})
	})
	if err == nil {
		err = r.outbox.Flush(ctx)
	}
	if err != nil {
		return fmt.Errorf("records: %w", err)
	}
	return nil
}

func readClock(tx *sql.Tx) (c clockState, err error) {
	err = tx.QueryRow("SELECT clock, floor, drift, steady, ahead FROM retention_clock").Scan(&c.clock, &c.floor, &c.drift, &c.steady, &c.ahead)
	return c, err
}

func writeClock(tx *sql.Tx, c clockState) error {
	_, err := tx.Exec("UPDATE retention_clock SET clock = $1, floor = $2, drift = $3, steady = $4, ahead = $5", c.clock, c.floor, c.drift, c.steady, c.ahead)
	return err
}

func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }
