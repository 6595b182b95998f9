package ingest

import (
	"runtime"
	"runtime/debug"
	"time"
)

// Turns bounds how many processors work at a time for gateways that come and go: handshakes, admissions, the ends of sessions. After an
// outage ten thousand come at once, and each costs milliseconds; whoever is connected must find a processor for its alarm meanwhile. Who waits has its turn
// in order of arrival. A turn is for computing: what waits for a peer, a disk or another process gives it back.
type Turns chan struct{}

// NewTurns makes turns for n processors; 0 or less: half of them, one at least.
func NewTurns(n int) Turns {
	if n <= 0 {
		n = max(1, runtime.GOMAXPROCS(0)/2)
	}
	return make(Turns, n)
}

// Enter waits for a turn.
func (t Turns) Enter() { t <- struct{}{} }

// Leave gives it back.
func (t Turns) Leave() { <-t }

// Apart runs f on a goroutine of its own, waits for its end and passes its panic on. A stack grows to what a handshake or a query needs, and
// shrinks slowly; an idle connection, which is one goroutine, should not keep that.
func Apart(f func()) {
	ended := make(chan *fault, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				ended <- &fault{p, debug.Stack()}
				return
			}
			ended <- nil
		}()
		f()
	}()
	if p := <-ended; p != nil {
		panic(p)
	}
}

// fault is a panic of another goroutine.
type fault struct {
	value any
	stack []byte
}

// stackOf is where a panic came from.
func stackOf(p any) string {
	if f, ok := p.(*fault); ok {
		return string(f.stack)
	}
	return string(debug.Stack())
}

// takeTurn waits for a turn of the session's, which one goroutine at a time works for.
func (c *session) takeTurn() {
	c.srv.turns.Enter()
	c.turn = true
}

// giveTurn gives it back, if there is one.
func (c *session) giveTurn() {
	if c.turn {
		c.turn = false
		c.srv.turns.Leave()
	}
}

// aside runs what waits, without the turn.
func (c *session) aside(f func()) {
	if !c.turn {
		f()
		return
	}
	c.giveTurn()
	defer c.takeTurn()
	f()
}

// atLength is for how long something keeps a turn that usually computes, and may turn out to wait.
const atLength = 5 * time.Millisecond

// patiently runs what should not wait, such as a query to a database in this process. If it does, others have the turn from then on.
func (c *session) patiently(f func()) {
	if !c.turn {
		f()
		return
	}
	given := make(chan struct{})
	late := time.AfterFunc(atLength, func() {
		c.srv.turns.Leave()
		close(given)
	})
	defer func() {
		if !late.Stop() {
			<-given
			c.srv.turns.Enter()
		}
	}()
	f()
}
