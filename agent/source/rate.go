package source

import "time"

// rate counts events within the last minute, to the second.
type rate struct {
	counts [60]uint64
	newest int64 // the second that was counted last
}

// forget empties the places of the seconds that have passed since the newest one. A clock that was set back counts into the newest.
func (r *rate) forget(now time.Time) {
	second := now.Unix()
	if second-r.newest >= int64(len(r.counts)) {
		*r = rate{newest: second}
		return
	}
	for r.newest < second {
		r.newest++
		r.counts[r.newest%int64(len(r.counts))] = 0
	}
}

func (r *rate) add(now time.Time) {
	r.forget(now)
	r.counts[r.newest%int64(len(r.counts))]++
}

func (r *rate) within(now time.Time) (n uint64) {
	r.forget(now)
	for _, c := range r.counts {
		n += c
	}
	return n
}

// noteMessage counts a whole message.
func (s *MLLP) noteMessage(now time.Time) {
	s.received.Add(1)
	s.rhythm.note(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lately.add(now)
}
