package acmedb

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/certificates/acme"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// clock is a wall clock that a test sets.
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

func newClock() *clock { return &clock{at: time.UnixMilli(time.Now().UnixMilli())} }

func open(t testing.TB, db *sqldb.DB, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(context.Background(), Config{DB: db, Now: now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nodes are processes that share a database.
func nodes(t testing.TB, c *clock) []*Store {
	t.Helper()
	db, path := sqldbtest.New(t, Migrations()...)
	second := sqldbtest.Open(t, path, Migrations()...)
	return []*Store{open(t, db, c.now), open(t, second, c.now), open(t, db, c.now)}
}

func query(t testing.TB, s *Store, q string, args ...any) (n int) {
	t.Helper()
	if err := s.db.QueryRow(t.Context(), q, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// race runs one at every node, several times at once, and says how many succeeded. Each that does not must end in an ACME error of that kind.
func race(t *testing.T, nodes []*Store, kind string, one func(*Request) error) (won int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		for _, s := range nodes {
			wg.Go(func() {
				err := one(s.Request())
				mu.Lock()
				defer mu.Unlock()
				var refused *acme.Error
				switch {
				case err == nil:
					won++
				case !errors.As(err, &refused) || !strings.HasSuffix(refused.Type, ":"+kind) || refused.Status >= 500:
					t.Errorf("%v; expected %s", err, kind)
				}
			})
		}
	}
	wg.Wait()
	return won
}

func account(t testing.TB) *acme.Account {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	part := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	a := &acme.Account{Status: acme.StatusValid, LocationPrefix: "https://ca/acme/attest/account/", ProvisionerID: "p", ProvisionerName: "attest"}
	if err := json.Unmarshal(fmt.Appendf(nil, `{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, part(raw[1:33]), part(raw[33:])), &a.Key); err != nil {
		t.Fatal(err)
	}
	return a
}

// ordered is an order as smallstep makes one.
func ordered(ctx context.Context, r *Request, account, gateway string) (*acme.Order, error) {
	id := acme.Identifier{Type: acme.PermanentIdentifier, Value: gateway}
	ch := &acme.Challenge{AccountID: account, Value: gateway, Type: acme.DEVICEATTEST01, Token: rand.Text(), Status: acme.StatusPending}
	az := &acme.Authorization{AccountID: account, Identifier: id, Status: acme.StatusPending, Token: ch.Token, Challenges: []*acme.Challenge{ch}}
	if err := errors.Join(r.CreateChallenge(ctx, ch), r.CreateAuthorization(ctx, az)); err != nil {
		return nil, err
	}
	now := r.s.now()
	o := &acme.Order{AccountID: account, ProvisionerID: "p", Status: acme.StatusPending, Identifiers: []acme.Identifier{id}, AuthorizationIDs: []string{az.ID},
		NotBefore: now, NotAfter: now.Add(time.Hour)}
	return o, r.CreateOrder(ctx, o)
}

// attest accepts the attestation of an order as smallstep does.
func attest(ctx context.Context, r *Request, id string, p Proof) (*acme.Challenge, error) {
	ch, err := r.GetChallenge(ctx, id, id)
	if err != nil {
		return nil, err
	}
	if ch.Status != acme.StatusPending {
		return ch, nil
	}
	az, err := r.GetAuthorization(ctx, id)
	if err != nil {
		return nil, err
	}
	az.Fingerprint = "fingerprint"
	if err := r.UpdateAuthorization(ctx, az); err != nil {
		return nil, err
	}
	ch.Status = acme.StatusValid
	return ch, r.Attest(ctx, ch, p)
}

func leaf(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "gw"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A nonce of one node is good at every other, once among all of them.
func TestNonceIsUsedOnce(t *testing.T) {
	c := newClock()
	all := nodes(t, c)
	for _, giver := range all {
		nonce, err := giver.Request().CreateNonce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if won := race(t, all, "badNonce", func(r *Request) error { return r.DeleteNonce(t.Context(), nonce) }); won != 1 {
			t.Fatalf("one nonce was used %d times", won)
		}
	}
	if n := query(t, all[0], "SELECT COUNT(*) FROM ca_nonces"); n != len(all) {
		t.Errorf("%d rows for %d used nonces", n, len(all))
	}
	forged := []byte(all[0].newNonce())
	forged[20] ^= 1
	for _, nonce := range []acme.Nonce{"", "x", acme.Nonce(forged), all[0].newNonce()[:52], all[0].newNonce() + "AA"} {
		if won := race(t, all[:1], "badNonce", func(r *Request) error { return r.DeleteNonce(t.Context(), nonce) }); won != 0 {
			t.Errorf("%q is a nonce", nonce)
		}
	}
}

// A nonce that was used stays used when its row is pruned, however wrong a node's clock is; one that was not is good for one generation at least.
func TestNonceOutlivesNoPruning(t *testing.T) {
	right, ahead := newClock(), newClock()
	ahead.pass(time.Hour)
	db, _ := sqldbtest.New(t, Migrations()...)
	a, b := open(t, db, right.now), open(t, db, ahead.now)
	used := a.newNonce()
	if err := a.useNonce(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	rows := func() int { return query(t, a, "SELECT COUNT(*) FROM ca_nonces") }
	fresh := a.newNonce()
	prune := func(stores ...*Store) {
		t.Helper()
		for _, s := range stores {
			if err := s.Prune(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 20 { // clocks that disagree do not hurry each other
		prune(a, b)
	}
	if err := b.useNonce(t.Context(), fresh); err != nil {
		t.Errorf("a nonce that is seconds old: %v", err)
	}
	for range 12 {
		right.pass(lifeNonces / 4)
		ahead.pass(lifeNonces / 4)
		prune(a, b)
		for _, s := range []*Store{a, b} {
			if s.useNonce(t.Context(), used) == nil || s.useNonce(t.Context(), fresh) == nil {
				t.Fatal("a nonce was used twice")
			}
			if err := s.Probe(t.Context()); err != nil {
				t.Fatalf("a new nonce: %v", err)
			}
		}
	}
	if n := rows(); n > 24 {
		t.Errorf("%d rows of nonces are left", n)
	}
	// A clock that was a year ahead when the generation began does not keep it for a year.
	generation := a.nonces.generation.Load()
	if err := db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE ca_state SET advanced = $1", right.now().Add(365*24*time.Hour).UnixMilli())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	right.pass(lifeNonces)
	prune(a)
	if a.nonces.generation.Load() != generation+1 {
		t.Error("the generation stays for a year")
	}
}

// Each step of an order happens once, at whichever nodes it is tried.
func TestOrderAcrossNodes(t *testing.T) {
	c := newClock()
	all := nodes(t, c)
	ctx := t.Context()
	acc := account(t)
	ids := make(map[string]bool)
	var mu sync.Mutex
	fresh := *acc
	race(t, all, "-", func(r *Request) error {
		mine := fresh
		err := r.CreateAccount(ctx, &mine)
		mu.Lock()
		defer mu.Unlock()
		ids[mine.ID], acc.ID = true, mine.ID
		return err
	})
	if len(ids) != 1 {
		t.Fatalf("one key has the accounts %v", ids)
	}
	o, err := ordered(ctx, all[0].Request(), acc.ID, "gw-1")
	if err != nil {
		t.Fatal(err)
	}
	if won := race(t, all, "unauthorized", func(r *Request) error { _, err := r.Claim(ctx, o.ID); return err }); won != 0 {
		t.Fatal("an order without an attestation was claimed")
	}
	// Several answers at once: one is entered, all see that one.
	race(t, all, "-", func(r *Request) error {
		p := Proof{EK: [32]byte{1}, SPKI: [32]byte{2}}
		ch, err := attest(ctx, r, o.ID, p)
		if err == nil && ch.Status != acme.StatusValid {
			err = fmt.Errorf("challenge %s", ch.Status)
		}
		return err
	})
	bad := &acme.Challenge{ID: o.ID, Status: acme.StatusInvalid, Error: acme.NewDetailedError(acme.ErrorUnauthorizedType, "late")}
	if err := all[1].Request().UpdateChallenge(ctx, bad); err != nil || bad.Status != acme.StatusValid {
		t.Errorf("a refusal of what is attested: %v, %s", err, bad.Status)
	}
	got, err := all[2].Request().GetOrder(ctx, o.ID)
	if err != nil || got.Status != acme.StatusReady {
		t.Fatalf("%+v, %v", got, err)
	}
	cert := &acme.Certificate{AccountID: acc.ID, OrderID: o.ID, Leaf: leaf(t), Intermediates: []*x509.Certificate{leaf(t)}}
	if err := all[0].Request().CreateCertificate(ctx, cert); err == nil {
		t.Error("a certificate by a request that claimed nothing")
	}
	var winner *Request
	if won := race(t, all, "unauthorized", func(r *Request) error {
		claim, err := r.Claim(ctx, o.ID)
		if err == nil {
			winner = r
			if claim.Gateway != "gw-1" || claim.EK != [32]byte{1} || claim.SPKI != [32]byte{2} {
				t.Errorf("%+v", claim)
			}
		}
		return err
	}); won != 1 {
		t.Fatalf("%d requests claimed one order", won)
	}
	if err := winner.CreateCertificate(ctx, cert); err != nil {
		t.Fatal(err)
	}
	if err := winner.CreateCertificate(ctx, cert); err == nil {
		t.Error("two certificates for one order")
	}
	kept, err := all[1].Request().GetCertificate(ctx, cert.ID)
	if err != nil || !kept.Leaf.Equal(cert.Leaf) || len(kept.Intermediates) != 1 || kept.AccountID != acc.ID {
		t.Errorf("%+v, %v", kept, err)
	}
	if got, err := all[1].Request().GetOrder(ctx, o.ID); err != nil || got.Status != acme.StatusValid || got.CertificateID != cert.ID {
		t.Errorf("%+v, %v", got, err)
	}
}

// What has ended is gone, whether or not it was pruned.
func TestWhatEnds(t *testing.T) {
	c := newClock()
	s := nodes(t, c)[0]
	ctx := t.Context()
	acc := account(t)
	if err := s.Request().CreateAccount(ctx, acc); err != nil {
		t.Fatal(err)
	}
	make := func() *acme.Order {
		t.Helper()
		o, err := ordered(ctx, s.Request(), acc.ID, "gw-1")
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	late := make()
	proven := make()
	if _, err := attest(ctx, s.Request(), proven.ID, Proof{EK: [32]byte{1}}); err != nil {
		t.Fatal(err)
	}
	c.pass(LifeAttested)
	if _, err := s.Request().Claim(ctx, proven.ID); err == nil {
		t.Error("an attestation was claimed after its time")
	}
	c.pass(LifePending - LifeAttested)
	if _, err := attest(ctx, s.Request(), late.ID, Proof{EK: [32]byte{1}}); err == nil {
		t.Error("an order was attested after its end")
	}
	if _, err := s.Request().GetOrder(ctx, late.ID); err == nil {
		t.Error("an order is there after its end")
	}
	if err := s.Prune(ctx); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"ca_orders", "ca_accounts"} {
		if n := query(t, s, "SELECT COUNT(*) FROM "+table); n != 0 {
			t.Errorf("%s has %d rows", table, n)
		}
	}
	if _, err := ordered(ctx, s.Request(), acc.ID, "gw-1"); err == nil {
		t.Error("an order under an account that is gone")
	}
}

// A challenge is answered once, at any node, and within its minute.
func TestPendingIsTakenOnce(t *testing.T) {
	c := newClock()
	all := nodes(t, c)
	ctx := t.Context()
	if err := all[0].AddPending(ctx, [32]byte{1}, []byte("tpm")); err != nil {
		t.Fatal(err)
	}
	var won, lost int
	var mu sync.Mutex
	race(t, all, "-", func(r *Request) error {
		v, ok, err := r.s.TakePending(ctx, [32]byte{1})
		mu.Lock()
		defer mu.Unlock()
		if ok && string(v) == "tpm" {
			won++
		} else {
			lost++
		}
		return err
	})
	if won != 1 || lost != 11 {
		t.Errorf("a challenge was answered %d times", won)
	}
	if err := all[0].AddPending(ctx, [32]byte{2}, []byte("tpm")); err != nil {
		t.Fatal(err)
	}
	c.pass(LifeChallenge + time.Millisecond)
	if _, ok, err := all[1].TakePending(ctx, [32]byte{2}); ok || err != nil {
		t.Errorf("a challenge was answered after its minute: %v", err)
	}
}

// Nothing that a stranger sends is stored without a bound, and no table grows beyond its own.
func TestBounds(t *testing.T) {
	c := newClock()
	db, _ := sqldbtest.New(t, Migrations()...)
	s, err := Open(t.Context(), Config{DB: db, Now: c.now, Log: slog.New(slog.DiscardHandler), Limits: Limits{Accounts: 3, Orders: 4, Pending: 5}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	long := account(t)
	long.Contact = []string{strings.Repeat("x", maxContact)}
	if err := s.Request().CreateAccount(ctx, long); err == nil {
		t.Error("a contact without a bound")
	}
	long = account(t)
	if err := json.Unmarshal([]byte(`{"kty":"RSA","e":"AQAB","n":"`+strings.Repeat("w", 4000)+`"}`), &long.Key); err != nil {
		t.Fatal(err)
	}
	if err := s.Request().CreateAccount(ctx, long); err == nil {
		t.Error("a key without a bound")
	}
	if _, err := ordered(ctx, s.Request(), "nobody", "gw-1"); err == nil {
		t.Error("an order of no account")
	}
	var acc *acme.Account
	for i := 0; ; i++ {
		a := account(t)
		if err := s.Request().CreateAccount(ctx, a); errors.Is(err, ErrFull) && i == 3 {
			break
		} else if err != nil {
			t.Fatalf("account %d: %v", i, err)
		}
		acc = a
	}
	if _, err := ordered(ctx, s.Request(), acc.ID, strings.Repeat("g", maxName+1)); err == nil {
		t.Error("a name without a bound")
	}
	var last *acme.Order
	for i := 0; ; i++ {
		o, err := ordered(ctx, s.Request(), acc.ID, "gw-1")
		if errors.Is(err, ErrFull) && i == 4 {
			break
		} else if err != nil {
			t.Fatalf("order %d: %v", i, err)
		}
		last = o
	}
	for i := 0; ; i++ {
		if err := s.AddPending(ctx, [32]byte{byte(i)}, nil); errors.Is(err, ErrFull) && i == 5 {
			break
		} else if err == nil {
			t.Error("a challenge of nothing") // verified is NOT NULL
		} else if err := s.AddPending(ctx, [32]byte{byte(i)}, []byte("tpm")); err != nil {
			t.Fatalf("challenge %d: %v", i, err)
		}
	}
	if s.AddPending(ctx, [32]byte{99}, make([]byte, maxVerified+1)) == nil {
		t.Error("a challenge without a bound")
	}
	bad := &acme.Challenge{ID: last.ID, Status: acme.StatusInvalid, Error: acme.NewDetailedError(acme.ErrorUnauthorizedType, "%s", strings.Repeat("\x00<", 1<<15))}
	for range 99 {
		bad.Error.AddSubproblems(acme.Subproblem{Type: "t", Detail: strings.Repeat("\x00", 1<<10)})
	}
	if err := s.Request().UpdateChallenge(ctx, bad); err != nil {
		t.Fatal(err)
	}
	if n := query(t, s, "SELECT MAX(length(error)) FROM ca_orders"); n > maxProblem || n == 0 {
		t.Errorf("an error of %d bytes is stored", n)
	}
	got, err := s.Request().GetChallenge(ctx, last.ID, last.ID)
	if err != nil || got.Status != acme.StatusInvalid || got.Error == nil {
		t.Errorf("%+v, %v", got, err)
	}
	c.pass(LifeIssued)
	if err := s.Prune(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Request().CreateAccount(ctx, account(t)); err != nil {
		t.Errorf("after pruning: %v", err)
	}
}

// After a restore nothing of before is good: no nonce, no order, no challenge.
func TestForget(t *testing.T) {
	c := newClock()
	s := nodes(t, c)[0]
	ctx := t.Context()
	acc := account(t)
	if err := s.Request().CreateAccount(ctx, acc); err != nil {
		t.Fatal(err)
	}
	if _, err := ordered(ctx, s.Request(), acc.ID, "gw-1"); err != nil {
		t.Fatal(err)
	}
	if err := s.AddPending(ctx, [32]byte{1}, []byte("tpm")); err != nil {
		t.Fatal(err)
	}
	nonce := s.newNonce()
	if err := s.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Write(ctx, Forget); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"ca_state", "ca_nonces", "ca_pending", "ca_accounts", "ca_orders"} {
		if n := query(t, s, "SELECT COUNT(*) FROM "+table); n != 0 {
			t.Errorf("%s has %d rows", table, n)
		}
	}
	again := open(t, s.db, c.now)
	if again.useNonce(ctx, nonce) == nil {
		t.Error("a nonce of before is good")
	}
	if err := again.Probe(ctx); err != nil {
		t.Error(err)
	}
}
