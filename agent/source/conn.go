package source

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"wardlink/telemetry/hl7"
)

// maxFaults is how many faults of framing in a row a connection survives: whoever makes that many does not speak MLLP.
const maxFaults = 3

// conn is one device's connection. Messages are taken one at a time: the next is read once this one is answered, so a device that
// does not wait is slowed by TCP itself.
type conn struct {
	s *MLLP
	c net.Conn
	r *hl7.Reader

	bound    *bound // by the connection's certificate or address; nil for none
	conflict bool   // these two are of different beds

	mu       sync.Mutex
	stopping bool
}

func newConn(s *MLLP, c net.Conn, by *bound, conflict bool) *conn {
	return &conn{s: s, c: c, r: hl7.NewReader(c, s.cfg.MaxMessage), bound: by, conflict: conflict}
}

// serve runs until the device leaves, a fault ends the connection, or ctx ends.
func (c *conn) serve(ctx context.Context) {
	defer c.c.Close()
	defer context.AfterFunc(ctx, c.stop)()
	faults := 0
	for {
		raw, err := c.next()
		switch {
		case err == nil:
			faults = 0 // only faults in a row tell that the peer does not speak MLLP
			if !c.message(ctx, raw) {
				return
			}
			if !c.slow(ctx, len(raw)) {
				return
			}
		case errors.Is(err, hl7.ErrTooLong):
			c.s.warn("long", "Refused an over-long message", "peer", c.c.RemoteAddr(), "limit", c.s.cfg.MaxMessage)
			// The rest of it is dropped as it comes, up to the next start of a frame: what the device has to say after it is not lost
			// with it. One that never ends ends the connection.
			if len(raw) > 0 && !c.refuse(raw, RefusedLong) || c.r.Lost() {
				c.hangUp()
				return
			}
		case errors.Is(err, hl7.ErrFraming):
			c.s.warn("framing", "Refused bytes that are no MLLP frame; expected <VT>message<FS><CR>", "peer", c.c.RemoteAddr())
			if faults++; !c.refuse(raw, RefusedFrame) || faults >= maxFaults {
				c.hangUp()
				return
			}
		default:
			c.left(err)
			return
		}
	}
}

// next reads one message. Waiting for it and reading it have deadlines of their own.
func (c *conn) next() ([]byte, error) {
	if err := c.deadline(c.s.cfg.IdleTimeout); err != nil {
		return nil, err
	}
	if err := c.r.Await(); err != nil {
		return nil, err
	}
	if err := c.deadline(c.s.cfg.FrameTimeout); err != nil {
		return nil, err
	}
	// One deadline for the whole message: a sender of a byte a minute must not hold a place for ever.
	return c.r.Next()
}

var errStopping = errors.New("source is stopping")

// deadline gives the next reads d, unless the source is stopping.
func (c *conn) deadline(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return errStopping
	}
	return c.c.SetReadDeadline(time.Now().Add(d))
}

// stop ends the wait for a message. One that was wholly read is still answered.
func (c *conn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	_ = c.c.SetReadDeadline(time.Now()) // fails only on a closed connection
}

// message hands one message on and acknowledges it. It tells whether the connection can go on.
func (c *conn) message(ctx context.Context, raw []byte) bool {
	s := c.s
	m, err := hl7.Understand(raw, hl7.Options{Source: s.cfg.ID, Zone: s.cfg.Zone})
	if err != nil {
		s.meter.message(time.Now())
		s.warn("msh", "Refused a message without usable MSH segment", "peer", c.c.RemoteAddr())
		return c.refuse(raw, RefusedHeader)
	}
	understood, meter := len(m.Problems) == 0, s.meter
	if b := s.bindings.bind(&m, c.bound, c.conflict); b != nil {
		if meter = b.meter; b.ID != "" {
			m.Source = b.ID
		}
	}
	meter.message(time.Now())
	if !understood {
		meter.notUnderstood.Add(1)
	}
	if err := c.store(ctx, Delivery{Source: m.Source, Raw: raw, Message: m}, meter); err != nil {
		return false
	}
	// From here on the message is durable. If the answer is lost, the device sends again and Accept knows the message.
	if answer := hl7.Ack(raw, hl7.Accept, "", time.Now()); answer != nil && !c.write(answer) {
		return false
	}
	meter.acknowledged.Add(1)
	if s.cfg.Acknowledged != nil {
		s.cfg.Acknowledged(m.Source, m.Digest)
	}
	return true
}

// store hands a message to Accept. Whatever the error, the device must get no acknowledgement.
func (c *conn) store(ctx context.Context, d Delivery, meter *meter) error {
	s := c.s
	// Accept must not see ctx end: a message that is read whole is finished although the source was told to stop.
	finish, cancel := c.grace(ctx)
	defer cancel()
	err := s.cfg.Accept(finish, d)
	switch {
	case err == nil:
		s.full.Store(0)
		return nil
	case errors.Is(err, ErrReused):
		return err
	}
	meter.failed.Add(1)
	s.warn("accept message", "A message could not be stored; its device gets no acknowledgement", "peer", c.c.RemoteAddr(), "error", err)
	if errors.Is(err, ErrFull) {
		c.holdBack(ctx)
	}
	return err
}

// slow holds the connection back where the limits say so. What was read is durable and acknowledged by then. It tells whether the
// connection goes on: not when the source was told to stop meanwhile.
func (c *conn) slow(ctx context.Context, n int) bool {
	d := c.s.throttle.take(time.Now(), n)
	if d <= 0 {
		return true
	}
	c.s.slowed.Add(1)
	c.s.warn("slowed", "Devices send more than the limits allow; they are read later, and nothing is dropped", "peer", c.c.RemoteAddr())
	wait(ctx, d)
	return ctx.Err() == nil
}

// grace is a context that outlives ctx by StopTimeout.
func (c *conn) grace(ctx context.Context) (context.Context, context.CancelFunc) {
	finish, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		wait(finish, c.s.cfg.StopTimeout)
		cancel()
	})
	return finish, func() {
		stop()
		cancel()
	}
}

// holdBack keeps the connection open without an answer. The pause grows with refusals of all devices together, since they share the
// buffer, and ends when the source stops.
func (c *conn) holdBack(ctx context.Context) {
	n := c.s.full.Add(1)
	wait(ctx, min(c.s.cfg.Backoff<<min(n-1, 5), 30*c.s.cfg.Backoff))
}

// refuse answers what is no message of ours. It tells whether the connection can go on.
func (c *conn) refuse(raw []byte, why string) bool {
	c.s.refused.Add(1)
	answer := hl7.Ack(raw, hl7.Reject, why, time.Now())
	return answer == nil || c.write(answer)
}

func (c *conn) write(msg []byte) bool {
	err := c.c.SetWriteDeadline(time.Now().Add(c.s.cfg.WriteTimeout))
	if err == nil {
		err = hl7.WriteFrame(c.c, msg)
	}
	if err != nil {
		c.s.warn("write", "A device did not take its acknowledgement", "peer", c.c.RemoteAddr(), "error", err)
	}
	return err == nil
}

// hangUp ends a connection whose peer may still be sending. To close it with bytes unread would reset it, and the answer could be
// lost on its way; so what comes is read and dropped, within a bound of bytes and time.
func (c *conn) hangUp() {
	if half, ok := c.c.(interface{ CloseWrite() error }); ok { // TCP, with or without TLS
		_ = half.CloseWrite() // the connection is closed next in any case
	}
	if c.deadline(min(c.s.cfg.FrameTimeout, time.Second)) == nil {
		_, _ = io.CopyN(io.Discard, c.c, 1<<20) // the deadline and the peer's end are the ends expected
	}
}

// left logs why a device's connection ended, where an operator can do something about it.
func (c *conn) left(err error) {
	var timeout net.Error
	switch {
	case errors.Is(err, errStopping), errors.Is(err, io.EOF):
	case c.isStopping():
	case errors.Is(err, io.ErrUnexpectedEOF):
		c.s.warn("cut", "A device left in the middle of a message, which is not acknowledged", "peer", c.c.RemoteAddr())
	case errors.As(err, &timeout) && timeout.Timeout():
		c.s.warn("slow", "Closed the connection of a device that went silent; a message it had begun is not acknowledged", "peer", c.c.RemoteAddr())
	default:
		c.s.cfg.Log.Debug("A device's connection ended", "peer", c.c.RemoteAddr(), "error", err)
	}
}

func (c *conn) isStopping() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}
