package records

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"wardlink/telemetry"
)

const (
	lookSubjects = 2000 // of one step that finds nothing to do; the same for streams
	lookBatches  = 2000
)

// disposeMessages takes one step through the lane's subjects: it looks for the next one with something over, and deletes some of it.
//
// Legal hold will have its place here: a subject that is held is passed over like one with nothing over.
func (r *Records) disposeMessages(ctx context.Context, class Class, lane telemetry.Lane, cutoff int64) (done bool, err error) {
	d := &r.disposal
	for range lookSubjects {
		var subject, aged int64
		err := r.db.QueryRow(ctx, "SELECT subject, aged FROM messages WHERE lane = $1 AND subject >= $2 ORDER BY subject, aged LIMIT 1", int64(lane), d.after).Scan(&subject, &aged)
		if errors.Is(err, sql.ErrNoRows) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if aged < cutoff {
			d.after = subject
			return false, r.deleteMessages(ctx, class, int64(lane), subject, cutoff)
		}
		d.keeps(aged)
		d.after = subject + 1
	}
	return false, nil
}

func (d *disposal) keeps(aged int64) {
	if d.least == 0 || aged < d.least {
		d.least = aged
	}
}

// deleteMessages deletes the oldest messages of a subject, with all that is theirs, and what only they referred to: origins, and the
// subject itself.
func (r *Records) deleteMessages(ctx context.Context, class Class, lane, subject, cutoff int64) error {
	orphans := false
	err := r.write(ctx, func(tx *sql.Tx) error {
		over, err := overMessages(ctx, tx, lane, subject, cutoff)
		if err != nil {
			return err
		}
		total := disposed{detail: map[string]int64{}}
		origins := map[int64]bool{}
		rows := int64(0)
		for _, m := range over {
			n, err := deleteMessage(tx, m.id, &total)
			if err != nil {
				return err
			}
			total.saw(m.aged)
			origins[m.origin] = true
			if rows += n; rows >= disposeRows {
				break
			}
		}
		for id := range origins {
			n, err := affected(tx.Exec("DELETE FROM origins WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM messages WHERE origin = $1)", id))
			if err != nil {
				return err
			}
			total.detail["origins"] += n
		}
		if subject != 0 {
			n, err := deleteSubject(tx, subject)
			if err != nil {
				return err
			}
			total.detail["patients"] += n
		}
		orphans = total.detail["origins"]+total.detail["patients"] > 0
		return r.tally(tx, class, cutoff, total)
	})
	if err == nil && orphans {
		r.in.forget() // the ids of rows that are gone may be given to others
	}
	return err
}

// disposeWaveforms takes one step: chunks go by their own age, whatever message they came in; then the messages that held nothing else.
func (r *Records) disposeWaveforms(ctx context.Context, cutoff int64) (done bool, err error) {
	d := &r.disposal
	if d.from == 0 {
		var oldest int64
		if err := r.db.QueryRow(ctx, "SELECT COALESCE(MIN(journaled), 0) FROM waveforms").Scan(&oldest); err != nil {
			return false, err
		}
		if oldest != 0 && oldest < cutoff {
			return false, r.deleteWaveforms(ctx, cutoff)
		}
		d.from, d.least = 1, oldest
	}
	return r.disposeMessages(ctx, ClassWaveforms, telemetry.LaneWaveform, cutoff)
}

func (r *Records) deleteWaveforms(ctx context.Context, cutoff int64) error {
	return r.write(ctx, func(tx *sql.Tx) error {
		const over = " FROM waveforms WHERE journaled < $1 ORDER BY journaled LIMIT $2"
		total := disposed{detail: map[string]int64{}}
		var samples int64
		if err := tx.QueryRow("SELECT COUNT(*), CAST(COALESCE(SUM(x.count), 0) AS BIGINT), COALESCE(MIN(x.journaled), 0), COALESCE(MAX(x.journaled), 0) FROM (SELECT count, journaled"+over+") x",
			cutoff, disposeRows/4).Scan(&total.count, &samples, &total.first, &total.last); err != nil {
			return err
		}
		n, err := affected(tx.Exec("DELETE FROM waveforms WHERE id IN (SELECT id"+over+")", cutoff, disposeRows/4))
		if err != nil {
			return err
		}
		if n != total.count {
			return errors.New("chunks changed while they were looked at")
		}
		total.detail["samples"] = samples
		return r.tally(tx, ClassWaveforms, cutoff, total)
	})
}

type overMessage struct{ id, origin, aged int64 }

func overMessages(ctx context.Context, tx *sql.Tx, lane, subject, cutoff int64) (out []overMessage, err error) {
	rows, err := tx.QueryContext(ctx, "SELECT id, origin, aged FROM messages WHERE lane = $1 AND subject = $2 AND aged < $3 ORDER BY aged LIMIT $4",
		lane, subject, cutoff, disposeRows/4)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var m overMessage
		if err := rows.Scan(&m.id, &m.origin, &m.aged); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, rows.Err()
}

// deleteMessage gives how many rows it deleted.
func deleteMessage(tx *sql.Tx, id int64, total *disposed) (rows int64, err error) {
	first, last := rowsOf(id)
	var observations int64
	if err := tx.QueryRow("SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM readings WHERE id BETWEEN $1 AND $2", first, last).Scan(&observations); err != nil {
		return 0, err
	}
	rows, err = affected(tx.Exec("DELETE FROM readings WHERE id BETWEEN $1 AND $2", first, last))
	if err != nil {
		return 0, err
	}
	chunks, err := affected(tx.Exec("DELETE FROM waveforms WHERE message = $1", id)) // where messages are kept shorter than waveforms
	if err != nil {
		return 0, err
	}
	leftovers, err := affected(tx.Exec("DELETE FROM leftovers WHERE message = $1", id))
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec("DELETE FROM messages WHERE id = $1", id); err != nil {
		return 0, err
	}
	total.count += observations + chunks
	total.detail["messages"]++
	total.detail["leftovers"] += leftovers
	return rows + chunks + leftovers + 1, nil
}

// deleteSubject deletes a patient of whom nothing is left, of any class.
func deleteSubject(tx *sql.Tx, subject int64) (int64, error) {
	const nothing = " AND NOT EXISTS (SELECT 1 FROM messages WHERE lane IN (0, 1, 2, 3) AND subject = $1)"
	long, err := longTextsOf(tx, subject)
	if err != nil {
		return 0, err
	}
	n, err := affected(tx.Exec("DELETE FROM subjects WHERE id = $1"+nothing, subject))
	if err != nil || n == 0 {
		return 0, err
	}
	for _, table := range []string{"series", "layouts"} {
		if _, err = tx.Exec("DELETE FROM "+table+" WHERE subject = $1", subject); err != nil {
			return 0, err
		}
	}
	return n, dropLongTexts(tx, long)
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// batchRange are consecutive numbers of one stream.
type batchRange struct{ first, last int64 }

// disposeBatches takes one step through the streams: rows of stored batches whose time is over become ranges of numbers. They go in
// the order of numbers, so that ranges stay few.
func (r *Records) disposeBatches(ctx context.Context, cutoff int64) (done bool, err error) {
	d := &r.disposal
	for range lookSubjects {
		var stream int64
		err := r.db.QueryRow(ctx, "SELECT id FROM streams WHERE id >= $1 ORDER BY id LIMIT 1", d.after).Scan(&stream)
		if errors.Is(err, sql.ErrNoRows) {
			return true, r.disposeSealings(ctx, cutoff)
		}
		if err != nil {
			return false, err
		}
		if stream != d.after {
			d.after, d.from = stream, 0
		}
		total := disposed{}
		over, next, err := r.overBatches(ctx, stream, cutoff, &total)
		if err != nil {
			return false, err
		}
		if next < 0 {
			d.after, d.from = stream+1, 0
		} else {
			d.from = next
		}
		if len(over) > 0 {
			return false, r.deleteBatches(ctx, stream, cutoff, over, total)
		}
	}
	return false, nil
}

// overBatches looks at the stream's next batches, up to the first stored one whose time is not over. next is where to go on, or -1.
func (r *Records) overBatches(ctx context.Context, stream, cutoff int64, total *disposed) (over []batchRange, next int64, err error) {
	rows, err := r.db.Query(ctx, `SELECT number, state, CASE WHEN aged > 0 THEN aged ELSE received END FROM batches
		WHERE stream = $1 AND number >= $2 ORDER BY number LIMIT $3`, stream, r.disposal.from, lookBatches)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = rows.Close() }()
	met := 0
	for rows.Next() {
		var number, aged int64
		var state int
		if err := rows.Scan(&number, &state, &aged); err != nil {
			return nil, 0, err
		}
		met++
		next = number + 1
		if state != stateStored {
			continue // unsettled ones stay, whatever their age
		}
		if aged >= cutoff {
			r.disposal.keeps(aged)
			return over, -1, nil
		}
		total.count++
		total.saw(aged)
		if n := len(over); n > 0 && over[n-1].last == number-1 {
			over[n-1].last = number
		} else {
			over = append(over, batchRange{number, number})
		}
	}
	if met < lookBatches {
		next = -1
	}
	return over, next, rows.Err()
}

func (r *Records) deleteBatches(ctx context.Context, stream, cutoff int64, over []batchRange, total disposed) error {
	return r.write(ctx, func(tx *sql.Tx) error {
		for _, g := range over {
			n, err := affected(tx.Exec("DELETE FROM batches WHERE stream = $1 AND number BETWEEN $2 AND $3 AND state = $4", stream, g.first, g.last, stateStored))
			if err != nil {
				return err
			}
			if n != g.last-g.first+1 {
				return errors.New("rows of stored batches changed while they were looked at")
			}
			if err := addRange(tx, stream, g); err != nil {
				return err
			}
		}
		delete(r.in.ranged, stream)
		return r.tally(tx, ClassBatches, cutoff, total)
	})
}

// addRange notes numbers as settled for ever, joined with their neighbours.
func addRange(tx *sql.Tx, stream int64, g batchRange) error {
	rows, err := tx.Query("SELECT first, last FROM batch_ranges WHERE stream = $1 AND first <= $2 ORDER BY first DESC LIMIT 2", stream, g.last+1)
	if err != nil {
		return err
	}
	var near []batchRange
	for rows.Next() {
		var o batchRange
		if err := rows.Scan(&o.first, &o.last); err != nil {
			return errors.Join(err, rows.Close())
		}
		near = append(near, o)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, o := range near {
		if o.last < g.first-1 {
			continue
		}
		g.first, g.last = min(g.first, o.first), max(g.last, o.last)
		if _, err := tx.Exec("DELETE FROM batch_ranges WHERE stream = $1 AND first = $2", stream, o.first); err != nil {
			return err
		}
	}
	_, err = tx.Exec("INSERT INTO batch_ranges (stream, first, last) VALUES ($1, $2, $3)", stream, g.first, g.last)
	return err
}

// settledBefore says that the number's row is gone since it was settled long ago. Numbers ascend, so the usual one is past all ranges,
// which the interner remembers.
func (r *Records) settledBefore(tx *sql.Tx, stream, number int64) (bool, error) {
	top, ok := r.in.ranged[stream]
	if !ok {
		if err := tx.QueryRow("SELECT COALESCE(MAX(last), -1) FROM batch_ranges WHERE stream = $1", stream).Scan(&top); err != nil {
			return false, err
		}
		if len(r.in.ranged) >= maxInterned {
			clear(r.in.ranged)
		}
		r.in.ranged[stream] = top
	}
	if number > top {
		return false, nil
	}
	var last int64
	err := tx.QueryRow("SELECT last FROM batch_ranges WHERE stream = $1 AND first <= $2 ORDER BY first DESC LIMIT 1", stream, number).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && last >= number, err
}

// disposeSealings deletes sealing records that were last brought before anything that the journal still has, and that no unsettled batch
// needs: a connection brings the records of all that it publishes and lives a day, the journal keeps three days at least. While records
// are further behind than a day, what is still to be read may need any of them.
func (r *Records) disposeSealings(ctx context.Context, cutoff int64) error {
	if r.files == nil || !r.current {
		return nil
	}
	oldest, _ := r.files.Oldest()
	return r.write(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.Exec(`DELETE FROM sealings WHERE seq < $1
			AND NOT EXISTS (SELECT 1 FROM batches b JOIN streams s ON s.id = b.stream
				WHERE b.state <> 2 AND b.sealing = sealings.sealing AND s.gateway = sealings.gateway)`, int64(oldest)))
		if err != nil || n == 0 {
			return err
		}
		return r.tally(tx, ClassBatches, cutoff, disposed{detail: map[string]int64{"sealing_records": n}})
	})
}

// disposeDead takes one step through the dead batches whose time is over.
func (r *Records) disposeDead(ctx context.Context, cutoff int64) (done bool, err error) {
	over, err := r.deadOver(ctx, agedBatch+" < $1", cutoff)
	if err != nil {
		return false, err
	}
	if len(over) == 0 {
		var oldest int64
		err := r.db.QueryRow(ctx, "SELECT COALESCE(MIN(received), 0) FROM batches WHERE state <> 2 AND state = 3").Scan(&oldest)
		r.disposal.least = oldest
		return true, errors.Join(err, r.deleteConflicts(ctx, cutoff))
	}
	return false, r.deleteDead(ctx, cutoff, over, "")
}

type deadRow struct{ stream, number, aged int64 }

// agedBatch is what the age of batch b counts from.
const agedBatch = "(CASE WHEN b.aged > 0 THEN b.aged ELSE b.received END)"

func (r *Records) deadOver(ctx context.Context, condition string, arg int64) (out []deadRow, err error) {
	rows, err := r.db.Query(ctx, `SELECT b.stream, b.number, `+agedBatch+` FROM batches b
		LEFT JOIN frames_unkept u ON u.stream = b.stream AND u.number = b.number
		WHERE b.state <> 2 AND b.state = 3 AND `+condition+" LIMIT 500", arg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var d deadRow
		if err := rows.Scan(&d.stream, &d.number, &d.aged); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, rows.Err()
}

// deleteDead deletes dead batches with their frames, for ever: their numbers count as settled.
func (r *Records) deleteDead(ctx context.Context, cutoff int64, over []deadRow, why string) error {
	return r.write(ctx, func(tx *sql.Tx) error {
		total := disposed{detail: map[string]int64{}}
		for _, d := range over {
			// An operator may have reopened it since it was looked at.
			n, err := affected(tx.Exec("DELETE FROM batches WHERE stream = $1 AND number = $2 AND state = $3", d.stream, d.number, stateDead))
			if err != nil {
				return err
			}
			if n == 0 {
				continue
			}
			for _, q := range []string{
				"DELETE FROM batch_frames WHERE stream = $1 AND number = $2",
				"DELETE FROM frames_unkept WHERE stream = $1 AND number = $2",
				"DELETE FROM batch_conflicts WHERE stream = $1 AND number = $2",
			} {
				if _, err := tx.Exec(q, d.stream, d.number); err != nil {
					return err
				}
			}
			if err := addRange(tx, d.stream, batchRange{d.number, d.number}); err != nil {
				return err
			}
			delete(r.in.ranged, d.stream)
			total.count++
			total.saw(d.aged)
			if why != "" {
				total.detail[why]++
			}
		}
		return r.tally(tx, ClassDead, cutoff, total)
	})
}

// deleteConflicts deletes the second frames whose time is over, also of numbers whose first frame was stored and is long gone. What is
// unsettled keeps them: one may have to take its place. There are a few thousand at most.
func (r *Records) deleteConflicts(ctx context.Context, cutoff int64) error {
	return r.write(ctx, func(tx *sql.Tx) error {
		const over = ` FROM batch_conflicts WHERE received < $1 AND NOT EXISTS (SELECT 1 FROM batches b
			WHERE b.stream = batch_conflicts.stream AND b.number = batch_conflicts.number AND b.state <> 2)`
		total := disposed{}
		if err := tx.QueryRow("SELECT COALESCE(MIN(received), 0), COALESCE(MAX(received), 0)"+over, cutoff).Scan(&total.first, &total.last); err != nil {
			return err
		}
		n, err := affected(tx.Exec("DELETE"+over, cutoff))
		if err != nil || n == 0 {
			return err
		}
		total.count, total.detail = n, map[string]int64{"second_frames": n}
		return r.tally(tx, ClassDead, cutoff, total)
	})
}

// disposeFiles takes the journal's oldest file away, if its time is over. What was only in it is lost with it, so that is told first.
func (r *Records) disposeFiles(ctx context.Context, cutoff int64) (done bool, err error) {
	if r.files == nil {
		return true, nil
	}
	files := r.files.Expired(r.now())
	if len(files) == 0 {
		_, closed := r.files.Oldest()
		r.disposal.least = closed.UnixMilli()
		return true, nil
	}
	f := files[0]
	over, err := r.deadOver(ctx, "u.number IS NOT NULL AND b.seq <= $1", int64(f.Last))
	if err != nil {
		return false, err
	}
	if len(over) > 0 {
		return false, r.deleteDead(ctx, cutoff, over, "no_room")
	}
	if err := r.db.Write(ctx, func(tx *sql.Tx) error { return r.closeRun(tx, ClassDead) }); err != nil {
		return false, err
	}
	if err := r.outbox.Flush(ctx); err != nil {
		return false, err
	}
	if err := r.files.Dispose(ctx, f, time.UnixMilli(cutoff)); err != nil {
		return false, err
	}
	return false, r.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO retention_classes (class, oldest, checked, disposal, disposed) VALUES ($1, 0, 0, $2, 1)
			ON CONFLICT (class) DO UPDATE SET disposal = excluded.disposal, disposed = retention_classes.disposed + 1`, ClassJournal, r.now().UnixMilli())
		return err
	})
}
