package server

import (
	"context"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"wardlink/server/alerts"
	"wardlink/server/alerts/watch"
	"wardlink/server/node"
)

// openAlerts opens the alerts and their watchers.
func (s *Server) openAlerts() (err error) {
	if s.alerts, err = alerts.New(alerts.Config{
		DB: s.db, Outbox: s.outbox, NextID: s.journal.NextID, Server: s.cfg.TrustDomain, Settings: s.cfg.Alerts, Log: s.log,
	}); err != nil {
		return err
	}
	s.watch, err = watch.New(watch.Config{
		Alerts: s.alerts, Memory: s.alerts, Ingest: s.everywhere(), Registry: s.registry, Records: s.records, Retention: s.records, Journal: s.journal,
		Log: s.log, LogStats: s.logStats, Limits: s.cfg.Alerts.Limits, BackupStamp: s.cfg.Alerts.BackupStamp,
		Terms: s.watchedTerms, Configurations: s.watchedConfigs,
		CA: func() watch.CA {
			h := s.authority.Health()
			return watch.CA{Well: h.Well, Since: h.Since, Reason: h.Reason}
		},
		Vouched:  func() bool { return s.clock.State().Vouched },
		Unproven: s.unproven, Logins: s.nodeLogins,
		Places: append([]watch.Place{{Name: "server directory", Path: s.dir}, {Name: "log", Path: logDir(s.dir)}}, s.storePlaces()...),
	})
	return err
}

// nodeLogins says what is wrong with the nodes' logins.
func (s *Server) nodeLogins(ctx context.Context) (map[string]string, error) {
	nodes, err := node.List(ctx, s.db)
	if err != nil {
		return nil, err
	}
	var logins []string
	for _, n := range nodes {
		logins = append(logins, n.Login)
	}
	faults, err := s.db.LoginFaults(ctx, logins)
	out := make(map[string]string)
	for _, n := range nodes {
		if fault := faults[n.Login]; fault != "" {
			out[n.Name] = n.Login + ": " + fault
		}
	}
	return out, err
}

// storePlaces are where journal and database lie. PostgreSQL's disks are watched by whoever runs it: it may be on another machine.
func (s *Server) storePlaces() []watch.Place {
	if s.cfg.Database != "" {
		return nil
	}
	return []watch.Place{{Name: "database", Path: filepath.Dir(databaseFile(s.dir))}, {Name: "journal", Path: journalDir(s.dir)}}
}

// runAlerts watches and delivers until ctx ends.
func (s *Server) runAlerts(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.watch.Run(ctx) })
	g.Go(func() error { return s.alerts.Run(ctx) })
	return g.Wait()
}
