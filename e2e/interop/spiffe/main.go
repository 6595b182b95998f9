// Command spiffe has go-spiffe verify an X.509-SVID: spiffe TRUST-DOMAIN ROOT.pem CHAIN.pem prints its id. It is a module of its own, so that nothing
// of go-spiffe is in the product's go.sum.
package main

import (
	"encoding/pem"
	"fmt"
	"os"

	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: spiffe TRUST-DOMAIN ROOT.pem CHAIN.pem")
		os.Exit(2)
	}
	id, err := verify(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(id)
}

func verify(trustDomain, root, chain string) (spiffeid.ID, error) {
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	bundle, err := x509bundle.Load(domain, root)
	if err != nil {
		return spiffeid.ID{}, err
	}
	rest, err := os.ReadFile(chain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return spiffeid.ID{}, err
		}
		certs = append(certs, cert)
	}
	id, _, err := x509svid.Verify(certs, bundle)
	return id, err
}
