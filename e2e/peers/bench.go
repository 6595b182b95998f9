package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wardlink/e2e/load"
	"wardlink/internal/child"
	"wardlink/server"
)

// options say how long and of what.
type options struct {
	seconds float64
	rounds  int
	quick   bool
	only    map[string]bool
	nats    string
	dir     string
	json    string
	profile string
}

const (
	inFlight = 16
	clients  = 500 // the most; one more gateway, keeper, is for what a peer needs besides
	keeper   = clients
)

// shape is one row of figures: how many clients publish frames of which size.
type shape struct {
	Clients int `json:"clients"`
	Size    int `json:"bytes"`
}

// judged is the shape that the goals are about.
var judged = shape{50, 1024}

func (o options) shapes() []shape {
	if o.quick {
		return []shape{judged}
	}
	return []shape{judged, {1, 1024}, {500, 1024}, {1, 16 << 10}, {50, 16 << 10}, {500, 16 << 10}}
}

// figure is one measurement.
type figure struct {
	Rate    float64       `json:"publishes_per_second"`
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	CPU     float64       `json:"server_cpu_us_per_publish"`
	Load    float64       `json:"load_cpu_us_per_publish"`
	RSS     int64         `json:"memory_bytes"`
	HalfP99 time.Duration `json:"half_load_p99_ns,omitempty"` // at half of Rate; of the judged shape alone
	HalfAt  float64       `json:"half_load_publishes_per_second,omitempty"`
	HalfCPU float64       `json:"half_load_cores,omitempty"` // busy, of server and load: publishes at fixed times cost both more than those that come together
}

// bench is one run.
type bench struct {
	options
	said      func(format string, args ...any)
	doors     child.Doors
	hospital  *load.Hospital
	load      *load.Process
	published []load.Batch // since the server was started
	figures   map[string]map[shape][]figure
	profiles  []string
	began     time.Time
	busy      string // load average before
}

// prepare makes the hospital of which every server is a copy, and starts the load process.
func (b *bench) prepare(ctx context.Context) (err error) {
	b.said("making %d gateways with their certificates", clients+1)
	if b.hospital, err = load.NewHospital(ctx, filepath.Join(b.dir, "hospital"), server.DefaultConfig(), clients+1, nil); err != nil {
		return err
	}
	b.load, err = load.Start(b.hospital.Fleet)
	return err
}

// run measures: each round every server once, so that a slow minute of the machine meets all of them.
func (b *bench) run(ctx context.Context) error {
	for round := 1; round <= b.rounds; round++ {
		for _, s := range subjects() {
			if len(b.only) > 0 && !b.only[s.name] {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			b.said("round %d of %d: %s", round, b.rounds, s.what)
			if err := b.measure(s, round); err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
		}
	}
	return nil
}

// measure starts a server, measures all shapes and holds what it has kept against what it acknowledged.
func (b *bench) measure(s subject, round int) (err error) {
	dir, err := os.MkdirTemp(b.dir, s.name)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			_ = os.RemoveAll(dir) // gigabytes; after an error they are what to look at
		}
	}()
	b.published = nil
	r, err := s.start(b, dir)
	if err != nil {
		return err
	}
	stopped := false
	defer func() {
		if !stopped {
			err = errors.Join(err, r.stop())
		}
		if r.end != nil {
			err = errors.Join(err, r.end())
		}
	}()
	if round == 1 {
		if err := b.refuse(s, r); err != nil {
			return err
		}
	}
	for _, sh := range b.shapes() {
		f, err := b.one(s, r, sh)
		if err != nil {
			return fmt.Errorf("%d clients, %d bytes: %w", sh.Clients, sh.Size, err)
		}
		b.figures[s.name][sh] = append(b.figures[s.name][sh], f)
	}
	if round == b.rounds && b.profile != "" && r.debug != "" {
		if err := b.profiled(s, r); err != nil {
			return err
		}
	}
	if r.check != nil {
		if err := r.check(); err != nil {
			return err
		}
	}
	stopped = true
	if err := r.stop(); err != nil {
		return err
	}
	return b.complete(s, r)
}

// refuse does the checks that need the running server, before it is measured.
func (b *bench) refuse(s subject, r *running) error {
	if err := intruders(r.addr); err != nil {
		return err
	}
	switch {
	case s.durable:
		return b.synced(r)
	case s.name == unstored:
		if b.synced(r) == nil {
			return errors.New("a server that stores nothing passes the check of its syncs: the check is broken")
		}
	}
	return nil
}

// complete does the checks that need the stores, once the server has ended.
func (b *bench) complete(s subject, r *running) (err error) {
	if r.journal == nil {
		return nil
	}
	j, err := r.journal()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	err = audited(j, filepath.Join(r.site, "log"), b.published)
	if s.audited {
		return err
	}
	if err == nil {
		return errors.New("a server that stores nothing passes the check of its journal: the check is broken")
	}
	return nil
}

// warm is how long is published before it counts.
const warm = 500 * time.Millisecond

// one measures one shape: as fast as the server acknowledges and, for the judged shape, at half of that.
func (b *bench) one(s subject, r *running, sh shape) (figure, error) {
	job := load.Job{Addr: r.addr, Clients: sh.Clients, Size: sh.Size, InFlight: inFlight, Warm: warm, Measure: time.Duration(b.seconds * float64(time.Second))}
	f, err := b.do(r, job)
	if err != nil {
		return f, err
	}
	if sh == judged && f.Rate > 0 {
		job.Rate = f.Rate / 2
		half, err := b.do(r, job)
		if err != nil {
			return f, fmt.Errorf("at half load: %w", err)
		}
		f.HalfP99, f.HalfAt, f.HalfCPU = half.P99, half.Rate, half.Rate*(half.CPU+half.Load)/1e6
	}
	b.said("  %3d clients, %5d bytes: %7.0f/s, p99 %7.1f ms, CPU %5.1f us, %d MB", sh.Clients, sh.Size, f.Rate, ms(f.P99), f.CPU, f.RSS>>20)
	return f, nil
}

func (b *bench) do(r *running, job load.Job) (figure, error) {
	var from, until load.Usage
	var failed error
	a, err := b.load.Do(job, func(state string) {
		var err error
		switch state {
		case "from":
			from, err = load.UsageOf(r.pids...)
		case "until":
			until, err = load.UsageOf(r.pids...)
		}
		failed = errors.Join(failed, err)
	})
	if err := errors.Join(err, failed); err != nil {
		return figure{}, err
	}
	b.published = append(b.published, a.Batches...)
	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(max(a.Counted, 1)) } // none within the time is a figure, too
	return figure{
		Rate: float64(a.Counted) / a.Seconds, P50: a.Latency.At(0.5), P99: a.Latency.At(0.99),
		CPU: per(until.CPU - from.CPU), Load: per(a.CPU), RSS: until.RSS,
	}, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
