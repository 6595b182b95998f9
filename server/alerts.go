package server

import (
	"context"

	"wardlink/server/alerts"
)

func (s *Server) openAlerts() (*alerts.Alerts, error) {
	return alerts.New(alerts.Config{
		DB: s.db, Outbox: s.outbox, NextID: s.journal.NextID, Server: s.cfg.TrustDomain, Settings: s.cfg.Alerts, Log: s.log,
	})
}

// runAlerts watches and delivers until ctx ends.
func (s *Server) runAlerts(ctx context.Context) error { return s.alerts.Run(ctx) }
