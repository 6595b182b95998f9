package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/agent"
	"wardlink/agent/source"
	"wardlink/buffer"
	"wardlink/telemetry"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func sample() agent.Status {
	until := noon.Add(22 * time.Hour)
	s := agent.Status{
		Gateway: "icu-3-bed-7", Identity: "enrolled", TrustDomain: "ward.example", Kit: "AAAA-BBBB", NotAfter: &until, Started: noon.Add(-time.Hour), Version: "1.2",
		Disk: agent.Disk{Free: 10 << 30, Total: 20 << 30, Inodes: 1000}, Clock: agent.KernelClock{Now: noon, Synchronised: true, MaxError: 2 * time.Millisecond},
		Sources: map[string]source.Stats{
			"bed-7": {Listening: true, Address: "10.0.0.1:2575", Connections: 1, Received: 77, LastReceived: noon.Add(-2 * time.Second), LastMinute: 60},
			"bed-8": {Address: "10.0.0.1:2576", Trouble: "port 10.0.0.1:2576 is taken by process 812 (mirth)"},
		},
	}
	s.Buffer.Cap = 1 << 30
	s.Uplink.Connected, s.Uplink.Server, s.Uplink.Since = true, "ward.example:8883", noon.Add(-time.Hour)
	s.Uplink.Lanes[telemetry.LaneVitals].AckedAt = noon.Add(-time.Second)
	for lane := range telemetry.Lane(telemetry.LaneCount) {
		s.Queues = append(s.Queues, agent.Queue{Lane: lane.String()})
		s.Buffer.Lanes = append(s.Buffer.Lanes, buffer.LaneStats{Name: lane.String()})
	}
	oldest := noon.Add(-3 * time.Minute)
	s.Queues[telemetry.LaneVitals] = agent.Queue{Lane: "vitals", Waiting: 12, Bytes: 256 << 20, Oldest: &oldest}
	return s
}

// What needs attention stands above everything else.
func TestStatusPage(t *testing.T) {
	text := page(sample(), noon, false, 0)
	lines := strings.Split(text, "\n")
	if !strings.HasPrefix(lines[0], "icu-3-bed-7  wardlink-agent 1.2, up 1 h") || !strings.HasPrefix(lines[1], "STOPS source bed-8: ") ||
		!strings.Contains(lines[1], "process 812 (mirth)") {
		t.Errorf("%q\n%q", lines[0], lines[1])
	}
	for _, want := range []string{
		"spiffe://ward.example/gateway/icu-3-bed-7", "in 22 h", "last acknowledgement 1.0 s ago", "synchronised to within 2ms", "10.0 GB of 20.0 GB free",
		"[######..................] 25 % of 1.0 GB waits", "vitals    12       3 min", "bed-7   10.0.0.1:2575             1        2.0 s         60",
		"10.0.0.1:2576 (not open)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.ContainsRune(text, '\x1b') {
		t.Error("an escape where no colour is wanted")
	}
	well := sample()
	delete(well.Sources, "bed-8")
	if text := page(well, noon, true, 0); !strings.Contains(text, "\x1b[32mall is well\x1b[0m\n") || strings.Contains(text, "STOPS") {
		t.Error(text)
	}
}

// A gateway that was wiped has neither uplink nor buffer nor sources, and says nothing of them.
func TestStatusPageOfAWipedGateway(t *testing.T) {
	s := agent.Status{Gateway: "icu-3-bed-7", Identity: "decommissioned by the hospital: ward closed", Revoked: true, Wiped: "told", Started: noon.Add(-time.Hour)}
	text := page(s, noon, false, 0)
	if !strings.Contains(text, "the hospital has its signed word") || !strings.Contains(text, "\nclock ") {
		t.Error(text)
	}
	for _, not := range []string{"not connected for", "0 B", "LANE", "SOURCE"} {
		if strings.Contains(text, not) {
			t.Errorf("%q in\n%s", not, text)
		}
	}
}

// On a narrow terminal what needs attention is broken, never cut.
func TestWrap(t *testing.T) {
	text := page(sample(), noon, false, 60)
	want := "STOPS source bed-8: devices cannot connect: port\n       10.0.0.1:2576 is taken by process 812 (mirth)\n    -> it is tried again by itself\n"
	if !strings.Contains(text, want) {
		t.Errorf("no %q in\n%s", want, text)
	}
	for _, c := range []struct {
		text          string
		column, width int
		want          string
	}{
		{"a b  c", 0, 0, "a b c"}, {"aa bb cc", 2, 7, "aa bb\n  cc"}, {"verylongword", 2, 5, "verylongword"}, {"a verylongword b", 2, 6, "a\n  verylongword\n  b"}, {"", 3, 9, ""},
		{"it says \x1b[2J\u009b1m, zu spät", 0, 0, "it says ?[2J?1m, zu spät"},
	} {
		if got := wrap(c.text, c.column, c.width); got != c.want {
			t.Errorf("%q at %d of %d: %q", c.text, c.column, c.width, got)
		}
	}
}

// A page never spills over the terminal, and leaves nothing of a longer one before it.
func TestFit(t *testing.T) {
	got := fit("\x1b[1;31mabcdef\x1b[0m\nähnlich\nthird\nfourth\n", 4, 3)
	want := "\x1b[H\x1b[1;31mabcd\x1b[0m\x1b[K\r\nähnl\x1b[0m\x1b[K\r\nthir\x1b[0m\x1b[K\x1b[J"
	if got != want {
		t.Errorf("%q\nwant\n%q", got, want)
	}
}

// Not on a terminal a watch is a line each, also while no agent answers, and ends without an error when it is told to.
func TestWatchPiped(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		ctx, cancel := context.WithCancel(context.Background())
		asked := 0
		var out bytes.Buffer
		err := watchStatus(ctx, &out, asJSON, time.Millisecond, func() (agent.Status, error) {
			switch asked++; asked {
			case 1:
				return sample(), nil
			case 2:
				return agent.Status{}, errors.New("no agent answers")
			}
			cancel()
			return sample(), nil
		})
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if err != nil || len(lines) != 2 || strings.ContainsRune(out.String(), '\x1b') || !strings.Contains(lines[1], "no agent answers") {
			t.Errorf("JSON %v: %v, %q", asJSON, err, out.String())
		}
		if want := "connected  received 77  waiting 12"; !asJSON && !strings.Contains(lines[0], want) {
			t.Errorf("no %q in %q", want, lines[0])
		}
	}
}

func TestCommandsWithoutAnAgent(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "kit: %s/kit.json\nstate: %s\nsources: [{id: a, mllp: '127.0.0.1:0'}]\n", dir, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := program(t, "", "status", "--config", config); code != 1 || !strings.Contains(stderr, "no agent answers on "+dir+"/agent.sock") || !strings.Contains(stderr, "doctor") {
		t.Errorf("status: exit %d, %s", code, stderr)
	}
	code, stdout, stderr := program(t, "", "doctor", "--config", config)
	if code != 1 || stderr != "" || !strings.Contains(stdout, "kit              STOPS  ") || !strings.Contains(stdout, "stops telemetry: ") {
		t.Errorf("doctor: exit %d\n%s%s", code, stdout, stderr)
	}
	if code, stdout, _ := program(t, "", "doctor", "--json", "--config", config); code != 1 || !strings.Contains(stdout, `"level": "stops"`) {
		t.Errorf("doctor --json: exit %d\n%s", code, stdout)
	}
	// A mistake in the command line is no finding.
	if code, _, _ := program(t, "", "doctor", "--nonsense"); code != 1 {
		t.Errorf("doctor --nonsense: exit %d", code)
	}
	if code, _, _ := program(t, "", "status", "--nonsense"); code != 2 {
		t.Errorf("status --nonsense: exit %d", code)
	}
}

// A warning's head stands once, before what was found.
func TestWarningHead(t *testing.T) {
	s := sample()
	s.Uplink.Connected, s.Started = false, noon
	for _, width := range []int{0, 60} {
		if text := page(s, noon, false, width); !strings.Contains(text, "\nWARN  uplink: connecting") || strings.Count(text, "uplink:") != 1 {
			t.Errorf("width %d:\n%s", width, text)
		}
	}
}

// TestClockIsPrintable: what a server or a proxy put into an error does not steer the terminal.
func TestClockIsPrintable(t *testing.T) {
	var out strings.Builder
	if err := printClock(&out, agent.ClockFacts{Trouble: "it answered 418 \x1b[2J\x1b]0;owned\a", FloorFrom: "the build"}); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\a") || !strings.Contains(out.String(), "it answered 418 ?[2J") {
		t.Errorf("%q", out.String())
	}
}
