// Package watch holds the senders of alerts: small watchers, each of which looks at one thing every some seconds and says what is wrong
// with it now. None waits for another, and one that cannot look is an alert itself.
package watch

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"wardlink/server/alerts"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/translog"
)

// Alerts is what the watchers tell.
type Alerts interface {
	Observe(t alerts.Type, conditions []alerts.Condition)
	Open(t alerts.Type, subject string) bool
}

// Memory is what outlives the process.
type Memory interface {
	Pulse(ctx context.Context) error
	LastPulse(ctx context.Context) (time.Time, error)
	Heard(ctx context.Context) (map[string]time.Time, error)
	SetHeard(ctx context.Context, heard map[string]time.Time) error
}

// Ingest is what is known about the gateways' connections.
type Ingest interface {
	Sessions() []ingest.SessionInfo
	RefusalRates() map[string]ingest.Rate
	RefusedBatches() map[string]ingest.Parked
	Rivals() map[string]ingest.Rival
}

// Registry is what is known about the gateways.
type Registry interface {
	Admit(ctx context.Context, gateway string) (registry.Admission, error)
	Certificates(ctx context.Context) ([]registry.Certificate, error)
	Quarantines(ctx context.Context) (map[string]registry.Quarantine, error)
	Contentions(ctx context.Context, since time.Time) ([]registry.Contention, error)
}

// Records is what has become of the batches.
type Records interface {
	DeadByGateway(ctx context.Context, limit int) ([]records.DeadCount, error)
	Backlog(ctx context.Context) (records.Backlog, error)
	GapsByGateway(ctx context.Context, before time.Time, limit int) ([]records.GapCount, error)
	LossesByGateway(ctx context.Context, after time.Time, limit int) ([]records.LossCount, error)
	ParkedByReport(ctx context.Context) (map[string]records.ParkedReport, error)
}

// Retention is whether anything is disposed of.
type Retention interface {
	Retention(ctx context.Context) (records.RetentionState, error)
}

// Journal is the server's first word.
type Journal interface {
	Health() error
	Stats() journal.Stats
}

// Place is a part of the server's directory whose disk is watched.
type Place struct {
	Name string // the subject of alerts
	Path string
}

// Term is a certificate's life, and who renews it.
type Term struct {
	Subject             string // of alerts
	NotBefore, NotAfter time.Time
	Warn, Late          float64 // shares of its life, from which on it is an alert and a critical one
	Renewal             string  // what to do
}

// CA is what the certificate authority says of itself.
type CA struct {
	Well   bool
	Since  time.Time
	Reason string
}

// Config is what a Watch is made of. Every field but Configurations, Logins, BackupStamp and Now is required.
type Config struct {
	Alerts    Alerts
	Memory    Memory
	Ingest    Ingest
	Registry  Registry
	Records   Records
	Retention Retention
	Journal   Journal
	Log       *slog.Logger
	LogStats  func() translog.Stats
	// Configurations are those of the gateways in service; nil: nobody configures any.
	Configurations func(ctx context.Context) ([]Configuration, error)
	Terms          func(ctx context.Context) ([]Term, error)
	CA             func() CA
	Vouched        func() bool // whether the server vouches for its clock, and signs the time for gateways
	// Logins says of nodes, by name, what is wrong with their logins in the database; nil: there are none.
	Logins      func(ctx context.Context) (map[string]string, error)
	Unproven    func() (since time.Time, unproven bool) // whether nobody has opened the recovery file, and since when it is there
	Places      []Place
	Limits      alerts.Limits
	BackupStamp string           // empty: backups are not watched
	Now         func() time.Time // nil: time.Now
}

const (
	tick      = 15 * time.Second
	lookTime  = 12 * time.Second // of one look
	maxMissed = 4                // looks in a row that failed, or did not come back: then a watcher is blind
	maxListed = 200              // subjects of one look; alerts share one beyond half of it
)

// look says what is wrong now. An error means that nothing is known.
type look func(ctx context.Context, now time.Time) ([]alerts.Condition, error)

// watcher is one thing that is watched.
type watcher struct {
	typ   alerts.Type
	every time.Duration
	look  look

	// Guarded by Watch.mu.
	running bool
	began   time.Time
	missed  int // looks in a row that failed or were not back at the next tick
	err     error
}

// Watch runs the watchers.
type Watch struct {
	cfg      Config
	now      func() time.Time
	watchers []*watcher

	mu     sync.Mutex
	active sync.WaitGroup
}

// New makes the watchers; Run starts them.
func New(cfg Config) (*Watch, error) {
	if cfg.Alerts == nil || cfg.Memory == nil || cfg.Ingest == nil || cfg.Registry == nil || cfg.Records == nil || cfg.Retention == nil || cfg.Journal == nil ||
		cfg.Log == nil || cfg.LogStats == nil || cfg.Terms == nil || cfg.CA == nil || cfg.Vouched == nil || cfg.Unproven == nil || len(cfg.Places) == 0 {
		return nil, errors.New("watch: every field but Configurations, BackupStamp and Now is required")
	}
	cfg.Limits = cfg.Limits.WithDefaults()
	w := &Watch{cfg: cfg, now: cfg.Now}
	if w.now == nil {
		w.now = time.Now
	}
	w.watchers = []*watcher{
		{typ: alerts.GatewaySilent, every: tick, look: newSilent(cfg, w.now()).look},
		{typ: alerts.BatchDead, every: time.Minute, look: deadLook(cfg.Records)},
		{typ: alerts.GapOpen, every: time.Minute, look: gapLook(cfg.Records, cfg.Limits.Gap)},
		{typ: alerts.BatchParked, every: time.Minute, look: parkedLook(cfg.Ingest, cfg.Records)},
		{typ: alerts.BatchesLost, every: time.Minute, look: lossLook(cfg.Records)},
		{typ: alerts.CertificateLate, every: 5 * time.Minute, look: certificateLook(cfg.Registry, cfg.Limits.CertificateLate)},
		{typ: alerts.CertificateEnds, every: 5 * time.Minute, look: termsLook(cfg.Terms)},
		{typ: alerts.CAUnwell, every: tick, look: caLook(cfg.CA)},
		{typ: alerts.GatewayQuarantined, every: tick, look: quarantineLook(cfg.Registry)},
		{typ: alerts.IdentityConflict, every: tick, look: contentionLook(cfg.Registry, cfg.Ingest)},
		{typ: alerts.GraceUsed, every: tick, look: graceLook(cfg.Ingest)},
		{typ: alerts.ConfigReverted, every: tick, look: revertedLook(cfg.Configurations)},
		{typ: alerts.ConfigLate, every: time.Minute, look: lateLook(cfg.Configurations, cfg.Ingest)},
		{typ: alerts.RefusalsMany, every: tick, look: refusalsLook(cfg.Ingest, cfg.Limits.RefusalsPerMinute)},
		{typ: alerts.DiskLow, every: tick, look: newDisk(cfg).look},
		{typ: alerts.BackupOld, every: time.Minute, look: backupLook(cfg.BackupStamp, cfg.Limits.BackupAge)},
		{typ: alerts.RecoveryUnsure, every: time.Minute, look: recoveryLook(cfg.Unproven)},
		{typ: alerts.JournalFails, every: tick, look: (&journalWatch{journal: cfg.Journal}).look},
		{typ: alerts.DatabaseFails, every: tick, look: (&databaseWatch{memory: cfg.Memory}).look},
		{typ: alerts.LogLags, every: tick, look: (&logWatch{journal: cfg.Journal, stats: cfg.LogStats, most: cfg.Limits.LogLag}).look},
		{typ: alerts.RecordsLag, every: tick, look: recordsLook(cfg.Records, cfg.Limits.RecordsLag)},
		{typ: alerts.ClockJumped, every: tick, look: newClock(cfg).look},
		{typ: alerts.NodeLogin, every: tick, look: loginLook(cfg.Logins)},
	}
	return w, nil
}

// Run looks until ctx ends, and returns once no look is under way any more, or after lookTime. It returns nil.
func (w *Watch) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for ctx.Err() == nil {
		w.Look(ctx)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	done := make(chan struct{})
	go func() { w.active.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(lookTime): // a file system that hangs does not keep the server from ending
	}
	return nil
}

// Look starts the looks that are due and tells of watchers that are blind. Run calls it; a test may.
func (w *Watch) Look(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	var blind []alerts.Condition
	for _, one := range w.watchers {
		if one.running {
			one.missed++
		}
		if one.missed >= maxMissed {
			reason := "a look does not come back"
			if one.err != nil {
				reason = one.err.Error()
			}
			blind = append(blind, alerts.Condition{Subject: string(one.typ), Detail: map[string]string{"error": reason}})
		}
		// A second early: the ticker and the looks are not in step.
		since := now.Sub(one.began)
		if !one.running && (one.began.IsZero() || one.err != nil || since >= one.every-time.Second || since < 0) {
			one.running, one.began = true, now
			w.active.Go(func() { w.one(ctx, one, now) })
		}
	}
	w.cfg.Alerts.Observe(alerts.WatchBlind, blind)
}

// Wait waits for the looks under way.
func (w *Watch) Wait() { w.active.Wait() }

func (w *Watch) one(ctx context.Context, one *watcher, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	found, err := one.look(ctx, now)
	if err != nil && ctx.Err() == nil {
		w.cfg.Log.Error("a watcher cannot look", "alert", string(one.typ), "error", err)
	}
	if err == nil {
		w.cfg.Alerts.Observe(one.typ, found)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	one.running, one.err = false, err
	if one.missed++; err == nil {
		one.missed = 0
	}
}
