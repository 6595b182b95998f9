// Package spiffe names the identities of a trust domain: spiffe://<trust domain>/<kind>/<name>, one URI SAN a certificate
// (SPIFFE X.509-SVID, section 2).
package spiffe

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Kind is what sort of identity holds a certificate.
type Kind string

// The kinds of identity.
const (
	Gateway  Kind = "gateway"
	Service  Kind = "service"  // a part of the server: ca, ingest, records, log, api
	Operator Kind = "operator" // a person who administers
	Access   Kind = "access"   // a hospital's system that reads
	Node     Kind = "node"     // an ingest node, to the server that it belongs to
)

// ID is one identity.
type ID struct {
	TrustDomain string
	Kind        Kind
	Name        string
}

// String is the URI.
func (id ID) String() string {
	return "spiffe://" + id.TrustDomain + "/" + string(id.Kind) + "/" + id.Name
}

// ValidName reports whether name can be an identity's name: 1-63 of a-z, 0-9 and inner hyphens, so that it is one MQTT topic
// level, one DNS label and one file name alike.
func ValidName(name string) error {
	if !isName(name, 63, "-") {
		return fmt.Errorf("name %q: expected 1 to 63 of a-z, 0-9 and hyphens inside", name)
	}
	return nil
}

// ValidTrustDomain reports whether domain can be a trust domain.
func ValidTrustDomain(domain string) error {
	if !isName(domain, 255, ".-") {
		return fmt.Errorf("trust domain %q: expected a DNS name in lower case, such as ward.example", domain)
	}
	return nil
}

// isName tells 1 to max of a-z and 0-9, and of inner where neither first nor last. By hand, since nothing else in the agent's binary
// needs regular expressions.
func isName(s string, max int, inner string) bool {
	if s == "" || len(s) > max {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && i < len(s)-1 && strings.IndexByte(inner, c) >= 0:
		default:
			return false
		}
	}
	return true
}

// Parse reads a URI.
func Parse(uri string) (ID, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return ID{}, fmt.Errorf("SPIFFE id %q: expected spiffe://<trust domain>/<kind>/<name>", uri)
	}
	id := ID{TrustDomain: parts[0], Kind: Kind(parts[1]), Name: parts[2]}
	if err := ValidTrustDomain(id.TrustDomain); err != nil {
		return ID{}, err
	}
	switch id.Kind {
	case Gateway, Service, Operator, Access, Node:
	default:
		return ID{}, fmt.Errorf("SPIFFE id %q: kind %q is unknown", uri, id.Kind)
	}
	if err := ValidName(id.Name); err != nil {
		return ID{}, err
	}
	return id, nil
}

// FromCertificate reads the one identity of a certificate. It decides nothing about trust: the chain is verified elsewhere.
func FromCertificate(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, errors.New("certificate: expected exactly one URI SAN holding a SPIFFE id")
	}
	return Parse(cert.URIs[0].String())
}
