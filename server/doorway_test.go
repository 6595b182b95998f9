package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"wardlink/internal/spiffe"
)

// silent opens a TCP connection from the given address and says nothing.
func silent(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	conn, err := d.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// closedByPeer says whether the other side ends the connection within d.
func closedByPeer(conn net.Conn, d time.Duration) bool {
	_ = conn.SetReadDeadline(time.Now().Add(d))
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !os.IsTimeout(err)
}

func (p *port) refusals(reason string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.refused {
		if r == reason {
			n++
		}
	}
	return n
}

// TestSilentPeersKeepNobodyWaiting: one network may have its share of arrivals and no more; what is beyond is closed and counted,
// others get in meanwhile, and the silent ones lose their places long before a slow TPM's handshake would.
func TestSilentPeersKeepNobodyWaiting(t *testing.T) {
	const share = 72 // of 96
	p := newPort(t)
	var held []net.Conn
	for range share {
		held = append(held, silent(t, "127.0.0.1", p.addr))
	}
	if !closedByPeer(silent(t, "127.0.0.1", p.addr), 10*time.Second) {
		t.Error("a network has more arrivals than its share")
	}
	if n := p.refusals("too many open handshakes from one network"); n != 1 {
		t.Errorf("%d refusals of the share; expected 1", n)
	}
	// Another network is served although the first one's share is used up, and although its peers are silent.
	conn := silent(t, "127.0.1.1", p.addr)
	conf := spiffe.ServerTLS(pool(p.tr.root), spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Service, Name: "ingest"}, "")
	conf.NextProtos = []string{"http/1.1"}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	client := tls.Client(conn, conf)
	if _, err := io.WriteString(client, get); err != nil {
		t.Fatalf("another network cannot get in: %v", err)
	}
	if answer, err := io.ReadAll(client); err != nil || !strings.Contains(string(answer), "http") {
		t.Errorf("answer %q, %v", answer, err)
	}
	for i, c := range held {
		if !closedByPeer(c, 30*time.Second) {
			t.Fatalf("silent connection %d is still open after %s", i, testWaiting)
		}
	}
	if n := p.refusals("nothing was sent"); n != share {
		t.Errorf("%d silent ones counted; expected %d", n, share)
	}
	if got, err := p.talk(t, get, nil, "http/1.1"); err != nil || !strings.Contains(got, "http") {
		t.Errorf("the network does not get its slots back: %q, %v", got, err)
	}
}

// TestHTTPPortCountsFailedHandshakes: the hospital's and the operators' ports tell what net/http would only print.
func TestHTTPPortCountsFailedHandshakes(t *testing.T) {
	tr := newTrust(t)
	own := tr.certificate(t, spiffe.Service, "fhir")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan string, 10)
	h := &httpPort{
		doorway: doorway{
			ln: ln, tls: listenerTLS(func() (*tls.Certificate, error) { return &own, nil }, tr.root, "http/1.1"),
			refuse: func(peer net.Addr, reason string) { refused <- fmt.Sprint(network(peer), " ", reason) },
			log:    slog.New(slog.DiscardHandler), waiting: 500 * time.Millisecond,
		},
		http: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "certificates: %d", len(r.TLS.VerifiedChains))
		})},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.run(ctx, 5*time.Second) }()

	ask := func(certs ...tls.Certificate) (string, error) {
		conf := &tls.Config{RootCAs: pool(tr.root), Certificates: certs, InsecureSkipVerify: true}
		c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
		resp, err := c.Get("https://" + ln.Addr().String())
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	if got, err := ask(tr.certificate(t, spiffe.Access, "ehr")); err != nil || got != "certificates: 1" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := ask(newTrust(t).certificate(t, spiffe.Access, "ehr")); err == nil {
		t.Errorf("a foreign certificate got through: %q", got)
	}
	expect(t, refused, "127.0.0.0/24 client certificate does not verify")
	plain := silent(t, "127.0.0.1", ln.Addr().String())
	fmt.Fprint(plain, get)
	expect(t, refused, "127.0.0.0/24 TLS handshake failed")
	silent(t, "127.0.0.1", ln.Addr().String())
	expect(t, refused, "127.0.0.0/24 nothing was sent")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("end: %v", err)
	}
}

func expect(t *testing.T, got <-chan string, want string) {
	t.Helper()
	select {
	case g := <-got:
		if g != want {
			t.Errorf("refused %q; expected %q", g, want)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("nothing refused; expected %q", want)
	}
}

func TestNetworks(t *testing.T) {
	v6 := network(&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3::4"), Port: 5})
	mapped := network(&net.TCPAddr{IP: net.ParseIP("::ffff:10.1.2.3"), Port: 5})
	if v6.String() != "2001:db8:1:2::/64" || mapped.String() != "10.1.2.0/24" {
		t.Errorf("networks %s and %s", v6, mapped)
	}
	if none := network(&net.UnixAddr{Name: "x"}); none.IsValid() {
		t.Errorf("network %s", none)
	}
}

func TestPassingErrorsOfAccept(t *testing.T) {
	if wrapped := (&net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}); !passing(wrapped) {
		t.Error("a server out of descriptors would give up its port for ever")
	}
	if passing(&net.OpError{Op: "accept", Err: net.ErrClosed}) || passing(os.NewSyscallError("accept4", syscall.EINVAL)) {
		t.Error("a dead listener would be asked for ever")
	}
}
