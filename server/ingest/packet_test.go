package ingest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	paho "github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/telemetry"
)

// endless counts what is read of it; a length must be refused before its body is touched.
type endless struct {
	head []byte
	read int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.head[min(e.read, len(e.head)):])
	if n == 0 {
		n = len(p)
	}
	e.read += n
	return n, nil
}

func TestHeaderRefusesLengthsBeforeTheBody(t *testing.T) {
	for _, tc := range []struct {
		name   string
		head   []byte
		reason string
	}{
		{"publish of 256 MB", []byte{0x32, 0xff, 0xff, 0xff, 0x7f}, reasonTooLong},
		{"publish one byte over", appendLength([]byte{0x32}, maxPublish+1), reasonTooLong},
		{"connect one byte over", appendLength([]byte{0x10}, maxConnect+1), reasonTooLong},
		{"subscribe one byte over", appendLength([]byte{0x82}, maxSubscribe+1), reasonTooLong},
		{"five length bytes", []byte{0x32, 0xff, 0xff, 0xff, 0xff, 0x01}, reasonMalformed},
		{"length in two bytes where one is enough", []byte{0xc0, 0x80, 0x00}, reasonMalformed},
		{"connect without its fields", []byte{0x10, 0x05}, reasonMalformed},
		{"ping with a body", []byte{0xc0, 0x01}, reasonTooLong},
		{"puback of three bytes", []byte{0x40, 0x03}, reasonTooLong},
		{"disconnect with flags", []byte{0xe1, 0x00}, reasonFlags},
		{"subscribe with flags 0", []byte{0x80, 0x08}, reasonFlags},
		{"connack from a client", []byte{0x20, 0x02}, reasonPacketType},
		{"pubrel", []byte{0x62, 0x02}, reasonPacketType},
		{"unsubscribe", []byte{0xa2, 0x06}, reasonPacketType},
		{"type 0", []byte{0x00, 0x00}, reasonPacketType},
		{"type 15", []byte{0xf0, 0x00}, reasonPacketType},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := &endless{head: tc.head}
			var scratch [5]byte
			_, err := readHeader(src, &scratch, 0)
			var v violation
			if !errors.As(err, &v) || v.reason != tc.reason {
				t.Fatalf("got %v, expected %q", err, tc.reason)
			}
			if src.read > len(tc.head) {
				t.Fatalf("%d bytes read, the header has %d", src.read, len(tc.head))
			}
		})
	}
}

func TestLengthsRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 16383, 16384, maxPublish} {
		head := appendLength([]byte{0x32}, n)
		var scratch [5]byte
		h, err := readHeader(bytes.NewReader(head), &scratch, 0)
		if n < 2 { // no PUBLISH is that short
			if err == nil {
				t.Errorf("length %d was accepted", n)
			}
			continue
		}
		if err != nil || h.size != n {
			t.Errorf("length %d came back as %d, %v", n, h.size, err)
		}
	}
}

// FuzzPacket holds the reader against paho's decoder as an oracle: what we accept, paho reads the same way. (Paho accepts more.)
func FuzzPacket(f *testing.F) {
	for _, seed := range packetSeeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var scratch [5]byte
		r := bytes.NewReader(data)
		h, err := readHeader(r, &scratch, 0)
		if err != nil {
			return
		}
		if h.size > maxPublish {
			t.Fatalf("length %d got through", h.size)
		}
		body, err := readBody(r, h)
		if err != nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("body: %v", err)
			}
			return
		}
		oracle, oracleErr := paho.ReadPacket(bytes.NewReader(data))
		switch h.kind {
		case kindConnect:
			c, err := parseConnect(body)
			if err != nil {
				return
			}
			o, ok := oracle.(*paho.ConnectPacket)
			if oracleErr != nil || !ok || o.ClientIdentifier != c.clientID || o.Keepalive != c.keepAlive || !o.CleanSession ||
				o.ProtocolVersion != 4 || o.WillFlag || o.UsernameFlag != (c.agent.Build != "") || o.PasswordFlag {
				t.Fatalf("CONNECT %+v, paho reads %v, %v", c, oracle, oracleErr)
			}
		case kindPublish:
			p, err := parsePublish(h, body)
			if err != nil {
				return
			}
			o, ok := oracle.(*paho.PublishPacket)
			// paho's reader gives io.EOF for an empty payload, which MQTT allows.
			if (oracleErr != nil && len(p.payload) > 0) || !ok || o.TopicName != string(p.topic) || o.MessageID != p.id ||
				!bytes.Equal(o.Payload, p.payload) || o.Qos != 1 || o.Retain {
				t.Fatalf("PUBLISH %+v, paho reads %v, %v", p, oracle, oracleErr)
			}
		case kindSubscribe:
			s, err := parseSubscribe(body)
			if err != nil {
				return
			}
			if len(s.filters) == 0 || len(s.filters) > maxFilters || s.id == 0 {
				t.Fatalf("SUBSCRIBE %+v", s)
			}
		case kindPuback:
			if id, err := parsePuback(body); err == nil && id == 0 {
				t.Fatal("PUBACK 0 got through")
			}
		}
	})
}

func packetSeeds() [][]byte {
	topic := telemetry.UpTopic("gw-1", telemetry.LaneVitals)
	return [][]byte{
		connectPacket("gw-1", 60),
		publishPacket(0x32, topic, 1, []byte("frame")),
		publishPacket(0x3a, topic, 65535, nil),
		publishPacket(0x30, topic, 0, []byte("qos 0")),
		publishPacket(0x34, topic, 2, []byte("qos 2")),
		publishPacket(0x33, topic, 3, []byte("retain")),
		publishPacket(0x32, telemetry.KeyTopic("gw-1"), 4, []byte{0xa3}),
		publishPacket(0x32, "$SYS/broker", 5, nil),
		subscribePacket(6, telemetry.DownFilter("gw-1"), 1),
		subscribePacket(7, telemetry.DownTopic("gw-1", telemetry.DocConfig), 0),
		raw(0x40, []byte{0, 1}), {0xc0, 0}, {0xe0, 0}, {0x32, 0xff, 0xff, 0xff, 0x7f}, {0x10, 0x80},
		raw(0x10, append([]byte{0, 6, 'M', 'Q', 'I', 's', 'd', 'p', 3, 2, 0, 60}, str("gw-1")...)),
	}
}
