package ingest

import (
	"net/netip"
	"sync"
	"time"
)

// Pace bounds what one gateway, or all behind one address, may publish while publishes wait for the journal half a second and more. A gateway has one session, so
// that a gateway's rate is its connection's, too. Before that there is nothing to protect: turns are fair, and a backlog drains as fast as
// the journal takes it. Over its rate nobody is refused: it is read later.
type Pace struct {
	Publishes float64 // per second
	Bytes     float64 // per second, of frames
}

// or gives the defaults for what is zero.
func (p Pace) or(d Pace) Pace {
	if p.Publishes <= 0 {
		p.Publishes = d.Publishes
	}
	if p.Bytes <= 0 {
		p.Bytes = d.Bytes
	}
	return p
}

// burst is how many seconds of a rate may come at once.
const burst = 10

// bucket is a token bucket for publishes and one for bytes, in one. Zero is full.
type bucket struct {
	at               time.Time
	publishes, bytes float64 // spent, of the burst
}

// spend takes one publish of size bytes and says how long it is over the rate.
func (b *bucket) spend(r Pace, size int, now time.Time) time.Duration {
	since := now.Sub(b.at).Seconds()
	b.at = now
	over := func(spent *float64, rate, n float64) float64 {
		*spent = max(*spent-since*rate, 0) + n
		return *spent/rate - burst
	}
	wait := max(over(&b.publishes, r.Publishes, 1), over(&b.bytes, r.Bytes, float64(size)), 0)
	return time.Duration(wait * float64(time.Second))
}

// forgive drops what is over the rate, when nobody had to wait for it.
func (b *bucket) forgive(r Pace) {
	b.publishes, b.bytes = min(b.publishes, burst*r.Publishes), min(b.bytes, burst*r.Bytes)
}

// source is an address from which gateways come: a hospital behind one address may be thousands.
type source struct {
	refs int // sessions; of Server.mu

	mu     sync.Mutex
	bucket bucket
}

// sourceOf counts one more session of an address.
func (s *Server) sourceOf(peer string) *source {
	at, _ := netip.ParseAddrPort(peer) // none: they share one
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.sources[at.Addr().Unmap()]
	if src == nil {
		src = &source{}
		s.sources[at.Addr().Unmap()] = src
	}
	src.refs++
	return src
}

// unsource ends what sourceOf began.
func (s *Server) unsource(peer string) {
	at, _ := netip.ParseAddrPort(peer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if src := s.sources[at.Addr().Unmap()]; src != nil {
		if src.refs--; src.refs == 0 {
			delete(s.sources, at.Addr().Unmap())
		}
	}
}

// paceStep bounds one wait, so that a session that ends, or a queue that is empty, is soon noticed.
const paceStep = 100 * time.Millisecond

// noRate is more than any peer can send, and unlike infinity has no product with 0 that is none.
const noRate = 1e18

// allowance is what the profile of the session's gateway lets it publish; zero where it says nothing.
func (c *session) allowance() Pace {
	if adm := c.grant.Load(); adm != nil {
		return Pace{float64(adm.Publishes), float64(adm.Bytes)}
	}
	return Pace{}
}

// allotted delays a publish that is over the rates of its gateway's profile, whether or not others wait. Nobody is refused for a rate: what a gateway
// brings after an outage is no fault of its own, and what is not read is kept on its disk. Another profile begins at once and without a debt: what was
// sent by a faster one would take a slower one minutes.
func (c *session) allotted(size int) {
	rate := c.allowance()
	if rate != c.allowed {
		c.allowed, c.rate = rate, bucket{}
	}
	if rate == (Pace{}) {
		return
	}
	now := time.Now()
	for end := now.Add(c.rate.spend(rate.or(Pace{noRate, noRate}), size, now)); c.ended() == "" && c.allowance() == rate; {
		left := time.Until(end)
		if left <= 0 {
			return
		}
		c.srv.metrics.allotted.Add(min(left, paceStep).Seconds())
		time.Sleep(min(left, paceStep))
	}
}

// pace delays a publish that is over the rate of its gateway or of its address while others wait for the journal.
func (c *session) pace(size int) {
	now := time.Now()
	wait := c.bucket.spend(c.srv.limits.Gateway, size, now)
	if c.source != nil {
		c.source.mu.Lock()
		wait = max(wait, c.source.bucket.spend(c.srv.limits.Address, size, now))
		c.source.mu.Unlock()
	}
	if wait <= 0 {
		return
	}
	for end := now.Add(wait); c.srv.queue.pressed() && c.ended() == ""; {
		left := time.Until(end)
		if left <= 0 {
			return
		}
		c.srv.metrics.paced.Add(min(left, paceStep).Seconds())
		time.Sleep(min(left, paceStep))
	}
	c.bucket.forgive(c.srv.limits.Gateway)
	if c.source != nil {
		c.source.mu.Lock()
		c.source.bucket.forgive(c.srv.limits.Address)
		c.source.mu.Unlock()
	}
}
