package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/audit"
)

// getList asks for the list as anybody may.
func (h *hospital) getList() (status int, body []byte) {
	h.t.Helper()
	answer, err := h.server.Client().Get(h.server.URL + ListPath)
	if err != nil {
		h.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(answer.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode == http.StatusOK && kind != "application/pkix-crl" || answer.StatusCode != http.StatusOK && kind != "application/problem+json" {
		h.t.Errorf("%d of type %q", answer.StatusCode, kind)
	}
	return answer.StatusCode, body
}

// TestList: it names who is withdrawn, seconds late at most, is the issuing CA's, outlives what it is made of until its end, and no longer.
func TestList(t *testing.T) {
	time0 := &clock{at: time.Now().Truncate(time.Second)}
	var withdrawn []x509.RevocationListEntry
	var fail error
	h := hospitalOf(t, func(c *Config) {
		c.Now = time0.now
		c.Withdrawn = func(_ context.Context, most int) ([]x509.RevocationListEntry, error) {
			if most != maxListed {
				t.Errorf("at most %d", most)
			}
			return withdrawn, fail
		}
	})
	parse := func(issuer *x509.Certificate, entries int) *x509.RevocationList {
		t.Helper()
		status, body := h.getList()
		l, err := x509.ParseRevocationList(body)
		if status != http.StatusOK || err != nil {
			t.Fatalf("%d %v", status, err)
		}
		if err := l.CheckSignatureFrom(issuer); err != nil {
			t.Error(err)
		}
		if len(l.RevokedCertificateEntries) != entries {
			t.Errorf("%d entries; expected %d", len(l.RevokedCertificateEntries), entries)
		}
		return l
	}
	fail = errors.New("locked")
	if status, _ := h.getList(); status != http.StatusServiceUnavailable {
		t.Errorf("before the first could be made: %d", status)
	}
	fail = nil
	time0.pass(listRest)
	empty := parse(h.ca.Issuer(), 0)
	if !empty.NextUpdate.Equal(time0.now().Add(listLife)) || empty.ThisUpdate.After(time0.now()) {
		t.Errorf("from %v to %v", empty.ThisUpdate, empty.NextUpdate)
	}
	withdrawn = []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: time0.now(), ReasonCode: 6}, {SerialNumber: big.NewInt(9), RevocationTime: time0.now()}}
	parse(h.ca.Issuer(), 0)
	time0.pass(listAge)
	full := parse(h.ca.Issuer(), 2)
	if first := full.RevokedCertificateEntries[0]; first.SerialNumber.Int64() != 7 || first.ReasonCode != 6 || full.Number.Cmp(empty.Number) <= 0 {
		t.Errorf("%+v, number %v after %v", first, full.Number, empty.Number)
	}
	// Another issuing CA has its own list at once.
	next, key, err := NewIssuing(domain, h.root, h.rootKey, time0.now())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.ca.SetIssuer(next, key); err != nil {
		t.Fatal(err)
	}
	parse(next, 2)
	fail = errors.New("locked")
	time0.pass(listLife - time.Second)
	parse(next, 2)
	time0.pass(time.Second)
	if status, _ := h.getList(); status != http.StatusServiceUnavailable {
		t.Errorf("after its end: %d", status)
	}
	fail = nil
	time0.pass(listRest)
	parse(next, 2)
	h.ca.cfg.Withdrawn = nil
	time0.pass(listAge)
	parse(next, 2)
	h.ca.lists.newest.Store(nil)
	if status, _ := h.getList(); status != http.StatusServiceUnavailable {
		t.Errorf("a CA that is told of nothing: %d", status)
	}
}

// TestListIsMadeOnceForAll: whoever asks first and hangs up takes it from nobody, who asks meanwhile has the same one, and one that cannot be made is not tried
// for each that asks.
func TestListIsMadeOnceForAll(t *testing.T) {
	time0 := &clock{at: time.Now().Truncate(time.Second)}
	var fail error
	var made atomic.Int64
	asked, answer := make(chan struct{}), make(chan struct{})
	h := hospitalOf(t, func(c *Config) {
		c.Now = time0.now
		c.Withdrawn = func(ctx context.Context, _ int) ([]x509.RevocationListEntry, error) {
			made.Add(1)
			select {
			case asked <- struct{}{}:
				<-answer
			default:
			}
			return nil, errors.Join(fail, ctx.Err())
		}
	})
	gone, hangUp := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if h.ca.list(gone) != nil {
			t.Error("a list before it was made")
		}
	})
	<-asked
	hangUp()
	wg.Wait()
	for range 20 {
		wg.Go(func() {
			if h.ca.list(t.Context()) == nil {
				t.Error("no list, since the first to ask hung up")
			}
		})
	}
	close(answer)
	wg.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
	fail = errors.New("locked")
	h.ca.lists.newest.Store(nil)
	for range 20 {
		if status, _ := h.getList(); status != http.StatusServiceUnavailable {
			t.Errorf("a list that cannot be made: %d", status)
		}
	}
	if n := made.Load(); n != 3 {
		t.Errorf("tried %d times while it cannot be made; expected twice", n-1)
	}
}

// TestNoListLocksNobodyOut: whatever becomes of the list, gateways enrol and renew, the CA is well, and who is revoked gets nothing. No certificate sends
// anybody to a list.
func TestNoListLocksNobodyOut(t *testing.T) {
	var fail error
	h := hospitalOf(t, func(c *Config) {
		c.PerSource = 1 << 20
		c.Withdrawn = func(context.Context, int) ([]x509.RevocationListEntry, error) { return nil, fail }
	})
	board := newSoftBoard(t, h.server.URL, h.server.Client())
	if status, _ := h.getList(); status != http.StatusOK {
		t.Fatal(status)
	}
	good := h.ca.lists.newest.Load()
	for what, state := range map[string]struct {
		l    *list
		fail error
	}{
		"there is one":   {good, nil},
		"it has ended":   {&list{good.der, good.made.Add(-2 * listLife), good.by}, errors.New("locked")},
		"it is missing":  {nil, errors.New("locked")},
		"it is damaged":  {&list{bytes.Repeat([]byte{0xff}, 100), good.made, good.by}, errors.New("locked")},
		"it names all":   {good, errors.New("more than may be")},
		"nobody made it": {nil, nil},
	} {
		h.ca.lists.newest.Store(state.l)
		h.ca.lists.failed.Store(nil)
		fail = state.fail
		h.registry.set(func() { h.registry.active[board.Hash()] = "gw-1"; clear(h.registry.revoked) })
		cert, err := board.Enrol(t.Context(), "gw-1")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if len(cert.CRLDistributionPoints)+len(cert.OCSPServer) != 0 {
			t.Errorf("%s: the certificate names %v %v", what, cert.CRLDistributionPoints, cert.OCSPServer)
		}
		if now := h.ca.Probe(t.Context()); !now.Well {
			t.Errorf("%s: %+v", what, now)
		}
		issued := h.count(audit.CertIssued)
		h.registry.set(func() { h.registry.revoked[board.Hash()] = "stolen" })
		if _, err := board.Enrol(t.Context(), "gw-1"); err == nil || h.count(audit.CertIssued) != issued {
			t.Errorf("%s: a revoked gateway has a certificate", what)
		}
	}
}
