package spiffe

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// VerifyServer is the one decision whether a TLS peer is the server that we mean: its chain ends in roots, it is good for server
// authentication now, and it holds exactly the identity want. The address it was reached by does not count, so that a static address
// without DNS is as safe as a name.
func VerifyServer(cs tls.ConnectionState, roots *x509.CertPool, want ID, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	leaf := cs.PeerCertificates[0]
	inter := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		inter.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the server's certificate is not valid at this machine's time (%w): check this machine's clock first, "+
			"then the server's certificate", err)
	case err != nil:
		return fmt.Errorf("the server's certificate was issued by %q, which the kit does not trust (%w): "+
			"is something intercepting the connection, or is the kit of another hospital?", leaf.Issuer, err)
	}
	got, err := FromCertificate(leaf)
	if err != nil {
		return fmt.Errorf("the server's certificate: %w", err)
	}
	if got != want {
		return fmt.Errorf("the server proved to be %s, expected %s: the address leads to another system, or the kit belongs to another hospital", got, want)
	}
	return nil
}

// Moment is what is known of the present when a certificate is judged.
type Moment struct {
	Time time.Time
	// Floor says that Time is only the earliest that the present can be: the clock is not trusted.
	Floor bool
}

// At is the moment at which a chain is judged. By a trusted clock that is the present. While there is only a floor, it is the earliest
// instant from the floor on at which every certificate of the chain has begun: what has ended before the floor is refused, and whether
// the rest has ended since cannot be known yet. Nothing else about the chain is judged more mildly for it.
func (m Moment) At(chain []*x509.Certificate) time.Time {
	at := m.Time
	if m.Floor {
		for _, c := range chain {
			if c.NotBefore.After(at) {
				at = c.NotBefore
			}
		}
	}
	return at
}

// ServerTLS is a client configuration that trusts only want: TLS 1.3, no session tickets (a resumed session would skip the proof of
// the key), one ALPN protocol.
func ServerTLS(roots *x509.CertPool, want ID, alpn string) *tls.Config {
	return ServerTLSAt(roots, want, alpn, func() Moment { return Moment{Time: time.Now()} })
}

// ServerTLSAt is ServerTLS for a machine whose clock may not be trusted: now is asked at each handshake.
func ServerTLSAt(roots *x509.CertPool, want ID, alpn string, now func() Moment) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
		// VerifyConnection below does all that the default verification does except matching the dialled name.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return VerifyServer(cs, roots, want, now().At(cs.PeerCertificates))
		},
	}
}
