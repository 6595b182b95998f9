package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"wardlink/server/ingest"
)

// endpoint is the gateways' port of one process.
type endpoint struct {
	ln     net.Listener
	cert   func() (*tls.Certificate, error)
	root   *x509.Certificate
	ingest *ingest.Server
	http   http.Handler
	mqtt   bool // else sessions are closed: they belong on an ingest node
	at     *handshakes
	behind []netip.Prefix // balancers
	log    *slog.Logger
}

// serve serves until ctx ends and the last session is drained.
func (e endpoint) serve(ctx context.Context) error {
	// Sessions outlive ctx until they are drained: what is journaled is still answered.
	sessions, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	port := &gatewayPort{
		doorway: doorway{ln: e.ln, tls: gatewaysTLS(e.cert, e.root, e.ingest.VerifyConnection), refuse: e.ingest.Refusals().Add, at: e.at, balancers: e.behind, log: e.log},
		mqtt: func(_ context.Context, conn net.Conn, state tls.ConnectionState) {
			if !e.mqtt {
				e.ingest.Refusals().Add(conn.RemoteAddr(), "this process takes no sessions; ingest nodes do")
				conn.Close()
				return
			}
			e.ingest.ServeConn(sessions, conn, state)
		},
		http: &http.Server{
			Handler: e.http, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: 2 * time.Minute,
			IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: quietHTTP(e.log),
		},
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	drained := make(chan error, 1)
	go func() {
		<-ctx.Done()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		drained <- e.ingest.Drain(limited)
		cut()
	}()
	err := port.run(ctx) // returns when the last session has ended
	stop()               // also when the port failed by itself
	return errors.Join(err, <-drained)
}
