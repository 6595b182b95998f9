package records

import (
	"database/sql"
	"errors"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
)

const (
	// stepOfNote is how far a gateway's wall clock is from where its former report and its monotonic clock put it before that is an event:
	// what the agent itself calls a step.
	stepOfNote = 1000 // milliseconds
	// maxWallSteps of one gateway are events within a day: a report comes with each step, and one that lies must not fill the log.
	maxWallSteps = 24
)

// wallSteps counts a gateway's steps of the day.
type wallSteps struct {
	day   int64
	count int
}

// noteWallStep makes an event of it when a gateway's wall clock was set since the report before, within one boot: whoever judges times that
// the gateway gave has to know. Both clocks are the report's own, so it needs neither trust nor a further field.
func (r *Records) noteWallStep(tx *sql.Tx, o *opened) error {
	var boot, data []byte
	err := tx.QueryRow("SELECT boot, report FROM gateway_reports WHERE gateway = $1", o.gateway).Scan(&boot, &data)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil || [16]byte(boot) != o.batch.Boot {
		return err
	}
	former, err := telemetry.Decode(data)
	if err != nil || former.Report == nil {
		return nil // of a release that this one does not read
	}
	was, is := former.Report.At, o.batch.Report.At
	passed := is.Mono - was.Mono
	step := is.Wall - was.Wall - passed
	if max(step, -step) < stepOfNote+max(passed, -passed)/drift {
		return nil
	}
	day := o.received / int64(24*time.Hour/time.Millisecond)
	n := r.stepped[o.gateway]
	if n.day != day {
		n = wallSteps{day: day}
	}
	n.count++
	r.stepped[o.gateway] = n // of the settling goroutine alone; a transaction that is tried again may count twice
	if n.count > maxWallSteps {
		return nil
	}
	return r.outbox.Add(tx, audit.Event{
		Type: audit.GatewayClockStep, Actor: audit.Actor{ID: r.gatewayID(o.gateway)}, Target: o.gateway, Outcome: audit.Success,
		Detail: map[string]string{"by_ms": strconv.FormatInt(step, 10), "shows": time.UnixMilli(is.Wall).UTC().Format(time.RFC3339)},
	})
}
