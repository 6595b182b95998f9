package ingest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

const domain = "ward.example"

var (
	_ Journal  = (*journal.Journal)(nil)
	_ Registry = (*registry.Registry)(nil)
)

// patience is how long a test waits for what must happen; it is never waited for in a passing run.
const patience = 20 * time.Second

// authority is a CA made for one test.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	next int64

	usage []x509.ExtKeyUsage // nil: TLS clients and servers
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	return authorityUntil(t, time.Now().Add(100*time.Hour))
}

func authorityUntil(t testing.TB, notAfter time.Time) *authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: time.Now().Add(-200 * time.Hour),
		NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))(t)
	return &authority{t: t, key: key, cert: must(x509.ParseCertificate(der))(t), next: 1}
}

// issue makes a certificate for a SPIFFE id that ends at notAfter.
func (a *authority) issue(id string, notAfter time.Time) tls.Certificate {
	a.t.Helper()
	return a.between(id, min(time.Now().Add(-time.Hour).Unix(), notAfter.Add(-time.Hour).Unix()), notAfter)
}

// from makes a gateway's certificate that begins then.
func (a *authority) from(name string, notBefore time.Time) tls.Certificate {
	a.t.Helper()
	return a.between("spiffe://"+domain+"/gateway/"+name, notBefore.Unix(), notBefore.Add(time.Hour))
}

func (a *authority) between(id string, notBefore int64, notAfter time.Time) tls.Certificate {
	a.t.Helper()
	a.next++
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(a.t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), NotBefore: time.Unix(notBefore, 0), NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{must(url.Parse(id))(a.t)},
	}
	if a.usage != nil {
		tmpl.ExtKeyUsage = a.usage
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key))(a.t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))(a.t)}
}

func (a *authority) gateway(name string) tls.Certificate {
	return a.issue("spiffe://"+domain+"/gateway/"+name, time.Now().Add(10*time.Hour))
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// state is what a TLS 1.3 handshake with cert would have left, for connections without TLS.
func (a *authority) state(cert tls.Certificate) tls.ConnectionState {
	return tls.ConnectionState{
		Version: tls.VersionTLS13, HandshakeComplete: true, PeerCertificates: []*x509.Certificate{cert.Leaf},
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// bench is a server with its fakes, listening over TLS.
type bench struct {
	t       testing.TB
	ca      *authority
	journal *heldJournal
	reg     *fakeRegistry
	srv     *Server
	addr    string
	serving sync.WaitGroup
}

func newBench(t testing.TB, limits Limits, gateways ...string) *bench {
	t.Helper()
	b := &bench{t: t, ca: newAuthority(t), journal: newJournal(t), reg: newRegistry(gateways...)}
	b.srv = New(Config{Journal: b.journal, Registry: b.reg, TrustDomain: domain, Roots: b.ca.pool(), Limits: limits, Down: b.down})
	b.listen(b.srv)
	return b
}

func (b *bench) down(_ context.Context, gateway string) ([]Document, error) {
	return []Document{{telemetry.DocConfig, []byte("config of " + gateway)}, {telemetry.DocHint, []byte("hint")}}, nil
}

// listen serves until the test ends; then the server is drained and nothing of it may be left.
func (b *bench) listen(srv *Server) {
	b.t.Helper()
	stop := b.serve(srv)
	b.t.Cleanup(func() {
		b.journal.release()
		stop()
		b.journal.close()
	})
}

// serve accepts connections until stop.
func (b *bench) serve(srv *Server) (stop func()) {
	b.t.Helper()
	cert := b.ca.issue("spiffe://"+domain+"/service/ingest", time.Now().Add(time.Hour))
	ln := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"mqtt"},
		ClientAuth: tls.RequestClientCert, ClientCAs: b.ca.pool(), VerifyConnection: srv.VerifyConnection, SessionTicketsDisabled: true,
	}))(b.t)
	b.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	b.serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			b.serving.Go(func() {
				tc := conn.(*tls.Conn)
				if tc.HandshakeContext(ctx) != nil {
					tc.Close()
					return
				}
				srv.ServeConn(ctx, tc, tc.ConnectionState())
			})
		}
	})
	return func() {
		ln.Close()
		cancel()
		drain, stop := context.WithTimeout(context.Background(), patience)
		defer stop()
		if err := srv.Drain(drain); err != nil {
			b.t.Errorf("drain: %v", err)
		}
		b.serving.Wait()
		if n := len(srv.all()) + len(srv.waiting); n != 0 {
			b.t.Errorf("%d connections left after the drain", n)
		}
	}
}

// client is a raw MQTT client.
type client struct {
	t    testing.TB
	conn net.Conn
	buf  [5]byte
}

// dial makes a TLS connection with cert.
func (b *bench) dial(cert ...tls.Certificate) *client {
	b.t.Helper()
	conn := must(tls.Dial("tcp", b.addr, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: cert, InsecureSkipVerify: true, NextProtos: []string{"mqtt"},
	}))(b.t)
	b.t.Cleanup(func() { conn.Close() })
	must(0, conn.SetDeadline(time.Now().Add(patience)))(b.t)
	return &client{t: b.t, conn: conn}
}

// connect makes a session for a gateway.
func (b *bench) connect(name string) *client {
	b.t.Helper()
	c := b.dial(b.ca.gateway(name))
	c.send(connectPacket(name, 60))
	c.expectConnack(connackAccepted)
	return c
}

func (c *client) send(packets ...[]byte) {
	c.t.Helper()
	for _, p := range packets {
		if _, err := c.conn.Write(p); err != nil {
			c.t.Fatalf("write: %v", err)
		}
	}
}

// packet reads one packet of the server; io.EOF when it hung up.
func (c *client) packet() (header, []byte, error) {
	h := header{}
	if _, err := io.ReadFull(c.conn, c.buf[:2]); err != nil {
		return h, nil, err
	}
	h.kind, h.flags = kind(c.buf[0]>>4), c.buf[0]&15
	n, shift := int(c.buf[1]&0x7f), 7
	for b := c.buf[1]; b&0x80 != 0; shift += 7 {
		if _, err := io.ReadFull(c.conn, c.buf[:1]); err != nil {
			return h, nil, err
		}
		b = c.buf[0]
		n |= int(b&0x7f) << shift
	}
	h.size = n
	body := make([]byte, n)
	_, err := io.ReadFull(c.conn, body)
	return h, body, err
}

func (c *client) expect(k kind) []byte {
	c.t.Helper()
	h, body, err := c.packet()
	if err != nil {
		c.t.Fatalf("expected packet %d, got %v", k, err)
	}
	if h.kind != k {
		c.t.Fatalf("expected packet %d, got %d", k, h.kind)
	}
	return body
}

func (c *client) expectConnack(code byte) {
	c.t.Helper()
	if body := c.expect(kindConnack); body[0] != 0 || body[1] != code {
		c.t.Fatalf("CONNACK %v, expected code %d", body, code)
	}
}

func (c *client) expectPuback(id uint16) {
	c.t.Helper()
	if got := binary.BigEndian.Uint16(c.expect(kindPuback)); got != id {
		c.t.Fatalf("PUBACK %d, expected %d", got, id)
	}
}

// expectEnd reads until the server hangs up and gives the packets that came before.
func (c *client) expectEnd() []header {
	c.t.Helper()
	var seen []header
	for {
		h, _, err := c.packet()
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			c.t.Fatal("the server did not hang up")
		}
		if err != nil {
			c.conn.Close()
			return seen
		}
		seen = append(seen, h)
	}
}

func connectPacket(id string, keepAlive uint16) []byte {
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2}, byte(keepAlive>>8), byte(keepAlive))
	return raw(0x10, append(body, str(id)...))
}

func str(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func raw(first byte, body []byte) []byte {
	return append(appendLength([]byte{first}, len(body)), body...)
}

func publishPacket(first byte, topic string, id uint16, payload []byte) []byte {
	body := str(topic)
	if first&6 != 0 {
		body = binary.BigEndian.AppendUint16(body, id)
	}
	return raw(first, append(body, payload...))
}

func subscribePacket(id uint16, filter string, qos byte) []byte {
	return raw(0x82, append(append(binary.BigEndian.AppendUint16(nil, id), str(filter)...), qos))
}

// period is a sealing period of a gateway with its signed record.
type period struct {
	t      testing.TB
	p      *seal.Period
	signed []byte
}

func newPeriod(t testing.TB) *period {
	t.Helper()
	key := must(seal.GenerateKey())(t)
	var epoch telemetry.Epoch
	rand.Read(epoch[:])
	p := must(seal.NewPeriod(key.Public(), epoch, time.Now()))(t)
	device := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	return &period{t: t, p: p, signed: must(seal.SignRecord(p.Record(), device))(t)}
}

func (p *period) frame(lane telemetry.Lane, number uint64, size int) []byte {
	p.t.Helper()
	return must(p.p.Seal(seal.Header{Lane: lane, Number: number, Count: 1}, make([]byte, size)))(p.t)
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("%s did not happen within %s", what, patience)
		case <-tick.C:
		}
	}
}
