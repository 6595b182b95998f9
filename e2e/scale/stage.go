package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/internal/secret"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
	"wardlink/telemetry/seal"
)

var pseudonym = secret.Bytes("the pseudonym key of what is measured")

// stage is a server's inner half: everything behind the endpoint.
type stage struct {
	plan
	db       *sqldb.DB
	outbox   *sqldb.Outbox
	journal  *journal.Journal
	registry *registry.Registry
	key      seal.PrivateKey
	log      *slog.Logger
	ward     []*monitor
	closers  []func() error
}

var operator = audit.Actor{ID: "spiffe://" + trustDomain + "/operator/scale"}

func open(p plan) (s *stage, err error) {
	s = &stage{plan: p, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return s, err
	}
	migrations := slices.Concat(sqldb.OutboxMigrations(), registry.Migrations(), records.Migrations())
	if err := sqldb.Create(p.database, migrations...); err != nil && !errors.Is(err, sqldb.ErrExists) {
		return s, err
	}
	if s.db, err = sqldb.Open(p.database, migrations...); err != nil {
		return s, err
	}
	s.closers = append(s.closers, s.db.Close)
	// The journal and the log are made afresh: cursors of a former run are of another journal.
	if err := errors.Join(os.RemoveAll(s.journalDir()), os.RemoveAll(s.logDir())); err != nil {
		return s, err
	}
	c := journal.Config{Dir: s.journalDir(), Consumers: []string{"log", records.Consumer}, Log: s.log}
	if err := journal.Create(c); err != nil {
		return s, err
	}
	if s.journal, err = journal.Open(c); err != nil {
		return s, err
	}
	s.closers = append(s.closers, s.journal.Close)
	if s.outbox, err = sqldb.NewOutbox(s.db, s.journal, nil); err != nil {
		return s, err
	}
	if s.registry, err = registry.New(registry.Config{DB: s.db, Outbox: s.outbox}); err != nil {
		return s, err
	}
	s.key, err = seal.GenerateKey()
	return s, err
}

func (s *stage) journalDir() string { return filepath.Join(s.dir, "journal") }
func (s *stage) logDir() string     { return filepath.Join(s.dir, "log") }

func (s *stage) close() (err error) {
	for _, c := range slices.Backward(s.closers) {
		err = errors.Join(err, c())
	}
	return err
}

// enrol makes the gateways, enters them with their keys, and brings their sealing records.
func (s *stage) enrol(ctx context.Context) error {
	progress("%d gateways enrol", s.gateways)
	var manifest []registry.Gateway
	for i := range s.gateways {
		m, err := newMonitor(i, s.key.Public())
		if err != nil {
			return err
		}
		s.ward = append(s.ward, m)
		manifest = append(manifest, registry.Gateway{ID: m.gateway, EKs: [][32]byte{sha256.Sum256([]byte(m.gateway))}, Site: "main", Ward: "ICU-3"})
	}
	if _, err := s.registry.Import(ctx, operator, "", manifest); err != nil {
		return err
	}
	for _, m := range s.ward {
		k := registry.Key{Gateway: m.gateway, EK: sha256.Sum256([]byte(m.gateway)), SPKI: sha256.Sum256(m.public), Public: m.public,
			Serial: fmt.Sprintf("%x", m.epoch[:8]), NotAfter: time.Now().Add(24 * time.Hour)}
		if err := s.registry.AddKey(ctx, k); err != nil {
			return err
		}
		e, err := m.bring(s.journal.NextID())
		if err != nil {
			return err
		}
		if err := s.journal.Append(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// submit journals a batch; its error comes to errs.
func (s *stage) submit(gateway string, frame []byte, flying *sync.WaitGroup, errs chan<- error) error {
	e, err := publish(s.journal.NextID(), gateway, frame)
	if err != nil {
		return err
	}
	flying.Add(1)
	return s.journal.Submit(e, func(_ uint64, err error) {
		flying.Done()
		if err != nil {
			select {
			case errs <- err:
			default:
			}
		}
	})
}

// consume runs the consumers of the journal until the function that it gives is called, which gives their errors.
func (s *stage) consume(ctx context.Context, retention *records.Retention) (r *records.Records, stop func() error, err error) {
	r, err = records.New(records.Config{
		DB: s.db, Outbox: s.outbox, TrustDomain: trustDomain, Journal: s.journal, Registry: s.registry, Key: s.key, Pseudonym: pseudonym, Log: s.log,
		Retention: retention,
	})
	if err != nil {
		return nil, nil, err
	}
	origin := audit.Origin(trustDomain, 1)
	skey, _, err := translog.NewKey(origin)
	if err != nil {
		return nil, nil, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, nil, err
	}
	c := translog.Config{Dir: s.logDir(), Origin: origin, Signer: signer, Journal: s.journal, Log: s.log}
	if err := translog.Create(c); err != nil {
		return nil, nil, err
	}
	log, err := translog.Open(c)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 2)
	go func() { ended <- r.Run(ctx) }()
	go func() { ended <- log.Run(ctx) }()
	return r, func() error {
		cancel()
		return errors.Join(<-ended, <-ended, log.Close())
	}, nil
}

// databaseSizes are the bytes of the database and of its write-ahead log.
func (s *stage) databaseSizes(ctx context.Context) (database, free, wal int64, err error) {
	database, free, err = s.db.Sizes(ctx)
	wal = sizeOf(s.dir, func(path string) bool { return strings.HasSuffix(path, "-wal") })
	return database, free, wal, err
}
