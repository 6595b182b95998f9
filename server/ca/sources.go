package ca

import (
	"net/netip"
	"sync"
	"time"
)

// sources bounds how often one address has something stored for it: a challenge, an account, an order. Behind one address there may be a
// site's proxy with a thousand gateways, which start at once; so the burst is a minute's worth of the rate.
type sources struct {
	now   func() time.Time
	rate  float64 // tokens a second
	burst float64

	mu      sync.Mutex
	buckets map[netip.Prefix]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

const (
	perEnrolment = 3    // a challenge, an account, an order
	burstTime    = 60   // seconds of the rate that may come at once
	maxSources   = 8192 // addresses that are told apart, some 100 bytes each; those beyond share one bucket
)

func newSources(now func() time.Time, enrolments int) *sources {
	rate := float64(perEnrolment * enrolments)
	return &sources{now: now, rate: rate, burst: burstTime * rate, buckets: make(map[netip.Prefix]*bucket)}
}

// allow takes a token of the peer's (ip:port).
func (s *sources) allow(peer string) bool {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket(source(peer), now)
	if d := now.Sub(b.at).Seconds(); d > 0 { // a clock that goes back gives nothing
		b.tokens = min(s.burst, b.tokens+d*s.rate)
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// bucket finds the bucket of a source; under mu. A full one is as good as none.
func (s *sources) bucket(of netip.Prefix, now time.Time) *bucket {
	if b, ok := s.buckets[of]; ok {
		return b
	}
	if len(s.buckets) >= maxSources {
		for k, b := range s.buckets {
			if b.tokens+now.Sub(b.at).Seconds()*s.rate >= s.burst {
				delete(s.buckets, k)
			}
		}
		if len(s.buckets) >= maxSources {
			of = netip.Prefix{}
			if b, ok := s.buckets[of]; ok {
				return b
			}
		}
	}
	b := &bucket{tokens: s.burst, at: now}
	s.buckets[of] = b
	return b
}

// source is an IPv4 address, or the /64 of an IPv6 address, which is one host's to choose from. What is no address is one source.
func source(peer string) netip.Prefix {
	at, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
