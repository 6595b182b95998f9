package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// newFakeClockAgent is an agent with the product's own waits, for a synctest bubble: nothing of it opens a socket, once its open is set.
func newFakeClockAgent(t *testing.T) *agent {
	t.Helper()
	a := newAgent(t, &hospital{t: t, ca: newAuthority(t, "root"), journal: newMemJournal(t), addr: "server:1"})
	a.timing = defaultTiming
	return a
}

// connect has the agent's n-th connection served by serve, and counts them; nil: each is refused.
func (a *agent) connect(serve func(n int64, far net.Conn)) (count *atomic.Int64) {
	count = new(atomic.Int64)
	a.open = func(context.Context, string, tls.Certificate) (net.Conn, error) {
		n := count.Add(1)
		if serve == nil {
			return nil, errors.New("refused")
		}
		near, far := net.Pipe()
		go serve(n, far)
		return near, nil
	}
	return count
}

// during runs the agent in a synctest bubble while watch does. Then it must end in good time, with nothing taken any more, and leave no
// goroutine behind.
func (a *agent) during(t *testing.T, watch func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	defer func() { // also of a watch that gave up
		began := time.Now()
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*defaultTiming.drain {
			t.Errorf("the end took %s", took)
		}
		if n := a.buf.count(taken); n != 0 {
			t.Errorf("%d batches are still taken after the end", n)
		}
		time.Sleep(5 * time.Minute) // paho's goroutines end by their own deadlines
		synctest.Wait()
	}()
	watch()
}

// onAFakeClock runs an agent whose connections go to what serve gives for each; watch ends it.
func onAFakeClock(t *testing.T, serve func(n int64, far net.Conn), watch func(a *agent, connections *atomic.Int64), tune ...func(t *timing)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newFakeClockAgent(t)
		for _, change := range tune {
			change(&a.timing)
		}
		a.cfg.Down = nil
		count := a.connect(serve)
		a.during(t, func() { watch(a, count) })
	})
}
