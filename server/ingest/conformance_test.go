package ingest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/telemetry"
)

const bom = "\xef\xbb\xbf"

var (
	vitals = telemetry.UpTopic("gw-1", telemetry.LaneVitals)
	down   = telemetry.DownFilter("gw-1")
)

// connectBody is a CONNECT of gw-1 with these flags and, after the client id, these fields.
func connectBody(flags byte, id string, rest ...string) []byte {
	p := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 60}, str(id)...)
	for _, r := range rest {
		p = append(p, str(r)...)
	}
	return raw(0x10, p)
}

// closes sends packets on a session and expects the end, and that reason in the journal. The answers before the end are given.
func closes(t *testing.T, reason string, packets ...[]byte) []header {
	t.Helper()
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	c.send(packets...)
	seen := c.expectEnd()
	eventually(t, "the end is journaled", func() bool { return len(b.journal.events(audit.SessionClosed)) == 1 })
	if refused := b.journal.events(audit.Refused); len(refused) != 1 || refused[0].Reason != reason {
		t.Fatalf("refused: %+v, expected %q", refused, reason)
	}
	if rows := b.journal.rows(); len(rows) != 0 {
		t.Fatalf("committed: %+v", rows)
	}
	return seen
}

// refuses sends a CONNECT and expects a CONNACK with code, or none with -1, then the end; and no session.
func refuses(t *testing.T, code int, reason string, packets ...[]byte) {
	t.Helper()
	b := newBench(t, Limits{}, "gw-1")
	c := b.dial(b.ca.gateway("gw-1"))
	c.send(packets...)
	if code >= 0 {
		c.expectConnack(byte(code)) // session present is 0 there (3.2.2-4)
	}
	if seen := c.expectEnd(); len(seen) != 0 {
		t.Fatalf("the server answered %+v", seen)
	}
	if refused := b.journal.events(audit.Refused); len(refused) != 1 || refused[0].Reason != reason {
		t.Fatalf("refused: %+v, expected %q", refused, reason)
	}
	if n := len(b.journal.events(audit.SessionOpened)) + len(b.journal.rows()); n != 0 {
		t.Fatalf("%d sessions and batches", n)
	}
}

// batches is a session that has brought its sealing record.
func batches(t *testing.T) (*bench, *client, *period) {
	t.Helper()
	b := newBench(t, Limits{}, "gw-1")
	c := b.connect("gw-1")
	p := newPeriod(t)
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	c.expectPuback(1)
	return b, c, p
}

func (c *client) ping() {
	c.t.Helper()
	c.send([]byte{0xc0, 0})
	c.expect(kindPingresp)
}

func subscribeBody(id uint16, pairs ...any) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	for i := 0; i < len(pairs); i += 2 {
		b = append(append(b, str(pairs[i].(string))...), byte(pairs[i+1].(int)))
	}
	return raw(0x82, b)
}

// statements holds a test for each conformance statement of the standard's Appendix B that MQTT.md says is tested here.
var statements = map[string]func(t *testing.T){
	"MQTT-1.5.3-1": func(t *testing.T) {
		closes(t, reasonMalformed, publishPacket(0x32, "wl/1/gw-1/\xed\xa0\x80", 5, []byte("x"))) // U+D800
		closes(t, reasonMalformed, publishPacket(0x32, "wl/1/\xff", 5, []byte("x")))
		refuses(t, -1, reasonMalformed, connectPacket("gw\xed\xbf\xbf", 60)) // U+DFFF
		closes(t, reasonMalformed, subscribePacket(1, "wl/1/gw-1/\xc0\xaf", 0))
	},
	"MQTT-1.5.3-2": func(t *testing.T) {
		closes(t, reasonMalformed, publishPacket(0x32, "wl\x00", 5, []byte("x")))
		refuses(t, -1, reasonMalformed, connectPacket("gw-1\x00", 60))
		refuses(t, -1, reasonMalformed, connectBody(0x82, "gw-1", "wl/1-2/0.1.0\x00"))
		closes(t, reasonMalformed, subscribePacket(1, down+"\x00", 0))
	},
	"MQTT-1.5.3-3": func(t *testing.T) {
		refuses(t, int(connackClientID), reasonClientID, connectPacket(bom+"gw-1", 60))
		closes(t, reasonTopic, publishPacket(0x32, bom+vitals, 5, []byte("x")))
		closes(t, reasonFilter, subscribePacket(1, bom+down, 0))
	},
	"MQTT-2.2.2-1": func(t *testing.T) { // of what we send
		b, c, p := batches(t)
		must(0, b.srv.Push(t.Context(), "gw-1"))(t)
		c.send(subscribePacket(7, down, 1), publishPacket(0x32, vitals, 2, p.frame(telemetry.LaneVitals, 0, 9)), []byte{0xc0, 0})
		for kinds := map[kind]bool{}; len(kinds) < 4; {
			h, _, err := c.packet()
			if err != nil || h.flags != 0 {
				t.Fatalf("packet %d with flags %x, %v", h.kind, h.flags, err)
			}
			kinds[h.kind] = true
		}
	},
	"MQTT-2.2.2-2": func(t *testing.T) {
		for _, first := range []byte{0x11, 0x41, 0x80, 0x83, 0xc1, 0xe1} {
			reason := reasonFlags
			closes(t, reason, raw(first, make([]byte, map[byte]int{0x11: 20, 0x41: 2, 0x80: 8, 0x83: 8}[first])))
		}
		refuses(t, -1, reasonFlags, append([]byte{0x13}, connectPacket("gw-1", 60)[1:]...))
	},
	"MQTT-2.3.1-1": func(t *testing.T) {
		closes(t, reasonPacketID, publishPacket(0x32, vitals, 0, []byte("x")))
		closes(t, reasonPacketID, subscribePacket(0, down, 0))
	},
	"MQTT-2.3.1-2": testPacketIDInUse,
	"MQTT-2.3.1-3": testResentWithItsID,
	"MQTT-2.3.1-5": func(t *testing.T) { // of what we send; a client's are refused whole
		b := newBench(t, Limits{}, "gw-1")
		c := b.connect("gw-1")
		topic := telemetry.DownTopic("gw-1", telemetry.DocConfig)
		c.send(subscribePacket(9, topic, 2))
		c.expect(kindSuback)
		h, body, err := c.packet()
		if want := append(str(topic), "config of gw-1"...); err != nil || h.kind != kindPublish || h.flags != 0 || !bytes.Equal(body, want) {
			t.Fatalf("%+v %q, %v", h, body, err)
		}
		c.ping() // and it does not come again (4.3.1-1)
	},
	"MQTT-2.3.1-6": func(t *testing.T) {
		_, c, p := batches(t)
		for i, id := range []uint16{2, 65535, 256, 1} {
			c.send(publishPacket(0x32, vitals, id, p.frame(telemetry.LaneVitals, uint64(i), 9)))
			c.expectPuback(id)
		}
	},
	"MQTT-2.3.1-7": func(t *testing.T) {
		_, c, _ := batches(t)
		for _, id := range []uint16{1, 0x1234, 0xffff} {
			c.send(subscribePacket(id, telemetry.DownTopic("gw-1", telemetry.DocTime), 0))
			if body := c.expect(kindSuback); binary.BigEndian.Uint16(body) != id {
				t.Fatalf("SUBACK %v for %d", body, id)
			}
		}
	},
	"MQTT-3.1.0-1": func(t *testing.T) {
		refuses(t, -1, reasonFirst, publishPacket(0x32, vitals, 1, []byte("x")))
		refuses(t, -1, reasonFirst, []byte{0xc0, 0}, connectPacket("gw-1", 60))
		refuses(t, -1, reasonFirst, []byte{0xe0, 0})
	},
	"MQTT-3.1.0-2": func(t *testing.T) { closes(t, reasonSecondConnect, connectPacket("gw-1", 60)) },
	"MQTT-3.1.2-1": func(t *testing.T) {
		refuses(t, int(connackProtocol), reasonProtocol, raw(0x10, append([]byte{0, 4, 'm', 'q', 't', 't', 4, 2, 0, 60}, str("gw-1")...)))
		refuses(t, int(connackProtocol), reasonProtocol, raw(0x10, append([]byte{0, 6, 'M', 'Q', 'I', 's', 'd', 'p', 3, 2, 0, 60}, str("gw-1")...)))
	},
	"MQTT-3.1.2-2": func(t *testing.T) {
		for _, level := range []byte{0, 3, 5, 0x84} {
			refuses(t, int(connackProtocol), reasonProtocol, raw(0x10, append([]byte{0, 4, 'M', 'Q', 'T', 'T', level, 2, 0, 60}, str("gw-1")...)))
		}
	},
	"MQTT-3.1.2-3": func(t *testing.T) { refuses(t, -1, reasonFlags, connectBody(0x03, "gw-1")) },
	"MQTT-3.1.2-4": func(t *testing.T) { refuses(t, int(connackDenied), reasonSession, connectBody(0x00, "gw-1")) },
	"MQTT-3.1.2-6": func(t *testing.T) { // what a connection has brought is forgotten with it
		b, c, p := batches(t)
		c.send([]byte{0xe0, 0})
		c.expectEnd()
		again := b.connect("gw-1")
		again.send(publishPacket(0x32, vitals, 2, p.frame(telemetry.LaneVitals, 7, 9)))
		checkRefusal(t, again.expect(kindPublish), reasonSealing)
	},
	"MQTT-3.1.2-8": func(t *testing.T) {
		refuses(t, int(connackDenied), reasonWill, connectBody(0x0e, "gw-1", "topic", "will"))
	},
	"MQTT-3.1.2-9": func(t *testing.T) {
		refuses(t, -1, reasonMalformed, connectBody(0x06, "gw-1", "topic without a message"))
	},
	"MQTT-3.1.2-11": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x02, "gw-1", "topic", "will")) },
	"MQTT-3.1.2-13": func(t *testing.T) {
		refuses(t, -1, reasonMalformed, connectBody(0x0a, "gw-1"))
		refuses(t, -1, reasonMalformed, connectBody(0x12, "gw-1"))
	},
	"MQTT-3.1.2-14": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x1e, "gw-1", "topic", "will")) },
	"MQTT-3.1.2-15": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x22, "gw-1")) },
	"MQTT-3.1.2-18": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x02, "gw-1", "wl/1-2/0.1.0")) },
	"MQTT-3.1.2-19": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x82, "gw-1")) },
	"MQTT-3.1.2-20": func(t *testing.T) {
		refuses(t, -1, reasonMalformed, connectBody(0x82, "gw-1", "wl/1-2/0.1.0", "password"))
	},
	"MQTT-3.1.2-21": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0xc2, "gw-1", "user")) },
	"MQTT-3.1.2-22": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x42, "gw-1", "password")) },
	"MQTT-3.1.3-1": func(t *testing.T) { // another order is another meaning
		refuses(t, int(connackClientID), reasonClientID, connectBody(0x82, "wl/1-2/0.1.0", "wl/1-2/0.1.0"))
	},
	"MQTT-3.1.3-3": func(t *testing.T) {
		refuses(t, -1, reasonMalformed, raw(0x10, []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 9}))
	},
	"MQTT-3.1.3-4": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectPacket("gw-\xff", 60)) },
	"MQTT-3.1.3-5": func(t *testing.T) {
		refuses(t, int(connackClientID), reasonClientID, connectPacket("abcdefghijklmnopqrstuvw", 60))
	},
	"MQTT-3.1.3-6": func(t *testing.T) { refuses(t, int(connackClientID), reasonClientID, connectPacket("", 60)) },
	"MQTT-3.1.3-8": func(t *testing.T) { refuses(t, int(connackClientID), reasonClientID, connectBody(0x00, "")) },
	"MQTT-3.1.3-9": func(t *testing.T) { refuses(t, int(connackClientID), reasonClientID, connectPacket("gw-2", 60)) },
	"MQTT-3.1.3-10": func(t *testing.T) {
		refuses(t, -1, reasonMalformed, connectBody(0x06, "gw-1", "\xff", "will"))
		refuses(t, -1, reasonMalformed, connectBody(0x06, "gw-1", "", "will"))
	},
	"MQTT-3.1.3-11": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x82, "gw-1", "\xff")) },
	"MQTT-3.1.4-1":  func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x02, "gw-1", "more")) },
	"MQTT-3.1.4-4": func(t *testing.T) {
		b := newBench(t, Limits{}, "gw-1")
		c := b.dial(b.ca.gateway("gw-1"))
		c.send(connectPacket("gw-1", 60))
		c.expectConnack(connackAccepted)
		c.ping()
	},
	"MQTT-3.1.4-5": func(t *testing.T) { // with the refusal on its way the rest is thrown away
		refuses(t, int(connackClientID), reasonClientID, connectPacket("gw-2", 60), publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, newPeriod(t).signed), []byte{0xc0, 0})
	},
	"MQTT-3.2.0-1": func(t *testing.T) {
		b := newBench(t, Limits{}, "gw-1")
		c := b.dial(b.ca.gateway("gw-1"))
		c.send(append(connectPacket("gw-1", 60), 0xc0, 0)) // who does not wait for it gets it first all the same
		c.expectConnack(connackAccepted)
		c.expect(kindPingresp)
	},
	"MQTT-3.2.2-1": func(t *testing.T) { // also after a session of the same gateway
		b, _, _ := batches(t)
		b.connect("gw-1") // expectConnack wants session present to be 0
	},
	"MQTT-3.2.2-5": func(t *testing.T) {
		refuses(t, int(connackDenied), reasonSession, connectBody(0x00, "gw-1"), []byte{0xc0, 0})
	},
	"MQTT-3.2.2-6": func(t *testing.T) { refuses(t, -1, reasonMalformed, connectBody(0x12, "gw-1")) },
	"MQTT-3.3.1-3": func(t *testing.T) { // what answers a publish that has DUP has none
		_, c, p := batches(t)
		c.send(publishPacket(0x3a, telemetry.KeyTopic("gw-1"), 2, p.signed))
		if h, _, err := c.packet(); err != nil || h.kind != kindPuback || h.flags != 0 {
			t.Fatalf("%+v, %v", h, err)
		}
		c.send(publishPacket(0x3a, vitals, 3, newPeriod(t).frame(telemetry.LaneVitals, 7, 9)))
		h, body, err := c.packet()
		if err != nil || h.kind != kindPublish || h.flags != 0 {
			t.Fatalf("%+v, %v", h, err)
		}
		checkRefusal(t, body, reasonSealing)
	},
	"MQTT-3.3.1-4": func(t *testing.T) { closes(t, reasonMalformed, publishPacket(0x36, vitals, 5, []byte("x"))) },
	"MQTT-3.3.1-5": func(t *testing.T) { closes(t, reasonRetain, publishPacket(0x33, vitals, 5, []byte("x"))) },
	"MQTT-3.3.2-1": func(t *testing.T) {
		closes(t, reasonMalformed, raw(0x32, []byte{0xff, 0xff, 'x'}))
		closes(t, reasonMalformed, raw(0x32, append([]byte{0, 5}, str(vitals)...))) // the packet id first
		closes(t, reasonMalformed, publishPacket(0x32, "wl/1/gw-1/\xff", 5, []byte("x")))
	},
	"MQTT-3.3.2-2": testWildcardTopics,
	"MQTT-3.3.2-3": testOnlyWhatWasAskedFor,
	"MQTT-3.3.4-1": func(t *testing.T) {
		closes(t, reasonQoS0, publishPacket(0x30, vitals, 0, []byte("x")))
		closes(t, reasonQoS2, publishPacket(0x34, vitals, 5, []byte("x")))
	},
	"MQTT-3.3.5-2": func(t *testing.T) {
		closes(t, reasonForeign, publishPacket(0x32, telemetry.UpTopic("gw-2", telemetry.LaneVitals), 5, []byte("x")))
	},
	"MQTT-3.6.1-1": func(t *testing.T) {
		closes(t, reasonPacketType, []byte{0x62, 2, 0, 1})
		closes(t, reasonPacketType, []byte{0x60, 2, 0, 1})
	},
	"MQTT-3.8.1-1": func(t *testing.T) { closes(t, reasonFlags, append([]byte{0x80}, subscribePacket(1, down, 0)[1:]...)) },
	"MQTT-3.8.3-1": func(t *testing.T) { closes(t, reasonMalformed, subscribePacket(1, "wl/1/gw-1/\xff", 0)) },
	"MQTT-3.8.3-2": func(t *testing.T) { testSubackPerFilter(t); testWildcardFilters(t) },
	"MQTT-3.8.3-3": func(t *testing.T) {
		closes(t, reasonMalformed, raw(0x82, []byte{0, 1}))
		closes(t, reasonMalformed, raw(0x82, []byte{0, 1, 0, 0, 0, 0}))
	},
	"MQTT-3-8.3-4": func(t *testing.T) {
		closes(t, reasonMalformed, subscribePacket(1, down, 3))
		closes(t, reasonMalformed, subscribePacket(1, down, 0x81))
	},
	"MQTT-3.8.4-1":  testSubackPerFilter,
	"MQTT-3.8.4-3":  testSameFilterAgain,
	"MQTT-3.8.4-4":  func(t *testing.T) { testSubackPerFilter(t); testWildcardFilters(t) },
	"MQTT-3.8.4-5":  testSubackPerFilter,
	"MQTT-3.8.4-6":  testSubackPerFilter,
	"MQTT-3.9.3-1":  func(t *testing.T) { testSubackPerFilter(t); testWildcardFilters(t) },
	"MQTT-3.9.3-2":  func(t *testing.T) { testSubackPerFilter(t); testWildcardFilters(t) },
	"MQTT-3.10.1-1": func(t *testing.T) { closes(t, reasonPacketType, raw(0xa2, append([]byte{0, 1}, str(down)...))) },
	"MQTT-3.12.4-1": func(t *testing.T) { _, c, _ := batches(t); c.ping(); c.ping() },
	"MQTT-3.14.1-1": func(t *testing.T) {
		closes(t, reasonFlags, []byte{0xe2, 0})
		closes(t, reasonTooLong, []byte{0xe0, 1, 0})
	},
	"MQTT-3.14.4-2": func(t *testing.T) { // what comes after a DISCONNECT is not looked at
		b, c, p := batches(t)
		c.send(append([]byte{0xe0, 0}, publishPacket(0x32, vitals, 2, p.frame(telemetry.LaneVitals, 0, 9))...))
		if seen := c.expectEnd(); len(seen) != 0 || len(b.journal.rows()) != 0 {
			t.Fatalf("answered %+v, committed %+v", seen, b.journal.rows())
		}
	},
	"MQTT-4.3.2-2": func(t *testing.T) { // once acknowledged, the same id is another publish
		b, c, p := batches(t)
		for i := range 3 {
			c.send(publishPacket(0x32, vitals, 9, p.frame(telemetry.LaneVitals, uint64(i), 9)))
			c.expectPuback(9)
		}
		if rows := b.journal.rows(); len(rows) != 3 || rows[2].Number != 2 {
			t.Fatalf("committed: %+v", rows)
		}
	},
	"MQTT-4.7.1-2": testWildcardFilters,
	"MQTT-4.7.1-3": testWildcardFilters,
	"MQTT-4.7.2-1": func(t *testing.T) {
		closes(t, reasonFilter, subscribePacket(1, "+/monitor/Clients", 0))
		closes(t, reasonSystem, subscribePacket(1, "$SYS/#", 0))
	},
	"MQTT-4.7.3-1": func(t *testing.T) {
		closes(t, reasonMalformed, publishPacket(0x32, "", 5, []byte("x")))
		closes(t, reasonMalformed, subscribePacket(1, "", 0))
	},
	"MQTT-4.7.3-3": func(t *testing.T) { // as long as one can be; a filter that long has no room
		closes(t, reasonTopic, publishPacket(0x32, strings.Repeat("x", 65_535), 5, []byte("x")))
		closes(t, reasonTooLong, subscribePacket(1, strings.Repeat("x", 65_535), 0))
	},
	"MQTT-4.7.3-4": func(t *testing.T) { // neither case, nor an empty level, nor another form of a letter is forgiven
		for _, topic := range []string{strings.ToUpper(vitals), "/" + vitals, vitals + "/", strings.Replace(vitals, "/up/", "//up/", 1), strings.Replace(vitals, "a", "a\u0301", 1)} {
			closes(t, reasonTopic, publishPacket(0x32, topic, 5, []byte("x")))
		}
	},
	"MQTT-4.8.0-1": func(t *testing.T) {
		closes(t, reasonPacketType, []byte{0xf0, 0})
		closes(t, reasonPacketType, []byte{0x00, 0})
		closes(t, reasonPacketType, []byte{0x20, 2, 0, 0})
	},
}

// testPacketIDInUse: while a publish waits for its commit its id is taken.
func testPacketIDInUse(t *testing.T) {
	b, c, p := batches(t)
	b.journal.hold()
	c.send(publishPacket(0x32, vitals, 2, p.frame(telemetry.LaneVitals, 0, 9)), publishPacket(0x32, vitals, 3, p.frame(telemetry.LaneVitals, 1, 9)))
	eventually(t, "both wait", func() bool { return b.journal.queued() == 2 })
	c.send(publishPacket(0x32, vitals, 2, p.frame(telemetry.LaneVitals, 2, 9)))
	eventually(t, "the refusal waits with them", func() bool { return b.journal.queued() == 3 })
	b.journal.release()
	c.expectPuback(2)
	c.expectPuback(3)
	if seen := c.expectEnd(); len(seen) != 0 {
		t.Fatalf("then came %+v", seen)
	}
	if refused := b.journal.events(audit.Refused); len(refused) != 1 || refused[0].Reason != reasonInUse || len(b.journal.rows()) != 2 {
		t.Fatalf("refused %+v, committed %+v", refused, b.journal.rows())
	}
}

// testResentWithItsID: with DUP it is the same publish once more, and each is answered; the server's copies are told apart by the batch.
func testResentWithItsID(t *testing.T) {
	b, c, p := batches(t)
	frame := p.frame(telemetry.LaneVitals, 0, 9)
	b.journal.hold()
	c.send(publishPacket(0x32, vitals, 2, frame), publishPacket(0x3a, vitals, 2, frame))
	eventually(t, "both wait", func() bool { return b.journal.queued() == 2 })
	b.journal.release()
	c.expectPuback(2)
	c.expectPuback(2)
	c.ping()
	if rows := b.journal.rows(); len(rows) != 2 || rows[0].Number != rows[1].Number {
		t.Fatalf("committed: %+v", rows)
	}
}

func testWildcardTopics(t *testing.T) {
	for _, topic := range []string{"wl/1/gw-1/up/#", "wl/1/gw-1/up/+", "#", "+", "wl/1/+/up/vitals"} {
		closes(t, reasonTopic, publishPacket(0x32, topic, 5, []byte("x")))
	}
}

// testWildcardFilters: one filter with a wildcard is known. The others get the failure code, for each filter of the packet, and the end.
func testWildcardFilters(t *testing.T) {
	for _, filter := range []string{"#", "+", "wl/#", "wl/1/+/down/#", "wl/1/gw-1/down/+", "wl/1/gw-1/#/config", "wl/1/gw-1/down#", "wl/1/gw-1+/down/#"} {
		b := newBench(t, Limits{}, "gw-1")
		c := b.connect("gw-1")
		c.send(subscribeBody(5, telemetry.DownTopic("gw-1", telemetry.DocConfig), 0, filter, 0))
		if body := c.expect(kindSuback); !bytes.Equal(body, []byte{0, 5, 0x80, 0x80}) {
			t.Errorf("%s: SUBACK %v", filter, body)
		}
		if seen := c.expectEnd(); len(seen) != 0 {
			t.Errorf("%s: then came %+v", filter, seen)
		}
	}
}

// testSubackPerFilter: one SUBACK with the packet's id, a code for each filter in its place, and never more than QoS 0.
func testSubackPerFilter(t *testing.T) {
	_, c, _ := batches(t)
	config, hint := telemetry.DownTopic("gw-1", telemetry.DocConfig), telemetry.DownTopic("gw-1", telemetry.DocHint)
	c.send(subscribeBody(0x0102, hint, 2, config, 0, down, 1))
	if body := c.expect(kindSuback); !bytes.Equal(body, []byte{1, 2, 0, 0, 0}) {
		t.Fatalf("SUBACK %v", body)
	}
	c.expect(kindPublish)
	c.expect(kindPublish)
	c.ping()
}

// testSameFilterAgain: a second subscription takes the place of the first, and what there is comes again.
func testSameFilterAgain(t *testing.T) {
	b, c, _ := batches(t)
	for id := range uint16(3) {
		c.send(subscribePacket(10+id, down, 0))
		c.expect(kindSuback)
		c.expect(kindPublish)
		c.expect(kindPublish)
	}
	must(0, b.srv.Push(t.Context(), "gw-1"))(t)
	c.expect(kindPublish)
	c.expect(kindPublish)
	c.ping() // and no third
}

func testOnlyWhatWasAskedFor(t *testing.T) {
	_, c, _ := batches(t)
	for _, doc := range []telemetry.Doc{telemetry.DocHint, telemetry.DocConfig} {
		topic := telemetry.DownTopic("gw-1", doc)
		c.send(subscribePacket(3, topic, 0))
		c.expect(kindSuback)
		if body := c.expect(kindPublish); !bytes.HasPrefix(body, str(topic)) {
			t.Fatalf("asked for %s, pushed %q", topic, body)
		}
	}
	c.ping()
}

func TestConformance(t *testing.T) {
	for id, test := range statements {
		t.Run(id, test)
	}
}

// TestConformanceTable: each statement in MQTT.md has a test that exists, each test its row, and no statement that concerns a server is missing.
func TestConformanceTable(t *testing.T) {
	doc := string(must(os.ReadFile("MQTT.md"))(t))
	rows := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^\| (MQTT-[\d.-]+) \|.*\| ([^|]*) \|$`).FindAllStringSubmatch(doc, -1) {
		if _, twice := rows[m[1]]; twice {
			t.Errorf("%s has two rows", m[1])
		}
		rows[m[1]] = m[2]
	}
	own := regexp.MustCompile("`TestConformance/(MQTT-[\\d.-]+)`")
	for id, tests := range rows {
		if m := own.FindStringSubmatch(tests); m != nil {
			if statements[m[1]] == nil {
				t.Errorf("%s: no test %s", id, m[1])
			}
		} else if !strings.Contains(tests, "`Test") && !strings.Contains(tests, "`Fuzz") {
			t.Errorf("%s: its row names no test", id)
		}
	}
	for id := range statements {
		if !strings.Contains(rows[id], "`TestConformance/"+id+"`") {
			t.Errorf("%s is tested and has no row that says so", id)
		}
	}
	for _, id := range appendixB() {
		if rows[id] == "" && !strings.Contains(doc, id+",") && !strings.Contains(doc, id+";") && !strings.Contains(doc, id+".") {
			t.Errorf("%s is neither in the table nor among those that are left out", id)
		}
	}
}

// appendixB is the numbers of all normative statements of MQTT 3.1.1: by section, the last number in it.
func appendixB() (ids []string) {
	for _, s := range []struct {
		section string
		last    int
	}{
		{"1.5.3", 3}, {"2.2.2", 2}, {"2.3.1", 7}, {"3.1.0", 2}, {"3.1.2", 24}, {"3.1.3", 11}, {"3.1.4", 5}, {"3.2.0", 1}, {"3.2.2", 6}, {"3.3.1", 12},
		{"3.3.2", 3}, {"3.3.4", 1}, {"3.3.5", 2}, {"3.6.1", 1}, {"3.8.1", 1}, {"3.8.3", 3}, {"3.8.4", 6}, {"3.9.3", 2}, {"3.10.1", 1}, {"3.10.3", 2},
		{"3.10.4", 6}, {"3.12.4", 1}, {"3.14.1", 1}, {"3.14.4", 3}, {"4.1.0", 2}, {"4.2.0", 1}, {"4.3.1", 1}, {"4.3.2", 2}, {"4.3.3", 2}, {"4.4.0", 1},
		{"4.5.0", 2}, {"4.6.0", 6}, {"4.7.1", 3}, {"4.7.2", 1}, {"4.7.3", 4}, {"4.8.0", 2}, {"6.0.0", 4}, {"7.0.0", 2},
	} {
		for n := range s.last {
			ids = append(ids, fmt.Sprintf("MQTT-%s-%d", s.section, n+1))
		}
	}
	return append(slices.Clip(ids), "MQTT-3-8.3-4") // its hyphen is the standard's own
}
