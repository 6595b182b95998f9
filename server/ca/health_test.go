package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll/verify"
	"wardlink/internal/spiffe"
	"wardlink/internal/swtpmtest"
	"wardlink/server/ca/acmedb"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// brokenKey is a key of a module that has gone.
type brokenKey struct {
	crypto.Signer
	broken bool
}

func (b *brokenKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if b.broken {
		return nil, errors.New("the module is gone")
	}
	return b.Signer.Sign(r, digest, opts)
}

// TestProbe: each thing that issuing needs makes the CA unwell when it fails, and only when it fails twice; the first look counts alone.
func TestProbe(t *testing.T) {
	var needs error
	time0 := &clock{at: time.Now()}
	issuing, attestation := &brokenKey{}, &brokenKey{}
	h := newHospital(t, func(c *Config) {
		issuing.Signer, attestation.Signer = c.IssuingKey, c.AttestationKey
		c.IssuingKey, c.AttestationKey = issuing, attestation
		c.Needs = func(context.Context) error { return needs }
		c.Now = time0.now
	})
	for _, tc := range []struct {
		what        string
		spoil, mend func()
		reason      string
	}{
		{"the issuing key", func() { issuing.broken = true }, func() { issuing.broken = false }, "issuing CA: its key does not sign: the module is gone"},
		{"the attestation key", func() { attestation.broken = true }, func() { attestation.broken = false }, "attestation CA: its key does not sign: the module is gone"},
		{"the database", func() { needs = errors.New("database: locked") }, func() { needs = nil }, "database: locked"},
	} {
		h.ca.health = health{}
		tc.spoil()
		if got := h.ca.Probe(t.Context()); got.Well || got.Reason != tc.reason {
			t.Errorf("%s, the first look: %+v", tc.what, got)
		}
		tc.mend()
		if got := h.ca.Probe(t.Context()); !got.Well || got.Reason != "" {
			t.Errorf("%s, mended: %+v", tc.what, got)
		}
		tc.spoil()
		if got := h.ca.Probe(t.Context()); !got.Well {
			t.Errorf("%s, failed once: %+v", tc.what, got)
		}
		time0.pass(time.Minute)
		if got := h.ca.Probe(t.Context()); got.Well || !got.Since.Equal(time0.now()) {
			t.Errorf("%s, failed twice: %+v", tc.what, got)
		}
		tc.mend()
		h.ca.Probe(t.Context())
	}
	time0.pass(IssuingLife)
	if got := h.ca.probe(t.Context()); !errors.Is(got, errIssuerEnded) {
		t.Errorf("after the issuing CA's end: %v", got)
	}
}

// TestProbeWithoutTheDatabase: a CA whose database takes no writes, or cannot be reached, calls itself unwell by its own tables alone: nothing else asks
// after them in a process that is the CA and nothing else.
func TestProbeWithoutTheDatabase(t *testing.T) {
	for what, spoil := range map[string]func(db *sqldb.DB) error{
		"read-only": func(db *sqldb.DB) error {
			setting := "PRAGMA query_only = 1"
			if sqldbtest.Postgres(t) {
				setting = "SET default_transaction_read_only = on" // as on a standby
			}
			return db.Write(t.Context(), func(tx *sql.Tx) error {
				_, err := tx.Exec(setting)
				return err
			})
		},
		"unreachable": (*sqldb.DB).Close,
	} {
		db := ownDB(t)
		h := hospitalOf(t, func(c *Config) { c.DB = db })
		if got := h.ca.Probe(t.Context()); !got.Well {
			t.Fatalf("%s, before: %+v", what, got)
		}
		if err := spoil(db); err != nil {
			t.Fatal(err)
		}
		for range unwellProbes {
			h.ca.Probe(t.Context())
		}
		if got := h.ca.Health(); got.Well || !strings.HasPrefix(got.Reason, "the CA's tables: ") {
			t.Errorf("%s: %+v", what, got)
		}
		_ = db.Close()
	}
}

// ownDB is a testDB that the test may spoil and closes.
func ownDB(t *testing.T) *sqldb.DB {
	t.Helper()
	path := sqldbtest.Path(t)
	if err := sqldb.Create(path, acmedb.Migrations()...); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(path, acmedb.Migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// TestStrangersCannotMakeTheCAUnwell: what is refused, malformed or hung up on says nothing about the CA.
func TestStrangersCannotMakeTheCAUnwell(t *testing.T) {
	h := newHospital(t, nil)
	g := h.gateway(t, swtpmtest.Start(t).Path)
	hungUp, hangUp := context.WithCancel(t.Context())
	hangUp()
	for range 2 * unwellRequests {
		if _, err := g.e.Enroll(t.Context()); err == nil {
			t.Fatal("a stranger got a certificate")
		}
		for _, path := range []string{"/attestation/secret", "/acme/attest/new-order", "/acme/attest/new-nonce"} {
			answer, err := h.server.Client().Post(h.server.URL+path, "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
		}
		h.ca.health.issued(t.Context(), time.Now(), context.Canceled)
		h.ca.health.issued(hungUp, time.Now(), errors.New("interrupted (9)"))
	}
	if got := h.ca.Health(); !got.Well {
		t.Errorf("%+v", got)
	}
}

// TestFailedIssuesMakeTheCAUnwell: certificates of known gateways that fail by our fault do, until one succeeds or nobody asks any more.
func TestFailedIssuesMakeTheCAUnwell(t *testing.T) {
	time0 := &clock{at: time.Now()}
	h := newHospital(t, func(c *Config) { c.Now = time0.now })
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.set(func() { h.registry.active[g.ek] = "gw-1" })
	fail := func(n int) {
		t.Helper()
		h.mu.Lock()
		h.fail = audit.CertIssued
		h.mu.Unlock()
		for range n {
			if _, err := g.e.Enroll(t.Context()); err == nil {
				t.Fatal("enrolled though nothing can be journaled")
			}
		}
		h.mu.Lock()
		h.fail = ""
		h.mu.Unlock()
	}
	fail(unwellRequests - 1)
	if got := h.ca.Health(); !got.Well {
		t.Errorf("unwell too early: %+v", got)
	}
	fail(1)
	if got := h.ca.Health(); got.Well || !strings.Contains(got.Reason, "the journal is full") {
		t.Errorf("after failed issues: %+v", got)
	}
	if got := h.ca.Probe(t.Context()); got.Well {
		t.Errorf("a probe that finds nothing makes it well: %+v", got)
	}
	if _, err := g.e.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.ca.Health(); !got.Well {
		t.Errorf("after a success: %+v", got)
	}
	fail(unwellRequests)
	time0.pass(forgetRequests - time.Second)
	if got := h.ca.Health(); got.Well {
		t.Errorf("forgotten too early: %+v", got)
	}
	time0.pass(time.Minute)
	if got := h.ca.Health(); !got.Well {
		t.Errorf("not forgotten: %+v", got)
	}
	// A gateway that is revoked meanwhile is refused, which is no fault.
	h.registry.set(func() { h.registry.blocked[g.ek] = true })
	for range 2 * unwellRequests {
		_, _ = g.e.Enroll(t.Context())
	}
	if got := h.ca.Health(); !got.Well {
		t.Errorf("refusals count: %+v", got)
	}
	// A board that was entered again under another id, with its endorsement key changed, has its device key yet.
	h.registry.set(func() { h.registry.blocked[g.ek], h.registry.active[g.ek] = false, "gw-2" })
	for range 2 * unwellRequests {
		if _, err := g.e.Enroll(t.Context()); err == nil {
			t.Fatal("one device key became two gateways")
		}
	}
	if got := h.ca.Health(); !got.Well {
		t.Errorf("another gateway's device key counts: %+v", got)
	}
}

// TestSlowBodies: who sends a request's body slowly takes nothing from the time that the CA has for it, so that a gateway cannot make the
// CA fail at it; and takes no place from others.
func TestSlowBodies(t *testing.T) {
	h := newHospital(t, nil)
	var left time.Duration
	h.ca.cfg.Registry = &asked{registryFake: h.registry, by: func(ctx context.Context) {
		until, _ := ctx.Deadline()
		left = time.Until(until)
	}}
	plain := []byte("a secret")
	h.pend(t, plain)
	text := `{"secret": "` + base64.StdEncoding.EncodeToString(plain) + `"}`
	const slow = time.Second
	in, out := io.Pipe()
	go func() {
		_, _ = io.WriteString(out, text[:4])
		time.Sleep(slow)
		_, _ = io.WriteString(out, text[4:])
		_ = out.Close()
	}()
	answer, err := h.server.Client().Post(h.server.URL+"/attestation/secret", "application/json", in)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if left < requestTimeout-slow/2 {
		t.Errorf("%s were left of %s", left, requestTimeout)
	}

	held := make(chan struct{})
	var sent sync.WaitGroup
	for range maxConcurrent {
		body, more := io.Pipe()
		sent.Go(func() {
			if answer, err := h.server.Client().Post(h.server.URL+"/attestation/attest", "application/json", body); err == nil {
				_ = answer.Body.Close()
			}
		})
		_, _ = io.WriteString(more, "{") // taken by the client once the connection stands
		go func() { <-held; _ = more.Close() }()
	}
	time.Sleep(100 * time.Millisecond)
	answer, err = h.server.Client().Post(h.server.URL+"/attestation/attest", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode == http.StatusServiceUnavailable {
		t.Error("slow senders keep the others out")
	}
	close(held)
	sent.Wait()
}

// asked is a registry that shows with which context it is asked.
type asked struct {
	*registryFake
	by func(context.Context)
}

func (a *asked) ByEK(ctx context.Context, ek [32]byte) (string, error) {
	a.by(ctx)
	return a.registryFake.ByEK(ctx, ek)
}

// TestIssuerChanges under an authority that runs: the next certificate and its chain are the new one's.
func TestIssuerChanges(t *testing.T) {
	now := time.Now()
	var root *x509.Certificate
	var rootKey *ecdsa.PrivateKey
	h := newHospital(t, func(c *Config) {
		var err error
		if root, rootKey, err = NewRoot(domain, now); err != nil {
			t.Fatal(err)
		}
		c.Roots = []*x509.Certificate{root}
		if c.Issuing, c.IssuingKey, err = NewIssuing(domain, root, rootKey, now); err != nil {
			t.Fatal(err)
		}
	})
	h.root = root
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.set(func() { h.registry.active[g.ek] = "gw-1" })
	first, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	former := h.ca.Issuer()
	next, nextKey, err := NewIssuing(domain, root, rootKey, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.ca.SetIssuer(next, nextKey); err != nil {
		t.Fatal(err)
	}
	second, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		leaf   *x509.Certificate
		chain  [][]byte
		issuer *x509.Certificate
	}{
		"before": {first.Certificate.Leaf, first.Certificate.Certificate, former}, "after": {second.Certificate.Leaf, second.Certificate.Certificate, next},
	} {
		if tc.leaf.CheckSignatureFrom(tc.issuer) != nil || len(tc.chain) != 2 || string(tc.chain[1]) != string(tc.issuer.Raw) {
			t.Errorf("%s the change: another issuer, or %d certificates in the chain", what, len(tc.chain))
		}
	}
	h.checkIdentity(t, first, "gw-1")
	h.checkIdentity(t, second, "gw-1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := h.ca.Issue(t.Context(), audit.Actor{ID: "server"}, "", Template{ID: spiffe.ID{TrustDomain: domain, Kind: spiffe.Service, Name: "ingest"}, Public: key.Public(), Life: time.Hour})
	if err != nil || len(chain) != 2 || !chain[1].Equal(next) {
		t.Errorf("a service's chain: %v", err)
	}

	// What may not issue does not become the issuer.
	stranger, strangerKey, err := NewRoot(domain, now)
	if err != nil {
		t.Fatal(err)
	}
	foreign, foreignKey, err := NewIssuing(domain, stranger, strangerKey, now)
	if err != nil {
		t.Fatal(err)
	}
	over, overKey, err := NewIssuing(domain, root, rootKey, now.Add(-2*IssuingLife))
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]struct {
		cert *x509.Certificate
		key  crypto.Signer
	}{
		"another's key": {next, foreignKey}, "another root's": {foreign, foreignKey}, "one that has ended": {over, overKey}, "a leaf": {chain[0], key},
		"a broken key": {next, &brokenKey{nextKey, true}},
	} {
		if err := h.ca.SetIssuer(bad.cert, bad.key); err == nil {
			t.Errorf("%s became the issuer", what)
		}
	}
	if !h.ca.Issuer().Equal(next) {
		t.Error("the issuer changed")
	}
}

// TestCAWithoutItsStore answers 503, and opens the store once it can.
func TestCAWithoutItsStore(t *testing.T) {
	h := newHospital(t, nil)
	e := h.ca.authority.Swap(nil)
	got, err := h.server.Client().Get(h.server.URL + "/acme/attest/directory")
	if err != nil {
		t.Fatal(err)
	}
	got.Body.Close()
	if got.StatusCode != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == "" {
		t.Errorf("%s", got.Status)
	}
	if err := e.close(); err != nil {
		t.Fatal(err)
	}
	if health := h.ca.Probe(t.Context()); !health.Well {
		t.Errorf("%+v", health)
	}
	got, err = h.server.Client().Get(h.server.URL + "/acme/attest/directory")
	if err != nil || got.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", got, err)
	}
	got.Body.Close()
}

// An issuing CA does not outlive its root, and one of a root that has ended is not made.
func TestIssuingEndsWithItsRoot(t *testing.T) {
	begun := time.Now().Add(-RootLife + 24*time.Hour)
	root, key, err := NewRoot(domain, begun)
	if err != nil {
		t.Fatal(err)
	}
	issuing, _, err := NewIssuing(domain, root, key, time.Now())
	if err != nil || !issuing.NotAfter.Equal(root.NotAfter) {
		t.Errorf("%v, %v", issuing, err)
	}
	if _, _, err := NewIssuing(domain, root, key, time.Now().Add(25*time.Hour)); err == nil {
		t.Error("made below a root that has ended")
	}
}

// pend has the challenge of a TPM wait for this secret.
func (h *hospital) pend(t *testing.T, plain []byte) {
	t.Helper()
	board := newSoftBoard(t, "", nil)
	v, err := verify.Attestation(&board.Request, h.ca.trust(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	row, err := encodeChallenged(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.ca.authority.Load().store.AddPending(t.Context(), sha256.Sum256(plain), row); err != nil {
		t.Fatal(err)
	}
}
