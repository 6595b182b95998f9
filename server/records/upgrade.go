package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	gatherMessages = 100 // of one look: a hostile one has thousands of readings
	gatherTold     = 2 * time.Second
)

// gatherReadings moves the readings of a database that has one in each row (observations) into rows of many, message by message.
//
// Crash argument: it is a part of the upgrade's one transaction; whatever stops it leaves the database as it was. It takes room for the rows
// of both forms until that is committed.
func gatherReadings(ctx context.Context, tx *sql.Tx, progress func(string)) error {
	var last int64
	if err := tx.QueryRowContext(ctx, "SELECT COALESCE(MAX(message), -1) FROM observations").Scan(&last); err != nil || last < 0 {
		return err
	}
	in := newInterner(nil)
	in.bulks[insertReadings] = insertReadings.sizes(true, mostSQLite)
	w := gatherer{ctx: ctx, tx: tx, rows: rowMaker{in: in}}
	told := time.Now()
	for from := int64(0); from <= last; {
		// Messages are numbered nearly without holes, but a hole may be large.
		if err := tx.QueryRowContext(ctx, "SELECT MIN(message) FROM observations WHERE message >= $1", from).Scan(&from); err != nil {
			return err
		}
		if err := w.gather(from, from+gatherMessages); err != nil {
			return err
		}
		from += gatherMessages
		if time.Since(told) > gatherTold {
			told = time.Now()
			progress(fmt.Sprintf("gathering the readings of messages: %d of %d", min(from, last), last))
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	var all int64
	if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM observations").Scan(&all); err != nil {
		return err
	}
	if w.gathered != all { // the rows go with this transaction: what was not gathered would be lost
		return fmt.Errorf("%d of %d readings belong to no series of a patient; the database is as it was: restore it from a backup, or have it looked at", all-w.gathered, all)
	}
	return nil
}

// gatherer makes rows of readings from rows of observations.
type gatherer struct {
	ctx  context.Context
	tx   *sql.Tx
	rows rowMaker

	message, subject, part int64 // of the readings that rows has
	gathered               int64 // readings
}

// gather takes the messages from one on and before another.
func (w *gatherer) gather(from, before int64) error {
	rows, err := w.tx.QueryContext(w.ctx, `SELECT o.message, s.subject, o.idx, o.series, o.form, o.at, o.value, o.time, o.marks
		FROM observations o JOIN series s ON s.id = o.series WHERE o.message >= $1 AND o.message < $2 ORDER BY o.message, o.idx`, from, before)
	if err != nil {
		return err
	}
	type old struct {
		message, subject, at int64
		reading
	}
	var all []old // PostgreSQL takes no other statement while it answers one
	for rows.Next() {
		var o old
		var sent sql.NullString
		if err := rows.Scan(&o.message, &o.subject, &o.index, &o.series, &o.form, &o.at, &o.value, &sent, &o.marks); err != nil {
			return errors.Join(err, rows.Close())
		}
		o.own, o.sent = sent.Valid, sent.String
		all = append(all, o)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for i := range all {
		o := &all[i]
		if o.message != w.message || o.subject != w.subject {
			if err := w.end(); err != nil {
				return err
			}
			if o.message != w.message {
				w.part = 0
			}
			w.message, w.subject = o.message, o.subject
		}
		w.rows.add(o.at, o.reading)
		w.gathered++
	}
	return w.end()
}

// end writes the rows of the message.
func (w *gatherer) end() (err error) {
	if w.part, err = w.rows.end(w.tx, w.message, w.part, w.subject); err != nil || len(w.rows.args) < flushRows/4 {
		return err
	}
	return w.flush()
}

func (w *gatherer) flush() error {
	_, err := w.rows.in.write(w.tx, insertReadings, w.rows.args)
	w.rows.args, w.rows.size = w.rows.args[:0], 0
	return err
}
