package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// How chaos goes on.
const (
	minChaos = 10   // seconds: room for one blow of each kind
	maxChaos = 3600 // seconds

	shortestGap, longestGap     = 400 * time.Millisecond, 2600 * time.Millisecond // between two blows, so that one falls in every three seconds
	shortestCut, longestCut     = 300 * time.Millisecond, 2500 * time.Millisecond // of the network
	shortestStart, longestStart = 5 * time.Millisecond, 500 * time.Millisecond    // from a start until it is killed again
)

// blow is one thing that chaos does.
type blow struct {
	at      time.Duration // since chaos began
	what    string        // one of the four below
	gateway int           // of blowAgent: whose
	again   time.Duration // of kills: how long after its start the process is killed once more; 0 is never
	lasts   time.Duration // of the network's
}

// kills is how many SIGKILLs the blow is.
func (b blow) kills() int {
	switch {
	case b.what != blowAgent && b.what != blowServer:
		return 0
	case b.again > 0:
		return 2
	}
	return 1
}

// What chaos does: SIGKILL to an agent or the server, a network that tears what it carries, a network that swallows it.
const (
	blowAgent  = "agent"
	blowServer = "server"
	blowCut    = "cut"
	blowHole   = "hole"
)

// killEvery is how often a kill falls on average at the least, cuts of the network not counted: when chance gave fewer, the next blow is one. A SIGKILL is
// what shows that nothing is acknowledged before it is durable; a cut shows less.
const killEvery = 2 * time.Second

// planChaos draws what happens and when. The same seed, length and number of gateways give the same plan. The first three blows are one of
// each kind, and the first outage is long enough for a backlog.
func planChaos(seed uint64, length time.Duration, gateways int) (plan []blow) {
	r := rand.New(rand.NewPCG(seed, 0))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(r.Int64N(int64(most-least)))
	}
	first := []string{blowAgent, blowServer, blowCut}
	r.Shuffle(len(first), func(i, j int) { first[i], first[j] = first[j], first[i] })
	kills := 0
	for at := between(shortestGap, longestGap); at < length; at += between(shortestGap, longestGap) {
		b := blow{at: at}
		switch n := len(plan); {
		case n < len(first):
			b.what = first[n]
		case time.Duration(kills)*killEvery < at:
			b.what = []string{blowAgent, blowServer}[r.IntN(2)]
		default:
			b.what = []string{blowAgent, blowAgent, blowServer, blowServer, blowCut, blowHole}[r.IntN(6)]
		}
		switch b.what {
		case blowAgent, blowServer:
			b.gateway = r.IntN(gateways)
			if r.IntN(3) == 0 {
				b.again = between(shortestStart, longestStart)
			}
			kills += b.kills()
		default:
			b.lasts = between(shortestCut, longestCut)
			if len(plan) < len(first) {
				b.lasts = longestCut
			}
		}
		plan = append(plan, b)
	}
	return plan
}

// ambush is what chaos does to the first enrolment, in which keys are made in the TPM, accounts and certificates at the server: how long
// after its start each agent is killed, and the server after the first agent's.
type ambush struct {
	agents []time.Duration
	server time.Duration
}

// planAmbush draws an ambush, and none without chaos. The same seed gives the same one.
func (t *theatre) planAmbush(boxes int) *ambush {
	if t.Chaos == 0 {
		return nil
	}
	r := rand.New(rand.NewPCG(t.Seed, 1))
	a := &ambush{server: 100*time.Millisecond + time.Duration(r.Int64N(int64(1500*time.Millisecond)))}
	for range boxes {
		a.agents = append(a.agents, 20*time.Millisecond+time.Duration(r.Int64N(int64(1500*time.Millisecond))))
	}
	return a
}

func (t *theatre) ambushAgent(ctx context.Context, g *gateway, after time.Duration) error {
	if err := pauseFor(ctx, after); err != nil {
		return err
	}
	t.stages.note("seed %d: SIGKILL to the agent of %s, %d ms into its first start", t.Seed, g.name, after.Milliseconds())
	t.count(func(s *Summary) { s.Kills.Startup++ })
	return t.strikeAgent(g)
}

func (t *theatre) ambushServer(ctx context.Context, after time.Duration) error {
	if err := pauseFor(ctx, after); err != nil {
		return err
	}
	t.stages.note("seed %d: SIGKILL to the server, %d ms into the first enrolment", t.Seed, after.Milliseconds())
	return t.strikeServer()
}

// chaos does what the plan says while the monitors send, and waits until everything is back.
func (t *theatre) chaos(ctx context.Context) error {
	length := time.Duration(t.Chaos) * time.Second
	plan := planChaos(t.Seed, length, len(t.fleet))
	t.stages.note("chaos for %s with seed %d: repeat it with --chaos %d --seed %d --gateways %d", length, t.Seed, t.Chaos, t.Seed, len(t.fleet))
	begun := time.Now()
	wait := func(until time.Duration) error { return pauseFor(ctx, time.Until(begun.Add(until))) }
	for _, b := range plan {
		if err := wait(b.at); err != nil {
			return err
		}
		t.stages.note("seed %d, %5.1f s: %s", t.Seed, time.Since(begun).Seconds(), t.describe(b))
		if err := t.strike(ctx, b); err != nil {
			return err
		}
	}
	if err := wait(length); err != nil {
		return err
	}
	t.stages.note("chaos is over after %.0f s; waiting for everybody's return", time.Since(begun).Seconds())
	calm := time.Now()
	if err := t.reconnected(ctx); err != nil {
		return err
	}
	t.stages.note("everybody is back and delivers after %.1f s", time.Since(calm).Seconds())
	return nil
}

func (t *theatre) describe(b blow) string {
	var text string
	switch b.what {
	case blowAgent:
		text = "SIGKILL to the agent of " + t.fleet[b.gateway].name
	case blowServer:
		text = "SIGKILL to " + t.serverSide(b).name
	case blowCut:
		return fmt.Sprintf("the network is cut in the middle of what it carries, for %.1f s", b.lasts.Seconds())
	case blowHole:
		return fmt.Sprintf("the network swallows everything, for %.1f s", b.lasts.Seconds())
	}
	if b.again > 0 {
		text += fmt.Sprintf(", and again %d ms into its start", b.again.Milliseconds())
	}
	return text
}

// strike does one blow. What was killed is started again at once; the network mends itself while the plan goes on.
func (t *theatre) strike(ctx context.Context, b blow) error {
	kill := t.serverSide(b).strike
	switch b.what {
	case blowAgent:
		kill = func() error { return t.strikeAgent(t.fleet[b.gateway]) }
	case blowServer:
	default:
		t.count(func(s *Summary) { s.Kills.Network++; s.Kills.Total++ })
		time.AfterFunc(b.lasts, t.network.cut(b.what == blowHole))
		return nil
	}
	if err := kill(); err != nil || b.again == 0 {
		return err
	}
	if err := pauseFor(ctx, b.again); err != nil {
		return err
	}
	t.count(func(s *Summary) { s.Kills.Startup++ })
	return kill()
}
