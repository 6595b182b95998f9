package ingest

import (
	"context"
	"crypto/tls"
	"sync/atomic"
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

// TestWhoIsNotAdmittedEndsNobody: a board that was replaced comes with a good certificate while the new one is connected. It is told so, accuses nobody, and
// neither ends the session here nor counts as one, which would end it at another node.
func TestWhoIsNotAdmittedEndsNobody(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	counted := &countedSessions{}
	b.srv.fences = counted
	older, now, newer := b.ca.from("gw-1", time.Now().Add(-30*time.Minute)), b.ca.from("gw-1", time.Now().Add(-20*time.Minute)), b.ca.from("gw-1", time.Now().Add(-10*time.Minute))
	b.reg.change(func() { b.reg.retired[spkiHash(older.Leaf)], b.reg.retired[spkiHash(newer.Leaf)] = "gw-0", "gw-0" })
	standing := b.dial(now)
	standing.send(connectPacket("gw-1", 60))
	standing.expectConnack(connackAccepted)
	for _, cert := range []tls.Certificate{older, newer} {
		former := b.dial(cert)
		former.send(connectPacket("gw-1", 60))
		former.expectConnack(connackDenied)
	}
	standing.send([]byte{0xc0, 0})
	standing.expect(kindPingresp)
	for _, refused := range b.journal.events(audit.Refused) {
		if refused.Reason != reasonReplaced {
			t.Errorf("refused %+v", refused)
		}
	}
	if got := b.srv.Rivals(); len(got) != 0 || counted.n.Load() != 1 {
		t.Errorf("rivals %+v, %d sessions counted", got, counted.n.Load())
	}
}

// countedSessions are those of a cell.
type countedSessions struct{ n atomic.Int64 }

func (c *countedSessions) Bump(context.Context, string) (int64, error) { return c.n.Add(1), nil }

func (c *countedSessions) Passed(context.Context, map[string]int64) ([]string, error) {
	return nil, nil
}
