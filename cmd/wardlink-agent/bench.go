package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"wardlink/agent"
)

// bufferBench asks a disk how fast, and at what cost, it keeps telemetry. It needs no configuration.
func bufferBench(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("buffer bench", stderr)
	var m agent.Measurement
	fs.StringVar(&m.Dir, "dir", "", "a `DIR` on the disk in question, such as /var/lib; a folder is made in it, and removed")
	fs.IntVar(&m.Count, "count", 0, "end after `N` commits")
	seconds := fs.Int("seconds", 0, "end after `N` seconds (default 10, if there is no --count)")
	fs.IntVar(&m.Size, "size", 20_000, "`BYTES` of a batch: 20000 are some seconds of a ward, 400 one monitor's message")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args); err != nil {
		return err
	}
	if m.Dir == "" {
		return usageError{errors.New("buffer bench: --dir is missing; name a directory on the disk in question")}
	}
	if *seconds == 0 && m.Count == 0 {
		*seconds = 10
	}
	m.Time = time.Duration(min(*seconds, 86400)) * time.Second
	if _, ok := terminal(stderr); ok {
		var last time.Duration
		m.Report = func(n int, took time.Duration) {
			if took-last > 200*time.Millisecond {
				last = took
				fmt.Fprintf(stderr, "\r%d commits in %.0f s ", n, took.Seconds())
			}
		}
		defer fmt.Fprint(stderr, "\r\x1b[K")
	}
	got, err := agent.MeasureBuffer(ctx, m)
	if err != nil {
		return fmt.Errorf("buffer bench: %w", err)
	}
	if *asJSON {
		err = printJSON(stdout, got)
	} else {
		err = printMeasured(stdout, got, m.Size)
	}
	if err == nil && len(got.Problems) > 0 {
		err = fmt.Errorf("buffer bench: %s does not keep what was written to it: %d findings", m.Dir, len(got.Problems))
	}
	return err
}

func printMeasured(stdout io.Writer, m agent.Measured, size int) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "commits\t%d in %.1f s, each a batch of %d bytes, on disk before the next\n", m.Commits, m.Seconds, size)
	if m.Full {
		fmt.Fprintf(w, "\tended early: at most 1 GB, or an eighth of the free space, is used\n")
	}
	if m.Commits > 0 {
		fmt.Fprintf(w, "rate\t%.0f commits/s, %.2f MB/s\n", float64(m.Commits)/m.Seconds, float64(m.Bytes)/m.Seconds/1e6)
		fmt.Fprintf(w, "one commit\tmedian %.1f ms, p99 %.1f ms, longest %.1f ms\n", m.Median, m.P99, m.Longest)
		fmt.Fprintf(w, "files\t%.2f bytes for each byte kept\n", float64(m.Files)/float64(m.Bytes))
		if m.Device != "" {
			fmt.Fprintf(w, "device %s\t%.2f bytes written for each byte kept, what other programs wrote meanwhile included\n", m.Device, float64(m.Written)/float64(m.Bytes))
		} else {
			fmt.Fprintf(w, "device\tthe kernel counts no device for this directory\n")
		}
	}
	fmt.Fprintf(w, "check\t%d of %d batches are there and whole\n", m.Found, m.Commits)
	for _, p := range m.Problems {
		fmt.Fprintf(w, "FINDING\t%s\n", p)
	}
	return w.Flush()
}
