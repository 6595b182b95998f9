package ingest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

func TestPubackNeverPrecedesTheCommit(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.hold()
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 0, 100)))
	eventually(t, "both publishes wait for their commit", func() bool { return b.journal.queued() == 2 })
	// A PINGRESP overtakes what is held: were a PUBACK on its way, it would come first.
	c.send([]byte{0xc0, 0})
	c.expect(kindPingresp)
	b.journal.release()
	c.expectPuback(1)
	c.expectPuback(2)
	rows := b.journal.rows()
	opened := b.journal.events(audit.SessionOpened)
	if len(rows) != 1 || len(opened) != 1 || rows[0].Session != opened[0].ID || rows[0].Gateway != "gw-1" || rows[0].Number != 0 ||
		rows[0].Lane != uint8(telemetry.LaneVitals) || rows[0].Peer != c.conn.LocalAddr().String() || rows[0].Serial == "" {
		t.Fatalf("rows %+v, opened %+v", rows, opened)
	}
	if ev := b.journal.events(audit.SealingBrought); len(ev) != 1 || ev[0].Session != opened[0].ID || ev[0].Detail["sealing"] == "" {
		t.Fatalf("sealing events %+v", ev)
	}
}

func TestSessionIsJournaledBeforeConnack(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	b.journal.hold()
	c := b.dial(b.ca.gateway("gw-1"))
	c.send(connectPacket("gw-1", 60))
	eventually(t, "the opening waits for its commit", func() bool { return b.journal.queued() == 1 })
	if n := len(b.srv.Sessions()); n != 0 {
		t.Fatalf("%d sessions before the commit", n)
	}
	must(0, c.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))(t)
	if _, _, err := c.packet(); err == nil {
		t.Fatal("an answer came before the commit")
	}
	b.journal.release()
	eventually(t, "the opening", func() bool { return len(b.journal.events(audit.SessionOpened)) == 1 })
}

func TestPipeliningKeepsTheOrder(t *testing.T) {
	const n = 64
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.hold()
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1000, p.signed))
	for i := range n {
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), uint16(n-i), p.frame(telemetry.LaneVitals, uint64(i), 10)))
	}
	eventually(t, "all publishes are in flight", func() bool { return b.journal.queued() == n+1 })
	b.journal.release()
	c.expectPuback(1000)
	for i := range n {
		c.expectPuback(uint16(n - i))
	}
	for i, row := range b.journal.rows() {
		if row.Number != uint64(i) {
			t.Fatalf("row %d holds number %d", i, row.Number)
		}
	}
}

// TestOrderSurvivesAJournalThatCompletesOutOfOrder: the order of PUBACKs is ours to keep (MQTT-4.6.0-2), not a gift of the journal.
func TestOrderSurvivesAJournalThatCompletesOutOfOrder(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.hold()
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	for i := range 3 {
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneAlarm), uint16(2+i), p.frame(telemetry.LaneAlarm, uint64(i), 10)))
	}
	eventually(t, "all publishes are in flight", func() bool { return b.journal.queued() == 4 })
	b.journal.set(func() { // the last one first
		q := b.journal.queue
		q[0], q[3] = q[3], q[0]
		b.journal.held = false
	})
	for i := range 4 {
		c.expectPuback(uint16(1 + i))
	}
}

func TestAFullWindowStopsReading(t *testing.T) {
	b := newBench(t, Limits{Window: 4}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.hold()
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	for i := range 6 {
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneAlarm), uint16(2+i), p.frame(telemetry.LaneAlarm, uint64(i), 10)))
	}
	c.send([]byte{0xc0, 0})
	eventually(t, "the window is full", func() bool { return b.journal.queued() == 4 })
	must(0, c.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))(t)
	if h, _, err := c.packet(); err == nil {
		t.Fatalf("packet %d came although the window was full", h.kind)
	}
	if n := b.journal.queued(); n != 4 {
		t.Fatalf("%d publishes were submitted, the window has 4", n)
	}
}

func TestWindowIsBoundedInBytes(t *testing.T) {
	b := newBench(t, Limits{WindowBytes: 10_000}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.hold()
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	for i := range 5 {
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneAlarm), uint16(2+i), p.frame(telemetry.LaneAlarm, uint64(i), 4000)))
	}
	eventually(t, "the window is full", func() bool { return b.journal.queued() == 3 })
	b.journal.release()
	for i := range 6 {
		c.expectPuback(uint16(1 + i))
	}
}

func TestFailedCommitIsNotAcknowledged(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	c.expectPuback(1)
	b.journal.set(func() { b.journal.fail = errors.New("disk full") })
	c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 0, 100)))
	if seen := c.expectEnd(); len(seen) != 0 {
		t.Fatalf("the server answered %+v", seen)
	}
	b.journal.set(func() { b.journal.fail = nil })
}

func TestJournalThatRefusesEndsTheSession(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.set(func() { b.journal.refuse = errors.New("no space left") })
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	if seen := c.expectEnd(); len(seen) != 0 {
		t.Fatalf("the server answered %+v", seen)
	}
	again := b.dial(b.ca.gateway("gw-1"))
	again.send(connectPacket("gw-1", 60))
	again.expectConnack(connackUnavailable)
	b.journal.set(func() { b.journal.refuse = nil })
}

func TestRefusedBatches(t *testing.T) {
	up := telemetry.UpTopic("gw-1", telemetry.LaneVitals)
	other := newPeriod(t)
	damaged := func(p *period) []byte {
		f := p.frame(telemetry.LaneVitals, 7, 100)
		f[len(f)/2] ^= 1
		return f
	}
	for _, tc := range []struct {
		name   string
		topic  string
		frame  func(p *period) []byte
		reason string
		told   bool // down/refused names the batch
	}{
		{"batch before its sealing record", up, func(*period) []byte { return other.frame(telemetry.LaneVitals, 7, 100) }, reasonSealing, true},
		{"damaged frame", up, damaged, reasonFrame, true},
		{"frame of a later version", up, func(p *period) []byte {
			f := p.frame(telemetry.LaneVitals, 7, 100)
			f[3] = '2'
			return f
		}, reasonFrame, true},
		{"not a frame", up, func(*period) []byte { return []byte("PID|1||4711") }, reasonFrame, false},
		{"empty payload", up, func(*period) []byte { return nil }, reasonFrame, false},
		{"alarm on the vitals topic", up, func(p *period) []byte { return p.frame(telemetry.LaneAlarm, 7, 100) }, reasonFrameLane, true},
		{"lane that the profile does not allow", telemetry.UpTopic("gw-1", telemetry.LaneWaveform), func(p *period) []byte { return p.frame(telemetry.LaneWaveform, 7, 100) }, reasonLane, true},
		{"topic of another gateway", telemetry.UpTopic("gw-2", telemetry.LaneVitals), func(p *period) []byte { return p.frame(telemetry.LaneVitals, 7, 100) }, reasonForeign, false},
		{"key topic of another gateway", telemetry.KeyTopic("gw-2"), func(p *period) []byte { return p.signed }, reasonForeign, false},
		{"unknown lane", "wl/1/gw-1/up/video", func(p *period) []byte { return p.frame(telemetry.LaneVitals, 7, 100) }, reasonTopic, false},
		{"down topic", telemetry.DownTopic("gw-1", telemetry.DocConfig), func(*period) []byte { return []byte("config") }, reasonTopic, false},
		{"system topic", "$SYS/x", func(*period) []byte { return []byte("x") }, reasonSystem, false},
		{"wildcard topic", "wl/1/gw-1/up/#", func(*period) []byte { return []byte("x") }, reasonTopic, false},
		{"sealing record that is none", telemetry.KeyTopic("gw-1"), func(*period) []byte { return []byte("x") }, reasonSealingRecord, false},
		{"sealing record that is too long", telemetry.KeyTopic("gw-1"), func(*period) []byte { return make([]byte, telemetry.MaxDocument+1) }, reasonTooLong, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, Limits{}, "gw-1", "gw-2")
			b.reg.change(func() { b.reg.lanes["gw-1"] = 1<<telemetry.LaneVitals | 1<<telemetry.LaneAlarm })
			p := newPeriod(t)
			c := b.connect("gw-1")
			c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
			c.expectPuback(1)
			c.send(publishPacket(0x32, tc.topic, 2, tc.frame(p)))
			c.send(publishPacket(0x32, up, 3, p.frame(telemetry.LaneVitals, 8, 10))) // what follows a refusal is not read
			if tc.told {
				checkRefusal(t, c.expect(kindPublish), tc.reason)
			}
			if seen := c.expectEnd(); len(seen) != 0 {
				t.Fatalf("after the refusal came %+v", seen)
			}
			eventually(t, "the end is journaled", func() bool { return len(b.journal.events(audit.SessionClosed)) == 1 })
			if rows := b.journal.rows(); len(rows) != 0 {
				t.Fatalf("committed: %+v", rows)
			}
			refused := b.journal.events(audit.Refused)
			if len(refused) != 1 || refused[0].Reason != tc.reason || refused[0].Outcome != audit.Denied || refused[0].Actor.ID == "" {
				t.Fatalf("refused: %+v", refused)
			}
			if end := b.journal.events(audit.SessionClosed)[0]; end.Reason != endRefused {
				t.Fatalf("session ended for %q", end.Reason)
			}
		})
	}
}

// TestSealingRecordMustFitItsBatches: a record that names the right sealing period and another epoch is no licence for its batches.
func TestSealingRecordMustFitItsBatches(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	p := newPeriod(t)
	record := p.p.Record()
	parsed := must(seal.ParseRecord(record))(t)
	for name, of := range map[string][]byte{"epoch": parsed.Epoch[:], "records key": parsed.Key[:]} {
		forged := bytes.Replace(record, of, make([]byte, len(of)), 1)
		if bytes.Equal(forged, record) {
			t.Fatalf("%s is not in the record as it is", name)
		}
		c := b.connect("gw-1")
		c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, must(seal.SignRecord(forged, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)))(t)))
		c.expectPuback(1)
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 7, 10)))
		checkRefusal(t, c.expect(kindPublish), reasonSealingEpoch)
		c.expectEnd()
	}
	if rows := b.journal.rows(); len(rows) != 0 {
		t.Fatalf("committed: %+v", rows)
	}
}

func checkRefusal(t *testing.T, body []byte, reason string) {
	t.Helper()
	n := int(binary.BigEndian.Uint16(body))
	topic, doc := string(body[2:2+n]), body[2+n:]
	if topic != telemetry.DownTopic("gw-1", telemetry.DocRefused) {
		t.Fatalf("refusal came on %q", topic)
	}
	r, err := telemetry.DecodeRefusal(doc)
	if err != nil || r.Reason != reason || r.Number != 7 {
		t.Fatalf("refusal %+v, %v; expected %q", r, err, reason)
	}
}

// TestRefusalIsAnsweredAfterWhatWasCommitted: a refusal must not cost the gateway the acknowledgements of the batches before it.
func TestRefusalIsAnsweredAfterWhatWasCommitted(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.hold()
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 0, 10)))
	c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 3, p.frame(telemetry.LaneAlarm, 1, 10)))
	eventually(t, "two publishes and the refusal", func() bool { return b.journal.queued() == 3 })
	b.journal.release()
	pubacks := 0
	for _, h := range c.expectEnd() {
		if h.kind == kindPuback {
			pubacks++
		}
	}
	if pubacks != 2 {
		t.Fatalf("%d PUBACKs, expected 2", pubacks)
	}
}

func TestTakeover(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1", "gw-2")
	older, bystander := b.connect("gw-1"), b.connect("gw-2")
	newer := b.connect("gw-1")
	if seen := older.expectEnd(); len(seen) != 0 {
		t.Fatalf("the older session was sent %+v", seen)
	}
	newer.send([]byte{0xc0, 0})
	newer.expect(kindPingresp)
	bystander.send([]byte{0xc0, 0})
	bystander.expect(kindPingresp)
	closed := b.journal.events(audit.SessionClosed)
	if len(closed) != 1 || closed[0].Reason != endTakeover || len(b.srv.Sessions()) != 2 {
		t.Fatalf("closed %+v, sessions %+v", closed, b.srv.Sessions())
	}
	// Another gateway's certificate cannot take the session over, whatever client id it names.
	thief := b.dial(b.ca.gateway("gw-2"))
	thief.send(connectPacket("gw-1", 60))
	thief.expectConnack(connackClientID)
	newer.send([]byte{0xc0, 0})
	newer.expect(kindPingresp)
}

func TestSubscribePushesDocuments(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	c.send(subscribePacket(9, telemetry.DownTopic("gw-1", telemetry.DocConfig), 1))
	if body := c.expect(kindSuback); !bytes.Equal(body, []byte{0, 9, 0}) {
		t.Fatalf("SUBACK %v", body)
	}
	if body := c.expect(kindPublish); !strings.HasSuffix(string(body), "config of gw-1") {
		t.Fatalf("pushed %q", body)
	}
	c.send(subscribePacket(10, telemetry.DownFilter("gw-1"), 0))
	c.expect(kindSuback)
	c.expect(kindPublish)
	c.expect(kindPublish)
	c.send([]byte{0x40, 2, 0, 1}, []byte{0xc0, 0})
	c.expect(kindPingresp)
	// They have changed; of gateways without a session nobody is told.
	for _, gateway := range []string{"gw-2", "gw-1"} {
		if err := b.srv.Push(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
	}
	if body := c.expect(kindPublish); !strings.HasSuffix(string(body), "config of gw-1") {
		t.Fatalf("pushed %q", body)
	}
	c.expect(kindPublish)
	c.send([]byte{0xc0, 0})
	c.expect(kindPingresp)
}

func TestDisconnectEndsInPeace(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	c.send([]byte{0xe0, 0})
	if _, _, err := c.packet(); !errors.Is(err, io.EOF) {
		t.Fatalf("expected the end, got %v", err)
	}
	c.conn.Close()
	eventually(t, "the end is journaled", func() bool { return len(b.journal.events(audit.SessionClosed)) == 1 })
	if ev := b.journal.events(audit.SessionClosed)[0]; ev.Reason != endDisconnect || ev.Outcome != audit.Success {
		t.Fatalf("%+v", ev)
	}
}

// TestDrainWaitsForNobodyWhoAskedForNothing: a connection without CONNECT must not hold up the server's end.
func TestDrainWaitsForNobodyWhoAskedForNothing(t *testing.T) {
	b := newBench(t, Limits{Connect: time.Hour}, "gw-1")
	c := b.dial(b.ca.gateway("gw-1"))
	eventually(t, "the connection waits", func() bool {
		b.srv.mu.Lock()
		defer b.srv.mu.Unlock()
		return len(b.srv.waiting) == 1
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.srv.Drain(ctx); err != nil {
		t.Fatalf("drain: %v", err)
	}
	c.conn.Close()
	if ev := b.journal.events(audit.Refused); len(ev) != 0 {
		t.Errorf("refused although nothing was asked: %+v", ev)
	}
}

func TestDrainAnswersWhatIsCommitted(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	b.journal.hold()
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	eventually(t, "the publish waits for its commit", func() bool { return b.journal.queued() == 1 })
	drained := make(chan error, 1)
	go func() { drained <- b.srv.Drain(t.Context()) }()
	eventually(t, "the session is draining", func() bool { return len(b.srv.Sessions()) == 0 })
	b.journal.release()
	c.expectPuback(1)
	if _, _, err := c.packet(); !errors.Is(err, io.EOF) {
		t.Fatalf("expected the end, got %v", err)
	}
	c.conn.Close()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	if ev := b.journal.events(audit.SessionClosed); len(ev) != 1 || ev[0].Reason != endDraining {
		t.Fatalf("%+v", ev)
	}
}
