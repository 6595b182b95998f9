package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/listener"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/telemetry"
)

func (s *Server) openListeners() (err error) {
	for _, l := range []struct {
		key, addr string
		into      *net.Listener
	}{
		{"gateways", s.cfg.Gateways, &s.listeners.gateways},
		{"hospital", s.cfg.Hospital, &s.listeners.hospital},
		{"operators", s.cfg.Operators, &s.listeners.operators},
	} {
		if l.key != "gateways" && !s.parts.main() {
			continue
		}
		ln, err := listenAt(s.dir, l.key, l.addr)
		if err != nil {
			return err
		}
		*l.into = ln
		s.closers = append(s.closers, func() error {
			if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
	}
	return nil
}

func (s *Server) serveGateways(ctx context.Context) error {
	behind, err := s.cfg.Balancers.prefixes()
	if err != nil {
		return err
	}
	e := endpoint{
		ln: s.listeners.gateways, cert: s.cert("ingest").get, root: s.keys.Root, ingest: s.ingest, http: s.gatewayHTTP(), mqtt: s.parts.Has(ServiceIngest),
		at: s.handshakes, behind: behind, log: s.log,
	}
	return e.serve(ctx)
}

// listenAt binds the address of a key of the configuration.
func listenAt(dir, key, addr string) (net.Listener, error) {
	ln, err := listener.Listen(addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; change '%s:' in %s or end the program that holds the port", key, err, key, filepath.Join(dir, ConfigFile))
	}
	return ln, nil
}

// gatewayHTTP is what gateways ask beside MQTT: the time, whether they were seen, and enrolment, as far as this process has what it takes. Where CA and
// API run apart the nodes know whom to ask for what.
func (s *Server) gatewayHTTP() http.Handler {
	mux := http.NewServeMux()
	if s.parts.main() {
		mux.Handle(enroll.TimePath, s.clock)
		mux.HandleFunc("GET "+enroll.SeenPath, s.seen)
		mux.HandleFunc("POST "+enroll.WipedPath, s.wiped)
	}
	if s.ca != nil {
		mux.Handle("/", s.ca)
	}
	return s.nodePort(versioned(mux, telemetry.Spoken(), func(peer string) {
		s.refused(peer, "agent and server have no protocol version in common")
	}))
}

// refused counts a refusal of a peer at the gateways' port, an address with its port, that has proven nothing.
func (s *Server) refused(peer, reason string) {
	var addr net.Addr
	if at, err := netip.ParseAddrPort(peer); err == nil {
		addr = net.TCPAddrFromAddrPort(at)
	}
	s.ingest.Refusals().Add(addr, reason)
}

// roots is what chains end in.
func (s *Server) roots() *x509.CertPool { return poolOf(s.keys.Root) }

func poolOf(root *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return pool
}

func (s *Server) cert(name string) *serviceCert {
	if c, ok := s.services.Load(name); ok {
		return c.(*serviceCert)
	}
	c := &serviceCert{
		id: spiffe.ID{TrustDomain: s.cfg.TrustDomain, Kind: spiffe.Service, Name: name}, names: s.cfg.Names, now: time.Now,
		issue: func(t ca.Template) ([]*x509.Certificate, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return s.authority.Issue(ctx, audit.Actor{ID: "server"}, "", t)
		},
	}
	if s.ca != nil {
		c.issuer = s.ca.Issuer
	} else if name == "api" {
		c.file = filepath.Join(s.dir, apiIdentityFile)
	}
	kept, _ := s.services.LoadOrStore(name, c)
	return kept.(*serviceCert)
}

// serveHTTP serves the hospital ("fhir") or the operators ("api"); who fails the handshake there is counted as at the gateways' port.
func (s *Server) serveHTTP(ctx context.Context, ln net.Listener, name string, own func() *tls.Certificate, h http.Handler) error {
	get := func() (*tls.Certificate, error) { return own(), nil }
	if own == nil || own() == nil {
		get = s.cert(name).get
	}
	port := &httpPort{
		doorway: doorway{
			ln: ln, tls: listenerTLS(get, s.keys.Root, "http/1.1"), log: s.log,
			refuse: func(peer net.Addr, reason string) { s.ingest.Refusals().Add(peer, name+": "+reason) },
		},
		http: &http.Server{
			Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: 5 * time.Minute,
			IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: quietHTTP(s.log),
		},
	}
	if err := port.run(ctx, drainTime); err != nil {
		return fmt.Errorf("%s listener: %w", name, err)
	}
	return nil
}

// gatewayAddresses are where a kit sends gateways: every name with the gateways' port.
func (s *Server) gatewayAddresses() []string {
	_, port, err := net.SplitHostPort(s.cfg.Gateways)
	if err != nil {
		return nil // Check has seen to it
	}
	var out []string
	for _, n := range s.cfg.Names {
		if strings.EqualFold(n, "localhost") && len(s.cfg.Names) > 1 {
			continue
		}
		out = append(out, net.JoinHostPort(n, port))
	}
	return out
}
