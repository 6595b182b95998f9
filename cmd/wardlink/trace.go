package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

// errStopped is the end of a trace that found a station stopped: exit code 2, after all has been printed.
var errStopped = errors.New("a station has stopped")

func (t *tool) trace() *cobra.Command {
	var gateway, source string
	var follow bool
	var every time.Duration
	c := &cobra.Command{
		Use: "trace --gateway G | --source S", Short: "Show where a monitor's data stops, and the mend", Args: cobra.NoArgs,
		Long: `Shows, for each source of a gateway, when and how much last passed each station of a sample's way, the first station that stopped, and what to do.

What the gateway does itself (received to published) is known from its agent's reports; KNOWN says how old that knowledge is. A gateway that is
silent is shown as it last was. A source is silent after five times its usual interval, and not before a minute.

Exit code: 0 data arrives, 1 the server could not be asked, 2 a station has stopped.`,
		Example: `  wardlink trace --source icu-bed-12
  wardlink trace --gateway icu-7 --follow
  wardlink trace --gateway icu-7 --json | jq -r '.[] | select(.stopped != "") | .mend'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if gateway == "" && source == "" {
				return errors.New("name what to trace: --gateway G (see 'wardlink gateway list') or --source S (an id of the gateway's agent.yaml)")
			}
			if follow && every < time.Second {
				return fmt.Errorf("--every %s: expected at least 1s; each look is an entry of the log", every)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			ask := func(ctx context.Context) (traces []client.Trace, err error) {
				q := url.Values{}
				for key, v := range map[string]string{"gateway": gateway, "source": source} {
					if v != "" {
						q.Set(key, v)
					}
				}
				return traces, c.Get(ctx, "/v1/trace", q, &traces)
			}
			if follow {
				return t.followTrace(cmd.Context(), every, ask)
			}
			traces, err := ask(cmd.Context())
			if err != nil {
				return err
			}
			if t.json {
				err = t.printJSON(traces)
			} else {
				_, err = io.WriteString(t.out, tracePage(traces, wantsColour(t.out)))
			}
			return errors.Join(err, stoppedIn(traces))
		},
	}
	c.Flags().StringVar(&gateway, "gateway", "", "trace every source of gateway `G`, or with --source that one")
	c.Flags().StringVar(&source, "source", "", "trace source `S`, at each gateway that has it")
	c.Flags().BoolVar(&follow, "follow", false, "look again and again; on a terminal one screen, otherwise a line for each look")
	c.Flags().DurationVar(&every, "every", 5*time.Second, "with --follow: how often")
	return c
}

func stoppedIn(traces []client.Trace) error {
	for _, tr := range traces {
		if tr.Stopped != "" {
			return errStopped
		}
	}
	return nil
}

// followTrace looks until ctx ends. A look that fails is shown, and the next one follows. It ends as the last look did.
func (t *tool) followTrace(ctx context.Context, every time.Duration, ask func(context.Context) ([]client.Trace, error)) error {
	screen := isTerminal(t.out) && !t.json
	colour := wantsColour(t.out)
	if screen {
		fmt.Fprint(t.out, "\x1b[?25l\x1b[2J") // hide the cursor, clear once
		defer fmt.Fprint(t.out, "\x1b[?25h")  // and show it again
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		traces, err := ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var werr error
		switch {
		case t.json && err == nil:
			werr = json.NewEncoder(t.out).Encode(traces)
		case screen:
			page := ""
			if err != nil {
				page = fmt.Sprintf("%s  the server cannot be asked: %v\n", time.Now().Format(time.TimeOnly), err)
			} else {
				page = tracePage(traces, colour)
			}
			// Each line wipes what was behind it, and the end what was below: no flicker.
			_, werr = io.WriteString(t.out, "\x1b[H"+strings.ReplaceAll(page, "\n", "\x1b[K\n")+"\x1b[J")
		case err != nil:
			_, werr = fmt.Fprintf(t.err, "%s the server cannot be asked: %v\n", time.Now().UTC().Format(time.RFC3339), err)
		default:
			_, werr = io.WriteString(t.out, traceLines(traces))
		}
		if werr != nil {
			return werr
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return err
			}
			return stoppedIn(traces)
		case <-tick.C:
		}
	}
}

// traceLines is one line for each source.
func traceLines(traces []client.Trace) string {
	var b strings.Builder
	for _, tr := range traces {
		state := "ok"
		if tr.Stopped != "" {
			state = "stopped at " + tr.Stopped
		}
		fmt.Fprintf(&b, "%s %s %s: %s", tr.At.UTC().Format(time.RFC3339), tracedName(tr), state, tr.Why)
		if tr.Mend != "" {
			fmt.Fprintf(&b, "; %s", tr.Mend)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func tracedName(tr client.Trace) string {
	switch {
	case tr.Source == "":
		return tr.Gateway
	case tr.Gateway == "":
		return tr.Source
	}
	return tr.Gateway + "/" + tr.Source
}

// tracePage is the whole picture, without colour as wide as its texts.
func tracePage(traces []client.Trace, colour bool) string {
	paint := func(code, text string) string {
		if !colour {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	var b strings.Builder
	for i, tr := range traces {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s  %s\n", paint("1", tracedName(tr)), tr.At.Local().Format("2006-01-02 15:04:05"))
		var table strings.Builder
		w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "  STATION\tSTATE\tLAST\tCOUNT\tKNOWN\tNOTE")
		for _, s := range tr.Stations {
			last, known := "never", "now"
			if s.Last != nil {
				last = span(max(0, tr.At.Sub(*s.Last))) + " ago"
			}
			if s.KnownFor > 0 {
				known = span(time.Duration(s.KnownFor)*time.Second) + " ago"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.State, last, grouped(s.Count), known, s.Note)
		}
		_ = w.Flush() // a strings.Builder takes everything
		for _, line := range strings.SplitAfter(table.String(), "\n") {
			b.WriteString(paintState(strings.TrimRight(line, " \n"), paint))
			if strings.HasSuffix(line, "\n") {
				b.WriteByte('\n')
			}
		}
		if tr.Stopped == "" {
			fmt.Fprintf(&b, "  %s %s\n", paint("32;1", "data arrives:"), strings.TrimPrefix(tr.Why, "data arrives; "))
			continue
		}
		fmt.Fprintf(&b, "  %s %s\n  %s %s\n", paint("31;1", "stopped at "+tr.Stopped+":"), tr.Why, paint("1", "mend:"), tr.Mend)
	}
	return b.String()
}

// paintState colours the state in a finished line, so that the columns stay in line.
func paintState(line string, paint func(code, text string) string) string {
	for word, code := range map[string]string{"stopped": "31;1", "doubt": "33", "ok": "32", "waits": "2", "unknown": "33"} {
		if i := strings.Index(line, " "+word+" "); i > 0 && i < 24 {
			return line[:i+1] + paint(code, word) + line[i+1+len(word):]
		}
	}
	return line
}

// grouped is a count with its thousands apart.
func grouped(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// wantsColour: a terminal, unless NO_COLOR is set (no-color.org) or the terminal can do none.
func wantsColour(out io.Writer) bool { return isTerminal(out) && os.Getenv("NO_COLOR") == "" }
