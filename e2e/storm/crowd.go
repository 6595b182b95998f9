package main

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wardlink/e2e/load"
	"wardlink/telemetry"
)

// A crowd is a process of its own that plays some gateways, so that what they cost is neither the server's nor that of the gateways
// whose acknowledgements are timed.

// crowdJob is what a crowd is told at its start.
type crowdJob struct {
	Kind         string // "idle", "steady", "flood"
	Fleet        *load.Fleet
	Addr         string
	First, Count int
	Interval     time.Duration // steady: between two publishes of one gateway
	InFlight     int
	Deadline     time.Duration // until everybody must be connected
}

// told is what a crowd says.
type told struct {
	State     string // "progress", "connected", "stopped", "failed"
	Error     string
	Connected int
	Seconds   float64   // since the command
	Back      []float64 // of each gateway, seconds until it was connected, in order
	Tries     int       // of all together
	Started   time.Time // steady: the beginning of Each
	Each      []*second // steady: what happened in each second by when it was due
	Acked     uint64    // flood
}

// second is what became of the publishes that were due in one second.
type second struct {
	Latency  load.Histogram
	Late     load.Histogram // what of it had passed when the publish was sent: the delay of the publishers' own process
	Answered int64          // acknowledgements that came in it, whenever they were due
}

// crowdEnv makes this program a crowd's process, and says by how much it is nicer than its parent; nicedEnv, that it is so already.
const (
	crowdEnv = "WARDLINK_STORM_CROWD"
	nicedEnv = "WARDLINK_STORM_NICED"
)

// crowd is a crowd's process, as its parent sees it.
type crowd struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	said func(told)
}

// startCrowd starts a crowd. Nice ones give way: in a hospital the other ends are other machines.
func startCrowd(j crowdJob, nice int, said func(told)) (*crowd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &crowd{cmd: exec.Command(self), said: said}
	c.cmd.Env, c.cmd.Stderr = append(os.Environ(), crowdEnv+"="+strconv.Itoa(nice)), os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	return c, gob.NewEncoder(c.in).Encode(j)
}

// order sends a command.
func (c *crowd) order(word byte) error {
	_, err := c.in.Write([]byte{word})
	return err
}

// await reads until a state comes.
func (c *crowd) await(state string) (told, error) {
	for {
		var t told
		if err := c.out.Decode(&t); err != nil {
			return t, fmt.Errorf("crowd: %w", err)
		}
		switch t.State {
		case state:
			return t, nil
		case "failed":
			return t, fmt.Errorf("crowd: %s", t.Error)
		}
		if c.said != nil {
			c.said(t)
		}
	}
}

// end ends the process.
func (c *crowd) end() {
	_ = c.in.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// crowdMain is a crowd's main function; it returns at once in the parent.
func crowdMain() {
	nice, err := strconv.Atoi(os.Getenv(crowdEnv))
	if err != nil {
		return
	}
	if os.Getenv(nicedEnv) == "" {
		// Niceness is a thread's, and a thread's children have it. So it is set before this program begins anew, with this thread alone.
		runtime.LockOSThread()
		err := beNicer(nice)
		if err == nil {
			err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), nicedEnv+"=1"))
		}
		fmt.Fprintln(os.Stderr, "crowd:", err)
		os.Exit(1)
	}
	enc := json.NewEncoder(os.Stdout)
	var mu sync.Mutex
	say := func(t told) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(t)
	}
	var j crowdJob
	in := &byteReader{os.Stdin}
	if err := gob.NewDecoder(in).Decode(&j); err != nil {
		say(told{State: "failed", Error: err.Error()})
		os.Exit(1)
	}
	if err := map[string]func(crowdJob, io.ByteReader, func(told)) error{"idle": idle, "steady": steady, "flood": flood}[j.Kind](j, in, say); err != nil {
		say(told{State: "failed", Error: err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}

// beNicer lets this thread give way by so much more than it does.
func beNicer(by int) error {
	raw, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		return err
	}
	const most = 19
	return syscall.Setpriority(syscall.PRIO_PROCESS, 0, min(20-raw+by, most)) // the system call gives 20 less the niceness
}

// byteReader keeps gob from reading beyond its message.
type byteReader struct{ io.Reader }

func (b *byteReader) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(b.Reader, one[:])
	return one[0], err
}

// idle connects its gateways when it is told 'c', and drops and connects all of them at once when it is told 's'. They subscribe and ping
// as agents do, and publish nothing.
func idle(j crowdJob, in io.ByteReader, say func(told)) error {
	d := load.NewDialer(j.Fleet, j.Addr)
	d.Ready, d.Buffer = j.Deadline, 512
	conns := make([]atomic.Pointer[load.Conn], j.Count)
	go ping(conns)
	for {
		word, err := in.ReadByte()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		limit := 64
		if word == 's' {
			limit, d.Lost = j.Count, true
			for i := range conns {
				_ = conns[i].Swap(nil).Close()
			}
		}
		t, err := connectAll(d, j, conns, limit, say)
		if err != nil {
			return err
		}
		t.State = "connected"
		say(t)
	}
}

// connectAll connects all, so many at once, and tells of the progress each second.
func connectAll(d *load.Dialer, j crowdJob, conns []atomic.Pointer[load.Conn], limit int, say func(told)) (told, error) {
	began := time.Now()
	var tries, done atomic.Int64
	back := make(chan float64, j.Count)
	failed := make(chan error, j.Count)
	slots := make(chan struct{}, limit)
	go func() {
		for i := range conns {
			slots <- struct{}{}
			go func() {
				c, err := d.Connect(context.Background(), j.First+i)
				if err == nil {
					err = c.Subscribe(telemetry.DownFilter(c.Gateway), 0)
				}
				<-slots
				if err != nil {
					failed <- err
					return
				}
				tries.Add(int64(c.Tries))
				done.Add(1)
				conns[i].Store(c)
				back <- time.Since(began).Seconds()
				_ = c.Idle()
			}()
		}
	}()
	t := told{Back: make([]float64, 0, j.Count)}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for len(t.Back) < j.Count {
		select {
		case s := <-back:
			t.Back = append(t.Back, s)
		case err := <-failed:
			return t, fmt.Errorf("%d of %d are connected: %w", done.Load(), j.Count, err)
		case <-tick.C:
			say(told{State: "progress", Connected: int(done.Load()), Seconds: time.Since(began).Seconds()})
		}
	}
	t.Connected, t.Seconds, t.Tries = j.Count, time.Since(began).Seconds(), int(tries.Load())
	return t, nil
}

// ping keeps the connections alive: each once in 30 s, as agents do.
func ping(conns []atomic.Pointer[load.Conn]) {
	const parts = 300
	for n := 0; ; n = (n + 1) % parts {
		time.Sleep(30 * time.Second / parts)
		for i := n; i < len(conns); i += parts {
			if c := conns[i].Load(); c != nil {
				_ = c.Ping()
			}
		}
	}
}

// steady connects its gateways and lets each publish a batch of a monitor's readings each interval until it is told anything.
func steady(j crowdJob, in io.ByteReader, say func(told)) error {
	d := load.NewDialer(j.Fleet, j.Addr)
	d.Ready = j.Deadline
	conns := make([]*load.Conn, j.Count)
	batches := make([]*load.Batches, j.Count)
	for i := range conns {
		var err error
		if conns[i], batches[i], err = publisher(d, j.Fleet, j.First+i); err != nil {
			return err
		}
	}
	say(told{State: "connected", Connected: j.Count})
	s := &seconds{started: time.Now().Truncate(time.Second).Add(time.Second)}
	w := load.Window{From: s.started, Until: s.started.Add(time.Hour), InFlight: j.InFlight, Each: s.add}
	broken := make(chan error, j.Count)
	for i, c := range conns {
		first := s.started.Add(j.Interval * time.Duration(i) / time.Duration(j.Count))
		batches[i].Plain = func(number uint64) ([]byte, error) {
			s.sent(first.Add(j.Interval*time.Duration(number)), time.Now())
			return load.Readings(number)
		}
		go func() {
			_, err := c.Paced(batches[i], w, first, j.Interval)
			broken <- err
		}()
	}
	stop := make(chan error, 1)
	go func() { _, err := in.ReadByte(); stop <- err }()
	select {
	case err := <-broken:
		return fmt.Errorf("a connected gateway was cut off: %w", err)
	case err := <-stop:
		if err != nil && err != io.EOF {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	say(told{State: "stopped", Started: s.started, Each: s.each})
	return nil
}

// publisher connects a gateway that brings its sealing record and publishes what a monitor would have sent.
func publisher(d *load.Dialer, f *load.Fleet, i int) (*load.Conn, *load.Batches, error) {
	c, err := d.Connect(context.Background(), i)
	if err != nil {
		return nil, nil, err
	}
	_, key, err := f.Identity(i)
	if err != nil {
		return nil, nil, err
	}
	b, err := load.NewBatches(f, i, 1024, key)
	if err != nil {
		return nil, nil, err
	}
	b.Plain = load.Readings
	return c, b, c.Bring(b)
}

// seconds sorts acknowledgements by the second in which their publish was due.
type seconds struct {
	started time.Time
	mu      sync.Mutex
	each    []*second
}

func (s *seconds) at(t time.Time) *second {
	n := int(t.Sub(s.started) / time.Second)
	for n >= len(s.each) {
		s.each = append(s.each, &second{})
	}
	return s.each[max(n, 0)]
}

func (s *seconds) add(due, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at(due).Latency.Add(now.Sub(due))
	s.at(now).Answered++
}

func (s *seconds) sent(due, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at(due).Late.Add(now.Sub(due))
}

// flood publishes for a while, as much as the server takes of it.
func flood(j crowdJob, in io.ByteReader, say func(told)) error {
	d := load.NewDialer(j.Fleet, j.Addr)
	c, b, err := publisher(d, j.Fleet, j.First)
	if err != nil {
		return err
	}
	say(told{State: "connected"})
	var acked atomic.Uint64
	now := time.Now()
	w := load.Window{From: now, Until: now.Add(j.Interval), InFlight: j.InFlight, Each: func(_, _ time.Time) { acked.Add(1) }}
	_, err = c.Flood(b, w)
	took := time.Since(now)
	t := told{State: "stopped", Acked: acked.Load(), Seconds: took.Seconds()}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error = err.Error() // the server may cut off who floods
	}
	say(t)
	return nil
}
