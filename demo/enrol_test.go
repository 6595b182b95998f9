package demo

import (
	"testing"
	"time"
)

func TestSummariseEnrolments(t *testing.T) {
	begun := time.Unix(1000, 0)
	at := func(ms ...int) (out []time.Time) {
		for _, m := range ms {
			out = append(out, begun.Add(time.Duration(m)*time.Millisecond))
		}
		return out
	}
	if e := summarise(begun, at(4000, 500, 1499, 1500, 2400)); e.Gateways != 5 || e.Seconds != 4 || e.Rate != 1.25 || e.Busiest != 3 {
		t.Errorf("%+v", e)
	}
	if e := summarise(begun, at(250)); e.Rate != 4 || e.Busiest != 1 {
		t.Errorf("one: %+v", e)
	}
}
