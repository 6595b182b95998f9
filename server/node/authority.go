package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
)

// AuthorityConfig is what an Authority needs. All fields are required.
type AuthorityConfig struct {
	TrustDomain string
	Root        *x509.Certificate
	Addresses   []string                         // of the gateways' ports of the processes with the service ca
	Own         func() (*tls.Certificate, error) // the certificate service/api, by which they know who asks
	Log         *slog.Logger
}

// Authority is the CA as a process with the service api sees it that does not hold the CA's keys: it asks those that do, each request another one.
// It is safe for concurrent use.
type Authority struct {
	c    AuthorityConfig
	http *http.Client

	mu      sync.Mutex
	state   caState
	contact time.Time // of the last answer; the Authority's making before the first
}

// NewAuthority asks nobody yet.
func NewAuthority(c AuthorityConfig) *Authority {
	pool := x509.NewCertPool()
	pool.AddCert(c.Root)
	now := time.Now()
	return &Authority{c: c, contact: now, state: caState{Well: true, Since: now},
		http: &http.Client{Transport: newDialer(c.TrustDomain, pool, c.Addresses, c.Own).spreading()}}
}

// Issue has a certificate made, which is journaled when this returns, leaf first. who and peer are the operator's, or {ID: "server"} and "".
func (a *Authority) Issue(ctx context.Context, who audit.Actor, peer string, t ca.Template) ([]*x509.Certificate, error) {
	public, err := x509.MarshalPKIXPublicKey(t.Public)
	if err != nil {
		return nil, err
	}
	asked := issueRequest{ID: t.ID.String(), Public: public, Seconds: int64(t.Life / time.Second), DNSNames: t.DNSNames, Actor: who.ID, Serial: who.Serial, Peer: peer}
	for _, ip := range t.IPs {
		asked.IPs = append(asked.IPs, ip.String())
	}
	var got chainAnswer
	if _, err := ask(ctx, a.http, http.MethodPost, issuePath, nil, asked, &got); err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", t.ID, err)
	}
	chain, err := parseCertificates(got.Chain)
	if err != nil || len(chain) == 0 {
		return nil, errors.Join(fmt.Errorf("certificate for %s: the CA's answer is none", t.ID), err)
	}
	leaf, ok := chain[0].PublicKey.(*ecdsa.PublicKey)
	if id, err := spiffe.FromCertificate(chain[0]); err != nil || id != t.ID || !ok || !leaf.Equal(t.Public) {
		return nil, fmt.Errorf("certificate for %s: the CA's answer is for another name or key", t.ID)
	}
	return chain, nil
}

// Health is what the CA said last of itself. One that nobody can ask renews no certificate, so it is not well.
func (a *Authority) Health() ca.Health {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.contact) > blind {
		return ca.Health{Since: a.contact, Reason: "no process with the service ca answers"}
	}
	return ca.Health{Well: a.state.Well, Since: a.state.Since, Reason: a.state.Reason}
}

// Certificates are the issuing and the attestation CA, nil as long as no process has said them.
func (a *Authority) Certificates() (issuing, attestation *x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	certs, err := parseCertificates([][]byte{a.state.Issuing, a.state.Attestation})
	if err != nil {
		return nil, nil
	}
	return certs[0], certs[1]
}

// Run asks how the CA is until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	tick := time.NewTicker(caEvery)
	defer tick.Stop()
	for {
		state, err := askCA(ctx, a.http, len(a.c.Addresses))
		if err == nil {
			a.mu.Lock()
			a.state, a.contact = state, time.Now()
			a.mu.Unlock()
		} else if ctx.Err() == nil {
			a.c.Log.Warn("no process with the service ca can be asked", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// askCA asks n processes how the CA is, all at once: one that answers nothing must not put off what another says. One that is well is enough: whoever
// is refused by another asks again.
func askCA(ctx context.Context, c *http.Client, n int) (state caState, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		said caState
		err  error
	}
	answers := make(chan answer, n) // roomy: nobody waits for those that come late
	for range n {
		go func() {
			var a answer
			_, a.err = ask(ctx, c, http.MethodGet, caPath, nil, nil, &a.said)
			answers <- a
		}()
	}
	var answered bool
	for range n {
		switch a := <-answers; {
		case a.err != nil:
			err = a.err
		case a.said.Well:
			return a.said, nil
		default:
			state, answered = a.said, true
		}
	}
	if answered {
		err = nil
	}
	return state, err
}

func parseCertificates(der [][]byte) (out []*x509.Certificate, err error) {
	if len(der) > maxChain {
		return nil, fmt.Errorf("%d certificates; expected at most %d", len(der), maxChain)
	}
	for _, one := range der {
		c, err := x509.ParseCertificate(one)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// serveAPI answers the server's own process with the service api.
func (p *Port) serveAPI(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodGet && r.URL.Path == caPath:
		p.state(w, r)
	case r.Method == http.MethodPost && r.URL.Path == issuePath && p.Issue != nil:
		p.issue(w, r)
	default:
		http.Error(w, "not what a server may ask here", http.StatusNotFound)
	}
}

// state says how the CA is, to nodes and to the process with the service api.
func (p *Port) state(w http.ResponseWriter, _ *http.Request) {
	h, issuing, attestation := p.CA()
	state := caState{Well: h.Well, Since: h.Since, Reason: h.Reason}
	if issuing != nil && attestation != nil {
		state.Issuing, state.Attestation = issuing.Raw, attestation.Raw
	}
	_ = json.NewEncoder(w).Encode(state)
}

// issue certifies a key of the server's own services, or of a service account for an operator.
func (p *Port) issue(w http.ResponseWriter, r *http.Request) {
	var asked issueRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxIssue)).Decode(&asked); err != nil {
		http.Error(w, "not a request for a certificate", http.StatusBadRequest)
		return
	}
	t, who, err := p.asked(asked)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	certs, err := p.Issue(r.Context(), who, asked.Peer, t)
	if err != nil {
		p.Log.Error("the server gets no certificate", "id", t.ID.String(), "error", err)
		http.Error(w, "try again later", http.StatusServiceUnavailable)
		return
	}
	var got chainAnswer
	for _, c := range certs {
		got.Chain = append(got.Chain, c.Raw)
	}
	_ = json.NewEncoder(w).Encode(got)
}

// asked judges what the process with the service api asks for. Whoever has stolen that process's key gets no operator, no node and no gateway by it.
func (p *Port) asked(r issueRequest) (t ca.Template, who audit.Actor, err error) {
	id, err := spiffe.Parse(r.ID)
	life := time.Duration(r.Seconds) * time.Second
	limit := map[spiffe.Kind]time.Duration{spiffe.Service: serviceLife, spiffe.Access: accessLife}[id.Kind]
	switch {
	case err != nil || id.TrustDomain != p.TrustDomain || limit == 0 || id.Kind == spiffe.Service && !slices.Contains(services, id.Name):
		return t, who, fmt.Errorf("id: expected a service account or one of the services %v of %s", services, p.TrustDomain)
	case r.Seconds <= 0 || r.Seconds > int64(limit/time.Second):
		return t, who, fmt.Errorf("seconds: %d; expected 1 to %d", r.Seconds, limit/time.Second)
	}
	any, err := x509.ParsePKIXPublicKey(r.Public)
	key, ok := any.(*ecdsa.PublicKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return t, who, errors.New("public: expected an ECDSA P-256 key")
	}
	t = ca.Template{ID: id, Public: key, Life: life, DNSNames: r.DNSNames}
	for _, text := range r.IPs {
		ip := net.ParseIP(text)
		if ip == nil {
			return t, who, fmt.Errorf("address %.80q: expected an IP address", text)
		}
		t.IPs = append(t.IPs, ip)
	}
	for _, name := range slices.Concat(r.DNSNames, r.IPs) {
		if !slices.ContainsFunc(p.Names, func(own string) bool {
			return own == name || net.ParseIP(own) != nil && net.ParseIP(own).Equal(net.ParseIP(name))
		}) {
			return t, who, fmt.Errorf("name %.80q: not one of this server's; 'names' must be the same in each server.yaml", name)
		}
	}
	who = audit.Actor{ID: r.Actor, Serial: r.Serial}
	actor, err := spiffe.Parse(r.Actor)
	if itself := actor == id && id.Kind == spiffe.Access; r.Actor != "server" && !itself && (err != nil || actor.Kind != spiffe.Operator || actor.TrustDomain != p.TrustDomain) {
		return t, who, errors.New("actor: expected an operator, the server, or a service account that renews itself")
	}
	if len(r.Serial) > 64 || len(r.Peer) > 64 {
		return t, who, errors.New("serial and peer: at most 64 bytes")
	}
	return t, who, nil
}
