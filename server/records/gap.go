package records

import (
	"context"
	"database/sql"
	"fmt"

	"wardlink/audit"
	"wardlink/server/journal"
)

// resume is the journal entry behind which reading goes on: where the journal's cursor stands, or where this database does if that is
// earlier. The cursor alone would be wrong: it is past what a restored database lost. ok is false when ctx ended.
func (r *Records) resume(ctx context.Context) (cursor uint64, ok bool) {
	for {
		var seq, opening int64
		var err error
		if r.passed, err = r.journal.Resume(Consumer); err == nil {
			err = r.db.QueryRow(ctx, "SELECT seq, opening FROM records_totals").Scan(&seq, &opening)
		}
		if err == nil {
			cursor = min(r.passed, uint64(seq))
			// Entries behind the cursor that seq covers are known when they are met; a journal that went back has other ones there.
			if r.suspect = 0; uint64(opening) > cursor {
				r.suspect = uint64(opening)
			}
			if opening > seq {
				r.log.Warn("the process before this one ended while it opened batches; what may have been under way is opened one by one", "from", seq+1, "to", opening)
			}
			break
		}
		if !r.pause(ctx, "records cannot start", err) {
			return 0, false
		}
	}
	if cursor < r.passed {
		r.log.Warn("the database is behind the journal's cursor, as one restored from a backup is; the journal is read again from there",
			"from", cursor+1, "to", r.passed)
	}
	return cursor, true
}

// noteGaps notes what is missing between cursor and the end of entries, as far as a former database had it: there is no other way to
// miss what the cursor is past. Files that were too old are gone, damaged ones set aside; both show as a jump. Holes past the cursor
// are none of ours: the journal reports its damage itself.
func (r *Records) noteGaps(ctx context.Context, cursor uint64, entries []journal.Entry) error {
	for i := 0; i < len(entries) && cursor < r.passed; i++ {
		if next := entries[i].Seq; next > cursor+1 {
			if err := r.noteGap(ctx, cursor+1, min(next-1, r.passed)); err != nil {
				return err
			}
		}
		cursor = entries[i].Seq
	}
	return nil
}

// noteGap keeps and reports one gap, once. Records go on: what arrives now is worth more than an orderly halt, and the gap is in
// figures, log and transparency log until a newer backup is restored.
func (r *Records) noteGap(ctx context.Context, first, last uint64) error {
	r.log.Error("the database was restored from a backup that is too old: journal entries that it lacks are no longer in the journal; restore "+
		"a newer backup of the database, or the journal files that hold these entries", "first", first, "last", last)
	return r.db.Write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec("INSERT INTO journal_gaps (first, last, found) VALUES ($1, $2, $3) ON CONFLICT (first, last) DO NOTHING",
			int64(first), int64(last), r.now().UnixMilli())
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return r.outbox.Add(tx, audit.Event{
			Type: audit.RecordsGap, Actor: audit.Actor{ID: "server"}, Outcome: audit.Failed, Count: last - first + 1,
			Reason: "the restored database lacks journal entries that are gone",
			Detail: map[string]string{"first": fmt.Sprint(first), "last": fmt.Sprint(last)},
		})
	})
}
