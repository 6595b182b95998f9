package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"wardlink/audit"
	"wardlink/internal/sdnotify"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/translog"
)

// openWorker makes the services of a process without ports.
func (s *Server) openWorker() error {
	if s.parts.Has(ServiceLog) {
		if err := s.openLog(); err != nil {
			return err
		}
	}
	if s.parts.Has(ServiceRecords) {
		return s.openRecords()
	}
	return nil
}

// openJournal opens the journal: segment files where the database is a file, else PostgreSQL.
func (s *Server) openJournal() (journal.Store, error) {
	switch {
	case s.cfg.Database == "":
		jc := journalConfig(s.dir)
		jc.Log, jc.Retention = s.log, time.Duration(s.cfg.Retention.Batches)
		return journal.Open(jc)
	case s.parts.enrols():
		return openSharedJournal(s.dir, s.cfg, s.log)
	}
	return openSharedJournal(s.dir, s.cfg, s.log, "log", "records")
}

func (s *Server) openRecords() (err error) {
	s.records, err = records.New(records.Config{
		TrustDomain: s.cfg.TrustDomain,
		DB:          s.db, Outbox: s.outbox, Journal: s.journal, Registry: s.registry, Key: s.keys.Records, Pseudonym: s.keys.Pseudonym, Log: s.log,
		Retention: s.cfg.Retention.records(), Files: s.journal,
	})
	return err
}

// openLog opens the log where this process alone can be its writer. On PostgreSQL another one may be: there it only looks whether this
// directory can be the log's, and runLog opens it when it is this process's turn.
func (s *Server) openLog() error {
	if s.cfg.Database == "" {
		l, err := s.newLog()
		if err != nil {
			return err
		}
		s.closers = append(s.closers, l.Close)
		s.translog.Store(l)
		return nil
	}
	if _, err := os.Stat(filepath.Join(logDir(s.dir), audit.CheckpointFile)); err != nil {
		return fmt.Errorf("log: %w; the log's files are one directory that every process with the service log sees: run it on the directory that init made, or on storage that both machines share", err)
	}
	return translog.Current(logDir(s.dir), s.journal)
}

func (s *Server) newLog() (*translog.Log, error) {
	signer, err := note.NewSigner(s.keys.LogSigner)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	return translog.Open(translog.Config{
		Dir: logDir(s.dir), Origin: signer.Name(), Signer: signer, Journal: s.journal, Log: s.log,
		PackAfter: time.Duration(s.cfg.Retention.Pack),
	})
}

// lockPatience is how long the log's directory may stay locked once this process has the database's word that it is the writer: the kernel
// gives a dead process's lock back at once, and a fenced one ends within it.
const lockPatience = 30 * time.Second

// runLog writes the log, until ctx ends, whenever no other process does.
func (s *Server) runLog(ctx context.Context) error {
	if l := s.translog.Load(); l != nil {
		return l.Run(ctx)
	}
	return s.alone(ctx, ServiceLog, func(ctx context.Context) error {
		var l *translog.Log
		for begun := time.Now(); ; pause(ctx, 100*time.Millisecond) {
			var err error
			if l, err = s.newLog(); err == nil {
				break
			}
			if !errors.Is(err, translog.ErrLocked) || time.Since(begun) > lockPatience || ctx.Err() != nil {
				return err
			}
		}
		s.translog.Store(l)
		defer s.translog.Store(nil)
		return l.Run(ctx)
	})
}

// runRecords opens batches, until ctx ends, whenever no other process does.
func (s *Server) runRecords(ctx context.Context) error {
	return s.alone(ctx, ServiceRecords, s.records.Run)
}

// logStats are the log's figures; where another process writes it, what can be seen of that.
func (s *Server) logStats() translog.Stats {
	if l := s.translog.Load(); l != nil {
		return l.Stats()
	}
	logged := s.journal.Cursor(ServiceLog)
	st := translog.Stats{JournalSeq: logged, Signed: logged}
	if text, err := os.ReadFile(filepath.Join(logDir(s.dir), audit.CheckpointFile)); err == nil {
		if cp, err := audit.UnverifiedCheckpoint(text); err == nil {
			st.Size, st.Published = cp.Size, cp.Size
		}
	}
	return st
}

// runWorker runs records, log or both, until ctx ends or one of them fails.
func (s *Server) runWorker(ctx context.Context) error {
	s.log.Info("worker started", "trust_domain", s.cfg.TrustDomain, "services", s.parts.String())
	g, ctx := errgroup.WithContext(ctx)
	if s.parts.Has(ServiceLog) {
		g.Go(func() error { return s.runLog(ctx) })
	}
	if s.parts.Has(ServiceRecords) {
		g.Go(func() error { return s.runRecords(ctx) })
	}
	g.Go(func() error { return s.db.Warden(ctx, s.log) })
	g.Go(func() error {
		sdnotify.Run(ctx, sdnotify.Service{Log: s.log, Alive: func(ctx context.Context) (string, error) { return s.parts.String(), s.journal.Alive(ctx) }})
		return nil
	})
	return g.Wait()
}
