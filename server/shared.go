package server

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

// sharedMigrations are the schema of a server whose database is PostgreSQL: the journal is in it, too.
func sharedMigrations() []sqldb.Migration { return slices.Concat(migrations(), pgjournal.Migrations()) }

// migrations are the schema of this server's database.
func (c Config) migrations() []sqldb.Migration {
	if c.Database == "" {
		return migrations()
	}
	return sharedMigrations()
}

// openSharedJournal opens the journal in PostgreSQL, for the consumers that this process may be; none: it only appends.
func openSharedJournal(dir string, c Config, log *slog.Logger, consumers ...string) (journal.Store, error) {
	url, err := c.database(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return pgjournal.Open(ctx, pgjournal.Config{URL: url, Consumers: consumers, Retention: time.Duration(c.Retention.Batches), Log: log})
}

// alone runs a service of which a server has one at a time, until ctx ends: it stands by until its turn comes. On SQLite it is always its turn.
// A process that loses its place ends the service at once, and with it itself: its service manager starts it again, as a standby.
func (s *Server) alone(ctx context.Context, name string, run func(context.Context) error) error {
	if s.cfg.Database == "" {
		return run(ctx)
	}
	s.log.Info("stands by", "service", name)
	err := s.db.Singleton(ctx, name, func(ctx context.Context, p sqldb.Place) error {
		s.log.Info("runs", "service", name, "generation", p.Generation())
		return run(ctx)
	})
	if ctx.Err() != nil && err != nil { // ended while it stood by
		return nil
	}
	return err
}

// sessions fence a gateway's sessions across the nodes; nil where there is one process.
func (s *Server) sessions() ingest.Sessions {
	if s.cfg.Database == "" {
		return nil
	}
	return registry.NewSessions(s.db)
}

// view is the registry as an ingest node's login sees it.
type view struct {
	*registry.View
	db *sqldb.DB
}

// openView opens it.
func openView(dir string, c Config) (*view, error) {
	url, err := c.database(dir)
	if err != nil {
		return nil, err
	}
	db, err := sqldb.OpenBeside(url, registry.Migrations()...)
	if err != nil {
		return nil, err
	}
	return &view{registry.NewView(db), db}, nil
}

func (v *view) sessions() ingest.Sessions { return registry.NewSessions(v.db) }
