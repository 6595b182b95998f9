// Package stepca runs a stock step-ca with authorities of its own, which certifies gateways by ACME's device-attest-01 and believes the attestation CA
// that it is given: for what holds our server against it.
package stepca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"wardlink/internal/child"
	"wardlink/server/ca"
)

// Config is what a step-ca needs. All fields are required.
type Config struct {
	Program     string // step-ca
	Dir         string // for its files; it exists
	Addr        string // on which it listens, host:port
	TrustDomain string // of the SPIFFE ids that it issues
	Attestation []byte // PEM of the attestation CA
}

// Server is a step-ca that runs.
type Server struct {
	*child.Process
	Root      string // a file, PEM
	Directory string // of ACME, an https URL
}

// Start runs a step-ca, and waits until it answers or ctx ends. Its store is what step-ca recommends for one machine, Badger, as it is by default.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	file := func(name string) string { return filepath.Join(cfg.Dir, name) }
	s := &Server{Root: file("step-ca-root.crt"), Directory: "https://" + cfg.Addr + "/acme/attest/directory"}
	root, err := cfg.write(s.Root, file)
	if err != nil {
		return nil, err
	}
	if s.Process, err = child.Start("step-ca", file("step-ca.log"), cfg.Program, file("step-ca.json")); err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}}
	defer client.CloseIdleConnections()
	if err := child.Until(ctx, "step-ca", []*child.Process{s.Process}, func(context.Context) (bool, error) {
		answer, err := client.Get("https://" + cfg.Addr + "/health")
		if err != nil {
			return false, nil
		}
		return true, answer.Body.Close()
	}); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// write makes authorities and configuration.
func (cfg *Config) write(rootFile string, file func(string) string) (*x509.Certificate, error) {
	now := time.Now()
	root, rootKey, err := ca.NewRoot(cfg.TrustDomain, now)
	if err != nil {
		return nil, err
	}
	issuing, issuingKey, err := ca.NewIssuing(cfg.TrustDomain, root, rootKey, now)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalECPrivateKey(issuingKey)
	if err != nil {
		return nil, err
	}
	template := `{"subject": {"commonName": {{ toJson (index .SANs 0).Value }}},
"uris": [{{ toJson (printf "spiffe://` + cfg.TrustDomain + `/gateway/%s" (index .SANs 0).Value) }}], "keyUsage": ["digitalSignature"], "extKeyUsage": ["clientAuth"]}`
	config, err := json.Marshal(map[string]any{
		"root": rootFile, "crt": file("step-ca-issuing.crt"), "key": file("step-ca-issuing.key"),
		"address": cfg.Addr, "dnsNames": []string{"127.0.0.1"}, "logger": map[string]string{"format": "text"},
		"db": map[string]string{"type": "badgerv2", "dataSource": file("step-ca-db")},
		"authority": map[string]any{"provisioners": []any{map[string]any{"type": "ACME", "name": "attest",
			"challenges": []string{"device-attest-01"}, "attestationFormats": []string{"tpm"}, "attestationRoots": cfg.Attestation,
			"claims":  map[string]any{"maxTLSCertDuration": "24h", "defaultTLSCertDuration": "24h", "disableSmallstepExtensions": true},
			"options": map[string]any{"x509": map[string]string{"template": template}}}}},
	})
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{
		rootFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), file("step-ca-issuing.crt"): pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuing.Raw}),
		file("step-ca-issuing.key"): pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}), file("step-ca.json"): config,
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			return nil, fmt.Errorf("step-ca's files: %w", err)
		}
	}
	return root, nil
}
