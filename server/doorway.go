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
	"sync/atomic"
	"syscall"
	"time"

	"wardlink/server/ingest"
)

const (
	// handshakeTime is generous because a discrete TPM signs within the handshake and may take seconds.
	handshakeTime = 60 * time.Second
	// firstByteTime is how long a peer may hold a slot without having said anything: a TCP connection costs an attacker nothing.
	firstByteTime = 10 * time.Second
	// slotTime is how long a peer that has said something waits for its turn. Agents give a handshake 60 s.
	slotTime = 30 * time.Second
)

// doorway accepts the connections of one port and finishes their TLS handshakes. Whoever does not get through is handed to refuse,
// with one of a few constant reasons.
type doorway struct {
	ln      net.Listener
	tls     *tls.Config
	refuse  func(peer net.Addr, reason string) // before a proven identity
	log     *slog.Logger
	waiting time.Duration // for the first byte; 0 is firstByteTime
	at      *handshakes   // nil: with the default limits

	balancers []netip.Prefix // peers that begin with a PROXY header; see Balancers
	headers   atomic.Int64   // connections of theirs that have not sent it

	serving sync.WaitGroup
}

// open gives each connection whose handshake succeeded to serve, in a goroutine of its own, until ctx ends (nil) or the listener
// fails. serve calls settled once the peer is past proving who it is, or returns. Those that were let in live on: wait waits for them.
func (d *doorway) open(ctx context.Context, serve func(conn *tls.Conn, settled func())) error {
	defer context.AfterFunc(ctx, func() { d.ln.Close() })()
	if d.at == nil {
		d.at = newHandshakes(handshakeLimits{})
	}
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
		if d.behind(conn) {
			d.arriveBehind(ctx, conn, serve)
			continue
		}
		if enter := d.arrive(ctx, conn, serve); enter != nil {
			d.serving.Go(enter)
		}
	}
}

// arrive finds a place for a connection, or closes it and gives nil. What it gives serves the connection.
func (d *doorway) arrive(ctx context.Context, conn net.Conn, serve func(conn *tls.Conn, settled func())) func() {
	settled, gone, refusal := d.at.arrive(conn.RemoteAddr())
	if refusal != "" {
		d.refuse(conn.RemoteAddr(), refusal)
		conn.Close()
		return nil
	}
	return func() {
		defer gone()
		if secured := d.handshake(ctx, conn); secured != nil {
			serve(secured, settled)
		}
	}
}

// arriveBehind is arrive and what follows for a connection of a balancer: first it must say whose it is.
func (d *doorway) arriveBehind(ctx context.Context, conn net.Conn, serve func(conn *tls.Conn, settled func())) {
	if d.headers.Add(1) > int64(d.at.limits.arrivals) {
		d.headers.Add(-1)
		d.refuse(conn.RemoteAddr(), "too many connections of a balancer without a PROXY header")
		conn.Close()
		return
	}
	d.serving.Go(func() {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		from, err := proxied(conn)
		d.headers.Add(-1)
		if !stop() || err != nil {
			if ctx.Err() == nil {
				d.refuse(conn.RemoteAddr(), "a balancer's connection without a PROXY header")
			}
			conn.Close()
			return
		}
		if enter := d.arrive(ctx, from, serve); enter != nil {
			enter()
		}
	})
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
		var conn *tls.Conn
		if conn, reason = d.secure(hctx, spoken); conn != nil {
			return conn
		}
	}
	if ctx.Err() == nil {
		d.refuse(raw.RemoteAddr(), reason)
	}
	raw.Close()
	return nil
}

// secure does the handshake with a peer that has said something, or gives the reason why there is none.
func (d *doorway) secure(ctx context.Context, spoken *spokenConn) (conn *tls.Conn, reason string) {
	turn, cancel := context.WithTimeout(ctx, slotTime)
	defer cancel()
	release, ok := d.at.slots.take(turn, spoken.RemoteAddr())
	if !ok {
		return nil, "waited too long for its turn to handshake"
	}
	defer release()
	conn = tls.Server(spoken, d.tls)
	if err := d.shake(ctx, conn, spoken); err != nil {
		return nil, handshakeReason(err)
	}
	return conn, ""
}

// shake does the handshake with a turn, which is given back whatever becomes of it.
func (d *doorway) shake(ctx context.Context, conn *tls.Conn, spoken *spokenConn) (err error) {
	d.at.cores.Enter()
	spoken.turns = d.at.cores
	defer func() {
		spoken.turns = nil
		d.at.cores.Leave()
	}()
	ingest.Apart(func() { err = conn.HandshakeContext(ctx) })
	return err
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
	// Those of which a handshake has one while it computes; nil otherwise. Between its messages a handshake waits for its peer, and for a peer's slow
	// TPM for seconds. So its turn is given back when the connection is read from, and taken again when something has come.
	turns ingest.Turns
}

func (c *spokenConn) Read(b []byte) (int, error) {
	if c.read || len(b) == 0 {
		if c.turns != nil {
			c.turns.Leave()
			defer c.turns.Enter()
		}
		return c.Conn.Read(b)
	}
	b[0], c.read = c.first, true
	return 1, nil
}

// CloseWrite lets the endpoint end its half first, so that its last words are not lost in a reset.
func (c *spokenConn) CloseWrite() error { return closeWrite(c.Conn) }

// closeWrite ends our half of a connection that has halves, and any other whole.
func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
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
