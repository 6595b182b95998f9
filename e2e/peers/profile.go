package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wardlink/e2e/load"
)

// profiled takes a CPU profile of one of our servers while it serves the judged shape. The figures are taken without one.
func (b *bench) profiled(s subject, r *running) error {
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		return err
	}
	path := filepath.Join(b.profile, s.name+".pprof")
	measured := max(5*time.Second, time.Duration(b.seconds*float64(time.Second)))
	taken := make(chan error, 1)
	a, err := b.load.Do(load.Job{Addr: r.addr, Clients: judged.Clients, Size: judged.Size, InFlight: inFlight, Warm: warm, Measure: measured}, func(state string) {
		if state == "from" {
			go func() { taken <- fetch(r.debug, path, measured-time.Second) }()
		}
	})
	if err != nil {
		return err
	}
	b.published = append(b.published, a.Batches...)
	if err := <-taken; err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	out, err := exec.Command("go", "tool", "pprof", "-top", "-cum", "-nodecount=100000", path).Output()
	if err != nil {
		return fmt.Errorf("go tool pprof: %w", err)
	}
	b.profiles = append(b.profiles, fmt.Sprintf("\nWhere the time of %s goes, of all CPU time of its process (%s has more: go tool pprof -http=: FILE)\n%s", s.what, path, shares(string(out))))
	return nil
}

// parts are what the CPU time of our servers is told by; indented ones lie within the one above.
var parts = []struct{ what, function string }{
	{"endpoint, reading: packets, checks, rows", "wardlink/server/ingest.(*Server).ServeConn"},
	{"    TLS: reading and decrypting", "crypto/tls.(*Conn).Read"},
	{"    whether the frame is whole, and its hash (SHA-256)", "wardlink/telemetry/seal.CheckAndHash"},
	{"    encoding the audit's row", "wardlink/audit.EncodeRow"},
	{"endpoint, writing: PUBACKs", "crypto/tls.(*Conn).Write"},
	{"journal: commits", "wardlink/server/journal.(*Journal).run"},
	{"journal: telling who waits", "wardlink/server/journal.(*Journal).notify"},
	{"journal in PostgreSQL: appending, PostgreSQL's own time apart", "wardlink/server/journal/pgjournal.(*Journal).run"},
	{"log: reading the journal, windows, signatures", "wardlink/server/translog.(*Log).Run"},
	{"    decoding the audit's rows", "wardlink/audit.DecodeRow"},
	{"Go: garbage collection beside", "runtime.gcBgMarkWorker"},
	{"system calls, wherever they are made", "internal/runtime/syscall/linux.Syscall6"},
}

// shares reads the share of each part off a listing of pprof by cumulated time.
func shares(top string) string {
	of := make(map[string]string)
	for line := range strings.Lines(top) {
		if f := strings.Fields(line); len(f) >= 6 {
			of[f[5]] = f[4]
		}
	}
	var b strings.Builder
	for _, p := range parts {
		if share, ok := of[p.function]; ok {
			fmt.Fprintf(&b, "  %-64s %s\n", p.what, share)
		}
	}
	return b.String()
}

func fetch(socket, path string, d time.Duration) error {
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	resp, err := c.Get(fmt.Sprintf("http://server/debug/pprof/profile?seconds=%d", int(d.Seconds())))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, resp.Body); err != nil {
		return err
	}
	return f.Close()
}
