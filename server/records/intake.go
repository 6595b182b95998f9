package records

import (
	"context"
	"database/sql"
	_ "embed"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

//go:embed opening_0001.sql
var opening1 string

func openingMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "records_opening", Version: 1, SQL: opening1}}
}

// How an attempt is counted before it is made. A batch that kills the process must be known for it, or it would kill each next one.
//
// The usual batch has no row before it is settled. Before any batch of a pass is opened, records_totals.opening says how far the pass goes; so
// whatever a process that died was opening stands in the journal behind records_totals.seq and at or before opening. The next life enters these
// with rows first, in the state opening with one attempt counted, and opens each alone, counting again. So nothing is opened more than
// maxAttempts times without an outcome, as if each had had its row from the beginning.
//
// Alarms that are taken ahead of their turn have their rows first: opening would have to reach as far as they stand, and a crash would have all
// before them opened singly.

// intake enters the sealing records among entries, in one transaction, and gives the batches that are to be opened now, their attempts counted
// by their rows or by records_totals.opening. When there are none, all up to seq is settled with it (see commit). A seq of 0 is for what is
// taken ahead of its turn.
func (r *Records) intake(ctx context.Context, entries []journal.Entry, seq uint64) (todo []*work, err error) {
	err = r.write(ctx, func(tx *sql.Tx) error {
		todo = nil
		var entered, fresh []*work
		for i := range entries {
			e := &entries[i]
			switch e.Kind {
			case journal.KindSealing:
				if err := r.takeSealing(ctx, tx, e); err != nil {
					return err
				}
			case journal.KindPublish:
				w, err := r.takePublish(tx, e)
				switch {
				case err != nil:
					return err
				case w == nil:
				case seq == 0 || w.seq <= r.suspect:
					entered = append(entered, w)
				default:
					fresh = append(fresh, w)
				}
			}
		}
		ours := make(map[name]bool) // taken in this pass: a batch published twice within it is not one left by a crash, nor two of them
		if todo, err = r.enter(tx, entered, ours); err != nil {
			return err
		}
		if fresh, err = r.sift(tx, fresh, ours); err != nil {
			return err
		}
		if todo = append(todo, fresh...); len(todo) == 0 {
			return setSeq(tx, seq)
		}
		if len(fresh) == 0 {
			return nil
		}
		_, err := r.in.exec(tx, markOpening, int64(max(seq, r.suspect))) // also down: a journal that went back uses its numbers again
		return err
	})
	return todo, err
}

const markOpening = "UPDATE records_totals SET opening = $1"

// takePublish reads one batch from the journal. It gives nil for one that was settled long ago.
func (r *Records) takePublish(tx *sql.Tx, e *journal.Entry) (*work, error) {
	row, err := audit.DecodeRow(e.Head)
	if err != nil {
		r.log.Error("journal entry is not a publish; restore the journal from its backup", "seq", e.Seq)
		return nil, nil
	}
	w := &work{
		gateway: row.Gateway, epoch: row.Epoch, lane: telemetry.Lane(row.Lane), number: row.Number,
		hash: row.Frame, received: row.Received, frame: e.Blob, seq: e.Seq, attempts: 1,
	}
	w.card, w.former = salvaged(row.Verdict)
	w.quarantined = quarantined(row.Verdict)
	if w.stream, err = r.in.stream(tx, streamKey{w.gateway, w.epoch, w.lane}); err != nil {
		return nil, err
	}
	if before, err := r.settledBefore(tx, w.stream, int64(w.number)); err != nil || before {
		return nil, err
	}
	if aged := r.clock.aged(w.received); aged != w.received {
		w.aged = aged
	}
	return w, nil
}

// name is what a batch's row is found by.
type name struct{ stream, number int64 }

func (w *work) name() name { return name{w.stream, int64(w.number)} }

var (
	// newBatches have their rows before they are opened, storedBatches when they are stored.
	newBatches = bulk{"INSERT INTO batches (stream, number, frame, sealing, seq, received, state, attempts, due, reason, aged, quarantined) VALUES ",
		" ON CONFLICT (stream, number) DO NOTHING RETURNING stream, number", "?, ?, ?, ?, ?, ?, 1, 1, 0, '', ?, ?"}
	storedBatches = bulk{"INSERT INTO batches (stream, number, frame, sealing, seq, received, state, attempts, due, reason, aged, quarantined) VALUES ",
		" ON CONFLICT (stream, number) DO NOTHING", "?, ?, ?, ?, ?, ?, 2, 1, 0, '', ?, ?"}
	findBatches = bulk{"SELECT batches.stream, batches.number FROM (VALUES ",
		") AS v CROSS JOIN batches WHERE batches.stream = v.column1 AND batches.number = v.column2",
		"CAST(? AS BIGINT), CAST(? AS BIGINT)"}
)

// appendRow appends the parameters of a batch's row.
func (w *work) appendRow(args []any) []any {
	return append(args, w.stream, int64(w.number), w.hash[:], w.sealing, int64(w.seq), w.received, w.aged, flag(w.quarantined))
}

// names adds what a statement returns to a set of batches' names.
func names(to map[name]bool) func(rows *sql.Rows) error {
	return func(rows *sql.Rows) error {
		var n name
		err := rows.Scan(&n.stream, &n.number)
		to[n] = true
		return err
	}
}

// enter makes the rows of batches that are new, each with an attempt counted, and gives those that are to be opened now.
func (r *Records) enter(tx *sql.Tx, in []*work, ours map[name]bool) (todo []*work, err error) {
	if len(in) == 0 {
		return nil, nil
	}
	var args []any
	for _, w := range in {
		w.sealing, w.counted = []byte{}, w.seq > r.suspect // a suspect's attempt is that of the process which died, and stays
		if h, err := seal.CheckFrame(w.frame); err == nil {
			w.sealing = h.Sealing[:]
		}
		args = w.appendRow(args)
	}
	fresh := make(map[name]bool)
	if err := r.in.returned(tx, newBatches, args, names(fresh)); err != nil {
		return nil, err
	}
	for _, w := range in {
		n := w.name()
		if fresh[n] {
			delete(fresh, n)
			ours[n] = true
			w.alone = w.seq <= r.suspect
		} else if w, err = r.takeAgain(tx, w, ours); err != nil {
			return nil, err
		}
		if w != nil {
			todo = append(todo, w)
		}
	}
	passed := &stations{}
	if err := r.arrived(tx, todo, passed); err != nil {
		return nil, err
	}
	return todo, r.addStations(tx, passed)
}

// sift gives those that are to be opened now: each batch that has no row once, as fresh, and what a crash left.
func (r *Records) sift(tx *sql.Tx, in []*work, ours map[name]bool) (todo []*work, err error) {
	var args []any
	for _, w := range in {
		// What is above the highest run of numbers that were ever journaled is new.
		if top, ok := r.in.tops[w.stream]; !ok || w.number <= top.last {
			args = append(args, w.stream, int64(w.number))
		}
	}
	known := make(map[name]bool)
	if err := r.in.returned(tx, findBatches, args, names(known)); err != nil {
		return nil, err
	}
	first := make(map[name]*work, len(in))
	for _, w := range in {
		n := w.name()
		switch before := first[n]; {
		case known[n]:
			if w, err = r.takeAgain(tx, w, ours); err != nil {
				return nil, err
			}
			if w != nil {
				todo = append(todo, w)
			}
		case before == nil:
			first[n] = w
			w.fresh = true
			todo = append(todo, w)
		case before.hash != w.hash:
			if err := r.takeConflict(tx, w, before.hash, stateOpening); err != nil {
				return nil, err
			}
		}
	}
	return todo, nil
}

// takeAgain is for a batch that has a row.
func (r *Records) takeAgain(tx *sql.Tx, w *work, ours map[name]bool) (*work, error) {
	var hash []byte
	var state, attempts int
	if err := r.in.row(tx, findBatch, w.stream, int64(w.number)).Scan(&hash, &state, &attempts, &w.aged); err != nil {
		return nil, err
	}
	if [32]byte(hash) != w.hash {
		return nil, r.takeConflict(tx, w, [32]byte(hash), state)
	}
	if state != stateOpening || ours[w.name()] {
		return nil, nil
	}
	ours[w.name()] = true // who sent it again after the crash stands behind it here, and it is to be stored once
	w.again, w.alone, w.counted, w.attempts = true, true, false, attempts
	return w, nil
}
