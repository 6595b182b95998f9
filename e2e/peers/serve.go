package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // on a Unix socket of this process, for 'where the time goes'
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/e2e/load"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/keys"
	"wardlink/server/translog"
)

// serve is a process of the product's ingest service as wardlink-server runs it: registry, journal, endpoint, and the log's writer
// beside them. What opens the batches (records) and serves the hospital is another service and not in it. The journal is the one of the
// directory or in PostgreSQL; with sinkNone nothing is stored, which is what the price of storing is judged by.
func serve(args []string) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	dir, addr, sink, debug := fs.String("dir", "", ""), fs.String("addr", "", ""), fs.String("sink", "", ""), fs.String("debug", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	k, err := keys.Open(*dir)
	if err != nil {
		return err
	}
	stores, err := load.OpenStores(*dir)
	if err != nil {
		return err
	}
	defer stores.Close()
	s := &site{dir: *dir, addr: *addr, keys: k, stores: stores}
	if *debug != "" {
		ln, err := net.Listen("unix", *debug)
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(ln, nil) }()
	}
	switch *sink {
	case sinkNone:
		return s.run(ctx, new(nowhere))
	case sinkJournal:
		return s.logged(ctx, stores.Journal)
	}
	j, err := openPG(ctx, *sink)
	if err != nil {
		return err
	}
	return errors.Join(s.logged(ctx, j), j.Close())
}

// What the served batches go to; anything else is the URL of a PostgreSQL database.
const (
	sinkNone    = "none"
	sinkJournal = "journal"
)

func openPG(ctx context.Context, url string) (*pgjournal.Journal, error) {
	return pgjournal.Open(ctx, pgjournal.Config{URL: url, Consumers: load.JournalConfig("").Consumers})
}

// site is one serving process.
type site struct {
	dir, addr string
	keys      *keys.Keys
	stores    *load.Stores
}

// logged serves with the log's writer beside the endpoint, and ends when the log has all that was journaled.
func (s *site) logged(ctx context.Context, j journal.Store) error {
	signer, err := note.NewSigner(s.keys.LogSigner)
	if err != nil {
		return err
	}
	log, err := translog.Open(translog.Config{Dir: filepath.Join(s.dir, "log"), Origin: signer.Name(), Signer: signer, Journal: j, Drain: time.Minute})
	if err != nil {
		return err
	}
	writing, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- log.Run(writing) }()
	err = s.run(ctx, j)
	end()
	return errors.Join(err, <-ended, log.Close())
}

// run serves until ctx ends and then drains.
func (s *site) run(ctx context.Context, j ingest.Journal) error {
	roots := x509.NewCertPool()
	roots.AddCert(s.keys.Root)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	srv := ingest.New(ingest.Config{Journal: j, Registry: s.stores.Registry, TrustDomain: load.Domain, Roots: roots, Log: log})
	cert, err := tls.LoadX509KeyPair(filepath.Join(s.dir, "server.pem"), filepath.Join(s.dir, "server.key"))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	config := &tls.Config{ // as server's gatewaysTLS
		MinVersion: tls.VersionTLS13, NextProtos: []string{"mqtt"}, SessionTicketsDisabled: true, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequestClientCert, ClientCAs: roots, VerifyConnection: srv.VerifyConnection,
	}
	sessions, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var polling, serving sync.WaitGroup
	polling.Go(func() { _ = srv.Run(ctx) })
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		raw, err := ln.Accept()
		if err != nil {
			break
		}
		serving.Go(func() {
			conn := tls.Server(raw, config)
			if conn.HandshakeContext(sessions) != nil {
				raw.Close()
				return
			}
			srv.ServeConn(sessions, conn, conn.ConnectionState())
		})
	}
	drain, cancel := context.WithTimeout(sessions, 10*time.Second)
	defer cancel()
	err = srv.Drain(drain)
	cut()
	serving.Wait()
	polling.Wait()
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	return nil
}

// nowhere stores nothing and says at once that it has.
type nowhere struct{ n atomic.Uint64 }

func (j *nowhere) NextID() (id audit.EventID) {
	n := j.n.Add(1)
	for i := range 8 {
		id[15-i] = byte(n >> (8 * i))
	}
	return id
}

func (j *nowhere) Submit(_ journal.Entry, done func(uint64, error)) error {
	done(j.n.Load(), nil)
	return nil
}

func (j *nowhere) Append(context.Context, ...journal.Entry) error { return nil }
