package ingest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
)

// cell is Sessions as the nodes of a cell share them.
type cell struct {
	reg  *fakeRegistry // whose takes["Passed"] counts
	mu   sync.Mutex
	last map[string]int64
	err  error
}

func (c *cell) Bump(_ context.Context, gateway string) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.last[gateway]++
	}
	return c.last[gateway], c.err
}

func (c *cell) Passed(ctx context.Context, live map[string]int64) (passed []string, err error) {
	if err := c.reg.answer(ctx, "Passed"); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for gateway, generation := range live {
		if c.last[gateway] > generation {
			passed = append(passed, gateway)
		}
	}
	return passed, c.err
}

func (c *cell) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// share makes the server one of a cell.
func (b *pipeBench) share() *cell {
	shared := &cell{reg: b.reg, last: make(map[string]int64)}
	b.srv.mu.Lock()
	defer b.srv.mu.Unlock()
	b.srv.fences = shared
	return shared
}

// TestSessionsPassedElsewhereAreCut: a gateway that comes back to another node ends its session at this one within two polls; others stand.
// A node that cannot see generations admits nobody, and drops all after its bound.
func TestSessionsPassedElsewhereAreCut(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		shared := b.share()
		shared.last["gw-1"] = 41
		c, other := b.session("gw-1", 10*time.Hour, 0), b.session("gw-2", 10*time.Hour, 0)
		time.Sleep(time.Minute)
		if _, err := shared.Bump(t.Context(), "gw-1"); err != nil { // as another node does
			t.Fatal(err)
		}
		if took, why := b.lives(c); took > time.Second || why != endTakeover {
			t.Errorf("cut after %s (%s)", took, why)
		}
		// It comes back here: its generation is the newest again.
		c = b.session("gw-1", 10*time.Hour, 0)
		time.Sleep(time.Minute)
		c.ping()
		other.ping()

		shared.set(errors.New("database is gone"))
		third := b.open("gw-1", 10*time.Hour)
		third.send(connectPacket("gw-1", 0))
		third.expectConnack(connackUnavailable)
		if ev := b.journal.events(audit.Refused); len(ev) != 1 || ev[0].Reason != reasonGeneration {
			t.Errorf("refused %+v", ev)
		}
		if took, why := b.lives(other); took < 29*time.Second || took > 31*time.Second || why != endBlind {
			t.Errorf("cut after %s (%s)", took, why)
		}
	})
}
