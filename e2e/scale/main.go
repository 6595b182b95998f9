// Command scale measures what records do at size, with the product's own parts: sealed batches as agents make them, the journal, the log's
// writer, records, and the FHIR server behind mutual TLS.
//
//	scale keepup   batches are journaled at a rate while records open and store them: does the lag stay flat?
//	scale fill     makes a database with many observations, by the same way
//	scale search   asks a filled database as a hospital does
//	scale full     both
//	scale dispose  disposes of a part of a filled database while a hospital asks it and somebody writes
//
// Each prints a table, with goals where there are any. Machines are noisy: CPU figures of one run say more than its rates.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"syscall"
	"time"

	"wardlink/e2e/load"
	"wardlink/internal/pgserver"
)

// plan is what the command line says.
type plan struct {
	dir      string // of the database, the journal and the log
	database string // sqldb.Config.Path; "" is a file in dir
	gateways int
	rate     int // batches a second; 0: as fast as they are settled
	length   time.Duration
	messages int // of a batch
	total    int // observations to fill in
	spacing  time.Duration
	requests int
	cold     bool
	postgres bool
	json     string
	profile  string
}

func main() { load.Command("scale", run) }

func run(ctx context.Context, args []string) (err error) {
	commands := map[string]func(context.Context, plan) error{"keepup": keepup, "fill": fill, "search": search, "full": full, "dispose": dispose}
	if len(args) == 0 || commands[args[0]] == nil {
		return fmt.Errorf("expected one of keepup, fill, search, full, dispose")
	}
	p := plan{}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.StringVar(&p.dir, "dir", "", "directory for what is measured; it is kept (default: a temporary one, removed)")
	f.StringVar(&p.database, "database", "", "a database's file or postgres:// URL (default: SQLite in the directory)")
	f.IntVar(&p.gateways, "gateways", 500, "gateways, each with one monitor and one patient")
	f.IntVar(&p.rate, "rate", 0, "keepup: batches journaled a second; 0 journals all of them first and then measures how fast they are settled")
	f.DurationVar(&p.length, "length", 2*time.Minute, "keepup: how long at that rate; at rate 0 a batch a second of each gateway for as long is settled")
	f.IntVar(&p.messages, "messages", 1, "messages of a batch: 1 is a monitor that says something each second, tens are a backlog")
	f.IntVar(&p.total, "observations", 10_000_000, "fill: observations")
	f.DurationVar(&p.spacing, "spacing", time.Second, "fill: time between two messages of a monitor")
	f.IntVar(&p.requests, "requests", 500, "search: requests of each kind")
	f.BoolVar(&p.cold, "cold", false, "search: drop the system's cache of files before each tenth request (needs root)")
	f.BoolVar(&p.postgres, "postgres", false, "on a PostgreSQL server of its own, of the distribution's packages, in the directory, which it does not outlive")
	f.StringVar(&p.json, "json", "", "keepup: add the run to this file, for simulate --measured")
	f.StringVar(&p.profile, "profile", "", "write a CPU profile to this file")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if p.gateways < 1 || p.messages < 1 || p.rate < 0 || p.total < 1 || p.requests < 1 || p.length < time.Second || p.spacing < time.Millisecond {
		return fmt.Errorf("gateways, messages, observations, requests, length and spacing must be positive, and rate not negative")
	}
	if p.dir == "" {
		if p.dir, err = os.MkdirTemp("", "wardlink-scale-"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(p.dir) }()
	}
	if p.database == "" {
		p.database = filepath.Join(p.dir, "wardlink.db")
	}
	if p.postgres {
		// The server runs as a user of its own where this runs as root, and must be let through.
		if err := errors.Join(os.MkdirAll(p.dir, 0o700), os.Chmod(p.dir, 0o711)); err != nil {
			return err
		}
		server, startErr := pgserver.New(pgserver.Config{Base: p.dir, Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "2GB"}})
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, server.Close()) }()
		p.database = server.URL("postgres", pgserver.Superuser)
	}
	if p.profile != "" {
		out, err := os.Create(p.profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer func() { pprof.StopCPUProfile(); _ = out.Close() }()
	}
	return commands[args[0]](ctx, p)
}

// row prints a line of the table.
func row(what, figure, goal string) { fmt.Printf("%-64s %16s   %s\n", what, figure, goal) }

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// quantile of values; 0 of none.
func quantile[T int64 | float64 | time.Duration](v []T, q float64) T {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[min(int(q*float64(len(v))), len(v)-1)]
}

// cpu is the processor time that this process has taken.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// sizeOf sums the files below a directory whose names match.
func sizeOf(dir string, match func(path string) bool) (n int64) {
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && match(path) {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}
