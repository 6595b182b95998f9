package server

import (
	"context"
	"fmt"
)

// alive goes the way of a publish without journaling one: the journal's committer must come round, and ingest's table of sessions must
// answer. That something cannot be written is no death: a new start mends no disk, and cutting a gateway off must stay possible.
func (s *Server) alive(ctx context.Context) (status string, err error) {
	if err := s.journal.Alive(ctx); err != nil {
		return "", err
	}
	sessions := len(s.ingest.Sessions())
	if err := s.ready(ctx); err != nil {
		return fmt.Sprintf("%d gateways connected; not ready: %v", sessions, err), nil
	}
	return fmt.Sprintf("%d gateways connected; ready", sessions), nil
}
