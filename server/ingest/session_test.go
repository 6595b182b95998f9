package ingest

import (
	"bytes"
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
		{"damaged frame", up, damaged, reasonFrame, false},
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

func TestBreachesOfTheProfile(t *testing.T) {
	up := telemetry.UpTopic("gw-1", telemetry.LaneVitals)
	for _, tc := range []struct {
		name   string
		packet []byte
		reason string
	}{
		{"second connect", connectPacket("gw-1", 60), reasonSecondConnect},
		{"qos 0", publishPacket(0x30, up, 0, []byte("x")), reasonQoS0},
		{"qos 2", publishPacket(0x34, up, 5, []byte("x")), reasonQoS2},
		{"qos 3", publishPacket(0x36, up, 5, []byte("x")), reasonMalformed},
		{"retain", publishPacket(0x33, up, 5, []byte("x")), reasonRetain},
		{"packet id 0", publishPacket(0x32, up, 0, []byte("x")), reasonPacketID},
		{"empty topic", publishPacket(0x32, "", 5, []byte("x")), reasonMalformed},
		{"topic with NUL", publishPacket(0x32, "wl\x00", 5, []byte("x")), reasonMalformed},
		{"topic not UTF-8", publishPacket(0x32, "wl\xff", 5, []byte("x")), reasonMalformed},
		{"topic longer than the packet", raw(0x32, []byte{0xff, 0xff, 'x'}), reasonMalformed},
		{"publish too long", appendLength([]byte{0x32}, maxPublish+1), reasonTooLong},
		{"pubrec", []byte{0x50, 2, 0, 1}, reasonPacketType},
		{"unsubscribe", raw(0xa2, append([]byte{0, 1}, str("wl/1/gw-1/down/#")...)), reasonPacketType},
		{"puback 0", []byte{0x40, 2, 0, 0}, reasonPacketID},
		{"ping with flags", []byte{0xc1, 0}, reasonFlags},
		{"subscribe to everything", subscribePacket(1, "#", 0), reasonFilter},
		{"subscribe to another gateway", subscribePacket(1, telemetry.DownFilter("gw-2"), 0), reasonFilter},
		{"subscribe to the up topics", subscribePacket(1, "wl/1/gw-1/up/#", 0), reasonFilter},
		{"subscribe to system topics", subscribePacket(1, "$SYS/#", 0), reasonSystem},
		{"subscribe with packet id 0", subscribePacket(0, telemetry.DownFilter("gw-1"), 0), reasonPacketID},
		{"subscribe at qos 3", subscribePacket(1, telemetry.DownFilter("gw-1"), 3), reasonMalformed},
		{"subscribe to nothing", raw(0x82, []byte{0, 1, 0, 0, 0, 0}), reasonMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, Limits{}, "gw-1")
			c := b.connect("gw-1")
			c.send(tc.packet)
			for _, h := range c.expectEnd() {
				if h.kind != kindSuback {
					t.Errorf("the server answered with packet %d", h.kind)
				}
			}
			eventually(t, "the end is journaled", func() bool { return len(b.journal.events(audit.SessionClosed)) == 1 })
			if refused := b.journal.events(audit.Refused); len(refused) != 1 || refused[0].Reason != tc.reason {
				t.Fatalf("refused: %+v, expected %q", refused, tc.reason)
			}
		})
	}
}

func TestRefusedConnects(t *testing.T) {
	body := func(flags byte, rest ...string) []byte {
		p := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 60}, str("gw-1")...)
		for _, r := range rest {
			p = append(p, str(r)...)
		}
		return raw(0x10, p)
	}
	for _, tc := range []struct {
		name   string
		packet []byte
		code   int // -1: closed without an answer
		reason string
	}{
		{"wrong client id", connectPacket("gw-2", 60), int(connackClientID), reasonClientID},
		{"empty client id", connectPacket("", 60), int(connackClientID), reasonClientID},
		{"mqtt 3.1", raw(0x10, append([]byte{0, 6, 'M', 'Q', 'I', 's', 'd', 'p', 3, 2, 0, 60}, str("gw-1")...)), int(connackProtocol), reasonProtocol},
		{"mqtt 5", raw(0x10, append([]byte{0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 0}, str("gw-1")...)), int(connackProtocol), reasonProtocol},
		{"clean session off", body(0x00), int(connackDenied), reasonSession},
		{"will", body(0x06, "topic", "payload"), int(connackDenied), reasonWill},
		{"user name", body(0x82, "user"), int(connackCredentials), reasonCredentials},
		{"password", body(0xc2, "user", "password"), int(connackCredentials), reasonCredentials},
		{"reserved flag", body(0x03), -1, reasonFlags},
		{"bytes after the client id", body(0x02, "more"), -1, reasonMalformed},
		{"publish first", publishPacket(0x32, "wl/1/gw-1/up/key", 1, []byte("x")), -1, reasonFirst},
		{"ping first", []byte{0xc0, 0}, -1, reasonFirst},
		{"http", []byte("GET / HTTP/1.1\r\n\r\n"), -1, reasonFlags},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, Limits{}, "gw-1", "gw-2")
			c := b.dial(b.ca.gateway("gw-1"))
			c.send(tc.packet)
			if tc.code >= 0 {
				c.expectConnack(byte(tc.code))
			}
			if seen := c.expectEnd(); len(seen) != 0 {
				t.Fatalf("the server answered %+v", seen)
			}
			refused := b.journal.events(audit.Refused)
			if len(refused) != 1 || refused[0].Reason != tc.reason || refused[0].Session != (audit.EventID{}) {
				t.Fatalf("refused: %+v, expected %q", refused, tc.reason)
			}
			if n := len(b.journal.events(audit.SessionOpened)); n != 0 {
				t.Fatalf("%d sessions were opened", n)
			}
		})
	}
}

func TestWrongCertificates(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	later := time.Now().Add(time.Hour)
	for _, tc := range []struct{ name, id, reason string }{
		{"operator", "spiffe://" + domain + "/operator/gw-1", reasonKind},
		{"access", "spiffe://" + domain + "/access/gw-1", reasonKind},
		{"service", "spiffe://" + domain + "/service/gw-1", reasonKind},
		{"other trust domain", "spiffe://other.example/gateway/gw-1", ""},
		{"not a SPIFFE id", "https://" + domain + "/gateway/gw-1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(b.journal.events(audit.Refused))
			c := b.dial(b.ca.issue(tc.id, later))
			_, _ = c.conn.Write(connectPacket("gw-1", 60)) // may already be closed
			if seen := c.expectEnd(); len(seen) != 0 {
				t.Fatalf("the server answered %+v", seen)
			}
			refused := b.journal.events(audit.Refused)
			if tc.reason == "" {
				if len(refused) != before {
					t.Fatalf("an unproven identity was journaled by itself: %+v", refused[before:])
				}
				return
			}
			if len(refused) != before+1 || refused[before].Reason != tc.reason || refused[before].Actor.ID != tc.id {
				t.Fatalf("refused: %+v", refused[before:])
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		c := b.dial()
		_, _ = c.conn.Write(connectPacket("gw-1", 60))
		if seen := c.expectEnd(); len(seen) != 0 {
			t.Fatalf("the server answered %+v", seen)
		}
	})
	if err := b.srv.refusals.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	var unproven uint64
	for _, ev := range b.journal.events(audit.RefusedPeers) {
		unproven += ev.Count
	}
	if unproven != 3 {
		t.Fatalf("%d refusals of unproven peers, expected 3", unproven)
	}
	if n := len(b.journal.events(audit.SessionOpened)); n != 0 {
		t.Fatalf("%d sessions were opened", n)
	}
}

func TestUnadmittedGateway(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	c := b.dial(b.ca.gateway("gw-9"))
	c.send(connectPacket("gw-9", 60))
	c.expectConnack(connackDenied)
	b.reg.change(func() { b.reg.err = errors.New("database is gone") })
	d := b.dial(b.ca.gateway("gw-1"))
	d.send(connectPacket("gw-1", 60))
	d.expectConnack(connackUnavailable)
	refused := b.journal.events(audit.Refused)
	if len(refused) != 2 || refused[0].Reason != reasonNotAdmitted || refused[1].Reason != reasonRegistry {
		t.Fatalf("refused: %+v", refused)
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
