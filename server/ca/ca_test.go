package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/enroll/verify"
	"wardlink/internal/spiffe"
	"wardlink/internal/swtpmtest"
	"wardlink/server/boot"
	"wardlink/server/ca/acmedb"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// TestMain is also the child of the tests that kill a CA.
func TestMain(m *testing.M) {
	if os.Getenv("WARDLINK_TEST_CA") != "" {
		fmt.Fprintln(os.Stderr, childCA())
		os.Exit(1)
	}
	swtpmtest.Main(m)
}

const domain = "ward.example"

// registryFake is stricter than the real one: a key without a gateway, a second owner or an unproven waiting TPM fails.
type registryFake struct {
	mu      sync.Mutex
	active  map[[32]byte]string
	blocked map[[32]byte]bool
	revoked map[[32]byte]string // reasons
	waiting map[[32]byte]Waiting
	keys    map[[32]byte]Key
	aks     map[[32]byte]string
	cut     map[[32]byte]*CutOffError
	booted  []boot.Measurement // as attested
	claimed []Contention
	code    string   // that a first attestation wants
	codes   []string // that were given
	fail    error
	late    func() // revokes just before a key is entered
}

func (r *registryFake) ByEK(_ context.Context, ek [32]byte) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return "", r.fail
	}
	if reason, ok := r.revoked[ek]; ok {
		return r.active[ek], &RevokedError{reason}
	}
	if c := r.cut[ek]; c != nil {
		return r.active[ek], c
	}
	if r.blocked[ek] {
		return r.active[ek], ErrNotActive
	}
	if id, ok := r.active[ek]; ok {
		return id, nil
	}
	return "", ErrUnknown
}

func (r *registryFake) Contend(_ context.Context, c Contention) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Gateway == c.Rival || c.Rival == "" || c.Peer == "" {
		return errors.New("contention is not described")
	}
	r.claimed = append(r.claimed, c)
	return nil
}

func (r *registryFake) Wait(_ context.Context, w Waiting) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sha256.Sum256(w.EKPublic) != w.EK || w.Manufacturer == "" {
		return errors.New("waiting TPM is not described")
	}
	r.waiting[w.EK] = w
	return nil
}

func (r *registryFake) Attested(_ context.Context, gateway string, v *verify.Verified, code string, booted boot.Measurement) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ek, ak := v.EK, v.AKName
	if code != "" {
		r.codes = append(r.codes, code)
	}
	if r.code != code && r.aks[ek] == "" {
		return &CodeError{"the one-time code is wrong"}
	}
	if r.active[ek] != gateway || len(ak) != 34 { // algorithm and SHA-256
		return errors.New("the attestation key is not described")
	}
	r.aks[ek] = string(ak)
	r.booted = append(r.booted, booted)
	return r.fail
}

func (r *registryFake) AddKey(_ context.Context, k Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	if r.late != nil {
		r.late()
		return ErrNotActive
	}
	if old, ok := r.keys[k.SPKI]; ok && old.Gateway != k.Gateway {
		return ErrTaken
	}
	if r.active[k.EK] != k.Gateway || sha256.Sum256(k.Public) != k.SPKI || k.Serial == "" || !k.NotAfter.After(k.NotBefore) {
		return errors.New("key is not described")
	}
	r.keys[k.SPKI] = k
	return nil
}

func (r *registryFake) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// hospital is a CA with all that it needs, behind TLS.
type hospital struct {
	t        testing.TB
	ca       *CA
	registry *registryFake
	server   *httptest.Server
	root     *x509.Certificate
	rootKey  *ecdsa.PrivateKey

	mu     sync.Mutex
	events []audit.Event
	fail   audit.Type // events of this type cannot be journaled
}

func newHospital(t testing.TB, adjust func(*Config)) *hospital {
	t.Helper()
	trust := ekTrust(t)
	return hospitalOf(t, func(c *Config) {
		c.EKTrust = func() verify.Trust { return trust }
		if adjust != nil {
			adjust(c)
		}
	})
}

// hospitalOf is a hospital that trusts no maker of TPMs: no emulator is made for it.
func hospitalOf(t testing.TB, adjust func(*Config)) *hospital {
	t.Helper()
	now := time.Now()
	root, rootKey, err := NewRoot(domain, now)
	if err != nil {
		t.Fatal(err)
	}
	issuing, issuingKey, err := NewIssuing(domain, root, rootKey, now)
	if err != nil {
		t.Fatal(err)
	}
	attestation, attestationKey, err := NewAttestation(domain, now)
	if err != nil {
		t.Fatal(err)
	}
	h := &hospital{t: t, root: root, rootKey: rootKey, registry: &registryFake{active: map[[32]byte]string{}, blocked: map[[32]byte]bool{}, revoked: map[[32]byte]string{},
		waiting: map[[32]byte]Waiting{}, keys: map[[32]byte]Key{}, aks: map[[32]byte]string{}, cut: map[[32]byte]*CutOffError{}}}
	cfg := Config{TrustDomain: domain, DNSNames: []string{"127.0.0.1"}, Roots: []*x509.Certificate{root}, Issuing: issuing, IssuingKey: issuingKey,
		Attestation: attestation, AttestationKey: attestationKey, DB: testDB(t),
		Registry: h.registry, Events: h.event, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	if adjust != nil {
		adjust(&cfg)
	}
	if h.ca, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.ca.Close(); err != nil {
			t.Error(err)
		}
	})
	h.server = httptest.NewTLSServer(h.ca)
	t.Cleanup(h.server.Close)
	return h
}

// testDB is a database with the CA's tables.
func testDB(t testing.TB) *sqldb.DB {
	db, _ := sqldbtest.New(t, acmedb.Migrations()...)
	return db
}

// ekTrust is the CA of the TPMs of this test process.
func ekTrust(t testing.TB) verify.Trust {
	t.Helper()
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for name, pool := range map[string]*x509.CertPool{"swtpm-localca-rootca-cert.pem": roots, "issuercert.pem": intermediates} {
		data, err := os.ReadFile(filepath.Join(swtpmtest.Shared(t).CA, name))
		if err != nil || !pool.AppendCertsFromPEM(data) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return verify.Trust{Roots: roots, Intermediates: intermediates}
}

func (h *hospital) event(_ context.Context, e audit.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail == e.Type {
		return errors.New("the journal is full")
	}
	if e.Type == "" || e.Time == 0 || e.Actor.ID == "" || e.Outcome == "" {
		h.t.Errorf("event is not complete: %+v", e)
	}
	h.events = append(h.events, e)
	return nil
}

func (h *hospital) count(kind audit.Type) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, e := range h.events {
		if e.Type == kind {
			n++
		}
	}
	return n
}

// gateway is an agent's identity half on a TPM.
type gateway struct {
	tpm *tpm.TPM
	dir string
	e   *enroll.Enroller
	ek  [32]byte
	log string // its event log; "" is the machine's
}

func (h *hospital) gateway(t *testing.T, path string) *gateway {
	t.Helper()
	d, err := tpm.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{tpm: d, dir: filepath.Join(t.TempDir(), "identity"), ek: ek.Hash}
	g.e = h.enroller(t, g)
	return g
}

func (h *hospital) enroller(t *testing.T, g *gateway) *enroll.Enroller {
	t.Helper()
	e, err := enroll.New(enroll.Config{CodeFile: filepath.Join(g.dir, "enrol-code"), TPM: g.tpm, Dir: g.dir, Attestation: h.server.URL + "/attestation",
		Directory: h.server.URL + "/acme/attest/directory", HTTP: h.server.Client(), EventLog: g.log, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// testLog shows logs of failed tests.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}

func TestEnrolAndRenew(t *testing.T) {
	h := newHospital(t, nil)
	sw := swtpmtest.Start(t)
	g := h.gateway(t, sw.Path)

	if _, err := g.e.Load(t.Context()); !errors.Is(err, enroll.ErrNone) {
		t.Fatalf("a fresh gateway has an identity: %v", err)
	}
	var waiting *enroll.WaitingError
	if _, err := g.e.Enroll(t.Context()); !errors.As(err, &waiting) || waiting.Fingerprint != enroll.Fingerprint(g.ek) {
		t.Fatalf("an unregistered gateway: %v", err)
	}
	if w, ok := h.registry.waiting[g.ek]; !ok || !w.Chain || w.Manufacturer != "id:00001014" || w.Model != "swtpm" || w.Peer == "" {
		t.Fatalf("waiting list: %+v", w)
	}
	h.registry.set(func() { h.registry.active[g.ek] = "gw-icu-1" })

	first, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.checkIdentity(t, first, "gw-icu-1")
	second, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.checkIdentity(t, second, "gw-icu-1")
	if first.Certificate.Leaf.SerialNumber.Cmp(second.Certificate.Leaf.SerialNumber) == 0 {
		t.Fatal("the renewal is the same certificate")
	}
	if !first.Certificate.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(second.Certificate.Leaf.PublicKey) {
		t.Fatal("the renewal has another key")
	}
	if n := h.count(audit.CertIssued); n != 2 {
		t.Errorf("%d certificate events; expected 2", n)
	}
	if n := h.count(audit.AKCertified); n != 2 {
		t.Errorf("%d AK events; expected 2", n)
	}
	accounts, err := os.ReadFile(filepath.Join(g.dir, "account.pem"))
	if err != nil || len(accounts) == 0 {
		t.Errorf("the ACME account is not kept: %v", err)
	}

	// The agent is started again, on the same TPM after a power cycle.
	g.tpm.Close()
	sw.Restart()
	if g.tpm, err = tpm.Open(t.Context(), sw.Path); err != nil {
		t.Fatal(err)
	}
	defer g.tpm.Close()
	loaded, err := h.enroller(t, g).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.checkIdentity(t, loaded, "gw-icu-1")
	if loaded.Certificate.Leaf.SerialNumber.Cmp(second.Certificate.Leaf.SerialNumber) != 0 {
		t.Fatal("the kept certificate is not the last one")
	}

	// Lost keys on an enrolled gateway are an error, not a fresh start.
	for _, name := range []string{"ak.tpm", "device.tpm"} {
		if err := os.Remove(filepath.Join(g.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.enroller(t, g).Enroll(t.Context()); !errors.Is(err, tpm.ErrMissing) {
		t.Errorf("enrolled with lost keys: %v", err)
	}
}

// checkIdentity verifies the certificate as any server would, and uses its key in a TLS handshake.
func (h *hospital) checkIdentity(t *testing.T, id *enroll.Identity, want string) {
	t.Helper()
	if id.Gateway != want || id.ID != (spiffe.ID{TrustDomain: domain, Kind: spiffe.Gateway, Name: want}) {
		t.Fatalf("identity: %+v", id)
	}
	pool := x509.NewCertPool()
	pool.AddCert(h.root)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, err := spiffe.FromCertificate(r.TLS.PeerCertificates[0])
		if err != nil || got != id.ID {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	defer server.Close()
	client := server.Client()
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{id.Certificate}
	answer, err := client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("mutual TLS: %s", answer.Status)
	}
	leaf := id.Certificate.Leaf
	if err := checkSVID(leaf, id.ID); err != nil {
		t.Error(err)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > 24*time.Hour+2*time.Minute {
		t.Errorf("life: %v", life)
	}
	key, ok := h.registry.keys[sha256.Sum256(leaf.RawSubjectPublicKeyInfo)]
	if !ok || key.Gateway != want {
		t.Errorf("the registry does not hold the key: %+v", key)
	}
	if !leaf.PublicKey.(*ecdsa.PublicKey).Equal(id.Signer().Public()) {
		t.Error("the signer is for another key")
	}
}
