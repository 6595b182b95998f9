package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/internal/spiffe"
)

func header2(command, family byte, addresses ...byte) string {
	return string(proxySignature) + string([]byte{0x20 | command, family, 0, byte(len(addresses))}) + string(addresses)
}

var (
	named4 = header2(1, 0x11, 192, 0, 2, 7, 10, 1, 0, 11, 0x15, 0xb3, 0x22, 0xb3)
	// PP2_TYPE_NOOP, which a balancer may add
	named4TLV = header2(1, 0x11, 192, 0, 2, 7, 10, 1, 0, 11, 0x15, 0xb3, 0x22, 0xb3, 4, 0, 1, 0)
	named6    = header2(1, 0x21, append(append(netip.MustParseAddr("2001:db8::7").AsSlice(), make([]byte, 16)...), 0x15, 0xb3, 0, 1)...)
)

func TestProxyHeaders(t *testing.T) {
	for text, want := range map[string]string{
		named4: "192.0.2.7:5555", named4TLV: "192.0.2.7:5555", named6: "[2001:db8::7]:5555", header2(0, 0): "",
		"PROXY TCP4 192.0.2.7 10.1.0.11 5555 8883\r\n": "192.0.2.7:5555", "PROXY TCP6 2001:db8::7 ::1 5555 8883\r\n": "[2001:db8::7]:5555",
		"PROXY UNKNOWN\r\n": "", "PROXY UNKNOWN a b\r\n": "",
	} {
		r := strings.NewReader(text + "rest")
		peer, err := readProxy(r)
		if rest, _ := io.ReadAll(r); err != nil || string(rest) != "rest" || peer.IsValid() != (want != "") || want != "" && peer.String() != want {
			t.Errorf("%q: %v %v, then %q", text, peer, err, rest)
		}
	}
	for _, bad := range []string{
		"", "PROXY", "GET / HTTP/1.1\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00", named4[:20], header2(2, 0x11, make([]byte, 12)...), header2(1, 0x11, 1, 2, 3),
		header2(1, 0x31, make([]byte, 216)...), string(proxySignature) + "\x31\x11\x00\x00", string(proxySignature) + "\x21\x11\xff\xff" + strings.Repeat("x", 65535),
		"PROXY TCP4 2001:db8::7 ::1 5555 8883\r\n", "PROXY TCP6 192.0.2.7 ::1 5555 8883\r\n", "PROXY TCP4 192.0.2.7 10.1.0.11 99999 8883\r\n", "PROXY TCP4 192.0.2.7\r\n",
		"PROXY TCP6 fe80::1%eth0 ::1 5555 8883\r\n", "PROXY " + strings.Repeat("x", 200) + "\r\n", "PROXY TCP4 192.0.2.7  5555 8883\n",
	} {
		if peer, err := readProxy(strings.NewReader(bad)); err == nil {
			t.Errorf("%.60q is taken as %v", bad, peer)
		}
	}
}

func FuzzProxyHeader(f *testing.F) {
	for _, seed := range []string{named4, named4TLV, named6, header2(0, 0), "PROXY TCP4 192.0.2.7 10.1.0.11 5555 8883\r\n", "PROXY UNKNOWN\r\n", "PROXY "} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if peer, err := readProxy(r); err != nil && peer.IsValid() {
			t.Errorf("%v and %v", peer, err)
		}
		if read := len(b) - r.Len(); read > len(proxySignature)+4+maxProxy {
			t.Errorf("read %d bytes", read)
		}
	})
}

// A balancer says where a connection comes from, and that is what is bounded and refused; one without its word gets nowhere, and nobody else's
// word counts.
func TestBalancersNameThePeer(t *testing.T) {
	tr := newTrust(t)
	own := tr.certificate(t, spiffe.Service, "ingest")
	conf := listenerTLS(func() (*tls.Certificate, error) { return &own, nil }, tr.root, "http/1.1")
	conf.ClientAuth = tls.NoClientCert
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	from, err := Balancers{"127.0.0.2", "10.0.0.0/8"}.prefixes()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	refused := map[string]string{}
	d := &doorway{ln: inner, tls: conf, balancers: from, waiting: time.Second, at: newHandshakes(handshakeLimits{each: 1}), refuse: func(peer net.Addr, reason string) {
		mu.Lock()
		defer mu.Unlock()
		refused[address(peer).String()] = reason
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- d.open(ctx, func(conn *tls.Conn, settled func()) {
			settled()
			_, _ = io.WriteString(conn, conn.RemoteAddr().String())
			_ = conn.CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		})
	}()
	var conns []net.Conn
	ask := func(local, header string) string {
		raw := silent(t, local, inner.Addr().String())
		conns = append(conns, raw)
		if _, err := io.WriteString(raw, header); err != nil {
			t.Fatal(err)
		}
		conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		text, _ := io.ReadAll(conn)
		return string(text)
	}
	// Its next one comes from another address, though the balancer's is the same.
	for text, header := range map[string]string{"192.0.2.7:5555": named4, "[2001:db8::7]:5555": named6} {
		if got := ask("127.0.0.2", header); got != text {
			t.Errorf("%q; expected %s", got, text)
		}
	}
	if got := ask("127.0.0.2", named4TLV); got != "" {
		t.Errorf("a second connection of one address is served: %q", got)
	}
	for local, header := range map[string]string{"127.0.0.2": "", "127.0.0.3": named4} {
		if got := ask(local, header); got != "" {
			t.Errorf("%s with %q is served as %s", local, header, got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, conn := range conns {
		conn.Close()
	}
	d.wait()
	mu.Lock()
	defer mu.Unlock()
	if refused["192.0.2.7"] != "too many connections from one address" || refused["127.0.0.2"] != "a balancer's connection without a PROXY header" ||
		refused["127.0.0.3"] != "TLS handshake failed" || len(refused) != 3 {
		t.Error(refused)
	}
	if _, err := (Balancers{"balancer.example"}).prefixes(); err == nil {
		t.Error("a name is taken as a balancer's address")
	}
}

func TestBalancersAreAddressesAndNetworks(t *testing.T) {
	for text, ok := range map[string]bool{
		"10.1.0.5": true, "::ffff:10.1.0.5": true, "10.1.0.0/28": true, "2001:db8::/64": true,
		"::ffff:10.1.0.0/112": false, "fe80::1%eth0": false, "balancer.example": false, "10.1.0.0/33": false, "": false,
	} {
		if _, err := (Balancers{text}).prefixes(); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
