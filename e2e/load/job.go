package load

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Job is one measurement that a load process does: gateways 0 to Clients-1 connect to Addr, bring their sealing records and publish.
type Job struct {
	Addr     string
	Clients  int
	Size     int // bytes of a frame
	InFlight int
	Warm     time.Duration
	Measure  time.Duration
	Rate     float64 // publishes a second of all together; 0: as fast as the server acknowledges
}

// Batch names what one gateway published in a job: numbers 0 to Acked-1 of Epoch, each of which was acknowledged.
type Batch struct {
	Gateway int
	Epoch   [16]byte
	Acked   uint64
}

// Answer is what a load process says: first that all are connected, then that the measured time begins and ends, then the result.
type Answer struct {
	State   string // "connected", "from", "until", "done", "failed"
	Error   string
	Seconds float64 // of the measured time
	Counted int64   // acknowledged within it
	Latency *Histogram
	Batches []Batch
	CPU     time.Duration // of the load process within the measured time
}

// Process is a load process, this program again, so that the server's processor time is the server's.
type Process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *gob.Encoder
	dec *json.Decoder
}

// env makes a program that calls Main first a load process.
const env = "WARDLINK_BENCH_LOAD"

// Main is the load process's main function; it returns at once in every other process.
func Main() {
	if os.Getenv(env) == "" {
		return
	}
	debug.SetGCPercent(400)
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Start starts a load process with the gateways of a fleet.
func Start(f *Fleet) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.Command(self)}
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), env+"=1"), os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.enc, p.dec = gob.NewEncoder(p.in), json.NewDecoder(out)
	return p, p.enc.Encode(f)
}

// Do does a job. at is called in its moments, with the states of Answer.
func (p *Process) Do(j Job, at func(state string)) (Answer, error) {
	if err := p.enc.Encode(j); err != nil {
		return Answer{}, fmt.Errorf("load process: %w", err)
	}
	for {
		var a Answer
		if err := p.dec.Decode(&a); err != nil {
			return a, fmt.Errorf("load process: %w", err)
		}
		switch a.State {
		case "failed":
			return a, fmt.Errorf("load: %s", a.Error)
		case "done":
			return a, nil
		}
		at(a.State)
	}
}

// Stop ends the process.
func (p *Process) Stop() error {
	_ = p.in.Close()
	return p.cmd.Wait()
}

func serve(in io.Reader, out io.Writer) error {
	dec, enc := gob.NewDecoder(in), json.NewEncoder(out)
	var fleet Fleet
	if err := dec.Decode(&fleet); err != nil {
		return err
	}
	for {
		var j Job
		if err := dec.Decode(&j); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		a, err := j.run(&fleet, func(state string) { _ = enc.Encode(Answer{State: state}) })
		a.State = "done"
		if err != nil {
			a = Answer{State: "failed", Error: err.Error()}
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

// connecting is how many connect at once.
const connecting = 32

func (j Job) run(f *Fleet, say func(state string)) (a Answer, err error) {
	conns, batches := make([]*Conn, j.Clients), make([]*Batches, j.Clients)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	d := NewDialer(f, j.Addr)
	var up errgroup.Group
	up.SetLimit(connecting)
	for i := range conns {
		up.Go(func() (err error) {
			if conns[i], err = d.Connect(context.Background(), i); err != nil {
				return err
			}
			_, key, err := f.Identity(i)
			if err != nil {
				return err
			}
			if batches[i], err = NewBatches(f, i, j.Size, key); err != nil {
				return err
			}
			return conns[i].Bring(batches[i])
		})
	}
	if err := up.Wait(); err != nil {
		return a, err
	}
	say("connected")
	began := time.Now().Add(50 * time.Millisecond)
	w := Window{From: began.Add(j.Warm), Until: began.Add(j.Warm + j.Measure), InFlight: j.InFlight}
	tallies := make([]*Tally, j.Clients)
	var all errgroup.Group
	for i, c := range conns {
		all.Go(func() (err error) {
			if j.Rate == 0 {
				time.Sleep(time.Until(began))
				tallies[i], err = c.Flood(batches[i], w)
				return err
			}
			interval := time.Duration(float64(j.Clients) / j.Rate * float64(time.Second))
			tallies[i], err = c.Paced(batches[i], w, began.Add(rand.N(interval)), interval)
			return err
		})
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		time.Sleep(time.Until(w.From))
		before := CPU()
		say("from")
		time.Sleep(time.Until(w.Until))
		say("until")
		a.CPU = CPU() - before
	})
	err = all.Wait()
	watch.Wait()
	a.Latency, a.Seconds = &Histogram{}, j.Measure.Seconds()
	for i, t := range tallies {
		if t == nil {
			continue
		}
		a.Counted += t.Counted
		a.Latency.Merge(&t.Latency)
		if err == nil && t.Acked != batches[i].Next {
			err = fmt.Errorf("%s published %d and has %d acknowledgements", Name(i), batches[i].Next, t.Acked)
		}
		a.Batches = append(a.Batches, Batch{Gateway: i, Epoch: batches[i].Epoch, Acked: t.Acked})
	}
	return a, err
}

// CPU is the processor time of this process.
func CPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
