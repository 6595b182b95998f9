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

	"wardlink/agent/egress"
	"wardlink/buffer"
	"wardlink/telemetry"
)

// twoServers runs an agent whose first server is what first makes of a connection; the second is always well.
func twoServers(t *testing.T, first func(far net.Conn) error, watch func(a *agent, tried *atomic.Int64), change ...func(a *agent)) {
	synctest.Test(t, func(t *testing.T) {
		a := newFakeClockAgent(t)
		a.cfg.Way, a.cfg.Servers = egress.New(nil), []string{"first:1", "second:1"}
		a.buf.check = func(buffer.ID) error { return nil }
		for _, f := range change {
			f(a)
		}
		var tried atomic.Int64
		a.open = func(_ context.Context, server string, _ tls.Certificate) (net.Conn, error) {
			near, far := net.Pipe()
			if server == "second:1" {
				go acknowledgeFor(far, 100*time.Hour)
				return near, nil
			}
			tried.Add(1)
			if err := first(far); err != nil {
				a.cfg.Way.Failed(server, err) // as Way.Secure does
				return nil, err
			}
			return near, nil
		}
		a.during(t, func() { watch(a, &tried) })
	})
}

// A session through the second address carries on until the first one works again; then it moves home, and breaks nothing.
func TestTheSessionMovesHome(t *testing.T) {
	var off atomic.Bool
	off.Store(true)
	twoServers(t, func(far net.Conn) error {
		if off.Load() {
			return errors.New("off")
		}
		go acknowledgeFor(far, 100*time.Hour)
		return nil
	}, func(a *agent, tried *atomic.Int64) {
		p := a.ward.period()
		a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 3, 10)...)
		time.Sleep(time.Minute)
		s := a.Status()
		if !s.Connected || s.Server != "second:1" || len(s.Before) != 1 || s.Before[0].Server != "first:1" || s.Before[0].Error != "off" || a.buf.count(acked) != 3 {
			t.Errorf("after a minute: %+v", s)
		}
		time.Sleep(2 * time.Hour)
		if n := tried.Load(); n < 4 || n > 10 { // after 5, 10, 20, 40, 60, 60 minutes, each up to a quarter less
			t.Errorf("the first server was tried %d times in two hours", n)
		}
		off.Store(false)
		time.Sleep(time.Hour + time.Minute)
		a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 3, 10)...)
		time.Sleep(time.Minute)
		if s := a.Status(); !s.Connected || s.Server != "first:1" || len(s.Before) != 0 || s.Connects != 2 || a.buf.count(acked) != 6 {
			t.Errorf("home: %+v", s)
		}
	})
}

// A first server that finishes TLS and then hangs up does not keep the gateway from the second.
func TestAServerThatOnlyFinishesTLS(t *testing.T) {
	twoServers(t, func(far net.Conn) error {
		go func() { // it reads the CONNECT, or the other end would not notice
			_, _ = far.Read(make([]byte, 4096))
			far.Close()
		}()
		return nil
	}, func(a *agent, tried *atomic.Int64) {
		time.Sleep(10 * time.Second)
		if s := a.Status(); !s.Connected || s.Server != "second:1" {
			t.Errorf("after ten seconds: %+v", s)
		}
		time.Sleep(2 * time.Hour)
		if s := a.Status(); !s.Connected || s.Server != "second:1" {
			t.Errorf("after two hours: %+v", s)
		}
		if n := tried.Load(); n > 10 {
			t.Errorf("the first server was tried %d times in two hours", n)
		}
	})
}
