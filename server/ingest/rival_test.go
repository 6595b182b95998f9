package ingest

import (
	"testing"
	"time"

	"wardlink/audit"
)

// TestTwoAgentsOfOneGateway: one comes with the older certificate while the other is connected. It is refused by name, and the session stands.
func TestTwoAgentsOfOneGateway(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	former, newer := b.ca.from("gw-1", time.Now().Add(-30*time.Minute)), b.ca.from("gw-1", time.Now().Add(-10*time.Minute))
	standing := b.dial(newer)
	standing.send(connectPacket("gw-1", 60))
	standing.expectConnack(connackAccepted)
	for range 2 {
		rival := b.dial(former)
		rival.send(connectPacket("gw-1", 60))
		rival.expectConnack(connackDenied)
	}
	standing.send([]byte{0xc0, 0})
	standing.expect(kindPingresp)
	refused := b.journal.events(audit.Refused)
	if len(refused) != 2 || refused[0].Reason != reasonRival || refused[0].Target != "gw-1" {
		t.Fatalf("refused %+v", refused)
	}
	got := b.srv.Rivals()["gw-1"]
	if got.Count != 2 || got.Serial != former.Leaf.SerialNumber.Text(16) || got.Live == "" || got.Peer == "" || got.Live == got.Peer {
		t.Fatalf("rival %+v", got)
	}
}

// TestNormalReconnectsAreNoRivals: one agent comes back with the certificate that it had, a renewed one takes over, and with the older one
// again once nobody is there.
func TestNormalReconnectsAreNoRivals(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	former, newer := b.ca.from("gw-1", time.Now().Add(-30*time.Minute)), b.ca.from("gw-1", time.Now().Add(-10*time.Minute))
	for range 5 {
		again := b.dial(former)
		again.send(connectPacket("gw-1", 60))
		again.expectConnack(connackAccepted)
	}
	renewed := b.dial(newer)
	renewed.send(connectPacket("gw-1", 60))
	renewed.expectConnack(connackAccepted)
	renewed.send([]byte{0xe0, 0})
	renewed.expectEnd()
	for len(b.srv.all()) > 0 {
		time.Sleep(time.Millisecond)
	}
	restored := b.dial(former) // a disk that was set back: once, and nobody else is connected
	restored.send(connectPacket("gw-1", 60))
	restored.expectConnack(connackAccepted)
	if got := b.srv.Rivals(); len(got) != 0 {
		t.Fatalf("rivals %+v", got)
	}
}
