package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/acme"

	"wardlink/audit"
	"wardlink/server/ca/acmedb"
	"wardlink/server/sqldb/sqldbtest"
)

// balancer is one address before several servers: each request goes to the next.
type balancer struct {
	to    func(request int64) string // address of the server of a request, counted from 1
	after func(request int64)        // unless nil, called when it was answered

	requests atomic.Int64
}

// behind is the address that all servers have towards their clients.
const behind = "https://127.0.0.1:1"

// RoundTrip implements http.RoundTripper on a connection of its own.
func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	n := b.requests.Add(1)
	one := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the name is the balancer's
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, b.to(n))
		}}
	answer, err := one.RoundTrip(r)
	if err != nil || b.after == nil {
		return answer, err
	}
	body, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	answer.Body = io.NopCloser(strings.NewReader(string(body)))
	b.after(n)
	return answer, err
}

// cell is several CAs of one hospital, each with a handle of its own on one database.
func cell(t *testing.T, n int) []*hospital {
	t.Helper()
	db, path := sqldbtest.New(t, acmedb.Migrations()...)
	var first Config
	all := []*hospital{newHospital(t, func(c *Config) { c.DB, first = db, *c })}
	first.Registry, first.Events = all[0].registry, all[0].event
	for range n - 1 {
		all = append(all, newHospital(t, func(c *Config) { *c = first; c.DB = sqldbtest.Open(t, path, acmedb.Migrations()...) }))
	}
	return all
}

func address(h *hospital) string { return h.server.Listener.Addr().String() }

// TestEnrolmentAcrossProcesses: each request of an enrolment goes to another process, so every nonce, challenge and order is used elsewhere than
// where it was made; whichever of them is the first.
func TestEnrolmentAcrossProcesses(t *testing.T) {
	all := cell(t, 3)
	for shift := range int64(len(all)) {
		b := &balancer{to: func(n int64) string { return address(all[(n+shift)%int64(len(all))]) }}
		board := newSoftBoard(t, behind, &http.Client{Transport: b})
		name := fmt.Sprintf("gw-%d", shift)
		all[0].registry.set(func() { all[0].registry.active[board.Hash()] = name })
		cert, err := board.Enrol(t.Context(), name)
		if err != nil {
			t.Fatalf("beginning at %d: %v", shift, err)
		}
		if cert.Subject.CommonName != name || b.requests.Load() < 10 {
			t.Errorf("%v after %d requests", cert.Subject, b.requests.Load())
		}
	}
	if n := all[0].count(audit.CertIssued); n != len(all) {
		t.Errorf("%d certificates; expected %d", n, len(all))
	}
}

// TestOneCertificateForAnAttestation: an order is finalized at all processes at once, by one client that is impatient. One certificate is made;
// no other key gets one.
func TestOneCertificateForAnAttestation(t *testing.T) {
	all := cell(t, 3)
	h := all[0]
	b := &balancer{to: func(n int64) string { return address(all[n%int64(len(all))]) }}
	board := newSoftBoard(t, behind, &http.Client{Transport: b})
	h.registry.set(func() { h.registry.active[board.Hash()] = "gw-1" })
	chain, err := board.Attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := board.newClient()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	order, err := board.Prove(t.Context(), client, "gw-1", chain)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := board.Finalize(t.Context(), client, order, foreign); err == nil {
		t.Fatal("a certificate for a key that was not attested")
	}
	var wg sync.WaitGroup
	serials := sync.Map{}
	for range 3 * len(all) {
		wg.Go(func() {
			// Who comes while the first is at it is refused; who comes later gets the same certificate.
			if cert, err := board.Finalize(t.Context(), client, order, board.Key); err == nil {
				serials.Store(Serial(cert), true)
			}
		})
	}
	wg.Wait()
	n := 0
	serials.Range(func(any, any) bool { n++; return true })
	if issued := h.count(audit.CertIssued); n != 1 || issued != 1 || len(h.registry.keys) != 1 {
		t.Errorf("%d certificates were fetched, %d journaled, %d keys; expected one", n, issued, len(h.registry.keys))
	}
}

// TestReplayAtAnotherProcess: a signed request that was answered is refused wherever it comes again.
func TestReplayAtAnotherProcess(t *testing.T) {
	all := cell(t, 3)
	var kept *http.Request
	var body string
	b := &balancer{to: func(n int64) string { return address(all[n%int64(len(all))]) }}
	spy := roundTripper(func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/new-account") {
			data, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			kept, body = r, string(data)
			r.Body = io.NopCloser(strings.NewReader(body))
		}
		return b.RoundTrip(r)
	})
	board := newSoftBoard(t, behind, &http.Client{Transport: spy})
	client, err := board.newClient()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	for range 2 * len(all) {
		again := kept.Clone(t.Context())
		again.Body = io.NopCloser(strings.NewReader(body))
		answer, err := b.RoundTrip(again)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(answer.Body)
		if answer.StatusCode != http.StatusBadRequest || !strings.Contains(string(got), "badNonce") {
			t.Errorf("a request that comes again: %s %s", answer.Status, got)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
