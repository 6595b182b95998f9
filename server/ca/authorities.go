package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"wardlink/internal/spiffe"
)

// How long authorities live, and how far certificates are backdated for clocks that are behind.
const (
	RootLife        = 10 * 365 * 24 * time.Hour
	IssuingLife     = 365 * 24 * time.Hour
	AttestationLife = 10 * 365 * 24 * time.Hour // stock clients cache AK certificates and fail when their issuer changes
	backdate        = time.Minute
)

// NewRoot makes the root of a trust domain. Its key signs issuing CAs and nothing else, and may be kept offline.
func NewRoot(trustDomain string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	return newAuthority(trustDomain, "root", 1, now, RootLife, nil, nil)
}

// NewIssuing makes the CA that issues every certificate of the trust domain; it may make no further CAs.
func NewIssuing(trustDomain string, root *x509.Certificate, rootKey crypto.Signer, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	return newAuthority(trustDomain, "issuing CA", 0, now, IssuingLife, root, rootKey)
}

// NewAttestation makes the attestation CA: a root of its own that signs AK certificates and nothing else, so that nothing else can
// ever pass for an attestation key, nor an AK certificate for an identity.
func NewAttestation(trustDomain string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	return newAuthority(trustDomain, "attestation CA", 0, now, AttestationLife, nil, nil)
}

func newAuthority(trustDomain, name string, pathLen int, now time.Time, life time.Duration, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if err := spiffe.ValidTrustDomain(trustDomain); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{trustDomain}, CommonName: "wardlink " + name},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:     []*url.URL{{Scheme: "spiffe", Host: trustDomain}}, // a signing certificate names its trust domain (X.509-SVID, 2)
	}
	switch {
	case parent == nil:
		parent, parentKey = template, key
	case !now.Before(parent.NotAfter):
		return nil, nil, fmt.Errorf("make the %s: its root ended at %s", name, parent.NotAfter.UTC().Format(time.RFC3339))
	case template.NotAfter.After(parent.NotAfter):
		template.NotAfter = parent.NotAfter // nobody accepts it any longer than that
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, fmt.Errorf("make the %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// newSerial is 127 random bits: unguessable, positive, and within the 20 bytes of RFC 5280.
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// Template is what a service, an operator or a service account is issued. Gateways get theirs by attestation only.
type Template struct {
	ID     spiffe.ID
	Public crypto.PublicKey // *ecdsa.PublicKey on P-256
	Life   time.Duration

	// A service's server names; refused for other kinds.
	DNSNames []string
	IPs      []net.IP
}

// NewCertificate signs t by the issuing CA: service certificates for both ends of TLS, operators', access and nodes' certificates for
// clients. It records nothing; once there is a journal, use CA.Issue.
func NewCertificate(issuing *x509.Certificate, key crypto.Signer, t Template, now time.Time) (*x509.Certificate, error) {
	if id, err := spiffe.Parse(t.ID.String()); err != nil || id != t.ID {
		return nil, fmt.Errorf("certificate for %s: not a valid SPIFFE id", t.ID)
	}
	public, ok := t.Public.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("certificate for %s: expected an ECDSA P-256 key", t.ID)
	}
	if t.Life <= 0 {
		return nil, fmt.Errorf("certificate for %s: its life must be positive", t.ID)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	switch t.ID.Kind {
	case spiffe.Service:
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	case spiffe.Operator, spiffe.Access, spiffe.Node:
		if len(t.DNSNames)+len(t.IPs) > 0 {
			return nil, fmt.Errorf("certificate for %s: only services have server names", t.ID)
		}
	default:
		return nil, fmt.Errorf("certificate for %s: gateways are certified by attestation only", t.ID)
	}
	uri, err := url.Parse(t.ID.String())
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(t.Life)
	if notAfter.After(issuing.NotAfter) {
		notAfter = issuing.NotAfter
	}
	if !notAfter.After(now) {
		return nil, errIssuerEnded
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: t.ID.Name},
		NotBefore: now.Add(-backdate), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, BasicConstraintsValid: true,
		URIs: []*url.URL{uri}, DNSNames: t.DNSNames, IPAddresses: t.IPs,
	}, issuing, public, key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", t.ID, err)
	}
	return x509.ParseCertificate(der)
}
