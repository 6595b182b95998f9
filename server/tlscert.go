package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/server/keys"
)

// serviceLife is how long a service's TLS certificate lives. It renews itself at half of that.
const serviceLife = 7 * 24 * time.Hour

// issued is a new key with its certificate, as PEM.
type issued struct {
	leaf       *x509.Certificate
	chain, key []byte
}

// issue makes a key and has it certified, for what runs before there is a journal.
func issue(k *keys.Keys, id spiffe.ID, names []string, life time.Duration, now time.Time) (issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issued{}, err
	}
	cert, err := ca.NewCertificate(k.Issuing, k.IssuingKey, template(id, key, names, life), now)
	if err != nil {
		return issued{}, err
	}
	text, err := pemKey(key)
	return issued{leaf: cert, chain: pemChain([]*x509.Certificate{cert, k.Issuing}), key: text}, err
}

func template(id spiffe.ID, key *ecdsa.PrivateKey, names []string, life time.Duration) ca.Template {
	t := ca.Template{ID: id, Public: key.Public(), Life: life}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPs = append(t.IPs, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	return t
}

func pemChain(chain []*x509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// serviceCert is one service's TLS certificate. Its key lives in memory only and is new at every renewal: at half of its life, and when
// there is another issuing CA. An ingest node keeps both in a file: it must serve gateways also when it starts while the CA is away.
type serviceCert struct {
	issue  func(ca.Template) (chain []*x509.Certificate, err error) // durably journaled when it returns
	issuer func() *x509.Certificate                                 // the issuing CA in use; nil: nobody knows
	sign   func(key *ecdsa.PrivateKey) ([]*x509.Certificate, error) // in issue's place, where another process holds the CA
	file   string                                                   // where certificate and key are kept; "": nowhere
	id     spiffe.ID
	names  []string
	now    func() time.Time

	mu      sync.Mutex
	current *tls.Certificate
	renewAt time.Time
	retryAt time.Time // after a renewal that failed; each handshake must not try again
}

func (s *serviceCert) get() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.current == nil {
		s.load()
	}
	// One that has not begun was made while the clock was ahead: whoever has the right time refuses it.
	good := s.current != nil && now.Before(s.current.Leaf.NotAfter) && !now.Before(s.current.Leaf.NotBefore)
	if good {
		former := s.issuer != nil && !bytes.Equal(s.current.Leaf.AuthorityKeyId, s.issuer().SubjectKeyId)
		if now.Before(s.retryAt) || now.Before(s.renewAt) && !former {
			return s.current, nil
		}
	}
	cert, err := s.renew()
	if err != nil {
		if good {
			s.retryAt = now.Add(time.Minute)
			return s.current, nil
		}
		return nil, fmt.Errorf("certificate of %s: %w", s.id, err)
	}
	s.current, s.renewAt, s.retryAt = cert, now.Add(cert.Leaf.NotAfter.Sub(now)/2), time.Time{}
	return cert, nil
}

// load takes up what a former process kept. What cannot be read is made anew.
func (s *serviceCert) load() {
	if s.file == "" {
		return
	}
	cert, err := tls.LoadX509KeyPair(s.file, s.file)
	if err == nil {
		s.current, s.renewAt = &cert, cert.Leaf.NotBefore.Add(cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)/2)
	}
}

// keep stores the certificate and its key, before they are used.
func (s *serviceCert) keep(chain []*x509.Certificate, key *ecdsa.PrivateKey) error {
	if s.file == "" {
		return nil
	}
	text, err := pemKey(key)
	if err != nil {
		return err
	}
	defer clear(text)
	return durable.WriteFile(s.file, append(pemChain(chain), text...), 0o600)
}

// pemKey is a private key as its file has it.
func pemKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// leaf is the certificate in use, nil before the first handshake.
func (s *serviceCert) leaf() *x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil
	}
	return s.current.Leaf
}

func (s *serviceCert) renew() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	sign := s.sign
	if sign == nil {
		sign = func(key *ecdsa.PrivateKey) ([]*x509.Certificate, error) {
			return s.issue(template(s.id, key, s.names, serviceLife))
		}
	}
	chain, err := sign(key)
	if err != nil {
		return nil, err
	}
	if err := s.keep(chain, key); err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// gatewaysTLS is the configuration of the gateways' port. There verify decides about the certificate that a client shows, and ingest once
// more about the identity: nothing else on that port asks for one.
func gatewaysTLS(cert func() (*tls.Certificate, error), root *x509.Certificate, verify func(tls.ConnectionState) error) *tls.Config {
	c := listenerTLS(cert, root, "mqtt", "http/1.1")
	c.ClientAuth, c.VerifyConnection = tls.RequestClientCert, verify
	return c
}

// listenerTLS is a listener's configuration: TLS 1.3 only, no session tickets (a resumed session would skip the proof of the key),
// client certificates asked for and, where shown, verified against our root before anything is read.
func listenerTLS(cert func() (*tls.Certificate, error), root *x509.Certificate, protocols ...string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              pool,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert() },
	}
}

// readHospital reads the hospital's own certificate again when its files have changed.
func (s *Server) readHospital() error {
	if s.cfg.HospitalTLS.Cert == "" {
		return nil
	}
	stamp := ""
	for _, path := range []string{s.cfg.HospitalTLS.Cert, s.cfg.HospitalTLS.Key} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("hospital_tls: %w", err)
		}
		stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), " ")
	}
	if stamp == s.hospitalStamp {
		return nil
	}
	cert, err := s.cfg.hospitalCertificate()
	if err != nil {
		return err // half of the pair may be new already: the next look finds the other
	}
	if s.hospital.Swap(cert) != nil {
		s.log.Info("the hospital's certificate was read again", "not_after", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	s.hospitalStamp = stamp
	return nil
}
