package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/internal/spiffe"
)

// patience is how long an attacker waits for an answer: longer than the server takes to refuse on a busy machine.
const patience = 20 * time.Second

// attacker is somebody who has carried a whole gateway away: TPM, state and kit. It speaks the product's protocols with a client of its
// own and does not keep to what an agent would do.
type attacker struct {
	server string // host:port of the gateways' listener
	kit    enroll.Kit

	tpm      *tpm.TPM
	enroller *enroll.Enroller
	identity *enroll.Identity
}

// newAttacker takes over a gateway whose agent is stopped.
func newAttacker(ctx context.Context, g *gateway, kitFile, server string) (*attacker, error) {
	data, err := os.ReadFile(kitFile)
	if err != nil {
		return nil, err
	}
	a := &attacker{server: server}
	if a.kit, err = enroll.ParseKit(data); err != nil {
		return nil, err
	}
	if a.tpm, err = tpm.Open(ctx, "swtpm:"+g.tpm.Socket); err != nil {
		return nil, err
	}
	base := "https://" + server
	a.enroller, err = enroll.New(enroll.Config{
		TPM: a.tpm, Dir: filepath.Join(g.dir, "state", "identity"), Attestation: base + "/attestation", Directory: base + "/acme/attest/directory",
		HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: a.trust("http/1.1"), DisableKeepAlives: true}},
		Log:  slog.New(slog.DiscardHandler),
	})
	if err == nil {
		a.identity, err = a.enroller.Load(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *attacker) close() error { return a.tpm.Close() }

// trust is a TLS configuration that knows the hospital's server.
func (a *attacker) trust(alpn string) *tls.Config {
	return spiffe.ServerTLS(a.kit.Pool(), spiffe.ID{TrustDomain: a.kit.TrustDomain, Kind: spiffe.Service, Name: "ingest"}, alpn)
}

// session is an MQTT connection of an attacker.
type session struct{ conn net.Conn }

// errRefused is what an attacker who was turned away got for an answer.
type errRefused struct{ answer string }

func (e errRefused) Error() string { return e.answer }

// connect opens a session with a certificate. An errRefused means that the server did not let it in.
func (a *attacker) connect(ctx context.Context, cert tls.Certificate, clientID string) (*session, error) {
	conf := a.trust("mqtt")
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.server)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, conf)
	handshake, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := conn.HandshakeContext(handshake); err != nil {
		raw.Close()
		return nil, alerted(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	hello := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	hello.ProtocolName, hello.ProtocolVersion, hello.CleanSession, hello.Keepalive, hello.ClientIdentifier = "MQTT", 4, true, 60, clientID
	if err := hello.Write(conn); err != nil {
		conn.Close()
		return nil, alerted(err)
	}
	answer, err := packets.ReadPacket(conn) // TLS 1.3: only now the client hears what became of its certificate
	if err != nil {
		conn.Close()
		return nil, alerted(err)
	}
	ack, ok := answer.(*packets.ConnackPacket)
	switch {
	case !ok:
		conn.Close()
		return nil, fmt.Errorf("the server answers %s to CONNECT", answer)
	case ack.ReturnCode != packets.Accepted:
		conn.Close()
		return nil, errRefused{fmt.Sprintf("CONNACK %d, %s", ack.ReturnCode, packets.ConnackReturnCodes[ack.ReturnCode])}
	}
	_ = conn.SetDeadline(time.Time{})
	return &session{conn}, nil
}

// alerted tells a refusal, by TLS alert or hang-up, from a server that could not be reached.
func alerted(err error) error {
	var alert tls.AlertError
	var op *net.OpError
	if errors.As(err, &alert) || errors.Is(err, io.EOF) || errors.As(err, &op) && op.Op == "remote error" {
		return errRefused{err.Error()}
	}
	return err
}

// publish sends a payload and waits for what comes of it: nil when the server takes it, an errRefused when it hangs up instead.
func (s *session) publish(topic string, payload []byte) error {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.MessageID = topic, payload, 1, 1
	_ = s.conn.SetDeadline(time.Now().Add(patience))
	if err := p.Write(s.conn); err != nil {
		return alerted(err)
	}
	for {
		answer, err := packets.ReadPacket(s.conn)
		if err != nil {
			if alerted := alerted(err); errors.As(alerted, new(errRefused)) {
				return errRefused{"no PUBACK; the server hung up"}
			}
			return err
		}
		if _, ok := answer.(*packets.PubackPacket); ok {
			return nil
		}
	}
}

// ended returns once the server has ended the session.
func (s *session) ended(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, _ = io.Copy(io.Discard, s.conn)
	return ctx.Err()
}

// foreignCertificate is a certificate that says to be the named gateway, by a CA that the hospital has never seen.
func foreignCertificate(gateway string) (tls.Certificate, error) {
	now := time.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{trustDomain}, CommonName: "wardlink issuing CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: gateway}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/gateway/" + gateway}},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
