package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/registry"
)

// listen serves a handler on loopback, under TLS 1.3 with client certificates as the hospital's port has it, and gives a client whose service
// account is in the registry.
func (s *stage) listen(ctx context.Context, handler http.Handler) (base string, client *http.Client, err error) {
	root, rootKey, err := certificate(nil, nil, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	if err != nil {
		return "", nil, err
	}
	server, serverKey, err := certificate(root, rootKey, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		return "", nil, err
	}
	id, err := url.Parse(spiffe.ID{TrustDomain: trustDomain, Kind: spiffe.Access, Name: "ehr"}.String())
	if err != nil {
		return "", nil, err
	}
	ehr, ehrKey, err := certificate(root, rootKey, &x509.Certificate{URIs: []*url.URL{id}})
	if err != nil {
		return "", nil, err
	}
	if err := s.registry.Enter(ctx, operator, "", registry.Identity{Kind: spiffe.Access, Name: "ehr", Scope: registry.Scope{All: true}}); err != nil {
		return "", nil, err
	}
	if err := s.registry.Certify(ctx, operator, "", spiffe.Access, "ehr", "", registry.IdentityCertificate{
		SPKI: sha256.Sum256(ehr.RawSubjectPublicKeyInfo), Serial: ehr.SerialNumber.Text(16), NotBefore: ehr.NotBefore, NotAfter: ehr.NotAfter,
	}); err != nil {
		return "", nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.Default()}
	go func() {
		_ = srv.Serve(tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
			ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}}}))
	}()
	client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{ehr.Raw}, PrivateKey: ehrKey}}}}}
	s.closers = append(s.closers, func() error {
		client.CloseIdleConnections()
		return srv.Close()
	})
	return "https://" + ln.Addr().String() + "/fhir", client, nil
}

// certificate issues one for a day; without a parent it is its own.
func certificate(parent *x509.Certificate, parentKey *ecdsa.PrivateKey, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}
