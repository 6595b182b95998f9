package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// handshakeTime is generous because a discrete TPM signs within the handshake and may take seconds.
	handshakeTime = 60 * time.Second
	// maxHandshakes bounds connections that have not proven anything yet; further ones wait in the kernel's queue.
	maxHandshakes = 512
	// firstByteTime is how long a client without ALPN has to show what it speaks.
	firstByteTime = 10 * time.Second
)

// gatewayPort is the one port that a gateway needs. By ALPN "mqtt" goes to ingest and "http/1.1" to enrolment; a client without ALPN
// (stock step, many MQTT clients) is told apart by its first byte, since every MQTT session begins with CONNECT, 0x10.
type gatewayPort struct {
	ln     net.Listener
	tls    *tls.Config
	mqtt   func(ctx context.Context, conn net.Conn, state tls.ConnectionState)
	http   *http.Server
	refuse func(peer net.Addr, reason string) // before a proven identity
	log    *slog.Logger
}

// run serves until ctx ends. It returns once every MQTT session has ended; sessions see the end of ctx themselves.
func (p *gatewayPort) run(ctx context.Context) error {
	handoff := newHandoff(p.ln.Addr())
	httpDone := make(chan error, 1)
	go func() { httpDone <- p.http.Serve(handoff) }()
	stop := context.AfterFunc(ctx, func() { p.ln.Close() })
	defer stop()

	var conns sync.WaitGroup
	slots := make(chan struct{}, maxHandshakes)
	var failed error
	for {
		conn, err := p.ln.Accept()
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				if isTemporary(err) {
					p.log.Error("gateways' port cannot accept", "error", err)
					time.Sleep(50 * time.Millisecond) // out of descriptors: leave others the time to close some
					continue
				}
				failed = fmt.Errorf("gateways' port: %w", err)
			}
			break
		}
		slots <- struct{}{}
		conns.Add(1)
		go func() {
			defer conns.Done()
			p.serve(ctx, conn, handoff, func() { <-slots })
		}()
	}
	shut, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := p.http.Shutdown(shut)
	handoff.Close()
	<-httpDone
	conns.Wait()
	return errors.Join(failed, err)
}

// serve finishes the handshake and hands the connection on. release gives the handshake slot back, once.
func (p *gatewayPort) serve(ctx context.Context, raw net.Conn, handoff *handoff, release func()) {
	release = sync.OnceFunc(release)
	defer release()
	conn := tls.Server(raw, p.tls)
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := conn.HandshakeContext(hctx); err != nil {
		if ctx.Err() == nil {
			p.refuse(raw.RemoteAddr(), handshakeReason(err))
		}
		raw.Close()
		return
	}
	state := conn.ConnectionState()
	switch state.NegotiatedProtocol {
	case "mqtt":
		release()
		p.mqtt(ctx, conn, state)
	case "http/1.1":
		handoff.give(conn)
	default:
		first, replay, err := peek(conn)
		if err != nil {
			p.refuse(raw.RemoteAddr(), "nothing was sent")
			conn.Close()
			return
		}
		release()
		if first == 0x10 {
			p.mqtt(ctx, replay, state)
			return
		}
		handoff.give(replay)
	}
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

func isTemporary(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Temporary() //nolint:staticcheck // the only way to tell EMFILE from a closed listener portably
}

// replayConn gives back the byte that was looked at.
type replayConn struct {
	net.Conn
	r *bufio.Reader
}

func (c replayConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// CloseWrite lets the endpoint end its half first, so that its last words are not lost in a reset.
func (c replayConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

func peek(conn net.Conn) (byte, net.Conn, error) {
	if err := conn.SetReadDeadline(time.Now().Add(firstByteTime)); err != nil {
		return 0, nil, err
	}
	r := bufio.NewReaderSize(conn, 512)
	b, err := r.Peek(1)
	if err != nil {
		return 0, nil, err
	}
	return b[0], replayConn{conn, r}, conn.SetReadDeadline(time.Time{})
}

// handoff is a listener that is given its connections.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handoff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }
