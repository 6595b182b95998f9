package source

import (
	"testing"
	"time"
)

func TestRhythmIsTheUsualOne(t *testing.T) {
	now := time.Now()
	var r rhythm
	step := func(n int, gap time.Duration) {
		for range n {
			now = now.Add(gap)
			r.note(now)
		}
	}
	step(4, time.Second)
	if u := r.usual(); u != 0 {
		t.Errorf("after three gaps the rhythm is %v; expected none yet", u)
	}
	step(1, time.Second)
	if u := r.usual(); u != time.Second {
		t.Errorf("usual %v", u)
	}
	step(1, 6*time.Hour) // the monitor was off
	if u := r.usual(); u > 2*time.Second {
		t.Errorf("one silence makes %v usual", u)
	}
	step(60, time.Second)
	if u := r.usual(); u > 1100*time.Millisecond {
		t.Errorf("the old rhythm does not come back: %v", u)
	}
	step(200, time.Minute) // set to another rhythm
	if u := r.usual(); u < 50*time.Second || u > time.Minute {
		t.Errorf("the new rhythm is not learned: %v", u)
	}
	step(100, 0) // a burst of what was kept
	if u := r.usual(); u < 0 {
		t.Errorf("usual %v", u)
	}
	step(100, time.Second)
	if u := r.usual(); u < 500*time.Millisecond {
		t.Errorf("after a burst the rhythm does not come back: %v", u)
	}
}

func TestTally(t *testing.T) {
	var n tally
	if !n.at().IsZero() || n.Load() != 0 {
		t.Error("something has happened")
	}
	n.Add(2)
	if n.Load() != 2 || time.Since(n.at()) > time.Minute {
		t.Errorf("%d at %v", n.Load(), n.at())
	}
}
