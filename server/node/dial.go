package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"wardlink/internal/spiffe"
)

// restTime is how long an address that could not be reached is asked last.
const restTime = 10 * time.Second

// dialer speaks TLS with the processes of one server at their gateways' ports, under a certificate of its own. It is safe for concurrent use.
type dialer struct {
	addrs  []string
	spread bool // each connection begins at the next address; else each at the first
	conf   *tls.Config

	mu   sync.Mutex
	next int
	rest map[string]time.Time // until when
}

func newDialer(trustDomain string, roots *x509.CertPool, addrs []string, own func() (*tls.Certificate, error)) *dialer {
	conf := spiffe.ServerTLS(roots, spiffe.ID{TrustDomain: trustDomain, Kind: spiffe.Service, Name: "ingest"}, "http/1.1")
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() }
	return &dialer{addrs: addrs, conf: conf, rest: make(map[string]time.Time)}
}

// order gives the addresses as they are tried now: those that rest come last.
func (d *dialer) order(now time.Time) (out []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first := d.next
	if d.spread {
		d.next = (d.next + 1) % len(d.addrs)
	}
	var resting []string
	for i := range d.addrs {
		addr := d.addrs[(first+i)%len(d.addrs)]
		if now.Before(d.rest[addr]) {
			resting = append(resting, addr)
			continue
		}
		out = append(out, addr)
	}
	return append(out, resting...)
}

// dial is http.Transport's DialTLSContext; it looks at no address.
func (d *dialer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	var errs []error
	for _, addr := range d.order(time.Now()) {
		conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTime}, Config: d.conf}).DialContext(ctx, "tcp", addr)
		d.mu.Lock()
		if err == nil {
			delete(d.rest, addr)
		} else if ctx.Err() == nil {
			d.rest[addr] = time.Now().Add(restTime)
		}
		d.mu.Unlock()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, errors.Join(errs...)
}

// transport asks the first of the addresses that can be reached.
func (d *dialer) transport() *http.Transport {
	return &http.Transport{
		MaxConnsPerHost: 48, MaxIdleConnsPerHost: 48, IdleConnTimeout: 45 * time.Second, ResponseHeaderTimeout: answerTime, DialTLSContext: d.dial,
	}
}

// spreading asks another address at each request. What it asks for is rare, a few requests for each certificate, so each has its connection.
func (d *dialer) spreading() *http.Transport {
	d.spread = true
	t := d.transport()
	t.DisableKeepAlives = true
	return t
}
