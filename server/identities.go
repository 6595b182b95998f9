package server

import (
	"context"
	"net"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/node"
)

// useInterval is how often last uses of identities are written.
const useInterval = time.Minute

// writeUses writes last uses of identities until ctx ends, and once more then. A failure is told by those whose writes matter.
func (s *Server) writeUses(ctx context.Context) error {
	tick := time.NewTicker(useInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			_ = s.registry.WriteUses(last)
			return nil
		case <-tick.C:
			if err := s.registry.WriteUses(ctx); err != nil {
				s.log.Debug("last uses of identities are not written yet", "error", err)
			}
		}
	}
}

// hospitalURL is where the hospital's systems reach the server.
func (s *Server) hospitalURL() string {
	_, port, err := net.SplitHostPort(s.cfg.Hospital)
	if err != nil {
		return "" // Check has seen to it
	}
	return "https://" + net.JoinHostPort(s.cfg.Names[0], port)
}

// identities are those of the server itself: its nodes, its services' certificates, and its keys.
func (s *Server) identities(ctx context.Context) (out []client.Identity, err error) {
	nodes, err := node.List(ctx, s.db)
	if err != nil {
		return nil, err
	}
	heard := s.nodes.reports.Heard()
	for _, n := range nodes {
		one := client.Identity{
			Kind: string(spiffe.Node), Name: n.Name, Owner: s.cfg.TrustDomain, Scope: "takes telemetry in; reads who is admitted", State: "active", Created: n.Added,
			Used: client.Use{Time: heard[n.Name].At}, Renewal: "itself, at half of its 30 days",
		}
		if !n.NotAfter.IsZero() {
			one.Expires, one.Next = n.NotAfter, n.NotBefore.Add(n.NotAfter.Sub(n.NotBefore)/2)
		}
		out = append(out, one)
	}
	terms, err := s.terms()
	if err != nil {
		return nil, err
	}
	for _, t := range terms {
		one := client.Identity{Kind: "server", Name: t.What + " " + t.Name, Owner: s.cfg.TrustDomain, Scope: "the server's own", State: "active", Used: client.Use{Untracked: true}, Serial: t.Serial, Renewal: t.Renewal}
		if t.NotBefore != nil && t.NotAfter != nil {
			one.Created, one.Expires, one.Next = *t.NotBefore, *t.NotAfter, t.NotBefore.Add(t.NotAfter.Sub(*t.NotBefore)/2)
		}
		out = append(out, one)
	}
	return out, nil
}
