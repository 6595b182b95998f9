package source

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Limits bound what one source may bring. Beyond Messages or Bytes nothing is refused and nothing dropped: the next message of a
// connection is read later, so that a device that waits for its acknowledgement is slowed by that, and one that does not by TCP.
type Limits struct {
	Messages   int // a second, in the long run; 0: no limit
	Burst      int // messages at once after a pause; 0: a second's worth
	Bytes      int // a second, of messages; 0: no limit. At least telemetry.MaxMessage, else one message could wait for a minute
	PerAddress int // connections of one address at a time; 0: three quarters of MaxConns, so that no single device has all places
}

// Check says what of the limits makes no sense, as keys of the configuration.
func (l Limits) Check(conns, maxMessage int) error {
	switch {
	case l.Messages < 0 || l.Burst < 0 || l.Bytes < 0 || l.PerAddress < 0 || conns < 0:
		return errors.New("limits: expected numbers above 0; leave a key out for no limit")
	case l.Burst > 0 && l.Messages == 0:
		return errors.New("limits.burst: without messages it limits nothing; set limits.messages, too")
	case l.Burst > 0 && l.Burst < l.Messages:
		return fmt.Errorf("limits.burst: %d is less than a second's messages (%d)", l.Burst, l.Messages)
	case l.Bytes > 0 && l.Bytes < maxMessage:
		return fmt.Errorf("limits.bytes: %d is less than one message may have (%d)", l.Bytes, maxMessage)
	case conns > MaxConns:
		return fmt.Errorf("limits.connections: %d; at most %d", conns, MaxConns)
	}
	return nil
}

// MaxConns is the most connections that a source can be given: each may hold a message of 64 KB in memory.
const MaxConns = 1000

// throttle is two buckets of tokens, one of messages and one of bytes. They may be in debt: whoever takes waits until the debt is paid,
// and those after it wait for theirs, too.
type throttle struct {
	mu              sync.Mutex
	last            time.Time // monotonic
	messages, bytes bucket
}

type bucket struct {
	rate, size float64 // tokens a second, and at most; rate 0: no limit
	have       float64
}

func newThrottle(l Limits) *throttle {
	burst := max(l.Burst, l.Messages)
	return &throttle{
		messages: bucket{float64(l.Messages), float64(burst), float64(burst)},
		bytes:    bucket{float64(l.Bytes), float64(l.Bytes), float64(l.Bytes)},
	}
}

// take takes a message of n bytes and says how long nothing more may be read where it came from.
func (t *throttle) take(now time.Time, n int) time.Duration {
	if t.messages.rate == 0 && t.bytes.rate == 0 {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var passed float64
	if !t.last.IsZero() {
		passed = max(0, now.Sub(t.last).Seconds())
	}
	t.last = now
	return max(t.messages.take(passed, 1), t.bytes.take(passed, float64(n)))
}

func (b *bucket) take(passed, n float64) time.Duration {
	if b.rate == 0 {
		return 0
	}
	b.have = min(b.size, b.have+passed*b.rate) - n
	if b.have >= 0 {
		return 0
	}
	return time.Duration(-b.have / b.rate * float64(time.Second))
}

// places counts the open connections of each address.
type places struct {
	mu  sync.Mutex
	of  map[netip.Addr]int
	max int
}

// take takes a place; false when the address has all of its own. A Unix socket's peers have none.
func (p *places) take(a netip.Addr) bool {
	if !a.IsValid() {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[a] >= p.max {
		return false
	}
	p.of[a]++
	return true
}

func (p *places) give(a netip.Addr) {
	if !a.IsValid() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[a]--; p.of[a] <= 0 {
		delete(p.of, a)
	}
}
