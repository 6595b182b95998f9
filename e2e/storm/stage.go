package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"wardlink/e2e/load"
	"wardlink/internal/child"
	"wardlink/server"
)

// stage is where it all happens.
type stage struct {
	options
	began    time.Time
	addr     string
	hospital *load.Hospital
	server   *child.Process
	crowd    *crowd // idle ones
	steady   *crowd
	attacks  []span // when what was done to those who publish
	before   []span
	result   result
}

// span is a time, and what happened in it.
type span struct {
	from, until time.Time
}

// result is what was measured.
type result struct {
	Gateways    int     `json:"gateways"`
	ConnectTook float64 `json:"first_connect_seconds"`
	// Of the first connect, when nobody publishes: in the storm a flood of handshakes takes from those who do, and no difference is either's.
	ConnectCPU  time.Duration `json:"server_cpu_ns_of_the_first_connect"`
	EmptyMemory int64         `json:"memory_bytes_without_connections"`
	FullMemory  int64         `json:"memory_bytes_at_once"`
	IdleMemory  int64         `json:"memory_bytes_settled"`
	Settled     float64       `json:"settled_after_seconds"`
	PerIdle     float64       `json:"idle_bytes_per_connection"`

	Steady      int     `json:"steady_gateways"`
	Rate        float64 `json:"steady_publishes_per_second"`
	StormBefore calm    `json:"before_the_storm"`
	StormDuring calm    `json:"during_the_storm"`
	BackHalf    float64 `json:"half_are_back_seconds"`
	BackMost    float64 `json:"99_percent_are_back_seconds"`
	BackAll     float64 `json:"all_are_back_seconds"`
	Tries       int     `json:"attempts"`
	StormMemory int64   `json:"memory_bytes_after_the_storm"`

	FloodBefore calm    `json:"before_the_flood"`
	FloodDuring calm    `json:"during_the_flood"`
	FloodRate   float64 `json:"flood_publishes_per_second"`
	FloodEnd    string  `json:"flood_ended_by,omitempty"`

	P99Each []time.Duration `json:"p99_ns_of_each_second"` // since those who publish began
}

// calm is how those fared who publish all the time.
type calm struct {
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	Worst   time.Duration `json:"worst_ns"`
	Late    time.Duration `json:"sent_late_p99_ns"` // by the publishers' own process; part of the others
	Rate    float64       `json:"acknowledged_per_second"`
	Counted int64         `json:"published"`
}

func newStage(o options) *stage {
	return &stage{options: o, began: time.Now(), result: result{Gateways: o.crowd, Steady: o.steady, Rate: o.rate * float64(o.steady)}}
}

func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

func (s *stage) end() {
	for _, c := range []*crowd{s.crowd, s.steady} {
		if c != nil {
			c.end()
		}
	}
	if s.server != nil {
		s.server.Stop()
	}
}

// prepare makes the gateways and starts the server.
func (s *stage) prepare(ctx context.Context) (err error) {
	n := s.options.crowd + s.options.steady + 1
	s.say("making %d gateways with their certificates", n)
	var doors child.Doors
	cfg := server.DefaultConfig()
	for _, addr := range []*string{&cfg.Gateways, &cfg.Hospital, &cfg.Operators} {
		if *addr, err = doors.Free(); err != nil {
			return err
		}
	}
	s.addr = cfg.Gateways
	if s.hospital, err = load.NewHospital(ctx, filepath.Join(s.dir, "server"), cfg, n, func(done int) {
		if done%2500 == 0 {
			s.say("  %d", done)
		}
	}); err != nil {
		return err
	}
	if s.server, err = child.Start("server", filepath.Join(s.dir, "log"), s.options.server, "run", "--dir", s.hospital.Dir); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return child.Until(ready, "the server", []*child.Process{s.server}, func(context.Context) (bool, error) {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
}

func (s *stage) memory() (int64, error) {
	u, err := load.UsageOf(s.server.PID())
	return u.RSS, errors.Join(err, s.server.Died())
}

// farOff is by how much the crowd's process, and the one that floods, give way to the server and to those who publish: in a hospital their processors
// are their own.
const farOff = 10

// idle connects the crowd and waits until the server has given back what the handshakes took.
func (s *stage) idle(ctx context.Context) (err error) {
	time.Sleep(3 * time.Second) // the server's own start
	if s.result.EmptyMemory, err = s.memory(); err != nil {
		return err
	}
	s.say("%d gateways connect", s.options.crowd)
	job := crowdJob{Kind: "idle", Fleet: s.hospital.Fleet, Addr: s.addr, First: s.options.steady + 1, Count: s.options.crowd, Deadline: s.back}
	if s.crowd, err = startCrowd(job, farOff, func(t told) {
		if int(t.Seconds)%5 == 0 {
			s.say("  %d of %d are connected", t.Connected, s.options.crowd)
		}
	}); err != nil {
		return err
	}
	before, err := load.UsageOf(s.server.PID())
	if err != nil {
		return err
	}
	if err := s.crowd.order('c'); err != nil {
		return err
	}
	t, err := s.crowd.await("connected")
	if err != nil {
		return errors.Join(err, s.server.Died())
	}
	after, err := load.UsageOf(s.server.PID())
	if err != nil {
		return err
	}
	s.result.ConnectTook, s.result.ConnectCPU = t.Seconds, after.CPU-before.CPU
	if s.result.FullMemory, err = s.memory(); err != nil {
		return err
	}
	s.say("all are connected after %.1f s; %d MB; waiting for idle memory to settle, at most %s", t.Seconds, s.result.FullMemory>>20, s.settle)
	if err := s.settleDown(ctx); err != nil {
		return err
	}
	s.result.PerIdle = float64(s.result.IdleMemory-s.result.EmptyMemory) / float64(s.options.crowd)
	s.say("%d MB after %.0f s: %.1f KB a connection", s.result.IdleMemory>>20, s.result.Settled, s.result.PerIdle/1024)
	return nil
}

// settleDown takes the least memory that the server had for some seconds. The runtime gives memory back in the background, and collects at
// least every two minutes, which is why it may take that long.
func (s *stage) settleDown(ctx context.Context) error {
	began := time.Now()
	s.result.IdleMemory = s.result.FullMemory
	for time.Since(began) < s.settle {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
		now, err := s.memory()
		if err != nil {
			return err
		}
		if now < s.result.IdleMemory {
			s.result.IdleMemory, s.result.Settled = now, time.Since(began).Seconds()
		}
	}
	return nil
}

// storm drops the crowd at once and waits until all are back, while others publish.
func (s *stage) storm(ctx context.Context) (err error) {
	s.say("%d gateways publish, %.0f a second together", s.options.steady, s.result.Rate)
	job := crowdJob{
		Kind: "steady", Fleet: s.hospital.Fleet, Addr: s.addr, First: 0, Count: s.options.steady, InFlight: 64, Deadline: time.Minute,
		Interval: time.Duration(float64(time.Second) / s.rate),
	}
	if s.steady, err = startCrowd(job, 0, nil); err != nil {
		return err
	}
	if _, err := s.steady.await("connected"); err != nil {
		return err
	}
	s.quiet(ctx)
	s.say("all %d others lose their connections and come back", s.options.crowd)
	from := time.Now()
	if err := s.crowd.order('s'); err != nil {
		return err
	}
	t, err := s.crowd.await("connected")
	if err != nil {
		return errors.Join(err, s.server.Died())
	}
	s.attacks = append(s.attacks, span{from, time.Now()})
	after, err := load.UsageOf(s.server.PID())
	if err != nil {
		return err
	}
	s.result.BackHalf, s.result.BackMost, s.result.BackAll, s.result.Tries = t.Back[len(t.Back)/2], t.Back[len(t.Back)*99/100], t.Seconds, t.Tries
	s.result.StormMemory = after.RSS
	s.say("all are back after %.1f s", t.Seconds)
	return nil
}

// quiet lets those who publish be alone for a while.
func (s *stage) quiet(ctx context.Context) {
	const warm = 3 * time.Second
	select {
	case <-ctx.Done():
	case <-time.After(warm + time.Duration(s.seconds)*time.Second):
	}
	now := time.Now()
	s.before = append(s.before, span{now.Add(-time.Duration(s.seconds) * time.Second), now})
}

// flooding is how many publishes the flooding gateway has in flight.
const flooding = 512

// flood lets one gateway publish as much as the server takes.
func (s *stage) flood(ctx context.Context) error {
	s.quiet(ctx)
	s.say("one gateway floods, with %d publishes in flight", flooding)
	job := crowdJob{
		Kind: "flood", Fleet: s.hospital.Fleet, Addr: s.addr, First: s.options.steady, Count: 1, InFlight: flooding, Deadline: time.Minute,
		Interval: time.Duration(s.seconds) * time.Second,
	}
	c, err := startCrowd(job, farOff, nil)
	if err != nil {
		return err
	}
	defer c.end()
	if _, err := c.await("connected"); err != nil {
		return err
	}
	from := time.Now()
	t, err := c.await("stopped")
	if err != nil {
		return err
	}
	s.attacks = append(s.attacks, span{from, from.Add(time.Duration(s.seconds) * time.Second)})
	s.result.FloodRate, s.result.FloodEnd = float64(t.Acked)/t.Seconds, t.Error
	return nil
}

// stand asks those who published how they fared.
func (s *stage) stand(context.Context) error {
	if err := s.steady.order('x'); err != nil {
		return err
	}
	t, err := s.steady.await("stopped")
	if err != nil {
		return err
	}
	for _, sec := range t.Each {
		s.result.P99Each = append(s.result.P99Each, sec.Latency.At(0.99))
	}
	for i, c := range []*calm{&s.result.StormBefore, &s.result.FloodBefore} {
		*c = fared(t, s.before[i])
	}
	for i, c := range []*calm{&s.result.StormDuring, &s.result.FloodDuring} {
		*c = fared(t, s.attacks[i])
	}
	return s.server.Died()
}

// fared sums up the whole seconds within a span, at least one.
func fared(t told, sp span) (c calm) {
	from := max(int(sp.from.Sub(t.Started).Seconds()), 0)
	until := max(int(sp.until.Sub(t.Started).Seconds()), from+1)
	var all, late load.Histogram
	var answered int64
	for n := from; n < min(until, len(t.Each)); n++ {
		all.Merge(&t.Each[n].Latency)
		late.Merge(&t.Each[n].Late)
		answered += t.Each[n].Answered
	}
	return calm{
		P50: all.At(0.5), P99: all.At(0.99), Worst: all.At(1 - 1e-9), Late: late.At(0.99), Rate: float64(answered) / float64(until-from), Counted: all.Count(),
	}
}
