package server

import (
	"context"
	"database/sql"
	"sync"
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
	settling sync.Mutex // one settle at a time

	mu     sync.Mutex
	events []audit.Event
}

func (o *owed) add(ev audit.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, ev)
}

func (o *owed) first() (audit.Event, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.events) == 0 {
		return audit.Event{}, false
	}
	return o.events[0], true
}

func (o *owed) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = o.events[1:]
}

// own journals an event of the server's own, or owes it. It returns when the event is journaled or owed, or when ctx ends, and then it
// is one of both later. An event whose commit failed may be found in the journal after a crash all the same; the outbox, through which it
// goes then, looks for its id there first.
func (s *Server) own(ctx context.Context, ev audit.Event) {
	ev.ID, ev.Actor = s.journal.NextID(), audit.Actor{ID: "server"}
	if ev.Outcome == "" {
		ev.Outcome = audit.Success
	}
	if ev.Time == 0 {
		ev.Time = time.Now().UnixMilli()
	}
	failed := func(err error) {
		s.log.Error("an event of the server's own is journaled later", "type", string(ev.Type), "error", err)
		s.owed.add(ev)
	}
	head, err := audit.EncodeEvent(ev)
	if err != nil {
		failed(err)
		return
	}
	done := make(chan struct{})
	err = s.journal.Submit(journal.Entry{ID: ev.ID, Kind: journal.KindEvent, Head: head}, func(_ uint64, err error) {
		if err != nil {
			failed(err)
		}
		close(done)
	})
	if err != nil {
		failed(err)
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// settle moves what is owed to the outbox, as far as the database can be written.
func (s *Server) settle(ctx context.Context) error {
	s.owed.settling.Lock()
	defer s.owed.settling.Unlock()
	for {
		ev, ok := s.owed.first()
		if !ok {
			return nil
		}
		if err := s.db.Write(ctx, func(tx *sql.Tx) error { return s.outbox.Add(tx, ev) }); err != nil {
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
