package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/server/ingest"
	"wardlink/telemetry"
)

const domain = "ward.example"

// house is a server's port with real TLS, and a node in front of it.
type house struct {
	t             *testing.T
	root, issuing *x509.Certificate
	key           *ecdsa.PrivateKey
	addr          string // of the server
	changes       *Changes
	reports       *Reports

	mu      sync.Mutex
	nodes   map[string]Node
	seen    []string // what the handler behind the port saw
	issued  []ca.Template
	kept    int // terms of nodes' certificates
	docsErr error
	well    bool
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, nodes: make(map[string]Node), changes: NewChanges(), reports: NewReports(), well: true}
	root, rootKey, err := ca.NewRoot(domain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h.root = root
	if h.issuing, h.key, err = ca.NewIssuing(domain, root, rootKey, time.Now()); err != nil {
		t.Fatal(err)
	}
	behind := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := "nothing"
		if len(r.TLS.PeerCertificates) > 0 {
			shown = r.TLS.PeerCertificates[0].URIs[0].String()
		}
		h.mu.Lock()
		h.seen = append(h.seen, fmt.Sprintf("%s %s from %s with %s, host %s, header %q", r.Method, r.URL.Path, r.RemoteAddr, shown, r.Host, r.Header.Get(peerHeader)))
		h.mu.Unlock()
		fmt.Fprint(w, "behind")
	})
	port := NewPort(PortConfig{
		TrustDomain: domain, Roots: h.pool(), Names: []string{"main.example"}, Changes: h.changes, Reports: h.reports, Log: slog.New(slog.DiscardHandler),
		Get: func(_ context.Context, name string) (Node, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			n, ok := h.nodes[name]
			if !ok {
				return n, ErrUnknown
			}
			return n, nil
		},
		Issue: func(_ context.Context, _ audit.Actor, _ string, tpl ca.Template) ([]*x509.Certificate, error) {
			h.mu.Lock()
			h.issued = append(h.issued, tpl)
			h.mu.Unlock()
			c, err := ca.NewCertificate(h.issuing, h.key, tpl, time.Now())
			return []*x509.Certificate{c, h.issuing}, err
		},
		Certified: func(_ context.Context, name string, from, until time.Time) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			n := h.nodes[name]
			n.NotBefore, n.NotAfter = from, until
			h.nodes[name] = n
			h.kept++
			return nil
		},
		Documents: func(_ context.Context, gateway string) ([]Document, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return []Document{{Doc: telemetry.DocConfig, Body: []byte("for " + gateway)}}, h.docsErr
		},
		CA: func() (ca.Health, *x509.Certificate, *x509.Certificate) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return ca.Health{Well: h.well, Since: time.Unix(1, 0)}, h.issuing, h.root
		},
		Refused: func(string, string) {},
	}, behind)
	own := h.certificate(spiffe.Service, "ingest")
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"http/1.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	srv := &http.Server{Handler: port, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return h
}

func (h *house) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(h.root)
	return pool
}

func (h *house) certificate(kind spiffe.Kind, name string) tls.Certificate {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.certify(kind, name, key, time.Now())
}

func (h *house) certify(kind spiffe.Kind, name string, key *ecdsa.PrivateKey, at time.Time) tls.Certificate {
	h.t.Helper()
	c, err := ca.NewCertificate(h.issuing, h.key, ca.Template{ID: spiffe.ID{TrustDomain: domain, Kind: kind, Name: name}, Public: key.Public(), Life: Life}, at)
	if err != nil {
		h.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{c.Raw, h.issuing.Raw}, PrivateKey: key, Leaf: c}
}

// node enters a node and gives its client, whose certificate was made at a time.
func (h *house) node(name string, at time.Time) *Client {
	h.t.Helper()
	cert := h.certificate(spiffe.Node, name)
	if !at.IsZero() {
		cert = h.certify(spiffe.Node, name, cert.PrivateKey.(*ecdsa.PrivateKey), at)
	}
	h.mu.Lock()
	h.nodes[name] = Node{Name: name, SPKI: sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo), Hosts: []string{"node.example", "10.0.0.9"}}
	h.mu.Unlock()
	file := filepath.Join(h.t.TempDir(), "node.crt")
	var text []byte
	for _, der := range cert.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		h.t.Fatal(err)
	}
	c, err := NewClient(ClientConfig{
		TrustDomain: domain, Roots: h.pool(), Servers: []string{"127.0.0.1:1", h.addr}, Key: cert.PrivateKey.(*ecdsa.PrivateKey), Certificate: file, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// direct asks the server itself, with a certificate or without.
func (h *house) direct(method, path string, header map[string]string, certs ...tls.Certificate) (int, string) {
	h.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs}}}
	req, err := http.NewRequest(method, "https://"+h.addr+path, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func (h *house) last() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.seen) == 0 {
		return ""
	}
	return h.seen[len(h.seen)-1]
}

// front is a node's port for gateways, with the certificate that a gateway shows there.
func (h *house) front(c *Client) (addr string) {
	h.t.Helper()
	own := h.certificate(spiffe.Service, "ingest")
	srv := httptest.NewUnstartedServer(c.Proxy())
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	h.t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// TestANodePassesOn: the server sees a gateway's request as if the gateway had come by itself: its address, its certificate, its Host.
func TestANodePassesOn(t *testing.T) {
	h := newHouse(t)
	front := h.front(h.node("node-1", time.Time{}))
	gateway := h.certificate(spiffe.Service, "stands-for-a-gateway")
	conn, err := tls.Dial("tcp", front, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{gateway}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Hop-by-hop words and headers of its own must not get a peer's address in or out.
	fmt.Fprintf(conn, "GET /acme/x HTTP/1.1\r\nHost: wardlink.example:8883\r\n%s: 10.6.6.6:1\r\nConnection: close, %s\r\n\r\n", peerHeader, peerHeader)
	answer, _ := io.ReadAll(conn)
	if !strings.HasSuffix(string(answer), "behind") {
		t.Fatalf("answer %q", answer)
	}
	want := fmt.Sprintf("GET /acme/x from %s with spiffe://ward.example/service/stands-for-a-gateway, host wardlink.example:8883, header \"\"", conn.LocalAddr())
	if got := h.last(); got != want {
		t.Errorf("the server sees\n%s, expected\n%s", got, want)
	}
}

// TestNobodyElseNamesAnAddress: the headers count of a node that is one, and of nobody else: not of strangers, gateways, other services, nodes of
// other keys or removed ones.
func TestNobodyElseNamesAnAddress(t *testing.T) {
	h := newHouse(t)
	h.node("node-1", time.Time{})
	forged := map[string]string{peerHeader: "10.6.6.6:1", chainHeader: "Zm9yZ2Vk"}
	for name, certs := range map[string][]tls.Certificate{
		"a stranger": nil, "a service": {h.certificate(spiffe.Service, "ingest")}, "an operator": {h.certificate(spiffe.Operator, "node-1")},
	} {
		status, body := h.direct(http.MethodGet, "/time", forged, certs...)
		if status != http.StatusOK || body != "behind" || strings.Contains(h.last(), "10.6.6.6") || !strings.Contains(h.last(), "from 127.0.0.1:") || !strings.Contains(h.last(), `header ""`) {
			t.Errorf("%s: %d %s; the server saw %s", name, status, body, h.last())
		}
		for _, path := range []string{newsPath, certificatePath, documentsPath + "?gateway=a", "/x/../node/news", "//node/news"} {
			before := h.last()
			if status, _ := h.direct(http.MethodPost, path, forged, certs...); status == http.StatusOK || h.last() != before && strings.Contains(h.last(), " /node") {
				t.Errorf("%s at %s: %d", name, path, status)
			}
		}
	}
	for name, cert := range map[string]tls.Certificate{"of another key": h.certificate(spiffe.Node, "node-1"), "that was never added": h.certificate(spiffe.Node, "node-9")} {
		before := h.last()
		if status, _ := h.direct(http.MethodGet, "/time", forged, cert); status != http.StatusForbidden || h.last() != before {
			t.Errorf("a node %s gets %d", name, status)
		}
	}
	foreign := newHouse(t)
	if status, _ := h.direct(http.MethodGet, "/time", forged, foreign.certificate(spiffe.Node, "node-1")); status != http.StatusForbidden {
		t.Errorf("a node of another root gets %d", status)
	}
}

// TestGatewaysReachNoNodePaths: what is the node's to ask cannot be asked through it, however the path is written.
func TestGatewaysReachNoNodePaths(t *testing.T) {
	h := newHouse(t)
	front := h.front(h.node("node-1", time.Time{}))
	for _, path := range []string{newsPath, certificatePath + "?kind=node", documentsPath + "?gateway=a", "//node/news", "/x/../node/news", "/%6eode/news", "/node"} {
		conn, err := tls.Dial("tcp", front, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", path)
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(answer), "HTTP/1.1 404") || h.last() != "" { // by the node: the server would answer 403
			t.Errorf("%s through a node: %.60q, behind it: %s", path, answer, h.last())
		}
	}
	if len(h.issued) > 0 {
		t.Errorf("certificates were issued: %+v", h.issued)
	}
}

// TestWhatANodePassesOnIsNotItsOwn: the server's half holds by itself: a request that a node carries reaches no path of nodes, and one that it does
// not say whose it is reaches nothing else.
func TestWhatANodePassesOnIsNotItsOwn(t *testing.T) {
	h := newHouse(t)
	c := h.node("node-1", time.Time{})
	carried := map[string]string{peerHeader: "10.0.0.7:4711"}
	if status, _ := h.direct(http.MethodPost, newsPath, carried, *c.own); status != http.StatusForbidden {
		t.Errorf("news for a gateway: %d", status)
	}
	if status, _ := h.direct(http.MethodGet, "/time", nil, *c.own); status != http.StatusForbidden || h.last() != "" {
		t.Errorf("the time for nobody: %d, %s", status, h.last())
	}
	for _, bad := range []map[string]string{{peerHeader: "somewhere"}, {peerHeader: "10.0.0.7:1", chainHeader: "?"}, {peerHeader: "10.0.0.7:1", chainHeader: "Zm9yZ2Vk"}} {
		if status, _ := h.direct(http.MethodGet, "/time", bad, *c.own); status != http.StatusBadRequest || h.last() != "" {
			t.Errorf("%v: %d, %s", bad, status, h.last())
		}
	}
	if status, _ := h.direct(http.MethodGet, "/time", carried, *c.own); status != http.StatusOK || !strings.Contains(h.last(), "from 10.0.0.7:4711 with nothing") {
		t.Errorf("a gateway's request: %d, %s", status, h.last())
	}
}

// TestANodeIsCertified: for its gateways' port under the names that it was added with, and itself for the key that it is known by; nothing
// that a request says beside its key counts.
func TestANodeIsCertified(t *testing.T) {
	h := newHouse(t)
	c := h.node("node-1", time.Now().Add(-Life*6/10))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.Certify(t.Context(), key)
	if err != nil || len(chain) != 2 {
		t.Fatalf("%v, %v", chain, err)
	}
	if leaf := chain[0]; leaf.URIs[0].String() != "spiffe://ward.example/service/ingest" || fmt.Sprint(leaf.DNSNames, leaf.IPAddresses) != "[node.example main.example] [10.0.0.9]" {
		t.Errorf("the port's certificate is of %s, %v, %v", leaf.URIs[0], leaf.DNSNames, leaf.IPAddresses)
	}
	if _, err := c.certify(t.Context(), kindNode, key); err == nil || !strings.Contains(err.Error(), "keeps its key") {
		t.Errorf("a node's certificate for another key: %v", err)
	}
	if _, err := c.certify(t.Context(), "operator", key); err == nil {
		t.Error("a node gets an operator's certificate")
	}
	// Its own, past half of its life, is renewed in place, and the next start reads the new one.
	before := c.own.Leaf
	if err := c.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.own.Leaf.Equal(before) || time.Until(c.own.Leaf.NotAfter) < Life-time.Hour || c.own.Leaf.URIs[0].String() != "spiffe://ward.example/node/node-1" {
		t.Errorf("not renewed: %s until %s", c.own.Leaf.URIs[0], c.own.Leaf.NotAfter)
	}
	again, err := NewClient(c.ClientConfig)
	if err != nil || !again.own.Leaf.Equal(c.own.Leaf) {
		t.Errorf("a new start reads another certificate: %v", err)
	}
	h.mu.Lock()
	delete(h.nodes, "node-1")
	h.mu.Unlock()
	if _, err := c.Certify(t.Context(), key); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a node that was removed is certified: %v", err)
	}
}

// pushed is an endpoint that notes who is sent documents anew.
type pushed struct {
	live []ingest.SessionInfo
	to   []string
	c    *Client
}

func (p *pushed) Sessions() []ingest.SessionInfo { return p.live }
func (p *pushed) Traffic(string) ingest.Traffic  { return ingest.Traffic{Opened: time.Unix(7, 0)} }
func (p *pushed) RefusalRates() map[string]ingest.Rate {
	return map[string]ingest.Rate{"n": {Count: 3}}
}
func (p *pushed) RefusedBatches() map[string]ingest.Parked { return nil }
func (p *pushed) Rivals() map[string]ingest.Rival          { return nil }
func (p *pushed) Push(ctx context.Context, gateway string) error {
	docs, err := p.c.Documents(ctx, gateway)
	if err == nil && len(docs) == 1 && string(docs[0].Body) == "for "+gateway {
		p.to = append(p.to, gateway)
	}
	return err
}

// TestNews: gateways whose documents have changed are sent them, all after a server's new start, and those that were owed some as soon as they
// can be had; the server knows the node's sessions; the CA's state is the server's, and not well without a word of it.
func TestNews(t *testing.T) {
	h := newHouse(t)
	c := h.node("node-1", time.Time{})
	p := &pushed{c: c, live: []ingest.SessionInfo{{Gateway: "icu-1", Agent: "1.2"}, {Gateway: "icu-2"}}}
	news := func(want ...string) {
		t.Helper()
		p.to = nil
		if err := c.news(t.Context(), p, reportOf(p)); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(p.to) != fmt.Sprint(want) {
			t.Errorf("sent to %v, expected %v", p.to, want)
		}
	}
	h.changes.Add([]string{"icu-0"})
	news() // what was before the node's start went out at SUBSCRIBE
	h.changes.Add([]string{"icu-1", "icu-7"})
	news("icu-1", "icu-7")
	news()
	h.docsErr = errors.New("half of it")
	if _, err := c.Documents(t.Context(), "icu-2"); err == nil {
		t.Error("documents that are not whole are given without a word")
	}
	h.docsErr = nil
	news("icu-2")
	*h.changes = Changes{instance: "another", first: 1}
	news("icu-1", "icu-2")
	if all := h.reports.Heard(); all["node-1"].Sessions != 2 {
		t.Errorf("the server knows %+v", all)
	}
	if n := h.nodes["node-1"]; h.kept != 1 || !n.NotBefore.Equal(c.own.Leaf.NotBefore) || !n.NotAfter.Equal(c.own.Leaf.NotAfter) {
		t.Errorf("of the certificate is kept, %d times: %s to %s; expected once, %s to %s", h.kept, n.NotBefore, n.NotAfter, c.own.Leaf.NotBefore, c.own.Leaf.NotAfter)
	}
	h.well = false
	news()
	if well, since := c.CA(); well || !since.Equal(time.Unix(1, 0)) {
		t.Errorf("CA: %t since %s", well, since)
	}
	h.well = true
	news()
	c.mu.Lock()
	c.contact = time.Now().Add(-blind - time.Second)
	c.mu.Unlock()
	if well, _ := c.CA(); well {
		t.Error("a CA of which nothing was heard counts as well")
	}
}

// TestChangesAreBounded: a node that is further behind than is remembered sends everybody everything.
func TestChangesAreBounded(t *testing.T) {
	c := NewChanges()
	for range maxChanges + 10 {
		c.Add([]string{"g"})
	}
	if a := c.since(c.instance, 5); !a.All || len(c.list) != maxChanges {
		t.Errorf("%+v with %d remembered", a.All, len(c.list))
	}
	if a := c.since(c.instance, uint64(maxChanges)+8); a.All || len(a.Gateways) != 2 || a.Last != uint64(maxChanges)+10 {
		t.Errorf("%+v", a)
	}
}

// FuzzParseChain: what a header holds never takes the server down.
func FuzzParseChain(f *testing.F) {
	f.Add("")
	f.Add("Zm9yZ2Vk,Zm9yZ2Vk")
	f.Fuzz(func(t *testing.T, text string) {
		if out, err := parseChain(text); err == nil && len(out) > maxChain {
			t.Errorf("%d certificates", len(out))
		}
	})
}
