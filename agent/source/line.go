package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/line"
)

// LineConfig is what a line socket needs. The fields that Config has too mean the same here.
type LineConfig struct {
	ID     string         // source id, not empty
	Socket Socket         //
	Users  []uint32       // who may send; with Groups empty as well: whoever may open the socket
	Groups []uint32       // by their primary group (SO_PEERCRED)
	Zone   *time.Location // of times that name none; nil is UTC
	Accept Accept         // must be set. It is given Delivery.ID
	Log    *slog.Logger   // nil discards
	Limits Limits         // PerAddress has no meaning here

	Bindings []Binding // by Device alone

	MaxConns                                                              int
	MaxMessage                                                            int
	IdleTimeout, FrameTimeout, WriteTimeout, StopTimeout, Backoff, Reopen time.Duration
}

// Line listens on a Unix socket for devices that send JSON lines or CBOR (telemetry/line). Limits, deadlines, counters and the rule of
// acknowledgements are MLLP's.
type Line struct {
	s   *MLLP
	cfg LineConfig
}

// NewLine checks cfg and makes the socket. One that cannot be made is no error, as with NewMLLP.
func NewLine(cfg LineConfig) (*Line, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("source %q: %w", cfg.ID, err)
	}
	if cfg.Accept == nil {
		return nil, fmt.Errorf("source %s: Accept is not set", cfg.ID)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	common := Config{
		ID: cfg.ID, Listen: cfg.Socket.Path, Zone: cfg.Zone, Accept: cfg.Accept, Log: cfg.Log.With("source", cfg.ID), MaxConns: cfg.MaxConns, MaxMessage: cfg.MaxMessage, Limits: cfg.Limits, Bindings: cfg.Bindings,
		IdleTimeout: cfg.IdleTimeout, FrameTimeout: cfg.FrameTimeout, WriteTimeout: cfg.WriteTimeout, StopTimeout: cfg.StopTimeout,
		Backoff: cfg.Backoff, Reopen: cfg.Reopen,
	}
	defaults(&common)
	l := &Line{s: newMLLP(common), cfg: cfg}
	l.s.bind, l.s.admit = cfg.Socket.listen, l.admit
	l.s.talk = func(ctx context.Context, c net.Conn) {
		(&lineConn{conn: &conn{s: l.s, c: c}, r: line.NewReader(c, common.MaxMessage)}).serve(ctx)
	}
	if err := l.s.listen(); err != nil {
		l.s.cfg.Log.Error("Devices cannot connect: the socket cannot be made; it is tried again", "error", err)
	}
	return l, nil
}

// Check says what NewLine would find wrong with the configuration, as Config.Check does.
func (c LineConfig) Check() error {
	if c.ID == "" {
		return errors.New("id: it is missing; expected a name for this source, such as pumps")
	}
	if err := checkLength(c.MaxMessage); err != nil {
		return err
	}
	if err := c.Socket.Check(); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	for i, b := range c.Bindings {
		if b.Device == "" || b.ID != "" {
			return fmt.Errorf("bindings[%d]: expected a device and its bed, such as {device: pump-3, bed: ICU-7}; on a socket a binding has nothing else to go by", i)
		}
	}
	if err := CheckBindings(c.Bindings, nil, false); err != nil {
		return err
	}
	return c.Limits.Check(c.MaxConns, cmp.Or(c.MaxMessage, telemetry.MaxMessage))
}

// ID is the source's id.
func (l *Line) ID() string { return l.s.ID() }

// Stats are the counters now. NotAllowed counts connections of users that are not listed.
func (l *Line) Stats() Stats { return l.s.Stats() }

// Run is MLLP.Run. At its end the socket's path is gone.
func (l *Line) Run(ctx context.Context) error { return l.s.Run(ctx) }

// admit asks the kernel who connected.
func (l *Line) admit(c net.Conn) (why string) {
	if len(l.cfg.Users) == 0 && len(l.cfg.Groups) == 0 {
		return ""
	}
	uid, gid, err := peerOf(c)
	if err == nil && (slices.Contains(l.cfg.Users, uid) || slices.Contains(l.cfg.Groups, gid)) {
		return ""
	}
	return "Closed a connection of a user that neither sources[].users nor sources[].groups lists"
}

// lineConn is one device's connection.
type lineConn struct {
	*conn
	r *line.Reader
}

// serve runs until the device leaves, a fault ends the connection, or ctx ends.
func (c *lineConn) serve(ctx context.Context) {
	defer c.c.Close()
	defer context.AfterFunc(ctx, c.stop)()
	for faults := 0; ; {
		raw, whole, err := c.next()
		var refused *line.RefusedError
		switch {
		case err == nil:
			c.s.meter.message(time.Now())
			var goesOn bool
			if goesOn, refused = c.message(ctx, raw); !goesOn {
				return
			}
			if !c.slow(ctx, len(raw)) {
				return
			}
		case errors.Is(err, line.ErrTooLong):
			refused = line.RefusedLong
			c.refuse(line.ID{}, refused, !whole) // a line that is too long goes on behind its end, CBOR nowhere
		case errors.Is(err, line.ErrFraming):
			refused = line.RefusedFrame
			c.refuse(line.ID{}, refused, true)
		default:
			c.left(err)
			return
		}
		// Only faults in a row tell that the peer does not speak this.
		if faults++; refused == nil || refused.Field != "message" {
			faults = 0
		}
		if err != nil && !whole || faults >= maxFaults {
			c.hangUp()
			return
		}
	}
}

// next reads one message. Waiting for it and reading it have deadlines of their own.
func (c *lineConn) next() (raw []byte, whole bool, err error) {
	if err := c.deadline(c.s.cfg.IdleTimeout); err != nil {
		return nil, false, err
	}
	if err := c.r.Await(); err != nil {
		return nil, false, err
	}
	if err := c.deadline(c.s.cfg.FrameTimeout); err != nil {
		return nil, false, err
	}
	return c.r.Next()
}

// message hands one message on and answers it. It tells whether the connection can go on, and why the message was refused if it was.
func (c *lineConn) message(ctx context.Context, raw []byte) (goesOn bool, refused *line.RefusedError) {
	cbor := line.IsCBOR(raw)
	m, id, err := line.Understand(raw, line.Options{Source: c.s.cfg.ID, Zone: c.s.cfg.Zone})
	if errors.As(err, &refused) {
		return c.refuse(id, refused, cbor), refused
	}
	c.s.bindings.bind(&m, nil, false)
	if len(m.Problems) > 0 {
		c.s.meter.notUnderstood.Add(1)
	}
	err = c.store(ctx, Delivery{Source: c.s.cfg.ID, Raw: raw, Message: m, ID: id.Text}, c.s.meter)
	switch {
	case errors.Is(err, ErrReused):
		return c.refuse(id, line.RefusedReused, cbor), line.RefusedReused
	case err != nil:
		return false, nil
	}
	// From here on the message and its id are durable, in one transaction. If the answer is lost, the device sends again and Accept
	// knows the message.
	if !c.write(line.OK(id, cbor)) {
		return false, nil
	}
	c.s.meter.acknowledged.Add(1)
	return true, nil
}

// refuse answers what is not taken. It tells whether the connection can go on.
func (c *lineConn) refuse(id line.ID, why *line.RefusedError, cbor bool) bool {
	c.s.refused.Add(1)
	c.s.warn("refused "+why.Field, "Refused a message", "why", why.Error())
	return c.write(line.Refusal(id, why, cbor))
}

func (c *lineConn) write(answer []byte) bool {
	err := c.c.SetWriteDeadline(time.Now().Add(c.s.cfg.WriteTimeout))
	if err == nil {
		_, err = c.c.Write(answer)
	}
	if err != nil {
		c.s.warn("write", "A device did not take its acknowledgement", "error", err)
	}
	return err == nil
}
