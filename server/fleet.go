package server

import (
	"context"
	"net/http"
	"time"

	"wardlink/server/node"
)

// fleet is what the main process knows of its ingest nodes.
type fleet struct {
	changes *node.Changes
	reports *node.Reports
}

func newFleet() fleet { return fleet{node.NewChanges(), node.NewReports()} }

// everywhere are the sessions of this process and of all nodes.
func (s *Server) everywhere() node.Everywhere {
	return node.Everywhere{Server: s.ingest, Reports: s.nodes.reports}
}

// nodePort puts what nodes ask in front of what gateways ask.
func (s *Server) nodePort(next http.Handler) http.Handler {
	return node.NewPort(node.PortConfig{
		TrustDomain: s.cfg.TrustDomain, Roots: s.roots(), Names: s.cfg.Names,
		Get:   func(ctx context.Context, name string) (node.Node, error) { return node.Get(ctx, s.db, name) },
		Issue: s.ca.Issue,
		Documents: func(ctx context.Context, gateway string) ([]node.Document, error) {
			docs, err := s.documents(ctx, gateway)
			out := make([]node.Document, len(docs))
			for i, d := range docs {
				out[i] = node.Document{Doc: d.Doc, Body: d.Body}
			}
			return out, err
		},
		CA: func() (bool, time.Time) {
			h := s.ca.Health()
			return h.Well, h.Since
		},
		Changes: s.nodes.changes, Reports: s.nodes.reports, Refused: s.refused, Log: s.log,
	}, next)
}
