package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"wardlink/agent"
)

func status(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("status", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	watch := fs.Bool("watch", false, "show it again every second, until Ctrl-C")
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	if *watch {
		return watchStatus(ctx, stdout, *asJSON, time.Second, func() (agent.Status, error) { return agent.AskStatus(ctx, cfg) })
	}
	s, err := agent.AskStatus(ctx, cfg)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, s)
	}
	_, err = io.WriteString(stdout, page(s, time.Now(), inkFor(stdout), widthOf(stdout)))
	return err
}

// watchStatus shows the status again and again: on a terminal as a page that is drawn over, elsewhere as a line each, or a JSON document
// each. An agent that does not answer is told and asked again.
func watchStatus(ctx context.Context, out io.Writer, asJSON bool, every time.Duration, ask func() (agent.Status, error)) error {
	screen, onScreen := terminal(out)
	onScreen = onScreen && !asJSON
	if onScreen {
		// The alternate screen keeps what was on the terminal; it comes back however the watch ends.
		fmt.Fprint(out, "\x1b[?1049h\x1b[?25l")
		defer fmt.Fprint(out, "\x1b[?25h\x1b[?1049l")
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		s, err := ask()
		if ctx.Err() != nil {
			return nil
		}
		now := time.Now()
		switch {
		case asJSON && err != nil:
			err = json.NewEncoder(out).Encode(map[string]any{"at": now, "error": err.Error()})
		case asJSON:
			err = json.NewEncoder(out).Encode(s)
		case onScreen:
			width, height := size(screen)
			text := fmt.Sprintf("%s  %v\n", now.Format("15:04:05"), err)
			if err == nil {
				text = page(s, now, inkFor(out), width)
			}
			_, err = io.WriteString(out, fit(text, width, height))
		case err != nil:
			_, err = fmt.Fprintf(out, "%s  %v\n", now.Format("15:04:05"), err)
		default:
			_, err = fmt.Fprintln(out, line(s, now))
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// terminal tells whether a writer is one.
func terminal(out io.Writer) (*os.File, bool) {
	f, ok := out.(*os.File)
	if !ok {
		return nil, false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return f, err == nil
}

// size is a terminal's, in characters.
func size(f *os.File) (width, height int) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 || ws.Row == 0 {
		return 80, 24
	}
	return int(ws.Col), int(ws.Row)
}

// fit draws a page from the top left corner of a terminal over the former one, cut to its size.
func fit(text string, width, height int) string {
	var b strings.Builder
	b.WriteString("\x1b[H")
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, l := range lines[:min(len(lines), height)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(clip(l, width))
		b.WriteString("\x1b[0m\x1b[K")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

// clip cuts a line after so many visible characters; the escape sequences of colours take no room.
func clip(l string, width int) string {
	visible, escape := 0, false
	for i, c := range l {
		switch {
		case c == '\x1b':
			escape = true
		case escape:
			escape = c < '@' || c > '~' || c == '['
		default:
			if visible++; visible > width {
				return l[:i]
			}
		}
	}
	return l
}

// ink gives text a colour, or leaves it.
type ink bool

// inkFor is colour on a terminal, unless NO_COLOR is set (no-color.org) or the terminal can do none.
func inkFor(out io.Writer) ink {
	_, ok := terminal(out)
	return ink(ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

func (i ink) paint(code, text string) string {
	if !i {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (i ink) level(l agent.Level, text string) string {
	switch l {
	case agent.Stops:
		return i.paint("1;31", text)
	case agent.Warning:
		return i.paint("33", text)
	}
	return i.paint("32", text)
}

// widthOf is how wide a terminal is; elsewhere lines are never wrapped.
func widthOf(out io.Writer) int {
	f, ok := terminal(out)
	if !ok {
		return 0
	}
	width, _ := size(f)
	return width
}

// printable keeps from the terminal what a peer put into an error to move the cursor or to hide a line.
func printable(word string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, word)
}

// wrap breaks text at blanks so that lines which begin at a column end before width; 0 leaves it in one line. Nothing but printable
// characters comes out of it.
func wrap(text string, column, width int) string {
	var b strings.Builder
	at := column
	for i, word := range strings.Fields(text) {
		word = printable(word)
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case width > 0 && at+1+n > width && at > column:
			b.WriteString("\n" + strings.Repeat(" ", column))
			at = column
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}

// page is the status for a person: what needs attention first, in plain words, then the figures.
func page(s agent.Status, now time.Time, pen ink, width int) string {
	var b bytes.Buffer
	name := s.Gateway
	if name == "" {
		name = "not enrolled"
	}
	fmt.Fprintf(&b, "%s  wardlink-agent %s, up %s, %s\n", pen.paint("1", name), s.Version, agent.Ago(now.Sub(s.Started)), now.Format("2006-01-02 15:04:05 MST"))
	findings := s.Examine(now)
	unwell := agent.Unwell(findings)
	if len(unwell) == 0 {
		fmt.Fprintf(&b, "%s\n", pen.level(agent.Well, "all is well"))
	}
	for _, f := range unwell {
		head := headline(f)
		rest := wrap(strings.Repeat("x", len(head))+" "+f.Found, 7, width)[len(head):] // what follows is broken where it would be behind the head
		fmt.Fprintf(&b, "%s%s\n", pen.level(f.Level, head), rest)
		if f.Mend != "" {
			fmt.Fprintf(&b, "    -> %s\n", wrap(f.Mend, 7, width))
		}
	}
	b.WriteByte('\n')
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "identity\t%s\n", identityLine(s))
	if s.Wiped != "" { // it has neither uplink nor buffer nor sources any more
		fmt.Fprintf(w, "clock\t%s\n", clockLine(s, now))
		_ = w.Flush() // into memory
		return b.String()
	}
	fmt.Fprintf(w, "certificate\t%s\n", certificateLine(s, now))
	fmt.Fprintf(w, "uplink\t%s\n", uplinkLine(s, now))
	fmt.Fprintf(w, "configuration\t%s\n", s.Settings)
	fmt.Fprintf(w, "clock\t%s\n", clockLine(s, now))
	fmt.Fprintf(w, "disk\t%s of %s free\n", agent.Size(int64(s.Disk.Free)), agent.Size(int64(s.Disk.Total)))
	fmt.Fprintf(w, "buffer\t%s %.0f %% of %s waits%s\n", gauge(s.Fill(), 24), 100*s.Fill(), agent.Size(s.Buffer.Cap), roomLine(s, now))
	fmt.Fprintf(w, "taken in\t%d messages, %d observations, %d waveforms in %d batches; %d came again\n",
		s.Intake.Messages, s.Intake.Observations, s.Intake.Waveforms, s.Intake.Batches, s.Intake.Resent)
	_ = w.Flush() // into memory
	b.WriteByte('\n')
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LANE\tWAITING\tOLDEST\tPARKED\tEVICTED\tLOST\tSENT\tACKNOWLEDGED")
	for i, q := range s.Queues[:min(len(s.Queues), len(s.Buffer.Lanes), len(s.Uplink.Lanes))] {
		oldest := "-"
		if q.Oldest != nil {
			oldest = agent.Ago(now.Sub(*q.Oldest))
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\t%d\t%d\t%d\n", q.Lane, q.Waiting, oldest, q.Parked, s.Buffer.Lanes[i].Evicted, s.Buffer.Lanes[i].Lost,
			s.Uplink.Lanes[i].Published, s.Uplink.Lanes[i].Acknowledged)
	}
	_ = w.Flush() // into memory
	b.WriteByte('\n')
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tLISTENS ON\tDEVICES\tLAST MESSAGE\tLAST MINUTE\tRECEIVED\tNOT UNDERSTOOD\tREFUSED")
	for _, id := range slices.Sorted(maps.Keys(s.Sources)) {
		src := s.Sources[id]
		last, address := "-", src.Address
		if !src.LastReceived.IsZero() {
			last = agent.Ago(now.Sub(src.LastReceived))
		}
		if !src.Listening {
			address += " (not open)"
		}
		if src.TLS != nil {
			address += " (TLS)"
		}
		if src.Port != "" {
			address = "port of " + src.Port
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\t%d\t%d\t%d\n", id, address, src.Connections, last, src.LastMinute, src.Received, src.NotUnderstood, src.Refused)
	}
	_ = w.Flush() // into memory
	b.WriteString(beds(s, now))
	return b.String()
}

// beds is the table of what is bound to a bed; "" where nothing is.
func beds(s agent.Status, now time.Time) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	rows := 0
	for _, id := range slices.Sorted(maps.Keys(s.Sources)) {
		for _, bed := range s.Sources[id].Beds {
			if rows++; rows == 1 {
				fmt.Fprintln(w, "\nBED\tBOUND BY\tSOURCE\tLAST MESSAGE\tRECEIVED")
			}
			last, as := "-", id
			if !bed.LastReceived.IsZero() {
				last = agent.Ago(now.Sub(bed.LastReceived))
			}
			if bed.ID != "" {
				as = bed.ID
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", bed.Bed, bed.By, as, last, bed.Received)
		}
	}
	_ = w.Flush() // into memory
	return b.String()
}

// headline says how bad a finding is and what it is about.
func headline(f agent.Finding) string {
	text := f.Area
	if f.Name != "" {
		text += " " + f.Name
	}
	if f.Step != "" {
		text += " " + f.Step
	}
	if f.Level == agent.Stops {
		return "STOPS " + text + ":"
	}
	return "WARN  " + text + ":"
}

func identityLine(s agent.Status) string {
	if s.Gateway != "" && !s.Revoked {
		return fmt.Sprintf("spiffe://%s/gateway/%s, kit %s", s.TrustDomain, s.Gateway, s.Kit)
	}
	return s.Identity + ", kit " + s.Kit
}

func certificateLine(s agent.Status, now time.Time) string {
	now = s.Present(now)
	switch {
	case s.NotAfter == nil:
		return "none yet"
	case now.After(*s.NotAfter):
		return "ended " + agent.Ago(now.Sub(*s.NotAfter)) + " ago"
	}
	return fmt.Sprintf("until %s, in %s", s.NotAfter.Local().Format("2006-01-02 15:04 MST"), agent.Ago(s.NotAfter.Sub(now)))
}

func uplinkLine(s agent.Status, now time.Time) string {
	if !s.Uplink.Connected {
		return fmt.Sprintf("not connected for %s; %d published and %d acknowledged since the start", agent.Ago(now.Sub(s.Uplink.Since)), s.Uplink.Published, s.Uplink.Acknowledged)
	}
	last := "no acknowledgement yet"
	if at := s.LastAcknowledged(); !at.IsZero() {
		last = "last acknowledgement " + agent.Ago(now.Sub(at)) + " ago"
	}
	server := s.Uplink.Server
	if s.Uplink.ServerBuild != "" {
		server += fmt.Sprintf(" (%s, protocol %d)", s.Uplink.ServerBuild, s.Uplink.Protocol)
	}
	if s.Uplink.Proxy != "" {
		server += " through the proxy " + s.Uplink.Proxy
	}
	return fmt.Sprintf("connected to %s for %s; %s; %d in flight", server, agent.Ago(now.Sub(s.Uplink.Since)), last, s.Uplink.InFlight)
}

func clockLine(s agent.Status, now time.Time) string {
	text := now.UTC().Format("2006-01-02 15:04:05 UTC")
	if s.Time.Trusted && s.Time.Offset != nil {
		return fmt.Sprintf("%s, %+.3f s to the hospital's, which was told %s ago", text, float64(*s.Time.Offset)/1000, agent.Ago(time.Duration(s.Time.Since)*time.Millisecond))
	}
	if s.Clock.Synchronised {
		text += fmt.Sprintf(", synchronised to within %s", s.Clock.MaxError.Round(time.Millisecond))
	}
	return text + "; the hospital has not told the time yet"
}

func roomLine(s agent.Status, now time.Time) string {
	if room, ok := s.Room(now); ok {
		return "; room for " + agent.Ago(room) + " without a connection"
	}
	return ""
}

// gauge draws a share of one.
func gauge(share float64, width int) string {
	full := min(int(share*float64(width)+0.5), width)
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// line is the status in one line, for a watch that is not on a terminal.
func line(s agent.Status, now time.Time) string {
	var waiting, parked, received uint64
	for _, q := range s.Queues {
		waiting, parked = waiting+q.Waiting, parked+q.Parked
	}
	for _, src := range s.Sources {
		received += src.Received
	}
	link := "disconnected"
	if s.Uplink.Connected {
		link = "connected"
	}
	text := fmt.Sprintf("%s  %s  received %d  waiting %d  parked %d  acknowledged %d  buffer %.0f %%", now.Format("15:04:05"), link, received, waiting,
		parked, s.Uplink.Acknowledged, 100*s.Fill())
	if unwell := agent.Unwell(s.Examine(now)); len(unwell) > 0 {
		text += "  " + headline(unwell[0]) + " " + unwell[0].Found
	}
	return text
}
