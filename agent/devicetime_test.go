package agent

import (
	"strings"
	"testing"
	"time"

	"wardlink/agent/source"
	"wardlink/telemetry"
)

// TestADeviceWhoseClockIsWrongIsNamed: an hour off either way; what it sends late does not count, nor a time that nobody can be sure of.
func TestADeviceWhoseClockIsWrongIsNamed(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	at := func(off time.Duration, marks telemetry.Marks) *telemetry.Message {
		return &telemetry.Message{Observations: []telemetry.Observation{
			{At: now.Add(off - time.Minute).UnixMilli()}, {At: now.Add(off).UnixMilli(), Marks: marks},
		}}
	}
	for what, c := range map[string]struct {
		messages []*telemetry.Message
		ahead    time.Duration
		says     string // "" is nothing wrong
	}{
		"right":                  {[]*telemetry.Message{at(-time.Second, 0)}, -time.Second, ""},
		"right, and catching up": {[]*telemetry.Message{at(-time.Hour, 0), at(-2*time.Second, 0), at(-2*time.Hour, 0)}, -2 * time.Second, ""},
		"an hour ahead":          {[]*telemetry.Message{at(time.Hour, 0), at(-time.Hour, 0)}, time.Hour, "1 h ahead of the hospital's time"},
		"an hour behind":         {[]*telemetry.Message{at(-time.Hour, 0), at(-time.Hour-time.Second, 0)}, -time.Hour, "1 h behind the hospital's time"},
		"not to be sure of":      {[]*telemetry.Message{at(time.Hour, telemetry.MarkTimeUnsure)}, 59 * time.Minute, "59 min ahead"},
	} {
		var d deviceClocks
		for _, m := range c.messages {
			d.note("bed-1", m, now)
		}
		got := d.ahead("bed-1")
		if got == nil || *got != c.ahead {
			t.Errorf("%s: %v; expected %v", what, got, c.ahead)
			continue
		}
		s := Status{Started: now.Add(-time.Hour), Sources: map[string]source.Stats{"bed-1": {Listening: true, Received: 3, LastReceived: now, Ahead: got}}}
		f := s.examineSource("bed-1", now)
		if (f.Level == Warning) != (c.says != "") || !strings.Contains(f.Found, c.says) || c.says != "" && !strings.Contains(f.Mend, "time_zone") {
			t.Errorf("%s: %+v; expected %q", what, f, c.says)
		}
	}
	var d deviceClocks
	if d.note("bed-1", at(0, telemetry.MarkTimeUnread), now); d.ahead("bed-2") != nil {
		t.Error("a source that said nothing has a clock")
	}
	// Set right, it is right after as many messages as are looked at.
	for i := range 2 * deviceTimes {
		off := time.Hour
		if i >= deviceTimes {
			off = 0
		}
		d.note("bed-1", at(off, 0), now)
	}
	if got := d.ahead("bed-1"); got == nil || *got != 0 {
		t.Errorf("set right, and %v", got)
	}
}
