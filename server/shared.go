package server

import (
	"context"
	"errors"
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

// againTime is how long a process that lost its place, or cannot ask for one, waits before it stands by again.
const againTime = time.Second

// alone runs a service of which a server has one at a time, until ctx ends: it stands by until its turn comes, and again when it has lost its
// place, with the database's connection. run must be fit to be called again. On SQLite it is always its turn.
func (s *Server) alone(ctx context.Context, name string, run func(context.Context) error) error {
	if s.cfg.Database == "" {
		return run(ctx)
	}
	var told time.Time
	for {
		s.log.Info("stands by", "service", name)
		err := s.db.Singleton(ctx, name, func(ctx context.Context, p sqldb.Place) error {
			told = time.Time{}
			s.log.Info("runs", "service", name, "generation", p.Generation())
			return run(ctx)
		})
		switch {
		case ctx.Err() != nil && (errors.Is(err, sqldb.ErrSuperseded) || errors.Is(err, ctx.Err()) || sqldb.Environment(err)):
			return nil
		case !errors.Is(err, sqldb.ErrSuperseded) && !sqldb.Environment(err):
			return err
		case time.Since(told) >= tellInterval:
			told = time.Now()
			s.log.Error("the service rests until the database answers", "service", name, "error", err)
		}
		pause(ctx, againTime)
	}
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
