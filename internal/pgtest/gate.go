package pgtest

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Gate passes connections on to PostgreSQL's socket, and spoils them as a network does. It is safe for concurrent use.
type Gate struct {
	to string

	mu     sync.Mutex
	open   *sync.Cond
	shut   bool
	needle []byte
	lost   int
	conns  []net.Conn
}

// NewGate makes a gate before the PostgreSQL of a URL, and gives the URL by which the same database is reached through it. It goes with the test.
func NewGate(t testing.TB, database string) (g *Gate, through string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "g") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	q := u.Query()
	socket := ".s.PGSQL." + q.Get("port")
	g = &Gate{to: filepath.Join(q.Get("host"), socket)}
	g.open = sync.NewCond(&g.mu)
	ln, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close(); g.Shut(false); g.drop() })
	go g.serve(ln)
	q.Set("host", dir)
	u.RawQuery = q.Encode()
	return g, u.String()
}

func (g *Gate) serve(ln net.Listener) {
	for {
		near, err := ln.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("unix", g.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		g.mu.Lock()
		g.conns = append(g.conns, near, far)
		g.mu.Unlock()
		c := &passage{g: g}
		go c.pump(far, near, true)
		go c.pump(near, far, false)
	}
}

// passage is one connection through the gate.
type passage struct {
	g      *Gate
	doomed bool // its next answer is lost; guarded by g.mu
}

func (c *passage) pump(to, from net.Conn, asks bool) {
	defer func() { _ = errors.Join(to.Close(), from.Close()) }()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && c.g.loses(c, b[:n], asks) {
			return
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// loses waits while the gate is shut and says whether what was read is an answer that is lost.
func (g *Gate) loses(c *passage, b []byte, asks bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut {
		g.open.Wait()
	}
	switch {
	case asks && g.needle != nil && bytes.Contains(b, g.needle):
		g.needle, c.doomed = nil, true
	case !asks && c.doomed:
		g.lost++
		return true
	}
	return false
}

// Shut makes what is on its way stand still, as behind a network that swallows packets, and new connections, too; or lets all go on.
func (g *Gate) Shut(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.open.Broadcast()
}

// LoseAnswer cuts the next connection that asks for something with these bytes in it, once PostgreSQL has done it and before its answer.
func (g *Gate) LoseAnswer(to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.needle = []byte(to)
}

// Lost is how many answers were lost.
func (g *Gate) Lost() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lost
}

func (g *Gate) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		_ = c.Close()
	}
}
