// Package certtest makes certificates for tests: authorities, and what they issue.
package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"time"
)

// Failing is what an authority needs of a test, or of what stands in for one where there is none.
type Failing interface {
	Helper()
	Fatal(args ...any)
}

// Authority is a CA with an ECDSA key of P-256.
type Authority struct {
	Cert *x509.Certificate

	t   Failing
	key *ecdsa.PrivateKey
}

// New makes a CA whose certificate begins and ends so long from now.
func New(t Failing, name string, from, until time.Duration) *Authority {
	t.Helper()
	a := &Authority{t: t}
	own := a.Issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, from, until)
	a.Cert, a.key = own.Leaf, own.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// Issue makes a certificate from a template, with a serial number and a key of its own, that begins and ends so long from now.
func (a *Authority) Issue(template *x509.Certificate, from, until time.Duration) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(from), time.Now().Add(until)
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.Cert, a.key
	if parent == nil { // the authority's own
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Pool holds the authority's certificate alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

// PEM is the authority's certificate as a file has it.
func (a *Authority) PEM() []byte { return certificatePEM(a.Cert.Raw) }

// Files are a certificate and its key as files have them.
func (a *Authority) Files(c tls.Certificate) (cert, key []byte) {
	a.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return certificatePEM(c.Certificate[0]), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
