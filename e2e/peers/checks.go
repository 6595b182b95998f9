package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"wardlink/audit"
	"wardlink/e2e/load"
	"wardlink/server/journal"
	"wardlink/server/translog"
	"wardlink/telemetry/seal"
)

// A figure counts only of a server that does what it is measured for. Each check here is also put to the server without storage, which
// must fail it: a check that cannot fail would be worth nothing.

// entries is what a journal gives to its readers.
type entries interface {
	Read(from uint64, max int) ([]journal.Entry, error)
}

// kept holds a journal against what was acknowledged: each batch is in it once, whole, with a row that says which session of which
// certificate brought it from where. It gives the number of the last publish.
func kept(j entries, published []load.Batch) (last uint64, err error) {
	type key struct {
		gateway string
		epoch   [16]byte
	}
	seen := make(map[key][]bool)
	for _, p := range published {
		seen[key{load.Name(p.Gateway), p.Epoch}] = make([]bool, p.Acked)
	}
	for from := uint64(1); ; {
		list, err := j.Read(from, 4096)
		if err != nil {
			return 0, err
		}
		if len(list) == 0 {
			break
		}
		from = list[len(list)-1].Seq + 1
		for i := range list {
			if list[i].Kind != journal.KindPublish {
				continue
			}
			row, err := audit.DecodeRow(list[i].Head)
			if err != nil {
				return 0, fmt.Errorf("journal entry %d: its row of the audit: %w", list[i].Seq, err)
			}
			have := seen[key{row.Gateway, row.Epoch}]
			switch {
			case row.Number >= uint64(len(have)):
				return 0, fmt.Errorf("journal entry %d: batch %d of %s was never acknowledged", list[i].Seq, row.Number, row.Gateway)
			case have[row.Number]:
				return 0, fmt.Errorf("journal entry %d: batch %d of %s is there twice", list[i].Seq, row.Number, row.Gateway)
			case row.Session == audit.EventID{} || row.Serial == "" || row.Peer == "" || row.Verdict != audit.Accepted:
				return 0, fmt.Errorf("journal entry %d: its row does not say which session, certificate and peer brought it", list[i].Seq)
			case row.Frame != seal.FrameHash(list[i].Blob):
				return 0, fmt.Errorf("journal entry %d: its frame is not the one of its row", list[i].Seq)
			}
			have[row.Number], last = true, list[i].Seq
		}
	}
	for k, have := range seen {
		for n, there := range have {
			if !there {
				return 0, fmt.Errorf("batch %d of %s was acknowledged and is not in the journal", n, k.gateway)
			}
		}
	}
	return last, nil
}

// audited holds the stores that a server has left against what it acknowledged: journal, and the log, which must have come to its end.
func audited(j entries, logDir string, published []load.Batch) error {
	last, err := kept(j, published)
	if err != nil {
		return err
	}
	if logged, _, err := translog.Position(logDir); err != nil || logged < last {
		return fmt.Errorf("the log has the journal's entries up to %d of %d: %w", logged, last, err)
	}
	return nil
}

var syncCall = regexp.MustCompile(`\b(fsync|fdatasync|write|writev|pwrite64|pwritev|pwritev2)\(\d+<([^>]*)>`)

// syncs counts, in a trace by 'strace -f -y', what makes bytes below dir durable: fsync, fdatasync, and writes to files opened O_DSYNC or
// O_SYNC, which opened tells.
func syncs(trace io.Reader, dir string, opened func(path string) bool) (n int64) {
	known := make(map[string]bool)
	lines := bufio.NewScanner(trace)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := syncCall.FindStringSubmatch(lines.Text())
		if m == nil || !strings.HasPrefix(m[2], dir+"/") {
			continue
		}
		if m[1] == "fsync" || m[1] == "fdatasync" {
			n++
			continue
		}
		sync, ok := known[m[2]]
		if !ok {
			sync = opened(m[2])
			known[m[2]] = sync
		}
		if sync {
			n++
		}
	}
	return n
}

// openedSync says whether one of the processes has a file open for synchronous writes.
func openedSync(pids []int) func(path string) bool {
	return func(path string) bool {
		for _, pid := range pids {
			fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
			for _, fd := range fds {
				if to, err := os.Readlink(fd); err != nil || to != path {
					continue
				}
				info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, filepath.Base(fd)))
				if _, flags, ok := strings.Cut(string(info), "flags:"); ok {
					if bits, err := strconv.ParseInt(strings.Fields(flags)[0], 8, 64); err == nil && bits&syscall.O_DSYNC != 0 {
						return true
					}
				}
			}
		}
		return false
	}
}

// synced watches a server's system calls while one client has one publish in flight: then each PUBACK must have had a sync of its own.
func (b *bench) synced(r *running) (err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(r.store, &fs); err != nil {
		return err
	}
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	if fs.Type == tmpfs || fs.Type == ramfs {
		return fmt.Errorf("%s is in memory, where a sync is nothing; name a directory on a disk with --dir", r.store)
	}
	var pids []int
	for _, pid := range r.pids {
		all, err := load.Tree(pid)
		if err != nil {
			return err
		}
		pids = append(pids, all...)
	}
	out := filepath.Join(b.dir, "trace")
	args := []string{"-f", "-q", "-y", "-s", "0", "-e", "trace=fsync,fdatasync,write,writev,pwrite64,pwritev,pwritev2", "-o", out}
	for _, pid := range pids {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "strace", args...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("strace: %w", err)
	}
	for _, pid := range pids {
		for begun := time.Now(); !traced(pid); time.Sleep(10 * time.Millisecond) {
			if time.Since(begun) > 10*time.Second {
				return fmt.Errorf("strace does not get at process %d; may this machine's processes be traced?", pid)
			}
		}
	}
	a, err := b.load.Do(load.Job{Addr: r.addr, Clients: 1, Size: 1024, InFlight: 1, Warm: 0, Measure: 500 * time.Millisecond}, func(string) {})
	opened := openedSync(pids)
	trace, oerr := os.Open(out)
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	defer trace.Close()
	n := syncs(trace, r.store, opened)
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	if err != nil {
		return err
	}
	b.published = append(b.published, a.Batches...)
	if acked := acknowledged(a.Batches); n < acked || acked == 0 {
		return fmt.Errorf("%d PUBACKs, one in flight at a time, had %d syncs below %s", acked, n, r.store)
	}
	return nil
}

func traced(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), "TracerPid:")
	f := strings.Fields(rest)
	return len(f) > 0 && f[0] != "0"
}
