package load

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the kernel's unit of processor time in /proc (USER_HZ), 100 a second on every Linux architecture of ours.
const tick = 10 * time.Millisecond

// Usage is what a process and its descendants have used of the processors, and hold of memory now.
type Usage struct {
	CPU time.Duration // ended descendants that were waited for included
	RSS int64         // bytes; what processes share is counted once where the kernel tells it (PSS)
}

type stat struct {
	pid, parent int
	cpu, waited time.Duration
}

func readStat(pid string) (s stat, ok bool) {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return s, false
	}
	// The name, in parentheses, may hold anything; what counts comes behind its last parenthesis.
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return s, false
	}
	f := strings.Fields(string(data[end+1:]))
	if len(f) < 15 {
		return s, false
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	s.pid, _ = strconv.Atoi(pid)
	s.parent = int(number(1))
	s.cpu, s.waited = time.Duration(number(11)+number(12))*tick, time.Duration(number(13)+number(14))*tick
	return s, true
}

// Tree gives a process and its descendants.
func Tree(pid int) (pids []int, err error) {
	all, err := tree(pid)
	for _, s := range all {
		pids = append(pids, s.pid)
	}
	return pids, err
}

func tree(root int) ([]stat, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	children := make(map[int][]stat)
	var out []stat
	for _, d := range dirs {
		s, ok := readStat(filepath.Base(d))
		if !ok {
			continue // it has ended meanwhile
		}
		if s.pid == root {
			out = append(out, s)
		}
		children[s.parent] = append(children[s.parent], s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("process %d has ended", root)
	}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i].pid]...)
	}
	return out, nil
}

// UsageOf sums up what processes and their descendants use.
func UsageOf(pids ...int) (u Usage, err error) {
	for _, pid := range pids {
		all, err := tree(pid)
		if err != nil {
			return u, err
		}
		for _, s := range all {
			u.CPU += s.cpu + s.waited
			u.RSS += pss(s.pid)
		}
	}
	return u, nil
}

// pss is a process's share of memory, or all that it maps where the kernel does not tell.
func pss(pid int) int64 {
	for _, from := range []struct{ file, key string }{{"smaps_rollup", "Pss:"}, {"status", "VmRSS:"}} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, from.file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == from.key {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				return kb << 10
			}
		}
	}
	return 0
}
