package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"
)

func size(s *stage, _ plan) ([]row, error) {
	info, err := os.Stat(s.program("wardlink-agent"))
	if err != nil {
		return nil, err
	}
	return []row{{"agent's program as it is measured here, on this machine", mb(info.Size()), "linux/arm64, stripped: <= 10 MB (make cross)"}}, nil
}

// starts measures from exec to the first acknowledgement, which stands behind an fsync; there is neither TPM nor network.
func starts(s *stage, p plan) ([]row, error) {
	progress("start to first durable sample, %d times", p.starts)
	var took []float64
	for i := range p.starts {
		state := fmt.Sprintf("start-%d", i)
		if err := s.configure(state, "swtpm:/nonexistent/socket"); err != nil {
			return nil, err
		}
		begin := time.Now()
		m, err := s.start()
		if err != nil {
			return nil, err
		}
		if err := m.say(); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(begin).Microseconds())/1000)
		m.Close()
		s.agent.Stop()
		if err := os.RemoveAll(s.path(state)); err != nil {
			return nil, err
		}
	}
	return []row{{fmt.Sprintf("start to first sample on disk, no TPM, no network, median of %d (longest)", p.starts),
		fmt.Sprintf("%.0f ms (%.0f ms)", quantile(took, 0.5), quantile(took, 1)), "<= 300 ms"}}, nil
}

// writes measures the bytes that the device takes for each byte kept, with the agent's own means.
func writes(s *stage, _ plan) (rows []row, err error) {
	for _, c := range []struct {
		size int
		goal string
	}{{20_000, "<= 2.2"}, {200_000, "<= 1.2"}} {
		progress("bytes written for each byte kept, commits of %d KB", c.size/1000)
		cmd := exec.CommandContext(s.ctx, s.program("wardlink-agent"), "buffer", "bench", "--dir", s.dir, "--size", fmt.Sprint(c.size), "--seconds", "5", "--json")
		out, err := cmd.Output()
		if err != nil {
			return rows, fmt.Errorf("buffer bench: %w", err)
		}
		var got struct {
			Bytes   int64   `json:"bytes"`
			Device  string  `json:"device"`
			Written int64   `json:"device_bytes"`
			Seconds float64 `json:"seconds"`
			Median  float64 `json:"commit_median_ms"`
		}
		if err := json.Unmarshal(out, &got); err != nil {
			return rows, err
		}
		own := cmd.ProcessState.SysUsage().(*syscall.Rusage).Oublock * 512
		device := "no device is counted"
		if got.Device != "" {
			device = fmt.Sprintf("%.2f", float64(got.Written)/float64(got.Bytes))
		}
		rows = append(rows, row{fmt.Sprintf("device bytes written per byte kept, commits of %d KB (the process's own)", c.size/1000),
			fmt.Sprintf("%s (%.2f)", device, float64(own)/float64(got.Bytes)), c.goal})
	}
	return rows, nil
}

// memory measures an agent that takes one message a second, a batch of its own each, over a backlog.
func memory(s *stage, p plan) (rows []row, err error) {
	for _, size := range p.backlogs {
		state := fmt.Sprintf("backlog-%d", size)
		what := "no backlog, connected"
		if size == 0 {
			if err := s.serve(); err != nil {
				return rows, err
			}
		} else {
			progress("a backlog of %d MB", size)
			b, err := s.fill(state, 1, func(b backlog) bool { return b.bytes >= int64(size)*1_000_000 })
			if err != nil {
				return rows, err
			}
			what = fmt.Sprintf("backlog of %d MB, %d batches, no network", size, b.batches)
		}
		if err := s.configure(state, "swtpm:"+s.tpm.Socket); err != nil {
			return rows, err
		}
		var run load
		for i := range p.runs {
			progress("memory, %s: run %d of %d", what, i+1, p.runs)
			if err := s.load(&run, p); err != nil {
				return rows, err
			}
		}
		rows = append(rows, run.rows(what, p)...)
		if size == 0 {
			s.server.Stop()
		}
		if err := os.RemoveAll(s.path(state)); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// load is what some runs of an agent at one message a second have taken.
type load struct {
	pss, rss, anon, files []int64
	peak                  int64
	first                 []float64 // ms from exec to the first acknowledgement
	own, device           int64
	messages              int
	counted               bool
}

func (l *load) rows(what string, p plan) []row {
	rows := []row{
		{fmt.Sprintf("memory: %s; PSS, median of %d", what, len(l.pss)), mb(quantile(l.pss, 0.5)), "<= 12 MB, the same for every backlog"},
		{"  of that its own (anonymous); of files, which the kernel takes back", mb(quantile(l.anon, 0.5)) + "; " + mb(quantile(l.files, 0.5)), ""},
		{"  RSS, median (highest ever)", mb(quantile(l.rss, 0.5)) + " (" + mb(l.peak) + ")", "<= 20 MB"},
		{fmt.Sprintf("  start to first sample on disk, median of %d", p.runs), fmt.Sprintf("%.0f ms", quantile(l.first, 0.5)), "<= 300 ms"},
	}
	perDay := func(bytes int64) string { return fmt.Sprintf("%.2f GB", float64(bytes)/float64(l.messages)*86400/1e9) }
	device := "no device is counted"
	if l.counted {
		device = perDay(l.device)
	}
	return append(rows, row{"  written a day at one message/s: by the agent (on the device, all programs')", perDay(l.own) + " (" + device + ")", ""})
}

// load runs an agent once: warm-up, samples, end.
func (s *stage) load(l *load, p plan) error {
	begin := time.Now()
	m, err := s.start()
	if err != nil {
		return err
	}
	defer m.Close()
	defer s.agent.Stop()
	if err := m.say(); err != nil {
		return err
	}
	l.first = append(l.first, float64(time.Since(begin).Microseconds())/1000)
	pid := s.agent.PID()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var own, device int64
	next, count := time.Now().Add(p.warmup), -1 // the warm-up's end begins the count
	for {
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-second.C:
		}
		if err := m.say(); err != nil {
			return err
		}
		if count >= 0 {
			l.messages++
		}
		if time.Now().Before(next) {
			continue
		}
		next = next.Add(p.interval)
		if count++; count == 0 {
			if own, err = counter(proc(pid, "io"), "write_bytes"); err != nil {
				return err
			}
			device, l.counted = written(s.dir)
			continue
		}
		now, err := sampleOf(pid)
		if err != nil {
			return err
		}
		l.pss, l.rss, l.anon, l.files = append(l.pss, now.pss), append(l.rss, now.rss), append(l.anon, now.anon), append(l.files, now.files)
		if count < p.samples {
			continue
		}
		peak, err := counter(proc(pid, "status"), "VmHWM")
		if err != nil {
			return err
		}
		after, err := counter(proc(pid, "io"), "write_bytes")
		if err != nil {
			return err
		}
		whole, _ := written(s.dir)
		l.own, l.device, l.peak = l.own+after-own, l.device+whole-device, max(l.peak, peak)
		return nil
	}
}

// rate is how fast one monitor is served that waits for each acknowledgement.
func rate(s *stage, _ plan) ([]row, error) {
	const seconds = 10
	progress("MLLP, one connection that waits, %d s", seconds)
	if err := s.configure("rate", "swtpm:/nonexistent/socket"); err != nil {
		return nil, err
	}
	m, err := s.start()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	defer s.agent.Stop()
	var took []float64
	for begin := time.Now(); time.Since(begin) < seconds*time.Second; {
		one := time.Now()
		if err := m.say(); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(one).Microseconds())/1000)
	}
	return []row{
		{fmt.Sprintf("MLLP, one connection that waits for each acknowledgement, %d s", seconds), fmt.Sprintf("%.0f messages/s", float64(len(took))/seconds), ">= 100 messages/s"},
		{"  from message to acknowledgement, p99 (median)", fmt.Sprintf("%.1f ms (%.1f ms)", quantile(took, 0.99), quantile(took, 0.5)), "p99 <= 40 ms"},
	}, nil
}

// drain is how fast a backlog reaches the server's journal, once the gateway is connected.
func drain(s *stage, p plan) ([]row, error) {
	const messages = 64
	progress("a backlog of %d observations to drain", p.drain)
	b, err := s.fill("drain", messages, func(b backlog) bool { return b.observations >= p.drain })
	if err != nil {
		return nil, err
	}
	if err := s.configure("drain", "swtpm:"+s.tpm.Socket); err != nil {
		return nil, err
	}
	if err := s.serve(); err != nil {
		return nil, err
	}
	m, err := s.start()
	if err != nil {
		return nil, err
	}
	m.Close()
	defer s.agent.Stop()
	total := uint64(b.batches)
	var begin time.Time
	var had uint64
	err = s.until("the drain", s.agent, func(ctx context.Context) (bool, error) {
		left, err := s.left(ctx)
		if err != nil {
			return false, nil
		}
		if begin.IsZero() && left < total {
			begin, had = time.Now(), left
		}
		return !begin.IsZero() && left == 0, nil
	})
	if err != nil {
		return nil, err
	}
	seconds := time.Since(begin).Seconds()
	peak, err := counter(proc(s.agent.PID(), "status"), "VmHWM")
	if err != nil {
		return nil, err
	}
	share := float64(had) / float64(total)
	return []row{
		{fmt.Sprintf("drain of %d observations of %d bytes (HL7), %d batches of %d KB, PUBACKed", b.observations, b.raw/int64(b.observations), b.batches, b.bytes/int64(b.batches)/1000),
			fmt.Sprintf("%.0f observations/s", share*float64(b.observations)/seconds), ">= 150,000 observations/s"},
		{"  RSS of the agent while it drains, highest", mb(peak), "<= 20 MB"},
	}, nil
}

// left asks the agent's socket what waits.
func (s *stage) left(ctx context.Context) (n uint64, err error) {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.path("drain/agent.sock"))
	}}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return 0, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var st struct {
		Buffer struct {
			Lanes []struct {
				Name    string
				Waiting uint64
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return 0, err
	}
	if len(st.Buffer.Lanes) == 0 {
		return 0, errors.New("no lanes")
	}
	for _, l := range st.Buffer.Lanes {
		if l.Name != "self" {
			n += l.Waiting
		}
	}
	return n, nil
}
