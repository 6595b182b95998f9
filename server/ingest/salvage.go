package ingest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"wardlink/audit"
	refuse "wardlink/internal/refusal"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// Salvage is the other way in: batches that a dead gateway left on its card, brought by an operator. It checks what a session checks,
// and two things more, since no key of the gateway's opened this way: each sealing record must be signed by a key that the registry
// held for that gateway, and a batch that is journaled already is not journaled again. Frames stay sealed; records verifies again.
type Salvage struct {
	SalvageConfig
	mu   sync.Mutex // one card at a time: what one act journals is known to the next
	last uint64     // journal position at the end of the last act
}

// SalvageConfig is what a Salvage is made of. Every field is required.
type SalvageConfig struct {
	Journal  SalvageJournal
	Registry SalvageRegistry
	Records  SalvageRecords
}

// SalvageJournal is a Journal that says how far it is.
type SalvageJournal interface {
	Journal
	Stats() journal.Stats
}

// SalvageRegistry says what a gateway is.
type SalvageRegistry interface {
	Get(ctx context.Context, gateway string) (registry.Gateway, error) // registry.ErrUnknown
	RetiredKey(ctx context.Context, key [32]byte) (bool, error)        // it is a device key of a board that was replaced
	Quarantines(ctx context.Context) (map[string]registry.Quarantine, error)
}

// SalvageRecords says what is known of a gateway's batches.
type SalvageRecords interface {
	// ProveSealing is the decision whether a record was signed by a key of that gateway; reason says why not.
	ProveSealing(ctx context.Context, gateway string, signed seal.Signed) (reason string, err error)
	// SealingOf gives the signed record of a period that was proven earlier, nil when there is none.
	SealingOf(ctx context.Context, gateway string, id [16]byte) ([]byte, error)
	// Journaled says whether a batch of that number was journaled, unless it could not be opened and frame (its FrameHash) is another's.
	Journaled(ctx context.Context, gateway string, id telemetry.BatchID, frame [32]byte) (bool, error)
	// Passed waits until what stands in the journal up to seq is known to Journaled.
	Passed(ctx context.Context, seq uint64) error
}

// Card is one act's share of a card: at most MaxSalvage frames.
type Card struct {
	Gateway  string
	Actor    audit.Actor // the operator
	Peer     string
	Despite  string   // the state of a gateway that is not active, as the operator was told it
	Sealings [][]byte // signed sealing records
	Frames   [][]byte
}

// MaxSalvage bounds the frames, and the sealing records, of one act.
const MaxSalvage = 1024

// passWait is how long an act waits until records have passed the act before. Without that a repeat would be journaled twice, which
// records sorts out: nothing is lost by going on.
const passWait = 10 * time.Second

// Here is what became of a batch that was journaled before.
const Here = "here"

// Brought is what became of a Card. A text is empty for what was journaled, Here, or says why something was refused.
type Brought struct {
	Event    audit.EventID
	Frames   []string // as in Card
	Sealings []string // why a sealing record was refused, else empty; as in Card
}

// Bring journals what of the card is proven and was not journaled yet. On return without an error all of it is durable, so that the
// operator may leave it out of the next act; after an error some of it may be, and a repeat finds it there. registry.ErrUnknown for a
// gateway that nobody registered, registry.ErrConflict for one that is not active unless Despite names its state.
func (s *Salvage) Bring(ctx context.Context, c Card) (Brought, error) {
	if len(c.Frames) > MaxSalvage || len(c.Sealings) > MaxSalvage {
		return Brought{}, fmt.Errorf("salvage: %d frames and %d sealing records; at most %d each", len(c.Frames), len(c.Sealings), MaxSalvage)
	}
	g, err := s.Registry.Get(ctx, c.Gateway)
	if err != nil {
		return Brought{}, err
	}
	if g.State != registry.Active && c.Despite != string(g.State) {
		return Brought{}, refuse.New(registry.ErrConflict, "gateway %s is %s; what its card holds may be brought in all the same when you know where it has been: say --despite %s", g.ID, g.State, g.State)
	}
	held, err := s.Registry.Quarantines(ctx) // also of one that was suspended since
	if err != nil {
		return Brought{}, err
	}
	_, quarantined := held[g.ID]
	s.mu.Lock()
	defer s.mu.Unlock()
	waited, cancel := context.WithTimeout(ctx, passWait)
	err = s.Records.Passed(waited, s.last)
	cancel()
	if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
		return Brought{}, err
	}
	a := &act{Salvage: s, card: c, state: g.State, lanes: g.Lanes(), quarantined: quarantined, brought: map[[16]byte]proven{}, event: s.Journal.NextID(), now: time.Now()}
	a.out = Brought{Event: a.event, Frames: make([]string, len(c.Frames)), Sealings: make([]string, len(c.Sealings))}
	if err := a.prove(ctx); err != nil {
		return Brought{}, err
	}
	if err := a.judge(ctx); err != nil {
		return Brought{}, err
	}
	return a.out, a.commit(ctx)
}

// proven is a sealing record that is the gateway's.
type proven struct {
	payload []byte // the signed record
	signed  seal.Signed
	record  seal.Record
	verdict string
	used    bool
}

// act is one Bring.
type act struct {
	*Salvage
	card  Card
	state registry.State
	lanes uint8
	// quarantined: the gateway is, or is cut off out of a quarantine.
	quarantined bool
	brought     map[[16]byte]proven
	refused     map[[16]byte]string
	event       audit.EventID
	now         time.Time
	out         Brought
	frames      []journal.Entry
	order       [][16]byte // of the sealing records in use
}

// prove decides about the sealing records that came.
func (a *act) prove(ctx context.Context) error {
	a.refused = map[[16]byte]string{}
	for i, data := range a.card.Sealings {
		signed, record, err := parseSealing(data)
		if err != nil {
			a.out.Sealings[i] = reasonSealingRecord
			continue
		}
		reason, err := a.Records.ProveSealing(ctx, a.card.Gateway, signed)
		if err != nil {
			return err
		}
		if reason != "" {
			a.out.Sealings[i] = "sealing record: " + reason
			a.refused[record.ID] = a.out.Sealings[i]
			continue
		}
		if err := a.take(ctx, data, signed, record); err != nil {
			return err
		}
	}
	return nil
}

func (a *act) take(ctx context.Context, data []byte, signed seal.Signed, record seal.Record) error {
	former, err := a.Registry.RetiredKey(ctx, signed.SPKI)
	if err != nil {
		return err
	}
	p := proven{payload: data, signed: signed, record: record, verdict: audit.Salvaged}
	switch {
	case former:
		p.verdict = audit.SalvagedFormer
	case a.quarantined:
		p.verdict = audit.SalvagedQuarantined
	}
	a.brought[record.ID] = p
	return nil
}

// judge decides about the frames, and makes the entries of those that are to be journaled.
func (a *act) judge(ctx context.Context) error {
	twice := map[[32]byte]bool{} // by frame: of two under one number the second may be the gateway's
	for i, data := range a.card.Frames {
		frame, err := seal.CheckFrame(data)
		if err != nil {
			a.out.Frames[i] = reasonFrame
			continue
		}
		id := telemetry.BatchID{Epoch: frame.Epoch, Lane: frame.Lane, Number: frame.Number}
		hash := seal.FrameHash(data)
		here, err := a.Records.Journaled(ctx, a.card.Gateway, id, hash)
		if err != nil {
			return err
		}
		if here || twice[hash] {
			a.out.Frames[i] = Here
			continue
		}
		if err := a.recall(ctx, frame.Sealing); err != nil {
			return err
		}
		if a.out.Frames[i] = a.reason(frame); a.out.Frames[i] != "" {
			continue
		}
		twice[hash] = true
		if err := a.enter(frame, data); err != nil {
			return err
		}
	}
	return nil
}

// recall looks for a sealing record that did not come with the card among those that a session brought.
func (a *act) recall(ctx context.Context, id [16]byte) error {
	if _, ok := a.brought[id]; ok {
		return nil
	}
	data, err := a.Records.SealingOf(ctx, a.card.Gateway, id)
	if err != nil || data == nil {
		return err
	}
	signed, record, err := parseSealing(data)
	if err != nil {
		return fmt.Errorf("sealing record %x in the database: %w", id, err)
	}
	return a.take(ctx, data, signed, record)
}

func (a *act) reason(frame seal.Header) string {
	p, brought := a.brought[frame.Sealing]
	reason := judge(frame, a.lanes, sealing{epoch: p.record.Epoch, key: p.record.Key}, brought)
	if reason == reasonSealing {
		reason = reasonUnproven
		if why := a.refused[frame.Sealing]; why != "" {
			reason = why
		}
	}
	return reason
}

func (a *act) enter(frame seal.Header, data []byte) error {
	p := a.brought[frame.Sealing]
	if !p.used {
		p.used = true
		a.brought[frame.Sealing] = p
		a.order = append(a.order, frame.Sealing)
	}
	by := bearer{gateway: a.card.Gateway, session: a.event, actor: a.card.Actor, peer: a.card.Peer, verdict: p.verdict}
	e, err := by.publish(a.Journal.NextID(), frame, seal.FrameHash(data), data, a.now)
	a.frames = append(a.frames, e)
	return err
}

// commit journals the act, its sealing records, its batches, in this order: records finds each record before what needs it.
func (a *act) commit(ctx context.Context) error {
	ev := audit.Event{
		ID: a.event, Type: audit.GatewaySalvaged, Time: a.now.UnixMilli(), Actor: a.card.Actor, Peer: a.card.Peer, Session: a.event,
		Target: a.card.Gateway, Outcome: audit.Success, Count: uint64(len(a.frames)), Detail: map[string]string{},
	}
	here, refused := 0, 0
	for _, f := range a.out.Frames {
		switch f {
		case "":
		case Here:
			here++
		default:
			refused++
			ev.Reason = f // of the last: one of a few constants
		}
	}
	ev.Detail["here"], ev.Detail["refused"] = strconv.Itoa(here), strconv.Itoa(refused)
	if a.state != registry.Active {
		ev.Detail["despite"] = string(a.state)
	}
	head, err := audit.EncodeEvent(ev)
	if err != nil {
		return err
	}
	entries := []journal.Entry{{ID: ev.ID, Kind: journal.KindEvent, Head: head}}
	for _, id := range a.order {
		p := a.brought[id]
		e, err := sealingEntry(audit.Event{
			ID: a.Journal.NextID(), Type: audit.SealingBrought, Time: a.now.UnixMilli(), Actor: a.card.Actor, Peer: a.card.Peer, Session: a.event,
			Target: a.card.Gateway, Outcome: audit.Success,
		}, p.signed, p.record, p.payload)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	if err := a.Journal.Append(ctx, append(entries, a.frames...)...); err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	a.last = a.Journal.Stats().Committed // at or past this act's last entry
	return nil
}
