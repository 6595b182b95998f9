package bedside

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// MLLP frames a message as <VT> message <FS><CR> (HL7 v2 transport specification, MLLP release 1).
const (
	startOfBlock = 0x0b
	endOfBlock   = 0x1c
)

const (
	maxAck     = 64 << 10 // bytes of one acknowledgement
	firstPause = 50 * time.Millisecond
	longPause  = time.Second
)

// errRefused is a verdict that sending the same bytes again cannot change (CR or AR).
var errRefused = errors.New("the receiver rejected the message")

// errNotNow is a verdict that may change (CE or AE): the receiver could not take the message at this time.
var errNotNow = errors.New("the receiver could not take the message")

// Traffic counts what a connection lived through.
type Traffic struct {
	Connections int // opened
	Resent      int // messages that were sent once more
	Timeouts    int // acknowledgements that did not come in time; each costs its connection
	Stray       int // acknowledgements of some other message, passed over
	NotNow      int // CE or AE: sent again later
	Refused     int // CR or AR: given up
}

// client sends messages over MLLP, one at a time, each until its own acknowledgement came. One goroutine uses it; traffic may be
// read by any.
type client struct {
	address string
	timeout time.Duration
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	log     *slog.Logger

	conn   net.Conn
	reader *bufio.Reader
	fails  int // in a row; sets the pause before the next attempt

	mu    sync.Mutex
	count Traffic
}

func newClient(cfg Config) *client {
	c := &client{address: cfg.Address, timeout: cfg.AckTimeout, dial: cfg.Dial, log: cfg.Log}
	if c.dial == nil {
		c.dial = (&net.Dialer{}).DialContext
	}
	if cfg.TLS != nil {
		c.dial = overTLS(c.dial, cfg.TLS)
	}
	return c
}

// overTLS dials and completes the handshake; the server's name is the address's host unless conf names another.
func overTLS(dial func(context.Context, string, string) (net.Conn, error), conf *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conf := conf.Clone()
		if conf.ServerName == "" {
			conf.ServerName, _, _ = net.SplitHostPort(address)
		}
		raw, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, conf)
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return conn, nil
	}
}

// connect returns once there is a connection, however often it must try.
func (c *client) connect(ctx context.Context) error {
	for c.conn == nil {
		dialing, cancel := context.WithTimeout(ctx, c.timeout)
		conn, err := c.dial(dialing, "tcp", c.address)
		cancel()
		if err != nil {
			c.log.Debug("mllp dial failed", "address", c.address, "error", err)
			if err := c.backOff(ctx); err != nil {
				return err
			}
			continue
		}
		c.conn, c.reader = conn, bufio.NewReader(conn)
		c.add(func(t *Traffic) { t.Connections++ })
	}
	return ctx.Err()
}

// deliver sends the message, the same bytes each time, until its own acknowledgement accepts it (nil) or rejects it
// (errRefused). Otherwise only ctx ends it.
func (c *client) deliver(ctx context.Context, id string, message []byte) error {
	for attempt := 0; ; attempt++ {
		if err := c.connect(ctx); err != nil {
			return err
		}
		if attempt > 0 {
			c.add(func(t *Traffic) { t.Resent++ })
		}
		err := c.exchange(ctx, id, message)
		switch {
		case err == nil:
			c.fails = 0
			return nil
		case errors.Is(err, errRefused):
			c.fails = 0 // the connection works; it is the message that does not
			c.add(func(t *Traffic) { t.Refused++ })
			return err
		case errors.Is(err, errNotNow):
			// An answer in good order: the connection stays, and the same bytes go out again after a pause.
			c.add(func(t *Traffic) { t.NotNow++ })
		default:
			// The acknowledgement may still be under way. On this connection it would meet the next message, so the
			// connection ends here.
			c.close()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if isTimeout(err) {
				c.add(func(t *Traffic) { t.Timeouts++ })
			}
		}
		c.log.Debug("mllp exchange failed", "control_id", id, "error", err)
		if err := c.backOff(ctx); err != nil {
			return err
		}
	}
}

// exchange writes one message and reads until the acknowledgement that names it: MSA-2 equals MSH-10. Taking whatever comes
// for the answer is how monitors come to believe that a lost message arrived. After any error but a verdict the state of the
// connection is unknown.
func (c *client) exchange(ctx context.Context, id string, message []byte) error {
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	if ctx.Err() != nil { // it may have ended before the line above moved the deadline out again
		return ctx.Err()
	}
	frame := make([]byte, 0, len(message)+3)
	frame = append(frame, startOfBlock)
	frame = append(frame, message...)
	frame = append(frame, endOfBlock, '\r')
	if _, err := conn.Write(frame); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	for {
		raw, err := readBlock(c.reader)
		if err != nil {
			return fmt.Errorf("wait for acknowledgement: %w", err)
		}
		ack, err := parseAck(raw)
		if err != nil {
			return err
		}
		if ack.of == id {
			return ack.verdict()
		}
		c.add(func(t *Traffic) { t.Stray++ })
	}
}

// backOff waits before the next attempt, each time longer up to longPause, with jitter so that a ward's monitors do not return
// as one.
func (c *client) backOff(ctx context.Context) error {
	d := min(firstPause<<min(c.fails, 10), longPause)
	c.fails++
	return pause(ctx, d/2+rand.N(d/2))
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn, c.reader = nil, nil
	}
}

func (c *client) add(f func(*Traffic)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.count)
}

func (c *client) traffic() Traffic {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// readBlock reads one MLLP block. Bytes before its start, such as the CR that ended the block before, are passed over.
func readBlock(r *bufio.Reader) ([]byte, error) {
	for skipped := 0; ; skipped++ {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		if b == startOfBlock {
			break
		}
		if skipped == maxAck {
			return nil, errors.New("mllp: no start of block")
		}
	}
	var block []byte
	for {
		b, err := r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case b == endOfBlock:
			return block, nil
		case len(block) == maxAck:
			return nil, fmt.Errorf("mllp: acknowledgement is longer than %d bytes", maxAck)
		}
		block = append(block, b)
	}
}

// ack is an acknowledgement's MSA segment.
type ack struct {
	code string // MSA-1
	of   string // MSA-2: MSH-10 of the message it answers
}

// verdict is nil when the message was accepted: CA in enhanced mode, AA from receivers that answer in original mode regardless.
func (a ack) verdict() error {
	switch a.code {
	case "CA", "AA":
		return nil
	case "CE", "AE":
		return fmt.Errorf("%w: %s", errNotNow, a.code)
	case "CR", "AR":
		return fmt.Errorf("%w: %s", errRefused, a.code)
	}
	return fmt.Errorf("acknowledgement code %q; expected CA, CE, CR, AA, AE or AR", a.code)
}

// parseAck finds the MSA segment. The last segment may lack its CR, and LF is taken for one, as some receivers write it.
func parseAck(raw []byte) (ack, error) {
	segments := bytes.FieldsFunc(raw, func(r rune) bool { return r == '\r' || r == '\n' })
	if len(segments) == 0 || len(segments[0]) < 4 || !bytes.HasPrefix(segments[0], []byte("MSH")) {
		return ack{}, errors.New("acknowledgement does not begin with MSH")
	}
	separator := segments[0][3:4]
	for _, s := range segments[1:] {
		fields := bytes.SplitN(s, separator, 4)
		if len(fields) >= 3 && string(fields[0]) == "MSA" {
			return ack{code: string(fields[1]), of: string(fields[2])}, nil
		}
	}
	return ack{}, errors.New("acknowledgement has no MSA segment with two fields")
}
