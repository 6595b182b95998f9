package ca

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// sources bounds how often one address has something stored for it: a challenge, an account, an order. Behind one address there may be a
// site's proxy with a thousand gateways, which start at once; so the burst is a minute's worth of the rate.
//
// An address has one of a fixed number of buckets, by a hash that nobody outside can compute: memory and time are constant whatever comes, and
// who floods from n addresses is in the way of one other in maxSources/n.
type sources struct {
	now   func() time.Time
	rate  float64 // tokens a second
	burst float64
	seed  maphash.Seed

	mu      sync.Mutex
	buckets [maxSources]bucket
}

type bucket struct {
	taken float64 // tokens that are not back yet, as of at
	at    time.Time
}

const (
	perEnrolment = 3       // a challenge, an account, an order
	burstTime    = 60      // seconds of the rate that may come at once
	maxSources   = 1 << 14 // 32 bytes each
)

func newSources(now func() time.Time, enrolments int) *sources {
	rate := float64(perEnrolment * enrolments)
	return &sources{now: now, rate: rate, burst: burstTime * rate, seed: maphash.MakeSeed()}
}

// allow takes a token of the peer's (ip:port).
func (s *sources) allow(peer string) bool {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.buckets[maphash.Comparable(s.seed, source(peer))%maxSources]
	if d := now.Sub(b.at).Seconds(); d > 0 { // a clock that goes back gives nothing
		b.taken = max(0, b.taken-d*s.rate)
	}
	b.at = now
	if b.taken+1 > s.burst {
		return false
	}
	b.taken++
	return true
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
