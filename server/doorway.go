package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	// handshakeTime is generous because a discrete TPM signs within the handshake and may take seconds.
	handshakeTime = 60 * time.Second
	// firstByteTime is how long a peer may hold a slot without having said anything: a TCP connection costs an attacker nothing.
	firstByteTime = 10 * time.Second
	// maxHandshakes bounds connections that have not proven anything yet; further ones wait in the kernel's queue.
	maxHandshakes = 512
	// maxHandshakesEach is how many of them one network (/24, /64) may have, so that one network cannot keep the others waiting.
	maxHandshakesEach = 64
)

// doorway accepts the connections of one port and finishes their TLS handshakes. Whoever does not get through is handed to refuse,
// with one of a few constant reasons.
type doorway struct {
	ln      net.Listener
	tls     *tls.Config
	refuse  func(peer net.Addr, reason string) // before a proven identity
	log     *slog.Logger
	waiting time.Duration // for the first byte; 0 is firstByteTime

	serving sync.WaitGroup
}

// open gives each connection whose handshake succeeded to serve, in a goroutine of its own, until ctx ends (nil) or the listener
// fails. serve calls settled once the peer is past proving who it is, or returns. Those that were let in live on: wait waits for them.
func (d *doorway) open(ctx context.Context, serve func(conn *tls.Conn, settled func())) error {
	defer context.AfterFunc(ctx, func() { d.ln.Close() })()
	slots := newSlots()
	for {
		conn, err := d.ln.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		case passing(err):
			d.log.Error("port cannot accept", "address", d.ln.Addr().String(), "error", err)
			pause(ctx, 50*time.Millisecond) // out of descriptors: leave others the time to close some
			continue
		default:
			return fmt.Errorf("port %s: %w", d.ln.Addr(), err)
		}
		release, ok := slots.take(ctx, conn.RemoteAddr())
		if !ok {
			if ctx.Err() == nil {
				d.refuse(conn.RemoteAddr(), "too many open handshakes from one network")
			}
			conn.Close()
			continue
		}
		d.serving.Add(1)
		go func() {
			defer d.serving.Done()
			defer release()
			if secured := d.handshake(ctx, conn); secured != nil {
				serve(secured, release)
			}
		}()
	}
}

// wait returns once every connection that was let in has been served.
func (d *doorway) wait() { d.serving.Wait() }

// handshake gives the connection after its handshake, or nil once it is refused and closed.
func (d *doorway) handshake(ctx context.Context, raw net.Conn) *tls.Conn {
	waiting := d.waiting
	if waiting == 0 {
		waiting = firstByteTime
	}
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	spoken, err := firstByte(hctx, raw, waiting)
	reason := "nothing was sent"
	if err == nil {
		conn := tls.Server(spoken, d.tls)
		if err = conn.HandshakeContext(hctx); err == nil {
			return conn
		}
		reason = handshakeReason(err)
	}
	if ctx.Err() == nil {
		d.refuse(raw.RemoteAddr(), reason)
	}
	raw.Close()
	return nil
}

// handshakeReason is a constant for each kind of failure: it becomes part of an aggregated event, so nothing a peer chose may be in it.
func handshakeReason(err error) string {
	var certErr *tls.CertificateVerificationError
	var netErr net.Error
	switch {
	case errors.As(err, &certErr):
		return "client certificate does not verify"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return "handshake took too long"
	default:
		return "TLS handshake failed"
	}
}

// passing tells errors of Accept that pass by themselves, or with one peer, from a listener that is of no more use.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// spokenConn gives back the byte that was waited for. It costs an idle session a few bytes, where a bufio.Reader would cost kilobytes.
type spokenConn struct {
	net.Conn
	first byte
	read  bool
}

func (c *spokenConn) Read(b []byte) (int, error) {
	if c.read || len(b) == 0 {
		return c.Conn.Read(b)
	}
	b[0], c.read = c.first, true
	return 1, nil
}

// CloseWrite lets the endpoint end its half first, so that its last words are not lost in a reset.
func (c *spokenConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// firstByte waits for the peer to say something, at most for d, and gives a connection that still has it.
func firstByte(ctx context.Context, conn net.Conn, d time.Duration) (*spokenConn, error) {
	if err := conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	var b [1]byte
	_, err := conn.Read(b[:])
	if !stop() {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return &spokenConn{Conn: conn, first: b[0]}, conn.SetReadDeadline(time.Time{})
}

// slots are the handshakes that a port does at once.
type slots struct {
	all chan struct{}

	mu sync.Mutex
	of map[netip.Prefix]int
}

func newSlots() *slots {
	return &slots{all: make(chan struct{}, maxHandshakes), of: make(map[netip.Prefix]int)}
}

// take waits for a slot. It is refused when the peer's network has its share, or when ctx ends. release may be called again.
func (s *slots) take(ctx context.Context, peer net.Addr) (release func(), ok bool) {
	from := network(peer)
	s.mu.Lock()
	if s.of[from] >= maxHandshakesEach {
		s.mu.Unlock()
		return nil, false
	}
	s.of[from]++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.of[from]--; s.of[from] == 0 {
			delete(s.of, from)
		}
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, false
	}
	return sync.OnceFunc(func() { leave(); <-s.all }), true
}

// network is what shares a share: a /24 of IPv4, a /64 of IPv6. Peers without an address share one.
func network(peer net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(peer.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := at.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(ip, bits).Masked()
}
