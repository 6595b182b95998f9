package uplink

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/audit"
	"wardlink/telemetry"
)

// hinting admits, answers the SUBSCRIBE, sends a hint and hangs up.
func hinting(body []byte) func(conn net.Conn) {
	return func(conn net.Conn) {
		c := &counterpart{suback: func(w io.Writer, p *packets.SubscribePacket) {
			_, _ = w.Write(answer(0x90, p.MessageID, 0))
			doc := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			doc.TopicName, doc.Payload = telemetry.DownTopic(gateway, telemetry.DocHint), body
			_ = doc.Write(w)
			conn.Close()
		}}
		c.serve(conn)
	}
}

// hint is made by hand: a hostile server is not bound by our encoder.
func hint(ms uint32) []byte {
	return []byte{0xa1, 0x01, 0x1a, byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms)}
}

// TestAHintIsObeyedWithinBounds: a gateway stays away as long as it is asked to, at most ten minutes, never in step, does not add the
// backoff to it, and is never back sooner for it than by the backoff alone; with an alarm at most half a minute, which is longer than without a hint.
func TestAHintIsObeyedWithinBounds(t *testing.T) {
	for name, c := range map[string]struct {
		serve      func(net.Conn)
		urgent     bool
		least, top int64 // connections in two hours
	}{
		"four minutes":                  {hinting(hint(240_000)), false, 30, 50},   // three in the mean
		"a month":                       {hinting(hint(1<<32 - 1)), false, 12, 22}, // counts as ten minutes: 7.5 in the mean
		"nothing":                       {hinting(hint(0)), false, 25, 110},        // is none: the backoff
		"garbage":                       {hinting([]byte("later")), false, 25, 110},
		"a month, and an alarm":         {hinting(hint(1<<32 - 1)), true, 400, 600}, // 15 s in the mean
		"a second, and an alarm":        {hinting(hint(1000)), true, 2000, 4400},    // as without a hint
		"a millisecond":                 {hinting(hint(1)), false, 25, 110},         // nobody is asked to hurry
		"a millisecond, and an alarm":   {hinting(hint(1)), true, 2000, 4400},
		"unavailable":                   {unavailable, false, 25, 110},
		"unavailable, and an alarm":     {unavailable, true, 400, 600},
		"no hint, and an alarm as ever": {admitThen(0), true, 2000, 4400}, // 2.5 s in the mean
	} {
		t.Run(name, func(t *testing.T) {
			if n := attempts(t, 2*time.Hour, c.urgent, c.serve); n < c.least || n > c.top {
				t.Errorf("%d connections in two hours; want %d to %d", n, c.least, c.top)
			}
		})
	}
}

func unavailable(conn net.Conn) {
	c := &counterpart{connack: func(w io.Writer, _ *packets.ConnectPacket) {
		_, _ = w.Write([]byte{0x20, 2, 0, 3})
		conn.Close()
	}}
	c.serve(conn)
}

// TestAHintOfOneServerLeadsToTheOther, at once and for as long as it takes.
func TestAHintOfOneServerLeadsToTheOther(t *testing.T) {
	twoServers(t, func(far net.Conn) error {
		go hinting(hint(600_000))(far)
		return nil
	}, func(a *agent, tried *atomic.Int64) {
		a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 3, 10)...)
		time.Sleep(10 * time.Second)
		if s := a.Status(); !s.Connected || s.Server != "second:1" || a.buf.count(acked) != 3 {
			t.Errorf("after ten seconds: %+v", s)
		}
		synctest.Wait()
		time.Sleep(time.Hour)
		if n := tried.Load(); n > 10 {
			t.Errorf("the first server was tried %d times in an hour", n)
		}
	})
}

// TestAStopIsHeard: an ingest server that stops in order is left alone for a while; what was in flight was answered before.
func TestAStopIsHeard(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	p := a.ward.period()
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 200, 200)...)
	a.start()
	eventually(t, "all batches are acknowledged", func() bool { return a.buf.count(acked) == 200 })
	asked := time.Now()
	if err := h.srv.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.kill()
	eventually(t, "the end is noticed", func() bool { return !a.Status().Connected })
	h.start()
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 10, 200)...)
	eventually(t, "the rest arrives", func() bool { return a.buf.count(acked) == 210 })
	// Without a hint it would have been back after at most a fifth of a second; it was asked for two, and took at least one.
	if took := time.Since(asked); took < time.Second {
		t.Errorf("it was back after %s", took)
	}
	if n := len(h.journal.events(audit.SessionClosed)); n != 1 {
		t.Errorf("%d sessions ended", n)
	}
}
