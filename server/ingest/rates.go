package ingest

import (
	"maps"
	"sync"
	"time"
)

// Rate is how often one network or gateway was refused within a minute.
type Rate struct {
	Count  uint64
	Reason string // of the last refusal
}

// Parked is what the server refused to take from one gateway, which keeps it and does not send it again by itself.
type Parked struct {
	Count  uint64 // since the server's start
	Last   time.Time
	Reason string
}

const maxRates = 2048 // subjects; further ones count as one

// rates counts refusals by the subject that an alert would name. Its memory is bounded whatever peers do.
type rates struct {
	now func() time.Time // nil: time.Now

	mu        sync.Mutex
	minute    int64 // Unix minutes, of this
	this, was map[string]Rate
	parked    map[string]Parked
	rivals    map[string]Rival
}

// turn begins a new minute when it is time. The caller holds mu.
func (r *rates) turn() time.Time {
	now := time.Now()
	if r.now != nil {
		now = r.now()
	}
	if minute := now.Unix() / 60; minute != r.minute || r.this == nil {
		r.was = nil
		if minute == r.minute+1 {
			r.was = r.this
		}
		r.minute, r.this = minute, make(map[string]Rate)
	}
	return now
}

// refused counts one refusal and gives how many there were in this minute.
func (r *rates) refused(subject, reason string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn()
	if _, known := r.this[subject]; !known && len(r.this) >= maxRates {
		subject = reasonOverflow
	}
	count := r.this[subject].Count + 1
	r.this[subject] = Rate{count, reason}
	return count
}

func (r *rates) park(gateway, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.turn()
	if r.parked == nil {
		r.parked = make(map[string]Parked)
	}
	if _, known := r.parked[gateway]; !known && len(r.parked) >= maxRates {
		return // every one of them is a registered gateway that was refused: the others are alert enough
	}
	r.parked[gateway] = Parked{r.parked[gateway].Count + 1, now, reason}
}

// RefusalRates gives for each network (/24, /64) and gateway that was refused within this minute or the last one the larger count.
func (s *Server) RefusalRates() map[string]Rate {
	r := &s.rates
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn()
	out := maps.Clone(r.this)
	for subject, rate := range r.was {
		if rate.Count > out[subject].Count {
			out[subject] = rate
		}
	}
	return out
}

// RefusedBatches gives the gateways whose batches were refused since the start.
func (s *Server) RefusedBatches() map[string]Parked {
	s.rates.mu.Lock()
	defer s.rates.mu.Unlock()
	return maps.Clone(s.rates.parked)
}
