package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"

	"wardlink/server/ca"
	"wardlink/server/registry"
)

// reasons are those of RFC 5280, 5.3.1. What an operator revokes has his own words, in the log; the list has unspecified, which is left out.
var reasons = map[registry.Withdrawal]int{
	registry.WithdrawnRotated: 4, registry.WithdrawnReplaced: 4, // superseded
	registry.WithdrawnHeld:  6, // certificateHold
	registry.WithdrawnEnded: 5, // cessationOfOperation
}

// withdrawn is what the CA's list of revoked certificates holds.
func (s *Server) withdrawn(ctx context.Context, most int) ([]x509.RevocationListEntry, error) {
	all, err := s.registry.Withdrawn(ctx, most)
	if err != nil {
		return nil, err
	}
	out := make([]x509.RevocationListEntry, len(all))
	for i, one := range all {
		serial, ok := new(big.Int).SetString(one.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("registry: the serial %.64q is no number", one.Serial)
		}
		out[i] = x509.RevocationListEntry{SerialNumber: serial, RevocationTime: one.At, ReasonCode: reasons[one.Why]}
	}
	return out, nil
}

// listURL is where the list is, for people.
func listURL(c Config) string {
	_, port, err := net.SplitHostPort(c.Gateways)
	if err != nil { // Check has seen to it
		return ca.ListPath
	}
	return "https://" + net.JoinHostPort(c.Names[0], port) + ca.ListPath
}
