package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"wardlink/internal/child"
	"wardlink/server/api/client"
)

// outageTime is how long the network of the demonstration is cut: long enough for a backlog that one can see.
const outageTime = 4 * time.Second

// returnTime is how long a gateway may take to come back once all is well: it waits five minutes between two attempts at the most.
const returnTime = 6 * time.Minute

// Kills counts what was done to the gateways' world.
type Kills struct {
	Total   int `json:"total"`
	Agent   int `json:"agent"`   // SIGKILLs of agents
	Server  int `json:"server"`  // SIGKILLs of the server
	Network int `json:"network"` // cuts of the network

	Node     int `json:"node,omitempty"`     // SIGKILLs of ingest nodes
	Database int `json:"database,omitempty"` // and of PostgreSQL
	Startup  int `json:"startup"`            // of the SIGKILLs, those that fell into a start
}

// Signals is how many SIGKILLs there were, cuts of the network not counted.
func (k Kills) Signals() int { return k.Agent + k.Server + k.Node + k.Database }

// killAgent kills the agent of one gateway, once half of its rows of this window are acknowledged, and starts it again.
func (t *theatre) killAgent(ctx context.Context) error {
	g := t.fleet[0]
	n, err := t.untilHalf(ctx, g)
	if err != nil {
		return err
	}
	t.stages.note("SIGKILL to the agent of %s after %d messages; it is started again", g.name, n)
	return t.strikeAgent(g)
}

// strikeAgent is a power cut for one agent, and its start.
func (t *theatre) strikeAgent(g *gateway) error {
	g.process().Kill()
	t.count(func(s *Summary) { s.AgentKills++; s.Kills.Agent++; s.Kills.Total++ })
	return g.startAgent(t.bin("wardlink-agent"))
}

// killServer kills the server in the middle of the stream and starts it again.
func (t *theatre) killServer(ctx context.Context) error {
	n, err := t.untilHalf(ctx, t.fleet[0])
	if err != nil {
		return err
	}
	t.stages.note("SIGKILL to the server after %d messages of %s; it is started again", n, t.fleet[0].name)
	begun := time.Now()
	if err := t.strikeServer(); err != nil {
		return err
	}
	if err := t.serverReady(ctx); err != nil {
		return err
	}
	t.stages.note("the server is ready again after %.1f s", time.Since(begun).Seconds())
	return nil
}

func (t *theatre) strikeServer() error {
	t.process().Kill()
	t.count(func(s *Summary) { s.ServerKills++; s.Kills.Server++; s.Kills.Total++ })
	return t.runServer()
}

// untilHalf waits for the middle of the open window, as one gateway's monitor sees it.
func (t *theatre) untilHalf(ctx context.Context, g *gateway) (messages int, err error) {
	t.gate.mu.Lock()
	opened, windows := t.gate.opened, t.gate.windows
	t.gate.mu.Unlock()
	half := g.rows * (2*opened - 1) / (2 * windows)
	err = child.Until(ctx, "half of the samples", nil, func(context.Context) (bool, error) {
		messages = g.monitor.Account().Totals().MessagesAcknowledged
		return messages >= half, nil
	})
	return messages, err
}

// cutNetwork breaks every connection between gateways and server, and refuses new ones, for some seconds. The rows of this window
// come meanwhile.
func (t *theatre) cutNetwork(ctx context.Context) error {
	mend := t.network.cut(false)
	defer mend()
	t.count(func(s *Summary) { s.Kills.Network++; s.Kills.Total++ })
	t.stages.note("the network is cut, for %.0f s; the monitors send on", outageTime.Seconds())
	timer := time.NewTimer(outageTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	// However slow the machine: a cut during which nothing came would show nothing.
	if err := child.Until(ctx, "something in the buffers", nil, func(context.Context) (bool, error) { return t.backlogPeak() > 0, nil }); err != nil {
		return err
	}
	mend()
	t.stages.note("the network is mended; %s buffered at the most", plurals(int(t.backlogPeak()), "batch", "batches"))
	return nil
}

// watchBacklog notes how much the gateways hold while the network is cut, until ctx ends.
func (t *theatre) watchBacklog(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !t.network.isCut() {
			continue
		}
		backlog := uint64(0)
		for _, g := range t.fleet {
			if s, err := g.status(ctx); err == nil && !s.Uplink.Connected { // else it is what is on its way
				backlog += s.waiting()
			}
		}
		t.count(func(s *Summary) { s.BacklogPeak = max(s.BacklogPeak, backlog) })
	}
}

func (t *theatre) backlogPeak() (n uint64) {
	t.count(func(s *Summary) { n = s.BacklogPeak })
	return n
}

// runServer starts the server's process.
func (t *theatre) runServer() error {
	p, err := child.Start("server", filepath.Join(t.dir, "server.log"), t.bin("wardlink-server"), "run", "--dir", t.server)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proc = p
	return nil
}

// process is the server's present one; nil before there is any.
func (t *theatre) process() *child.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.proc
}

// serverReady waits until every part of the server works.
func (t *theatre) serverReady(ctx context.Context) error {
	return child.Until(ctx, "the server", []*child.Process{t.process()}, func(ctx context.Context) (bool, error) {
		var s client.Status
		return t.api.Get(ctx, "/v1/status", nil, &s) == nil && s.Ready, nil
	})
}

// reconnected waits until the network carries, the server is ready, and every gateway is connected and has taken in more from its monitor.
func (t *theatre) reconnected(ctx context.Context) error {
	if err := child.Until(ctx, "the network", t.running(), func(context.Context) (bool, error) { return !t.network.isCut(), nil }); err != nil {
		return err
	}
	if err := t.serverReady(ctx); err != nil {
		return err
	}
	before := make(map[*gateway]int)
	for _, g := range t.fleet {
		before[g] = g.monitor.Account().Totals().MessagesAcknowledged
	}
	ctx, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	var away string
	err := child.Until(ctx, "the gateways' return", t.running(), func(ctx context.Context) (bool, error) {
		for _, g := range t.fleet {
			totals := g.monitor.Account().Totals()
			switch s, err := g.status(ctx); {
			case err != nil:
				away = fmt.Sprintf("the agent of %s does not answer: %v", g.name, err)
			case !s.Uplink.Connected:
				away = fmt.Sprintf("%s is not connected: %s", g.name, s.Uplink.LastError)
			case totals.MessagesAcknowledged == before[g] && totals.Messages < g.rows:
				away = fmt.Sprintf("%s acknowledges nothing more to its monitor", g.name)
			default:
				continue
			}
			return false, nil
		}
		return true, nil
	})
	if err != nil && away != "" {
		return fmt.Errorf("%s (%w)", away, err)
	}
	return err
}

// count changes the summary.
func (t *theatre) count(change func(s *Summary)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.summary)
}

func plurals(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
