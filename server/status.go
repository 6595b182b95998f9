package server

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/verify"
	"wardlink/enroll/wipe"
	"wardlink/internal/build"
	"wardlink/server/api"
	"wardlink/server/api/client"
	"wardlink/server/boot"
	"wardlink/server/ca"
	"wardlink/server/registry"
)

// status collects the figures of every part.
func (s *Server) status(ctx context.Context) (client.Status, error) {
	st, err := s.records.Stats(ctx)
	if err != nil {
		return client.Status{}, err
	}
	gateways, waiting, err := s.registry.Count(ctx)
	if err != nil {
		return client.Status{}, err
	}
	storage, err := s.storage(ctx)
	if err != nil {
		return client.Status{}, err
	}
	kept, err := s.records.Retention(ctx)
	if err != nil {
		return client.Status{}, err
	}
	disposal := "on"
	if kept.Suspended {
		disposal = "suspended"
	}
	tl, notReady := s.logStats(), ""
	_, unproven := s.unproven()
	if err := s.ready(ctx); err != nil {
		notReady = err.Error()
	}
	sessions := s.everywhere().Sessions()
	late := 0
	for _, one := range sessions {
		if one.Grace {
			late++
		}
	}
	return client.Status{
		CA: s.authority.Health().Reason, Grace: late, Version: build.Version, Started: s.started, Ready: notReady == "", NotReady: notReady, Clock: s.clock.State().Doubt, Sessions: len(sessions),
		Gateways: gateways, Waiting: waiting, JournalSeq: s.journal.Stats().Committed, RecordsSeq: s.journal.Cursor("records"),
		LogSeq: tl.Signed, LogSize: tl.Published,
		Stored: uint64(st.Batches), Pending: uint64(st.Pending), Dead: uint64(st.Dead), Storage: storage, Disposal: disposal, RecoveryUnproven: unproven,
	}, nil
}

// maxLag is how far behind the log may be before the server is not ready.
const maxLag = time.Minute

// readyTime bounds a health probe; the database's readers wait at most 5 s for another process.
const readyTime = 6 * time.Second

// ready is nil when every part does its work.
func (s *Server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	if err := s.journal.Health(); err != nil {
		return &api.NotReady{Part: "journal", Err: err}
	}
	if _, err := s.registry.Revision(ctx); err != nil {
		return &api.NotReady{Part: "registry", Err: err}
	}
	if err := s.records.Held(); err != nil {
		return &api.NotReady{Part: "records", Err: err}
	}
	tl := s.logStats()
	if tl.Failing != nil {
		return &api.NotReady{Part: "log", Err: tl.Failing}
	}
	if tl.Lag > maxLag {
		return &api.NotReady{Part: "log", Err: fmt.Errorf("it is %s behind", tl.Lag)}
	}
	return nil
}

// askedByCA is the registry as the CA asks it.
func (s *Server) askedByCA() caRegistry {
	if s.keys.Config == nil {
		return caRegistry{s.registry, nil}
	}
	return caRegistry{s.registry, s.signOrder}
}

func (s *Server) configPublic() ed25519.PublicKey {
	return s.keys.Config.Public().(ed25519.PublicKey) // an ed25519.PrivateKey's public key is always of this type
}

// caRegistry lets the CA ask the registry in the CA's own words.
type caRegistry struct {
	r    *registry.Registry
	sign func(wipe.Order) ([]byte, error) // nil in a process without the config key
}

func (c caRegistry) ByEK(ctx context.Context, ek [32]byte) (string, error) {
	g, err := c.r.ByEK(ctx, ek)
	revoked, held, retired, window := (*registry.RevokedError)(nil), (*registry.HeldError)(nil), (*registry.RetiredError)(nil), (*registry.WindowError)(nil)
	switch {
	case errors.As(err, &revoked):
		return g.ID, &ca.RevokedError{Reason: revoked.Reason}
	case errors.As(err, &held) && held.State == registry.Suspended:
		return g.ID, &ca.CutOffError{Type: enroll.SuspendedProblem, Title: "suspended", Reason: held.Reason}
	case errors.As(err, &held):
		cut := &ca.CutOffError{Type: enroll.DecommissionedProblem, Title: "decommissioned", Reason: held.Reason}
		end, err := c.r.End(ctx, g.ID)
		if err != nil {
			return g.ID, err
		}
		if end != nil {
			cut.Order, err = c.order(g, end)
		}
		if err != nil {
			return g.ID, err
		}
		return g.ID, cut
	case errors.As(err, &retired):
		return g.ID, &ca.CutOffError{Type: enroll.ReplacedProblem, Title: "replaced", Reason: retired.Reason}
	case errors.As(err, &window):
		return g.ID, &ca.CutOffError{Type: enroll.WindowProblem, Title: "outside of its validity", Reason: "valid " + registry.Window(window.NotBefore, window.NotAfter)}
	case errors.Is(err, registry.ErrUnknown):
		return "", fmt.Errorf("%w: %w", ca.ErrUnknown, err)
	case errors.Is(err, registry.ErrNotActive):
		return g.ID, fmt.Errorf("%w: %w", ca.ErrNotActive, err)
	case err != nil:
		return "", err
	}
	return g.ID, nil
}

// order is what a decommissioned gateway is told: what it was told before, or, once it has given its word, to wipe without draining. Then
// what asks is a former copy of its disk, or an empty one, and nobody takes anything of it any more. Where the order cannot be signed it gets
// the former one, which destroys nothing that waits: it stays cut off all the same.
func (c caRegistry) order(g registry.Gateway, end *registry.End) ([]byte, error) {
	if !end.Drain || c.sign == nil {
		return end.Order, nil
	}
	o := wipe.Order{Gateway: g.ID, Issued: end.At.UnixMilli(), Reason: end.Reason}
	for _, ek := range g.EKs {
		o.Boards = append(o.Boards, ek[:])
	}
	return c.sign(o)
}

func (c caRegistry) Contend(ctx context.Context, claim ca.Contention) error {
	kind := registry.OneTPM
	if claim.Disk {
		kind = registry.ForeignDisk
	}
	return c.r.Contend(ctx, audit.Actor{ID: "server"}, registry.Contention{Claim: kind, Gateway: claim.Gateway, Rival: claim.Rival, Peer: claim.Peer})
}

func (c caRegistry) Wait(ctx context.Context, w ca.Waiting) error {
	return c.r.Wait(ctx, registry.Waiting{
		EK: w.EK, EKPublic: w.EKPublic, Manufacturer: w.Manufacturer, Model: w.Model, Chain: w.Chain, Peer: w.Peer,
		Serial: w.Serial,
	})
}

func (c caRegistry) Attested(ctx context.Context, gateway string, v *verify.Verified, code string, booted boot.Measurement) error {
	wants := (*registry.CodeError)(nil)
	if err := c.r.Attested(ctx, gateway, v.EK, v.AKName, code); errors.As(err, &wants) {
		return &ca.CodeError{Why: wants.Why}
	} else if errors.Is(err, registry.ErrTwoGateways) {
		return fmt.Errorf("%w: %w", ca.ErrTaken, err)
	} else if err != nil {
		return err
	}
	if err := c.r.Describe(ctx, v.EK, registry.Device{Manufacturer: v.Manufacturer, Model: v.Model, Firmware: v.Version, Serial: v.Serial}); err != nil {
		return err
	}
	return c.r.Measured(ctx, gateway, booted)
}

func (c caRegistry) AddKey(ctx context.Context, k ca.Key) error {
	err := c.r.AddKey(ctx, registry.Key{
		Gateway: k.Gateway, EK: k.EK, SPKI: k.SPKI, Public: k.Public, Serial: k.Serial, NotBefore: k.NotBefore, NotAfter: k.NotAfter,
	})
	switch {
	case errors.Is(err, registry.ErrNotActive):
		return fmt.Errorf("%w: %w", ca.ErrNotActive, err)
	case errors.Is(err, registry.ErrConflict):
		return fmt.Errorf("%w: %w", ca.ErrTaken, err)
	}
	return err
}

// quietHTTP keeps net/http's own log, which names peers of failed handshakes, at debug.
func quietHTTP(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }

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
	reg.MustRegister(newKeptMetrics(s))
	at := s.handshakes
	gauge("arrivals", "Connections to the gateways' port that have proven nothing yet.", func() float64 { n, _ := at.counts(); return float64(n) })
	gauge("connections", "Connections to the gateways' port, sessions included.", func() float64 { _, n := at.counts(); return float64(n) })
	gauge("handshakes", "Handshakes under way at the gateways' port.", func() float64 { n, _ := at.slots.counts(); return float64(n) })
	gauge("handshakes_waiting", "Connections to the gateways' port that wait for their turn to handshake.", func() float64 { _, n := at.slots.counts(); return float64(n) })
	gauge("ca_well", "1 while the CA can issue certificates.", func() float64 {
		if s.authority.Health().Well {
			return 1
		}
		return 0
	})
	gauge("own_events_unencodable", "Events of the server's own that are journaled without target and details, since they could not be encoded.", func() float64 { return float64(s.owed.aside.Load()) })
	gauge("journal_entries", "Last committed journal entry.", read(func(c client.Status) uint64 { return c.JournalSeq }))
	gauge("records_lag_entries", "Journal entries that records has not passed.", read(func(c client.Status) uint64 { return c.JournalSeq - min(c.JournalSeq, c.RecordsSeq) }))
	gauge("log_lag_entries", "Journal entries that the transparency log has not passed.", read(func(c client.Status) uint64 { return c.JournalSeq - min(c.JournalSeq, c.LogSeq) }))
	gauge("log_leaves", "Leaves of the transparency log.", read(func(c client.Status) uint64 { return c.LogSize }))
	gauge("batches_pending", "Batches journaled and not opened yet.", read(func(c client.Status) uint64 { return c.Pending }))
	gauge("batches_dead", "Batches that failed to open three times.", read(func(c client.Status) uint64 { return c.Dead }))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}
