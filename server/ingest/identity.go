package ingest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"wardlink/internal/spiffe"
)

// identity is what a completed handshake has proven.
type identity struct {
	gateway  string
	spiffe   string
	serial   string    // lower-case hex
	key      [32]byte  // SHA-256 of the certificate's SubjectPublicKeyInfo
	begun    time.Time // the certificate's NotBefore
	notAfter time.Time // the earliest end within the verified chain
	ends     time.Time // when its session ends: notAfter, or with it the grace
	late     bool      // the certificate has ended: prove has let it pass under Grace, and admit has yet to ask the registry
}

// Grace says for how long after its end a gateway's certificate is admitted while the CA cannot issue another one. It opens for
// nobody else: the chain must be good but for its end, the registry must hold the gateway active, and the key must be the gateway's
// newest.
type Grace struct {
	For time.Duration // 0: never
	// CA says whether the CA is well, and since when that is so; nil: it is.
	CA func() (well bool, since time.Time)
}

// relapse is how long the CA must be well before sessions under grace are ended: a gateway asks for a certificate every five minutes
// at least, and changes over by itself.
const relapse = 15 * time.Minute

// covers says whether a certificate that ended at notAfter may pass now.
func (g Grace) covers(notAfter, now time.Time) bool {
	if g.For <= 0 || g.CA == nil || !now.After(notAfter) || now.Sub(notAfter) >= g.For {
		return false
	}
	well, _ := g.CA()
	return !well
}

// over says whether sessions under grace have no reason any more.
func (g Grace) over(now time.Time) bool {
	if g.CA == nil {
		return true
	}
	well, since := g.CA()
	return well && now.Sub(since) >= relapse
}

// VerifyConnection is for the listener's TLS configuration, which asks for client certificates and does not verify them: the decision
// of prove, while the handshake is under way and the key not proven yet. So it may only deny. A peer without a certificate passes; no
// identity comes of that.
func (s *Server) VerifyConnection(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	chain, late, err := s.chain(cs.PeerCertificates, time.Now())
	if err == nil && late && !s.grace.covers(chain[0].NotAfter, time.Now()) {
		err = x509.CertificateInvalidError{Cert: chain[0], Reason: x509.Expired}
	}
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	return nil
}

// chain verifies what a peer showed against the root, for TLS clients. late is a chain that is good but for its leaf's end: it was good
// at that instant, and the root still is. Of everything else no chain comes back.
func (s *Server) chain(shown []*x509.Certificate, now time.Time) (chain []*x509.Certificate, late bool, err error) {
	leaf := shown[0]
	opts := x509.VerifyOptions{
		Roots: s.roots, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range shown[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(opts)
	if err == nil {
		return chains[0], false, nil
	}
	if now.After(leaf.NotAfter) {
		opts.CurrentTime = leaf.NotAfter
		if then, err := leaf.Verify(opts); err == nil && !now.After(then[0][len(then[0])-1].NotAfter) {
			return then[0], true, nil
		}
	}
	return nil, false, err
}

// prove reads the gateway's identity out of a completed TLS 1.3 handshake and verifies its chain. proven tells whether the peer has
// proven some identity of ours, even one that may not come here: such a refusal is journaled by itself, all others are aggregated.
// This is the only place that turns a connection state into an identity; admit makes a session of it.
func (s *Server) prove(state tls.ConnectionState, now time.Time) (id identity, proven bool, err error) {
	// A resumed session would carry chains that nobody verified today; our listeners hand out no tickets.
	if !state.HandshakeComplete || state.Version < tls.VersionTLS13 || state.DidResume || len(state.PeerCertificates) == 0 {
		return identity{}, false, violation{reasonNoIdentity}
	}
	chain, late, err := s.chain(state.PeerCertificates, now)
	if err != nil {
		return identity{}, false, violation{reasonNoIdentity}
	}
	leaf := chain[0]
	name, err := spiffe.FromCertificate(leaf)
	if err != nil || name.TrustDomain != s.domain {
		return identity{}, false, violation{reasonCertificate}
	}
	id = identity{
		spiffe: name.String(), serial: leaf.SerialNumber.Text(16), key: spkiHash(leaf), begun: leaf.NotBefore, notAfter: leaf.NotAfter, late: late,
	}
	for _, cert := range chain[1:] {
		if cert.NotAfter.Before(id.notAfter) {
			id.notAfter = cert.NotAfter
		}
	}
	id.ends = id.notAfter
	if name.Kind != spiffe.Gateway {
		return id, true, violation{reasonKind}
	}
	id.gateway = name.Name
	switch {
	case late && s.grace.covers(leaf.NotAfter, now):
		id.ends = leaf.NotAfter.Add(s.grace.For)
		if root := chain[len(chain)-1].NotAfter; root.Before(id.ends) {
			id.ends = root
		}
	case late || !now.Before(id.notAfter):
		return id, true, violation{reasonExpired}
	}
	return id, true, nil
}

// pardon is the second half of the grace, once the registry has called the gateway active: the certificate must be of the gateway's
// newest key, and the grace must still hold. It gives why not, or an error when nobody knows.
func (s *Server) pardon(ctx context.Context, id identity, now time.Time) (reason string, err error) {
	if !s.grace.covers(id.notAfter, now) {
		return reasonExpired, nil
	}
	holds, err := s.registry.HoldsNewest(ctx, id.gateway, id.key, id.serial)
	switch {
	case err != nil:
		return "", fmt.Errorf("newest key: %w", err)
	case !holds:
		return reasonFormerKey, nil
	}
	return "", nil
}

func spkiHash(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Admitted is who has proven, in a completed handshake of the gateways' port, to be which gateway, and is admitted as it: for what is
// asked there beside MQTT. A certificate that has ended is none here: the grace is for telemetry. proven is false while no gateway's
// identity was; err is then why. Else an error is the registry's.
func (s *Server) Admitted(ctx context.Context, state tls.ConnectionState, now time.Time) (gateway string, proven bool, err error) {
	id, _, err := s.prove(state, now)
	if err != nil {
		return "", false, err
	}
	if id.late {
		return "", false, violation{reasonExpired}
	}
	if _, err := s.registry.AdmitKey(ctx, id.gateway, id.key); err != nil {
		return "", true, err
	}
	return id.gateway, true, nil
}
