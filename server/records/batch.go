package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// States of a batch; see sqlite_0001.sql.
const (
	statePending = 0
	stateOpening = 1
	stateStored  = 2
	stateDead    = 3
)

// work is one batch on its way from its frame to a settled state.
type work struct {
	gateway  string
	epoch    telemetry.Epoch
	lane     telemetry.Lane
	number   uint64
	stream   int64
	hash     [32]byte
	received int64
	aged     int64 // what its age counts from; 0: received
	frame    []byte
	seq      uint64 // of its journal entry
	sealing  []byte // sealing id; empty when the frame's header cannot be read
	attempts int    // including the one under way
	counted  bool   // the attempt under way is counted in its row
	fresh    bool   // it has no row yet, and gets one when it is settled
	card     bool   // an operator brought it from a dead gateway's card: it is no sign of life
	former   bool   // and that is of a board that was replaced since
	// quarantined: it was journaled while its gateway was in quarantine, and is stored with that mark.
	quarantined bool
	again       bool // it is met again: its number has arrived before, and its frame may be kept
	alone       bool // an attempt to open it did not end well, or did not end: it is opened by itself, so that it can harm only itself
}

// failure is what an attempt failed with. Its text is one of a few constants: what opening and decoding say could quote what was
// sealed, and reasons go to the log and the audit trail.
type failure struct {
	reason string
	final  bool // no further attempt can succeed
}

func (f *failure) Error() string { return f.reason }

// unavailable wraps an error of the database while a batch was opened: not the batch's fault.
type unavailable struct{ error }

func (u *unavailable) Unwrap() error { return u.error }

func (w *work) id() telemetry.BatchID {
	return telemetry.BatchID{Epoch: w.epoch, Lane: w.lane, Number: w.number}
}

// settleAll brings every batch to stored, pending or dead, and with the last of them says that all up to seq is settled (see commit). An
// error is the database's or the journal's and leaves some of them as they were; the caller comes again with the same entries. Those that have
// rows it meets as batches to be opened alone.
func (r *Records) settleAll(ctx context.Context, todo []*work, seq uint64) (err error) {
	defer func() {
		if err != nil {
			r.uncount(ctx, todo)
		}
	}()
	var group []*opened
	rows, size := 0, 0
	flush := func(seq uint64) error {
		defer func() { group, rows, size = nil, 0, 0 }()
		return r.settleGroup(ctx, group, seq)
	}
	for _, w := range todo {
		if err := ctx.Err(); err != nil {
			return err
		}
		if w.alone {
			if err := r.settleAlone(ctx, w); err != nil {
				return err
			}
			continue
		}
		o := r.open(ctx, w)
		group = append(group, o)
		rows, size = rows+o.rows(), size+o.size()
		if rows >= groupRows || size >= groupBytes || len(group) >= readEntries {
			if err := flush(0); err != nil {
				return err
			}
		}
	}
	return flush(seq)
}

// settleGroup settles many batches in one transaction. Should it fail for a reason that is not the machine's, one of them is to
// blame, and each is settled in its own.
func (r *Records) settleGroup(ctx context.Context, group []*opened, seq uint64) error {
	if len(group) == 0 && seq == 0 {
		return nil
	}
	err := r.commit(ctx, group, seq)
	if err == nil || external(ctx, err) {
		return err
	}
	r.log.Warn("a group of batches could not be stored; trying each alone", "batches", len(group))
	for _, o := range group {
		if err := r.settleOpened(ctx, o); err != nil {
			return err
		}
	}
	return r.commit(ctx, nil, seq)
}

// external tells failures of the machine, and the end of ctx, from those of a batch.
func external(ctx context.Context, err error) bool {
	var u *unavailable
	return ctx.Err() != nil || sqldb.Environment(err) || errors.As(err, &u)
}

// settleAlone opens one batch by itself, counting the attempt first.
func (r *Records) settleAlone(ctx context.Context, w *work) error {
	if w.attempts >= maxAttempts {
		return r.commit(ctx, []*opened{{work: w, err: &failure{reason: "the server stopped each time it opened the batch", final: true}}}, 0)
	}
	w.attempts++
	var n int64
	if err := r.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec("UPDATE batches SET state = $1, attempts = $2 WHERE stream = $3 AND number = $4 AND state <> $5",
			stateOpening, w.attempts, w.stream, int64(w.number), stateStored)
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	}); err != nil || n == 0 { // what is stored is not stored again
		return err
	}
	w.counted = true
	return r.settleOpened(ctx, r.open(ctx, w))
}

// settleOpened commits one batch; if that fails for a reason that is not the machine's, the attempt has failed.
func (r *Records) settleOpened(ctx context.Context, o *opened) error {
	one := []*opened{o}
	err := r.commit(ctx, one, 0)
	if err == nil || external(ctx, err) {
		return err
	}
	o.err, o.batch = &failure{reason: "its observations cannot be stored"}, telemetry.Batch{}
	return r.commit(ctx, one, 0)
}

// attempt is one counted attempt to open one batch.
type attempt struct {
	stream int64
	number uint64
}

// uncount takes back the attempts of batches that the machine, or the end of ctx, kept from being settled: neither a full disk nor a
// restart makes batches dead. What cannot be written now is owed, and written before anything is attempted again: a database that comes
// and goes would otherwise use up a batch's attempts, one in each of its absences. Only a Run that ends owing, and a process that dies, leave one counted.
func (r *Records) uncount(ctx context.Context, todo []*work) {
	for _, w := range todo {
		if w.counted {
			r.owed = append(r.owed, attempt{w.stream, w.number})
		}
		r.unmark = r.unmark || w.fresh
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := r.repay(ctx); err != nil {
		r.log.Warn("attempts of batches stay counted until the database is back", "batches", len(r.owed), "error", err)
	}
}

// repay writes what uncount owes. A commit whose answer was lost may take an attempt back twice: a batch is then tried once more.
func (r *Records) repay(ctx context.Context) error {
	if len(r.owed) == 0 && !r.unmark {
		return nil
	}
	err := r.write(ctx, func(tx *sql.Tx) error {
		if r.unmark {
			if _, err := tx.Exec("UPDATE records_totals SET opening = $1", int64(r.suspect)); err != nil {
				return err
			}
		}
		for _, a := range r.owed {
			if _, err := tx.Exec("UPDATE batches SET attempts = CASE WHEN attempts > 0 THEN attempts - 1 ELSE 0 END WHERE stream = $1 AND number = $2 AND state = $3",
				a.stream, int64(a.number), stateOpening); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		r.owed, r.unmark = nil, false
	}
	return err
}

// retry looks at what is pending. more says that there may be more than one look takes.
func (r *Records) retry(ctx context.Context) (more bool, err error) {
	if err := r.repay(ctx); err != nil {
		return false, err
	}
	if r.unsure { // a look that failed left batches being opened
		if err := r.recover(ctx); err != nil {
			return false, err
		}
		r.unsure = false
	}
	if err := r.retrySealings(ctx); err != nil {
		return false, err
	}
	unrepaired, err := r.repairTimes(ctx)
	if err != nil {
		return false, err
	}
	todo, err := r.due(ctx)
	if err != nil {
		return false, err
	}
	if len(todo) == retryBatches {
		if waiting, err := r.postpone(ctx); err != nil || waiting {
			return waiting, err
		}
		if todo, err = r.due(ctx); err != nil {
			return false, err
		}
	}
	if len(todo) == 0 {
		return unrepaired, nil
	}
	for _, w := range todo {
		w.again, w.alone = true, w.attempts > 0
	}
	r.unsure = true
	if err := r.count(ctx, todo); err != nil {
		return false, err
	}
	if err := r.settleAll(ctx, todo, 0); err != nil {
		return false, err
	}
	r.unsure = false
	return unrepaired || len(todo) == retryBatches, r.outbox.Flush(ctx)
}

// count counts an attempt of each of the pending batches that were never opened, as intake does for those that are new: they waited for their
// sealing record, and are opened together.
func (r *Records) count(ctx context.Context, todo []*work) error {
	first := slices.DeleteFunc(slices.Clone(todo), func(w *work) bool { return w.alone })
	if len(first) == 0 {
		return nil
	}
	return r.write(ctx, func(tx *sql.Tx) error {
		for _, w := range first {
			if _, err := tx.Exec("UPDATE batches SET state = $1, attempts = $2 WHERE stream = $3 AND number = $4", stateOpening, w.attempts+1, w.stream, int64(w.number)); err != nil {
				return err
			}
			w.attempts, w.counted = w.attempts+1, true
		}
		return nil
	})
}

// postpone passes over what is due and still has no sealing record: a gateway can have hundreds of thousands of such batches, and those of
// others are not to wait until each was tried. more says that there may be more of them. What can never be opened, or has waited for too
// long, is left to be tried, and dies.
func (r *Records) postpone(ctx context.Context) (more bool, err error) {
	now := r.now()
	err = r.db.Write(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.Exec(`UPDATE batches SET due = $1 WHERE (stream, number) IN (
			SELECT b.stream, b.number FROM batches b JOIN streams s ON s.id = b.stream
			WHERE b.state <> 2 AND b.state = 0 AND b.due <= $2 AND b.received >= $3
			AND NOT EXISTS (SELECT 1 FROM sealings g WHERE g.gateway = s.gateway AND g.sealing = b.sealing AND g.state = $4)
			AND NOT EXISTS (SELECT 1 FROM epochs e WHERE e.epoch = s.epoch AND e.gateway <> s.gateway)
			ORDER BY b.due LIMIT $5)`,
			now.Add(waitInterval).UnixMilli(), now.UnixMilli(), now.Add(-keyWait).UnixMilli(), sealingValid, postponeBatches))
		more = n == postponeBatches
		return err
	})
	return more, err
}

// due reads the pending batches whose time has come, with the frames that were kept for them.
func (r *Records) due(ctx context.Context) ([]*work, error) {
	rows, err := r.db.Query(ctx, `SELECT s.gateway, s.epoch, s.lane, b.stream, b.number, b.frame, b.received, b.attempts, b.aged, b.quarantined <> 0, f.frame
		FROM (SELECT * FROM batches WHERE state <> 2 AND state = 0 AND due <= $1
			AND EXISTS (SELECT 1 FROM batch_frames f WHERE f.stream = batches.stream AND f.number = batches.number) ORDER BY due LIMIT $2) b
		JOIN streams s ON s.id = b.stream JOIN batch_frames f ON f.stream = b.stream AND f.number = b.number ORDER BY b.due`, r.now().UnixMilli(), retryBatches)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var todo []*work
	for rows.Next() {
		w := &work{}
		var epoch, hash []byte
		var lane int
		var number int64
		if err := rows.Scan(&w.gateway, &epoch, &lane, &w.stream, &number, &hash, &w.received, &w.attempts, &w.aged, &w.quarantined, &w.frame); err != nil {
			return nil, err
		}
		w.epoch, w.lane, w.number, w.hash = telemetry.Epoch(epoch), telemetry.Lane(lane), uint64(number), [32]byte(hash)
		todo = append(todo, w)
	}
	return todo, rows.Err()
}

// write is one transaction after whose failure nothing uncommitted is remembered, whatever it failed with.
func (r *Records) write(ctx context.Context, fn func(tx *sql.Tx) error) (err error) {
	done := false
	defer func() {
		if p := recover(); p != nil {
			err = &failure{reason: "storing it panics"}
		}
		if !done {
			r.in.forget()
		}
	}()
	err = r.db.Write(ctx, fn)
	done = err == nil
	return err
}

// String names the batch in logs.
func (w *work) String() string { return fmt.Sprintf("%s %s", w.gateway, w.id()) }
