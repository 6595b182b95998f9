package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// gatewayPort is the one port that a gateway needs. By ALPN "mqtt" goes to ingest and "http/1.1" to enrolment; a client without ALPN
// (stock step, many MQTT clients) is told apart by its first byte, since every MQTT session begins with CONNECT, 0x10.
type gatewayPort struct {
	doorway
	mqtt func(ctx context.Context, conn net.Conn, state tls.ConnectionState)
	http *http.Server
}

// run serves until ctx ends. It returns once every MQTT session has ended; sessions see the end of ctx themselves.
func (p *gatewayPort) run(ctx context.Context) error {
	handoff := newHandoff(p.ln.Addr())
	httpDone := make(chan error, 1)
	go func() { httpDone <- p.http.Serve(handoff) }()
	err := p.open(ctx, func(conn *tls.Conn, settled func()) { p.serve(ctx, conn, handoff, settled) })
	shut, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = errors.Join(err, p.http.Shutdown(shut))
	handoff.Close()
	<-httpDone
	p.wait()
	return err
}

// serve hands the connection on.
func (p *gatewayPort) serve(ctx context.Context, conn *tls.Conn, handoff *handoff, settled func()) {
	state := conn.ConnectionState()
	switch state.NegotiatedProtocol {
	case "mqtt":
		settled()
		p.mqtt(ctx, conn, state)
	case "http/1.1":
		handoff.give(conn)
	default:
		spoken, err := firstByte(ctx, conn, firstByteTime)
		if err != nil {
			if ctx.Err() == nil {
				p.refuse(conn.RemoteAddr(), "nothing was sent")
			}
			conn.Close()
			return
		}
		settled()
		if spoken.first == 0x10 {
			p.mqtt(ctx, spoken, state)
			return
		}
		handoff.give(spoken)
	}
}

// httpPort is a port that speaks HTTP alone.
type httpPort struct {
	doorway
	http *http.Server
}

// run serves until ctx ends, and gives the requests under way until grace to end.
func (p *httpPort) run(ctx context.Context, grace time.Duration) error {
	handoff := newHandoff(p.ln.Addr())
	httpDone := make(chan error, 1)
	go func() { httpDone <- p.http.Serve(handoff) }()
	err := p.open(ctx, func(conn *tls.Conn, _ func()) { handoff.give(conn) })
	shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if serr := p.http.Shutdown(shut); serr != nil {
		err = errors.Join(err, serr, p.http.Close())
	}
	handoff.Close()
	<-httpDone
	p.wait()
	return err
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
