package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

var (
	errIssuerEnded = errors.New("the issuing CA has ended; make the next one with 'wardlink-server rotate issuing'")
	errNoStore     = errors.New("the CA's tables cannot be opened")
)

// issuer is what signs identities now.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Issuer is the issuing CA in use.
func (c *CA) Issuer() *x509.Certificate { return c.issuer.Load().cert }

// Certificates are the issuing CA in use and the attestation CA.
func (c *CA) Certificates() (issuing, attestation *x509.Certificate) {
	return c.Issuer(), c.cfg.Attestation
}

// signer is what smallstep asks for at each certificate.
func (c *CA) signer() ([]*x509.Certificate, crypto.Signer, error) {
	by := c.issuer.Load()
	return []*x509.Certificate{by.cert}, by.key, nil
}

// CheckIssuer says whether cert and key could issue now: it is the root's, it may, its key is its own and signs.
func (c *CA) CheckIssuer(cert *x509.Certificate, key crypto.Signer) error {
	if !samePublic(cert, key) {
		return errors.New("its key is not its certificate's")
	}
	roots := x509.NewCertPool()
	for _, root := range c.cfg.Roots {
		roots.AddCert(root)
	}
	now := c.cfg.Now()
	if !now.Before(cert.NotAfter) {
		return errIssuerEnded
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("it may not sign certificates")
	}
	return signs(cert, key)
}

// SetIssuer has everything from now on issued by another issuing CA. What the former one issued stays good until it ends: a chain is
// shown with each certificate, and whoever verifies trusts the root.
func (c *CA) SetIssuer(cert *x509.Certificate, key crypto.Signer) error {
	if err := c.CheckIssuer(cert, key); err != nil {
		return fmt.Errorf("issuing CA: %w", err)
	}
	c.issuer.Store(&issuer{cert, key})
	return nil
}

// signs proves that a key works: a signature over random bytes under a label of its own, which is nothing that anybody accepts.
func signs(cert *x509.Certificate, key crypto.Signer) error {
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce) // crypto/rand never fails
	digest := sha256.Sum256(append([]byte("wardlink/ca/probe/1\x00"), nonce...))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("its key does not sign: %w", err)
	}
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(public, digest[:], signature) {
		return errors.New("its key's signature does not verify")
	}
	return nil
}
