package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"wardlink/internal/build"
)

// row is a server's figures of one shape: of the rate the median and the range, of the others the median.
type row struct {
	Server string  `json:"server"`
	What   string  `json:"what"`
	Shape  shape   `json:"shape"`
	Median figure  `json:"median"`
	Least  float64 `json:"least_per_second"`
	Most   float64 `json:"most_per_second"`
	Ratio  float64 `json:"ours_is_times"` // our rate by this server's
}

// goal is one of DESIGN's, beside what was measured.
type goal struct {
	What   string  `json:"what"`
	Want   string  `json:"want"`
	Got    string  `json:"got"`
	Met    bool    `json:"met"`
	Margin float64 `json:"margin"` // got by wanted where more is better, else wanted by got: 1 is just met
}

type report struct {
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	Machine string    `json:"machine"`
	Load    string    `json:"load_average_before_and_after"`
	Seconds float64   `json:"seconds_each"`
	Rounds  int       `json:"rounds"`
	Peers   []string  `json:"peers"`
	Took    string    `json:"took"`
	Rows    []row     `json:"rows"`
	Goals   []goal    `json:"goals"`

	profiles []string
}

// median of what f gives of each; 0 of none.
func median[T cmp.Ordered](figures []figure, f func(figure) T) (m T) {
	var all []T
	for _, x := range figures {
		all = append(all, f(x))
	}
	slices.Sort(all)
	if len(all) == 0 {
		return m
	}
	return all[len(all)/2]
}

func (b *bench) report() *report {
	r := &report{
		Date: time.Now().UTC().Truncate(time.Second), Version: build.Version, Machine: machine(), Load: b.busy + " | " + loadAverage(), Seconds: b.seconds,
		Rounds: b.rounds, profiles: b.profiles, Took: time.Since(b.began).Round(time.Second).String(),
		Peers: []string{firstLine("/usr/sbin/mosquitto", "-h"), firstLine(b.nats, "--version")},
	}
	for _, sh := range b.shapes() {
		own := median(b.figures[ours][sh], func(f figure) float64 { return f.Rate })
		for _, s := range subjects() {
			figures := b.figures[s.name][sh]
			if len(figures) == 0 {
				continue
			}
			x := row{Server: s.name, What: s.what, Shape: sh, Median: figure{
				Rate: median(figures, func(f figure) float64 { return f.Rate }), P50: median(figures, func(f figure) time.Duration { return f.P50 }),
				P99: median(figures, func(f figure) time.Duration { return f.P99 }), CPU: median(figures, func(f figure) float64 { return f.CPU }),
				Load: median(figures, func(f figure) float64 { return f.Load }), RSS: median(figures, func(f figure) int64 { return f.RSS }),
				HalfP99: median(figures, func(f figure) time.Duration { return f.HalfP99 }), HalfAt: median(figures, func(f figure) float64 { return f.HalfAt }),
				HalfCPU: median(figures, func(f figure) float64 { return f.HalfCPU }),
			}}
			rates := slices.SortedFunc(slices.Values(figures), func(a, b figure) int { return cmp.Compare(a.Rate, b.Rate) })
			x.Least, x.Most = rates[0].Rate, rates[len(rates)-1].Rate
			x.Ratio = own / max(x.Median.Rate, 1)
			r.Rows = append(r.Rows, x)
		}
	}
	r.judge()
	return r
}

// row gives a server's figures of the judged shape.
func (r *report) row(server string) (figure, bool) {
	for _, x := range r.Rows {
		if x.Server == server && x.Shape == judged {
			return x.Median, true
		}
	}
	return figure{}, false
}

// judge holds the figures against DESIGN's goals.
func (r *report) judge() {
	own, measured := r.row(ours)
	times := func(what, server string, want float64) {
		if peer, ok := r.row(server); ok && measured {
			got := own.Rate / max(peer.Rate, 1)
			r.Goals = append(r.Goals, goal{what, fmt.Sprintf(">= %g x", want), fmt.Sprintf("%.2f x", got), got >= want, got / want})
		}
	}
	most := func(what, unit string, got, want float64) {
		r.Goals = append(r.Goals, goal{what, fmt.Sprintf("<= %g %s", want, unit), fmt.Sprintf("%.1f %s", got, unit), got <= want, want / got})
	}
	times("publishes/s, of NATS with an fsync for each message", nats, 10)
	times("publishes/s, of mosquitto with one subscriber", brokerTo, 0.9)
	times("publishes/s, of mosquitto without one, which then has nothing to do", broker, 0.9)
	times("publishes/s, of ourselves without storing", unstored, 0.7)
	if pg, ok := r.row(oursPG); ok {
		r.Goals = append(r.Goals, goal{"publishes/s on PostgreSQL", ">= 10000", fmt.Sprintf("%.0f", pg.Rate), pg.Rate >= 10000, pg.Rate / 10000})
	}
	if measured {
		most("server CPU for each 1 KB publish, durable and audited", "us", own.CPU, 25)
		most("PUBACK p99 at half load, fsynced", "ms", ms(own.HalfP99), 25)
	}
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\nwardlink %s, %s, %s\n%s\nload average before | after: %s; %d rounds of %g s each, medians; %s\n", r.Version, r.Date.Format(time.DateOnly), r.Machine,
		strings.Join(r.Peers, "; "), r.Load, r.Rounds, r.Seconds, r.Took)
	var last shape
	for _, x := range r.Rows {
		if x.Shape != last {
			last = x.Shape
			fmt.Fprintf(w, "\n%d clients, %d bytes, %d in flight each\n", x.Shape.Clients, x.Shape.Size, inFlight)
			fmt.Fprintf(w, "  %-38s %10s %19s %8s %8s %8s %9s %9s %8s %8s %7s\n", "", "msgs/s", "[min-max]", "ours is", "p50 ms", "p99 ms", "half p99", "its cores", "CPU us", "load us", "MB")
		}
		half, cores := "-", "-"
		if x.Median.HalfP99 > 0 {
			half, cores = fmt.Sprintf("%.1f", ms(x.Median.HalfP99)), fmt.Sprintf("%.1f", x.Median.HalfCPU)
		}
		fmt.Fprintf(w, "  %-38s %10.0f %19s %7.2fx %8.1f %8.1f %9s %9s %8.1f %8.1f %7d\n", x.What, x.Median.Rate, fmt.Sprintf("[%.0f-%.0f]", x.Least, x.Most),
			x.Ratio, ms(x.Median.P50), ms(x.Median.P99), half, cores, x.Median.CPU, x.Median.Load, x.Median.RSS>>20)
	}
	fmt.Fprintf(w, "\nGoals, of %d clients with %d bytes\n", judged.Clients, judged.Size)
	for _, g := range r.Goals {
		verdict := "met"
		if !g.Met {
			verdict = fmt.Sprintf("MISSED, at %.0f %% of it", 100*g.Margin)
		}
		fmt.Fprintf(w, "  %-70s %10s   goal %-10s %s\n", g.What, g.Got, g.Want, verdict)
	}
	for _, p := range r.profiles {
		fmt.Fprint(w, p)
	}
	fmt.Fprintln(w, "\nChecked: no client without TLS 1.3 and a certificate; a sync for each PUBACK; each acknowledged batch in the journal once with its audit row, and in the log.")
}

func machine() string {
	model := runtime.GOARCH
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := bytes.Cut(data, []byte("model name")); ok {
			line, _, _ := bytes.Cut(rest, []byte("\n"))
			model = strings.TrimLeft(string(line), "\t :")
		}
	}
	return fmt.Sprintf("%d cores of %s, load and servers on the same", runtime.NumCPU(), model)
}

func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(data)); err == nil && len(f) > 2 {
		return strings.Join(f[:3], " ")
	}
	return "unknown"
}

// firstLine of what a program says of itself, whatever it ends with.
func firstLine(program, arg string) string {
	out, _ := exec.Command(program, arg).Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
