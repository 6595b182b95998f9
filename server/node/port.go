package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
)

// PortConfig is what a Port asks of its server. All fields are required but Issue, which is nil where the CA's keys are not, and Documents with
// Changes and Reports, which are nil where the service api is not.
type PortConfig struct {
	TrustDomain string
	Roots       *x509.CertPool
	Names       []string // host names of the server, which a node's gateways' port is reached by too: it may stand behind the same balancer
	Get         func(ctx context.Context, name string) (Node, error)
	Issue       func(ctx context.Context, who audit.Actor, peer string, t ca.Template) ([]*x509.Certificate, error) // journaled when it returns
	Documents   func(ctx context.Context, gateway string) ([]Document, error)
	CA          func() (h ca.Health, issuing, attestation *x509.Certificate) // certificates nil: not known
	Changes     *Changes
	Reports     *Reports
	Certified   func(ctx context.Context, name string, from, until time.Time) error // keeps the term of the certificate that a node shows
	Refused     func(peer, reason string)                                           // refusals, to be aggregated
	Log         *slog.Logger
}

// Port is the server's half, in front of what gateways ask.
type Port struct {
	PortConfig
	next http.Handler
	mux  *http.ServeMux
}

// NewPort puts a Port in front of next, which sees each request as if the gateway had made it: RemoteAddr is the gateway's, and TLS holds
// the certificate that the gateway showed, whoever carried the request.
func NewPort(cfg PortConfig, next http.Handler) *Port {
	p := &Port{PortConfig: cfg, next: next, mux: http.NewServeMux()}
	p.mux.HandleFunc("GET "+caPath, p.state)
	if cfg.Issue != nil {
		p.mux.HandleFunc("POST "+certificatePath, p.certificate)
	}
	if cfg.Documents != nil {
		p.mux.HandleFunc("GET "+documentsPath, p.documents)
		p.mux.HandleFunc("POST "+newsPath, p.news)
	}
	return p
}

type nodeKey struct{}

// ServeHTTP implements http.Handler. Who is no node of this server gets as far as next, without the headers, and to none of the nodes' own
// paths.
func (p *Port) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	peer, chain, carried := r.Header.Get(peerHeader), r.Header.Get(chainHeader), len(r.Header.Values(peerHeader)) > 0
	r.Header.Del(peerHeader)
	r.Header.Del(chainHeader)
	own := strings.HasPrefix(path.Clean("/"+r.URL.Path)+"/", prefix)
	claimed := p.claims(r)
	if claimed.Kind != spiffe.Node {
		switch {
		case !own:
			p.next.ServeHTTP(w, r)
		case !carried && claimed.Kind == spiffe.Service && claimed.Name == "api" && p.proven(r) == nil:
			p.serveAPI(w, r)
		default:
			p.Refused(r.RemoteAddr, "node: no node's certificate")
			http.Error(w, "a node's certificate is needed", http.StatusForbidden)
		}
		return
	}
	name := claimed.Name
	n, err := p.admit(r, name)
	switch {
	case errors.Is(err, ErrUnknown):
		p.Refused(r.RemoteAddr, "node: removed, or with another key")
		http.Error(w, "this node was removed, or its key is another's", http.StatusForbidden)
	case err != nil:
		p.Log.Error("whether a node is one cannot be told now", "node", name, "error", err)
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	case own && !carried:
		p.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), nodeKey{}, n)))
	case own || !carried:
		http.Error(w, "not what a node may ask", http.StatusForbidden)
	default:
		p.carry(w, r, peer, chain)
	}
}

// claims reads whose the certificate is whose key the peer has proven, if it is of this trust domain. It decides nothing: admit and proven do.
func (p *Port) claims(r *http.Request) (id spiffe.ID) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return spiffe.ID{}
	}
	id, err := spiffe.FromCertificate(r.TLS.PeerCertificates[0])
	if err != nil || id.TrustDomain != p.TrustDomain {
		return spiffe.ID{}
	}
	return id
}

// proven verifies the chain once more, for TLS clients and now.
func (p *Port) proven(r *http.Request) error {
	shown := r.TLS.PeerCertificates
	inter := x509.NewCertPool()
	for _, c := range shown[1:] {
		inter.AddCert(c)
	}
	_, err := shown[0].Verify(x509.VerifyOptions{Roots: p.Roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// admit verifies the chain, and asks whether there is such a node with this key.
func (p *Port) admit(r *http.Request, name string) (Node, error) {
	if err := p.proven(r); err != nil {
		return Node{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	n, err := p.Get(r.Context(), name)
	if err == nil && n.SPKI != sha256.Sum256(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo) {
		err = ErrUnknown
	}
	return n, err
}

// carry serves a gateway's request that a node passes on.
func (p *Port) carry(w http.ResponseWriter, r *http.Request, peer, chain string) {
	at, err := netip.ParseAddrPort(peer)
	if err != nil {
		http.Error(w, peerHeader+": expected address and port", http.StatusBadRequest)
		return
	}
	shown, err := parseChain(chain)
	if err != nil {
		http.Error(w, chainHeader+": "+err.Error(), http.StatusBadRequest)
		return
	}
	state := *r.TLS
	state.PeerCertificates, state.VerifiedChains = shown, nil
	behind := r.Clone(r.Context())
	behind.RemoteAddr, behind.TLS = at.String(), &state
	p.next.ServeHTTP(w, behind)
}

func parseChain(text string) (out []*x509.Certificate, err error) {
	if text == "" {
		return nil, nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > maxChain {
		return nil, fmt.Errorf("%d certificates; expected at most %d", len(parts), maxChain)
	}
	for _, part := range parts {
		der, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			return nil, errors.New("expected base64")
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, errors.New("not a certificate")
		}
		out = append(out, c)
	}
	return out, nil
}

func formatChain(state *tls.ConnectionState) string {
	var parts []string
	if state != nil {
		for _, c := range state.PeerCertificates[:min(len(state.PeerCertificates), maxChain)] {
			parts = append(parts, base64.StdEncoding.EncodeToString(c.Raw))
		}
	}
	return strings.Join(parts, ",")
}

// certificate issues the node's next certificate, for the key that it is known by, or one of its gateways' port, for any key.
func (p *Port) certificate(w http.ResponseWriter, r *http.Request) {
	n := r.Context().Value(nodeKey{}).(Node)
	der, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, "the request cannot be read", http.StatusBadRequest)
		return
	}
	t, err := p.template(n, r.URL.Query().Get(kindQuery), der)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	who := audit.Actor{ID: spiffe.ID{TrustDomain: p.TrustDomain, Kind: spiffe.Node, Name: n.Name}.String(), Serial: ca.Serial(r.TLS.PeerCertificates[0])}
	certs, err := p.Issue(r.Context(), who, r.RemoteAddr, t)
	if err != nil {
		p.Log.Error("a node gets no certificate", "node", n.Name, "error", err)
		http.Error(w, "try again later", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", pemType)
	for _, c := range certs {
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
}

// template is what a request of a node is answered with. Nothing but its key is taken from the request.
func (p *Port) template(n Node, kind string, der []byte) (t ca.Template, err error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		return t, errors.New("not a certificate request that is signed by its own key")
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return t, errors.New("expected an ECDSA P-256 key")
	}
	switch kind {
	case kindNode:
		if sha256.Sum256(csr.RawSubjectPublicKeyInfo) != n.SPKI {
			return t, errors.New("a node keeps its key; to give it another, remove it and add it again")
		}
		return ca.Template{ID: spiffe.ID{TrustDomain: p.TrustDomain, Kind: spiffe.Node, Name: n.Name}, Public: key, Life: Life}, nil
	case kindService:
		return ServiceTemplate(p.TrustDomain, key, append(append([]string{}, n.Hosts...), p.Names...)), nil
	}
	return t, fmt.Errorf("kind %.20q; expected %s or %s", kind, kindNode, kindService)
}

// ServiceTemplate is the certificate of a node's gateways' port: to a gateway it is the one service that it knows, under all hosts.
func ServiceTemplate(trustDomain string, key *ecdsa.PublicKey, hosts []string) ca.Template {
	t := ca.Template{ID: spiffe.ID{TrustDomain: trustDomain, Kind: spiffe.Service, Name: "ingest"}, Public: key, Life: serviceLife}
	seen := map[string]bool{}
	for _, h := range hosts {
		if seen[h] {
			continue
		}
		seen[h] = true
		if ip := net.ParseIP(h); ip != nil {
			t.IPs = append(t.IPs, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return t
}

func (p *Port) documents(w http.ResponseWriter, r *http.Request) {
	gateway := r.URL.Query().Get("gateway")
	if err := spiffe.ValidName(gateway); err != nil {
		http.Error(w, "gateway: "+err.Error(), http.StatusBadRequest)
		return
	}
	docs, err := p.Documents(r.Context(), gateway)
	if err != nil {
		p.Log.Error("documents for a gateway of a node cannot be had whole", "gateway", gateway, "error", err)
		w.WriteHeader(http.StatusMultiStatus) // those that could be had
	}
	_ = json.NewEncoder(w).Encode(docs)
}

func (p *Port) news(w http.ResponseWriter, r *http.Request) {
	n := r.Context().Value(nodeKey{}).(Node)
	var asked News
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxNews)).Decode(&asked); err != nil {
		http.Error(w, "not what a node says", http.StatusBadRequest)
		return
	}
	p.Reports.take(n.Name, asked.Report, time.Now())
	// The row was read for this request, so this writes once a certificate. It is for operators' eyes: a node goes on without.
	if shown := r.TLS.PeerCertificates[0]; shown.NotAfter.After(n.NotAfter) {
		if err := p.Certified(r.Context(), n.Name, shown.NotBefore, shown.NotAfter); err != nil {
			p.Log.Warn("when a node's certificate ends cannot be kept; it is tried again with its next news", "node", n.Name, "error", err)
		}
	}
	answer := p.Changes.since(asked.Instance, asked.After)
	h, _, _ := p.CA()
	answer.CAWell, answer.CASince = h.Well, h.Since
	_ = json.NewEncoder(w).Encode(answer)
}
