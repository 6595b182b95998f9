package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"wardlink/agent"
	"wardlink/agent/doctor"
)

const (
	watchTick    = time.Second
	watchExamine = 3 * time.Second // between two examinations, which look at TPM and network
	watchSeen    = 3 * time.Second // between two questions to the hospital, each a handshake with the TPM's signature
	examined     = 4               // the first steps are an examination's
)

// watchDoctor shows the steps until the last is done, which is exit code 0; interrupted before, it is 1.
func watchDoctor(ctx context.Context, path string, out io.Writer, asJSON bool) error {
	in := &installation{path: path}
	ctx, cancel := context.WithCancel(ctx)
	defer in.busy.Wait()
	defer cancel()
	view := &stepView{out: out, asJSON: asJSON, pen: inkFor(out), width: widthOf(out)}
	defer view.close()
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	for {
		steps, fingerprint := in.look(ctx)
		if ctx.Err() == nil {
			if err := view.show(steps, fingerprint, time.Now()); err != nil {
				return verdict{1, err}
			}
		}
		open := doctor.Open(steps)
		if open < 0 {
			return view.end(steps)
		}
		select {
		case <-ctx.Done():
			view.close()
			return verdict{1, fmt.Errorf("interrupted before the hospital has seen this gateway; open: %s", steps[open].Name)}
		case <-tick.C:
		}
	}
}

// installation gathers what is known. Examinations and questions to the hospital take seconds and run beside the view.
type installation struct {
	path string
	busy sync.WaitGroup

	mu        sync.Mutex
	known     doctor.Install
	examining bool
	examined  time.Time
	asking    bool
	asked     time.Time
}

// look asks the agent, starts what is due, and judges.
func (in *installation) look(ctx context.Context) (steps []doctor.Step, fingerprint string) {
	cfg, err := agent.LoadConfig(in.path)
	var status *agent.Status
	if err == nil {
		var s agent.Status
		if s, err = agent.AskStatus(ctx, cfg); err == nil {
			status = &s
		}
	}
	now := time.Now()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.known.Status, in.known.NoAgent = status, err
	steps = in.known.Steps(now)
	if open := doctor.Open(steps); open >= 0 && open < examined && !in.examining && now.Sub(in.examined) > watchExamine {
		in.examining = true
		in.busy.Go(func() { in.examine(ctx) })
	}
	if status != nil && status.Uplink.Connected && in.known.Seen.Epoch != status.Epoch && !in.asking && now.Sub(in.asked) > watchSeen {
		in.asking = true
		in.busy.Go(func() { in.ask(ctx, cfg) })
	}
	switch {
	case status != nil && status.Waiting != "":
		fingerprint = status.Waiting
	case status != nil:
		fingerprint = status.Short
	default:
		fingerprint = in.known.Report.Fingerprint
	}
	return steps, fingerprint
}

func (in *installation) examine(ctx context.Context) {
	r := doctor.Examine(ctx, in.path)
	in.mu.Lock()
	defer in.mu.Unlock()
	if ctx.Err() == nil {
		in.known.Report = r
	}
	in.examining, in.examined = false, time.Now()
}

func (in *installation) ask(ctx context.Context, cfg agent.Config) {
	seen, err := agent.AskSeen(ctx, cfg)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.known.Seen, in.known.SeenFail = seen, err
	in.asking, in.asked = false, time.Now()
}

// stepView shows steps: on a terminal as a page that is drawn over, elsewhere a line or a JSON document for each change.
type stepView struct {
	out    io.Writer
	asJSON bool
	pen    ink
	width  int
	former []doctor.Step
	screen bool // the alternate screen is on
}

func (v *stepView) show(steps []doctor.Step, fingerprint string, now time.Time) error {
	f, onScreen := terminal(v.out)
	switch {
	case v.asJSON:
		if slices.Equal(steps, v.former) {
			return nil
		}
		v.former = steps
		return json.NewEncoder(v.out).Encode(map[string]any{"at": now, "fingerprint": fingerprint, "steps": steps})
	case onScreen:
		if !v.screen {
			v.screen = true
			fmt.Fprint(v.out, "\x1b[?1049h\x1b[?25l")
		}
		width, height := size(f)
		text := v.page(steps, width)
		if fingerprint != "" {
			text += "\n" + qr(fingerprint, v.pen)
		}
		_, err := io.WriteString(v.out, fit(text, width, height))
		return err
	}
	for i, s := range steps {
		if i < len(v.former) && steady(v.former[i]) == steady(s) || s.Found == "" {
			continue
		}
		if _, err := fmt.Fprintf(v.out, "%s  %-5s %s\n", now.Format("15:04:05"), mark(s), strings.TrimSpace(wrap(s.Name+": "+s.Found, 0, 0))); err != nil {
			return err
		}
	}
	v.former = steps
	return nil
}

// steady is a step without the parts of its words that grow by the second.
func steady(s doctor.Step) doctor.Step {
	if s.Done {
		s.Found = ""
	}
	return s
}

func mark(s doctor.Step) string {
	switch {
	case s.Done:
		return "ok"
	case s.Found == "":
		return "-"
	}
	return "waits"
}

func (v *stepView) page(steps []doctor.Step, width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", v.pen.paint("1", "wardlink-agent doctor --watch: until the hospital has seen this gateway"))
	open := doctor.Open(steps)
	for i, s := range steps {
		level := agent.Warning
		if s.Done {
			level = agent.Well
		}
		m := fmt.Sprintf("%-5s", mark(s))
		if s.Done || s.Found != "" {
			m = v.pen.level(level, m)
		}
		fmt.Fprintf(&b, "%s %-14s %s\n", m, s.Name, wrap(s.Found, 21, width))
		if i == open && s.Mend != "" {
			fmt.Fprintf(&b, "%-17s -> %s\n", "", wrap(s.Mend, 21, width))
		}
	}
	return b.String()
}

// close gives the terminal back.
func (v *stepView) close() {
	if v.screen {
		v.screen = false
		fmt.Fprint(v.out, "\x1b[?25h\x1b[?1049l")
	}
}

// end leaves the steps, all done, and the hospital's word on the terminal.
func (v *stepView) end(steps []doctor.Step) error {
	last := steps[len(steps)-1].Found
	onScreen := v.screen
	v.close()
	switch {
	case v.asJSON:
		return nil
	case onScreen:
		fmt.Fprintf(v.out, "%s\n%s\n", v.page(steps, v.width), v.pen.level(agent.Well, last))
	default:
		fmt.Fprintln(v.out, last)
	}
	return nil
}
