package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/server/ingest"
)

// authority is the API's way to the CA of h, beside an address where nobody is.
func (h *house) authority(own tls.Certificate) *Authority {
	return NewAuthority(AuthorityConfig{
		TrustDomain: domain, Root: h.root, Addresses: []string{"127.0.0.1:1", h.addr}, Log: slog.New(slog.DiscardHandler),
		Own: func() (*tls.Certificate, error) { return &own, nil },
	})
}

// TestTheAPIIsCertifiedByOthers: a process with the service api gets certificates of its own ports and of service accounts, for the names of the server
// and for a while; and nothing else, whatever it asks. Nobody else gets any by that way.
func TestTheAPIIsCertifiedByOthers(t *testing.T) {
	h := newHouse(t)
	a := h.authority(h.certificate(spiffe.Service, "api"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jane := audit.Actor{ID: "spiffe://ward.example/operator/jane"}
	asked := func(kind spiffe.Kind, name string, life time.Duration) ca.Template {
		return ca.Template{ID: spiffe.ID{TrustDomain: domain, Kind: kind, Name: name}, Public: key.Public(), Life: life}
	}
	own := asked(spiffe.Service, "fhir", serviceLife)
	own.DNSNames = []string{"main.example"}
	for range 2 { // beginning at either address
		chain, err := a.Issue(t.Context(), audit.Actor{ID: "server"}, "", own)
		if err != nil || len(chain) != 2 || fmt.Sprint(chain[0].DNSNames) != "[main.example]" {
			t.Fatalf("%v, %v", chain, err)
		}
	}
	if _, err := a.Issue(t.Context(), jane, "10.0.0.7:4711", asked(spiffe.Access, "ehr", accessLife)); err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	issued := len(h.issued)
	h.mu.Unlock()
	foreign := own
	foreign.DNSNames = []string{"other.example"}
	other := own
	other.DNSNames, other.IPs = nil, []net.IP{net.IPv4(10, 0, 0, 1)}
	for name, t2 := range map[string]ca.Template{
		"an operator": asked(spiffe.Operator, "eve", time.Hour), "a node": asked(spiffe.Node, "node-1", time.Hour), "a gateway": asked(spiffe.Gateway, "icu-1", time.Hour),
		"another service": asked(spiffe.Service, "ca", time.Hour), "too long": asked(spiffe.Service, "fhir", serviceLife+time.Hour),
		"an account for long": asked(spiffe.Access, "ehr", accessLife+time.Hour), "no time": asked(spiffe.Access, "ehr", 0),
		"a foreign name": foreign, "a foreign address": other,
	} {
		if _, err := a.Issue(t.Context(), jane, "", t2); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.Issue(t.Context(), audit.Actor{ID: "spiffe://ward.example/gateway/icu-1"}, "", own); err == nil {
		t.Error("in a gateway's name")
	}
	h.node("node-1", time.Time{})
	for name, cert := range map[string]tls.Certificate{
		"its own port's": h.certificate(spiffe.Service, "ingest"), "an operator's": h.certificate(spiffe.Operator, "api"), "a node's": h.certificate(spiffe.Node, "api"),
		"another root's": newHouse(t).certificate(spiffe.Service, "api"),
	} {
		if _, err := h.authority(cert).Issue(t.Context(), jane, "", own); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("with %s certificate: %v", name, err)
		}
	}
	// What a node passes on is not the API's word, whatever the gateway showed.
	if status, _ := h.direct("POST", issuePath, map[string]string{peerHeader: "10.0.0.7:4711"}, h.certificate(spiffe.Service, "api")); status != 403 {
		t.Errorf("carried: %d", status)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.issued) != issued {
		t.Errorf("issued all the same: %+v", h.issued[issued:])
	}
}

// TestHowTheCAIs: as one of the processes says that can be asked, with its certificates.
func TestHowTheCAIs(t *testing.T) {
	h := newHouse(t)
	a := h.authority(h.certificate(spiffe.Service, "api"))
	state, err := askCA(t.Context(), a.http, 2)
	if err != nil || !state.Well {
		t.Fatalf("%+v, %v", state, err)
	}
	a.state = state
	if issuing, attestation := a.Certificates(); !issuing.Equal(h.issuing) || !attestation.Equal(h.root) {
		t.Errorf("%v, %v", issuing, attestation)
	}
	h.mu.Lock()
	h.well = false
	h.mu.Unlock()
	if state, err := askCA(t.Context(), a.http, 2); err != nil || state.Well {
		t.Errorf("%+v, %v", state, err)
	}
	if h := a.Health(); !h.Well {
		t.Errorf("it forgets what it was told: %+v", h)
	}
	a.contact = time.Now().Add(-2 * blind)
	if h := a.Health(); h.Well || h.Reason == "" || !h.Since.Equal(a.contact) {
		t.Errorf("not asked for long: %+v", h)
	}
}

// TestTurns: each connection begins at the next address, and one that could not be reached comes last for a while.
func TestTurns(t *testing.T) {
	d := newDialer(domain, x509.NewCertPool(), []string{"a", "b", "c"}, nil)
	now := time.Now()
	if got := fmt.Sprint(d.order(now), d.order(now)); got != "[a b c] [a b c]" {
		t.Errorf("in order: %s", got)
	}
	d.spread = true
	d.rest["b"] = now.Add(restTime)
	if got := fmt.Sprint(d.order(now), d.order(now), d.order(now), d.order(now.Add(restTime))); got != "[a c b] [c a b] [c a b] [a b c]" {
		t.Errorf("in turns: %s", got)
	}
}

// TestAReportFromTheFuture: a node whose clock is ahead hides no session at another node that came later.
func TestAReportFromTheFuture(t *testing.T) {
	r, now := NewReports(), time.Now()
	r.take("ahead", &Report{
		Sessions: []ingest.SessionInfo{{Gateway: "icu-1", Opened: now.Add(time.Hour)}}, Traffic: map[string]ingest.Traffic{"icu-1": {Opened: now.Add(time.Hour)}},
	}, now)
	r.take("right", &Report{Sessions: []ingest.SessionInfo{{Gateway: "icu-1", Opened: now.Add(time.Second), Peer: "right"}}}, now.Add(2*time.Second))
	var latest ingest.SessionInfo
	r.each(func(one Report) {
		for _, s := range one.Sessions {
			if s.Opened.After(latest.Opened) {
				latest = s
			}
		}
		for _, tr := range one.Traffic {
			if tr.Opened.After(now) {
				t.Errorf("traffic of %s", tr.Opened)
			}
		}
	})
	if latest.Peer != "right" {
		t.Errorf("the newest is of %s, %+v", latest.Opened, latest)
	}
}

// TestAnAddressIsOne: a host name among the addresses of a request is refused, though it is one of the server's names.
func TestAnAddressIsOne(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	p := &Port{PortConfig: PortConfig{TrustDomain: domain, Names: []string{"main.example", "10.0.0.1"}}}
	asked := func(ips ...string) ([]net.IP, error) {
		got, _, err := p.asked(issueRequest{ID: "spiffe://" + domain + "/service/fhir", Public: public, Seconds: 60, IPs: ips, Actor: "server"})
		return got.IPs, err
	}
	if ips, err := asked("10.0.0.1"); err != nil || len(ips) != 1 || ips[0] == nil {
		t.Errorf("%v, %v", ips, err)
	}
	if ips, err := asked("10.0.0.1", "main.example"); err == nil {
		t.Errorf("a certificate would be for the addresses %v", ips)
	}
}

// TestSilentProcessesPutNothingOff: of the processes with the service ca all but one answer nothing, and what the one says is heard before any of them is given up.
func TestSilentProcessesPutNothingOff(t *testing.T) {
	h := newHouse(t)
	own := h.certificate(spiffe.Service, "api")
	var silent []string
	for range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0") // its queue takes connections, and nobody speaks
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		silent = append(silent, ln.Addr().String())
	}
	pool := x509.NewCertPool()
	pool.AddCert(h.root)
	d := newDialer(domain, pool, append(silent, h.addr), func() (*tls.Certificate, error) { return &own, nil })
	state, err := askCA(t.Context(), &http.Client{Transport: d.spreading()}, len(d.addrs))
	if err != nil || !state.Well {
		t.Fatalf("%+v, %v", state, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.rest) != 0 {
		t.Errorf("an answer waited until %v were given up", d.rest)
	}
}
