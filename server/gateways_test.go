package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/ca"
)

// trust is a root with an issuing CA.
type trust struct {
	root, issuing *x509.Certificate
	key           *ecdsa.PrivateKey
}

func newTrust(t testing.TB) trust {
	t.Helper()
	root, rootKey, err := ca.NewRoot("ward.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issuing, key, err := ca.NewIssuing("ward.example", root, rootKey, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return trust{root, issuing, key}
}

func (tr trust) certificate(t testing.TB, kind spiffe.Kind, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffe.ID{TrustDomain: "ward.example", Kind: kind, Name: name}
	cert, err := ca.NewCertificate(tr.issuing, tr.key, ca.Template{ID: id, Public: key.Public(), Life: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw, tr.issuing.Raw}, PrivateKey: key, Leaf: cert}
}

// port is a gateways' port with handlers that say who they are.
type port struct {
	addr string
	tr   trust

	mu      sync.Mutex
	refused []string
}

// testWaiting is instead of firstByteTime: long enough to open a network's share of connections on a busy machine.
const testWaiting = 3 * time.Second

func newPort(t *testing.T) *port {
	t.Helper()
	p := &port{tr: newTrust(t)}
	server := p.tr.certificate(t, spiffe.Service, "ingest")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	g := &gatewayPort{
		doorway: doorway{
			ln:  ln,
			tls: listenerTLS(func() (*tls.Certificate, error) { return &server, nil }, p.tr.root, "mqtt", "http/1.1"),
			refuse: func(_ net.Addr, reason string) {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.refused = append(p.refused, reason)
			},
			log: slog.New(slog.DiscardHandler), waiting: testWaiting, at: newHandshakes(handshakeLimits{arrivals: 96}),
		},
		mqtt: func(_ context.Context, conn net.Conn, state tls.ConnectionState) {
			defer conn.Close()
			first := make([]byte, 4)
			if _, err := io.ReadFull(conn, first); err == nil {
				fmt.Fprintf(conn, "mqtt %q, %d chains", first, len(state.VerifiedChains))
			}
		},
		http: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "http, TLS known: %t", r.TLS != nil)
		})},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("port: %v", err)
		}
	})
	return p
}

// talk sends text and gives what comes back until the end.
func (p *port) talk(t *testing.T, text string, cert *tls.Certificate, alpn ...string) (string, error) {
	t.Helper()
	conf := spiffe.ServerTLS(pool(p.tr.root), spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Service, Name: "ingest"}, "")
	conf.NextProtos = alpn
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	conn, err := tls.Dial("tcp", p.addr, conf)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func pool(root *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(root)
	return p
}

const get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

func TestOnePortTellsMQTTFromHTTP(t *testing.T) {
	p := newPort(t)
	gw := p.tr.certificate(t, spiffe.Access, "any")
	for _, c := range []struct {
		name, text string
		cert       *tls.Certificate
		alpn       []string
		want       string
	}{
		{"mqtt by ALPN", "\x10abc", &gw, []string{"mqtt"}, `mqtt "\x10abc", 1 chains`},
		{"mqtt by first byte", "\x10abc", &gw, nil, `mqtt "\x10abc", 1 chains`},
		{"mqtt without a certificate has no chain", "\x10abc", nil, []string{"mqtt"}, `0 chains`},
		{"http by ALPN", get, nil, []string{"http/1.1"}, "http, TLS known: true"},
		{"http by first byte", get, nil, nil, "http, TLS known: false"},
	} {
		if got, err := p.talk(t, c.text, c.cert, c.alpn...); err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, %v; expected %q", c.name, got, err, c.want)
		}
	}
	if len(p.refused) > 0 {
		t.Errorf("refused %v", p.refused)
	}
}

func TestPortRefusesForeignCertificatesAndProtocols(t *testing.T) {
	p := newPort(t)
	foreign := newTrust(t).certificate(t, spiffe.Access, "any")
	if got, err := p.talk(t, "\x10abc", &foreign, "mqtt"); err == nil {
		t.Errorf("a certificate of a foreign CA got through: %q", got)
	}
	if got, err := p.talk(t, get, nil, "h2"); err == nil {
		t.Errorf("an unknown protocol got through: %q", got)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		p.mu.Lock()
		got := strings.Join(p.refused, "; ")
		p.mu.Unlock()
		if strings.Contains(got, "client certificate does not verify") && strings.Contains(got, "TLS handshake failed") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("refusals %q; expected one of each kind", got)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestServiceCertificateRenewsItself at half of its life, and goes on with the old one while the CA cannot sign.
func TestServiceCertificateRenewsItself(t *testing.T) {
	now := time.Now()
	fail := false
	tr := newTrust(t)
	n := 0
	s := &serviceCert{id: spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Service, Name: "ingest"}, now: func() time.Time { return now },
		issuer: func() *x509.Certificate { return tr.issuing }}
	s.issue = func(template ca.Template) ([]*x509.Certificate, error) {
		if fail {
			return nil, errors.New("CA is down")
		}
		n++
		c, err := ca.NewCertificate(tr.issuing, tr.key, template, now)
		return []*x509.Certificate{c, tr.issuing}, err
	}
	for _, step := range []struct {
		after time.Duration
		fail  bool
		want  int
		ok    bool
	}{
		{0, false, 1, true},
		{serviceLife / 4, false, 1, true},
		{serviceLife / 3, true, 1, true},  // past half: renewal fails, the old one is still good
		{2 * time.Minute, false, 2, true}, // and is tried again
		{serviceLife + 1, true, 2, false}, // expired and the CA is down: no handshake with a dead certificate
		{0, false, 3, true},
		{-serviceLife, false, 4, true}, // the clock was ahead and is right again: what has not begun is no certificate
		{-serviceLife, true, 4, false},
	} {
		now, fail = now.Add(step.after), step.fail
		if _, err := s.get(); (err == nil) != step.ok || n != step.want {
			t.Errorf("after %v: %d issued, error %v; expected %d, ok %t", step.after, n, err, step.want, step.ok)
		}
	}
}
