package demo

import (
	"sync"
	"time"

	"wardlink/demo/bedside"
)

// gate lets the monitors' rows out in windows, one for each thing that is done to the gateways, so that however fast the rows go there are
// some left to go wrong with. It is shared by all monitors.
type gate struct {
	mu      sync.Mutex
	changed *sync.Cond
	windows int // that the rows are divided into
	opened  int
	over    bool
}

func newGate(windows int) *gate {
	g := &gate{windows: windows}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// next opens the next window.
func (g *gate) next() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened++
	g.changed.Broadcast()
}

// finish lets everything out that is left; an endless source ends.
func (g *gate) finish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	g.changed.Broadcast()
}

// wait returns once row n of rows may go out, and whether it should.
func (g *gate) wait(n, rows int, endless bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.over && n*g.windows >= rows*g.opened {
		g.changed.Wait()
	}
	return !g.over || !endless
}

// source gives the rows of src, rows in number, one each pace, as their windows open. An endless one ends when the gate is finished.
func (g *gate) source(src bedside.Source, rows int, pace time.Duration, endless bool) bedside.Source {
	return func(yield func(bedside.Row) bool) {
		tick := time.NewTicker(max(pace, 1))
		defer tick.Stop()
		n := 0
		for row := range src {
			if pace > 0 {
				<-tick.C
			}
			if !g.wait(n, rows, endless) || !yield(row) {
				return
			}
			n++
		}
	}
}
