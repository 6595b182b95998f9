package server

import (
	"context"
	"errors"
	"log/slog"

	"wardlink/server/journal"
)

// openSharedJournal opens the journal in PostgreSQL.
func openSharedJournal(string, Config, *slog.Logger) (journal.Store, error) {
	return nil, errors.New("the journal on PostgreSQL is not built yet")
}

// alone runs a service of which a server has one at a time, until ctx ends.
func (s *Server) alone(ctx context.Context, _ string, run func(context.Context) error) error {
	return run(ctx)
}

// openView opens the registry as an ingest node's login sees it.
func openView(string, Config) (*view, error) { return nil, errors.New("not built yet") }
