package server

import (
	"context"
	"crypto/x509"
	"net/http"
	"time"

	"wardlink/audit"
	"wardlink/server/ca"
	"wardlink/server/node"
)

// fleet is what the main process knows of its ingest nodes.
type fleet struct {
	changes *node.Changes
	reports *node.Reports
}

func newFleet() fleet { return fleet{node.NewChanges(), node.NewReports()} }

// authority is the CA, in this process or in others.
type authority interface {
	// Issue returns once the certificate is journaled; its leaf comes first.
	Issue(ctx context.Context, who audit.Actor, peer string, t ca.Template) ([]*x509.Certificate, error)
	Health() ca.Health
	// Certificates are the issuing and the attestation CA in use; nil: not known yet.
	Certificates() (issuing, attestation *x509.Certificate)
}

// everywhere are the sessions of this process and of all nodes.
func (s *Server) everywhere() node.Everywhere {
	return node.Everywhere{Server: s.ingest, Reports: s.nodes.reports}
}

// nodePort puts what nodes ask in front of what gateways ask.
func (s *Server) nodePort(next http.Handler) http.Handler {
	c := node.PortConfig{
		TrustDomain: s.cfg.TrustDomain, Roots: s.roots(), Names: s.cfg.Names,
		Get: func(ctx context.Context, name string) (node.Node, error) { return node.Get(ctx, s.db, name) },
		CA: func() (ca.Health, *x509.Certificate, *x509.Certificate) {
			issuing, attestation := s.authority.Certificates()
			return s.authority.Health(), issuing, attestation
		},
		Refused: s.refused, Log: s.log,
	}
	if s.ca != nil {
		c.Issue = s.ca.Issue
	}
	if s.parts.main() {
		c.Changes, c.Reports = s.nodes.changes, s.nodes.reports
		c.Certified = func(ctx context.Context, name string, from, until time.Time) error {
			return node.Certified(ctx, s.db, name, from, until)
		}
		c.Documents = func(ctx context.Context, gateway string) ([]node.Document, error) {
			docs, err := s.documents(ctx, gateway)
			out := make([]node.Document, len(docs))
			for i, d := range docs {
				out[i] = node.Document{Doc: d.Doc, Body: d.Body}
			}
			return out, err
		}
	}
	return node.NewPort(c, next)
}
