package server

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/journal"
)

// owed are events of the server's own acts that do not wait for the journal: that it runs, and the certificates of its own ports.
// Without them a full disk would shut the port through which a gateway is revoked. They are kept until the journal takes them, in the
// database where that can be written, else in memory. A kill before then loses what is in memory: nothing that anybody else was given
// or shown, since reads, publishes and every other certificate wait for the journal as ever.
type owed struct {
	aside atomic.Int64 // events that could not be encoded; of each the journal has the type and the time alone

	mu       sync.Mutex
	events   []debt
	settling chan struct{} // one place: one settle at a time; nil before the first
}

// debt is one event that is owed.
type debt struct {
	event audit.Event
	after uint64 // a number of the journal before which the event cannot be
	tried bool   // a transaction that put it into the outbox may be committed
}

// turn waits until nobody else settles, or for the end of ctx.
func (o *owed) turn(ctx context.Context) (done func(), err error) {
	o.mu.Lock()
	if o.settling == nil {
		o.settling = make(chan struct{}, 1)
	}
	place := o.settling
	o.mu.Unlock()
	select {
	case place <- struct{}{}:
		return func() { <-place }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (o *owed) add(d debt) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, d)
}

// next gives the first, and that it is tried from now on.
func (o *owed) next() (d debt, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.events) == 0 {
		return debt{}, false
	}
	d = o.events[0]
	o.events[0].tried = true
	return d, true
}

// sought is how far the journal is known not to have the first.
func (o *owed) sought(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events[0].after = seq
}

func (o *owed) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = o.events[1:]
}

// own journals an event of the server's own, or owes it. It returns when the event is journaled or owed, or when ctx ends, and then it
// is one of both later. An event whose commit failed in a journal of this machine may be found there after a crash all the same; the outbox, through
// which it goes then, looks for its id first. One of PostgreSQL may commit whenever PostgreSQL comes to it, so the event goes
// through the outbox from the start, where it moves in one transaction.
func (s *Server) own(ctx context.Context, ev audit.Event) {
	ev.ID, ev.Actor = s.journal.NextID(), audit.Actor{ID: "server"}
	if ev.Outcome == "" {
		ev.Outcome = audit.Success
	}
	if ev.Time == 0 {
		ev.Time = time.Now().UnixMilli()
	}
	head, err := audit.EncodeEvent(ev)
	if err != nil {
		// It never can be: owed, it would hold up all that come behind it.
		s.log.Error("an event of the server's own cannot be encoded; it is journaled without its target and details", "type", string(ev.Type), "target", ev.Target, "error", err)
		s.owed.aside.Add(1)
		ev = audit.Event{ID: ev.ID, Type: ev.Type, Time: max(ev.Time, 0), Actor: ev.Actor, Outcome: ev.Outcome, Reason: "the event could not be encoded; the server's log has it"}
		if head, err = audit.EncodeEvent(ev); err != nil {
			return // the programmer's error, and said
		}
	}
	owing := debt{event: ev, after: s.journal.Stats().Committed}
	failed := func(err error) {
		s.log.Error("an event of the server's own is journaled later", "type", string(ev.Type), "error", err)
	}
	if s.cfg.Database != "" {
		s.owed.add(owing)
		if err := s.settle(ctx); err != nil {
			failed(err)
		} else if err := s.outbox.Flush(ctx); err != nil {
			failed(err)
		}
		return
	}
	owe := func(err error) {
		failed(err)
		s.owed.add(owing)
	}
	done := make(chan struct{})
	err = s.journal.Submit(journal.Entry{ID: ev.ID, Kind: journal.KindEvent, Head: head}, func(_ uint64, err error) {
		if err != nil {
			owe(err)
		}
		close(done)
	})
	if err != nil {
		owe(err)
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// settle moves what is owed to the outbox, as far as the database can be written.
func (s *Server) settle(ctx context.Context) error {
	done, err := s.owed.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	for {
		d, ok := s.owed.next()
		if !ok {
			return nil
		}
		if d.tried {
			sought, err := s.outbox.AddOnce(ctx, d.event, d.after)
			if err != nil {
				s.owed.sought(sought)
				return err
			}
		} else if err := s.db.Write(ctx, func(tx *sql.Tx) error { return s.outbox.Add(tx, d.event) }); err != nil {
			return err
		}
		s.owed.drop()
	}
}

// caEvent journals an event of the CA before its certificate is handed out; only the server's own ports need not wait.
func (s *Server) caEvent(ctx context.Context, ev audit.Event) error {
	id, err := spiffe.Parse(ev.Target)
	if err == nil && id.Kind == spiffe.Service && ev.Type == audit.CertIssued && ev.Actor.ID == "server" {
		s.own(ctx, ev)
		return nil
	}
	return journal.AppendEvent(ctx, s.journal, ev)
}
