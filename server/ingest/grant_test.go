package ingest

import (
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
)

// TestValidityCutsTheSession: at its end, by the clock alone: no revision moves.
func TestValidityCutsTheSession(t *testing.T) {
	b := newBench(t, Limits{Poll: time.Millisecond}, "gw-1", "gw-2")
	b.reg.until = map[string]time.Time{"gw-1": time.Now().Add(time.Hour)}
	c, other := b.connect("gw-1"), b.connect("gw-2")
	b.srv.cutExpired(time.Now().Add(time.Hour - time.Minute))
	c.send([]byte{0xc0, 0})
	c.expect(kindPingresp)
	b.srv.cutExpired(time.Now().Add(time.Hour + time.Second))
	c.expectEnd()
	other.send([]byte{0xc0, 0})
	other.expect(kindPingresp)
	for len(b.srv.all()) > 1 { // the end is journaled after the connection is closed
		time.Sleep(time.Millisecond)
	}
	if closed := b.journal.events(audit.SessionClosed); len(closed) != 1 || closed[0].Reason != endWindow {
		t.Errorf("closed %+v", closed)
	}
	b.reg.change(func() { b.reg.window = &registry.WindowError{Gateway: "gw-1"} })
	late := b.dial(b.ca.gateway("gw-1"))
	late.send(connectPacket("gw-1", 60))
	late.expectConnack(connackDenied)
	if refused := b.journal.events(audit.Refused); len(refused) != 1 || refused[0].Reason != reasonWindow {
		t.Errorf("refused %+v", refused)
	}
}

// TestProfileRate: a gateway over the rate of its profile is read later, and nothing of it is refused.
func TestProfileRate(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := &session{srv: b.srv}
	c.grant.Store(&registry.Admission{Publishes: 100})
	for range 100 * burst {
		c.allotted(1000)
	}
	began := time.Now()
	for range 20 {
		c.allotted(1000)
	}
	if took := time.Since(began); took < 150*time.Millisecond { // 20 at 100 a second
		t.Errorf("20 publishes over the rate took %v", took)
	}
	c.grant.Store(&registry.Admission{Bytes: 1 << 20})
	for range burst {
		c.allotted(1 << 20)
	}
	began = time.Now()
	c.allotted(1 << 18)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("a quarter of a second's bytes over the rate took %v", took)
	}
	// A slower profile is not owed what a faster one let through, and one that comes while a publish waits ends the wait.
	c.grant.Store(&registry.Admission{Publishes: 1000})
	for range 1000 * burst {
		c.allotted(1)
	}
	c.grant.Store(&registry.Admission{Publishes: 1})
	began = time.Now()
	for range burst {
		c.allotted(1)
	}
	time.AfterFunc(50*time.Millisecond, func() { c.grant.Store(&registry.Admission{Publishes: 1000}) })
	for range 60 {
		c.allotted(1)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("publishes waited %v for a rate that held no longer", took)
	}
	c.grant.Store(&registry.Admission{})
	if c.allotted(1 << 30); c.rate != (bucket{}) {
		t.Error("without a rate something was counted")
	}
}
