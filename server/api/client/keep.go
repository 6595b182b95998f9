package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
)

// AccessFile is in a service account's folder: what its certificate is renewed by. It holds no key.
const AccessFile = "access.json"

// accessFile is what it holds.
type accessFile struct {
	Server string `json:"server"` // https://host:port of the hospital's listener
	ID     string `json:"id"`     // SPIFFE id of the account
}

// NewKey makes a key and asks for its certificate. The server takes the name from who asks, not from the request.
func NewKey(name string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	return key, csr, err
}

// keyPEM is a key as its file has it.
func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// StoreAccess writes a service account's folder. NAME.pem comes first and holds key and chain, so that whoever reads that one file has a pair
// at each moment; NAME.key and NAME.crt are for programs that want two, and may be of different pairs for an instant. A crash in between
// leaves NAME.pem, from which OpenKeeper writes the two again.
func StoreAccess(dir, name string, key *ecdsa.PrivateKey, grant AccessGrant) error {
	text, err := keyPEM(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	about, err := json.MarshalIndent(accessFile{grant.Hospital, grant.ID}, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"root.crt", []byte(grant.Root)}, {AccessFile, append(about, '\n')}} {
		path := filepath.Join(dir, f.name)
		if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, f.data) {
			continue
		}
		if err := durable.WriteFile(path, f.data, 0o644); err != nil {
			return err
		}
	}
	return storePair(dir, name, append(text, grant.Certificate...))
}

// ReadyFolder makes a service account's folder, if need be, and tries that a file can be written into it.
func ReadyFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("the account's folder cannot be made: %w", err)
	}
	const probe = ".probe"
	if err := durable.WriteFile(filepath.Join(dir, probe), []byte("x"), 0o600); err != nil {
		return fmt.Errorf("the account's files cannot be written: %w", err)
	}
	return os.Remove(filepath.Join(dir, probe))
}

// storePair writes a key and its chain, in PEM, key first.
func storePair(dir, name string, both []byte) error {
	block, chain := pem.Decode(both)
	if block == nil || block.Type != "PRIVATE KEY" {
		return errors.New("expected a private key and its certificates in PEM")
	}
	for _, f := range []struct {
		name string
		data []byte
		perm fs.FileMode
	}{{name + ".pem", both, 0o600}, {name + ".key", pem.EncodeToMemory(block), 0o600}, {name + ".crt", chain, 0o644}} {
		path := filepath.Join(dir, f.name)
		if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, f.data) {
			continue
		}
		if err := durable.WriteFile(path, f.data, f.perm); err != nil {
			return err
		}
	}
	return nil
}

// Keeper renews the certificate in a service account's folder, over mutual TLS with the one that is there. It is safe for concurrent use.
type Keeper struct {
	dir  string
	id   spiffe.ID
	base *url.URL
	http *http.Client
	log  *slog.Logger

	// Look is how often Run asks the server whether the certificate was rotated out, a minute as OpenKeeper sets it.
	Look time.Duration

	mu  sync.Mutex
	own *tls.Certificate
	due time.Time
}

// Waits of a keeper. A certificate lives for a day, so that a server that is away for hours does not end it.
const (
	lookEvery  = time.Minute
	renewTime  = 30 * time.Second
	slowestTry = 10 * time.Minute
)

// OpenKeeper reads a folder that 'wardlink access issue' made. roots is a file of the certificates, in PEM, that sign the hospital's own one,
// where the server has one ('hospital_tls'); "": the server shows wardlink's, which is known by its SPIFFE id.
func OpenKeeper(dir, roots string, log *slog.Logger) (*Keeper, error) {
	var about accessFile
	data, err := os.ReadFile(filepath.Join(dir, AccessFile))
	if err == nil {
		err = json.Unmarshal(data, &about)
	}
	if err != nil {
		return nil, fmt.Errorf("account's folder: %w; 'wardlink access issue NAME --out %s --renew' makes it", err, dir)
	}
	k := &Keeper{dir: dir, log: log, Look: lookEvery}
	if k.id, err = spiffe.Parse(about.ID); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, AccessFile), err)
	}
	if k.base, err = url.Parse(about.Server); err != nil || k.base.Scheme != "https" || k.base.Host == "" {
		return nil, fmt.Errorf("%s: server: %.100q; expected https://host:port of the hospital's port", filepath.Join(dir, AccessFile), about.Server)
	}
	both, err := os.ReadFile(k.pem())
	if err != nil {
		return nil, fmt.Errorf("account's folder: %w", err)
	}
	if err := k.use(both); err != nil {
		return nil, fmt.Errorf("%s: %w", k.pem(), err)
	}
	if err := storePair(dir, k.id.Name, both); err != nil { // a former run may have been killed between the files
		return nil, err
	}
	conf, err := k.tls(roots)
	if err != nil {
		return nil, err
	}
	k.http = &http.Client{Timeout: renewTime, Transport: &http.Transport{TLSClientConfig: conf}}
	return k, nil
}

func (k *Keeper) pem() string { return filepath.Join(k.dir, k.id.Name+".pem") }

// use takes up a pair.
func (k *Keeper) use(both []byte) error {
	cert, err := tls.X509KeyPair(both, both)
	if err != nil {
		return err
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	k.mu.Lock()
	defer k.mu.Unlock()
	// Half of its life, and up to a tenth more: systems that were set up together do not come together.
	k.own, k.due = &cert, cert.Leaf.NotBefore.Add(life/2+mathrand.N(max(life/10, 1)))
	return nil
}

func (k *Keeper) tls(roots string) (*tls.Config, error) {
	file := roots
	if file == "" {
		file = filepath.Join(k.dir, "root.crt")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("account's folder: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no PEM certificate", file)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, NextProtos: []string{"http/1.1"}}
	if roots == "" {
		conf = spiffe.ServerTLS(pool, spiffe.ID{TrustDomain: k.id.TrustDomain, Kind: spiffe.Service, Name: "fhir"}, "http/1.1")
	}
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.own, nil
	}
	return conf, nil
}

// Renew has another key certified now and stores both, the former ones replaced. It gives the end of the new certificate.
func (k *Keeper) Renew(ctx context.Context) (time.Time, error) {
	key, csr, err := NewKey(k.id.Name)
	if err != nil {
		return time.Time{}, err
	}
	text, err := keyPEM(key)
	if err != nil {
		return time.Time{}, err
	}
	body, err := json.Marshal(RenewRequest{CSR: csr})
	if err != nil {
		return time.Time{}, err
	}
	var grant AccessGrant
	if err := k.ask(ctx, http.MethodPost, "/access/renew", body, &grant); err != nil {
		return time.Time{}, err
	}
	both := append(text, grant.Certificate...)
	if _, err := tls.X509KeyPair(both, both); err != nil {
		return time.Time{}, fmt.Errorf("server's answer: %w", err)
	}
	if err := storePair(k.dir, k.id.Name, both); err != nil {
		return time.Time{}, fmt.Errorf("the renewed certificate cannot be stored; the former one goes on: %w", err)
	}
	if err := k.use(both); err != nil {
		return time.Time{}, err
	}
	k.http.CloseIdleConnections() // the next request shows the new one
	return grant.NotAfter, nil
}

// Due says whether it is time to renew, by this machine's clock.
func (k *Keeper) Due() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !time.Now().Before(k.due)
}

// Own asks the server what the account is and whether its certificate was rotated out.
func (k *Keeper) Own(ctx context.Context) (out Own, err error) {
	return out, k.ask(ctx, http.MethodGet, "/access/self", nil, &out)
}

func (k *Keeper) ask(ctx context.Context, method, path string, body []byte, out any) error {
	c := Client{base: k.base, http: k.http}
	r, err := c.send(ctx, method, path, nil, "application/json", body)
	if err != nil {
		k.mu.Lock()
		end := k.own.Leaf.NotAfter
		k.mu.Unlock()
		if time.Now().After(end) {
			return fmt.Errorf("the certificate ended at %s, so that it can renew itself no more; an operator makes another: wardlink access issue %s --renew --out %s (%w)", end.UTC().Format(time.RFC3339), k.id.Name, k.dir, err)
		}
		return err
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(out); err != nil {
		return fmt.Errorf("server's answer: %w", err)
	}
	return nil
}

// Run renews the certificate at half of its life, and at once when it was rotated out, until ctx ends. Whatever goes wrong is told and
// tried again: within minutes, never hot.
func (k *Keeper) Run(ctx context.Context) error {
	wait, told := time.Duration(0), ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		err := k.once(ctx)
		switch {
		case err == nil:
			wait, told = k.Look, ""
		case ctx.Err() != nil:
			return nil
		default:
			wait = min(max(2*wait, k.Look), slowestTry)
			if err.Error() != told {
				told = err.Error()
				k.log.Error("the certificate cannot be looked after; it is tried again", "account", k.id.Name, "error", err)
			}
		}
		wait += mathrand.N(wait/5 + 1)
	}
}

// once looks once.
func (k *Keeper) once(ctx context.Context) error {
	due := k.Due()
	if !due {
		own, err := k.Own(ctx)
		if err != nil {
			return err
		}
		due = own.Renew
	}
	if !due {
		return nil
	}
	end, err := k.Renew(ctx)
	if err == nil {
		k.log.Info("the certificate is renewed", "account", k.id.Name, "not_after", end.UTC().Format(time.RFC3339))
	}
	return err
}
