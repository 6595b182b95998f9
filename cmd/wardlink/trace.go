package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
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
		Use: "trace --gateway G | --source S", Short: "Show where a monitor's data stops, and the mend", Args: none("--source"),
		Long: `Shows, for each source of a gateway, when and how much last passed each station of a sample's way, the first station that stopped, and what to do.

What the gateway does itself (received to published) is known from its agent's reports; KNOWN says how old that knowledge is. A gateway that is
silent is shown as it last was. A source is silent after five times its usual interval, and not before a minute.

COUNT: from received to published since the agent's start, buffered what waits now, journaled and what follows since the source is known.
Sealed to opened are counted for the whole gateway; a batch holds one message or many, and what was not acknowledged is published again.

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
			if width, _ := screenSize(t.out); t.json {
				err = t.printJSON(traces)
			} else {
				_, err = io.WriteString(t.out, tracePage(traces, wantsColour(t.out), width))
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
		fmt.Fprint(t.out, "\x1b[?25l\x1b[?7l\x1b[2J")  // hide the cursor, let long lines end at the edge, clear once
		defer fmt.Fprint(t.out, "\x1b[?7h\x1b[?25h\n") // and undo that
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
			width, most := screenSize(t.out)
			if err != nil {
				page = paragraph(time.Now().Format(time.TimeOnly)+" the server cannot be asked:", "", err.Error(), max(0, width-1), func(_, text string) string { return text })
			} else {
				page = tracePage(traces, colour, max(0, width-1)) // in the last column the wipe would take a line's last letter
			}
			// Each line wipes what was behind it, and the end what was below: no flicker. What is below the screen is cut, not scrolled.
			lines := strings.SplitAfter(strings.TrimSuffix(page, "\n"), "\n")
			if most > 1 && len(lines) > most {
				lines = append(lines[:most-1], fmt.Sprintf("... %d more lines; name one source with --source", len(lines)-most+1))
			}
			_, werr = io.WriteString(t.out, "\x1b[H"+strings.ReplaceAll(strings.Join(lines, ""), "\n", "\x1b[K\n")+"\x1b[K\x1b[J")
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

// tracePage is the whole picture. Its sentences are broken at width, unless that is 0.
func tracePage(traces []client.Trace, colour bool, width int) string {
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
		ward := ""
		if tr.Ward != "" {
			ward = "ward " + tr.Ward + "  "
		}
		fmt.Fprintf(&b, "%s  %s%s\n", paint("1", tracedName(tr)), ward, tr.At.Local().Format(time.DateTime))
		var table strings.Builder
		w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "  STATION\tSTATE\tLAST\tCOUNT\tKNOWN\tNOTE")
		for _, s := range tr.Stations {
			last, known := "never", "now"
			if s.Last != nil {
				last = span(max(0, tr.At.Sub(*s.Last))) + " ago"
			}
			switch {
			case s.KnownFor > 0:
				known = span(time.Duration(s.KnownFor)*time.Second) + " ago"
			case s.State == "unknown" && s.Last == nil:
				known = "never"
			}
			note := s.Note
			if s.Why != "" {
				note = "" // the sentences below the table say more
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.State, last, counted(s), known, note)
		}
		_ = w.Flush() // a strings.Builder takes everything
		for _, line := range strings.SplitAfter(table.String(), "\n") {
			b.WriteString(paintState(strings.TrimRight(line, " \n"), paint))
			if strings.HasSuffix(line, "\n") {
				b.WriteByte('\n')
			}
		}
		if tr.Stopped == "" {
			b.WriteString(paragraph("data arrives:", "32;1", strings.TrimPrefix(tr.Why, "data arrives; "), width, paint))
			continue
		}
		b.WriteString(paragraph("stopped at "+tr.Stopped+":", "31;1", tr.Why, width, paint))
		b.WriteString(paragraph("mend:", "1", tr.Mend, width, paint))
		for _, s := range tr.Stations {
			if s.Why != "" && s.Name != tr.Stopped {
				b.WriteString(paragraph("and at "+s.Name+":", "31;1", s.Why, width, paint))
				b.WriteString(paragraph("mend:", "1", s.Mend, width, paint))
			}
		}
	}
	return b.String()
}

// paragraph is a label and a text whose further lines stand below the text's first; width 0 does not break it.
func paragraph(label, code, text string, width int, paint func(code, text string) string) string {
	indent := 3 + len(label)
	if width > 0 && width < indent+20 {
		width = 0
	}
	var b strings.Builder
	b.WriteString("  " + paint(code, label))
	column := indent - 1
	for _, word := range strings.Fields(text) {
		if width > 0 && column+1+len(word) > width && column >= indent {
			b.WriteString("\n" + strings.Repeat(" ", indent-1))
			column = indent - 1
		}
		b.WriteString(" " + word)
		column += 1 + len(word)
	}
	b.WriteByte('\n')
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

// units are what a station counts.
var units = map[string]string{
	"received": "messages", "not understood": "messages", "sealed": "batches", "buffered": "batches", "published": "publishes", "journaled": "batches",
	"opened": "batches", "associated": "messages", "visible": "readings",
}

func counted(s client.Station) string {
	return strings.TrimSpace(grouped(s.Count) + " " + units[s.Name])
}

// grouped is a count with its thousands apart.
func grouped(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
