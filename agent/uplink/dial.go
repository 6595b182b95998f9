package uplink

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/agent/egress"
	"wardlink/internal/spiffe"
)

var (
	errNoIdentity = errors.New("gateway has no certificate yet")
	errMoved      = errors.New("other servers are to be tried") // Move was called meanwhile
)

// transport is a TLS connection to a server that has proven its identity.
type transport struct {
	conn    net.Conn
	server  string
	gateway string
	leaf    []byte // the certificate that we showed
	route   uint64 // Uplink.route before it was dialled
	// judge is nil once the server's certificate was judged by a trusted clock; else it does that.
	judge func(now time.Time) error
}

// dial asks for the identity and tries the servers in their order; among gives those to try.
func (u *Uplink) dial(ctx context.Context, among func() []string) (t *transport, err error) {
	cert, gateway, err := u.cfg.Identity()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoIdentity, err)
	}
	if len(cert.Certificate) == 0 || spiffe.ValidName(gateway) != nil {
		return nil, errNoIdentity
	}
	route, turned := u.way() // before the servers are asked for: at worst too old, and then the connection moves once more
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-turned:
			cancel(errMoved) // an address that swallows packets must not hold up the one that takes its place
		case <-ctx.Done():
		}
	}()
	err = u.cfg.Way.Try(ctx, among(), u.timing.handshake, func(ctx context.Context, server string) error {
		trusted := !u.cfg.Moment().Floor // before the handshake: what it was judged by is at least that
		conn, err := u.open(ctx, server, cert)
		if err != nil {
			return u.explain(err)
		}
		t = &transport{conn: conn, server: server, gateway: gateway, leaf: cert.Certificate[0], route: route}
		if !trusted {
			t.judge = func(now time.Time) error { return u.judge(conn, now) }
		}
		return nil
	})
	return t, err
}

// servers are those to try now.
func (u *Uplink) servers() []string {
	if u.cfg.Current == nil {
		return u.cfg.Servers
	}
	return u.cfg.Current()
}

// openTLS makes the connection and the handshake. The signer behind cert keeps its own deadlines: a handshake cannot be called
// back from a TPM that is signing.
func (u *Uplink) openTLS(ctx context.Context, server string, cert tls.Certificate) (net.Conn, error) {
	conn, err := u.cfg.Way.Secure(ctx, server, u.tlsConfig(cert))
	if err != nil {
		return nil, err // and no *tls.Conn that is nil
	}
	return conn, nil
}

// judge holds the server of a connection against a trusted clock, all of it again.
func (u *Uplink) judge(conn net.Conn, now time.Time) error {
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return errors.New("the connection is not TLS") // nothing that is not can be trusted later
	}
	return spiffe.VerifyServer(secured.ConnectionState(), u.cfg.Roots, u.cfg.Server, now)
}

// tlsConfig demands TLS 1.3 and the server's SPIFFE id, whatever address it was reached by.
func (u *Uplink) tlsConfig(cert tls.Certificate) *tls.Config {
	conf := spiffe.ServerTLSAt(u.cfg.Roots, u.cfg.Server, "mqtt", u.cfg.Moment)
	// Always ours, whatever authorities the server lists: that it is not wanted must be said aloud and not look as if there was none.
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return conf
}

// explain adds to a network error what to mend.
func (u *Uplink) explain(err error) error {
	var dns *net.DNSError
	var text string
	switch {
	case errors.As(err, new(*egress.ProxyError)): // it says so itself
		return err
	case errors.As(err, &dns):
		text = "its name cannot be resolved; check the address in the kit and the gateway's DNS"
	case errors.Is(err, syscall.ECONNREFUSED):
		text = "nothing listens there; is the server running, and is the port right?"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		text = "there is no way to it; check cable, VLAN and gateway address"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		text = fmt.Sprintf("no answer within %s; a firewall may drop the packets", u.timing.handshake)
	case alerted(err, "certificate required", "bad certificate", "unknown certificate", "expired certificate", "revoked certificate", "access denied"):
		text = "it refused this gateway's certificate; is the gateway still registered, and is its clock right?"
	case alerted(err, "protocol version"):
		text = "it does not speak TLS 1.3; is the address that of a wardlink server?"
	case alerted(err, "no application protocol"):
		text = "it does not speak MQTT there; is the port right?"
	case errors.Is(err, packets.ErrorRefusedNotAuthorised):
		text = "it does not admit this gateway; see 'wardlink gateway show' for its state"
	case errors.Is(err, packets.ErrorRefusedIDRejected):
		text = "it does not accept this gateway's id for its certificate; enrol the gateway again"
	case errors.Is(err, packets.ErrorRefusedBadProtocolVersion):
		text = fmt.Sprintf("it speaks none of this agent's protocol versions %s (agent %s); install the agent of the server's release, or of one of the two before it", u.hello.Versions, u.hello.Build)
	case errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword):
		text = "it is of the first release and is spoken to as such at the next attempt"
	case errors.Is(err, packets.ErrorRefusedServerUnavailable):
		text = "it cannot admit anyone at the moment; its log says why"
	default:
		return err
	}
	return fmt.Errorf("%s (%w)", text, err)
}

// alerted reports whether the server ended TLS with one of these alerts. crypto/tls has no exported type for a received alert.
func alerted(err error, names ...string) bool {
	_, alert, found := strings.Cut(err.Error(), "remote error: tls: ")
	if !found {
		return false
	}
	for _, name := range names {
		if strings.Contains(alert, name) {
			return true
		}
	}
	return false
}

// leaf is the certificate that the next attempt would show; nil when there is none.
func (u *Uplink) leaf() []byte {
	cert, _, err := u.cfg.Identity()
	if err != nil || len(cert.Certificate) == 0 {
		return nil
	}
	return cert.Certificate[0]
}

// changed reports whether the identity, or the way to the hospital, is another one than t was made with.
func (u *Uplink) changed(t *transport) bool {
	if route, _ := u.way(); route != t.route {
		return true
	}
	cert, gateway, err := u.cfg.Identity()
	return err == nil && len(cert.Certificate) > 0 && (gateway != t.gateway || !bytes.Equal(cert.Certificate[0], t.leaf))
}
