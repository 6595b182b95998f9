package ingest

import (
	"fmt"
	"net"
	"testing"
	"time"

	"wardlink/telemetry"
)

// What is refused on a real session counts for its gateway, what is refused before a proven identity for its network; and a refused
// batch is remembered, since its gateway keeps it.
func TestRefusalsAreCountedForAlerts(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	b.reg.change(func() { b.reg.lanes["gw-1"] = 1 << telemetry.LaneVitals })
	p := newPeriod(t)
	for range 3 {
		c := b.connect("gw-1")
		c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
		c.expectPuback(1)
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneWaveform), 2, p.frame(telemetry.LaneWaveform, 7, 100)))
		c.expectEnd()
	}
	c := b.connect("gw-1") // a breach of the profile parks nothing
	c.send(subscribePacket(1, "#", 0))
	c.expectEnd()
	for i := range 5 {
		b.srv.Refusals().Add(&net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(i)), Port: 1}, "no certificate")
	}
	eventually(t, "all are counted", func() bool { return b.srv.RefusalRates()["gw-1"].Count == 4 })
	rates := b.srv.RefusalRates()
	if len(rates) != 2 || rates["192.0.2.0/24"] != (Rate{5, "no certificate"}) || rates["gw-1"].Reason != reasonFilter {
		t.Errorf("%+v", rates)
	}
	if parked := b.srv.RefusedBatches(); len(parked) != 1 || parked["gw-1"].Count != 3 || parked["gw-1"].Reason != reasonLane {
		t.Errorf("%+v", parked)
	}
}

func TestRatesForgetAndAreBounded(t *testing.T) {
	now := time.Unix(1_790_000_000, 0).Truncate(time.Minute)
	s := &Server{rates: rates{now: func() time.Time { return now }}}
	count := func() uint64 { return s.RefusalRates()["a"].Count }
	for range 3 {
		s.rates.refused("a", "x")
	}
	now = now.Add(59 * time.Second)
	s.rates.refused("a", "x")
	now = now.Add(time.Second) // the next minute: the fuller one still counts
	s.rates.refused("a", "x")
	if n := count(); n != 4 {
		t.Errorf("%d", n)
	}
	now = now.Add(time.Minute)
	if n := count(); n != 1 {
		t.Errorf("%d", n)
	}
	now = now.Add(time.Hour)
	if n := count(); n != 0 {
		t.Errorf("%d after an hour", n)
	}
	now = now.Add(-2 * time.Hour) // a clock that goes back
	s.rates.refused("a", "x")
	if n := count(); n != 1 {
		t.Errorf("%d", n)
	}
	for i := range 3 * maxRates {
		s.rates.refused(fmt.Sprint(i), "x")
		s.rates.park(fmt.Sprint(i), "x")
	}
	if rates := s.RefusalRates(); len(rates) != maxRates+1 || rates[reasonOverflow].Count != 2*maxRates+1 {
		t.Errorf("%d subjects, %d beyond", len(rates), rates[reasonOverflow].Count)
	}
	if n := len(s.RefusedBatches()); n != maxRates {
		t.Errorf("%d parked", n)
	}
}
