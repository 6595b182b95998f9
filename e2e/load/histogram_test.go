package load

import (
	"testing"
	"time"
)

func TestHistogramKeepsDurationsWithinTwoPerCent(t *testing.T) {
	for d := time.Microsecond; d < time.Hour; d = d*17/16 + time.Microsecond {
		var h Histogram
		h.Add(d)
		if got := h.At(0.99); got < d.Truncate(time.Microsecond) || float64(got) > 1.02*float64(d)+1000 {
			t.Fatalf("%s is told as %s", d, got)
		}
	}
}

func TestHistogramsQuantiles(t *testing.T) {
	var a, b Histogram
	for i := range 990 {
		a.Add(time.Duration(i%40) * time.Microsecond)
	}
	for range 10 {
		b.Add(time.Second)
	}
	a.Merge(&b)
	if n := a.Count(); n != 1000 {
		t.Errorf("%d counted; expected 1000", n)
	}
	if p := a.At(0.5); p > 40*time.Microsecond {
		t.Errorf("the median is %s; expected at most 40us", p)
	}
	if p := a.At(0.99); p < time.Second {
		t.Errorf("the 99th percentile is %s; expected a second", p)
	}
	if p := new(Histogram).At(0.5); p != 0 {
		t.Errorf("of nothing the median is %s", p)
	}
}
