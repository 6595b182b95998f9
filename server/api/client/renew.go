package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/internal/durable"
)

// RenewHeader is in an answer to a certificate that was rotated out: who shows it is to renew at once.
const RenewHeader = "Wardlink-Renew"

// renewal is what an operator's file is renewed by.
type renewal struct {
	path string
	file Credentials
	leaf *x509.Certificate
}

// due says whether the certificate is past half of its life.
func (r *renewal) due(now time.Time) bool {
	return now.Sub(r.leaf.NotBefore) > r.leaf.NotAfter.Sub(r.leaf.NotBefore)/2
}

// renewWait bounds what a command waits for a renewal that it was not called for.
const renewWait = 10 * time.Second

// renew replaces the operator's file by one with another key and certificate, whole or not at all. Where that cannot be, for want of the
// server or of the right to write there, the file goes on, and the next command tries again.
func (c *Client) renew(ctx context.Context) {
	path, err := filepath.EvalSymlinks(c.own.path)
	if err != nil || unix.Access(filepath.Dir(path), unix.W_OK) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, renewWait)
	defer cancel()
	key, csr, err := NewKey("operator")
	if err != nil {
		return
	}
	body, err := json.Marshal(RenewRequest{CSR: csr})
	if err != nil {
		return
	}
	bare := Client{base: c.base, http: c.http} // without own: the answer to this, too, may ask for a renewal
	answer, err := bare.send(ctx, http.MethodPost, "/v1/self/renew", nil, "application/json", body)
	if err != nil {
		return
	}
	defer answer.Close()
	var grant AccessGrant
	if err := json.NewDecoder(answer).Decode(&grant); err != nil {
		return
	}
	text, err := keyPEM(key)
	if err != nil {
		return
	}
	next := c.own.file
	next.Certificate, next.Key = grant.Certificate, string(text)
	if _, err := tls.X509KeyPair([]byte(next.Certificate), []byte(next.Key)); err != nil {
		return
	}
	if data, err := json.MarshalIndent(next, "", "  "); err == nil {
		_ = durable.WriteFile(path, append(data, '\n'), 0o600)
	}
}
