package pgjournal

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"wardlink/server/journal"
	"wardlink/server/sqldb"
)

const expiredParts = 1024 // that one Expired looks at

// parts are the oldest parts, in order. The last of all has no time at which it was finished.
func (j *Journal) parts(ctx context.Context, limit int) ([]journal.File, error) {
	rows, err := j.pool.Query(ctx, `SELECT first, lead(first) OVER w - 1, lead(begun) OVER w, lead(before) OVER w FROM
		(SELECT first, begun, before FROM journal_parts ORDER BY first LIMIT $1) p WINDOW w AS (ORDER BY first) ORDER BY first`, limit+1)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (journal.File, error) {
		var first int64
		var last, closed, bytes *int64
		if err := row.Scan(&first, &last, &closed, &bytes); err != nil {
			return journal.File{}, err
		}
		f := journal.File{Name: fmt.Sprintf("part %d", first), First: uint64(first)}
		if last != nil {
			f.Last, f.Closed, f.Bytes = uint64(*last), time.Unix(*closed, 0), uint64(*bytes)
		}
		return f, nil
	})
}

// Expired are the parts, oldest first, that every consumer has passed and whose retention is over at now; never the newest. A part is finished
// when the next begins. None while PostgreSQL does not answer. Nothing is deleted here.
func (j *Journal) Expired(now time.Time) []journal.File {
	if j.pool == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(j.life, readTime)
	defer cancel()
	files, err := j.parts(ctx, expiredParts)
	if err != nil {
		j.c.Log.Warn("which parts of the journal are too old is not known", "database", j.name, "error", sqldb.Explain(j.c.URL, err))
		return nil
	}
	return journal.Due(files, j.passed(ctx), now, j.c.Retention)
}

// passed is the number that all cursors in the database have passed, those of other processes' consumers too.
func (j *Journal) passed(ctx context.Context) uint64 {
	var least int64
	if err := j.pool.QueryRow(ctx, "SELECT coalesce(min(seq), 0) FROM journal_cursors").Scan(&least); err != nil {
		return 0
	}
	return uint64(least)
}

// Oldest is the sequence number before which the journal has nothing, and when the part that begins with it was finished: now, when it is
// being written, or when PostgreSQL does not answer (and then the number is 0).
func (j *Journal) Oldest() (seq uint64, closed time.Time) {
	if j.pool == nil {
		return 0, j.c.Now()
	}
	ctx, cancel := context.WithTimeout(j.life, readTime)
	defer cancel()
	files, err := j.parts(ctx, 1)
	switch {
	case err != nil:
		return 0, j.c.Now()
	case len(files) == 0:
		return j.mark.At() + 1, j.c.Now()
	case files[0].Closed.IsZero():
		return files[0].First, j.c.Now()
	}
	return files[0].First, files[0].Closed
}

// disposal takes a part and all its groups, unless another process did or a consumer has not passed it.
const disposal = `DO $$ BEGIN
	DELETE FROM public.journal_parts WHERE first = %[1]d;
	IF NOT FOUND OR EXISTS (SELECT FROM public.journal_cursors WHERE seq < %[2]d) THEN
		RAISE EXCEPTION 'not a part that can be disposed of';
	END IF;
	DELETE FROM public.journal_pieces WHERE first BETWEEN %[1]d AND %[2]d;
	DELETE FROM public.journal_groups WHERE first BETWEEN %[1]d AND %[2]d;
END $$; `

// Dispose deletes a part that Expired gave, with its event. It refuses any that is not the oldest or not passed by all consumers.
//
// Crash argument: part, groups and event are one transaction and one message, so whatever becomes of us there is no deletion without its event, and no
// event of another. An answer that is lost leaves open what happened; Expired says so the next time. A reader meets all of a part or nothing.
func (j *Journal) Dispose(ctx context.Context, f journal.File, cutoff time.Time) error {
	if j.pool == nil {
		return errAppendOnly
	}
	files, err := j.parts(ctx, 1)
	if err != nil {
		return fmt.Errorf("journal: %w", sqldb.Explain(j.c.URL, err))
	}
	if len(files) == 0 || files[0].First != f.First || files[0].Closed.IsZero() || j.passed(ctx) < files[0].Last {
		return fmt.Errorf("journal: %s is not a part that can be disposed of", f.Name)
	}
	f = files[0]
	event, err := journal.EventEntry(j, f.Disposed(cutoff, j.c.Now()))
	if err != nil {
		return err
	}
	appended, err := j.AppendSQL(event)
	if err != nil {
		return err
	}
	if _, err := j.pool.Exec(ctx, fmt.Sprintf(disposal, f.First, f.Last)+appended); err != nil {
		return fmt.Errorf("journal: %s, whose time is over, could not be deleted: %w; it is found again", f.Name, sqldb.Explain(j.c.URL, err))
	}
	j.read.forget()
	_, _ = j.look(ctx) // so that this process reads the event at once; without, half a second later
	return nil
}

// Rewind sets a consumer's cursor back in a transaction of the journal's database, for a reader that lost what it had made of the entries behind seq.
// Nothing else may run as that consumer: its own next SetCursor would go on from where it was. A cursor that is not beyond seq stays.
func Rewind(tx *sql.Tx, consumer string, seq uint64) error {
	if _, err := tx.Exec("UPDATE journal_cursors SET seq = $2 WHERE consumer = $1 AND seq > $2", consumer, int64(seq)); err != nil {
		return fmt.Errorf("set the journal's cursor of %s back: %w", consumer, err)
	}
	return nil
}
