package server

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/internal/sdnotify"
	"wardlink/server/alerts"
	"wardlink/server/alerts/watch"
	"wardlink/server/api"
	"wardlink/server/ca"
	"wardlink/server/fhir"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/node"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
)

// Server is one process of a server: every service, those of the main process, or a worker's. An ingest node is a Node.
type Server struct {
	dir     string
	cfg     Config
	parts   Services
	keys    *keys.Keys
	log     *slog.Logger
	started time.Time

	journal   journal.Store
	db        *sqldb.DB
	outbox    *sqldb.Outbox
	registry  *registry.Registry
	ca        *ca.CA                       // nil where other processes hold it
	remote    *node.Authority              // these; nil where this one does
	authority authority                    // one of the two
	ingest    *ingest.Server               // always there in a process with ports: it proves identities; MQTT is served with the service alone
	nodes     fleet                        // the ingest nodes
	translog  atomic.Pointer[translog.Log] // nil while another process writes the log
	records   *records.Records
	alerts    *alerts.Alerts
	watch     *watch.Watch
	fhir      http.Handler
	api       *api.API
	configs   *api.Configs
	pushes    *pusher
	clock     *api.Clock
	owed      owed
	services  sync.Map                        // of *serviceCert by name
	hospital  atomic.Pointer[tls.Certificate] // the hospital's own, where it is configured
	// hospitalStamp is of the files that hospital was read from. Of New, then of watchHospital alone.
	hospitalStamp string
	silence       time.Duration // of a source, for trace; 0: its default

	handshakes *handshakes // of the gateways' port

	listeners struct{ gateways, hospital, operators net.Listener }
	closers   closers
}

// closers end what a process has opened, in the order in which it was.
type closers []func() error

// close calls each once, what was opened last first.
func (c *closers) close() error {
	var errs []error
	for _, end := range slices.Backward(*c) {
		errs = append(errs, end())
	}
	*c = nil
	return errors.Join(errs...)
}

// drainTime is how long the listeners have to end after SIGTERM.
const drainTime = 10 * time.Second

// New opens what the services of this process need in a server's directory, those of its configuration or all if none are named, and
// binds their listeners, so that whatever is wrong is said before the first gateway is let in. Keys of other services are not read.
func New(dir string, log *slog.Logger, services ...string) (*Server, error) {
	return NewAt(dir, "", log, services...)
}

// NewAt is New with another address of the gateways' port than the configuration's, for a second process on one directory; "": the
// configuration's.
func NewAt(dir, gateways string, log *slog.Logger, services ...string) (*Server, error) {
	s := &Server{dir: dir, log: log, started: time.Now()}
	var err error
	if s.cfg, err = LoadConfig(dir); err != nil {
		return nil, err
	}
	if gateways != "" {
		s.cfg.Gateways = gateways
		if err := s.cfg.Check(); err != nil {
			return nil, err
		}
	}
	if s.parts, err = s.cfg.run(services); err != nil {
		return nil, fmt.Errorf("config %s: %w", filepath.Join(dir, ConfigFile), err)
	}
	steps := []func() error{s.openKeys, s.openStores, s.openServices, s.openListeners}
	switch {
	case s.parts.Node():
		return nil, errors.New("an ingest node is made by NewNode")
	case s.parts.enrols():
		steps = []func() error{s.openKeys, s.openStores, s.openEnrolment, s.openListeners}
	case s.parts.worker():
		steps = []func() error{s.openKeys, s.openStores, s.openWorker}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// openKeys reads the keys of this process's services, and no others.
func (s *Server) openKeys() error {
	if s.parts.Has(ServiceCA) {
		if err := s.holdAttestation(); err != nil {
			return err
		}
	}
	var err error
	if s.keys, err = keys.OpenOf(s.dir, s.parts...); err != nil {
		return err
	}
	if s.parts.main() {
		if err := s.readHospital(); err != nil {
			return err
		}
	}
	return s.keys.Belong(s.cfg.TrustDomain)
}

func journalConfig(dir string) journal.Config {
	return journal.Config{Dir: journalDir(dir), Node: 1, Consumers: []string{"log", "records"}}
}

func (s *Server) openStores() (err error) {
	if s.journal, err = s.openJournal(); err != nil {
		return err
	}
	s.closers = append(s.closers, s.journal.Close)
	path, err := s.cfg.database(s.dir)
	if err != nil {
		return err
	}
	if s.db, err = sqldb.OpenConfig(sqldb.Config{Path: path, Migrations: s.cfg.migrations(), Log: s.log, Progress: upgrading, Upgraded: s.upgraded}); err != nil {
		return err
	}
	s.closers = append(s.closers, s.db.Close)
	if s.outbox, err = sqldb.NewOutbox(s.db, s.journal, nil); err != nil {
		return err
	}
	s.registry, err = registry.New(registry.Config{DB: s.db, Outbox: s.outbox, CodeRequired: s.cfg.EnrolCode == EnrolCodeRequired, Changed: func() {
		if s.ingest != nil {
			s.ingest.Nudge()
		}
	}})
	// Once more, now that 'restored' sees this process in the database: it makes its mark before it looks.
	return errors.Join(err, whole(s.dir))
}

// upgradePart is longer than any part of an upgrade takes between two words of it.
const upgradePart = time.Hour

// upgrading keeps the service manager from killing a start that copies a large database.
func upgrading(doing string) { sdnotify.Extend(upgradePart, doing) }

// upgraded leaves the event of an upgrade in the outbox.
func (s *Server) upgraded(tx *sql.Tx, u sqldb.Upgrade) error {
	return addUpgraded(tx, u, s.journal.NextID())
}

func addUpgraded(tx *sql.Tx, u sqldb.Upgrade, id audit.EventID) error {
	return sqldb.AddEvent(tx, audit.Event{
		ID: id, Type: audit.DatabaseUpgraded, Time: time.Now().UnixMilli(), Actor: audit.Actor{ID: "server"}, Outcome: audit.Success,
		Detail: map[string]string{"version": build.Version, "from": u.From.String(), "to": u.To.String(), "copy": filepath.Base(u.Copy)},
	})
}

func (s *Server) openServices() (err error) {
	if err := s.openLog(); err != nil {
		return err
	}
	s.openConfigs()
	s.nodes = newFleet()
	s.handshakes = newHandshakes(s.cfg.Limits.handshakes())
	s.ingest = ingest.New(ingest.Config{
		Journal: s.journal, Registry: s.registry, TrustDomain: s.cfg.TrustDomain, Roots: s.roots(), Log: s.log, Sessions: s.sessions(),
		Grace: ingest.Grace{For: time.Duration(s.cfg.ExpiredGrace), CA: func() (bool, time.Time) { h := s.authority.Health(); return h.Well, h.Since }},
		Down:  s.documents, Limits: s.cfg.Limits.ingest(), Turns: s.handshakes.cores,
	})
	if err := s.openAuthority(); err != nil {
		return err
	}
	if err := s.openRecords(); err != nil {
		return err
	}
	if err := s.openAlerts(); err != nil {
		return err
	}
	store := records.NewStore(s.db, s.keys.Pseudonym)
	if s.fhir, err = fhir.New(fhir.Config{
		Store: store, Journal: s.journal, Pseudonym: s.keys.Pseudonym, TrustDomain: s.cfg.TrustDomain,
		Access: s.registry, Wards: s.registry, Refusals: s.ingest.Refusals(), Log: s.log,
	}); err != nil {
		return err
	}
	if err := s.openClock(); err != nil {
		return err
	}
	s.api = api.New(api.Config{
		TrustDomain: s.cfg.TrustDomain, Servers: s.gatewayAddresses(), Root: s.keys.Root, RecordsKey: s.keys.Records.Public(),
		ConfigKey: s.configPublic(), SignOrder: s.signOrder, LogDir: logDir(s.dir), LogVerifier: s.keys.LogVerifier, Registry: s.registry,
		Journal: s.journal, Refusals: s.ingest.Refusals(), CA: s.authority, Clock: s.clock, Records: s.records, Accounts: store, PatientID: store.PatientID, Seen: store.Seen, Others: s.identities, HospitalURL: s.hospitalURL(), Agents: s.agents, Connections: s.everywhere(), Alerts: s.alerts, Configs: s.configs, Status: s.status, Trace: s.trace, Ready: s.ready, Metrics: s.metrics(), Log: s.log,
		Salvage: s.salvage(), Held: store.HeldToSalvage,
	})
	return nil
}

// salvage is the way in of what a dead gateway left.
func (s *Server) salvage() *ingest.Salvage {
	return &ingest.Salvage{SalvageConfig: ingest.SalvageConfig{Journal: s.journal, Registry: s.registry, Records: s.records}}
}

// Run serves until ctx ends. Then the listeners end first, what was journaled is opened and logged, and the stores close.
func (s *Server) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	switch {
	case s.parts.worker():
		return s.runWorker(ctx)
	case s.parts.enrols():
		return s.runEnrolment(ctx)
	}
	// A journal or a database that cannot be written now keeps nothing from starting: what needs them is refused until they can be, and
	// cutting off a gateway must be possible meanwhile.
	if err := s.outbox.Flush(ctx); err != nil {
		s.log.Error("events of the former run wait in the database", "error", err)
	}
	s.own(ctx, audit.Event{Type: audit.ServerStarted, Detail: map[string]string{"version": build.Version}})
	if _, ok := keys.Confirmed(s.dir); !ok {
		s.log.Warn("nobody has proven that the recovery file opens: without it and its passphrase a lost server's data is lost; run 'wardlink-server init --confirm-recovery' once", "dir", s.dir)
	}
	s.log.Info("server started", "trust_domain", s.cfg.TrustDomain, "services", s.parts.String(), "gateways", s.listeners.gateways.Addr().String(),
		"hospital", s.listeners.hospital.Addr().String(), "operators", s.listeners.operators.Addr().String())

	if s.ca != nil {
		s.takeUpIssuing(ctx) // before the first handshake: the present issuing CA may have ended while the next one waits
	}

	// Consumers outlive the listeners, so that what was journaled last is still opened and logged.
	consumerCtx, stopConsumers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopConsumers()
	consumers, cctx := errgroup.WithContext(consumerCtx)
	if s.parts.Has(ServiceLog) {
		consumers.Go(func() error { return s.runLog(cctx) })
	}
	if s.parts.Has(ServiceRecords) {
		consumers.Go(func() error { return s.runRecords(cctx) })
	}
	consumers.Go(func() error { return s.runAlerts(cctx) })

	front, fctx := errgroup.WithContext(ctx)
	front.Go(func() error { return s.serveGateways(fctx) })
	front.Go(func() error {
		return s.serveHTTP(fctx, s.listeners.hospital, "fhir", s.hospital.Load, s.api.Hospital(s.fhir))
	})
	front.Go(func() error { return s.serveHTTP(fctx, s.listeners.operators, "api", nil, s.api) })
	front.Go(func() error { return s.ingest.Run(fctx) })
	front.Go(func() error { return s.flushOutbox(fctx) })
	front.Go(func() error { return s.clock.Run(fctx) })
	front.Go(func() error { sdnotify.Run(fctx, sdnotify.Service{Alive: s.alive, Log: s.log}); return nil })
	front.Go(func() error { return s.runAuthority(fctx) })
	front.Go(func() error { return s.watchHospital(fctx) })
	front.Go(func() error { return s.runPushes(fctx) })
	front.Go(func() error { return s.writeUses(fctx) })
	front.Go(func() error { return s.db.Warden(fctx, s.log) })
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

// tellInterval is how often a fault that lasts is told.
const tellInterval = 30 * time.Second

// outboxTime is how long an event of another process, such as 'wardlink-server operator', may lie in the database.
const outboxTime = 2 * time.Second

// flushOutbox moves events that no act of this process is waiting for, and those that the server owes. A failure is only told: the acts that wait flush themselves,
// and readiness watches the journal.
func (s *Server) flushOutbox(ctx context.Context) error {
	tick := time.NewTicker(outboxTime)
	defer tick.Stop()
	var told time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := errors.Join(s.settle(ctx), s.outbox.Flush(ctx)); err == nil {
				told = time.Time{}
			} else if ctx.Err() == nil && time.Since(told) >= tellInterval {
				told = time.Now()
				s.log.Error("events wait in the database", "error", err)
			}
		}
	}
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

func (s *Server) close() error { return s.closers.close() }
