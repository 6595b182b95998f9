package ingest

import (
	"bytes"
	"encoding/binary"
	"io"
	"unicode/utf8"

	"wardlink/telemetry"
)

// kind is an MQTT control packet type (MQTT 3.1.1, table 2.1). Only the types of our profile have a name here.
type kind byte

const (
	kindConnect    kind = 1
	kindConnack    kind = 2
	kindPublish    kind = 3
	kindPuback     kind = 4
	kindSubscribe  kind = 8
	kindSuback     kind = 9
	kindPingreq    kind = 12
	kindPingresp   kind = 13
	kindDisconnect kind = 14
)

// Bounds of one packet's remaining length, checked before anything is allocated. A CONNECT of the profile holds ten bytes, a
// client id of at most 63 and the agent's hello; a PUBLISH holds one of our topics (at most 63 + 20 bytes), a packet id and one frame.
const (
	maxConnect   = 256
	maxPublish   = telemetry.MaxFrame + 256
	maxSubscribe = 1024
	maxFilters   = 8
)

// header is a packet's fixed header.
type header struct {
	kind  kind
	flags byte // the low four bits of the first byte
	size  int  // remaining length: bytes that follow the fixed header
}

// violation is a breach of the profile or of MQTT. Its text is one of the constants of reasons.go and never holds a byte that the
// peer sent, so that it may be logged and journaled.
type violation struct{ reason string }

func (v violation) Error() string { return v.reason }

// readHeader reads a fixed header, of which have bytes are in scratch already, and refuses it by type, flags and length, before a byte of
// the body is read or room is made for it. Errors are violation, or those of r. The standard lets a length have bytes to spare
// (2.2.3 asks for no shortest form, as MQTT 5 does); we do not: no client writes that, and two spellings of one packet help only who
// wants two readers to disagree.
func readHeader(r io.Reader, scratch *[5]byte, have int) (header, error) {
	// Every packet has at least two bytes, so this never reads past the packet.
	if have < 2 {
		if _, err := io.ReadFull(r, scratch[have:2]); err != nil {
			return header{}, err
		}
	}
	h := header{kind: kind(scratch[0] >> 4), flags: scratch[0] & 0x0f}
	last := 1
	for scratch[last]&0x80 != 0 {
		if last == 4 {
			return h, violation{reasonMalformed}
		}
		last++
		if _, err := io.ReadFull(r, scratch[last:last+1]); err != nil {
			return h, unexpected(err)
		}
	}
	if last > 1 && scratch[last] == 0 {
		return h, violation{reasonMalformed} // a length in more bytes than it needs
	}
	for i := last; i >= 1; i-- {
		h.size = h.size<<7 | int(scratch[i]&0x7f)
	}
	return h, h.check()
}

// check holds the type, flags and length of a fixed header against the profile.
func (h header) check() error {
	least, most, flags := 0, 0, byte(0)
	switch h.kind {
	case kindConnect:
		least, most = 12, maxConnect
	case kindPublish:
		least, most, flags = 2, maxPublish, h.flags // judged by parsePublish, which can say more about them
	case kindPuback:
		least, most = 2, 2
	case kindSubscribe:
		least, most, flags = 6, maxSubscribe, 0x02
	case kindPingreq, kindDisconnect:
	default:
		return violation{reasonPacketType}
	}
	switch {
	case h.flags != flags:
		return violation{reasonFlags}
	case h.size > most:
		return violation{reasonTooLong}
	case h.size < least:
		return violation{reasonMalformed}
	}
	return nil
}

// readBody reads what follows the fixed header into a slice of its own, which the caller may keep.
func readBody(r io.Reader, h header) ([]byte, error) {
	if h.size == 0 {
		return nil, nil
	}
	body := make([]byte, h.size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, unexpected(err)
	}
	return body, nil
}

// unexpected turns the end of a stream inside a packet into what it is.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// field cuts a two-byte length and as many bytes off the front of b.
func field(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b)-2 < n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// textual reports whether b is a UTF-8 string as MQTT wants it (1.5.3): well-formed, without U+0000.
func textual(b []byte) bool {
	return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0
}

// connect is what a CONNECT of the profile says.
type connect struct {
	clientID  string
	keepAlive uint16          // seconds; 0 means none
	agent     telemetry.Hello // Build is "" when the agent named nothing
}

// parseConnect reads a CONNECT's body. What MQTT calls malformed comes first, since it has no answer (3.1.4-1); then what the profile
// leaves out is refused, which has one: protocol levels other than 4, wills, passwords, user names that are no Hello, and sessions
// that outlive the connection.
func parseConnect(body []byte) (connect, error) {
	name, rest, ok := field(body)
	if !ok || len(rest) < 4 {
		return connect{}, violation{reasonMalformed}
	}
	level, flags, keepAlive := rest[0], connectFlags(rest[1]), binary.BigEndian.Uint16(rest[2:])
	if string(name) != "MQTT" || level != 4 {
		return connect{}, violation{reasonProtocol}
	}
	if err := flags.check(); err != nil {
		return connect{}, err
	}
	id, user, ok := flags.payload(rest[4:])
	if !ok {
		return connect{}, violation{reasonMalformed}
	}
	switch {
	case flags&flagWill != 0:
		return connect{}, violation{reasonWill}
	case flags&flagPassword != 0:
		return connect{}, violation{reasonCredentials}
	case flags&flagClean == 0 && len(id) == 0:
		return connect{}, violation{reasonClientID} // 3.1.3-8
	case flags&flagClean == 0:
		return connect{}, violation{reasonSession}
	}
	out := connect{clientID: string(id), keepAlive: keepAlive, agent: telemetry.Hello{Versions: telemetry.Versions{Oldest: 1, Newest: 1}}}
	if flags&flagUser != 0 {
		var err error
		if out.agent, err = telemetry.ParseHello(string(user)); err != nil {
			return connect{}, violation{reasonCredentials}
		}
	}
	return out, nil
}

// connectFlags is a CONNECT's eighth byte (MQTT 3.1.1, 3.1.2.3).
type connectFlags byte

const (
	flagReserved   connectFlags = 0x01
	flagClean      connectFlags = 0x02
	flagWill       connectFlags = 0x04
	flagWillQoS    connectFlags = 0x18
	flagWillRetain connectFlags = 0x20
	flagPassword   connectFlags = 0x40
	flagUser       connectFlags = 0x80
)

// check refuses combinations that MQTT forbids.
func (f connectFlags) check() error {
	switch {
	case f&flagReserved != 0: // 3.1.2-3
		return violation{reasonFlags}
	case f&flagWill == 0 && f&(flagWillQoS|flagWillRetain) != 0: // 3.1.2-11, -13, -15
		return violation{reasonMalformed}
	case f&flagWillQoS == flagWillQoS: // 3.1.2-14
		return violation{reasonMalformed}
	case f&flagUser == 0 && f&flagPassword != 0: // 3.1.2-22
		return violation{reasonMalformed}
	}
	return nil
}

// payload takes the payload apart (3.1.3-1): it must hold just the fields that the flags announce.
func (f connectFlags) payload(b []byte) (id, user []byte, ok bool) {
	if id, b, ok = field(b); !ok || !textual(id) {
		return nil, nil, false
	}
	if f&flagWill != 0 {
		var topic []byte
		if topic, b, ok = field(b); !ok || len(topic) == 0 || !textual(topic) {
			return nil, nil, false
		}
		if _, b, ok = field(b); !ok { // the message is binary
			return nil, nil, false
		}
	}
	if f&flagUser != 0 {
		if user, b, ok = field(b); !ok || !textual(user) {
			return nil, nil, false
		}
	}
	if f&flagPassword != 0 {
		if _, b, ok = field(b); !ok {
			return nil, nil, false
		}
	}
	return id, user, len(b) == 0
}

// publish is a PUBLISH's body taken apart. Topic and payload alias the body.
type publish struct {
	topic   []byte
	id      uint16
	again   bool // DUP: its sender has sent it before
	payload []byte
}

// parsePublish reads a PUBLISH and refuses QoS 0 and 2, retain and packet id 0. The topic is judged by the session, which knows
// whose it may be.
func parsePublish(h header, body []byte) (publish, error) {
	switch h.flags >> 1 & 3 {
	case 1:
	case 0:
		return publish{}, violation{reasonQoS0}
	case 2:
		return publish{}, violation{reasonQoS2}
	default: // MQTT-3.3.1-4
		return publish{}, violation{reasonMalformed}
	}
	if h.flags&1 != 0 {
		return publish{}, violation{reasonRetain}
	}
	topic, rest, ok := field(body)
	if !ok || len(rest) < 2 || len(topic) == 0 || !textual(topic) {
		return publish{}, violation{reasonMalformed}
	}
	p := publish{topic: topic, id: binary.BigEndian.Uint16(rest), again: h.flags&8 != 0, payload: rest[2:]}
	if p.id == 0 {
		return publish{}, violation{reasonPacketID}
	}
	return p, nil
}

// subscribe is a SUBSCRIBE's body taken apart.
type subscribe struct {
	id      uint16
	filters []string
}

// parseSubscribe reads a SUBSCRIBE. The requested QoS must be valid; what is granted is always 0.
func parseSubscribe(body []byte) (subscribe, error) {
	if len(body) < 2 {
		return subscribe{}, violation{reasonMalformed}
	}
	s := subscribe{id: binary.BigEndian.Uint16(body)}
	if s.id == 0 {
		return s, violation{reasonPacketID}
	}
	for rest := body[2:]; len(rest) > 0; {
		filter, after, ok := field(rest)
		if !ok || len(after) < 1 || len(filter) == 0 || after[0] > 2 || !textual(filter) {
			return s, violation{reasonMalformed}
		}
		if len(s.filters) == maxFilters {
			return s, violation{reasonTooLong}
		}
		s.filters = append(s.filters, string(filter))
		rest = after[1:]
	}
	if len(s.filters) == 0 {
		return s, violation{reasonMalformed} // MQTT-3.8.3-3
	}
	return s, nil
}

// parsePuback reads a PUBACK's packet id.
func parsePuback(body []byte) (uint16, error) {
	if len(body) != 2 {
		return 0, violation{reasonMalformed}
	}
	id := binary.BigEndian.Uint16(body)
	if id == 0 {
		return 0, violation{reasonPacketID}
	}
	return id, nil
}

// CONNACK return codes (MQTT 3.1.1, table 3.1).
const (
	connackAccepted    byte = 0
	connackProtocol    byte = 1
	connackClientID    byte = 2
	connackUnavailable byte = 3
	connackCredentials byte = 4
	connackDenied      byte = 5
)

func appendConnack(b []byte, code byte) []byte {
	return append(b, byte(kindConnack)<<4, 2, 0, code)
}

func appendPuback(b []byte, id uint16) []byte {
	return append(b, byte(kindPuback)<<4, 2, byte(id>>8), byte(id))
}

func appendPingresp(b []byte) []byte {
	return append(b, byte(kindPingresp)<<4, 0)
}

// appendSuback answers a SUBSCRIBE of n filters with one code for all of them: 0 (granted at QoS 0) or 0x80 (failure).
func appendSuback(b []byte, id uint16, n int, code byte) []byte {
	b = append(b, byte(kindSuback)<<4, byte(2+n), byte(id>>8), byte(id)) // n <= maxFilters, so one length byte is enough
	for range n {
		b = append(b, code)
	}
	return b
}

// appendPublish appends a PUBLISH at QoS 0.
func appendPublish(b []byte, topic string, payload []byte) []byte {
	b = append(b, byte(kindPublish)<<4)
	b = appendLength(b, 2+len(topic)+len(payload))
	b = binary.BigEndian.AppendUint16(b, uint16(len(topic)))
	b = append(b, topic...)
	return append(b, payload...)
}

// appendLength appends a remaining length (MQTT 3.1.1, 2.2.3).
func appendLength(b []byte, n int) []byte {
	for n > 0x7f {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}
