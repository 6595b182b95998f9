// Command footprint measures what an agent takes of a gateway and of its disk, and prints each figure beside its goal:
//
//	go run ./e2e/footprint --bin DIR [--dir DIR]
//
// Memory is measured by the method of AWS IoT Greengrass nucleus lite's own figures: the median PSS (/proc/PID/smaps_rollup) of samples 10 s
// apart after a warm-up, over three runs. The agent, the server and the TPM emulator are the real ones, backlogs are batches of messages that
// hl7 understood, sealed to the server's key, and kept by buffer.Append. FOOTPRINT_RUNS (3), FOOTPRINT_SAMPLES (3 a run), FOOTPRINT_INTERVAL
// (10s), FOOTPRINT_WARMUP (15s), FOOTPRINT_BACKLOGS (0,100,1000: MB), FOOTPRINT_STARTS (7) and FOOTPRINT_DRAIN (2000000 observations) change how
// long it takes; the table says how much was measured. Nothing fails on a goal: machines are noisy, and other programs write to the same disk.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// plan is how much is measured.
type plan struct {
	runs, samples, starts, drain int
	interval, warmup             time.Duration
	backlogs                     []int // MB
}

func main() {
	bin := flag.String("bin", "", "`DIR` of wardlink, wardlink-agent and wardlink-server")
	dir := flag.String("dir", os.TempDir(), "`DIR` on the disk in question; a folder is made in it, and removed")
	flag.Parse()
	if *bin == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, *bin, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "footprint:", err)
		os.Exit(1)
	}
}

func planned() (p plan, err error) {
	number := func(name string, usual int) int {
		text := os.Getenv("FOOTPRINT_" + name)
		if text == "" {
			return usual
		}
		n, bad := strconv.Atoi(text)
		if bad != nil || n < 1 {
			err = fmt.Errorf("FOOTPRINT_%s=%s: expected a number above 0", name, text)
		}
		return n
	}
	wait := func(name string, usual time.Duration) time.Duration {
		text := os.Getenv("FOOTPRINT_" + name)
		if text == "" {
			return usual
		}
		d, bad := time.ParseDuration(text)
		if bad != nil || d <= 0 {
			err = fmt.Errorf("FOOTPRINT_%s=%s: expected a time such as 10s", name, text)
		}
		return d
	}
	p = plan{runs: number("RUNS", 3), samples: number("SAMPLES", 3), starts: number("STARTS", 7), drain: number("DRAIN", 2_000_000),
		interval: wait("INTERVAL", 10*time.Second), warmup: wait("WARMUP", 15*time.Second)}
	backlogs := os.Getenv("FOOTPRINT_BACKLOGS")
	if backlogs == "" {
		backlogs = "0,100,1000"
	}
	for text := range strings.SplitSeq(backlogs, ",") {
		mb, bad := strconv.Atoi(text)
		if bad != nil || mb < 0 {
			return p, fmt.Errorf("FOOTPRINT_BACKLOGS=%s: expected megabytes such as 0,100,1000", backlogs)
		}
		p.backlogs = append(p.backlogs, mb)
	}
	return p, err
}

func measure(ctx context.Context, bin, dir string) error {
	p, err := planned()
	if err != nil {
		return err
	}
	// The TPM emulator's socket lies in it, and a Unix socket's path is short.
	if dir, err = os.MkdirTemp(dir, "wlf"); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{ctx: ctx, bin: bin, dir: dir}
	defer s.end()
	if err := s.begin(); err != nil {
		return err
	}
	var table []row
	for _, part := range []func(*stage, plan) ([]row, error){size, starts, writes, memory, rate, drain} {
		rows, err := part(s, p)
		table = append(table, rows...)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, tail(filepath.Join(dir, "agent.log")))
		}
	}
	fmt.Printf("\n%-66s %-28s %s\n", "what", "figure", "goal")
	for _, r := range table {
		fmt.Printf("%-66s %-28s %s\n", r.what, r.figure, r.goal)
	}
	return nil
}

// row is one line of the table.
type row struct{ what, figure, goal string }

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func tail(path string) string {
	text, _ := os.ReadFile(path)
	return string(text[max(0, len(text)-2000):])
}
