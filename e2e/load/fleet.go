// Package load makes the gateways of the benchmarks: their certificates, their sealed frames, their MQTT connections, and how long
// their acknowledgements take. It publishes as agents do (QoS 1, mutual TLS 1.3, sealed frames under a sealing record that their
// device key signed), and is lean, since it shares its processors with the server that it measures.
package load

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

// Domain is the trust domain of the benchmarks' servers.
const Domain = "bench.example"

// Fleet is what the load generator is told of its gateways: gw-00000 and so on, each with a key of its own.
type Fleet struct {
	Root     []byte   // PEM of what servers' chains end in
	Gateways [][]byte // PEM each: certificate, issuing certificate, PKCS 8 key
	Records  []byte   // the records public key
}

// Name is a gateway's.
func Name(i int) string { return fmt.Sprintf("gw-%05d", i) }

// Identity is the TLS certificate of a gateway and the key that it signs with.
func (f *Fleet) Identity(i int) (tls.Certificate, crypto.Signer, error) {
	cert, err := tls.X509KeyPair(f.Gateways[i], f.Gateways[i])
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return tls.Certificate{}, nil, fmt.Errorf("gateway %s has a key of type %T", Name(i), cert.PrivateKey)
	}
	return cert, key, nil
}

// Roots is the pool of what servers' chains end in.
func (f *Fleet) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(f.Root)
	return pool
}

// Hospital is a server's directory with its gateways in the registry.
type Hospital struct {
	Dir   string
	Fleet *Fleet
	keys  *keys.Keys
}

// NewHospital makes a server's directory as 'wardlink-server init' does, with the given addresses, and enters n gateways and their
// device keys into its registry, as an import and n enrolments would have. said is called with the progress.
func NewHospital(ctx context.Context, dir string, cfg server.Config, n int, said func(done int)) (*Hospital, error) {
	cfg.TrustDomain, cfg.Names = Domain, []string{"localhost", "127.0.0.1"}
	if err := server.Init(ctx, server.InitOptions{Dir: dir, Config: cfg, Passphrase: keys.NewPassphrase(), Operator: "operator"}); err != nil {
		return nil, err
	}
	k, err := keys.Open(dir)
	if err != nil {
		return nil, err
	}
	h := &Hospital{Dir: dir, keys: k, Fleet: &Fleet{
		Root: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Root.Raw}), Records: k.Records.Public().Bytes(),
	}}
	return h, h.enrol(ctx, n, said)
}

// Stores are those of a server's directory that ingest needs.
type Stores struct {
	Journal  *journal.Journal
	Registry *registry.Registry
	db       *sqldb.DB
}

// OpenStores opens a server's journal and registry, beside no running server.
func OpenStores(dir string) (_ *Stores, err error) {
	s := &Stores{}
	if s.Journal, err = journal.Open(JournalConfig(dir)); err != nil {
		return nil, err
	}
	if s.db, err = sqldb.OpenBeside(filepath.Join(dir, "wardlink.db"), append(sqldb.OutboxMigrations(), registry.Migrations()...)...); err != nil {
		return nil, errors.Join(err, s.Journal.Close())
	}
	outbox, err := sqldb.NewOutbox(s.db, s.Journal, nil)
	if err != nil {
		return nil, err
	}
	s.Registry, err = registry.New(registry.Config{DB: s.db, Outbox: outbox})
	return s, err
}

// JournalConfig is that of a server's directory.
func JournalConfig(dir string) journal.Config {
	return journal.Config{Dir: filepath.Join(dir, "journal"), Node: 1, Consumers: []string{"log", "records"}}
}

// Close closes both.
func (s *Stores) Close() error { return errors.Join(s.db.Close(), s.Journal.Close()) }

// enrol enters the gateways and gives each a certificate for its device key.
func (h *Hospital) enrol(ctx context.Context, n int, said func(done int)) error {
	stores, err := OpenStores(h.Dir)
	if err != nil {
		return err
	}
	defer stores.Close()
	gateways := make([]registry.Gateway, n)
	for i := range gateways {
		ek := sha256.Sum256([]byte(Name(i)))
		gateways[i] = registry.Gateway{ID: Name(i), EKs: [][32]byte{ek}, Site: "bench", Ward: fmt.Sprintf("ward-%d", i/100)}
	}
	results, err := stores.Registry.Import(ctx, audit.Actor{ID: "bench"}, "", gateways)
	if err != nil {
		return err
	}
	for _, r := range results {
		if r.Outcome != registry.Added {
			return fmt.Errorf("gateway %s: %s %s", r.ID, r.Outcome, r.Reason)
		}
	}
	for i := range n {
		pair, cert, err := h.issue(spiffe.ID{TrustDomain: Domain, Kind: spiffe.Gateway, Name: Name(i)})
		if err != nil {
			return err
		}
		h.Fleet.Gateways = append(h.Fleet.Gateways, pair)
		if err := stores.Registry.AddKey(ctx, registry.Key{
			Gateway: Name(i), EK: gateways[i].EKs[0], SPKI: sha256.Sum256(cert.RawSubjectPublicKeyInfo), Public: cert.RawSubjectPublicKeyInfo,
			Serial: cert.SerialNumber.Text(16), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		}); err != nil {
			return err
		}
		if said != nil {
			said(i + 1)
		}
	}
	return nil
}

// issue makes a key and its certificate, as PEM: certificate, issuing certificate, key. Services are called as this machine is.
func (h *Hospital) issue(id spiffe.ID) (pair []byte, cert *x509.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{uri},
	}
	if id.Kind == spiffe.Service {
		t.DNSNames, t.ExtKeyUsage = []string{"localhost"}, append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	made, err := x509.CreateCertificate(rand.Reader, t, h.keys.Issuing, key.Public(), h.keys.IssuingKey)
	if err == nil {
		cert, err = x509.ParseCertificate(made)
	}
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range []*x509.Certificate{cert, h.keys.Issuing} {
		pair = append(pair, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return append(pair, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...), cert, nil
}

// ServerFiles writes what another MQTT server needs to be one of this hospital: root.pem, server.pem (chain) and server.key.
func (h *Hospital) ServerFiles(dir string) error {
	pair, _, err := h.issue(spiffe.ID{TrustDomain: Domain, Kind: spiffe.Service, Name: "ingest"})
	if err != nil {
		return err
	}
	var chain, key []byte
	for block, rest := pem.Decode(pair); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			chain = append(chain, pem.EncodeToMemory(block)...)
		} else {
			key = pem.EncodeToMemory(block)
		}
	}
	for name, data := range map[string][]byte{"root.pem": h.Fleet.Root, "server.pem": chain, "server.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
