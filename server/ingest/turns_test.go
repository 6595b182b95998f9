package ingest

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// TestConnectedGatewaysNeedNoTurn: while every turn is taken nobody comes in and nobody's end is done with, and who is connected publishes as ever.
func TestConnectedGatewaysNeedNoTurn(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1", "gw-2", "gw-3")
	c, p := b.connect("gw-1"), newPeriod(t)
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	c.expectPuback(1)
	gone := b.connect("gw-2")
	for range cap(b.srv.turns) {
		b.srv.turns.Enter()
	}
	gone.conn.Close()
	late := b.dial(b.ca.gateway("gw-3"))
	late.send(connectPacket("gw-3", 60))
	for i := range uint64(20) {
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneAlarm), 2, p.frame(telemetry.LaneAlarm, i, 40)))
		c.expectPuback(2)
	}
	if slices.ContainsFunc(b.srv.Sessions(), func(s SessionInfo) bool { return s.Gateway == "gw-3" }) {
		t.Error("gw-3 came in without a turn")
	}
	if n := len(b.journal.events(audit.SessionClosed)); n != 0 {
		t.Error("the end of gw-2 was done with without a turn")
	}
	for range cap(b.srv.turns) {
		b.srv.turns.Leave()
	}
	late.expectConnack(connackAccepted)
	eventually(t, "the end of gw-2", func() bool { return len(b.journal.events(audit.SessionClosed)) == 1 })
	eventually(t, "that all turns are given back", func() bool { return len(b.srv.turns) == 0 })
}

// TestWhatWaitsHasNoTurn: a registry or a journal that does not answer keeps nobody's handshake from being computed.
func TestWhatWaitsHasNoTurn(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1", "gw-2")
	b.journal.hold()
	c := b.dial(b.ca.gateway("gw-1"))
	c.send(connectPacket("gw-1", 60))
	eventually(t, "an opening before the journal", func() bool { return b.journal.queued() > 0 })
	eventually(t, "a free turn while the journal is held", func() bool { return len(b.srv.turns) == 0 })
	b.journal.release()
	c.expectConnack(connackAccepted)

	b.reg.mu.Lock()
	b.reg.takes["AdmitKey"] = 200 * time.Millisecond
	b.reg.mu.Unlock()
	d := b.dial(b.ca.gateway("gw-2"))
	d.send(connectPacket("gw-2", 60))
	eventually(t, "gw-2 asks", func() bool { b.srv.mu.Lock(); defer b.srv.mu.Unlock(); return b.srv.sessions["gw-2"] != nil })
	b.srv.turns.Enter() // comes before the registry's answer, or the next line does not hold
	early := len(b.srv.Sessions()) == 1
	b.srv.turns.Leave()
	d.expectConnack(connackAccepted)
	if !early {
		t.Error("a turn was kept until the registry had answered")
	}
}

// TestTurnsSurviveAPanic: a fault in an admission costs its connection, and no turn.
func TestTurnsSurviveAPanic(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	whole := b.srv.registry
	b.srv.registry = panicking{whole}
	c := b.dial(b.ca.gateway("gw-1"))
	c.send(connectPacket("gw-1", 60))
	c.expectEnd()
	eventually(t, "that all turns are given back", func() bool { return len(b.srv.turns) == 0 })
	b.srv.registry = whole
	b.connect("gw-1")
}

type panicking struct{ Registry }

func (panicking) AdmitKey(context.Context, string, [32]byte) (registry.Admission, error) {
	panic("a fault of ours")
}

// TestDocumentsOneAfterTheOther: those who subscribe at once share one lookup at a time, each gets its documents, and who waits is read on.
func TestDocumentsOneAfterTheOther(t *testing.T) {
	const gateways = 8
	var names []string
	for i := range gateways {
		names = append(names, fmt.Sprintf("gw-%d", i))
	}
	b := newBench(t, Limits{}, names...)
	var at, most atomic.Int32
	held := make(chan struct{})
	b.srv.down = func(_ context.Context, gateway string) ([]Document, error) {
		most.Store(max(most.Load(), at.Add(1)))
		defer at.Add(-1)
		<-held
		return []Document{{telemetry.DocConfig, []byte("config of " + gateway)}}, nil
	}
	clients := make([]*client, gateways)
	for i, name := range names {
		clients[i] = b.connect(name)
		if i == 0 { // nobody else is answered: it waits for its documents
			clients[i].send(subscribePacket(1, telemetry.DownFilter(name), 0))
			clients[i].expect(kindSuback)
			eventually(t, "the first lookup", func() bool { return at.Load() == 1 })
			continue
		}
		clients[i].send(subscribePacket(1, telemetry.DownFilter(name), 0), subscribePacket(2, telemetry.DownFilter(name), 0), raw(0xc0, nil))
		for _, want := range []kind{kindSuback, kindSuback, kindPingresp} {
			clients[i].expect(want)
		}
	}
	clients[1].conn.Close() // it waits, and goes: nothing is looked up for it
	eventually(t, "the end of gw-1", func() bool { return len(b.srv.Sessions()) == gateways-1 })
	eventually(t, "that gw-1 is out of the line", func() bool {
		b.srv.asking.mu.Lock()
		defer b.srv.asking.mu.Unlock()
		return len(b.srv.asking.line) == gateways-2
	})
	close(held)
	for i, name := range names {
		if i == 1 {
			continue
		}
		if topic, body, _ := field(clients[i].expect(kindPublish)); string(topic) != telemetry.DownTopic(name, telemetry.DocConfig) || string(body) != "config of "+name {
			t.Errorf("%s got %q: %q", name, topic, body)
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d lookups at a time", most.Load())
	}
	eventually(t, "the end of the lookups", func() bool { b.srv.asking.mu.Lock(); defer b.srv.asking.mu.Unlock(); return !b.srv.asking.running })
}
