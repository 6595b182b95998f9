package ingest

import (
	"context"
	"sync/atomic"
)

// Sessions counts the sessions of all nodes of a cell, so that a gateway that comes back to another node ends its session at the first. Only a
// connection that has proven to be the gateway is counted: nobody else's takes a session over. Both methods may be called by many goroutines.
type Sessions interface {
	// Bump begins a gateway's next session and gives its generation, greater than that of every session of the gateway before. It is durable
	// when it returns. An error turns the gateway away: a session that other nodes do not know of could not be ended by them.
	Bump(ctx context.Context, gateway string) (generation int64, err error)
	// Passed gives those of the live sessions, generation by gateway, whose gateway has begun a later one. It is asked with each look at the
	// registry's revision, and an error counts as one of the registry: a node that cannot see for Limits.Blind ends all its sessions.
	Passed(ctx context.Context, live map[string]int64) (gateways []string, err error)
}

// oneNode is Sessions where there is no other node: the table of sessions is all there is to know.
type oneNode struct{ last atomic.Int64 }

func (n *oneNode) Bump(context.Context, string) (int64, error) { return n.last.Add(1), nil }

func (n *oneNode) Passed(context.Context, map[string]int64) ([]string, error) { return nil, nil }

// fence ends the sessions whose gateways have a later one at another node.
func (s *Server) fence(ctx context.Context) error {
	if _, alone := s.fences.(*oneNode); alone {
		return nil
	}
	live := make(map[string]int64)
	byGateway := make(map[string]*session)
	for _, c := range s.all() {
		c.mu.Lock()
		if c.generation != 0 && c.end == "" {
			live[c.id.gateway], byGateway[c.id.gateway] = c.generation, c
		}
		c.mu.Unlock()
	}
	if len(live) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.question())
	defer cancel()
	passed, err := s.fences.Passed(ctx, live)
	if err != nil {
		return err
	}
	for _, gateway := range passed {
		if c := byGateway[gateway]; c != nil {
			s.log.Info("gateway has a newer session at another node; this one ends", "gateway", gateway)
			c.stop(endTakeover, true)
		}
	}
	return nil
}
