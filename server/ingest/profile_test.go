package ingest

import (
	"errors"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
)

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
		{"subscribe to a document of another gateway", subscribePacket(1, telemetry.DownTopic("gw-2", telemetry.DocConfig), 0), reasonFilter},
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
		{"user name that is not there", body(0x82), -1, reasonMalformed},
		{"bytes after the hello", body(0x82, "wl/1-2/0.1.0", "more"), -1, reasonMalformed},
		{"hello that is none", body(0x82, "wl/2-1/0.1.0"), int(connackCredentials), reasonCredentials},
		{"agent too new", body(0x82, "wl/900-901/9.0.0"), int(connackProtocol), reasonVersions},
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
