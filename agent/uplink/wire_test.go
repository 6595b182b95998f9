package uplink

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
)

// manner is how a wire treats one connection. The zero value carries it well.
type manner struct {
	refused bool          // reset as soon as it is accepted
	piece   int           // bytes carried at once; 0: as they come
	delay   time.Duration // before each piece
	up      int           // bytes towards the server, then end; 0: no end
	down    int           // bytes towards the gateway, then end; 0: no end
	end     ending
}

type ending int

const (
	reset ending = iota
	stall        // carries nothing more, and closes nothing
	half         // says that nothing more comes in this direction, and carries the other one
)

// wire is a TCP proxy between an agent and its server; each connection is treated as of says.
type wire struct {
	t      testing.TB
	ln     net.Listener
	target string
	of     func(n int) manner
	over   chan struct{}
	open   sync.WaitGroup

	mu sync.Mutex
	n  int
}

func newWire(t testing.TB, target string, of func(n int) manner) *wire {
	t.Helper()
	w := &wire{t: t, ln: must(net.Listen("tcp", "127.0.0.1:0"))(t), target: target, of: of, over: make(chan struct{})}
	w.open.Go(func() {
		for {
			conn, err := w.ln.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			m := w.of(w.n)
			w.n++
			w.mu.Unlock()
			w.open.Go(func() { w.carry(conn.(*net.TCPConn), m) })
		}
	})
	t.Cleanup(func() {
		w.ln.Close()
		close(w.over)
		w.open.Wait()
	})
	return w
}

func (w *wire) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

func (w *wire) carry(near *net.TCPConn, m manner) {
	cut := func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }
	defer near.Close()
	if m.refused {
		cut(near)
		return
	}
	conn, err := net.Dial("tcp", w.target)
	if err != nil {
		cut(near)
		return
	}
	far := conn.(*net.TCPConn)
	defer far.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-w.over:
			cut(near)
			cut(far)
		case <-done:
		}
	}()
	var both sync.WaitGroup
	pump := func(from, to *net.TCPConn, limit int) {
		buf := make([]byte, 32<<10)
		if m.piece > 0 {
			buf = buf[:m.piece]
		}
		for carried := 0; ; {
			if limit > 0 {
				buf = buf[:min(len(buf), limit-carried)]
			}
			n, err := from.Read(buf)
			if n > 0 {
				time.Sleep(m.delay)
				if _, werr := to.Write(buf[:n]); werr != nil {
					cut(from)
					return
				}
			}
			if err != nil {
				_ = to.CloseWrite()
				return
			}
			if carried += n; limit > 0 && carried == limit {
				break
			}
		}
		switch m.end {
		case reset:
			cut(from)
			cut(to)
		case half:
			_ = to.CloseWrite()
			_, _ = io.Copy(io.Discard, from)
		case stall:
			<-done // once the other direction is over, or the test
		}
	}
	if m.end == stall && (m.up > 0 || m.down > 0) {
		// Who gives up closes; that is to be seen, though nothing is carried.
		limit, from, to, other := m.up, near, far, m.down
		if m.down > 0 {
			limit, from, to, other = m.down, far, near, m.up
		}
		go pump(from, to, limit)
		pump(to, from, other)
		cut(from)
		cut(to)
		return
	}
	both.Go(func() { pump(near, far, m.up) })
	both.Go(func() { pump(far, near, m.down) })
	both.Wait()
}

// cutConn is the server's end of a connection that is cut instead of carrying the PUBACK after so many; -1: never. Every PUBACK is written by
// ingest in whole packets.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	for at := 0; c.left >= 0 && at < len(p); {
		length, n := 0, 1
		for shift := 0; ; shift += 7 {
			b := p[at+n]
			n++
			length |= int(b&0x7f) << shift
			if b&0x80 == 0 {
				break
			}
		}
		if p[at] == 0x40 {
			if c.left == 0 {
				_, _ = c.Conn.Write(p[:at])
				c.Conn.Close()
				return at, io.ErrClosedPipe
			}
			c.left--
		}
		at += n + length
	}
	return c.Conn.Write(p)
}

func (c *cutConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// seedOf is printed, and taken from WARDLINK_SEED when that is set.
func seedOf(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("WARDLINK_SEED"); s != "" {
		seed = must(strconv.ParseUint(s, 10, 64))(t)
	}
	t.Logf("WARDLINK_SEED=%d", seed)
	return seed
}

// TestABadNetwork: whatever a network does to the first connections, everything is in the journal in the end and in the account once;
// nothing counts as delivered that is not there; no connection sends more than a window in vain; none follows the other without a wait.
func TestABadNetwork(t *testing.T) {
	const batches, size, bad = 150, 700, 8
	seed := seedOf(t)
	for name, c := range map[string]struct {
		of     func(n int, rng *rand.Rand) manner
		puback func(n int) int // acknowledgements that connection n carries; nil: all
	}{
		"refused":               {of: func(int, *rand.Rand) manner { return manner{refused: true} }},
		"reset on the way up":   {of: func(_ int, r *rand.Rand) manner { return manner{up: 1 + r.IntN(60_000)} }},
		"reset on the way down": {of: func(_ int, r *rand.Rand) manner { return manner{down: 1 + r.IntN(4_000)} }},
		"delayed in small pieces": {of: func(_ int, r *rand.Rand) manner {
			return manner{piece: 1 + r.IntN(400), delay: time.Duration(r.IntN(100)) * time.Microsecond, up: 20_000 + r.IntN(60_000)}
		}},
		"throttled":            {of: func(int, *rand.Rand) manner { return manner{piece: 1000, delay: 5 * time.Millisecond} }},
		"stalls on the way up": {of: func(_ int, r *rand.Rand) manner { return manner{up: 1 + r.IntN(60_000), end: stall} }},
		"stalls on the way down, in the middle of a packet": {of: func(_ int, r *rand.Rand) manner { return manner{down: 1 + r.IntN(3_000), end: stall} }},
		"half closed on the way up":                         {of: func(_ int, r *rand.Rand) manner { return manner{up: 1 + r.IntN(60_000), end: half} }},
		"half closed on the way down":                       {of: func(_ int, r *rand.Rand) manner { return manner{down: 1 + r.IntN(4_000), end: half} }},
		"anything": {of: func(_ int, r *rand.Rand) manner {
			m := manner{refused: r.IntN(8) == 0, piece: r.IntN(2) * (1 + r.IntN(2000)), end: ending(r.IntN(3))}
			if r.IntN(2) == 0 {
				m.up = 1 + r.IntN(60_000)
			} else {
				m.down = 1 + r.IntN(4_000)
			}
			return m
		}},
		"cut before the first PUBACK": {puback: func(int) int { return 0 }},
		"cut before each PUBACK":      {puback: func(n int) int { return n }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, uint64(len(name))))
			h := newHospital(t)
			var sessions int
			if c.puback != nil {
				h.wrap = func(conn net.Conn) net.Conn {
					left := -1
					if h.mu.Lock(); sessions < bad {
						left = c.puback(sessions)
					}
					sessions++
					h.mu.Unlock()
					return &cutConn{conn, left}
				}
			}
			h.start()
			w := newWire(t, h.addr, func(n int) manner {
				if n >= bad || c.of == nil {
					return manner{}
				}
				return c.of(n, rng)
			})
			a := newAgent(t, h)
			a.cfg.Servers = []string{w.ln.Addr().String()}
			a.timing.handshake, a.timing.write, a.timing.ack, a.timing.drain = 400*time.Millisecond, 400*time.Millisecond, 400*time.Millisecond, 100*time.Millisecond
			p := a.ward.period()
			a.buf.add(a.ward.batches(p, telemetry.LaneVitals, batches, size)...)
			began := time.Now()
			a.start()
			// New ones come all the time, so that each connection has something to do.
			total := batches
			for w.connections() <= bad && c.of != nil && name != "throttled" && time.Since(began) < patience {
				a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 1, size)...)
				total++
				time.Sleep(10 * time.Millisecond)
			}
			eventually(t, "everything is acknowledged", func() bool { return a.buf.count(acked) == total })
			if n := h.journal.total(); n != total {
				t.Errorf("%d batches are in the account; want %d", n, total)
			}
			s, n := a.Status(), w.connections()
			if most := uint64(total) + s.Connects*window; s.Published > most {
				t.Errorf("%d publishes of %d batches over %d sessions; want %d at most", s.Published, total, s.Connects, most)
			}
			if most := int(time.Since(began)/floor) + 1; n > most {
				t.Errorf("%d connections in %s", n, time.Since(began))
			}
			h.journal.mu.Lock()
			defer h.journal.mu.Unlock()
			for id, times := range h.journal.rows {
				if times > n {
					t.Errorf("batch %d was sent %d times over %d connections", id.Number, times, n)
				}
			}
		})
	}
}

// TestRenewalOverABadNetwork: the handshakes of the successor stall, are reset, are half closed; the old connection goes on sending all the
// while, and once one comes through nothing was lost and nothing sent twice.
func TestRenewalOverABadNetwork(t *testing.T) {
	h := newHospital(t)
	h.start()
	endings := []manner{{down: 700, end: stall}, {up: 900, end: stall}, {down: 1500}, {refused: true}, {down: 1000, end: half}}
	w := newWire(t, h.addr, func(n int) manner {
		if n == 0 || n > len(endings) {
			return manner{}
		}
		return endings[n-1]
	})
	a := newAgent(t, h)
	a.cfg.Servers = []string{w.ln.Addr().String()}
	a.timing.handshake = 300 * time.Millisecond
	p := a.ward.period()
	a.start()
	eventually(t, "the session", func() bool { return a.Status().Connected })
	a.renew(h.ca.gateway())
	total := 0
	for last := 0; a.Status().Connects < 2; {
		a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 3, 300)...)
		total += 3
		eventually(t, "the old connection carries on", func() bool { return a.buf.count(acked) == total })
		if n := w.connections(); n != last {
			last = n
			t.Logf("%d connections, %d batches", n, total)
		}
	}
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 100, 300)...)
	total += 100
	eventually(t, "everything is acknowledged", func() bool { return a.buf.count(acked) == total })
	if n := w.connections(); n != len(endings)+2 {
		t.Errorf("%d connections; want %d", n, len(endings)+2)
	}
	if s := a.Status(); s.Published != uint64(total) || h.journal.total() != total {
		t.Errorf("%d published, %d journaled, of %d", s.Published, h.journal.total(), total)
	}
	opened := h.journal.events(audit.SessionOpened)
	if len(opened) != 2 || opened[0].Actor.Serial == opened[1].Actor.Serial {
		t.Errorf("sessions %+v", opened)
	}
}

// TestABadNetworkLeavesNothing: hundreds of torn connections over real sockets cost neither goroutines nor memory.
func TestABadNetworkLeavesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 0))
	h := newHospital(t)
	h.start()
	w := newWire(t, h.addr, func(int) manner {
		return manner{down: 1 + rng.IntN(4_000), end: ending(rng.IntN(3))}
	})
	a := newAgent(t, h)
	a.cfg.Servers = []string{w.ln.Addr().String()}
	a.timing.handshake, a.timing.ack, a.timing.drain = 50*time.Millisecond, 50*time.Millisecond, 20*time.Millisecond
	a.timing.least, a.timing.most = floor, floor
	a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 200, 300)...)
	a.start()
	measure := func(upTo int) (int, uint64) {
		p := a.ward.period()
		eventually(t, fmt.Sprintf("%d connections", upTo), func() bool {
			if a.buf.count(waiting) < 10 { // each connection has something to do
				a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 300)...)
			}
			return w.connections() >= upTo
		})
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	g1, h1 := measure(10)
	g2, h2 := measure(30)
	t.Logf("after 10 connections %d goroutines and %d KB, after 30 %d and %d KB", g1, h1>>10, g2, h2>>10)
	if g2 > g1+60 || h2 > h1+4<<20 {
		t.Errorf("after 10 connections %d goroutines and %d KB, after 30 %d and %d KB", g1, h1>>10, g2, h2>>10)
	}
}

// TestARenewalDoesNotWaitForPUBACKsForEver: what the old connection's server does not acknowledge within the drain goes over the new one, and is in
// the account once, however often it was journaled.
func TestARenewalDoesNotWaitForPUBACKsForEver(t *testing.T) {
	h, a, p := renewedInFlight(t, func(w *timing) { w.drain = 100 * time.Millisecond })
	eventually(t, "the old connection is left", func() bool { return !a.Status().Connected })
	h.journal.set(func() { h.journal.held = false })
	eventually(t, "the new session", func() bool { return a.Status().Connects == 2 })
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 50)...)
	eventually(t, "all are acknowledged", func() bool { return a.buf.count(acked) == 30 })
	if n := h.journal.total(); n != 30 {
		t.Errorf("%d batches are in the account; want 30", n)
	}
	if s := a.Status(); s.Published > 40 {
		t.Errorf("%d publishes", s.Published)
	}
}
