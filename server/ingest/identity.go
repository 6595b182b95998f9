package ingest

import (
	"crypto/sha256"
	"crypto/tls"
	"time"

	"wardlink/internal/spiffe"
)

// identity is what a completed handshake has proven.
type identity struct {
	gateway  string
	spiffe   string
	serial   string    // lower-case hex
	key      [32]byte  // SHA-256 of the certificate's SubjectPublicKeyInfo
	notAfter time.Time // the earliest end within the verified chain
}

// prove reads the gateway's identity out of a completed TLS 1.3 handshake with a chain that the listener verified. proven tells
// whether the peer has proven some identity of ours, even one that may not come here: such a refusal is journaled by itself,
// all others are aggregated. This is the only place that turns a connection state into an identity.
func prove(state tls.ConnectionState, domain string, now time.Time) (id identity, proven bool, err error) {
	// VerifiedChains is empty when the listener only asked for a certificate and did not verify it. A resumed session would
	// carry chains that nobody verified today; our listeners hand out no tickets.
	if !state.HandshakeComplete || state.Version < tls.VersionTLS13 || state.DidResume ||
		len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 || len(state.PeerCertificates) == 0 {
		return identity{}, false, violation{reasonNoIdentity}
	}
	chain := state.VerifiedChains[0]
	leaf := chain[0]
	if !leaf.Equal(state.PeerCertificates[0]) {
		return identity{}, false, violation{reasonNoIdentity}
	}
	name, err := spiffe.FromCertificate(leaf)
	if err != nil || name.TrustDomain != domain {
		return identity{}, false, violation{reasonCertificate}
	}
	id = identity{spiffe: name.String(), serial: leaf.SerialNumber.Text(16), key: sha256.Sum256(leaf.RawSubjectPublicKeyInfo), notAfter: leaf.NotAfter}
	for _, cert := range chain[1:] {
		if cert.NotAfter.Before(id.notAfter) {
			id.notAfter = cert.NotAfter
		}
	}
	if name.Kind != spiffe.Gateway {
		return id, true, violation{reasonKind}
	}
	id.gateway = name.Name
	if !now.Before(id.notAfter) {
		return id, true, violation{reasonExpired}
	}
	return id, true, nil
}
