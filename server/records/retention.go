package records

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry"
)

// Retention is how long each class is kept, from the server's receipt.
type Retention struct {
	Batches   time.Duration // the journal's files, and the rows that say of each opened batch that it came
	Waveforms time.Duration
	Vitals    time.Duration // readings that came by the lane vitals
	Alarms    time.Duration // those that came by the lane alarm
	Dead      time.Duration // batches that could not be opened
}

// DefaultRetention is what the documentation promises.
func DefaultRetention() Retention {
	const day = 24 * time.Hour
	return Retention{Batches: 7 * day, Waveforms: 72 * time.Hour, Vitals: 90 * day, Alarms: 365 * day, Dead: 365 * day}
}

// Class names what is disposed of together. The texts are part of events.
type Class string

// The classes.
const (
	ClassJournal   Class = "journal"   // files of the journal
	ClassBatches   Class = "batches"   // rows of opened batches, and sealing records that nothing needs any more
	ClassWaveforms Class = "waveforms" // chunks of samples
	ClassVitals    Class = "vitals"    // readings
	ClassAlarms    Class = "alarms"    // readings
	ClassDead      Class = "dead"      // batches that could not be opened
)

// classes are all of them, in the order of a run: what takes most room goes first.
var classes = []Class{ClassWaveforms, ClassVitals, ClassAlarms, ClassBatches, ClassDead, ClassJournal}

// Keep is how long the class is kept.
func (t Retention) Keep(c Class) time.Duration {
	switch c {
	case ClassWaveforms:
		return t.Waveforms
	case ClassVitals:
		return t.Vitals
	case ClassAlarms:
		return t.Alarms
	case ClassDead:
		return t.Dead
	}
	return t.Batches
}

// Files are the journal's files, of which the oldest go.
type Files interface {
	Expired(now time.Time) []journal.File
	Dispose(ctx context.Context, f journal.File, cutoff time.Time) error
	Oldest() (seq uint64, closed time.Time) // before seq it has nothing
}

// How often and how much. Disposal shares the consumer's goroutine: the rows that it takes away are those that the interner remembers.
// One step is one small transaction, and after it disposal rests three times as long as the step took, so that what arrives always
// comes first and a quarter of one core is what is spent. A run that takes longer than it should, because more goes out of its time than
// that deletes, rests less, and in the end not at all: then steps and passes of what is new take turns. Otherwise a database that takes in
// more rows a second than a quarter of a core can delete would grow for ever.
const (
	disposeInterval = 10 * time.Minute
	disposeRows     = 4000 // rows of one step, about
	disposeRest     = 3    // 1 once a run lasts longer than disposeInterval, 0 once it lasts longer than disposeLate
	disposeLate     = time.Hour
	copiesKept      = 30 * 24 * time.Hour // a copy of the database from before an upgrade: it holds what was disposed of since
	runMost         = 1_000_000           // items in one event; a run that takes more has several
)

// disposal is the state of the run under way; it needs none to survive, since each step looks for what is over by now.
type disposal struct {
	began time.Duration // elapsed time at the beginning of the run
	next  time.Duration // of the next run, or of the next step
	plan  []Class       // what is left of the run; its first is under way
	after int64         // where the class under way goes on: a subject or a stream
	from  int64         // and the number within the stream
	least int64         // oldest that the class under way keeps; 0: none met
}

// dispose takes one step when it is time. more says that the next one is due before something else wakes the consumer up.
func (r *Records) dispose(ctx context.Context) (more bool, err error) {
	if r.retention == nil {
		return false, nil
	}
	if err := r.watchClock(ctx); err != nil {
		return false, err
	}
	d := &r.disposal
	begin := r.elapsed()
	if begin < d.next {
		return len(d.plan) > 0, nil
	}
	if len(d.plan) == 0 {
		if err := r.finishLeft(ctx); err != nil {
			return false, err
		}
		if r.clock.suspended() {
			d.next = begin + disposeInterval
			return false, nil
		}
		if err := r.redate(ctx); err != nil {
			return false, err
		}
		*d = disposal{plan: classes, began: begin}
	}
	if r.clock.suspended() { // in the middle of a run
		*d = disposal{next: begin + disposeInterval}
		return false, nil
	}
	start := time.Now()
	class := d.plan[0]
	cutoff := r.now().Add(-r.retention.Keep(class)).UnixMilli()
	done, err := r.disposeStep(ctx, class, cutoff)
	if err != nil {
		d.next = begin + disposeInterval/10
		return false, fmt.Errorf("dispose of %s: %w", class, err)
	}
	if done {
		if err := r.finishClass(ctx, class, d.least); err != nil {
			return false, err
		}
		d.plan, d.after, d.from, d.least = d.plan[1:], 0, 0, 0
	}
	end := r.elapsed()
	d.next = end + d.rest(end)*time.Since(start)
	if len(d.plan) > 0 {
		return true, nil
	}
	// Whether or not this run deleted anything: a former life may have died before it came here.
	if err := r.db.Reclaim(ctx); err != nil {
		r.log.Warn("what was disposed of is deleted, but traces of it are in the write-ahead log until the next run", "error", err)
	}
	if err := r.db.DropCopies(r.now().Add(-copiesKept)); err != nil {
		r.log.Warn("a copy of the database from before an upgrade is older than it may be, and could not be removed", "error", err)
	}
	*d = disposal{next: end + disposeInterval}
	return false, r.outbox.Flush(ctx)
}

// rest is how many times as long as its last step a run rests.
func (d *disposal) rest(now time.Duration) time.Duration {
	switch lasts := now - d.began; {
	case lasts > disposeLate:
		return 0
	case lasts > disposeInterval:
		return 1
	}
	return disposeRest
}

func (r *Records) disposeStep(ctx context.Context, class Class, cutoff int64) (done bool, err error) {
	switch class {
	case ClassWaveforms:
		return r.disposeWaveforms(ctx, cutoff)
	case ClassVitals:
		return r.disposeMessages(ctx, class, telemetry.LaneVitals, cutoff)
	case ClassAlarms:
		return r.disposeMessages(ctx, class, telemetry.LaneAlarm, cutoff)
	case ClassBatches:
		return r.disposeBatches(ctx, cutoff)
	case ClassDead:
		return r.disposeDead(ctx, cutoff)
	case ClassJournal:
		return r.disposeFiles(ctx, cutoff)
	}
	return true, nil
}

// disposed is what one transaction took away.
type disposed struct {
	count       int64
	first, last int64
	detail      map[string]int64
}

func (d *disposed) saw(aged int64) {
	if d.first == 0 || aged < d.first {
		d.first = aged
	}
	d.last = max(d.last, aged)
}

// tally adds what the transaction deletes to the run's totals, which are in the same transaction.
//
// Crash argument: a deletion is durable if and only if its tally is, and a tally leaves the table only in the transaction that puts
// the event of at least as much into the outbox (finishClass, finishLeft). The outbox loses no event. So whatever instant the server dies at,
// everything deleted is in an event or in a tally that the next run turns into one, and nothing is counted twice.
func (r *Records) tally(tx *sql.Tx, class Class, cutoff int64, d disposed) error {
	if d.count == 0 && len(d.detail) == 0 {
		return nil
	}
	run, err := readRun(tx, class)
	if err != nil {
		return err
	}
	run.count += d.count
	for _, t := range []int64{d.first, d.last} {
		if t != 0 {
			run.saw(t)
		}
	}
	for k, v := range d.detail {
		run.detail[k] += v
	}
	text, err := json.Marshal(run.detail)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO retention_runs (class, cutoff, count, first, last, detail) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (class) DO UPDATE SET cutoff = excluded.cutoff, count = excluded.count, first = excluded.first, last = excluded.last, detail = excluded.detail`,
		class, cutoff, run.count, run.first, run.last, string(text))
	if err == nil && run.count >= runMost {
		err = r.closeRun(tx, class)
	}
	return err
}

func readRun(tx *sql.Tx, class Class) (d disposed, err error) {
	var text string
	d.detail = map[string]int64{}
	err = tx.QueryRow("SELECT count, first, last, detail FROM retention_runs WHERE class = $1", class).Scan(&d.count, &d.first, &d.last, &text)
	if errors.Is(err, sql.ErrNoRows) {
		return d, nil
	}
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal([]byte(text), &d.detail)
}

// closeRun turns the class's tally, if there is one, into an event.
func (r *Records) closeRun(tx *sql.Tx, class Class) error {
	var cutoff int64
	err := tx.QueryRow("SELECT cutoff FROM retention_runs WHERE class = $1", class).Scan(&cutoff)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	run, err := readRun(tx, class)
	if err != nil {
		return err
	}
	if _, err := tx.Exec("DELETE FROM retention_runs WHERE class = $1", class); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO retention_classes (class, oldest, checked, disposal, disposed) VALUES ($1, 0, 0, $2, $3)
		ON CONFLICT (class) DO UPDATE SET disposal = excluded.disposal, disposed = retention_classes.disposed + excluded.disposed`, class, r.now().UnixMilli(), run.count); err != nil {
		return err
	}
	return r.outbox.Add(tx, disposedEvent(class, cutoff, "retention", run))
}

// disposedEvent says how much of a class is gone, and from when to when it was received.
func disposedEvent(class Class, cutoff int64, reason string, d disposed) audit.Event {
	detail := map[string]string{"class": string(class), "cutoff": stamp(cutoff)}
	if d.first != 0 {
		detail["first"], detail["last"] = stamp(d.first), stamp(d.last)
	}
	for k, v := range maps.All(d.detail) {
		detail[k] = strconv.FormatInt(v, 10)
	}
	return audit.Event{
		Type: audit.RecordsDisposed, Actor: audit.Actor{ID: "server"}, Target: string(class), Outcome: audit.Success, Reason: reason,
		Count: uint64(d.count), Detail: detail,
	}
}

// finishClass ends a class's part of the run.
func (r *Records) finishClass(ctx context.Context, class Class, oldest int64) error {
	return r.db.Write(ctx, func(tx *sql.Tx) error {
		if err := r.closeRun(tx, class); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO retention_classes (class, oldest, checked, disposal, disposed) VALUES ($1, $2, $3, 0, 0)
			ON CONFLICT (class) DO UPDATE SET oldest = excluded.oldest, checked = excluded.checked`, class, oldest, r.now().UnixMilli())
		return err
	})
}

// finishLeft gives what a former life disposed of, or a run that was broken off, its events: also while nothing more is disposed of.
func (r *Records) finishLeft(ctx context.Context) error {
	var left int
	if err := r.db.QueryRow(ctx, "SELECT COUNT(*) FROM retention_runs").Scan(&left); err != nil || left == 0 {
		return err
	}
	return r.db.Write(ctx, func(tx *sql.Tx) error {
		for _, class := range classes {
			if err := r.closeRun(tx, class); err != nil {
				return err
			}
		}
		return nil
	})
}

// redate mends the age of what was received while the clock was far ahead, which would be kept until then, or stood at 1970 from the first day
// on, which would go at once.
func (r *Records) redate(ctx context.Context) error {
	if r.clock.ahead == 0 {
		return nil
	}
	now := r.now().UnixMilli()
	err := r.db.Write(ctx, func(tx *sql.Tx) error {
		late := now + maxDrift.Milliseconds()
		if _, err := tx.Exec("UPDATE messages SET aged = $1 WHERE aged > $2 OR aged < $3", now, late, int64(birth)); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE waveforms SET journaled = $1 WHERE journaled > $2 OR journaled < $3", now, late, int64(birth)); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE batches SET aged = $1 WHERE received > $2 OR received < $3", now, late, int64(birth)); err != nil {
			return err
		}
		_, err := tx.Exec("UPDATE retention_clock SET ahead = 0")
		return err
	})
	if err == nil {
		r.clock.ahead = 0
	}
	return err
}

// ClassState is one class as of its last run.
type ClassState struct {
	Class    Class
	Keep     time.Duration
	Oldest   time.Time // received; zero: nothing is kept
	Checked  time.Time // end of the last run; zero: none yet
	Disposal time.Time // when anything was last disposed of; zero: never
	Disposed int64     // items in all
}

// RetentionState is what is kept, and whether anything is disposed of at all.
type RetentionState struct {
	Classes   []ClassState
	Suspended bool          // the clock moved too far to be believed
	Drift     time.Duration // by how much
}

// Retention says what is kept and since when.
func (r *Records) Retention(ctx context.Context) (out RetentionState, err error) {
	if r.retention == nil {
		return out, nil
	}
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		c, err := readClock(tx)
		if err != nil {
			return err
		}
		out.Suspended, out.Drift = c.suspended(), time.Duration(c.drift)*time.Millisecond
		for _, class := range classes {
			s := ClassState{Class: class, Keep: r.retention.Keep(class)}
			var oldest, checked, disposal int64
			err := tx.QueryRowContext(ctx, "SELECT oldest, checked, disposal, disposed FROM retention_classes WHERE class = $1", class).
				Scan(&oldest, &checked, &disposal, &s.Disposed)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			s.Oldest, s.Checked, s.Disposal = instant(oldest), instant(checked), instant(disposal)
			out.Classes = append(out.Classes, s)
		}
		return nil
	})
	if err != nil {
		return RetentionState{}, fmt.Errorf("records: %w", err)
	}
	return out, nil
}
