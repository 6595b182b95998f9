package server

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"wardlink/server/ingest"
)

// The way to a completed handshake has three bounds, each for another thing that a peer can make the server spend.
//
// Arrivals are connections that have not proven anything: a descriptor and a goroutine each. After a restart a whole hospital may stand behind
// one address, so that a network may have most of the places, and never the last ones: what one more may have shrinks with what is
// free (Choudhury and Hahne, Dynamic queue length thresholds, 1998). Who finds no place is closed, counted, and comes again.
//
// Slots are handshakes under way, of those that have said something: buffers and keys, some 30 KB each. Networks take turns.
//
// Cores are the processors that handshakes, and what ingest does for gateways that come and go, may use at a time. Each costs milliseconds of it, and
// without this bound a thousand that come at once stand before every publish.

// handshakeLimits are those bounds. Zero fields are the defaults.
type handshakeLimits struct {
	arrivals int // 16,384
	slots    int // 512
	cores    int // half of the processors, one at least
	each     int // connections of one address, sessions included: 20,000
}

const (
	// leastShare is what a network may have at any rate, of arrivals.
	leastShare = 64
	// shareOfFree is how many times what is free a network may have.
	shareOfFree = 3
)

func (l handshakeLimits) withDefaults() handshakeLimits {
	set := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	set(&l.arrivals, 16_384)
	set(&l.slots, 512)
	set(&l.cores, max(1, processors()/2))
	set(&l.each, 20_000)
	return l
}

// handshakes are a port's way in.
type handshakes struct {
	*arrivals
	slots *slots
	cores ingest.Turns
}

func newHandshakes(l handshakeLimits) *handshakes {
	l = l.withDefaults()
	return &handshakes{arrivals: newArrivals(l), slots: newSlots(l.slots), cores: ingest.NewTurns(l.cores)}
}

// arrivals are the connections that have not proven anything, by network, and all of them, by address.
type arrivals struct {
	limits handshakeLimits

	mu    sync.Mutex
	all   int
	of    map[netip.Prefix]int
	conns map[netip.Addr]int
}

func newArrivals(l handshakeLimits) *arrivals {
	return &arrivals{limits: l, of: make(map[netip.Prefix]int), conns: make(map[netip.Addr]int)}
}

// arrive takes a place, or says why there is none. settled is for the end of the handshake, gone for that of the connection, which includes it.
// Both may be called again.
func (a *arrivals) arrive(peer net.Addr) (settled, gone func(), refusal string) {
	from, addr := network(peer), address(peer)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns[addr] >= a.limits.each {
		return nil, nil, "too many connections from one address"
	}
	if n := a.of[from]; a.all >= a.limits.arrivals || n >= leastShare && n >= shareOfFree*(a.limits.arrivals-a.all) {
		return nil, nil, "too many open handshakes from one network"
	}
	a.all++
	a.of[from]++
	a.conns[addr]++
	settled = sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.all--
		if a.of[from]--; a.of[from] == 0 {
			delete(a.of, from)
		}
	})
	return settled, sync.OnceFunc(func() {
		settled()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.conns[addr]--; a.conns[addr] == 0 {
			delete(a.conns, addr)
		}
	}), ""
}

// counts gives arrivals and connections.
func (a *arrivals) counts() (arriving, connections int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.conns {
		connections += n
	}
	return a.all, connections
}

// slots are the handshakes that a port does at once. Networks with somebody waiting take turns.
//
// A peer that begins and does not go on keeps its slot for a minute, longer than others wait. So a network may have most of the slots and
// never the last ones, as of arrivals.
type slots struct {
	mu      sync.Mutex
	free    int
	taken   int
	of      map[netip.Prefix]int
	waiting map[netip.Prefix][]chan struct{}
	turns   []netip.Prefix // networks of waiting
}

func newSlots(n int) *slots {
	return &slots{free: n, of: make(map[netip.Prefix]int), waiting: make(map[netip.Prefix][]chan struct{})}
}

// may says whether a network may have one of the free slots. The caller holds mu.
func (s *slots) may(from netip.Prefix) bool {
	return s.free > 0 && (s.of[from] == 0 || s.of[from] < shareOfFree*s.free)
}

// give takes a free slot for a network. The caller holds mu.
func (s *slots) give(from netip.Prefix) {
	s.free--
	s.taken++
	s.of[from]++
}

// take waits for a slot; false: ctx ended before there was one. release may be called again.
func (s *slots) take(ctx context.Context, peer net.Addr) (release func(), ok bool) {
	from, turn := network(peer), make(chan struct{})
	release = sync.OnceFunc(func() { s.release(from) })
	s.mu.Lock()
	if len(s.waiting[from]) == 0 && s.may(from) {
		s.give(from)
		s.mu.Unlock()
		return release, true
	}
	if len(s.waiting[from]) == 0 {
		s.turns = append(s.turns, from)
	}
	s.waiting[from] = append(s.waiting[from], turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return release, true
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-turn: // it came at the same moment
		go release()
	default:
		s.leave(from, turn)
	}
	return nil, false
}

// release gives a slot back, and to the first network in turn that may have one. One that may not keeps its place.
func (s *slots) release(from netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	s.taken--
	if s.of[from]--; s.of[from] == 0 {
		delete(s.of, from)
	}
	for i := 0; i < len(s.turns); {
		next := s.turns[i]
		if !s.may(next) {
			i++
			continue
		}
		s.give(next)
		s.turns = append(s.turns[:i:i], s.turns[i+1:]...)
		line := s.waiting[next]
		close(line[0])
		if line = line[1:]; len(line) == 0 {
			delete(s.waiting, next)
			continue
		}
		s.waiting[next] = line
		s.turns = append(s.turns, next)
		if s.free == 0 {
			return
		}
	}
}

// leave takes out who waits no longer. The caller holds mu.
func (s *slots) leave(from netip.Prefix, turn chan struct{}) {
	line := s.waiting[from]
	for i := range line {
		if line[i] == turn {
			line = append(line[:i:i], line[i+1:]...)
			break
		}
	}
	if s.waiting[from] = line; len(line) > 0 {
		return
	}
	delete(s.waiting, from)
	for i := range s.turns {
		if s.turns[i] == from {
			s.turns = append(s.turns[:i:i], s.turns[i+1:]...)
			break
		}
	}
}

// counts gives handshakes under way and those that wait for a slot.
func (s *slots) counts() (taken, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.waiting {
		waiting += len(line)
	}
	return s.taken, waiting
}

// network is what shares a share: a /24 of IPv4, a /64 of IPv6. Peers without an address share one.
func network(peer net.Addr) netip.Prefix {
	ip := address(peer)
	if !ip.IsValid() {
		return netip.Prefix{}
	}
	bits := 64
	if ip.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

func address(peer net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(peer.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}
