package server

import (
	"context"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/api"
	"wardlink/server/journal"
)

// openClock must come before anything of this start is journaled.
func (s *Server) openClock() error {
	last, err := lastEntry(s.journal)
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	s.clock, err = api.OpenClock(api.ClockConfig{
		Path: clockFile(s.dir), Key: s.keys.Config, LastEntry: last, Log: s.log,
		Event: func(ev audit.Event) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			s.own(ctx, ev)
		},
	})
	return err
}

// lastEntry is the time of the journal's last entry; zero when it has none that can be read.
func lastEntry(j journal.Store) (time.Time, error) {
	entries, err := j.Read(j.Stats().Committed, 1)
	if err != nil || len(entries) == 0 {
		return time.Time{}, err
	}
	e := entries[len(entries)-1]
	if e.Kind == journal.KindPublish {
		row, err := audit.DecodeRow(e.Head)
		if err != nil {
			return time.Time{}, nil // the log's writer reports it
		}
		return time.UnixMilli(row.Received), nil
	}
	ev, err := audit.DecodeEvent(e.Head)
	if err != nil {
		return time.Time{}, nil
	}
	return time.UnixMilli(ev.Time), nil
}
