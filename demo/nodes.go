package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"wardlink/internal/balancer"
	"wardlink/internal/child"
	"wardlink/internal/pgserver"
)

// ingestNode is one node behind the balancer.
type ingestNode struct {
	name, dir, gateways, health string
	proc                        *child.Process // guarded by theatre.mu
}

// owner is the login that has the demonstration's database; nodes have their own, with passwords.
const owner = "wardlink"

// makeDatabase starts PostgreSQL, where the demonstration has one, and gives what init is told of it.
func (t *theatre) makeDatabase(ctx context.Context) (args []string, err error) {
	if !t.Postgres {
		return nil, nil
	}
	if t.pg, err = pgserver.New(pgserver.Config{HBA: []string{"local all postgres trust", "local all " + owner + " trust", "local all all scram-sha-256"}}); err != nil {
		return nil, err
	}
	for _, q := range []string{"CREATE ROLE " + owner + " LOGIN CREATEROLE", "CREATE DATABASE " + owner + " OWNER " + owner + " TEMPLATE template0"} {
		if err := t.pg.Exec(ctx, "postgres", q); err != nil {
			return nil, err
		}
	}
	args = []string{"--database", t.pg.URL(owner, owner)}
	if t.Nodes > 0 {
		args = append(args, "--services", "ca,records,log,api")
	}
	return args, nil
}

// startNodes makes the ingest nodes as an operator does, runs them behind a balancer, and gives the address where gateways are served.
func (t *theatre) startNodes(ctx context.Context) (front string, err error) {
	if t.Nodes == 0 {
		return t.ports.gateways, nil
	}
	var behind []balancer.Node
	for i := range t.Nodes {
		n := &ingestNode{name: fmt.Sprintf("node-%d", i+1), dir: filepath.Join(t.dir, fmt.Sprintf("node-%d", i+1))}
		for _, addr := range []*string{&n.gateways, &n.health} {
			if *addr, err = t.doors.Free(); err != nil {
				return "", err
			}
		}
		if _, err := child.Output(ctx, t.bin("wardlink-server"), "node", "add", "--dir", t.server, "--name", n.name, "--out", n.dir, "--gateways", n.gateways,
			"--health", n.health, "--server", t.ports.gateways, "--balancer", balancer.Address); err != nil {
			return "", err
		}
		t.nodes = append(t.nodes, n)
		behind = append(behind, balancer.Node{Name: n.name, Gateways: n.gateways, Health: n.health})
		if err := t.runNode(n); err != nil {
			return "", err
		}
	}
	if front, err = t.doors.Free(); err != nil {
		return "", err
	}
	t.balancer, err = balancer.Start(t.dir, front, behind)
	return front, err
}

func (t *theatre) behind() string {
	if t.Nodes == 0 {
		return ""
	}
	return fmt.Sprintf(" (HAProxy, %s)", plural(t.Nodes, "node"))
}

func (t *theatre) runNode(n *ingestNode) error {
	p, err := child.Start(n.name, filepath.Join(t.dir, n.name+".log"), t.bin("wardlink-server"), "run", "--dir", n.dir)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n.proc = p
	return nil
}

// nodeProcesses are the nodes' and the balancer's.
func (t *theatre) nodeProcesses() (out []*child.Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.balancer != nil {
		out = append(out, t.balancer)
	}
	for _, n := range t.nodes {
		if n.proc != nil {
			out = append(out, n.proc)
		}
	}
	return out
}

// missed is how long a gateway may take to notice that its node is dead: the balancer resets the connection at once.
const missed = 2 * time.Second

// killNode kills the ingest node that has the first gateway's session, in the middle of the stream, and starts it again once the gateways have
// gone on at the others. Which one that is only the balancer knows, so one after the other is killed until the session ends.
func (t *theatre) killNode(ctx context.Context) error {
	g := t.fleet[0]
	count, err := t.untilHalf(ctx, g)
	if err != nil {
		return err
	}
	for _, n := range t.nodes {
		before, err := t.connected(ctx)
		if err != nil {
			return err
		}
		t.stages.note("SIGKILL to %s of %d after %d messages of %s", n.name, len(t.nodes), count, g.name)
		begun := time.Now()
		t.killNodeProcess(n)
		held := t.ends(ctx, g, before[g])
		if held && len(t.nodes) > 1 {
			if err := t.goOn(ctx, before); err != nil {
				return err
			}
			t.stages.note("its session of %s is gone; every gateway delivers at the other nodes after %.1f s; it is started again", g.name, time.Since(begun).Seconds())
			return t.runNode(n)
		}
		if err := t.runNode(n); err != nil {
			return err
		}
		if held {
			t.stages.note("it was the only one, and is started again")
			return t.goOn(ctx, before)
		}
		t.stages.note("it had no session of %s, and is started again", g.name)
	}
	return fmt.Errorf("%s kept its session while each of %s was killed", g.name, plural(len(t.nodes), "node"))
}

// connected waits until every gateway is, and gives what its agent says then.
func (t *theatre) connected(ctx context.Context) (map[*gateway]agentStatus, error) {
	said := make(map[*gateway]agentStatus)
	err := child.Until(ctx, "the gateways' connections", t.running(), func(ctx context.Context) (bool, error) {
		for _, g := range t.fleet {
			s, err := g.status(ctx)
			if err != nil || !s.Uplink.Connected {
				return false, nil
			}
			said[g] = s
		}
		return true, nil
	})
	return said, err
}

// ends says whether a gateway's session does, of which its agent said this.
func (t *theatre) ends(ctx context.Context, g *gateway, session agentStatus) bool {
	ctx, cancel := context.WithTimeout(ctx, missed)
	defer cancel()
	return child.Until(ctx, "the session's end", nil, func(ctx context.Context) (bool, error) {
		s, err := g.status(ctx)
		return err == nil && (!s.Uplink.Connected || !s.Uplink.Since.Equal(session.Uplink.Since)), nil
	}) == nil
}

// goOn waits until the hospital has acknowledged more of each gateway than before, or all.
func (t *theatre) goOn(ctx context.Context, before map[*gateway]agentStatus) error {
	ctx, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	return child.Until(ctx, "the gateways' deliveries", t.running(), func(ctx context.Context) (bool, error) {
		for _, g := range t.fleet {
			s, err := g.status(ctx)
			if err != nil || !s.Uplink.Connected || s.acknowledged() <= before[g].acknowledged() && s.waiting() > 0 {
				return false, nil
			}
		}
		return true, nil
	})
}

func (t *theatre) killNodeProcess(n *ingestNode) {
	t.mu.Lock()
	p := n.proc
	n.proc = nil
	t.mu.Unlock()
	p.Kill()
	t.count(func(s *Summary) { s.Kills.Node++; s.Kills.Total++ })
}

func (t *theatre) strikeNode(n *ingestNode) error {
	t.killNodeProcess(n)
	return t.runNode(n)
}

func (t *theatre) strikeDatabase() error {
	if err := t.pg.Kill(); err != nil {
		return err
	}
	t.count(func(s *Summary) { s.Kills.Database++; s.Kills.Total++ })
	return t.pg.Start()
}

// target is what a blow at the hospital's side hits.
type target struct {
	name   string
	strike func() error
}

// serverSide is what a blow hits: the server, or with nodes one of them or the database, as the blow's instant says, so that a seed repeats it.
func (t *theatre) serverSide(b blow) target {
	targets := []target{{"the server", t.strikeServer}}
	for _, n := range t.nodes {
		targets = append(targets, target{n.name, func() error { return t.strikeNode(n) }})
	}
	if t.pg != nil {
		targets = append(targets, target{"PostgreSQL", t.strikeDatabase})
	}
	var k Kills
	t.count(func(s *Summary) { k = s.Kills })
	switch { // each of them once, whatever the instants say
	case k.Server == 0:
		return targets[0]
	case k.Node == 0 && len(t.nodes) > 0:
		return targets[1]
	}
	return targets[int(b.at.Microseconds())%len(targets)]
}
