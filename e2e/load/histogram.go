package load

import (
	"math/bits"
	"time"
)

// Histogram counts durations in steps of at most 1.6 %: 64 for each power of two of a microsecond.
type Histogram struct{ Counts [64 * 40]uint32 }

func step(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 0))
	if us < 64 {
		return int(us)
	}
	shift := bits.Len64(us) - 7
	return min((shift+1)*64+int(us>>shift)-64, len(Histogram{}.Counts)-1)
}

// Add counts one.
func (h *Histogram) Add(d time.Duration) { h.Counts[step(d)]++ }

// Merge adds what another counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.Counts {
		h.Counts[i] += n
	}
}

// Count is how many there are.
func (h *Histogram) Count() (n int64) {
	for _, c := range h.Counts {
		n += int64(c)
	}
	return n
}

// At is the duration that a share of all, between 0 and 1, does not exceed; 0 of none.
func (h *Histogram) At(share float64) time.Duration {
	want := int64(share * float64(h.Count()))
	for i, n := range h.Counts {
		if want -= int64(n); want < 0 {
			return upper(i)
		}
	}
	return 0
}

// upper is the longest duration of a step.
func upper(i int) time.Duration {
	if i < 64 {
		return time.Duration(i) * time.Microsecond
	}
	shift := i/64 - 1
	return time.Duration(uint64(64+i%64+1)<<shift-1) * time.Microsecond
}
