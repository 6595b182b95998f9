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
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

const domain = "ward.example"

// patience is how long a test waits for what must happen; it is never waited for in a passing run.
const patience = 20 * time.Second

// authority is a CA made for one test.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	next int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(100 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))(t)
	return &authority{t: t, key: key, cert: must(x509.ParseCertificate(der))(t), next: 1}
}

// issue makes a certificate for a SPIFFE id that ends at notAfter.
func (a *authority) issue(id string, notAfter time.Time) tls.Certificate {
	a.t.Helper()
	a.next++
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(a.t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{must(url.Parse(id))(a.t)},
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
		VerifiedChains: [][]*x509.Certificate{{cert.Leaf, a.cert}},
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

// heldJournal is a journal that commits in groups, and only while it is not held. It is stricter than the real one: an id or a head
// that is not what the kind demands, an id that comes twice or a call after close fails the test.
type heldJournal struct {
	t       testing.TB
	mu      sync.Mutex
	moved   *sync.Cond
	held    bool
	closed  bool
	fail    error // given to the next groups instead of a commit
	refuse  error // given by Submit
	counter uint64
	ids     map[audit.EventID]bool
	queue   []waitingEntry
	done    []journal.Entry
	running sync.WaitGroup
}

type waitingEntry struct {
	entry journal.Entry
	done  func(uint64, error)
}

func newJournal(t testing.TB) *heldJournal {
	j := &heldJournal{t: t, ids: make(map[audit.EventID]bool)}
	j.moved = sync.NewCond(&j.mu)
	j.running.Go(j.run)
	return j
}

func (j *heldJournal) run() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		for !j.closed && (j.held || len(j.queue) == 0) {
			j.moved.Wait()
		}
		if len(j.queue) == 0 && j.closed {
			return
		}
		group, err := j.queue, j.fail
		j.queue = nil
		for i := range group {
			if err == nil {
				group[i].entry.Seq = uint64(len(j.done) + 1)
				j.done = append(j.done, group[i].entry)
			}
		}
		j.moved.Broadcast()
		j.mu.Unlock()
		for _, w := range group {
			w.done(w.entry.Seq, err)
		}
		j.mu.Lock()
	}
}

func (j *heldJournal) close() {
	j.mu.Lock()
	j.closed = true
	j.moved.Broadcast()
	j.mu.Unlock()
	j.running.Wait()
}

func (j *heldJournal) NextID() audit.EventID {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counter++
	var id audit.EventID
	binary.BigEndian.PutUint64(id[8:], j.counter)
	return id
}

func (j *heldJournal) Submit(e journal.Entry, done func(uint64, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.refuse != nil {
		return j.refuse
	}
	if j.closed {
		j.t.Error("journal: submit after close")
		return errors.New("closed")
	}
	if e.ID == (audit.EventID{}) || j.ids[e.ID] {
		j.t.Errorf("journal: id %s is zero or comes twice", e.ID)
	}
	j.ids[e.ID] = true
	if err := strict(e); err != nil {
		j.t.Errorf("journal: %v", err)
	}
	j.queue = append(j.queue, waitingEntry{e, done})
	j.moved.Broadcast()
	return nil
}

func strict(e journal.Entry) error {
	switch e.Kind {
	case journal.KindPublish:
		row, err := audit.DecodeRow(e.Head)
		if err != nil {
			return err
		}
		if row.ID != e.ID || row.Frame != seal.FrameHash(e.Blob) || row.Session == (audit.EventID{}) {
			return errors.New("row does not describe its entry")
		}
	case journal.KindEvent, journal.KindSealing:
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			return err
		}
		if ev.ID != e.ID || (e.Kind == journal.KindSealing) != (ev.Type == audit.SealingBrought) || (len(e.Blob) > 0) != (e.Kind == journal.KindSealing) {
			return fmt.Errorf("event %s does not fit its entry", ev.Type)
		}
	default:
		return fmt.Errorf("kind %d", e.Kind)
	}
	return nil
}

func (j *heldJournal) Append(ctx context.Context, entries ...journal.Entry) error {
	errs := make(chan error, len(entries))
	for _, e := range entries {
		if err := j.Submit(e, func(_ uint64, err error) { errs <- err }); err != nil {
			return err
		}
	}
	for range entries {
		select {
		case err := <-errs:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (j *heldJournal) set(change func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change()
	j.moved.Broadcast()
}

func (j *heldJournal) hold()    { j.set(func() { j.held = true }) }
func (j *heldJournal) release() { j.set(func() { j.held = false }) }

// queued gives how many entries wait for their commit.
func (j *heldJournal) queued() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.queue)
}

// events gives the committed events of a type.
func (j *heldJournal) events(t audit.Type) []audit.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []audit.Event
	for _, e := range j.done {
		if e.Kind == journal.KindPublish {
			continue
		}
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			j.t.Error(err)
		}
		if ev.Type == t {
			found = append(found, ev)
		}
	}
	return found
}

// rows gives the committed publishes in order.
func (j *heldJournal) rows() []audit.Row {
	j.mu.Lock()
	defer j.mu.Unlock()
	var rows []audit.Row
	for _, e := range j.done {
		if e.Kind == journal.KindPublish {
			row, err := audit.DecodeRow(e.Head)
			if err != nil {
				j.t.Error(err)
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// fakeRegistry admits whom it is told to, on all lanes unless told otherwise.
type fakeRegistry struct {
	mu       sync.Mutex
	revision int64
	err      error
	lanes    map[string]uint8
	inactive map[string]bool
}

func newRegistry(gateways ...string) *fakeRegistry {
	r := &fakeRegistry{lanes: make(map[string]uint8), inactive: make(map[string]bool)}
	for _, g := range gateways {
		r.lanes[g] = 0x0f
	}
	return r
}

func (r *fakeRegistry) Admit(ctx context.Context, gateway string) (registry.Admission, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lanes, known := r.lanes[gateway]
	switch {
	case r.err != nil:
		return registry.Admission{}, r.err
	case ctx.Err() != nil:
		return registry.Admission{}, ctx.Err()
	case !known:
		return registry.Admission{}, fmt.Errorf("gateway %s: %w", gateway, registry.ErrUnknown)
	case r.inactive[gateway]:
		return registry.Admission{}, fmt.Errorf("gateway %s: %w", gateway, registry.ErrNotActive)
	}
	return registry.Admission{Gateway: gateway, Lanes: lanes}, nil
}

func (r *fakeRegistry) Revision(context.Context) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revision, r.err
}

func (r *fakeRegistry) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.revision++
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
	b.srv = New(Config{Journal: b.journal, Registry: b.reg, TrustDomain: domain, Limits: limits, Down: b.down})
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
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: b.ca.pool(), SessionTicketsDisabled: true,
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
		if n := len(srv.all()) + srv.waiting; n != 0 {
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
