package records_test

import (
	"encoding/hex"
	"testing"

	"wardlink/telemetry"
)

// TestHeartbeats: the first report that the hospital received stays the first; the newest is the newest; telemetry is none.
func TestHeartbeats(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.number(0)
	f.settled()
	if b, err := f.store().Heartbeats(f.ctx, "gw-1"); err != nil || !b.First.IsZero() || b.Epoch != "" {
		t.Errorf("before any: %+v, %v", b, err)
	}
	g.report(0, telemetry.Report{})
	f.settled()
	first, err := f.store().Heartbeats(f.ctx, "gw-1")
	if err != nil || first.First.IsZero() || first.First != first.Last || first.Epoch != hex.EncodeToString(g.epoch[:]) {
		t.Fatalf("%+v, %v", first, err)
	}
	g.restart()
	g.report(0, telemetry.Report{})
	f.settled()
	b, err := f.store().Heartbeats(f.ctx, "gw-1")
	if err != nil || b.First != first.First || b.Last.Before(first.Last) || b.Epoch != hex.EncodeToString(g.epoch[:]) || b.Epoch == first.Epoch {
		t.Errorf("after a restart: %+v, %v; the first was %+v", b, err, first)
	}
	if b, err := f.store().Heartbeats(f.ctx, "gw-2"); err != nil || !b.First.IsZero() {
		t.Errorf("another gateway: %+v, %v", b, err)
	}
}
