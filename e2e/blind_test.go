package e2e

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
	"wardlink/internal/pgtest"
)

// TestABlindNode: a node whose database stands still ends its sessions within its bound, since a revocation could hide, and turns gateways away; they
// keep what their devices send, and one at another node notices nothing. Once the database answers they come back by themselves.
func TestABlindNode(t *testing.T) {
	const bound = 5 * time.Second // blind_seconds
	c := newCell(t, 2)
	blind := c.nodes[0]
	g, through := pgtest.NewGate(t, c.pg.URL("wardlink", "wardlink"))
	u, err := url.Parse(through)
	if err != nil {
		t.Fatal(err)
	}
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
	changed := strings.Replace(string(text), host, url.Values{"host": u.Query()["host"]}.Encode(), 1) + "limits: {blind_seconds: 5}\n"
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
	g.Shut(true)
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
	g.Shut(false)
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
