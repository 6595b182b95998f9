package uplink

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/telemetry"
)

// moving makes an agent whose servers are what the returned function was given last.
func moving(t *testing.T, h *hospital) (*agent, func(...string) uint64) {
	t.Helper()
	a := newAgent(t, h)
	var now atomic.Pointer[[]string]
	now.Store(&[]string{h.addr})
	a.cfg.Current = func() []string { return *now.Load() }
	return a, func(servers ...string) uint64 {
		now.Store(&servers)
		return a.Move()
	}
}

// blackHole takes connections and never says a word, like a firewall that drops: only a deadline ends a handshake with it.
func blackHole(t *testing.T) string {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

func TestMoveMakesBeforeItBreaks(t *testing.T) {
	h := newHospital(t)
	h.start()
	second := &hospital{t: t, ca: h.ca, journal: h.journal, lanes: h.lanes, tls: h.tls, addr: "127.0.0.1:0"}
	second.start()
	a, move := moving(t, h)
	a.timing.identity = time.Hour // it is the call that moves it
	a.start()
	p := a.ward.period()
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 50)...)
	eventually(t, "the first batches are acknowledged", func() bool { return a.buf.count(acked) == 10 })
	route := move(second.addr)
	eventually(t, "the session with the other server", func() bool {
		s := a.Status()
		return s.Connected && s.Route == route && s.Server == second.addr && s.Connects == 2
	})
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 50)...)
	eventually(t, "all are acknowledged", func() bool { return a.buf.count(acked) == 20 })
}

// Addresses that lead nowhere cost nothing: the old session carries on, and a later move does not wait for the dead dial.
func TestMoveToNowhereKeepsTheSession(t *testing.T) {
	h := newHospital(t)
	h.start()
	a, move := moving(t, h)
	a.start()
	p := a.ward.period()
	eventually(t, "the session", func() bool { return a.Status().Connected })
	move(blackHole(t))
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 50)...)
	eventually(t, "all are acknowledged meanwhile", func() bool { return a.buf.count(acked) == 10 })
	if s := a.Status(); s.Connects != 1 || s.Route != 0 {
		t.Errorf("status %+v", s)
	}
	route := move(h.addr) // the handshake with the black hole would last a minute
	eventually(t, "the session of the later move", func() bool { return a.Status().Route == route })
}

// Without a session, a move ends both a dial that hangs and the wait after one that failed.
func TestMoveEndsHangingDialsAndWaits(t *testing.T) {
	h := newHospital(t)
	h.start()
	for name, from := range map[string]string{"a dial that hangs": blackHole(t), "a wait": freePort(t)} {
		t.Run(name, func(t *testing.T) {
			a, move := moving(t, h)
			a.timing.least, a.timing.most = time.Hour, time.Hour
			move(from)
			tried := make(chan struct{}, 1)
			open := a.open
			a.open = func(ctx context.Context, server string, cert tls.Certificate) (net.Conn, error) {
				select {
				case tried <- struct{}{}:
				default:
				}
				return open(ctx, server, cert)
			}
			a.start()
			<-tried
			route := move(h.addr)
			eventually(t, "the session", func() bool { s := a.Status(); return s.Connected && s.Route == route })
			a.end()
		})
	}
}
