package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"wardlink/internal/spiffe"
)

// Credentials are an operator's file: where the server is, whom to trust as it, and who the operator is. It holds a private key.
type Credentials struct {
	Server      string `json:"server"` // https://host:port of the operators' listener
	TrustDomain string `json:"trust_domain"`
	Roots       string `json:"roots"`       // PEM
	Certificate string `json:"certificate"` // PEM chain, leaf first
	Key         string `json:"key"`         // PEM, PKCS #8
}

// DefaultCredentials is where the tool looks when it is told nothing: $WARDLINK_OPERATOR, then the user's configuration directory.
func DefaultCredentials() string {
	if p := os.Getenv("WARDLINK_OPERATOR"); p != "" {
		return p
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "operator.json"
	}
	return filepath.Join(dir, "wardlink", "operator.json")
}

// Client is one operator's connection.
type Client struct {
	base *url.URL
	http *http.Client

	own  *renewal // of an operator's file; else nil
	once sync.Once
}

// Open reads an operator's file.
func Open(path string) (*Client, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("operator's file: %w; 'wardlink-server init' made one at DIR/operator/operator.json: "+
			"name it with --operator or WARDLINK_OPERATOR", err)
	}
	var c Credentials
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("operator's file %s: %w", path, err)
	}
	cert, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key))
	if err != nil {
		return nil, fmt.Errorf("operator's file %s: certificate and key: %w", path, err)
	}
	if time.Now().After(cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("operator's file %s: its certificate expired at %s; make a new one on the server with 'wardlink-server operator'",
			path, cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.Roots)) {
		return nil, fmt.Errorf("operator's file %s: roots: no PEM certificate", path)
	}
	base, err := url.Parse(c.Server)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("operator's file %s: server: %q; expected https://host:port", path, c.Server)
	}
	conf := spiffe.ServerTLS(roots, spiffe.ID{TrustDomain: c.TrustDomain, Kind: spiffe.Service, Name: "api"}, "http/1.1")
	conf.Certificates = []tls.Certificate{cert}
	return &Client{base: base, http: &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{TLSClientConfig: conf}}, own: &renewal{path, c, cert.Leaf}}, nil
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 256 << 20

// Stream sends a request and gives the answer's body, which the caller closes. The first one renews the operator's file where that is due.
func (c *Client) Stream(ctx context.Context, method, path string, query url.Values, contentType string, body []byte) (io.ReadCloser, error) {
	if c.own != nil && c.own.due(time.Now()) {
		c.once.Do(func() { c.renew(ctx) })
	}
	return c.send(ctx, method, path, query, contentType, body)
}

func (c *Client) send(ctx context.Context, method, path string, query url.Values, contentType string, body []byte) (io.ReadCloser, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("no server answers at %s (connection refused); start it with 'wardlink-server run --dir DIR', or correct \"server\" in the file of your certificate (the operator's file, or access.json)", c.base.Host)
		}
		var op interface{ Timeout() bool }
		if errors.As(err, &op) && op.Timeout() {
			return nil, fmt.Errorf("%w; is the server at %s reachable?", err, c.base.Host)
		}
		return nil, err
	}
	if c.own != nil && resp.Header.Get(RenewHeader) != "" {
		c.once.Do(func() { c.renew(ctx) })
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		var p Problem
		if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&p); err != nil || p.Title == "" {
			return nil, &statusError{resp.StatusCode, fmt.Sprintf("server answered %s", resp.Status)}
		}
		if p.Detail == "" {
			return nil, &statusError{resp.StatusCode, p.Title}
		}
		return nil, &statusError{resp.StatusCode, p.Detail}
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}, nil
}

// statusError is an answer other than success.
type statusError struct {
	status int
	says   string
}

func (e *statusError) Error() string { return e.says }

// Passing says of a call's error that the same call may succeed in a moment: nobody answered, or the server could not do it just then.
func Passing(err error) bool {
	var answered *statusError
	return err != nil && (!errors.As(err, &answered) || answered.status == http.StatusServiceUnavailable)
}

// PostBytes sends bytes of no particular type and reads a JSON answer into out.
func (c *Client) PostBytes(ctx context.Context, path string, query url.Values, body []byte, out any) error {
	return c.call(ctx, http.MethodPost, path, query, "application/octet-stream", body, out)
}

// Get reads a JSON answer into out.
func (c *Client) Get(ctx context.Context, path string, query url.Values, out any) error {
	return c.call(ctx, http.MethodGet, path, query, "", nil, out)
}

// Post sends in as JSON and reads a JSON answer into out, unless out is nil.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, path, nil, "application/json", body, out)
}

// PostText sends text of the given type.
func (c *Client) PostText(ctx context.Context, path, contentType string, text []byte, out any) error {
	return c.call(ctx, http.MethodPost, path, nil, contentType, text, out)
}

func (c *Client) call(ctx context.Context, method, path string, query url.Values, contentType string, body []byte, out any) error {
	r, err := c.Stream(ctx, method, path, query, contentType, body)
	if err != nil {
		return err
	}
	defer r.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(r).Decode(out); err != nil {
		return fmt.Errorf("server's answer: %w", err)
	}
	return nil
}
