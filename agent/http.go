package agent

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"wardlink/internal/spiffe"
)

// serverTime bounds what one server may take to answer TLS: a slow TPM signs within the handshake.
const serverTime = 60 * time.Second

// transportTo makes HTTP requests on connections that dial makes, whatever address a URL names: the server's SPIFFE id is what counts.
func transportTo(dial func(ctx context.Context) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialTLSContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 16 << 10,
	}
}

// asConn keeps a *tls.Conn that is nil from looking like a connection.
func asConn(conn *tls.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// httpClient reaches the hospital's servers beside MQTT.
func (a *Agent) httpClient() *http.Client {
	return &http.Client{
		Timeout: 90 * time.Second, // a slow TPM signs within the handshake
		Transport: transportTo(func(ctx context.Context) (net.Conn, error) {
			return a.secure(ctx, nil)
		}),
	}
}

// secure reaches the first of the servers that proves itself, for HTTP. cert may be nil.
func (a *Agent) secure(ctx context.Context, cert *tls.Certificate) (conn net.Conn, err error) {
	err = a.way.Try(ctx, a.servers(), serverTime, func(ctx context.Context, server string) error {
		conf := spiffe.ServerTLSAt(a.kit.Pool(), a.serverID(), "http/1.1", a.time.moment)
		if cert != nil {
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		var err error
		conn, err = asConn(a.way.Secure(ctx, server, conf))
		return err
	})
	return conn, err
}
