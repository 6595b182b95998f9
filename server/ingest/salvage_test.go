package ingest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// Stats makes the fake a SalvageJournal.
func (j *heldJournal) Stats() journal.Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	return journal.Stats{Committed: uint64(len(j.done))}
}

// ashes is what registry and records know of a dead gateway.
type ashes struct {
	state    registry.State
	lanes    uint8
	unproven string // why no sealing record is proven
	retired  bool
	held     map[string]registry.Quarantine
	known    map[[16]byte][]byte
	here     map[telemetry.BatchID]bool
	waited   []uint64
}

func (a *ashes) Get(_ context.Context, id string) (registry.Gateway, error) {
	if id != "gw-1" {
		return registry.Gateway{}, registry.ErrUnknown
	}
	return registry.Gateway{ID: id, State: a.state, Grant: registry.Profile{Lanes: a.lanes}}, nil
}

func (a *ashes) Quarantines(context.Context) (map[string]registry.Quarantine, error) {
	return a.held, nil
}

func (a *ashes) RetiredKey(context.Context, [32]byte) (bool, error) { return a.retired, nil }
func (a *ashes) ProveSealing(context.Context, string, seal.Signed) (string, error) {
	return a.unproven, nil
}
func (a *ashes) SealingOf(_ context.Context, _ string, id [16]byte) ([]byte, error) {
	return a.known[id], nil
}
func (a *ashes) Journaled(_ context.Context, _ string, id telemetry.BatchID, _ [32]byte) (bool, error) {
	return a.here[id], nil
}
func (a *ashes) Passed(_ context.Context, seq uint64) error {
	a.waited = append(a.waited, seq)
	return nil
}

// newSalvage is a way in for the card of gw-1.
func newSalvage(t *testing.T) (*Salvage, *ashes, *heldJournal) {
	t.Helper()
	j := newJournal(t)
	t.Cleanup(j.close)
	a := &ashes{state: registry.Active, lanes: 15, known: map[[16]byte][]byte{}, here: map[telemetry.BatchID]bool{}}
	return &Salvage{SalvageConfig: SalvageConfig{Journal: j, Registry: a, Records: a}}, a, j
}

func cardOf(p *period, frames ...[]byte) Card {
	return Card{Gateway: "gw-1", Actor: audit.Actor{ID: "spiffe://ward.example/operator/op", Serial: "0c"}, Peer: "192.0.2.1:7", Sealings: [][]byte{p.signed}, Frames: frames}
}

// TestSalvageJournalsWhatIsProven: the act, its sealing record, its batches, in this order; a damaged frame, one that is there and one that
// comes twice are told apart, and a repeat waits for the records.
func TestSalvageJournalsWhatIsProven(t *testing.T) {
	s, a, j := newSalvage(t)
	p := newPeriod(t)
	whole, here := p.frame(telemetry.LaneAlarm, 0, 50), p.frame(telemetry.LaneVitals, 0, 50)
	h, err := seal.CheckFrame(here)
	if err != nil {
		t.Fatal(err)
	}
	a.here[telemetry.BatchID{Epoch: h.Epoch, Lane: h.Lane, Number: h.Number}] = true
	out, err := s.Bring(t.Context(), cardOf(p, whole, here, whole[:len(whole)-1], whole))
	if err != nil {
		t.Fatal(err)
	}
	if out.Frames[0] != "" || out.Frames[1] != Here || out.Frames[2] != reasonFrame || out.Frames[3] != Here || out.Sealings[0] != "" {
		t.Errorf("%+v", out)
	}
	if len(j.done) != 3 || j.done[0].Kind != journal.KindEvent || j.done[1].Kind != journal.KindSealing || j.done[2].Kind != journal.KindPublish {
		t.Fatalf("journaled: %+v", j.done)
	}
	ev, row := j.events(audit.GatewaySalvaged)[0], j.rows()[0]
	if ev.Count != 1 || ev.Detail["here"] != "2" || ev.Detail["refused"] != "1" || ev.Target != "gw-1" || ev.Actor.Serial != "0c" || ev.ID != out.Event {
		t.Errorf("act: %+v", ev)
	}
	if row.Session != ev.ID || row.Gateway != "gw-1" || row.Serial != "0c" || row.Peer != "192.0.2.1:7" || row.Verdict != audit.Salvaged {
		t.Errorf("row: %+v", row)
	}
	if brought := j.events(audit.SealingBrought)[0]; brought.Target != "gw-1" || brought.Session != ev.ID || !strings.Contains(brought.Actor.ID, "/operator/") {
		t.Errorf("sealing record: %+v", brought)
	}
	a.retired = true
	if _, err := s.Bring(t.Context(), cardOf(p, p.frame(telemetry.LaneVitals, 1, 50))); err != nil {
		t.Fatal(err)
	}
	defer func() { // the card of a gateway that was cut off out of a quarantine
		a.retired, a.state, a.held = false, registry.Suspended, map[string]registry.Quarantine{"gw-1": {}}
		card := cardOf(p, p.frame(telemetry.LaneVitals, 2, 50))
		card.Despite = string(registry.Suspended)
		if _, err := s.Bring(t.Context(), card); err != nil {
			t.Fatal(err)
		}
		if rows := j.rows(); rows[2].Verdict != audit.SalvagedQuarantined {
			t.Errorf("row %+v", rows[2])
		}
	}()
	if rows := j.rows(); rows[1].Verdict != audit.SalvagedFormer || len(a.waited) != 2 || a.waited[1] != 3 {
		t.Errorf("row %+v, waited for %v", rows[1], a.waited)
	}
}

// TestSalvageRefusesWhatIsNotProven, and nothing that is not proven reaches the journal.
func TestSalvageRefusesWhatIsNotProven(t *testing.T) {
	s, a, j := newSalvage(t)
	p, other := newPeriod(t), newPeriod(t)
	one := func(c Card) string {
		t.Helper()
		out, err := s.Bring(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return out.Frames[0]
	}
	frame := p.frame(telemetry.LaneVitals, 0, 50)
	if got := one(Card{Gateway: "gw-1", Actor: cardOf(p).Actor, Frames: [][]byte{frame}}); got != reasonUnproven {
		t.Errorf("without a record: %q", got)
	}
	if got := one(cardOf(other, frame)); got != reasonUnproven {
		t.Errorf("with another period's record: %q", got)
	}
	c := cardOf(p, frame)
	c.Sealings = [][]byte{p.signed[1:]}
	if got := one(c); got != reasonUnproven {
		t.Errorf("with a record that cannot be read: %q", got)
	}
	a.unproven = "its signature does not hold"
	if got := one(cardOf(p, frame)); got != "sealing record: its signature does not hold" {
		t.Errorf("with a record that is not proven: %q", got)
	}
	a.lanes = 0
	a.unproven = ""
	if got := one(cardOf(p, frame)); got != reasonLane {
		t.Errorf("on a lane that is not allowed: %q", got)
	}
	a.lanes = 15
	if rows := j.rows(); len(rows) > 0 || len(j.events(audit.SealingBrought)) > 0 {
		t.Fatalf("journaled: %+v", rows)
	}
	rec, err := seal.ParseRecord(p.p.Record())
	if err != nil {
		t.Fatal(err)
	}
	a.known[rec.ID] = p.signed
	if got := one(Card{Gateway: "gw-1", Actor: cardOf(p).Actor, Frames: [][]byte{frame}}); got != "" || len(j.events(audit.SealingBrought)) != 1 {
		t.Errorf("with a record that a session brought: %q", got)
	}
}

// TestSalvageAsksForTheGatewaysState: of a gateway that was cut off only who says that he knows it.
func TestSalvageAsksForTheGatewaysState(t *testing.T) {
	s, a, j := newSalvage(t)
	p := newPeriod(t)
	c := cardOf(p, p.frame(telemetry.LaneVitals, 0, 50))
	for _, state := range []registry.State{registry.Revoked, registry.Suspended, registry.Decommissioned} {
		a.state = state
		for _, said := range []string{"", "active", "quarantined"} {
			c.Despite = said
			if _, err := s.Bring(t.Context(), c); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "--despite "+string(state)) {
				t.Errorf("%s, despite %q: %v", state, said, err)
			}
		}
	}
	if len(j.done) > 0 {
		t.Errorf("journaled: %+v", j.done)
	}
	c.Despite = string(a.state)
	if out, err := s.Bring(t.Context(), c); err != nil || out.Frames[0] != "" {
		t.Errorf("%+v %v", out, err)
	}
	if ev := j.events(audit.GatewaySalvaged)[0]; ev.Detail["despite"] != string(a.state) {
		t.Errorf("act: %+v", ev)
	}
	c.Gateway = "gw-2"
	if _, err := s.Bring(t.Context(), c); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("an unknown gateway: %v", err)
	}
	c = cardOf(p)
	c.Frames = make([][]byte, MaxSalvage+1)
	if _, err := s.Bring(t.Context(), c); err == nil {
		t.Error("too many frames are taken")
	}
}

// TestSalvageDoesNotAnswerForAJournalThatFails: what is not durable is not said to be in.
func TestSalvageDoesNotAnswerForAJournalThatFails(t *testing.T) {
	s, _, j := newSalvage(t)
	p := newPeriod(t)
	broken := errors.New("disk is full")
	j.set(func() { j.fail = broken })
	c := cardOf(p, p.frame(telemetry.LaneVitals, 0, 50))
	if _, err := s.Bring(t.Context(), c); !errors.Is(err, broken) {
		t.Fatalf("%v", err)
	}
	j.set(func() { j.fail = nil })
	if out, err := s.Bring(t.Context(), c); err != nil || out.Frames[0] != "" || len(j.rows()) != 1 {
		t.Errorf("%+v %v", out, err)
	}
}
