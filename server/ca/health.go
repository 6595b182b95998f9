package ca

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// When the CA calls itself unwell. It must not be talked into it: what counts against it is its own probe, and requests of gateways
// that had proven their TPM and were known to the registry; what a stranger sends cannot fail here.
const (
	unwellProbes   = 2                // probes in a row that failed; the first of a process counts alone
	unwellRequests = 3                // issues in a row that failed by a fault of ours
	forgetRequests = 15 * time.Minute // after which failed issues no longer count: gateways ask again within five minutes
	probeTime      = 20 * time.Second
)

// Health is the CA's judgement of itself.
type Health struct {
	Well   bool
	Since  time.Time // since when it is so
	Reason string    // why it is not well; for operators
}

// health gathers what the judgement is made of.
type health struct {
	mu       sync.Mutex
	probed   bool
	probes   int // that failed in a row
	probeErr error
	failures int // issues that failed in a row
	failed   time.Time
	issueErr error
	well     bool
	since    time.Time
}

// Health says whether the CA can issue now. Before the first Probe nothing is known, and it is well.
func (c *CA) Health() Health {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	return c.health.judge(c.cfg.Now())
}

// judge is the whole judgement. Under mu.
func (h *health) judge(now time.Time) Health {
	if h.failures > 0 && now.Sub(h.failed).Abs() >= forgetRequests {
		h.failures, h.issueErr = 0, nil
	}
	var reason string
	switch {
	case h.probes >= unwellProbes:
		reason = h.probeErr.Error()
	case h.failures >= unwellRequests:
		reason = fmt.Sprintf("%d certificates in a row could not be issued: %v", h.failures, h.issueErr)
	}
	if well := reason == ""; well != h.well || h.since.IsZero() {
		h.well, h.since = well, now
	}
	return Health{Well: h.well, Since: h.since, Reason: reason}
}

// issued notes the outcome of an issue for a gateway that had proven itself. A peer that hung up, which is in the request's ctx, says
// nothing about the CA, whatever failed by that.
func (h *health) issued(ctx context.Context, now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.failures, h.issueErr = 0, nil
	case errors.Is(ctx.Err(), context.Canceled), errors.Is(err, context.Canceled):
	default:
		h.failures, h.failed, h.issueErr = h.failures+1, now, err
	}
	h.judge(now)
}

func (h *health) look(now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.probes, h.probeErr = 0, nil
	case !h.probed:
		h.probes, h.probeErr = unwellProbes, err
	default:
		h.probes, h.probeErr = h.probes+1, err
	}
	h.probed = true
	h.judge(now)
}

// Probe looks whether the CA could issue a certificate now, without issuing one: its two keys sign, neither CA has ended, its tables take
// a nonce, and what it needs of registry and journal works. Who runs the CA calls it every half minute.
func (c *CA) Probe(ctx context.Context) Health {
	limited, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	err := c.probe(limited)
	if ctx.Err() == nil {
		c.health.look(c.cfg.Now(), err)
	}
	return c.Health()
}

func (c *CA) probe(ctx context.Context) error {
	by := c.issuer.Load()
	if err := c.CheckIssuer(by.cert, by.key); err != nil {
		return fmt.Errorf("issuing CA: %w", err)
	}
	if !c.cfg.Now().Before(c.cfg.Attestation.NotAfter) {
		return errors.New("the attestation CA has ended; end every process with the service ca on this directory, then start them: the first makes a new one")
	}
	if c.cfg.Now().Before(c.cfg.Attestation.NotBefore) {
		return errors.New("the attestation CA has not begun, the clock was ahead when it was made; end every process with the service ca on this directory, then start them: the first makes a new one")
	}
	if err := signs(c.cfg.Attestation, c.cfg.AttestationKey); err != nil {
		return fmt.Errorf("attestation CA: %w", err)
	}
	if err := c.open(); err != nil {
		return err
	}
	if err := c.authority.Load().store.Probe(ctx); err != nil {
		return fmt.Errorf("the CA's tables: %w", err)
	}
	if c.cfg.Needs != nil {
		return c.cfg.Needs(ctx)
	}
	return nil
}
