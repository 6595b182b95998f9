package agent

import (
	"context"
	"time"

	"wardlink/internal/spiffe"
)

// The waits of a trial.
const (
	trialPeriod  = 90 * time.Second // from prepared to confirmed or reverted
	trialPrepare = 3                // a third of it is for the new servers to answer at all
	trialDial    = 10 * time.Second // of one server, while preparing
	configRetry  = 10 * time.Second // until a step that could not be stored is tried again
)

// runConfig takes the hospital's configurations through their steps, one at a time, until ctx ends. It judges by the boot clock, which no
// wall clock moves and which goes on while the gateway sleeps.
func (a *Agent) runConfig(ctx context.Context) error {
	retry := time.NewTicker(configRetry)
	defer retry.Stop()
	for ctx.Err() == nil {
		if _, gateway, err := a.credentials(); err == nil {
			some, err := a.config.take(gateway)
			if err != nil {
				a.log.Error("a configuration waits", "error", err)
			} else if some {
				a.try(ctx)
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-a.config.changed:
		case <-retry.C:
		}
	}
	return nil
}

// try takes the prepared document to its end. When ctx ends first, a document that was applied is reverted by the next start.
func (a *Agent) try(ctx context.Context) {
	period := a.cfg.trialPeriod()
	look := min(time.Second, period/100)
	began := a.intake.clock.mono()
	left := func() time.Duration { return period - (a.intake.clock.mono() - began) }
	servers, others := a.config.nextServers()
	if others && !a.answers(ctx, a.andKit(servers, len(servers) == 0), look, func() bool { return left() > period-period/trialPrepare }) {
		if ctx.Err() == nil {
			a.config.revert(revertedNoServer)
		}
		return
	}
	if err := a.config.apply(); err != nil {
		a.log.Error("a configuration cannot be applied", "error", err)
		a.config.revert(revertedDisk)
		return
	}
	route := uint64(0)
	if others {
		route = a.link.Move()
	}
	if a.proven(ctx, route, look, left) || ctx.Err() != nil {
		return
	}
	a.config.revert(revertedNoProof)
	if others {
		a.link.Move() // back
	}
}

// proven waits for the proof that the hospital is reached under the document on trial, and confirms it: a session whose connection was made
// under it, and on that session's word (its PUBACK) a report that was made after the session had begun.
func (a *Agent) proven(ctx context.Context, route uint64, look time.Duration, left func() time.Duration) bool {
	tick := time.NewTicker(look)
	defer tick.Stop()
	asked, first := false, uint64(0)
	for left() > 0 {
		if s := a.link.Status(); !asked && s.Connected && s.Route >= route {
			first, asked = a.reports.ask(), true
		}
		if asked && a.reports.acknowledged(first) {
			err := a.config.confirm()
			if err == nil {
				return true
			}
			a.log.Error("a configuration that holds is not confirmed", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return false
}

// answers tells whether one of the servers proves itself as this hospital's, before the connection that stands is risked for them.
func (a *Agent) answers(ctx context.Context, servers []string, again time.Duration, more func() bool) bool {
	for more() && ctx.Err() == nil {
		for _, server := range servers {
			err := a.greet(ctx, server)
			if err == nil {
				return true
			}
			a.log.Warn("a server of the new configuration does not answer", "server", server, "error", err)
			if !more() {
				return false
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * again):
		}
	}
	return false
}

// greet makes a TLS connection to one server and ends it.
func (a *Agent) greet(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, trialDial)
	defer cancel()
	conn, err := a.way.Secure(ctx, server, spiffe.ServerTLSAt(a.kit.Pool(), a.serverID(), "http/1.1", a.time.moment))
	if err != nil {
		return err
	}
	return conn.Close()
}
