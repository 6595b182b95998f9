package uplink

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// attempts runs an uplink for a while on a fake clock, against servers made by serve, and gives how often it connected.
func attempts(t *testing.T, span time.Duration, urgent bool, serve func(conn net.Conn)) (n int64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newFakeClockAgent(t)
		a.buf.urgent = urgent
		var each func(int64, net.Conn)
		if serve != nil {
			each = func(_ int64, far net.Conn) { serve(far) }
		}
		count := a.connect(each)
		a.during(t, func() {
			time.Sleep(span)
			n = count.Load()
		})
	})
	return n
}

// admitThen admits a client, lets it stay, and hangs up.
func admitThen(stay time.Duration) func(conn net.Conn) {
	return func(conn net.Conn) {
		defer conn.Close()
		if _, err := packets.ReadPacket(conn); err != nil {
			return
		}
		if _, err := conn.Write([]byte{0x20, 2, 0, 0}); err != nil {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(stay))
		_, _ = io.Copy(io.Discard, conn)
	}
}

func TestBackoffGrowsToFiveMinutes(t *testing.T) {
	n := attempts(t, 6*time.Hour, false, nil)
	// The ceiling reaches 5 min after nine attempts; from there a wait is 150 s in the mean.
	if n < 60 || n > 320 {
		t.Errorf("%d attempts in 6 hours", n)
	}
}

// TestKickedIsNotAHotLoop: a server that admits and hangs up at once (a refused batch, a revocation it has not heard of everywhere)
// must meet the same backoff as one that does not answer.
func TestKickedIsNotAHotLoop(t *testing.T) {
	n := attempts(t, 6*time.Hour, false, admitThen(0))
	if n < 60 || n > 320 {
		t.Errorf("%d attempts in 6 hours", n)
	}
}

func TestAStableConnectionResetsTheBackoff(t *testing.T) {
	n := attempts(t, time.Hour, false, admitThen(31*time.Second))
	if n < 105 || n > 116 { // 31 s and a wait below 1 s each
		t.Errorf("%d connections in an hour", n)
	}
}

// TestAFlappingLineIsUsed: connections that are cut after a few seconds, each of which delivered something, are not waited for longer
// and longer; those that delivered nothing are (TestKickedIsNotAHotLoop).
func TestAFlappingLineIsUsed(t *testing.T) {
	onAFakeClock(t, func(_ int64, far net.Conn) { acknowledgeFor(far, 3*time.Second) }, func(a *agent, connections *atomic.Int64) {
		a.buf.check = func(buffer.ID) error { return nil }
		p := a.ward.period()
		for range 600 {
			a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 1, 10)...)
			time.Sleep(time.Second)
		}
		if n := connections.Load(); n < 95 || n > 180 { // 3 s and a wait of 2 s in the mean
			t.Errorf("%d connections in ten minutes", n)
		}
	})
}

// acknowledgeFor serves a client for a while and hangs up.
func acknowledgeFor(conn net.Conn, stay time.Duration) {
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(stay))
	for {
		packet, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		var answer []byte
		switch p := packet.(type) {
		case *packets.ConnectPacket:
			answer = []byte{0x20, 2, 0, 0}
		case *packets.SubscribePacket:
			answer = []byte{0x90, 3, byte(p.MessageID >> 8), byte(p.MessageID), 0}
		case *packets.PublishPacket:
			answer = []byte{0x40, 2, byte(p.MessageID >> 8), byte(p.MessageID)}
		case *packets.PingreqPacket:
			answer = []byte{0xd0, 0}
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func TestAnAlarmCapsTheBackoff(t *testing.T) {
	n := attempts(t, time.Hour, true, nil)
	if n < 1000 || n > 2200 { // 2.5 s in the mean
		t.Errorf("%d attempts in an hour", n)
	}
}

// TestALossAtTheBeginningHoldsNobodyUp: a connection that is lost between CONNACK and SUBSCRIBE is left at once, and an alarm waits no longer.
func TestALossAtTheBeginningHoldsNobodyUp(t *testing.T) {
	var mu sync.Mutex
	var latest time.Time
	var longest time.Duration
	onAFakeClock(t, func(_ int64, far net.Conn) {
		mu.Lock()
		if now := time.Now(); !latest.IsZero() {
			longest, latest = max(longest, now.Sub(latest)), now
		} else {
			latest = now
		}
		mu.Unlock()
		admitThen(0)(far)
	}, func(a *agent, connections *atomic.Int64) {
		a.buf.mu.Lock()
		a.buf.urgent = true
		a.buf.mu.Unlock()
		time.Sleep(2 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if n := connections.Load(); n < 1000 || longest > 10*time.Second {
			t.Errorf("%d connections, and between two of them %s", n, longest)
		}
	})
}

// TestAnAlarmShortensAWait: an alarm that comes in the middle of a long wait does not sit it out.
func TestAnAlarmShortensAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFakeClockAgent(t)
		wait := backoff{timing: defaultTiming, tries: 30}
		go func() {
			time.Sleep(50 * time.Millisecond)
			a.buf.mu.Lock()
			a.buf.urgent = true
			a.buf.mu.Unlock()
			a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneAlarm, 1, 10)...)
		}()
		began := time.Now()
		a.pause(t.Context(), &wait, false, a.leaf(), nil)
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("waited %s", took)
		}
		time.Sleep(time.Second)
	})
}

// TestANewCertificateShortensAWait: a gateway whose certificate had expired connects soon after its renewal, not at the backoff's end.
// The same certificate, seen again and again, shortens nothing.
func TestANewCertificateShortensAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, renewed := newFakeClockAgent(t), newFakeClockAgent(t).cert
		var mu sync.Mutex
		var shown [][]byte
		attempts := func() (n int, last []byte) {
			mu.Lock()
			defer mu.Unlock()
			if n = len(shown); n > 0 {
				last = shown[n-1]
			}
			return n, last
		}
		a.open = func(_ context.Context, _ string, cert tls.Certificate) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			shown = append(shown, cert.Certificate[0])
			return nil, errors.New("expired")
		}
		a.during(t, func() {
			time.Sleep(6 * time.Hour)
			// Right after an attempt, so that a long wait lies ahead: the mean is two and a half minutes.
			before, _ := attempts()
			for n := before; n == before; before, _ = attempts() {
				time.Sleep(time.Millisecond)
			}
			if before > 320 {
				t.Errorf("%d attempts in 6 hours with one certificate", before)
			}
			a.renew(renewed)
			time.Sleep(a.timing.identity + a.timing.least)
			after, last := attempts()
			if after == before || !bytes.Equal(last, renewed.Certificate[0]) {
				t.Errorf("the new certificate was not tried within %v", a.timing.identity+a.timing.least)
			}
			time.Sleep(6 * time.Hour)
			if n, _ := attempts(); n-after > 320 {
				t.Errorf("%d attempts in 6 hours with a new certificate that is refused too", n)
			}
		})
	})
}

func TestMissingIdentityIsLookedForEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFakeClockAgent(t)
		cert := a.cert
		a.cert = tls.Certificate{}
		opened := a.connect(nil)
		a.during(t, func() {
			time.Sleep(time.Hour)
			if n := opened.Load(); n != 0 {
				t.Errorf("%d connections without an identity", n)
			}
			a.renew(cert)
			time.Sleep(1100 * time.Millisecond)
			if n := opened.Load(); n == 0 {
				t.Error("no attempt within a second of the enrolment")
			}
		})
	})
}

// TestNoCONNACK: a server that takes the connection and says nothing.
func TestNoCONNACK(t *testing.T) {
	n := attempts(t, 10*time.Minute, false, func(conn net.Conn) {
		defer conn.Close()
		_, _ = io.Copy(io.Discard, conn)
	})
	if n < 4 || n > 10 { // a minute each, and the backoff
		t.Errorf("%d attempts in ten minutes", n)
	}
}
