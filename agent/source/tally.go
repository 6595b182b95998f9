package source

import (
	"sync"
	"sync/atomic"
	"time"
)

// tally counts something that happens and remembers when it last did.
type tally struct {
	n    atomic.Uint64
	last atomic.Int64 // Unix nanoseconds
}

// Add counts n more, now.
func (t *tally) Add(n uint64) {
	t.last.Store(time.Now().UnixNano())
	t.n.Add(n)
}

// Load is the count.
func (t *tally) Load() uint64 { return t.n.Load() }

// at is the last time; zero before the first.
func (t *tally) at() time.Time {
	if ns := t.last.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// rhythm is how often messages usually come: a mean over the last dozen or so gaps between them. A gap counts for at most four times
// the mean, so that one long silence does not make the next one look usual.
type rhythm struct {
	mu   sync.Mutex
	last time.Time // monotonic
	mean float64   // nanoseconds
	gaps int
}

// steady is how many gaps a rhythm needs before it says anything.
const steady = 4

// note takes a message in.
func (r *rhythm) note(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.last.IsZero() {
		gap := float64(now.Sub(r.last))
		if r.gaps++; r.gaps <= steady {
			r.mean += (gap - r.mean) / float64(r.gaps)
		} else {
			r.mean += (min(gap, 4*r.mean) - r.mean) / 8
		}
	}
	r.last = now
}

// usual is the mean gap; 0 while too few have been seen.
func (r *rhythm) usual() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gaps < steady {
		return 0
	}
	return time.Duration(r.mean)
}
