package records_test

import (
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// salvage journals the gateway's sealing record and a frame as an operator's act does.
func (g *gateway) salvage(verdict string, frame []byte) {
	g.f.t.Helper()
	h, err := seal.CheckFrame(frame)
	if err != nil {
		g.f.t.Fatal(err)
	}
	signed, err := seal.SignRecord(g.period.Record(), g.device)
	if err != nil {
		g.f.t.Fatal(err)
	}
	ev := audit.Event{
		ID: g.f.journal.NextID(), Type: audit.SealingBrought, Time: g.f.clock.Now().UnixMilli(), Outcome: audit.Success, Target: g.name,
		Actor: audit.Actor{ID: spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Operator, Name: "op"}.String()},
	}
	head, err := audit.EncodeEvent(ev)
	if err != nil {
		g.f.t.Fatal(err)
	}
	g.f.append(journal.Entry{ID: ev.ID, Kind: journal.KindSealing, Head: head, Blob: signed})
	row := audit.Row{
		ID: g.f.journal.NextID(), Session: ev.ID, Gateway: g.name, Epoch: h.Epoch, Lane: uint8(h.Lane), Number: h.Number, Frame: seal.FrameHash(frame),
		Received: g.f.clock.Now().UnixMilli(), Serial: "0c", Peer: "10.0.0.2:1", Verdict: verdict,
	}
	if head, err = audit.EncodeRow(row); err != nil {
		g.f.t.Fatal(err)
	}
	g.f.append(journal.Entry{ID: row.ID, Kind: journal.KindPublish, Head: head, Blob: frame})
}

// reportFrame seals a report of the gateway.
func (g *gateway) reportFrame(n uint64, r telemetry.Report) []byte {
	g.f.t.Helper()
	plain, err := telemetry.Encode(telemetry.Batch{Boot: [16]byte{1}, Report: &r})
	if err != nil {
		g.f.t.Fatal(err)
	}
	frame, err := g.period.Seal(seal.Header{Lane: telemetry.LaneSelf, Number: n, Wall: 1, Mono: 1}, plain)
	if err != nil {
		g.f.t.Fatal(err)
	}
	return frame
}

// TestSalvagedBatchesCountAndAreNoSignOfLife: what an operator brings is opened and journaled like all else; the report on a dead gateway's
// card counts for its account and is not taken for a heartbeat; that of a former board never takes the present one's place.
func TestSalvagedBatchesCountAndAreNoSignOfLife(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.report(0, telemetry.Report{})
	f.settled()
	before, err := f.store().Heartbeats(f.ctx, "gw-1")
	if err != nil || before.Last.IsZero() {
		t.Fatal(before, err)
	}
	signed, err := seal.SignRecord(g.period.Record(), g.device)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := seal.ParseSigned(signed)
	if err != nil {
		t.Fatal(err)
	}
	f.clock.add(time.Hour)
	g.epoch[0] ^= 1 // its agent was started again, and no session came of it
	g.newPeriod()
	g.next = 0
	g.salvage(audit.Salvaged, g.sealBatch(message("P1", 1, "72")))
	g.salvage(audit.Salvaged, g.reportFrame(0, telemetry.Report{}))
	f.settled()
	if got := f.values("P1", 10); len(got) != 1 || got[0] != "72" {
		t.Errorf("values %v", got)
	}
	after, err := f.store().Heartbeats(f.ctx, "gw-1")
	if err != nil || after.Last != before.Last || after.Epoch == before.Epoch {
		t.Errorf("heartbeats %+v, %v; the last sign of life was %v, and the newest report is the card's", after, err, before.Last)
	}
	for number, want := range map[uint64]bool{0: true, 1: false} {
		if got, err := f.open().Journaled(f.ctx, "gw-1", telemetry.BatchID{Epoch: g.epoch, Lane: telemetry.LaneVitals, Number: number}, [32]byte{}); err != nil || got != want {
			t.Errorf("number %d is journaled: %t %v", number, got, err)
		}
	}

	// A new board speaks; then the old one's card is brought.
	old := g.epoch
	g.restart()
	g.bring("gw-1")
	g.report(0, telemetry.Report{})
	f.settled()
	present := g.epoch
	g.epoch = old
	g.newPeriod()
	g.salvage(audit.SalvagedFormer, g.reportFrame(7, telemetry.Report{}))
	f.settled()
	if b, err := f.store().Heartbeats(f.ctx, "gw-1"); err != nil || b.Epoch != telemetry.Epoch(present).String() {
		t.Errorf("the newest report is of %s, %v; expected the present board's %x", b.Epoch, err, present)
	}

	// What is proven before anything is journaled.
	if reason, err := f.open().ProveSealing(f.ctx, "gw-1", parsed); err != nil || reason != "" {
		t.Errorf("its own: %q %v", reason, err)
	}
	if reason, err := f.open().ProveSealing(f.ctx, "gw-2", parsed); err != nil || reason != "it is signed by a key of another gateway" {
		t.Errorf("another's: %q %v", reason, err)
	}
	parsed.Signature[8] ^= 1
	if reason, err := f.open().ProveSealing(f.ctx, "gw-1", parsed); err != nil || reason != "its signature does not hold" {
		t.Errorf("a changed signature: %q %v", reason, err)
	}
	stranger := f.gateway("gw-3")
	if signed, err = seal.SignRecord(stranger.period.Record(), stranger.device); err != nil {
		t.Fatal(err)
	}
	if parsed, err = seal.ParseSigned(signed); err != nil {
		t.Fatal(err)
	}
	if reason, err := f.open().ProveSealing(f.ctx, "gw-1", parsed); err != nil || reason != "it is signed by a key that the registry does not know" {
		t.Errorf("an unknown key: %q %v", reason, err)
	}
}

// TestAForgedFrameKeepsNoNumber: whoever held the card can write a frame that verifies, under a number of the gateway's and a signed period,
// and that opens to nothing. What the gateway sealed under the number comes in all the same, and takes its place.
func TestAForgedFrameKeepsNoNumber(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	real := g.sealBatch(message("P1", 1, "72"))
	forged := slices.Clone(real)
	forged[len(forged)-sha256.Size-1] ^= 1
	sum := sha256.Sum256(forged[:len(forged)-sha256.Size])
	copy(forged[len(forged)-sha256.Size:], sum[:])
	g.salvage(audit.Salvaged, forged)
	f.until("it is dead", func(s records.Stats) bool { return s.Dead == 1 })
	id := telemetry.BatchID{Epoch: g.epoch, Lane: telemetry.LaneVitals}
	for _, step := range []struct {
		what  string
		frame []byte
		known bool
	}{{"the forged frame again", forged, true}, {"the gateway's own", real, false}} {
		if got, err := f.open().Journaled(f.ctx, "gw-1", id, seal.FrameHash(step.frame)); err != nil || got != step.known {
			t.Errorf("%s is known: %t %v", step.what, got, err)
		}
	}
	if held, err := f.store().HeldToSalvage(f.ctx, "gw-1"); err != nil || len(held) != 1 || len(held[0].Runs) != 0 {
		t.Errorf("a card need not bring %+v, %v", held, err)
	}
	g.salvage(audit.Salvaged, real)
	f.until("it is stored", func(s records.Stats) bool { return s.Dead == 0 && s.Batches == 1 && s.Pending == 0 })
	if got := f.values("P1", 10); len(got) != 1 || got[0] != "72" {
		t.Errorf("values %v", got)
	}
	if got, err := f.open().Journaled(f.ctx, "gw-1", id, seal.FrameHash(forged)); err != nil || !got {
		t.Errorf("a stored number is asked for again: %t %v", got, err)
	}
	if held, err := f.store().HeldToSalvage(f.ctx, "gw-1"); err != nil || len(held) != 1 || len(held[0].Runs) != 1 {
		t.Errorf("a card need not bring %+v, %v", held, err)
	}
}
