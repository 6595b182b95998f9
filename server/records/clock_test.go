package records

import (
	"testing"
	"time"
)

// steppedClock is the clock after so many minutes, in each of which it was set ahead by step.
func steppedClock(minutes int, step time.Duration) clockState {
	now := int64(birth)
	c := clockState{}.look(now, -1)
	for range minutes {
		now += (time.Minute + step).Milliseconds()
		c = c.look(now, time.Minute)
	}
	return c
}

// TestAClockThatWalksIsNotBelieved: whoever answers the server's NTP may set the clock a little each minute.
func TestAClockThatWalksIsNotBelieved(t *testing.T) {
	for step, want := range map[time.Duration]bool{
		59 * time.Minute: true, -59 * time.Minute: true, 5 * time.Minute: true, 30 * time.Second: true, 0: false, 500 * time.Millisecond: false,
	} {
		if c := steppedClock(7*24*60, step); c.suspended() != want {
			t.Errorf("a week of steps of %s: suspended %t, drift %s", step, c.suspended(), time.Duration(c.drift)*time.Millisecond)
		}
	}
}

// TestRestartsAreNoJumps: what a restart takes is not counted, however often; nor are steps so few that 48 hours are far.
func TestRestartsAreNoJumps(t *testing.T) {
	now := int64(birth)
	c := clockState{}.look(now, -1)
	for range 1000 {
		now += (50 * time.Minute).Milliseconds()
		c = c.look(now, -1)
	}
	if c.suspended() || c.drift != 0 {
		t.Errorf("%+v", c)
	}
}
