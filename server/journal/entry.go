// Package journal is the server's durable first word: nothing is acknowledged or answered before it is in here. This file has
// what every implementation shares; Journal keeps it in bbolt segment files on one machine, pgjournal in PostgreSQL.
package journal

import (
	"context"
	"fmt"
	"time"

	"wardlink/audit"
)

// Kind says what an entry's Head and Blob are. The values are part of the on-disk format.
type Kind uint8

// The kinds.
const (
	KindPublish Kind = 1 // Head: CBOR of audit.Row; Blob: the frame as published
	KindEvent   Kind = 2 // Head: CBOR of audit.Event; Blob: empty
	KindSealing Kind = 3 // Head: CBOR of audit.Event (SealingBrought); Blob: the signed sealing record as published
)

// Entry is one journaled act.
type Entry struct {
	Seq  uint64 // position in the journal, from 1, without holes except behind damaged files; set by Append
	ID   audit.EventID
	Kind Kind
	Head []byte
	Blob []byte
}

// Size is what limits count: the bytes of Head and Blob.
func (e Entry) Size() int { return len(e.Head) + len(e.Blob) }

// Valid is ErrInvalid for an entry that no journal takes: its kind unknown, without id or head, or of more than limit bytes.
func (e Entry) Valid(limit int) error {
	if e.Kind < KindPublish || e.Kind > KindSealing || e.ID == (audit.EventID{}) || len(e.Head) == 0 || e.Size() > limit {
		return fmt.Errorf("journal entry %s of kind %d with %d bytes: %w: expected a known kind, an id, a head, and at most %d bytes", e.ID, e.Kind, e.Size(), ErrInvalid, limit)
	}
	return nil
}

// Store is an open journal, whichever keeps it. All methods may be called by many goroutines; Journal's comments say what each promises.
type Store interface {
	Appender
	Submit(e Entry, done func(seq uint64, err error)) error

	Read(from uint64, max int) ([]Entry, error)
	ReadHeads(from uint64, max int) ([]Entry, error)
	Wait(ctx context.Context, after uint64) error
	Cursor(consumer string) uint64
	Resume(consumer string) (uint64, error)
	SetCursor(consumer string, seq uint64) error

	Alive(ctx context.Context) error
	Health() error
	Stats() Stats

	Oldest() (seq uint64, closed time.Time)
	Expired(now time.Time) []File
	Dispose(ctx context.Context, f File, cutoff time.Time) error

	Close() error
}

// Appender is the part of a Store that makes entries durable one act at a time.
type Appender interface {
	NextID() audit.EventID
	Append(ctx context.Context, entries ...Entry) error
}

var _ Store = (*Journal)(nil)

// AppendEvent journals one event and returns when it is durable: the act may then be answered. A zero ID and a zero Time are filled. After an
// error the event may be there all the same, so it is not for acts that somebody repeats under the same id: those go by sqldb.Outbox.
func AppendEvent(ctx context.Context, j Appender, ev audit.Event) error {
	e, err := EventEntry(j, ev)
	if err != nil {
		return err
	}
	return j.Append(ctx, e)
}

// EventEntry makes the entry of an event. A zero ID and a zero Time are filled.
func EventEntry(j Appender, ev audit.Event) (Entry, error) {
	if ev.ID == (audit.EventID{}) {
		ev.ID = j.NextID()
	}
	if ev.Time == 0 {
		ev.Time = time.Now().UnixMilli()
	}
	head, err := audit.EncodeEvent(ev)
	return Entry{ID: ev.ID, Kind: KindEvent, Head: head}, err
}
