package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/internal/listener"
	"wardlink/telemetry"
)

// Config is what an MLLP source needs. Zero durations and counts mean the defaults given.
type Config struct {
	ID     string         // source id, not empty
	Listen string         // address:port; an IP address, localhost, or empty for all addresses
	Allow  []netip.Prefix // peers that may connect; must not be empty unless Listen is a loopback address
	Zone   *time.Location // of times that name none; nil is UTC
	Accept Accept         // must be set

	// Acknowledged, if set, is told source id and SHA-256 of each message once its acknowledgement was written to the socket (or at once,
	// when the device wants none): from then on the same bytes are a new message, not a resend.
	Acknowledged func(source string, digest [32]byte)

	Bindings []Binding // of devices to beds; CheckBindings must find no fault with them
	Limits   Limits    // of what all devices together may bring
	TLS      *TLS      // nil: devices do not speak TLS

	Log *slog.Logger // nil discards

	MaxConns     int           // connections at a time: 200; at most MaxConns
	MaxMessage   int           // bytes of one message: telemetry.MaxMessage, which is also the most
	IdleTimeout  time.Duration // between messages: 2 h, since monitors are set to report as rarely as once an hour
	FrameTimeout time.Duration // from a message's first byte to its last: 30 s
	WriteTimeout time.Duration // of one acknowledgement: 10 s
	StopTimeout  time.Duration // for messages under way when Run is told to stop: 10 s
	// Backoff is how long a connection is held back when the buffer is full. It doubles with each further refusal, up to 30 times
	// itself, and starts anew once a message was accepted: 1 s.
	Backoff time.Duration
	// Reopen is how long after a failure the port is tried again. It doubles up to 30 times itself: 1 s.
	Reopen time.Duration
}

// MLLP listens for HL7 v2 devices.
type MLLP struct {
	cfg   Config
	slots chan struct{} // one token for each open connection

	meter    *meter // of what has the source's own id
	bindings *bindings
	throttle *throttle
	places   places
	tls      *secured // nil without TLS

	refused, notAllowed, overLimit, slowed tally
	full                                   atomic.Int32 // refusals for want of room in a row

	// What a line socket does in its own way.
	bind  func() (net.Listener, error)
	admit func(net.Conn) (why string) // "": the connection is welcome
	talk  func(context.Context, net.Conn)

	mu       sync.Mutex
	listener net.Listener         // nil while the port cannot be had
	trouble  string               // why it cannot
	warned   map[string]time.Time // when a kind of warning was last logged
}

// NewMLLP checks cfg, whose faults are errors, and opens the port. A port that cannot be had is no error: it may be free, or the
// address may be there, in a minute, and neither the other sources nor the uplink depend on it. Stats tell, and Run tries again.
// Devices are served once Run is called; Run also closes the listener.
func NewMLLP(cfg Config) (*MLLP, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("source %q: %w", cfg.ID, err)
	}
	if cfg.Accept == nil {
		return nil, fmt.Errorf("source %s: Accept is not set", cfg.ID)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("source", cfg.ID)
	defaults(&cfg)
	s := newMLLP(cfg)
	s.bind, s.admit, s.talk = s.bindTCP, s.admitTCP, s.serve
	if cfg.TLS != nil {
		if s.tls = newSecured(*cfg.TLS); s.tls.trouble != "" {
			cfg.Log.Error("Devices cannot connect: the certificate for them cannot be used; it is tried again at each connection", "error", s.tls.trouble)
		}
	}
	if err := s.listen(); err != nil {
		cfg.Log.Error("Devices cannot connect: the port cannot be opened; it is tried again", "error", err)
	}
	return s, nil
}

// Check says what NewMLLP would find wrong with the configuration, as keys of the file; Accept need not be set for it. It opens nothing and
// looks at no file.
func (c Config) Check() error {
	if c.ID == "" {
		return errors.New("id: it is missing; expected a name for this source, such as bed-12")
	}
	if err := checkLength(c.MaxMessage); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("mllp: %q; expected address:port, such as 127.0.0.1:2575", c.Listen)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("mllp: %q; expected a port from 1 to 65535, as in 127.0.0.1:2575", c.Listen)
	}
	if addr, err := netip.ParseAddr(host); len(c.Allow) == 0 && host != "localhost" && (err != nil || !addr.IsLoopback()) {
		return needAllow(c.Listen)
	}
	if err := CheckBindings(c.Bindings, c.Allow, c.TLS != nil && c.TLS.ClientCA != ""); err != nil {
		return err
	}
	return c.Limits.Check(c.MaxConns, cmp.Or(c.MaxMessage, telemetry.MaxMessage))
}

func checkLength(maxMessage int) error {
	if maxMessage > telemetry.MaxMessage {
		return fmt.Errorf("MaxMessage is %d; at most %d bytes fit into a batch", maxMessage, telemetry.MaxMessage)
	}
	return nil
}

func newMLLP(cfg Config) *MLLP {
	s := &MLLP{
		cfg: cfg, slots: make(chan struct{}, cfg.MaxConns), warned: map[string]time.Time{}, meter: &meter{}, throttle: newThrottle(cfg.Limits),
		places: places{of: map[netip.Addr]int{}, max: cmp.Or(cfg.Limits.PerAddress, max(1, cfg.MaxConns*3/4))},
	}
	s.bindings = newBindings(cfg.Bindings, s.meter)
	return s
}

func (s *MLLP) bindTCP() (net.Listener, error) {
	l, err := listener.Listen(s.cfg.Listen)
	if err != nil {
		return nil, Explain(s.cfg.Listen, err)
	}
	if len(s.cfg.Allow) == 0 && !peerAddr(l.Addr()).IsLoopback() { // what localhost means is up to the machine's hosts file
		_ = l.Close() // nothing was served
		return nil, needAllow(s.cfg.Listen)
	}
	return l, nil
}

// listen opens the port, and notes why it cannot.
func (s *MLLP) listen() error {
	l, err := s.bind()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.trouble = err.Error()
		return err
	}
	s.listener, s.trouble = l, ""
	return nil
}

func needAllow(listen string) error {
	return fmt.Errorf("allow: it is empty, but the source listens on %q; list the devices' networks, as in allow: [10.1.2.0/24], or listen on 127.0.0.1", listen)
}

func defaults(cfg *Config) {
	for _, d := range []struct {
		value *time.Duration
		usual time.Duration
	}{
		{&cfg.IdleTimeout, 2 * time.Hour},
		{&cfg.FrameTimeout, 30 * time.Second},
		{&cfg.WriteTimeout, 10 * time.Second},
		{&cfg.StopTimeout, 10 * time.Second},
		{&cfg.Backoff, time.Second},
		{&cfg.Reopen, time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.usual
		}
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 200
	}
	if cfg.MaxMessage <= 0 {
		cfg.MaxMessage = telemetry.MaxMessage
	}
}

// ID is the source's id.
func (s *MLLP) ID() string { return s.cfg.ID }

// Addr is the address that devices connect to; nil while the port cannot be had.
func (s *MLLP) Addr() net.Addr {
	if l := s.open(); l != nil {
		return l.Addr()
	}
	return nil
}

func (s *MLLP) open() net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listener
}

// Stats are the counters now. Those of bindings with an id of their own are in Bound.
func (s *MLLP) Stats() Stats {
	now := time.Now()
	st := s.meter.stats(now)
	st.Connections, st.Refused, st.NotAllowed, st.OverLimit, st.Address = len(s.slots), s.refused.Load(), s.notAllowed.Load(), s.overLimit.Load(), s.cfg.Listen
	st.LastRefused, st.LastUnwelcome = s.refused.at(), s.notAllowed.at()
	if over := s.overLimit.at(); over.After(st.LastUnwelcome) {
		st.LastUnwelcome = over
	}
	st.Slowed, st.LastSlowed = s.slowed.Load(), s.slowed.at()
	st.BedConflicts, st.LastBedConflict = s.bindings.conflicts.Load(), s.bindings.conflicts.at()
	if p := s.bindings.problem.Load(); p != nil {
		st.BedConflict = *p
	}
	st.Beds = s.bindings.stats()
	if s.tls != nil {
		st.TLS = s.tls.stats()
	}
	s.mu.Lock()
	st.Listening, st.Trouble = s.listener != nil, s.trouble
	s.mu.Unlock()
	if st.TLS != nil && st.TLS.NotAfter.IsZero() && st.Trouble == "" {
		st.Listening, st.Trouble = false, st.TLS.Trouble // no device gets past the handshake
	}
	for _, b := range s.bindings.all {
		if b.ID == "" {
			continue
		}
		own := b.meter.stats(now)
		own.ID, own.Port, own.Bed = b.ID, s.cfg.ID, b.Bed
		own.Address, own.Listening, own.Trouble = st.Address, st.Listening, st.Trouble
		st.Bound, st.Shared = append(st.Bound, own), true
	}
	return st
}

// Run serves devices until ctx ends, then finishes the messages under way, for at most StopTimeout, and returns nil. Messages that
// were not wholly read are left unacknowledged. Run is called once.
func (s *MLLP) Run(ctx context.Context) error {
	var open sync.WaitGroup
	defer open.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ln := s.await(ctx)
	if ln == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })() // Accept returns with net.ErrClosed
	defer ln.Close()

	for pause := time.Duration(0); ; {
		c, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("source %s: %w", s.cfg.ID, err)
		default: // too many open files, or a peer that went away: both pass
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.warn("accept", "Cannot take a device's connection", "error", err)
			wait(ctx, pause)
			continue
		}
		if why := s.admit(c); why != "" {
			s.notAllowed.Add(1)
			s.warn("peer", why, "peer", c.RemoteAddr())
			_ = c.Close() // nothing was read or written
			continue
		}
		peer, ok := s.place(c)
		if !ok {
			_ = c.Close() // nothing was read or written
			continue
		}
		open.Go(func() {
			defer func() {
				s.places.give(peer)
				<-s.slots
			}()
			s.talk(ctx, c)
		})
	}
}

// place gives a connection its place, unless all are taken, or all that its address may have.
func (s *MLLP) place(c net.Conn) (peer netip.Addr, ok bool) {
	peer = peerAddr(c.RemoteAddr())
	if !s.places.take(peer) {
		s.overLimit.Add(1)
		s.warn("address limit", "Closed a connection of an address that has as many as one may", "peer", c.RemoteAddr(), "limit", s.places.max)
		return peer, false
	}
	select {
	case s.slots <- struct{}{}:
		return peer, true
	default:
		s.places.give(peer)
		s.overLimit.Add(1)
		s.warn("limit", "Closed a device's connection beyond the limit", "peer", c.RemoteAddr(), "limit", s.cfg.MaxConns)
		return peer, false
	}
}

// serve takes one connection through its handshake, where there is one, and serves it to its end.
func (s *MLLP) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	peer := peerAddr(c.RemoteAddr())
	var names []string
	if s.tls != nil {
		secure, shown, err := s.tls.shake(ctx, c)
		if err != nil {
			if ctx.Err() == nil {
				s.warn("tls "+err.Error(), "Refused a device's TLS connection", "peer", c.RemoteAddr(), "error", err)
			}
			return
		}
		c, names = secure, shown
	}
	by, conflict := s.bindings.connection(names, peer)
	newConn(s, c, by, conflict).serve(ctx)
}

// await gives the open port, and tries to have it until ctx ends; then it is nil.
func (s *MLLP) await(ctx context.Context) net.Listener {
	for pause := s.cfg.Reopen; s.open() == nil; pause = min(2*pause, 30*s.cfg.Reopen) {
		wait(ctx, pause)
		if ctx.Err() != nil {
			return nil
		}
		if err := s.listen(); err != nil {
			s.warn("listen", "Devices cannot connect: the port cannot be opened; it is tried again", "error", err)
		} else {
			s.cfg.Log.Info("The port is open now; devices can connect", "address", s.cfg.Listen)
		}
	}
	return s.open()
}

// admitTCP tells why a peer is not welcome.
func (s *MLLP) admitTCP(c net.Conn) (why string) {
	if s.allowed(c.RemoteAddr()) {
		return ""
	}
	return "Closed a connection from an address that sources[].allow does not list"
}

// allowed tells whether a peer is on the allow list. Without a list the listener is on loopback, which others cannot reach.
func (s *MLLP) allowed(peer net.Addr) bool {
	addr := peerAddr(peer)
	if len(s.cfg.Allow) == 0 {
		return addr.IsLoopback()
	}
	return contains(s.cfg.Allow, addr)
}

func contains(networks []netip.Prefix, addr netip.Addr) bool {
	for _, p := range networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// peerAddr is an address as allow lists are written: an IPv4 peer of an IPv6 socket is an IPv4 address, and zones do not count.
func peerAddr(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// warn logs a kind of warning at most once a minute: a port scan must not fill the disk that samples need. The counters tell how
// often it happened.
func (s *MLLP) warn(kind, message string, attrs ...any) {
	s.mu.Lock()
	now := time.Now()
	last, before := s.warned[kind]
	if before && now.Sub(last) < time.Minute {
		s.mu.Unlock()
		return
	}
	s.warned[kind] = now
	s.mu.Unlock()
	s.cfg.Log.Warn(message, attrs...)
}

// wait pauses for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
