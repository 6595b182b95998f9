package main

import (
	"fmt"
	"io"
	"runtime"
	"time"

	"wardlink/internal/build"
)

// The goals of DESIGN and of line 6 of what was asked for.
const (
	idleGoal  = 45 << 10 // bytes an idle connection
	stormGoal = 2.0      // times the p99 before
	floodGoal = 1.2      // times the p99 before, and by which the others' throughput may shrink: "nothing", within what repeats itself
)

func (s *stage) print(w io.Writer) {
	r := &s.result
	fmt.Fprintf(w, "\nwardlink %s, %s, %d cores, gateways and server on the same; %d gateways idle, %d publish %.0f/s together\n", build.Version,
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), r.Gateways, r.Steady, r.Rate)
	line := func(what, got string, goal string, met bool) {
		verdict := ""
		if goal != "" {
			verdict = "goal " + goal
			if met {
				verdict += ", met"
			} else {
				verdict += ", MISSED"
			}
		}
		fmt.Fprintf(w, "  %-66s %16s   %s\n", what, got, verdict)
	}
	fmt.Fprintln(w, "\nIdle connections, mutual TLS 1.3, subscribed, a ping in 30 s")
	line("memory of the server without connections", mb(r.EmptyMemory), "", true)
	each := float64(r.ConnectCPU.Microseconds()) / 1000 / float64(r.Gateways)
	line("server's CPU for each connect", fmt.Sprintf("%.2f ms", each), "", true)
	line("  which alone takes, on one core", fmt.Sprintf("%.1f s", r.ConnectCPU.Seconds()), "", true)
	line(fmt.Sprintf("with all, at once after %.1f s of connecting", r.ConnectTook), mb(r.FullMemory), "", true)
	line(fmt.Sprintf("with all, settled after %.0f s", r.Settled), mb(r.IdleMemory), "", true)
	line("memory of an idle connection, settled", fmt.Sprintf("%.1f KB", r.PerIdle/1024), "<= 45 KB", r.PerIdle <= idleGoal)

	fmt.Fprintln(w, "\nAll idle ones drop and come back at once, with the agents' waits")
	line("half are back", fmt.Sprintf("%.1f s", r.BackHalf), "", true)
	line("99 of 100 are back", fmt.Sprintf("%.1f s", r.BackMost), "", true)
	line("all are back", fmt.Sprintf("%.1f s", r.BackAll), "", true)
	line("attempts for each", fmt.Sprintf("%.2f", float64(r.Tries)/float64(r.Gateways)), "", true)
	line("memory of the server then", mb(r.StormMemory), "", true)
	s.compare(line, "p99 of those who publish", r.StormBefore, r.StormDuring, stormGoal)

	fmt.Fprintf(w, "\nOne gateway floods, with %d publishes in flight\n", flooding)
	line("it gets", fmt.Sprintf("%.0f/s", r.FloodRate), "", true)
	line("  times the rate of another", fmt.Sprintf("%.0f", r.FloodRate*float64(r.Steady)/r.Rate), "", true)
	if r.FloodEnd != "" {
		fmt.Fprintln(w, "  its end:", r.FloodEnd)
	}
	s.compare(line, "p99 of the others", r.FloodBefore, r.FloodDuring, floodGoal)
	share := r.FloodDuring.Rate / r.FloodBefore.Rate
	line("acknowledged/s of the others, before and during", fmt.Sprintf("%.0f, %.0f", r.FloodBefore.Rate, r.FloodDuring.Rate), ">= 0.95 x", share >= 0.95)
}

func (s *stage) compare(line func(what, got, goal string, met bool), what string, before, during calm, goal float64) {
	times := float64(during.P99) / float64(max(before.P99, 1))
	line(what+", before and during", fmt.Sprintf("%.1f, %.1f ms", ms(before.P99), ms(during.P99)), fmt.Sprintf("<= %g x (%.2f x)", goal, times), times <= goal)
	line("  median, before and during", fmt.Sprintf("%.1f, %.1f ms", ms(before.P50), ms(during.P50)), "", true)
	line("  p99 of what their own process was late, before and during", fmt.Sprintf("%.1f, %.1f ms", ms(before.Late), ms(during.Late)), "", true)
	line("  longest, before and during", fmt.Sprintf("%.0f, %.0f ms", ms(before.Worst), ms(during.Worst)), "", true)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
func mb(n int64) string          { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }
