package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/internal/child"
)

// gate passes connections on to PostgreSQL's socket until it is shut: then what is on its way stands still, as behind a network that swallows
// packets. New connections are taken and stand still, too.
type gate struct {
	to string

	mu    sync.Mutex
	open  *sync.Cond
	shut  bool
	conns []net.Conn
}

// newGate makes the gate with PostgreSQL's socket in a directory of its own.
func newGate(t *testing.T, database string) (g *gate, dir string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	socket := ".s.PGSQL." + u.Query().Get("port")
	g, dir = &gate{to: filepath.Join(u.Query().Get("host"), socket)}, folder(t)
	g.open = sync.NewCond(&g.mu)
	ln, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); g.set(false); g.drop() })
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", g.to)
			if err != nil {
				near.Close()
				continue
			}
			g.mu.Lock()
			g.conns = append(g.conns, near, far)
			g.mu.Unlock()
			go g.pump(far, near)
			go g.pump(near, far)
		}
	}()
	return g, dir
}

func (g *gate) pump(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		g.mu.Lock()
		for g.shut {
			g.open.Wait()
		}
		g.mu.Unlock()
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.open.Broadcast()
}

func (g *gate) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		_ = c.Close()
	}
}

// TestABlindNode: a node whose database stands still ends its sessions within its bound, since a revocation could hide, and turns gateways away; they
// keep what their devices send, and one at another node notices nothing. Once the database answers they come back by themselves.
func TestABlindNode(t *testing.T) {
	const bound = 5 * time.Second // blind_seconds
	c := newCell(t, 2)
	blind := c.nodes[0]
	g, dir := newGate(t, c.pg.URL("wardlink", "wardlink"))
	blind.proc.Stop()
	config := filepath.Join(blind.dir, "server.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	host := url.Values{"host": {c.pg.Dir()}}.Encode()
	if !strings.Contains(string(text), host) {
		t.Fatalf("no %s in\n%s", host, text)
	}
	changed := strings.Replace(string(text), host, url.Values{"host": {dir}}.Encode(), 1) + "limits: {blind_seconds: 5}\n"
	if err := os.WriteFile(config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	c.runNode(blind)

	// Each gateway knows one node alone.
	boxes := make([]*box, 2)
	for i, n := range c.nodes {
		kit := filepath.Join(c.dir, n.name+".json")
		c.must("wardlink", "--operator", c.operator(), "provision", "kit", "--server", n.gateways, "--out", kit)
		boxes[i] = c.newBox("box-"+n.name, kit)
		boxes[i].deliverAs("icu-" + n.name)
	}
	var other boxSession
	boxes[1].session(&other)
	if !other.Uplink.Connected {
		t.Fatalf("the other node's gateway: %+v", other)
	}
	g.set(true)
	begun := time.Now()
	c.await("the end of the blind node's session", func(context.Context) (bool, error) {
		var s boxSession
		boxes[0].session(&s)
		return !s.Uplink.Connected, nil
	})
	took := time.Since(begun).Round(10 * time.Millisecond)
	t.Logf("ended %s after the database stood still, with a bound of %s", took, bound)
	boxes[0].accepts("B1")
	boxes[1].accepts("B1")
	boxes[1].awaitIdle()
	var still boxSession
	if boxes[1].session(&still); still.Uplink != other.Uplink {
		t.Errorf("the other node's gateway was disturbed: %+v; before: %+v", still.Uplink, other.Uplink)
	}
	if log, err := os.ReadFile(filepath.Join(c.dir, blind.name+".log")); err != nil || !strings.Contains(string(log), "registry cannot be asked; all sessions are cut") {
		t.Errorf("the node does not say why: %v", err)
	}
	g.set(false)
	boxes[0].awaitDelivered()
	c.must("wardlink", "--operator", c.operator(), "account", "--check")
}

// boxSession is what an agent says of its session.
type boxSession struct {
	Uplink struct {
		Connected bool      `json:"connected"`
		Since     time.Time `json:"since"`
	} `json:"uplink"`
}

func (b *box) session(into *boxSession) {
	b.t.Helper()
	b.await("the agent's word", func(ctx context.Context) (bool, error) {
		out, err := child.Output(ctx, program("wardlink-agent"), "status", "--json", "--config", b.config())
		if err != nil {
			return false, nil
		}
		return true, json.Unmarshal(out, into)
	})
}
