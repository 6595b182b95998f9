// Command enrolments measures how many gateways a second our server certifies, beside a stock step-ca: 16 at once, by one client, boards in software, in
// turns. It prints rows of 'make bench'; docs/BENCHMARKS.md says how to read them.
//
//	enrolments --bin DIR --step-ca PROGRAM
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/e2e/load"
)

const clients = 16

// options are what a run is told.
type options struct {
	bin, stepCA, dir string
	seconds          float64
	rounds           int
}

func main() { load.Command("enrolments", run) }

func run(ctx context.Context, args []string) (err error) {
	var o options
	fs := flag.NewFlagSet("enrolments", flag.ContinueOnError)
	fs.StringVar(&o.bin, "bin", "bin", "`DIR` of wardlink and wardlink-server")
	fs.StringVar(&o.stepCA, "step-ca", "step-ca", "stock step-ca")
	fs.StringVar(&o.dir, "dir", "", "`DIR` on the disk in question (default: the temporary directory)")
	seconds, rounds := 2.0, 3.0
	if os.Getenv("WARDLINK_BENCH_QUICK") != "" {
		seconds, rounds = 1, 1
	}
	fs.Float64Var(&o.seconds, "seconds", seconds, "measured for each figure")
	fs.IntVar(&o.rounds, "rounds", int(rounds), "of which the median is shown")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.seconds <= 0 || o.rounds < 1 {
		return errors.New("expected seconds and rounds")
	}
	if o.dir, err = os.MkdirTemp(o.dir, "wlenrolments"); err != nil {
		return err
	}
	s := &stage{options: o}
	defer func() {
		s.end()
		if err == nil {
			err = os.RemoveAll(o.dir)
		} else {
			err = fmt.Errorf("%w (files in %s)", err, o.dir)
		}
	}()
	if err := errors.Join(s.prepare(ctx), ctx.Err()); err != nil {
		return err
	}
	acts := s.acts()
	figures := make([][]figure, len(acts))
	for round := range s.rounds {
		for i := range acts {
			if round%2 == 1 { // nobody is always behind the same one
				i = len(acts) - 1 - i
			}
			f, err := s.measure(ctx, acts[i])
			if err != nil {
				return fmt.Errorf("%s at %s: %w", acts[i].what, acts[i].server.name, err)
			}
			figures[i] = append(figures[i], f)
		}
	}
	s.print(os.Stdout, acts, figures)
	return nil
}

// figure is what one round of an act took.
type figure struct {
	Rate   float64       // certificates a second
	Server time.Duration // its processor time for a certificate, children's included
	Client time.Duration // ours
}

// measure has all gateways get certificates, each one after the other.
func (s *stage) measure(ctx context.Context, a act) (f figure, err error) {
	before, err := load.UsageOf(a.server.pid)
	if err != nil {
		return f, err
	}
	began, spent := time.Now(), load.CPU()
	until := began.Add(time.Duration(s.seconds * float64(time.Second)))
	var done atomic.Int64
	errs := make([]error, len(s.gateways))
	var wg sync.WaitGroup
	for i, g := range s.gateways {
		wg.Go(func() {
			for errs[i] == nil && time.Now().Before(until) {
				if errs[i] = a.run(ctx, g); errs[i] == nil {
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	took, own := time.Since(began), load.CPU()-spent
	after, err := load.UsageOf(a.server.pid)
	if err = errors.Join(append(errs, err)...); err != nil {
		return f, err
	}
	n := time.Duration(done.Load())
	return figure{float64(n) / took.Seconds(), (after.CPU - before.CPU) / n, own / n}, nil
}

// middle gives the median of each figure by itself.
func middle(all []figure) figure {
	by := func(f func(figure) float64) float64 {
		var v []float64
		for _, x := range all {
			v = append(v, f(x))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return figure{by(func(f figure) float64 { return f.Rate }), time.Duration(by(func(f figure) float64 { return float64(f.Server) })),
		time.Duration(by(func(f figure) float64 { return float64(f.Client) }))}
}

// print writes the rows as scripts/bench does.
func (s *stage) print(w io.Writer, acts []act, figures [][]figure) {
	row := func(what, got, goal string) { fmt.Fprintf(w, "%-58s %14s   %s\n", what, got, goal) }
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/1e6) }
	for i, a := range acts {
		own := middle(figures[i])
		if a.beside == "" {
			continue
		}
		at := slices.IndexFunc(acts, func(b act) bool { return b.server == s.other && b.what == a.beside })
		peer := middle(figures[at])
		verdict := "met"
		if own.Rate < peer.Rate {
			verdict = "MISSED"
		}
		row(a.what+"s/s, "+fmt.Sprint(clients)+" gateways at once", fmt.Sprintf("%.0f", own.Rate), fmt.Sprintf(">= stock step-ca's %.0f: %.2f x, %s", peer.Rate, own.Rate/peer.Rate, verdict))
		row("  ms of the server's processor each", ms(own.Server), "step-ca's "+ms(peer.Server))
		row("  of its client's", ms(own.Client), "at step-ca "+ms(peer.Client))
	}
}

// file is one of the stage's.
func (s *stage) file(name string) string { return filepath.Join(s.dir, name) }
