package load

import (
	"bufio"
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// Dialer is how the gateways of a fleet get to one server.
type Dialer struct {
	Fleet *Fleet
	Addr  string
	// Ready is how long one connection is tried for, refusals and lost connections included, with the agents' waits between the tries.
	Ready time.Duration
	// Buffer is the size of the buffer that packets are read into; 0: 4 KB.
	Buffer int
	// Lasting asks for a session that outlives its connection. Ours refuses that.
	Lasting bool
	// Lost waits before the first attempt as well, as agents do whose connection was lost.
	Lost bool

	roots *x509.CertPool
}

// NewDialer gives the way to a server.
func NewDialer(f *Fleet, addr string) *Dialer {
	return &Dialer{Fleet: f, Addr: addr, Ready: time.Minute, roots: f.Roots()}
}

// Source is the address that a gateway comes from: its own within 127.0.0.0/8, 250 to a network, so that neither the ports of one
// address run out nor all gateways are one network to the server.
func Source(i int) *net.TCPAddr {
	return &net.TCPAddr{IP: net.IPv4(127, 1+byte(i/250/250), byte(i/250%250), 1+byte(i%250))}
}

// Wait is how long an agent waits before its next attempt (agent/uplink, backoff.go): full jitter below a ceiling that doubles from
// one second to five minutes.
func Wait(tries int) time.Duration {
	const least, most, floor = time.Second, 5 * time.Minute, 100 * time.Millisecond
	return floor + rand.N(min(least<<min(tries, 10), most)-floor)
}

// Conn is one gateway's MQTT session.
type Conn struct {
	Gateway string
	Tries   int           // attempts that it took
	Took    time.Duration // the last attempt: TCP, TLS, CONNECT
	clean   bool
	conn    *tls.Conn
	in      *bufio.Reader
}

// Connect makes a session for a gateway, and tries again as an agent does until d.Ready is over.
func (d *Dialer) Connect(ctx context.Context, i int) (*Conn, error) {
	cert, _, err := d.Fleet.Identity(i)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.Ready)
	defer cancel()
	waits := 0
	pause := func() bool {
		wait := time.NewTimer(Wait(waits))
		defer wait.Stop()
		waits++
		select {
		case <-ctx.Done():
			return false
		case <-wait.C:
			return true
		}
	}
	if d.Lost {
		pause()
	}
	for tries := 1; ; tries++ {
		c, err := d.once(ctx, i, cert)
		if err == nil {
			c.Tries = tries
			return c, nil
		}
		if !pause() {
			return nil, fmt.Errorf("gateway %s to %s: %w", Name(i), d.Addr, err)
		}
	}
}

func (d *Dialer) once(ctx context.Context, i int, cert tls.Certificate) (*Conn, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tcp, err := (&net.Dialer{LocalAddr: Source(i)}).DialContext(ctx, "tcp", d.Addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tcp, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "localhost", RootCAs: d.roots, Certificates: []tls.Certificate{cert}, NextProtos: []string{"mqtt"},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	c := &Conn{Gateway: Name(i), clean: !d.Lasting, conn: conn, in: bufio.NewReaderSize(conn, cmp.Or(d.Buffer, 4096))}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if err := c.hello(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	_ = conn.SetDeadline(time.Time{})
	c.Took = time.Since(began)
	return c, nil
}

// keepAlive is the agents', in seconds.
const keepAlive = 30

// hello sends CONNECT as the gateway and waits until the server takes it.
func (c *Conn) hello() error {
	flags := byte(0)
	if c.clean {
		flags = 2
	}
	body := append(text([]byte{}, "MQTT"), 4, flags, 0, keepAlive)
	if _, err := c.conn.Write(packet(nil, 0x10, text(body, c.Gateway))); err != nil {
		return err
	}
	kind, answer, err := c.next()
	if err != nil {
		return err
	}
	if kind != 0x20 || len(answer) != 2 || answer[1] != 0 {
		return fmt.Errorf("CONNECT is answered by %x %x", kind, answer)
	}
	return nil
}

// Close hangs up, without a word.
func (c *Conn) Close() error { return c.conn.NetConn().Close() }

// Subscribe asks for what others publish, or for the documents that ours pushes, at the given QoS, which must be granted.
func (c *Conn) Subscribe(filter string, qos byte) error {
	if _, err := c.conn.Write(packet(nil, 0x82, append(text([]byte{0, 1}, filter), qos))); err != nil {
		return err
	}
	first, body, err := c.next()
	if err == nil && (first != 0x90 || len(body) != 3 || body[2] != qos) {
		err = fmt.Errorf("SUBSCRIBE is answered by %x %x", first, body)
	}
	return err
}

// Take acknowledges what a subscription brings, until the connection ends. It tells how many came.
func (c *Conn) Take(count *atomic.Int64) error {
	var acks []byte
	for {
		first, body, err := c.next()
		if err != nil {
			return err
		}
		if first&0xf6 == 0x32 && len(body) > 4 {
			if n := 2 + int(binary.BigEndian.Uint16(body)); len(body) >= n+2 {
				count.Add(1)
				acks = append(acks, 0x40, 2, body[n], body[n+1])
			}
		}
		if c.in.Buffered() == 0 && len(acks) > 0 {
			if _, err := c.conn.Write(acks); err != nil {
				return err
			}
			acks = acks[:0]
		}
	}
}

// Leave ends the session in peace.
func (c *Conn) Leave() error {
	if _, err := c.conn.Write([]byte{0xe0, 0}); err != nil {
		return err
	}
	return c.conn.Close()
}

// Ping asks whether the server is there, as agents do every 30 s.
func (c *Conn) Ping() error {
	_, err := c.conn.Write([]byte{0xc0, 0})
	return err
}

// Idle reads until the connection ends, and gives why.
func (c *Conn) Idle() error {
	for {
		if _, _, err := c.next(); err != nil {
			return err
		}
	}
}

// maxPacket is longer than anything that a server has to say to a gateway.
const maxPacket = telemetry.MaxDocument + 256

// next reads a packet: its first byte and its body.
func (c *Conn) next() (first byte, body []byte, err error) {
	if first, err = c.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(c.in) // the same coding as MQTT's remaining length
	if err != nil {
		return 0, nil, err
	}
	if n > maxPacket {
		return 0, nil, fmt.Errorf("packet %x of %d bytes", first, n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c.in, body)
	return first, body, err
}

// acknowledged reads until a PUBACK and gives its packet id.
func (c *Conn) acknowledged() (uint16, error) {
	for {
		// Nearly every packet is a PUBACK: it is taken out of the buffer as it is.
		if head, err := c.in.Peek(4); err == nil && head[0] == 0x40 && head[1] == 2 {
			_, _ = c.in.Discard(4)
			return binary.BigEndian.Uint16(head[2:]), nil
		}
		first, body, err := c.next()
		if err != nil {
			return 0, err
		}
		if first>>4 == 3 && len(body) > 2 && len(body) >= 2+int(binary.BigEndian.Uint16(body)) {
			if _, doc, err := telemetry.ParseDown(string(body[2 : 2+binary.BigEndian.Uint16(body)])); err == nil && doc == telemetry.DocRefused {
				return 0, fmt.Errorf("a batch of %s is refused: %q", c.Gateway, body)
			}
		}
	}
}

// Batches seals what one gateway publishes: batches of one lane, numbered from 0.
type Batches struct {
	Gateway string
	Epoch   telemetry.Epoch
	Size    int // bytes of a frame
	Next    uint64
	// Plain gives what a batch says; nil: the same bytes in each. Sealed, both look alike.
	Plain func(number uint64) ([]byte, error)

	period *seal.Period
	signed []byte
	same   []byte
}

// overhead is what sealing adds: header 77, nonce 12, tag 16, hash 32.
const overhead = 137

// NewBatches begins a sealing period of a new epoch, and signs its record with the gateway's device key.
func NewBatches(f *Fleet, i, size int, key crypto.Signer) (*Batches, error) {
	records, err := seal.ParsePublicKey(f.Records)
	if err != nil {
		return nil, err
	}
	b := &Batches{Gateway: Name(i), Size: size, same: make([]byte, max(size-overhead, 0))}
	binary.BigEndian.PutUint64(b.Epoch[:], uint64(time.Now().UnixNano()))
	binary.BigEndian.PutUint64(b.Epoch[8:], rand.Uint64())
	if b.period, err = seal.NewPeriod(records, b.Epoch, time.Now()); err != nil {
		return nil, err
	}
	b.signed, err = seal.SignRecord(b.period.Record(), key)
	return b, err
}

// appendTo adds the PUBLISH of the next batch under a packet id.
func (b *Batches) appendTo(buf []byte, id uint16, now time.Time) ([]byte, error) {
	plain := b.same
	if b.Plain != nil {
		var err error
		if plain, err = b.Plain(b.Next); err != nil {
			return nil, err
		}
	}
	frame, err := b.period.Seal(seal.Header{Lane: telemetry.LaneVitals, Number: b.Next, Wall: now.UnixMilli(), Mono: int64(b.Next), Count: 1}, plain)
	if err != nil {
		return nil, err
	}
	b.Next++
	return publish(buf, telemetry.UpTopic(b.Gateway, telemetry.LaneVitals), id, frame), nil
}

// Bring publishes the sealing record of what will be published, and waits until it is acknowledged.
func (c *Conn) Bring(b *Batches) error {
	_ = c.conn.SetDeadline(time.Now().Add(30 * time.Second))
	defer c.conn.SetDeadline(time.Time{})
	if _, err := c.conn.Write(publish(nil, telemetry.KeyTopic(b.Gateway), 0xffff, b.signed)); err != nil {
		return err
	}
	if id, err := c.acknowledged(); err != nil || id != 0xffff {
		return fmt.Errorf("sealing record of %s: PUBACK %d, %w", b.Gateway, id, err)
	}
	return nil
}

func text(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func packet(b []byte, first byte, body []byte) []byte {
	return append(binary.AppendUvarint(append(b, first), uint64(len(body))), body...)
}

// publish adds a PUBLISH at QoS 1.
func publish(b []byte, topic string, id uint16, payload []byte) []byte {
	b = binary.AppendUvarint(append(b, 0x32), uint64(2+len(topic)+2+len(payload)))
	b = binary.BigEndian.AppendUint16(text(b, topic), id)
	return append(b, payload...)
}
