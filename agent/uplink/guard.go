package uplink

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/telemetry"
)

// guard is a connection that lets only the server's packets of our profile through to paho, which would otherwise allocate up to
// 256 MB at a header's word, and panics on a SUBACK with more codes than were asked for. The hospital's outer half may be broken
// into; that must not take the gateway down. It also puts a deadline on every 16 KB written (paho does so for publishes only, and for all of one) and tells
// at once when the connection is over.
type guard struct {
	net.Conn
	write time.Duration
	turn  chan struct{} // one place: paho writes its pings from another goroutine; they may not come between the pieces of a packet

	// The reader's place in the stream. Only paho's one reading goroutine comes here.
	first  byte
	length int // of the packet, as far as read
	shift  int
	body   int  // bytes of the body still to come
	inHead bool // between the first byte and the end of the length
	id     uint32

	asked atomic.Uint32 // the packet id of our SUBSCRIBE, and 1<<16. paho lets a SUBACK of any id acknowledge the publish that has it

	once sync.Once
	gone chan struct{}
	err  error // why; may be read once gone is closed
}

func newGuard(conn net.Conn, write time.Duration) *guard {
	return &guard{Conn: conn, write: write, turn: make(chan struct{}, 1), gone: make(chan struct{})}
}

var errProfile = errors.New("the server sent a packet outside of the profile; is it a wardlink server of another version?")

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if breach := g.inspect(p[:n]); breach != nil {
		n, err = 0, breach
	}
	if err != nil {
		g.end(err)
	}
	return n, err // crypto/tls gives the last bytes together with io.EOF
}

// writePiece is how much the network has to take before the deadline, which begins anew then: a line that is slow is not dead.
const writePiece = 16 << 10

func (g *guard) Write(p []byte) (n int, err error) {
	g.turn <- struct{}{} // whoever has it has a deadline
	defer func() { <-g.turn }()
	if len(p) > 4 && p[0] == 0x82 && p[1] < 0x80 { // paho writes a packet at once, and ours is short
		g.asked.Store(1<<16 | uint32(p[2])<<8 | uint32(p[3]))
	}
	for {
		if err := g.Conn.SetWriteDeadline(time.Now().Add(g.write)); err != nil {
			return n, err
		}
		took, err := g.Conn.Write(p[n:min(n+writePiece, len(p))])
		n += took
		if err != nil {
			g.end(err)
			return n, err
		}
		if n == len(p) {
			return n, nil
		}
	}
}

// Close ends the connection; also paho comes through here.
func (g *guard) Close() error {
	g.end(net.ErrClosed)
	return g.Conn.Close()
}

func (g *guard) end(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.gone)
	})
}

// inspect follows the packets. paho reads a header byte by byte, so that a length is refused before paho makes room for it; data
// that came along is not delivered.
func (g *guard) inspect(p []byte) error {
	for len(p) > 0 {
		switch {
		case g.body > 0:
			n := min(g.body, len(p))
			if g.first == 0x90 {
				n = 1
				if g.body > 1 { // the id comes before the code
					g.id = g.id<<8 | uint32(p[0])
				} else if 1<<16|g.id != g.asked.Load() {
					return errProfile
				}
			}
			g.body -= n
			p = p[n:]
		case !g.inHead:
			g.first, g.length, g.shift, g.inHead, g.id = p[0], 0, 0, true, 0
			p = p[1:]
		default:
			g.length |= int(p[0]&0x7f) << g.shift
			g.shift += 7
			more := p[0]&0x80 != 0
			p = p[1:]
			if more && g.shift < 28 {
				continue
			}
			if more || !expected(g.first, g.length) {
				return errProfile
			}
			g.body, g.inHead = g.length, false
		}
	}
	return nil
}

// expected reports whether the server may send such a packet (MQTT 3.1.1, table 2.1).
func expected(first byte, length int) bool {
	switch first {
	case 0x20, 0x40: // CONNACK, PUBACK
		return length == 2
	case 0x90: // SUBACK: we subscribe once, to one filter
		return length == 3
	case 0xd0: // PINGRESP
		return length == 0
	case 0x30: // PUBLISH at QoS 0, not retained
		return length >= 2 && length <= telemetry.MaxDocument+256
	default:
		return false
	}
}
