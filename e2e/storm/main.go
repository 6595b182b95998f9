// Command storm puts ten thousand real gateways to a real wardlink-server: what an idle connection takes, what all of them coming back
// at once does to those that are connected, and what one that floods does to the others. docs/BENCHMARKS.md says how to read it.
// 'make storms' builds and calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"syscall"
	"time"

	"wardlink/e2e/load"
)

// options are what a run is told. Gateways 0 to steady-1 publish all the time, the next one floods, the others are the crowd.
type options struct {
	server  string
	dir     string
	json    string
	crowd   int
	steady  int
	rate    float64 // publishes a second of each steady gateway
	seconds int     // before and during each attack
	settle  time.Duration
	back    time.Duration
}

func main() {
	crowdMain()
	load.Command("storm", run)
}

func run(ctx context.Context, args []string) (err error) {
	var o options
	fs := flag.NewFlagSet("storm", flag.ContinueOnError)
	fs.StringVar(&o.server, "server", "bin/wardlink-server", "the server's `PROGRAM`")
	fs.StringVar(&o.dir, "dir", "", "`DIR` on the disk in question (default: the temporary directory)")
	fs.StringVar(&o.json, "json", os.Getenv("WARDLINK_BENCH_JSON"), "write the figures as JSON to `FILE`")
	fs.IntVar(&o.crowd, "crowd", int(load.Variable("WARDLINK_STORM_GATEWAYS", 10_000)), "gateways that are idle, and come back at once")
	fs.IntVar(&o.steady, "steady", 200, "gateways that publish all the time")
	fs.Float64Var(&o.rate, "rate", load.Variable("WARDLINK_STORM_RATE", 5), "publishes a second of each of them")
	fs.IntVar(&o.seconds, "seconds", int(load.Variable("WARDLINK_STORM_SECONDS", 15)), "`SECONDS` measured before each attack, and of the flood")
	fs.DurationVar(&o.settle, "settle", time.Duration(load.Variable("WARDLINK_STORM_SETTLE", 150))*time.Second, "how long idle memory may take to settle")
	fs.DurationVar(&o.back, "back", 10*time.Minute, "within which everybody must be back")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.crowd < 1 || o.steady < 1 || o.rate <= 0 || o.seconds < 2 {
		return errors.New("expected gateways, a rate, and at least 2 seconds")
	}
	if err := descriptors(uint64(o.crowd + o.steady + 1000)); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp(o.dir, "wlstorm"); err != nil {
		return err
	}
	s := newStage(o)
	defer func() {
		s.end()
		if err == nil {
			err = os.RemoveAll(o.dir)
		} else {
			err = fmt.Errorf("%w (files in %s)", err, o.dir)
		}
	}()
	for _, act := range []func(context.Context) error{s.prepare, s.idle, s.storm, s.flood, s.stand} {
		if err := errors.Join(act(ctx), ctx.Err()); err != nil {
			return err
		}
	}
	s.print(os.Stdout)
	return load.WriteJSON(o.json, s.result)
}

// descriptors makes room for so many connections, in this process and its children.
func descriptors(n uint64) error {
	var have syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &have); err != nil {
		return err
	}
	want := syscall.Rlimit{Cur: n, Max: max(n, have.Max)}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want); err != nil {
		return fmt.Errorf("%d descriptors are needed and %d allowed: %w; run as root, raise the limit ('ulimit -Hn'), or take fewer gateways (WARDLINK_STORM_GATEWAYS)", n, have.Max, err)
	}
	return nil
}
