package demo

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// network is the wire between gateways and server: a TCP proxy that can be cut, as a cable or a switch can. The kit names it, so that
// nothing of the product knows of it.
type network struct {
	ln     net.Listener
	target string

	mu      sync.Mutex
	lines   map[*line]struct{}
	cuts    int // in force
	holes   int // of them, such that swallow what is sent instead of breaking lines
	since   time.Time
	outage  time.Duration // of cuts that are over
	torn    int           // chunks of which only a part arrived
	carried chan struct{} // closed when no hole is in force
	closed  bool
	serving sync.WaitGroup
}

// line is one connection through the network.
type line struct {
	near, far *net.TCPConn
	broken    bool // guarded by network.mu: what it carries next arrives in part, and then nothing
}

// tearing is how long a line that is cut may wait for something to tear.
const tearing = 100 * time.Millisecond

// newNetwork begins to carry connections from addr to target.
func newNetwork(addr, target string) (*network, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	n := &network{ln: ln, target: target, lines: make(map[*line]struct{}), carried: make(chan struct{})}
	close(n.carried)
	n.serving.Go(n.accept)
	return n, nil
}

func (n *network) address() string { return n.ln.Addr().String() }

func (n *network) accept() {
	for {
		conn, err := n.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: it passes
			time.Sleep(10 * time.Millisecond)
			continue
		}
		n.serving.Go(func() { n.carry(conn.(*net.TCPConn)) })
	}
}

// carry serves one connection to its end.
func (n *network) carry(near *net.TCPConn) {
	defer near.Close()
	if n.isCut() {
		reset(near)
		return
	}
	conn, err := net.DialTimeout("tcp", n.target, 5*time.Second)
	if err != nil {
		reset(near)
		return
	}
	l := &line{near: near, far: conn.(*net.TCPConn)}
	defer l.far.Close()
	n.mu.Lock()
	if n.closed || n.cuts > n.holes {
		n.mu.Unlock()
		l.reset()
		return
	}
	n.lines[l] = struct{}{}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.lines, l)
		n.mu.Unlock()
	}()
	var both sync.WaitGroup
	both.Go(func() { n.pump(l, l.near, l.far) })
	both.Go(func() { n.pump(l, l.far, l.near) })
	both.Wait()
}

// pump carries one direction until it ends.
func (n *network) pump(l *line, from, to *net.TCPConn) {
	buf := make([]byte, 16<<10)
	for {
		got, err := from.Read(buf)
		if got > 0 {
			if n.tears(l) {
				_, _ = to.Write(buf[:got/2])
				l.reset()
				return
			}
			if _, werr := to.Write(buf[:got]); werr != nil {
				l.reset()
				return
			}
		}
		if err != nil {
			_ = to.CloseWrite()
			return
		}
	}
}

// tears waits while a hole is in force and tells whether the line is broken.
func (n *network) tears(l *line) bool {
	for {
		n.mu.Lock()
		broken, holed, carried := l.broken || n.closed, n.holes > 0, n.carried
		if broken {
			n.torn++
		}
		n.mu.Unlock()
		if broken || !holed {
			return broken
		}
		<-carried
	}
}

// cut begins an outage: new connections are reset. Those that are there are torn in the middle of what they carry next, or, with hole,
// carry nothing and live on. mend ends the outage; of several that overlap, the last mend does.
func (n *network) cut(hole bool) (mend func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cuts++; n.cuts == 1 {
		n.since = time.Now()
	}
	if hole {
		if n.holes++; n.holes == 1 {
			n.carried = make(chan struct{})
		}
	} else {
		for l := range n.lines {
			l.broken = true
			time.AfterFunc(tearing, l.reset)
		}
	}
	return sync.OnceFunc(func() { n.mend(hole) })
}

func (n *network) mend(hole bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cuts--; n.cuts == 0 {
		n.outage += time.Since(n.since)
	}
	if hole {
		if n.holes--; n.holes == 0 {
			close(n.carried)
		}
	}
}

func (n *network) isCut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts > 0
}

// outages is how long the network was cut until now.
func (n *network) outages() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cuts > 0 {
		return n.outage + time.Since(n.since)
	}
	return n.outage
}

// close ends every connection.
func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	for l := range n.lines {
		l.broken = true
		l.reset()
	}
	if n.holes > 0 {
		n.holes = 0
		close(n.carried)
	}
	n.mu.Unlock()
	n.ln.Close()
	n.serving.Wait()
}

// reset breaks both halves without goodbye.
func (l *line) reset() {
	reset(l.near)
	reset(l.far)
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // a close is a reset then
	c.Close()
}
