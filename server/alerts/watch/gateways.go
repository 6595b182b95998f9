package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wardlink/server/alerts"
	"wardlink/server/registry"
)

// silent watches for gateways that were connected and have no session any more. Only those that are admitted count: one that is
// revoked is silent by intention.
type silent struct {
	cfg     Config
	start   time.Time
	heard   map[string]time.Time
	before  map[string]bool // an alert of the former life is open
	written time.Time
}

const (
	writeHeard  = time.Minute
	forgetHeard = 90 * 24 * time.Hour
)

func newSilent(cfg Config, start time.Time) *silent { return &silent{cfg: cfg, start: start} }

func (s *silent) look(ctx context.Context, now time.Time) ([]alerts.Condition, error) {
	if s.heard == nil {
		heard, err := s.cfg.Memory.Heard(ctx)
		if err != nil {
			return nil, err
		}
		s.heard, s.before = heard, make(map[string]bool)
		for gateway := range heard {
			s.before[gateway] = s.cfg.Alerts.Open(alerts.GatewaySilent, gateway)
		}
	}
	for _, session := range s.cfg.Ingest.Sessions() {
		s.heard[session.Gateway], s.before[session.Gateway] = now, false
	}
	maps.DeleteFunc(s.heard, func(_ string, at time.Time) bool { return now.Sub(at) > forgetHeard })
	if now.Sub(s.written) >= writeHeard || now.Before(s.written) {
		fresh := make(map[string]time.Time)
		for gateway, at := range s.heard {
			if at.After(s.written) {
				fresh[gateway] = at
			}
		}
		// A failure only costs what a restart remembers; the database has a watcher of its own.
		if len(fresh) == 0 || s.cfg.Memory.SetHeard(ctx, fresh) == nil {
			s.written = now
		}
	}
	return s.conditions(ctx, now)
}

func (s *silent) conditions(ctx context.Context, now time.Time) (out []alerts.Condition, err error) {
	limit := s.cfg.Limits.GatewaySilent
	for _, gateway := range slices.Sorted(maps.Keys(s.heard)) {
		at := s.heard[gateway]
		// While the server did not run nobody could be heard; what was an alert before stays one.
		from := at
		if from.Before(s.start) && !s.before[gateway] {
			from = s.start
		}
		if now.Sub(from) < limit {
			continue
		}
		_, err := s.cfg.Registry.Admit(ctx, gateway)
		if errors.Is(err, registry.ErrUnknown) || errors.Is(err, registry.ErrNotActive) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c := alerts.Condition{Subject: gateway, Detail: map[string]string{"last_heard": rfc(at), "silent": rough(now.Sub(at))}}
		if now.Sub(from) >= 6*limit {
			c.Severity = alerts.Critical
		}
		if out = append(out, c); len(out) == maxListed {
			break
		}
	}
	return out, nil
}

// quarantineLook says who booted something unknown, and what that was.
func quarantineLook(r Registry) look {
	return func(ctx context.Context, _ time.Time) (out []alerts.Condition, err error) {
		held, err := r.Quarantines(ctx)
		for _, gateway := range slices.Sorted(maps.Keys(held)) {
			detail := held[gateway].Mismatch.Detail()
			detail["since"] = rfc(held[gateway].Since)
			if out = append(out, alerts.Condition{Subject: gateway, Detail: detail}); len(out) == maxListed {
				break
			}
		}
		return out, err
	}
}

func deadLook(r Records) look {
	return func(ctx context.Context, _ time.Time) (out []alerts.Condition, err error) {
		list, err := r.DeadByGateway(ctx, maxListed)
		for _, d := range list {
			out = append(out, alerts.Condition{Subject: d.Gateway, Detail: map[string]string{
				"batches": fmt.Sprint(d.Batches), "oldest": rfc(d.Oldest), "reason": d.Reason,
			}})
		}
		return out, err
	}
}

// gapLook says of whom batches are missing for longer than a while: a number may be on its way.
func gapLook(r Records, age time.Duration) look {
	return func(ctx context.Context, now time.Time) (out []alerts.Condition, err error) {
		list, err := r.GapsByGateway(ctx, now.Add(-age), maxListed)
		for _, g := range list {
			known := "the gateway has not reported since"
			if g.Firm {
				known = "the gateway reports that it does not have them"
			}
			out = append(out, alerts.Condition{Subject: g.Gateway, Detail: map[string]string{
				"batches": fmt.Sprint(g.Batches), "since": rfc(g.Since), "known": known,
			}})
		}
		return out, err
	}
}

// lossTime is how long a loss is an alert: it cannot be mended, so that it would stand for ever. The account and the log keep it.
const lossTime = 24 * time.Hour

// lossLook says who lost what within a day, by its own reports.
func lossLook(r Records) look {
	return func(ctx context.Context, now time.Time) (out []alerts.Condition, err error) {
		list, err := r.LossesByGateway(ctx, now.Add(-lossTime), maxListed)
		for _, l := range list {
			batches := fmt.Sprint(l.Batches)
			if l.AtMost {
				batches = "at most " + batches
			}
			out = append(out, alerts.Condition{Subject: l.Gateway, Detail: map[string]string{
				"batches": batches, "lanes": l.Lanes, "noticed": rfc(l.Noticed),
			}})
		}
		return out, err
	}
}

const (
	parkedTime = 24 * time.Hour  // how long a refusal is an alert when the gateway says nothing about it
	parkedLag  = 5 * time.Minute // a report is about a refusal when it came so much later
)

// parkedLook takes the gateway's word for what it has parked, and the server's own refusals until that word comes: the agent of a
// gateway whose every batch is refused cannot report.
func parkedLook(i Ingest, r Records) look {
	return func(ctx context.Context, now time.Time) (out []alerts.Condition, err error) {
		reports, err := r.ParkedByReport(ctx)
		if err != nil {
			return nil, err
		}
		details := make(map[string]map[string]string)
		for gateway, p := range reports {
			if p.Batches > 0 {
				details[gateway] = map[string]string{"parked": fmt.Sprint(p.Batches), "reported": rfc(p.Received)}
			}
		}
		for gateway, p := range i.RefusedBatches() {
			if now.Sub(p.Last) >= parkedTime || details[gateway] == nil && reports[gateway].Received.Sub(p.Last) >= parkedLag {
				continue
			}
			if details[gateway] == nil {
				details[gateway] = make(map[string]string)
			}
			details[gateway]["refused"], details[gateway]["last"], details[gateway]["reason"] = fmt.Sprint(p.Count), rfc(p.Last), p.Reason
		}
		for _, gateway := range slices.Sorted(maps.Keys(details)) {
			out = append(out, alerts.Condition{Subject: gateway, Detail: details[gateway]})
		}
		return out, nil
	}
}

// certificateLook says whose certificate is past percent of its life without renewal. The agent renews at half of it.
func certificateLook(r Registry, percent int) look {
	return func(ctx context.Context, now time.Time) (out []alerts.Condition, err error) {
		list, err := r.Certificates(ctx)
		for _, c := range list {
			life := c.NotAfter.Sub(c.NotBefore)
			used := now.Sub(c.NotBefore)
			if life <= 0 || used < life*time.Duration(percent)/100 {
				continue
			}
			one := alerts.Condition{Subject: c.Gateway, Detail: map[string]string{"not_after": rfc(c.NotAfter)}}
			if used >= life*9/10 {
				one.Severity = alerts.Critical
			}
			if out = append(out, one); len(out) == maxListed {
				break
			}
		}
		return out, err
	}
}

func refusalsLook(i Ingest, most int) look {
	return func(context.Context, time.Time) (out []alerts.Condition, err error) {
		rates := i.RefusalRates()
		for _, subject := range slices.Sorted(maps.Keys(rates)) {
			if r := rates[subject]; r.Count >= uint64(most) {
				out = append(out, alerts.Condition{Subject: subject, Detail: map[string]string{"per_minute": fmt.Sprint(r.Count), "reason": r.Reason}})
			}
		}
		return out, nil
	}
}

func rfc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// rough is a span without what nobody needs.
func rough(d time.Duration) string {
	if d >= time.Minute {
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.Round(time.Second).String()
}
