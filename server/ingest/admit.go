package ingest

import (
	"context"
	"errors"
	"time"

	"wardlink/server/registry"
)

// admit registers the session, cuts an older one of the same gateway, asks the registry and journals the opening. The session is
// registered before the registry is asked: a change after the answer finds it in the table. Where it would end another session, here or at
// another node, the registry is asked before that, too: a board that was replaced, or is not admitted otherwise, ends nobody's.
func (s *Server) admit(ctx context.Context, c *session) (code byte, reason string) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.Ask)
	defer cancel()
	s.mu.Lock()
	code, reason = s.full(c)
	_, alone := s.fences.(*oneNode)
	ends := !alone || s.sessions[c.id.gateway] != nil
	s.mu.Unlock()
	if reason != "" {
		return code, reason
	}
	var err error
	if ends {
		c.patiently(func() { _, err = s.registry.AdmitKey(ctx, c.id.gateway, c.id.key) })
		if code, reason := s.refusal(c, err); reason != "" {
			return code, reason
		}
	}
	older, code, reason := s.place(c)
	if reason != "" {
		return code, reason
	}
	if older != nil {
		older.stop(endTakeover, true)
		c.aside(func() {
			select { // so that its end is journaled before the new opening
			case <-older.done:
			case <-ctx.Done():
			}
		})
	}
	// Counted once the older one is gone and before the registry is asked: of two connections to two nodes the later one to prove itself stays.
	var generation int64
	c.aside(func() { generation, err = s.fences.Bump(ctx, c.id.gateway) })
	if err != nil {
		s.log.Error("session cannot be counted; a gateway is turned away", "gateway", c.id.gateway, "error", err)
		return connackUnavailable, reasonGeneration
	}
	c.mu.Lock()
	c.generation = generation
	c.mu.Unlock()
	c.patiently(func() { err = s.allow(ctx, c) })
	if code, reason := s.refusal(c, err); reason != "" {
		return code, reason
	}
	if c.id.late {
		var reason string
		c.patiently(func() { reason, err = s.pardon(ctx, c.id, time.Now()) })
		switch {
		case err != nil:
			s.log.Error("registry cannot be asked; a gateway is turned away", "gateway", c.id.gateway, "error", err)
			return connackUnavailable, reasonRegistry
		case reason != "":
			return connackDenied, reason
		}
		s.log.Warn("a certificate that has ended is admitted, since the CA cannot issue", "gateway", c.id.gateway, "not_after", c.id.notAfter)
	}
	if err := c.open(ctx); err != nil {
		s.log.Error("session is not journaled; the gateway is turned away", "gateway", c.id.gateway, "error", err)
		c.stop(endError, false)
		c.closed(ctx) // the opening may yet turn out to be durable
		return connackUnavailable, reasonJournal
	}
	s.metrics.opened.Inc()
	c.traffic.open()
	return connackAccepted, ""
}

// full says why there is no place for a session; "" when there is one. The caller holds mu.
func (s *Server) full(c *session) (code byte, reason string) {
	switch older := s.sessions[c.id.gateway]; {
	case s.draining:
		return connackUnavailable, reasonDraining
	case older == nil && len(s.sessions) >= s.limits.Sessions:
		return connackUnavailable, reasonSessions
	case s.overloaded.Load():
		return connackUnavailable, reasonOverload // an older session of the gateway goes on
	}
	return 0, ""
}

// place puts a session into the table, in the place of an older one of its gateway, which it gives. A reason is why it may not.
func (s *Server) place(c *session) (older *session, code byte, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	older = s.sessions[c.id.gateway]
	if code, reason = s.full(c); reason != "" {
		return nil, code, reason
	}
	if older != nil && c.rivals(older) {
		s.rates.rival(c.id.gateway, Rival{Live: older.peer, Peer: c.peer, Serial: c.id.serial})
		return nil, connackDenied, reasonRival
	}
	s.sessions[c.id.gateway] = c
	return older, 0, ""
}

// refusal makes an answer of the registry's to a gateway that may not connect, or not now; "" for one that may.
func (s *Server) refusal(c *session, err error) (code byte, reason string) {
	held, retired, window := (*registry.HeldError)(nil), (*registry.RetiredError)(nil), (*registry.WindowError)(nil)
	switch {
	case err == nil:
		return 0, ""
	case errors.Is(err, registry.ErrRevoked):
		return connackDenied, reasonRevoked
	case errors.As(err, &held) && held.State == registry.Suspended:
		return connackDenied, reasonSuspended
	case errors.As(err, &held):
		return connackDenied, reasonDecommissioned
	case errors.As(err, &retired):
		return connackDenied, reasonReplaced
	case errors.As(err, &window):
		return connackDenied, reasonWindow
	case denied(err):
		return connackDenied, reasonNotAdmitted
	}
	s.log.Error("registry cannot be asked; a gateway is turned away", "gateway", c.id.gateway, "error", err)
	return connackUnavailable, reasonRegistry
}

// allow asks the registry what the session may do, and again if look has stored an answer meanwhile, which may be newer than ours. Whatever changes
// after the last answer is look's to find.
func (s *Server) allow(ctx context.Context, c *session) error {
	for {
		c.mu.Lock()
		before := c.judged
		c.mu.Unlock()
		adm, err := s.registry.AdmitKey(ctx, c.id.gateway, c.id.key)
		if err != nil {
			return err
		}
		c.mu.Lock()
		latest := c.judged == before
		if latest {
			c.admit(adm)
		}
		c.mu.Unlock()
		if latest {
			return nil
		}
	}
}

// leave takes the session out of the table, unless a newer one has its place.
func (s *Server) leave(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[c.id.gateway] == c {
		delete(s.sessions, c.id.gateway)
	}
}

func denied(err error) bool {
	return errors.Is(err, registry.ErrUnknown) || errors.Is(err, registry.ErrNotActive)
}
