package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/server/ingest"
)

// ClientConfig is what a node needs to speak with its server. All fields without "may" are required.
type ClientConfig struct {
	TrustDomain string
	Roots       *x509.CertPool
	Servers     []string // addresses of the server's port for gateways, tried in this order
	Authorities []string // addresses of the processes with the service ca, each request to the next; may be nil: the server holds the CA, too
	Key         crypto.Signer
	Certificate string // file of the node's certificate and its chain, PEM; renewed in place
	Log         *slog.Logger
}

// Client is the node's half. It is safe for concurrent use.
type Client struct {
	ClientConfig
	http  *http.Client
	enrol *http.Client // where certificates are made
	name  string

	mu       sync.Mutex
	own      *tls.Certificate
	instance string
	after    uint64
	contact  time.Time // of the last answer that told of the CA; the client's making before the first
	well     bool
	since    time.Time
	owed     map[string]bool // gateways that were not sent what they should
}

// What a node waits for: the server is in the same house, or in the same data centre.
const (
	dialTime   = 5 * time.Second
	askTime    = 10 * time.Second
	answerTime = 60 * time.Second // of a gateway's request, in which an attestation is judged
	newsEvery  = time.Second
	reportSlow = 30 * time.Second // between two reports of more than manySessions sessions; else 5 s
	reportFast = 5 * time.Second
	caEvery    = 5 * time.Second // between two questions after the CA
	// blind is how long the CA counts as well without a word of it: beyond that no gateway behind this node can renew its certificate.
	blind        = 30 * time.Second
	manySessions = 1000
	renewEvery   = time.Minute
)

// NewClient reads the node's certificate. It does not speak with the server yet.
func NewClient(cfg ClientConfig) (*Client, error) {
	now := time.Now()
	c := &Client{ClientConfig: cfg, contact: now, well: true, since: now, owed: make(map[string]bool)}
	data, err := os.ReadFile(cfg.Certificate)
	if err != nil {
		return nil, fmt.Errorf("node's certificate: %w", err)
	}
	if c.own, err = pair(data, cfg.Key); err != nil {
		return nil, fmt.Errorf("node's certificate %s: %w", cfg.Certificate, err)
	}
	if !now.Before(c.own.Leaf.NotAfter) {
		return nil, fmt.Errorf("node's certificate %s ended at %s while the node was off; remove the node and add it again", cfg.Certificate, c.own.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	id, err := spiffe.FromCertificate(c.own.Leaf)
	if err != nil || id.Kind != spiffe.Node || id.TrustDomain != cfg.TrustDomain {
		return nil, fmt.Errorf("node's certificate %s is not a node's of %s", cfg.Certificate, cfg.TrustDomain)
	}
	c.name, c.http = id.Name, &http.Client{Transport: newDialer(cfg.TrustDomain, cfg.Roots, cfg.Servers, c.certificate).transport()}
	c.enrol = c.http
	if len(cfg.Authorities) > 0 {
		c.enrol = &http.Client{Transport: newDialer(cfg.TrustDomain, cfg.Roots, cfg.Authorities, c.certificate).spreading()}
	}
	return c, nil
}

func (c *Client) certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.own, nil
}

// pair is a chain in PEM with its key.
func pair(chain []byte, key crypto.Signer) (*tls.Certificate, error) {
	out := &tls.Certificate{PrivateKey: key}
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			out.Certificate = append(out.Certificate, block.Bytes)
		}
	}
	if len(out.Certificate) == 0 {
		return nil, errors.New("expected certificates in PEM")
	}
	var err error
	if out.Leaf, err = x509.ParseCertificate(out.Certificate[0]); err != nil {
		return nil, err
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(out.Leaf.PublicKey) {
		return nil, errors.New("it is not of the key beside it")
	}
	return out, nil
}

// ask makes one request of this process's own.
func ask(ctx context.Context, c *http.Client, method, path string, query url.Values, body, into any) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var sent io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		sent = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return 0, err
		}
		sent = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, (&url.URL{Scheme: "https", Host: "server", Path: path, RawQuery: query.Encode()}).String(), sent)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, fmt.Errorf("server: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, fmt.Errorf("server: %w", err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusMultiStatus {
		return resp.StatusCode, fmt.Errorf("server: %s: %.200s", resp.Status, bytes.TrimSpace(text))
	}
	if raw, ok := into.(*[]byte); ok {
		*raw = text
		return resp.StatusCode, nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return resp.StatusCode, fmt.Errorf("server: not an answer to a node: %w", err)
	}
	return resp.StatusCode, nil
}

// Name is the node's, as its certificate has it.
func (c *Client) Name() string { return c.name }

// Certify has a key certified for this node's gateways' port. The chain has its leaf first.
func (c *Client) Certify(ctx context.Context, key crypto.Signer) (chain []*x509.Certificate, err error) {
	text, err := c.certify(ctx, kindService, key)
	if err != nil {
		return nil, err
	}
	p, err := pair(text, key)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	for _, der := range p.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("server: %w", err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

func (c *Client) certify(ctx context.Context, kind string, key crypto.Signer) (chain []byte, err error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	_, err = ask(ctx, c.enrol, http.MethodPost, certificatePath, url.Values{kindQuery: {kind}}, csr, &chain)
	return chain, err
}

// renew renews the node's certificate when it is time: the file first, so that a new start has it.
func (c *Client) renew(ctx context.Context) error {
	c.mu.Lock()
	leaf := c.own.Leaf
	c.mu.Unlock()
	if time.Until(leaf.NotAfter) > leaf.NotAfter.Sub(leaf.NotBefore)/2 {
		return nil
	}
	chain, err := c.certify(ctx, kindNode, c.Key)
	if err != nil {
		return err
	}
	next, err := pair(chain, c.Key)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if err := durable.WriteFile(c.Certificate, chain, 0o600); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = next
	c.Log.Info("the node's certificate is renewed", "not_after", next.Leaf.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

// Documents asks for what a gateway is sent at its SUBSCRIBE. What could not be had now is sent as soon as the server answers again.
func (c *Client) Documents(ctx context.Context, gateway string) (out []ingest.Document, err error) {
	var docs []Document
	status, err := ask(ctx, c.http, http.MethodGet, documentsPath, url.Values{"gateway": {gateway}}, nil, &docs)
	c.mu.Lock()
	if err == nil && status == http.StatusOK {
		delete(c.owed, gateway)
	} else {
		c.owed[gateway] = true
	}
	c.mu.Unlock()
	if err == nil && status != http.StatusOK {
		err = errors.New("server: not all of the documents could be had")
	}
	for _, d := range docs {
		out = append(out, ingest.Document{Doc: d.Doc, Body: d.Body})
	}
	return out, err
}

// CA says whether the CA is well as far as this node can tell, for the grace of certificates that have ended: a CA that cannot be reached
// renews none of them.
func (c *Client) CA() (well bool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.contact) > blind {
		return false, c.contact
	}
	return c.well, c.since
}

// lookAtCA asks the processes that hold the CA how it is.
func (c *Client) lookAtCA(ctx context.Context) error {
	state, err := askCA(ctx, c.enrol, len(c.Authorities))
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.contact, c.well, c.since = time.Now(), state.Well, state.Since
	return nil
}

// Sessions is what a node's endpoint tells of itself, and how a gateway is sent its documents anew.
type Sessions interface {
	Sessions() []ingest.SessionInfo
	Traffic(gateway string) ingest.Traffic
	RefusalRates() map[string]ingest.Rate
	RefusedBatches() map[string]ingest.Parked
	Rivals() map[string]ingest.Rival
	Push(ctx context.Context, gateway string) error
}

// watchCA asks how the CA is until ctx ends, beside Run's questions: processes that answer nothing must not put off news.
func (c *Client) watchCA(ctx context.Context) {
	tick := time.NewTicker(caEvery)
	defer tick.Stop()
	var told time.Time
	for {
		if err := c.lookAtCA(ctx); err == nil {
			told = time.Time{}
		} else if ctx.Err() == nil && time.Since(told) >= blind {
			told = time.Now()
			c.Log.Error("no process with the service ca can be asked; telemetry goes on, certificates do not", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Run asks for news once a second, reports, sends gateways what has changed, and renews the node's certificate, until ctx ends. Nothing
// here ends the node: while the server is away telemetry goes on.
func (c *Client) Run(ctx context.Context, s Sessions) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	if len(c.Authorities) > 0 {
		watching.Go(func() { c.watchCA(ctx) })
	}
	tick := time.NewTicker(newsEvery)
	defer tick.Stop()
	var reported, renewed, told time.Time
	many := false
	for {
		if err := ctx.Err(); err != nil {
			return nil
		}
		var report *Report
		if since := time.Since(reported); since >= reportFast && !many || since >= reportSlow {
			report = reportOf(s)
			many = len(report.Sessions) > manySessions
		}
		err := c.news(ctx, s, report)
		if err == nil && report != nil {
			reported = time.Now()
		}
		if err == nil && time.Since(renewed) >= renewEvery {
			renewed = time.Now()
			err = c.renew(ctx)
		}
		if err == nil {
			told = time.Time{}
		} else if ctx.Err() == nil && time.Since(told) >= blind {
			told = time.Now()
			c.Log.Error("the server cannot be asked; telemetry goes on, certificates and configurations do not", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func reportOf(s Sessions) *Report {
	r := &Report{Sessions: s.Sessions(), Traffic: make(map[string]ingest.Traffic), Rates: s.RefusalRates(), Parked: s.RefusedBatches(), Rivals: s.Rivals()}
	for _, one := range r.Sessions {
		r.Traffic[one.Gateway] = s.Traffic(one.Gateway)
	}
	return r
}

// news asks once and sends gateways what has changed.
func (c *Client) news(ctx context.Context, s Sessions, report *Report) error {
	c.mu.Lock()
	asked := News{Instance: c.instance, After: c.after, Report: report}
	c.mu.Unlock()
	var a Answer
	if _, err := ask(ctx, c.http, http.MethodPost, newsPath, nil, asked, &a); err != nil {
		return err
	}
	due := a.Gateways
	if a.All {
		for _, one := range s.Sessions() {
			due = append(due, one.Gateway)
		}
	}
	c.mu.Lock()
	c.instance, c.after = a.Instance, a.Last
	if len(c.Authorities) == 0 {
		c.contact, c.well, c.since = time.Now(), a.CAWell, a.CASince
	}
	for g := range c.owed {
		due = append(due, g)
		delete(c.owed, g) // Documents says so again if need be; one that has no session here is asked for when it comes back
	}
	c.mu.Unlock()
	var errs []error
	for _, g := range due {
		if err := s.Push(ctx, g); err != nil && ctx.Err() == nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
