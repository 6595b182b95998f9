package watch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/alerts"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/server/translog"
)

// post is the watchers over a real database, registry and alerts; connections, journal and log are set by the test.
type post struct {
	t        *testing.T
	db       *sqldb.DB
	registry *registry.Registry
	alerts   *alerts.Alerts
	watch    *Watch
	cfg      Config

	mu       sync.Mutex
	at       time.Time
	sessions []string
	rates    map[string]ingest.Rate
	refused  map[string]ingest.Parked
	rivals   map[string]ingest.Rival
	dead     []records.DeadCount
	backlog  records.Backlog
	gaps     []records.GapCount
	losses   []records.LossCount
	kept     records.RetentionState
	parked   map[string]records.ParkedReport
	ill      error // of the journal
	stats    journal.Stats
	log      translog.Stats
	terms    []Term
	ca       CA
	recovery time.Time // since when its file is unproven
}

func newPost(t *testing.T, change ...func(*Config)) *post {
	t.Helper()
	p := &post{t: t, at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), ca: CA{Well: true}}
	p.db, _ = sqldbtest.New(t, slices.Concat(sqldb.OutboxMigrations(), registry.Migrations(), alerts.Migrations())...)
	log := &sqldbtest.Journal{}
	outbox, err := sqldb.NewOutbox(p.db, log, p.now)
	p.must(err)
	p.registry, err = registry.New(registry.Config{DB: p.db, Outbox: outbox, Now: p.now})
	p.must(err)
	p.alerts, err = alerts.New(alerts.Config{
		DB: p.db, Outbox: outbox, NextID: log.NextID, Server: "ward.example", Log: slog.New(slog.DiscardHandler), Now: p.now,
	})
	p.must(err)
	p.cfg = Config{
		Alerts: p.alerts, Memory: p.alerts, Ingest: p, Registry: p.registry, Records: p, Retention: p, Journal: wire{p}, Log: slog.New(slog.DiscardHandler),
		LogStats: func() translog.Stats { p.mu.Lock(); defer p.mu.Unlock(); return p.log },
		Vouched:  func() bool { return true },
		Unproven: func() (time.Time, bool) { p.mu.Lock(); defer p.mu.Unlock(); return p.recovery, !p.recovery.IsZero() },
		Terms:    func(context.Context) ([]Term, error) { p.mu.Lock(); defer p.mu.Unlock(); return p.terms, nil },
		CA:       func() CA { p.mu.Lock(); defer p.mu.Unlock(); return p.ca },
		Places:   []Place{{"server directory", t.TempDir()}}, Now: p.now,
		Limits: alerts.Limits{DiskFreePercent: 1, DiskFreeGB: 1}, // of the machine that runs the test nothing is asked
	}
	for _, c := range change {
		c(&p.cfg)
	}
	p.restart()
	return p
}

func (p *post) restart() {
	p.t.Helper()
	var err error
	p.watch, err = New(p.cfg)
	p.must(err)
	for _, w := range p.watch.watchers {
		if w.typ == alerts.DiskLow || w.typ == alerts.ClockJumped { // they have tests of their own, and look at the machine
			w.look = func(context.Context, time.Time) ([]alerts.Condition, error) { return nil, nil }
		}
	}
}

func (p *post) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *post) now() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// pass lets time pass, with a look each tick.
func (p *post) pass(span time.Duration) {
	p.t.Helper()
	for ; span > 0; span -= tick {
		p.mu.Lock()
		p.at = p.at.Add(min(span, tick))
		p.mu.Unlock()
		p.watch.Look(p.t.Context())
		p.watch.Wait()
	}
}

// leap lets time pass without looks, and then looks for two minutes: what ended has resolved.
func (p *post) leap(span time.Duration) {
	p.t.Helper()
	p.set(func() { p.at = p.at.Add(span - 2*time.Minute) })
	p.pass(2 * time.Minute)
}

func (p *post) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *post) expect(want ...string) {
	p.t.Helper()
	list, err := p.alerts.List(p.t.Context(), false, 0)
	p.must(err)
	got := []string{}
	for _, al := range list {
		got = append(got, fmt.Sprintf("%s/%s %s", al.Type, al.Subject, al.Severity))
	}
	slices.Sort(got)
	if !slices.Equal(got, append([]string{}, want...)) {
		p.t.Fatalf("open: %q; expected %q", got, want)
	}
}

// post is what ingest and records are asked.

func (p *post) Sessions() (out []ingest.SessionInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.sessions {
		name, late := strings.CutSuffix(g, " under grace")
		out = append(out, ingest.SessionInfo{Gateway: name, Grace: late, NotAfter: p.at.Add(time.Hour)})
	}
	return out
}

func (p *post) RefusalRates() map[string]ingest.Rate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rates
}

func (p *post) RefusedBatches() map[string]ingest.Parked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

func (p *post) Rivals() map[string]ingest.Rival {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.rivals)
}

func (p *post) DeadByGateway(context.Context, int) ([]records.DeadCount, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead, nil
}

func (p *post) Backlog(context.Context) (records.Backlog, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.backlog, nil
}

func (p *post) GapsByGateway(_ context.Context, before time.Time, _ int) (out []records.GapCount, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.gaps {
		if !g.Since.After(before) {
			out = append(out, g)
		}
	}
	return out, nil
}

func (p *post) LossesByGateway(_ context.Context, after time.Time, _ int) (out []records.LossCount, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.losses {
		if l.Noticed.After(after) {
			out = append(out, l)
		}
	}
	return out, nil
}

func (p *post) ParkedByReport(context.Context) (map[string]records.ParkedReport, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.parked, nil
}

func (p *post) Retention(context.Context) (records.RetentionState, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept, nil
}

// wire is the journal's state.
type wire struct{ p *post }

func (w wire) Health() error {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.ill
}

func (w wire) Stats() journal.Stats {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.stats
}

func (p *post) register(ids ...string) {
	p.t.Helper()
	for _, id := range ids {
		_, err := p.registry.Import(p.t.Context(), audit.Actor{ID: "op"}, "", []registry.Gateway{{ID: id, EKs: [][32]byte{sha256.Sum256([]byte(id))}, Profile: "default"}})
		p.must(err)
	}
}
