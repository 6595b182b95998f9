package ingest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
)

// subscribed is a session of a gateway that has asked for its documents, and has them.
func (b *bench) subscribed(name string) *client {
	b.t.Helper()
	c := b.connect(name)
	c.send(subscribePacket(9, telemetry.DownFilter(name), 0))
	c.expect(kindSuback)
	c.expect(kindPublish)
	c.expect(kindPublish)
	return c
}

// expectHint reads a hint for the gateway, and the end.
func (c *client) expectHint(gateway string) time.Duration {
	c.t.Helper()
	body := c.expect(kindPublish)
	topic := telemetry.DownTopic(gateway, telemetry.DocHint)
	if len(body) < 2+len(topic) || string(body[2:2+len(topic)]) != topic {
		c.t.Fatalf("pushed %q", body)
	}
	h, err := telemetry.DecodeHint(body[2+len(topic):])
	if err != nil {
		c.t.Fatal(err)
	}
	if seen := c.expectEnd(); len(seen) != 0 {
		c.t.Fatalf("after the hint the server said %+v", seen)
	}
	return h.After
}

// TestAJournalThatFailsAsksForTime: whether it refuses at once or a commit fails later, nothing is acknowledged that is not durable, who
// subscribed is asked to stay away, and the connection ends without waiting for what will never be committed.
func TestAJournalThatFailsAsksForTime(t *testing.T) {
	for name, spoil := range map[string]func(j *heldJournal, err error){
		"the commit fails": func(j *heldJournal, err error) { j.set(func() { j.fail = err }) },
		"it takes nothing": func(j *heldJournal, err error) { j.set(func() { j.refuse = err }) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, Limits{Linger: patience}, "gw-1")
			c := b.subscribed("gw-1")
			p := newPeriod(t)
			c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
			c.expectPuback(1)
			spoil(b.journal, errors.New("disk full"))
			for n := range uint64(5) {
				c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), uint16(2+n), p.frame(telemetry.LaneVitals, n, 100)))
			}
			began := time.Now()
			if after := c.expectHint("gw-1"); after != hintUnable {
				t.Errorf("asked for %s", after)
			}
			if took := time.Since(began); took > patience/2 {
				t.Errorf("it took %s: commits that fail were waited for", took)
			}
			spoil(b.journal, nil)
		})
	}
}

// TestAStopSpreadsWhoComesBack: what is asked for grows with the number of gateways; who did not subscribe hears nothing.
func TestAStopSpreadsWhoComesBack(t *testing.T) {
	const gateways = 20
	var names []string
	for i := range gateways {
		names = append(names, fmt.Sprintf("gw-%d", i))
	}
	b := newBench(t, Limits{}, names...)
	var all []*client
	for _, name := range names[1:] {
		all = append(all, b.subscribed(name))
	}
	quiet := b.connect(names[0])
	drained := make(chan error, 1)
	go func() { drained <- b.srv.Drain(t.Context()) }()
	for i, c := range all {
		if after := c.expectHint(names[1+i]); after != hintLeast+gateways*hintEach {
			t.Errorf("asked for %s", after)
		}
	}
	if seen := quiet.expectEnd(); len(seen) != 0 {
		t.Errorf("who did not subscribe was told %+v", seen)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if n := len(b.journal.events(audit.SessionClosed)); n != gateways {
		t.Errorf("%d ends are journaled", n)
	}
}
