// Command peers measures our ingest beside what a hospital might take instead, on one machine and with one load: mosquitto, and NATS
// JetStream with an fsync for each message. docs/BENCHMARKS.md says how to read it. 'make bench-peers' builds and calls it.
//
// The load is a process of its own (e2e/load): mutual TLS 1.3, P-256 certificates, QoS 1, 16 publishes in flight for each client,
// sealed frames. Servers take turns in three rounds; medians are shown. A figure is refused (exit 1) where TLS, audit or fsync turn out
// to be off: what was acknowledged must be in the journal once, with its audit row, and in the log, and each PUBACK must have had a sync.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"wardlink/e2e/load"
)

func main() {
	load.Main()
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "serve:", err)
			os.Exit(1)
		}
		return
	}
	load.Command("peers: no figure", run)
}

// run is the benchmark. Whatever went wrong, there is no table then: a figure that is not checked is none.
func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	parent := o.dir
	if o.dir, err = os.MkdirTemp(parent, "wlpeers"); err != nil {
		return err
	}
	b := &bench{options: o, began: time.Now(), busy: loadAverage(), figures: make(map[string]map[shape][]figure)}
	b.said = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
	}
	for _, s := range subjects() {
		b.figures[s.name] = make(map[shape][]figure)
	}
	defer func() {
		if b.load != nil {
			err = errors.Join(err, b.load.Stop())
		}
		if err == nil {
			err = os.RemoveAll(o.dir)
		} else {
			err = fmt.Errorf("%w (files in %s)", err, o.dir)
		}
	}()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.run(ctx); err != nil {
		return err
	}
	rep := b.report()
	rep.print(os.Stdout)
	return load.WriteJSON(o.json, rep)
}

func parse(args []string) (o options, err error) {
	fs := flag.NewFlagSet("peers", flag.ContinueOnError)
	fs.Float64Var(&o.seconds, "seconds", load.Variable("WARDLINK_BENCH_SECONDS", 2.5), "measured `SECONDS` of each figure")
	fs.IntVar(&o.rounds, "rounds", int(load.Variable("WARDLINK_BENCH_ROUNDS", 3)), "rounds; the median is shown")
	fs.BoolVar(&o.quick, "quick", os.Getenv("WARDLINK_BENCH_QUICK") != "", "measure 50 clients with 1 KB alone")
	only := fs.String("only", os.Getenv("WARDLINK_BENCH_ONLY"), "comma-separated `SERVERS` (default: all)")
	fs.StringVar(&o.nats, "nats", "", "nats-server `PROGRAM`")
	fs.StringVar(&o.dir, "dir", "", "`DIR` on the disk in question (default: the temporary directory)")
	fs.StringVar(&o.json, "json", os.Getenv("WARDLINK_BENCH_JSON"), "write the figures as JSON to `FILE`")
	fs.StringVar(&o.profile, "profile", os.Getenv("WARDLINK_BENCH_PROFILE"), "write CPU profiles of our servers into `DIR`, and show where the time goes")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if o.seconds < 0.2 || o.rounds < 1 {
		return o, errors.New("expected at least 0.2 seconds and one round")
	}
	o.only = make(map[string]bool)
	known := make(map[string]bool)
	for _, s := range subjects() {
		known[s.name] = true
	}
	for name := range strings.SplitSeq(*only, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !known[name] {
			return o, fmt.Errorf("no server is called %q", name)
		}
		o.only[name] = true
	}
	return o, nil
}
