package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/internal/spiffe"
	"wardlink/server/api"
	"wardlink/server/api/client"
	"wardlink/server/ca"
	"wardlink/server/fhir"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
	"wardlink/telemetry"
)

// Server is every service in one process.
type Server struct {
	dir     string
	cfg     Config
	keys    *keys.Keys
	log     *slog.Logger
	started time.Time

	journal  *journal.Journal
	db       *sqldb.DB
	outbox   *sqldb.Outbox
	registry *registry.Registry
	ca       *ca.CA
	ingest   *ingest.Server
	translog *translog.Log
	records  *records.Records
	fhir     http.Handler
	api      *api.API

	listeners struct{ gateways, hospital, operators net.Listener }
	closers   []func() error // in order of opening
}

// drainTime is how long the listeners have to end after SIGTERM.
const drainTime = 10 * time.Second

// New opens everything in a server's directory and binds the listeners, so that whatever is wrong is said before the first gateway is
// let in.
func New(dir string, log *slog.Logger) (*Server, error) {
	s := &Server{dir: dir, log: log, started: time.Now()}
	for _, step := range []func() error{s.openConfig, s.openStores, s.openServices, s.openListeners} {
		if err := step(); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *Server) openConfig() (err error) {
	if s.cfg, err = LoadConfig(s.dir); err != nil {
		return err
	}
	s.keys, err = keys.Open(s.dir)
	return err
}

func journalConfig(dir string) journal.Config {
	return journal.Config{Dir: journalDir(dir), Node: 1, Consumers: []string{"log", "records"}}
}

func (s *Server) openStores() (err error) {
	jc := journalConfig(s.dir)
	jc.Log = s.log
	if s.journal, err = journal.Open(jc); err != nil {
		return err
	}
	s.closers = append(s.closers, s.journal.Close)
	if s.db, err = sqldb.Open(databaseFile(s.dir), migrations()...); err != nil {
		return err
	}
	s.closers = append(s.closers, s.db.Close)
	if s.outbox, err = sqldb.NewOutbox(s.db, s.journal, nil); err != nil {
		return err
	}
	s.registry, err = registry.New(registry.Config{DB: s.db, Outbox: s.outbox})
	return err
}

func (s *Server) openServices() (err error) {
	signer, err := note.NewSigner(s.keys.LogSigner)
	if err != nil {
		return fmt.Errorf("log key: %w", err)
	}
	s.translog, err = translog.Open(translog.Config{
		Dir: logDir(s.dir), Origin: signer.Name(), Signer: signer, Journal: s.journal, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.translog.Close)
	configs := &api.Configs{DB: s.db, Outbox: s.outbox, Registry: s.registry, Key: s.keys.Config, Now: time.Now}
	s.ingest = ingest.New(ingest.Config{
		Journal: s.journal, Registry: s.registry, TrustDomain: s.cfg.TrustDomain, Log: s.log,
		Down: func(ctx context.Context, gateway string) ([]ingest.Document, error) {
			doc, err := configs.Document(ctx, gateway)
			if err != nil {
				return nil, err
			}
			return []ingest.Document{{Doc: telemetry.DocConfig, Body: doc}}, nil
		},
	})
	if err := s.openCA(); err != nil {
		return err
	}
	if s.records, err = records.New(records.Config{
		DB: s.db, Outbox: s.outbox, Journal: s.journal, Registry: s.registry, Key: s.keys.Records, Pseudonym: s.keys.Pseudonym, Log: s.log,
	}); err != nil {
		return err
	}
	if s.fhir, err = fhir.New(fhir.Config{
		Store: records.NewStore(s.db, s.keys.Pseudonym), Journal: s.journal, Pseudonym: s.keys.Pseudonym, TrustDomain: s.cfg.TrustDomain,
		Access: s.registry, Refusals: s.ingest.Refusals(), Log: s.log,
	}); err != nil {
		return err
	}
	s.api = api.New(api.Config{
		TrustDomain: s.cfg.TrustDomain, Servers: s.gatewayAddresses(), Root: s.keys.Root, RecordsKey: s.keys.Records.Public(),
		ConfigKey: s.configPublic(), LogDir: logDir(s.dir), LogVerifier: s.keys.LogVerifier, Registry: s.registry,
		Journal: s.journal, CA: s.ca, Status: s.status, Ready: s.ready, Metrics: s.metrics(), Log: s.log,
	})
	return nil
}

func (s *Server) openCA() error {
	roots, inter, err := loadTrust(ekTrustDir(s.dir))
	if err != nil {
		return err
	}
	s.ca, err = ca.New(ca.Config{
		TrustDomain: s.cfg.TrustDomain, DNSNames: s.cfg.Names, Roots: []*x509.Certificate{s.keys.Root},
		Issuing: s.keys.Issuing, IssuingKey: s.keys.IssuingKey, Attestation: s.keys.Attestation, AttestationKey: s.keys.AttestationKey,
		Dir: caDir(s.dir), EKRoots: roots, EKIntermediates: inter, Registry: caRegistry{s.registry}, Log: s.log,
		Events: func(ctx context.Context, ev audit.Event) error { return journal.AppendEvent(ctx, s.journal, ev) },
		Refused: func(peer, reason string) {
			if addr, err := net.ResolveTCPAddr("tcp", peer); err == nil {
				s.ingest.Refusals().Add(addr, reason)
			}
		},
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.ca.Close)
	return nil
}

// loadTrust reads the TPM makers' certificates: self-signed ones are roots, others intermediates.
func loadTrust(dir string) (roots, intermediates *x509.CertPool, err error) {
	roots, intermediates = x509.NewCertPool(), x509.NewCertPool()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		rest, err := os.ReadFile(f)
		if err != nil {
			return nil, nil, fmt.Errorf("ek-trust: %w", err)
		}
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("ek-trust: %s: %w; remove the file or mend it", f, err)
			}
			if c.CheckSignatureFrom(c) == nil {
				roots.AddCert(c)
			} else {
				intermediates.AddCert(c)
			}
		}
	}
	return roots, intermediates, nil
}

func (s *Server) openListeners() (err error) {
	for _, l := range []struct {
		key, addr string
		into      *net.Listener
	}{
		{"gateways", s.cfg.Gateways, &s.listeners.gateways},
		{"hospital", s.cfg.Hospital, &s.listeners.hospital},
		{"operators", s.cfg.Operators, &s.listeners.operators},
	} {
		ln, err := net.Listen("tcp", l.addr)
		if err != nil {
			return fmt.Errorf("%s: %w; change '%s:' in %s or end the program that holds the port", l.key, err, l.key, filepath.Join(s.dir, ConfigFile))
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

// Run serves until ctx ends. Then the listeners end first, what was journaled is opened and logged, and the stores close.
func (s *Server) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.outbox.Flush(ctx); err != nil {
		return fmt.Errorf("events of the former run: %w", err)
	}
	if err := s.event(ctx, audit.ServerStarted); err != nil {
		return err
	}
	s.log.Info("server started", "trust_domain", s.cfg.TrustDomain, "gateways", s.listeners.gateways.Addr().String(),
		"hospital", s.listeners.hospital.Addr().String(), "operators", s.listeners.operators.Addr().String())

	// Consumers outlive the listeners, so that what was journaled last is still opened and logged.
	consumerCtx, stopConsumers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopConsumers()
	consumers, cctx := errgroup.WithContext(consumerCtx)
	consumers.Go(func() error { return s.translog.Run(cctx) })
	consumers.Go(func() error { return s.records.Run(cctx) })

	front, fctx := errgroup.WithContext(ctx)
	front.Go(func() error { return s.serveGateways(fctx) })
	front.Go(func() error { return s.serveHTTP(fctx, s.listeners.hospital, "fhir", s.hospitalCert, s.fhir) })
	front.Go(func() error { return s.serveHTTP(fctx, s.listeners.operators, "api", nil, s.api) })
	front.Go(func() error { return s.ingest.Run(fctx) })
	// A consumer that fails ends the server: it must not go on taking what nobody opens or logs.
	front.Go(func() error {
		select {
		case <-fctx.Done():
			return nil
		case <-cctx.Done():
			return errors.New("records or log ended")
		}
	})
	err = front.Wait()
	s.log.Info("server stops")
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	err = errors.Join(err, s.event(stopCtx, audit.ServerStopped))
	stopConsumers()
	return errors.Join(err, consumers.Wait())
}

func (s *Server) event(ctx context.Context, t audit.Type) error {
	err := journal.AppendEvent(ctx, s.journal, audit.Event{
		Type: t, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success, Detail: map[string]string{"version": build.Version},
	})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func (s *Server) serveGateways(ctx context.Context) error {
	cert := s.cert("ingest")
	port := &gatewayPort{
		ln:   s.listeners.gateways,
		tls:  listenerTLS(cert.get, s.keys.Root, "mqtt", "http/1.1"),
		mqtt: s.ingest.ServeConn,
		http: &http.Server{
			Handler: s.ca, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: 2 * time.Minute,
			IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: quietHTTP(s.log),
		},
		refuse: s.ingest.Refusals().Add,
		log:    s.log,
	}
	err := port.run(ctx)
	drainCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	return errors.Join(err, s.ingest.Drain(drainCtx))
}

func (s *Server) cert(name string) *serviceCert {
	return &serviceCert{
		id: spiffe.ID{TrustDomain: s.cfg.TrustDomain, Kind: spiffe.Service, Name: name}, names: s.cfg.Names, now: time.Now,
		issue: func(t ca.Template) ([]*x509.Certificate, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return s.ca.Issue(ctx, audit.Actor{ID: "server"}, "", t)
		},
	}
}

// hospitalCert is the hospital's own certificate, or nil.
func (s *Server) hospitalCert() (*tls.Certificate, error) { return s.cfg.hospitalCertificate() }

func (s *Server) serveHTTP(ctx context.Context, ln net.Listener, name string, own func() (*tls.Certificate, error), h http.Handler) error {
	get := s.cert(name).get
	if own != nil {
		c, err := own()
		if err != nil {
			return err
		}
		if c != nil {
			get = func() (*tls.Certificate, error) { return c, nil }
		}
	}
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: 5 * time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: quietHTTP(s.log),
		TLSConfig: listenerTLS(get, s.keys.Root, "http/1.1"),
	}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(ln, "", "") }()
	select {
	case err := <-done:
		return fmt.Errorf("%s listener: %w", name, err)
	case <-ctx.Done():
	}
	shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	err := srv.Shutdown(shut)
	if err != nil {
		err = errors.Join(err, srv.Close())
	}
	<-done
	return err
}

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

func (s *Server) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// metrics are the operators' listener's figures; no label holds a patient or a value.
func (s *Server) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), s.ingest)
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "wardlink", Name: name, Help: help}, value))
	}
	read := func(f func(client.Status) uint64) func() float64 {
		return func() float64 {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			st, err := s.status(ctx)
			if err != nil {
				return -1
			}
			return float64(f(st))
		}
	}
	gauge("journal_entries", "Last committed journal entry.", read(func(c client.Status) uint64 { return c.JournalSeq }))
	gauge("records_lag_entries", "Journal entries that records has not passed.", read(func(c client.Status) uint64 { return c.JournalSeq - min(c.JournalSeq, c.RecordsSeq) }))
	gauge("log_lag_entries", "Journal entries that the transparency log has not passed.", read(func(c client.Status) uint64 { return c.JournalSeq - min(c.JournalSeq, c.LogSeq) }))
	gauge("log_leaves", "Leaves of the transparency log.", read(func(c client.Status) uint64 { return c.LogSize }))
	gauge("batches_pending", "Batches journaled and not opened yet.", read(func(c client.Status) uint64 { return c.Pending }))
	gauge("batches_dead", "Batches that failed to open three times.", read(func(c client.Status) uint64 { return c.Dead }))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}
