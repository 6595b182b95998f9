package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// counter reads "name: number" from a file of /proc; kB are bytes then.
func counter(path, name string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == name+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if len(f) > 2 && f[2] == "kB" {
				n <<= 10
			}
			return n, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

func proc(pid int, file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }

// sample is what a process takes of memory, in bytes. files is the part of pss that its mapped files and its program are, which the kernel
// takes back when it wants room.
type sample struct{ pss, rss, anon, files int64 }

func sampleOf(pid int) (m sample, err error) {
	for name, to := range map[string]*int64{"Pss": &m.pss, "Rss": &m.rss, "Pss_Anon": &m.anon, "Pss_File": &m.files} {
		if *to, err = counter(proc(pid, "smaps_rollup"), name); err != nil {
			return m, err
		}
	}
	return m, nil
}

// written is what a device below a directory has taken since the machine started, whoever wrote it; ok is false where the kernel counts none.
func written(dir string) (bytes int64, ok bool) {
	var st unix.Stat_t
	f, err := os.Open("/proc/diskstats")
	if err != nil || unix.Stat(dir, &st) != nil {
		return 0, false
	}
	defer f.Close()
	major, minor := strconv.Itoa(int(unix.Major(uint64(st.Dev)))), strconv.Itoa(int(unix.Minor(uint64(st.Dev))))
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 9 && fields[0] == major && fields[1] == minor {
			sectors, err := strconv.ParseInt(fields[9], 10, 64)
			return sectors * 512, err == nil
		}
	}
	return 0, false
}

// quantile of what was measured: at is 0.5 for the median, 0.99 for the 99th percentile.
func quantile[T int64 | float64](values []T, at float64) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(at*float64(len(sorted))))]
}

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
