// Package egress is how a gateway gets out to its servers: to one address after the other, directly or through the hospital's HTTP
// proxy. Whoever in an agent connects to a server does it here.
//
// Who a server is follows from its certificate alone, never from the address: an address may be a name, an IP without any name, or a
// balancer, and any port.
package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// How long the steps of a connection may take, and how long an address is left alone that did not work. Each failure in a row doubles
// the rest, and a part of it is random, so that a ward's gateways do not come home at the same second.
const (
	connectTime = 15 * time.Second // TCP, and the proxy's answer
	firstRest   = 5 * time.Minute
	longestRest = time.Hour
)

// Way leads to the servers. A nil *Way leads to them directly and remembers nothing. It is safe for concurrent use.
type Way struct {
	proxy *Proxy // nil: directly

	mu    sync.Mutex
	fault map[string]fault // by address
}

// fault is an address that did not work of late.
type fault struct {
	err   error
	at    time.Time
	rest  time.Duration
	until time.Time
}

// New makes a way; proxy may be nil.
func New(proxy *Proxy) *Way { return &Way{proxy: proxy, fault: make(map[string]fault)} }

// Proxy is the address of the proxy that the way goes through, "" when it goes directly.
func (w *Way) Proxy() string {
	if w == nil || w.proxy == nil {
		return ""
	}
	return w.proxy.Address
}

// Hop is the address that a TCP connection to a server is made to: the server's own, or the proxy's.
func (w *Way) Hop(server string) string {
	if p := w.Proxy(); p != "" {
		return p
	}
	return server
}

// Reach makes the TCP connection to the first hop.
func (w *Way) Reach(ctx context.Context, server string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true}}
	return d.DialContext(ctx, "tcp", w.Hop(server))
}

// Tunnel makes a connection to the first hop one to the server. Without a proxy it is that already.
func (w *Way) Tunnel(ctx context.Context, conn net.Conn, server string) error {
	if w.Proxy() == "" {
		return nil
	}
	return w.proxy.tunnel(ctx, conn, server)
}

// Connect makes a connection to a server, in 15 s or not at all. A fault of the proxy is a *ProxyError.
func (w *Way) Connect(ctx context.Context, server string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := w.Reach(ctx, server)
	if err != nil {
		if p := w.Proxy(); p != "" {
			return nil, &ProxyError{p, "there is no connection to it", "check proxy.url in the configuration, the network to the proxy, and whether it runs", err}
		}
		return nil, err
	}
	if err := w.Tunnel(ctx, conn, server); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Secure makes a connection and the TLS handshake on it; a server that this fails with comes last for a while. conf's ServerName becomes the address's host, for balancers; of an IP address
// nothing is sent.
func (w *Way) Secure(ctx context.Context, server string, conf *tls.Config) (*tls.Conn, error) {
	conn, err := w.secure(ctx, server, conf)
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) { // who was called back has learnt nothing
		w.Failed(server, err)
	}
	return conn, err
}

func (w *Way) secure(ctx context.Context, server string, conf *tls.Config) (*tls.Conn, error) {
	raw, err := w.Connect(ctx, server)
	if err != nil {
		return nil, err
	}
	conf.ServerName, _, _ = net.SplitHostPort(server)
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// Try tries servers until one works, for at most bound each: in their order, but for those that did not work of late, which come last.
// The error names every server.
func (w *Way) Try(ctx context.Context, servers []string, bound time.Duration, try func(ctx context.Context, server string) error) error {
	var failed []error
	for _, server := range w.Order(servers) {
		limited, cancel := context.WithTimeout(ctx, bound)
		err := try(limited, server)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failed = append(failed, fmt.Errorf("server %s: %w", server, err))
	}
	return errors.Join(failed...)
}

// Order is the servers in the order to try them now.
func (w *Way) Order(servers []string) []string {
	var out, resting []string
	for _, s := range servers {
		if w.resting(s) {
			resting = append(resting, s)
		} else {
			out = append(out, s)
		}
	}
	return append(out, resting...)
}

// Better is those of servers that come before the one in use and are worth another try. An address that is not in the list any more
// has none before it.
func (w *Way) Better(servers []string, used string) []string {
	n := slices.Index(servers, used)
	if n < 1 {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(servers[:n]), w.resting)
}

func (w *Way) resting(server string) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.fault[server].until)
}

// maxFaults bounds what is remembered: more addresses than a kit and a configuration can hold.
const maxFaults = 64

// Failed says that a server did not work, so that others come first for a while.
func (w *Way) Failed(server string, err error) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f, known := w.fault[server]
	if !known && len(w.fault) >= maxFaults {
		clear(w.fault)
	}
	f.err, f.at = err, time.Now()
	if f.at.After(f.until) { // a second failure while it rests, for want of another, is not held against it
		f.rest = min(max(2*f.rest, firstRest), longestRest)
		f.until = f.at.Add(f.rest - rand.N(f.rest/4))
	}
	w.fault[server] = f
}

// Worked says that a server has been good for a while: what it did before is forgotten.
func (w *Way) Worked(server string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.fault, server)
}

// Fault is why an address did not work when it was last tried; nil when it did, or was not tried.
func (w *Way) Fault(server string) (at time.Time, err error) {
	if w == nil {
		return time.Time{}, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.fault[server]
	return f.at, f.err
}
