package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/agent/egress"
)

// class is what kind of error keeps the gateway from its hospital: one of a few constant texts, for reports that leave the gateway.
// Addresses, certificates and causes stay in LastError.
func class(err error) string {
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, new(*egress.ProxyError)):
		return "the proxy gives no way to the server"
	case errors.Is(err, errNoIdentity):
		return "no certificate yet"
	case errors.Is(err, ErrNoSealing), strings.HasPrefix(err.Error(), "sealing record"):
		return "a sealing record cannot be had"
	case strings.HasPrefix(err.Error(), "buffer:"):
		return "the buffer cannot be read"
	case errors.As(err, &dns):
		return "the server's name cannot be resolved"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no route to the server"
	case alerted(err, "certificate required", "bad certificate", "unknown certificate", "expired certificate", "revoked certificate", "access denied"):
		return "the server refused the certificate"
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &invalid):
		return "the server is not the hospital's"
	case errors.As(err, &record), alerted(err, "protocol version", "no application protocol"):
		return "no wardlink server answers there"
	case errors.Is(err, packets.ErrorRefusedNotAuthorised), errors.Is(err, packets.ErrorRefusedIDRejected):
		return "the server does not admit this gateway"
	case errors.Is(err, packets.ErrorRefusedBadProtocolVersion):
		return "agent and server have no protocol version in common"
	case errors.Is(err, packets.ErrorRefusedServerUnavailable):
		return "the server admits nobody at the moment"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), strings.Contains(err.Error(), "no acknowledgement within"),
		strings.Contains(err.Error(), "no CONNACK within"):
		return "no answer from the server"
	case strings.Contains(err.Error(), "its audit log says why"):
		return "the server closed the connection"
	}
	return "connection lost"
}
