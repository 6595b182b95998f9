package source

import "time"

// Rate counts what happened within the last sixty of its units.
type Rate struct {
	Unit   time.Duration // 0: a second
	counts [60]uint64
	newest int64 // the unit that was counted last
}

// Add counts n more at now.
func (r *Rate) Add(now time.Time, n uint64) {
	r.forget(now)
	r.counts[r.newest%int64(len(r.counts))] += n
}

// Within is how many there were in the last sixty units, the present one included.
func (r *Rate) Within(now time.Time) (n uint64) {
	r.forget(now)
	for _, c := range r.counts {
		n += c
	}
	return n
}

// forget empties the places of the units that have passed since the newest one. With a clock that was set back the newest one goes on.
func (r *Rate) forget(now time.Time) {
	unit := now.UnixNano() / int64(max(r.Unit, time.Second))
	if unit-r.newest >= int64(len(r.counts)) {
		r.counts, r.newest = [60]uint64{}, unit
		return
	}
	for r.newest < unit {
		r.newest++
		r.counts[r.newest%int64(len(r.counts))] = 0
	}
}
