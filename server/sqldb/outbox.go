package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

// OutboxMigrations is the schema of the outbox: acts that changed SQL and whose events are on their way to the journal.
func OutboxMigrations() []Migration {
	return []Migration{{Domain: "outbox", Version: 1, SQL: `
CREATE TABLE events_out (
	position INTEGER PRIMARY KEY AUTOINCREMENT,
	id BLOB NOT NULL UNIQUE,
	event BLOB NOT NULL
);
-- The journal's sequence below which no event that still waits can be.
CREATE TABLE events_out_mark (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	seq INTEGER NOT NULL
);
INSERT INTO events_out_mark (one, seq) VALUES (1, 0);
`}}
}

// Journal is what the outbox needs of the journal.
type Journal interface {
	NextID() audit.EventID
	Submit(e journal.Entry, done func(seq uint64, err error)) error
	Read(from uint64, max int) ([]journal.Entry, error)
}

// Adjoining is a journal that lies in the outbox's own database. AppendSQL writes one SQL statement, without parameters, that appends the
// entries as one group.
type Adjoining interface {
	AppendSQL(entries ...journal.Entry) (string, error)
}

// Outbox carries the event of an act that changes SQL to the journal: Add writes it in the act's own transaction, Flush moves it
// to the journal before the act is answered. So there is no act without its event, and no event of an act that was rolled back.
//
// An event reaches the journal once, though moving it is two steps in two stores (append, then delete the row). Its id is given
// by Add, and the row outlives the append. Whoever finds a row whose append may have happened already - one from a former life of
// the process, or one whose append returned an error - looks for its id in the journal first, from the mark on: the sequence of
// the last event moved, since the events that still wait can only lie behind it.
//
// Where the journal lies in the same database (Adjoining) it is one step: see transfer. Only then may several processes share an outbox:
// else a row that one of them is about to append is not in doubt to another.
type Outbox struct {
	db      *DB
	journal Journal
	now     func() time.Time

	turn  chan struct{} // one place: one Flush at a time; it also guards doubt
	doubt int64         // rows up to this position may be in the journal already
}

// NewOutbox makes the outbox of db. The database must have OutboxMigrations. now may be nil: time.Now.
func NewOutbox(db *DB, j Journal, now func() time.Time) (*Outbox, error) {
	if now == nil {
		now = time.Now
	}
	o := &Outbox{db: db, journal: j, now: now, turn: make(chan struct{}, 1)}
	if err := db.QueryRow(context.Background(), "SELECT COALESCE(MAX(position), 0) FROM events_out").Scan(&o.doubt); err != nil {
		return nil, fmt.Errorf("outbox: %w", explain(db.path, err))
	}
	return o, nil
}

// NextID gives an id for an event whose act must remember it.
func (o *Outbox) NextID() audit.EventID { return o.journal.NextID() }

// Add writes ev into the act's transaction, giving it an id and a time when it has none. The event is not journaled before Flush.
func (o *Outbox) Add(tx *sql.Tx, ev audit.Event) error {
	if ev.ID == (audit.EventID{}) {
		ev.ID = o.journal.NextID()
	}
	if ev.Time == 0 {
		ev.Time = o.now().UnixMilli()
	}
	return AddEvent(tx, ev)
}

// AddOnce is Add, in a transaction of its own, for an event with an id that a former transaction may have added already, with an outcome that nobody
// knows. It looks for the id among the events that wait and then, since one that waited may be gone from there, in the journal behind the number
// after, which must have been the journal's last when the event was first added, or less. Under the write lock the former transaction is over; but a
// journal that grew for hours is long to read, so it is read before, and under the lock only what came meanwhile. sought is the number up to which
// the event is not in the journal for certain: where the next call may begin after an error.
func (o *Outbox) AddOnce(ctx context.Context, ev audit.Event, after uint64) (sought uint64, err error) {
	wanted := map[audit.EventID]bool{ev.ID: true}
	found, sought, err := o.find(ctx, wanted, after)
	if err != nil || len(found) > 0 {
		return sought, err
	}
	return sought, o.db.Write(ctx, func(tx *sql.Tx) error {
		var waits bool
		if err := tx.QueryRow("SELECT EXISTS (SELECT 1 FROM events_out WHERE id = $1)", ev.ID[:]).Scan(&waits); err != nil || waits {
			return err
		}
		found, _, err := o.find(ctx, wanted, sought)
		if err != nil || len(found) > 0 {
			return err
		}
		return o.Add(tx, ev)
	})
}

// AddEvent is Add for an event that has its id and time, where there is no Outbox yet.
func AddEvent(tx *sql.Tx, ev audit.Event) error {
	body, err := audit.EncodeEvent(ev)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	_, err = tx.Exec("INSERT INTO events_out (id, event) VALUES ($1, $2)", ev.ID[:], body)
	return err
}

// waiting is one row of events_out.
type waiting struct {
	position int64
	id       audit.EventID
	event    []byte
}

// flushChunk bounds what one round of Flush holds in memory.
const flushChunk = 512

// Flush returns nil once every event that was committed before the call is durable in the journal. On an error the act that
// waits for it must not be answered as done; its event stays and goes with a later Flush.
func (o *Outbox) Flush(ctx context.Context) error {
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		return fmt.Errorf("outbox: %w", ctx.Err())
	}
	for {
		rows, err := o.next(ctx)
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		move := o.move
		if _, ok := o.journal.(Adjoining); ok && o.db.url != "" {
			move = o.transfer
		}
		if err := move(ctx, rows); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
}

func (o *Outbox) next(ctx context.Context) ([]waiting, error) {
	rows, err := o.db.Query(ctx, "SELECT position, id, event FROM events_out ORDER BY position LIMIT $1", flushChunk)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []waiting
	for rows.Next() {
		var w waiting
		var id []byte
		if err := rows.Scan(&w.position, &id, &w.event); err != nil {
			return nil, err
		}
		if len(id) != len(w.id) {
			return nil, fmt.Errorf("event at position %d has an id of %d bytes, expected %d; restore the last backup", w.position, len(id), len(w.id))
		}
		copy(w.id[:], id)
		out = append(out, w)
	}
	return out, explain(o.db.path, rows.Err())
}

func (o *Outbox) move(ctx context.Context, rows []waiting) error {
	last := rows[len(rows)-1].position
	seqs, err := o.journaled(ctx, rows)
	if err != nil {
		return err
	}
	// From here on an error leaves it open which of the rows are in the journal.
	doubt := o.doubt
	o.doubt = max(o.doubt, last)
	seq, err := o.append(ctx, rows, seqs)
	if err != nil {
		return err
	}
	err = o.db.Write(ctx, func(tx *sql.Tx) error {
		for _, w := range rows {
			if _, err := tx.Exec("DELETE FROM events_out WHERE position = $1", w.position); err != nil {
				return err
			}
		}
		_, err := tx.Exec("UPDATE events_out_mark SET seq = $1 WHERE seq < $1", int64(seq))
		return err
	})
	if err == nil {
		o.doubt = doubt
	}
	return err
}

// journaled finds those of the doubtful rows that the journal has, reading it from the mark on. It costs nothing in the usual
// case, and a pass over the journal's tail after a crash between the two steps.
func (o *Outbox) journaled(ctx context.Context, rows []waiting) (map[audit.EventID]uint64, error) {
	doubtful := make(map[audit.EventID]bool)
	for _, w := range rows {
		if w.position <= o.doubt {
			doubtful[w.id] = true
		}
	}
	if len(doubtful) == 0 {
		return nil, nil
	}
	var mark int64
	if err := o.db.QueryRow(ctx, "SELECT seq FROM events_out_mark").Scan(&mark); err != nil {
		return nil, explain(o.db.path, err)
	}
	found, _, err := o.find(ctx, doubtful, uint64(mark))
	return found, err
}

// find gives the numbers of those events that the journal has behind a number, and how far it has looked.
func (o *Outbox) find(ctx context.Context, wanted map[audit.EventID]bool, after uint64) (found map[audit.EventID]uint64, sought uint64, err error) {
	found = make(map[audit.EventID]uint64)
	for sought = after; len(found) < len(wanted); {
		if err := ctx.Err(); err != nil {
			return nil, sought, err
		}
		entries, err := o.journal.Read(sought+1, 4096)
		if err != nil {
			return nil, sought, err
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			if wanted[e.ID] {
				found[e.ID] = e.Seq
			}
		}
		sought = entries[len(entries)-1].Seq
	}
	return found, sought, nil
}

// append submits the rows that the journal does not have and waits until they are durable; it gives the highest sequence.
func (o *Outbox) append(ctx context.Context, rows []waiting, have map[audit.EventID]uint64) (uint64, error) {
	type result struct {
		seq uint64
		err error
	}
	results := make(chan result, len(rows)) // roomy: done must never block the journal's committer
	var top uint64
	sent := 0
	var failed error
	for _, w := range rows {
		if seq, ok := have[w.id]; ok {
			top = max(top, seq)
			continue
		}
		e := journal.Entry{ID: w.id, Kind: journal.KindEvent, Head: w.event}
		if failed = o.journal.Submit(e, func(seq uint64, err error) { results <- result{seq, err} }); failed != nil {
			break
		}
		sent++
	}
	for range sent {
		select {
		case r := <-results:
			if failed == nil { // a commit fails all of its entries alike
				failed = r.err
			}
			top = max(top, r.seq)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return top, failed
}

// Waiting is how many events are not in the journal yet.
func (o *Outbox) Waiting(ctx context.Context) (n int64, err error) {
	err = o.db.QueryRow(ctx, "SELECT COUNT(*) FROM events_out").Scan(&n)
	return n, explain(o.db.path, err)
}
