package ingest

import (
	"sync"
	"sync/atomic"
	"time"

	"wardlink/telemetry"
)

// Traffic is what has passed between this process and one gateway since the process started.
type Traffic struct {
	Journaled   [telemetry.LaneCount]uint64    // batches that are durable, resent ones included
	JournaledAt [telemetry.LaneCount]time.Time // zero before the first, as all instants here
	Failed      time.Time                      // when a commit last failed

	Opened  time.Time // last session admitted
	Ended   time.Time // last end of a session
	Reason  string    // of that end, one of a few constants
	Refused time.Time // last refusal
	Why     string    // of that refusal, one of a few constants
}

// traffic is Traffic as it is counted: the journal's goroutine adds to it for every publish.
type traffic struct {
	journaled [telemetry.LaneCount]atomic.Uint64
	at        [telemetry.LaneCount]atomic.Int64 // Unix nanoseconds
	failed    atomic.Int64                      // likewise

	mu                     sync.Mutex
	opened, ended, refused time.Time
	reason, why            string
}

// maxTraffic bounds the gateways that are remembered. Only a certificate of ours makes an entry.
const maxTraffic = 50_000

// trafficOf gives a gateway's counters.
func (s *Server) trafficOf(gateway string) *traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.traffic[gateway]
	if t == nil {
		if len(s.traffic) >= maxTraffic {
			for other := range s.traffic { // any that has no session
				if s.sessions[other] == nil {
					delete(s.traffic, other)
					break
				}
			}
		}
		t = &traffic{}
		s.traffic[gateway] = t
	}
	return t
}

// Traffic tells what has passed between this process and a gateway.
func (s *Server) Traffic(gateway string) (out Traffic) {
	s.mu.Lock()
	t := s.traffic[gateway]
	s.mu.Unlock()
	if t == nil {
		return out
	}
	for lane := range t.journaled {
		out.Journaled[lane], out.JournaledAt[lane] = t.journaled[lane].Load(), instant(t.at[lane].Load())
	}
	out.Failed = instant(t.failed.Load())
	t.mu.Lock()
	defer t.mu.Unlock()
	out.Opened, out.Ended, out.Reason, out.Refused, out.Why = t.opened, t.ended, t.reason, t.refused, t.why
	return out
}

func instant(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// committed notes the outcome of one publish.
func (t *traffic) committed(s *slot, err error) {
	now := time.Now().UnixNano()
	switch {
	case err != nil:
		t.failed.Store(now)
	case s.counted:
		t.at[s.lane].Store(now)
		t.journaled[s.lane].Add(1)
	}
}

func (t *traffic) open() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opened = time.Now()
}

func (t *traffic) close(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.reason = time.Now(), reason
}

func (t *traffic) refuse(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused, t.why = time.Now(), why
}
