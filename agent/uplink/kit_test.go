package uplink

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"wardlink/buffer"
	"wardlink/internal/spiffe"
	"wardlink/server/ingest"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

const (
	domain   = "ward.example"
	gateway  = "gw-1"
	patience = 30 * time.Second
)

var _ Buffer = (*buffer.Buffer)(nil)

var serverID = spiffe.ID{TrustDomain: domain, Kind: spiffe.Service, Name: "ingest"}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	next int64
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(100 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))(t)
	return &authority{t: t, key: key, cert: must(x509.ParseCertificate(der))(t), next: 1}
}

func (a *authority) issue(id string, usage x509.ExtKeyUsage, notAfter time.Time) tls.Certificate {
	a.t.Helper()
	a.next++
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(a.t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, URIs: []*url.URL{must(url.Parse(id))(a.t)},
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key))(a.t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))(a.t)}
}

func (a *authority) gateway() tls.Certificate {
	return a.issue("spiffe://"+domain+"/gateway/"+gateway, x509.ExtKeyUsageClientAuth, time.Now().Add(10*time.Hour))
}

func (a *authority) service(name string) tls.Certificate {
	return a.issue("spiffe://"+domain+"/service/"+name, x509.ExtKeyUsageServerAuth, time.Now().Add(10*time.Hour))
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// hospital is an ingest server that can be killed and started again at the same address.
type hospital struct {
	t       testing.TB
	ca      *authority
	journal *memJournal
	store   ingest.Journal // in its place; nil: journal
	lanes   uint8
	speaks  telemetry.Versions // zero: the product's
	first   bool               // of the first release: no user name is taken
	tls     *tls.Config
	addr    string
	wrap    func(net.Conn) net.Conn // of each connection, within TLS; nil: as it is
	mu      sync.Mutex
	srv     *ingest.Server
	stop    context.CancelFunc
	ln      net.Listener
	serving *sync.WaitGroup
}

func newHospital(t testing.TB) *hospital {
	t.Helper()
	h := &hospital{t: t, ca: newAuthority(t, "hospital root"), journal: newMemJournal(t), lanes: 0x0f, addr: "127.0.0.1:0"}
	h.tls = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{h.ca.service("ingest")}, NextProtos: []string{"mqtt"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: h.ca.pool(), SessionTicketsDisabled: true,
	}
	return h
}

func (h *hospital) start() {
	h.t.Helper()
	h.journal.restart()
	var store ingest.Journal = h.journal
	if h.store != nil {
		store = h.store
	}
	srv := ingest.New(ingest.Config{Journal: store, Registry: memRegistry{h.lanes}, TrustDomain: domain, Roots: h.ca.pool(), Down: h.down, Versions: h.speaks})
	h.srv = srv
	h.ln = must(net.Listen("tcp", h.addr))(h.t)
	h.addr = h.ln.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.serving = stop, new(sync.WaitGroup)
	ln, serving := h.ln, h.serving
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				tc := tls.Server(conn, h.tls)
				if tc.HandshakeContext(ctx) != nil {
					conn.Close()
					return
				}
				if h.first {
					if conn = refuseUserName(tc); conn == nil {
						return
					}
					srv.ServeConn(ctx, conn, tc.ConnectionState())
					return
				}
				if h.wrap != nil {
					srv.ServeConn(ctx, h.wrap(tc), tc.ConnectionState())
					return
				}
				srv.ServeConn(ctx, tc, tc.ConnectionState())
			})
		}
	})
	h.t.Cleanup(h.kill)
}

// kill ends the server as SIGKILL would: what was not committed is gone, and nobody is told.
func (h *hospital) kill() {
	h.ln.Close()
	h.journal.crash()
	h.stop()
	h.serving.Wait()
}

func (h *hospital) down(_ context.Context, g string) ([]ingest.Document, error) {
	return []ingest.Document{{Doc: telemetry.DocConfig, Body: []byte("config of " + g)}}, nil
}

type fate uint8

const (
	waiting fate = iota
	taken
	acked
	parked
)

// strictBuffer is a Buffer in memory that fails the test when a batch meets a fate that it cannot have, and asks the journal
// whether an acknowledged batch is there.
type strictBuffer struct {
	t       testing.TB
	check   func(id buffer.ID) error // of an acknowledgement
	mu      sync.Mutex
	order   []buffer.Batch
	fates   map[buffer.ID]fate
	reasons map[buffer.ID]string
	taken   int // at the moment
	most    int // taken at one time
	changed chan struct{}
	urgent  bool
	resting uint8
	again   []buffer.Batch // parked, to be offered once more
	tries   map[buffer.ID]bool
}

func newStrictBuffer(t testing.TB) *strictBuffer {
	return &strictBuffer{
		t: t, fates: make(map[buffer.ID]fate), reasons: make(map[buffer.ID]string), tries: make(map[buffer.ID]bool), changed: make(chan struct{}, 1),
		check: func(buffer.ID) error { return nil },
	}
}

func (b *strictBuffer) add(batches ...buffer.Batch) {
	b.mu.Lock()
	b.order = append(b.order, batches...)
	b.mu.Unlock()
	b.signal()
}

func (b *strictBuffer) signal() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

func (b *strictBuffer) Began() {}

func (b *strictBuffer) Rest(lanes uint8) {
	b.mu.Lock()
	b.resting = lanes
	b.mu.Unlock()
	b.signal()
}

func (b *strictBuffer) Take(most int) ([]buffer.Batch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []buffer.Batch
	for _, batch := range b.order {
		if len(out) == most {
			break
		}
		if b.fates[batch.ID] == waiting && b.resting>>batch.ID.Lane&1 == 0 {
			b.fates[batch.ID] = taken
			b.taken++
			out = append(out, batch)
		}
	}
	b.most = max(b.most, b.taken)
	return out, nil
}

func (b *strictBuffer) move(id buffer.ID, to fate) {
	if b.fates[id] != taken {
		b.t.Errorf("batch %d/%d moves from %d to %d without having been taken", id.Lane, id.Number, b.fates[id], to)
	}
	b.fates[id] = to
	b.taken--
}

func (b *strictBuffer) Ack(ids ...buffer.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		if err := b.check(id); err != nil {
			b.t.Error(err)
		}
		b.move(id, acked)
	}
}

func (b *strictBuffer) Release(ids ...buffer.ID) {
	b.mu.Lock()
	for _, id := range ids {
		if b.tries[id] { // nobody said anything of it: its turn comes again
			b.move(id, parked)
			for _, batch := range b.order {
				if batch.ID == id {
					b.again = append(b.again, batch)
				}
			}
			continue
		}
		b.move(id, waiting)
	}
	b.mu.Unlock()
	b.signal()
}

func (b *strictBuffer) Park(id buffer.ID, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.move(id, parked)
	b.reasons[id] = reason
}

// TakeParked fails the test where one is out already: they are sent one at a time.
func (b *strictBuffer) TakeParked() (batch buffer.Batch, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.again) == 0 {
		return batch, false, nil
	}
	if b.taken > 0 {
		b.t.Errorf("a parked batch is asked for while %d are out", b.taken)
	}
	batch, b.again = b.again[0], b.again[1:]
	if b.fates[batch.ID] != parked {
		b.t.Errorf("batch %d/%d is offered again and is not parked", batch.ID.Lane, batch.ID.Number)
	}
	b.fates[batch.ID], b.tries[batch.ID] = taken, true
	b.taken++
	return batch, true, nil
}

func (b *strictBuffer) Changed() <-chan struct{} { return b.changed }

func (b *strictBuffer) Urgent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.urgent
}

func (b *strictBuffer) count(f fate) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, batch := range b.order {
		if b.fates[batch.ID] == f {
			n++
		}
	}
	return n
}

// ward is a gateway's sealing periods.
type ward struct {
	t       testing.TB
	key     seal.PublicKey
	device  *ecdsa.PrivateKey
	epoch   telemetry.Epoch
	numbers [telemetry.LaneCount]uint64

	mu      sync.Mutex
	periods map[[16]byte]*seal.Period
	err     error // of sealing
	asked   int
}

func newWard(t testing.TB) *ward {
	t.Helper()
	key := must(seal.GenerateKey())(t)
	w := &ward{t: t, key: key.Public(), device: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t), periods: make(map[[16]byte]*seal.Period)}
	rand.Read(w.epoch[:])
	return w
}

func (w *ward) period() *seal.Period {
	w.t.Helper()
	p := must(seal.NewPeriod(w.key, w.epoch, time.Now()))(w.t)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.periods[p.ID()] = p
	return p
}

func (w *ward) batches(p *seal.Period, lane telemetry.Lane, n, size int) []buffer.Batch {
	w.t.Helper()
	var out []buffer.Batch
	for range n {
		id := buffer.ID{Epoch: w.epoch, Lane: uint8(lane), Number: w.numbers[lane]}
		w.numbers[lane]++
		frame := must(p.Seal(seal.Header{Lane: lane, Number: id.Number, Count: 1}, make([]byte, size)))(w.t)
		out = append(out, buffer.Batch{ID: id, Sealing: p.ID(), Frame: frame})
	}
	return out
}

func (w *ward) sealing(_ context.Context, id [16]byte) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	p, ok := w.periods[id]
	switch {
	case w.err != nil:
		return nil, w.err
	case !ok:
		return nil, fmt.Errorf("sealing %x: %w", id, ErrNoSealing)
	}
	return seal.SignRecord(p.Record(), w.device)
}

// quick are waits for tests over real sockets.
func quick() timing {
	t := defaultTiming
	t.least, t.most, t.identity, t.sealing, t.stable = 120*time.Millisecond, 200*time.Millisecond, 20*time.Millisecond, 50*time.Millisecond, time.Second
	return t
}

// agent is an uplink with its fakes.
type agent struct {
	*Uplink
	t      testing.TB
	buf    *strictBuffer
	ward   *ward
	down   chan string
	idMu   sync.Mutex
	cert   tls.Certificate
	cancel context.CancelFunc
	ran    chan error
}

func newAgent(t testing.TB, h *hospital) *agent {
	t.Helper()
	a := &agent{t: t, buf: newStrictBuffer(t), ward: newWard(t), cert: h.ca.gateway(), down: make(chan string, 100), ran: make(chan error, 1)}
	a.buf.check = func(id buffer.ID) error {
		if h.journal.commits(id) == 0 {
			return fmt.Errorf("batch %d/%d is acknowledged and not journaled", id.Lane, id.Number)
		}
		return nil
	}
	a.Uplink = must(New(Config{
		Servers: []string{h.addr}, Server: serverID, Roots: h.ca.pool(), Identity: a.identity, Buffer: a.buf, Sealing: a.ward.sealing,
		Down: func(doc telemetry.Doc, body []byte) { a.down <- string(doc) + ": " + string(body) },
	}))(t)
	a.timing = quick()
	return a
}

func (a *agent) identity() (tls.Certificate, string, error) {
	a.idMu.Lock()
	defer a.idMu.Unlock()
	if len(a.cert.Certificate) == 0 {
		return tls.Certificate{}, "", errors.New("not enrolled")
	}
	return a.cert, gateway, nil
}

func (a *agent) renew(cert tls.Certificate) {
	a.idMu.Lock()
	defer a.idMu.Unlock()
	a.cert = cert
}

func (a *agent) start() {
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() { a.ran <- a.Run(ctx) }()
	a.t.Cleanup(a.end)
}

// end stops the uplink; then nothing may be taken any more.
func (a *agent) end() {
	if a.cancel == nil {
		return
	}
	a.cancel()
	a.cancel = nil
	select {
	case err := <-a.ran:
		if err != nil {
			a.t.Errorf("run: %v", err)
		}
	case <-time.After(patience):
		a.t.Errorf("the uplink did not end within %s", patience)
	}
	if n := a.buf.count(taken); n != 0 {
		a.t.Errorf("%d batches are still taken after the end", n)
	}
}

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

// urge adds a batch before all others, as a buffer gives out an alarm.
func (b *strictBuffer) urge(batch buffer.Batch) {
	b.mu.Lock()
	b.order = append([]buffer.Batch{batch}, b.order...)
	b.mu.Unlock()
	b.signal()
}

func (b *strictBuffer) fateOf(id buffer.ID) fate {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fates[id]
}

// forget drops batches that have met a fate, so that a long test keeps nothing.
func (b *strictBuffer) forget(f fate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.order[:0:0]
	for _, batch := range b.order {
		if b.fates[batch.ID] == f {
			delete(b.fates, batch.ID)
			continue
		}
		kept = append(kept, batch)
	}
	b.order = kept
}
