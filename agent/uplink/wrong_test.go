package uplink

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/buffer"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// counterpart is a server on a fake clock, which keeps what it has acknowledged. It answers as the profile says, unless one of its fields
// answers in its stead.
type counterpart struct {
	t       testing.TB
	connack func(w io.Writer, p *packets.ConnectPacket) // writes the CONNACK
	suback  func(w io.Writer, p *packets.SubscribePacket)
	puback  func(w io.Writer, p *packets.PublishPacket) (acknowledged bool)

	mu   sync.Mutex
	has  map[buffer.ID]bool
	came map[buffer.ID]int
}

func newCounterpart(t testing.TB) *counterpart {
	return &counterpart{t: t, has: map[buffer.ID]bool{}, came: map[buffer.ID]int{}}
}

func answer(kind byte, id uint16, rest ...byte) []byte {
	return append([]byte{kind, byte(2 + len(rest)), byte(id >> 8), byte(id)}, rest...)
}

func (c *counterpart) serve(conn net.Conn) {
	defer conn.Close()
	for {
		packet, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		switch p := packet.(type) {
		case *packets.ConnectPacket:
			if c.connack != nil {
				c.connack(conn, p)
				continue
			}
			_, err = conn.Write([]byte{0x20, 2, 0, 0})
		case *packets.SubscribePacket:
			if c.suback != nil {
				c.suback(conn, p)
				continue
			}
			_, err = conn.Write(answer(0x90, p.MessageID, 0))
		case *packets.PublishPacket:
			h, ferr := seal.CheckFrame(p.Payload)
			id := buffer.ID{Epoch: h.Epoch, Lane: uint8(h.Lane), Number: h.Number}
			if ferr == nil {
				c.mu.Lock()
				c.came[id]++
				c.has[id] = c.has[id] || c.puback == nil // before it is answered
				c.mu.Unlock()
			}
			if c.puback != nil {
				if c.puback(conn, p) {
					c.t.Error("a server that errs has nothing to acknowledge")
				}
				continue
			}
			_, err = conn.Write(answer(0x40, p.MessageID))
		case *packets.PingreqPacket:
			_, err = conn.Write([]byte{0xd0, 0})
		}
		if err != nil {
			return
		}
	}
}

func (c *counterpart) check(id buffer.ID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.has[id] {
		return fmt.Errorf("batch %d/%d counts as acknowledged and was not", id.Lane, id.Number)
	}
	return nil
}

// TestAServerThatAnswersWrongly, slowly or never, at whatever point: nothing counts as acknowledged that was not, no connection hangs for
// ever, none follows the other without a wait, and once the server is right everything arrives.
func TestAServerThatAnswersWrongly(t *testing.T) {
	const batches = 100
	write := func(b ...byte) func(io.Writer, *packets.ConnectPacket) {
		return func(w io.Writer, _ *packets.ConnectPacket) { _, _ = w.Write(b) }
	}
	onSubscribe := func(b ...byte) func(io.Writer, *packets.SubscribePacket) {
		return func(w io.Writer, p *packets.SubscribePacket) {
			_, _ = w.Write(answer(0x90, p.MessageID, 0))
			_, _ = w.Write(b)
		}
	}
	onPublish := func(make func(p *packets.PublishPacket) []byte) func(io.Writer, *packets.PublishPacket) bool {
		return func(w io.Writer, p *packets.PublishPacket) bool { _, _ = w.Write(make(p)); return false }
	}
	silent := func(io.Writer, *packets.PublishPacket) bool { return false }
	for name, bad := range map[string]*counterpart{
		"CONNACK never":                     {connack: write()},
		"CONNACK of an unknown code":        {connack: write(0x20, 2, 0, 77)},
		"CONNACK with a session":            {connack: write(0x20, 2, 1, 0), puback: silent},
		"CONNACK of 256 MB":                 {connack: write(0x20, 0xff, 0xff, 0xff, 0x7f)},
		"CONNACK cut off":                   {connack: write(0x20, 2, 0)},
		"PUBACK instead of CONNACK":         {connack: write(0x40, 2, 0, 1)},
		"HTTP instead of CONNACK":           {connack: write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")...)},
		"zeros instead of CONNACK":          {connack: write(make([]byte, 4096)...)},
		"CONNACK twice":                     {connack: write(0x20, 2, 0, 0, 0x20, 2, 0, 0), puback: silent},
		"SUBACK never":                      {suback: func(io.Writer, *packets.SubscribePacket) {}, puback: silent},
		"SUBACK refuses":                    {suback: func(w io.Writer, p *packets.SubscribePacket) { _, _ = w.Write(answer(0x90, p.MessageID, 0x80)) }, puback: silent},
		"SUBACK of another id":              {suback: func(w io.Writer, p *packets.SubscribePacket) { _, _ = w.Write(answer(0x90, p.MessageID+9, 0)) }, puback: silent},
		"SUBACK of two codes":               {suback: func(w io.Writer, p *packets.SubscribePacket) { _, _ = w.Write(answer(0x90, p.MessageID, 0, 0)) }, puback: silent},
		"a document of 256 MB":              {suback: onSubscribe(0x30, 0xff, 0xff, 0xff, 0x7f), puback: silent},
		"a length of five bytes":            {suback: onSubscribe(0x30, 0xff, 0xff, 0xff, 0xff, 0x01), puback: silent},
		"a document at QoS 1":               {suback: onSubscribe(0x32, 5, 0, 1, 'a', 0, 1), puback: silent},
		"a packet of type 15":               {suback: onSubscribe(0xf0, 0), puback: silent},
		"a packet of type 0":                {suback: onSubscribe(0x00, 0), puback: silent},
		"PUBREC":                            {puback: onPublish(func(p *packets.PublishPacket) []byte { return answer(0x50, p.MessageID) })},
		"PUBACK never":                      {puback: silent},
		"PUBACK of ids that are not ours":   {puback: onPublish(func(p *packets.PublishPacket) []byte { return answer(0x40, p.MessageID^0x8000) })},
		"PUBACK of id 0":                    {puback: onPublish(func(p *packets.PublishPacket) []byte { return answer(0x40, 0) })},
		"PUBACK in the middle of a packet":  {puback: onPublish(func(p *packets.PublishPacket) []byte { return answer(0x40, p.MessageID)[:3] })},
		"PUBACK too long":                   {puback: onPublish(func(p *packets.PublishPacket) []byte { return answer(0x40, p.MessageID, 0) })},
		"a document whose topic is cut off": {puback: onPublish(func(p *packets.PublishPacket) []byte { return []byte{0x30, 3, 0xff, 0xff, 'a'} })},
		"pings that nobody answers":         {puback: silent},
	} {
		t.Run(name, func(t *testing.T) {
			bad.t, bad.has, bad.came = t, map[buffer.ID]bool{}, map[buffer.ID]int{}
			good := newCounterpart(t)
			var well atomic.Bool
			onAFakeClock(t, func(_ int64, far net.Conn) {
				if well.Load() {
					good.serve(far)
					return
				}
				bad.serve(far)
			}, func(a *agent, connections *atomic.Int64) {
				a.buf.check = good.check
				a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, batches, 300)...)
				time.Sleep(time.Hour)
				// The backoff's ceiling doubles to five minutes, half of it in the mean: 9 attempts, then one in two and a half minutes.
				if n := connections.Load(); n < 5 || n > 45 {
					t.Errorf("%d connections in an hour", n)
				}
				if s := a.Status(); a.buf.count(acked) != 0 || s.Fault == "" {
					t.Errorf("%d are acknowledged; %+v", a.buf.count(acked), s)
				}
				sent, tries := a.Status().Published, connections.Load()
				if sent > uint64(tries)*window {
					t.Errorf("%d publishes over %d connections", sent, tries)
				}
				well.Store(true)
				time.Sleep(15 * time.Minute)
				if n := a.buf.count(acked); n != batches || len(good.has) != batches {
					t.Errorf("%d of %d arrived: %s", n, batches, a.Status().LastError)
				}
				for id, n := range good.came {
					if n != 1 {
						t.Errorf("batch %d came %d times to a server that is well", id.Number, n)
					}
				}
			})
		})
	}
}

// TestDocumentsThatMakeNoSense cost nothing: the session goes on, and nothing is parked that was not refused.
func TestDocumentsThatMakeNoSense(t *testing.T) {
	down := func(topic string, body []byte) []byte {
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.TopicName, p.Payload = topic, body
		var b bytes.Buffer
		_ = p.Write(&b)
		return b.Bytes()
	}
	stranger := must(telemetry.EncodeRefusal(telemetry.Refusal{Lane: telemetry.LaneVitals, Number: 3, Reason: "not in flight"}))(t)
	var flood []byte
	for _, doc := range []struct {
		topic string
		body  []byte
	}{
		{telemetry.DownTopic(gateway, telemetry.DocRefused), []byte("garbage")}, {telemetry.DownTopic(gateway, telemetry.DocRefused), nil},
		{telemetry.DownTopic(gateway, telemetry.DocRefused), stranger}, {telemetry.DownTopic(gateway, telemetry.DocHello), bytes.Repeat([]byte{0xff}, 60_000)},
		{telemetry.DownTopic("gw-2", telemetry.DocConfig), []byte("x")}, {"wl/1/gw-1/down/../up/alarm", []byte("x")}, {"$SYS/x", nil},
		{telemetry.DownTopic(gateway, "unheard-of"), []byte("x")}, {telemetry.DownTopic(gateway, telemetry.DocHint), []byte("garbage")},
	} {
		flood = append(flood, bytes.Repeat(down(doc.topic, doc.body), 50)...)
	}
	server := newCounterpart(t)
	server.suback = func(w io.Writer, p *packets.SubscribePacket) {
		_, _ = w.Write(answer(0x90, p.MessageID, 0))
		_, _ = w.Write(flood)
	}
	onAFakeClock(t, func(_ int64, far net.Conn) { server.serve(far) }, func(a *agent, connections *atomic.Int64) {
		a.buf.check = server.check
		a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 300, 300)...)
		time.Sleep(time.Minute)
		if s := a.Status(); a.buf.count(acked) != 300 || s.Parked != 0 || connections.Load() != 1 {
			t.Errorf("%d acknowledged over %d connections; %+v", a.buf.count(acked), connections.Load(), s)
		}
	})
}

// TestASlowServerIsWaitedFor: each answer comes twenty seconds late, and all arrive over one connection.
func TestASlowServerIsWaitedFor(t *testing.T) {
	type late struct {
		at time.Time
		b  []byte
	}
	server := newCounterpart(t)
	onAFakeClock(t, func(_ int64, far net.Conn) {
		near, back := net.Pipe()
		go server.serve(back)
		go func() { _, _ = io.Copy(near, far); near.Close() }()
		answers := make(chan late, 10_000)
		go func() {
			defer far.Close()
			for l := range answers {
				time.Sleep(time.Until(l.at))
				_, _ = far.Write(l.b)
			}
		}()
		defer close(answers)
		for {
			buf := make([]byte, 4096)
			n, err := near.Read(buf)
			if err != nil {
				return
			}
			answers <- late{time.Now().Add(20 * time.Second), buf[:n]}
		}
	}, func(a *agent, connections *atomic.Int64) {
		a.buf.check = server.check
		a.buf.add(a.ward.batches(a.ward.period(), telemetry.LaneVitals, 300, 300)...)
		time.Sleep(2 * time.Hour)
		if s := a.Status(); a.buf.count(acked) != 300 || connections.Load() != 1 || s.Published != 300 {
			t.Errorf("%d acknowledged over %d connections; %+v", a.buf.count(acked), connections.Load(), s)
		}
	})
}

// TestALaneThatIsRefusedRests: a gateway whose profile leaves waveforms out has a thousand of them. Each refusal ends a connection, as MQTT
// 3.1.1 wants it; the connections become few, and the other lanes flow.
func TestALaneThatIsRefusedRests(t *testing.T) {
	server := newCounterpart(t)
	var refuse atomic.Bool
	refuse.Store(true)
	var refusals atomic.Int64
	server.puback = nil
	onAFakeClock(t, func(_ int64, far net.Conn) {
		defer far.Close()
		for {
			packet, err := packets.ReadPacket(far)
			if err != nil {
				return
			}
			var out []byte
			switch p := packet.(type) {
			case *packets.ConnectPacket:
				out = []byte{0x20, 2, 0, 0}
			case *packets.SubscribePacket:
				out = answer(0x90, p.MessageID, 0)
			case *packets.PublishPacket:
				h, err := seal.CheckFrame(p.Payload)
				if err == nil && h.Lane == telemetry.LaneWaveform && refuse.Load() {
					refusals.Add(1)
					body := must(telemetry.EncodeRefusal(telemetry.Refusal{Epoch: h.Epoch, Lane: h.Lane, Number: h.Number, Reason: "lane is not allowed to this gateway"}))(t)
					doc := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
					doc.TopicName, doc.Payload = telemetry.DownTopic(gateway, telemetry.DocRefused), body
					_ = doc.Write(far)
					return
				}
				server.mu.Lock()
				server.has[buffer.ID{Epoch: h.Epoch, Lane: uint8(h.Lane), Number: h.Number}] = true
				server.mu.Unlock()
				out = answer(0x40, p.MessageID)
			case *packets.PingreqPacket:
				out = []byte{0xd0, 0}
			}
			if _, err := far.Write(out); err != nil {
				return
			}
		}
	}, func(a *agent, connections *atomic.Int64) {
		a.buf.check = server.check
		p := a.ward.period()
		a.buf.add(a.ward.batches(p, telemetry.LaneWaveform, 1000, 100)...)
		vitals, late := 0, 0
		for range 3600 {
			a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 1, 100)...)
			vitals++
			time.Sleep(time.Second)
			if vitals-a.buf.count(acked) > 5 {
				late++
			}
		}
		// A refusal can be lost with its connection; its batch is sent again then.
		if n, p := connections.Load(), a.buf.count(parked); n > 30 || p < 4 || p > int(refusals.Load()) {
			t.Errorf("%d connections in an hour, %d refusals, %d parked", n, refusals.Load(), p)
		}
		if late > 60 {
			t.Errorf("vitals were more than five seconds late for %d of 3600 seconds", late)
		}
		refuse.Store(false)
		time.Sleep(10 * time.Minute)
		if n, want := a.buf.count(acked), vitals+1000-a.buf.count(parked); n != want {
			t.Errorf("%d acknowledged; want all %d but those parked", n, want)
		}
	})
}

// TestConnectionsLeaveNothing: thousands of connections that are admitted and kicked cost neither goroutines nor memory.
func TestConnectionsLeaveNothing(t *testing.T) {
	good := newCounterpart(t)
	kick := func(far net.Conn) {
		// The answer to CONNECT, and to as much as comes within the moment that it lives.
		_ = far.SetReadDeadline(time.Now().Add(time.Millisecond))
		good.serve(far)
	}
	onAFakeClock(t, func(_ int64, far net.Conn) { kick(far) }, func(a *agent, connections *atomic.Int64) {
		a.buf.check = good.check
		p := a.ward.period()
		measure := func(upTo int64) (goroutines int, heap uint64) {
			for connections.Load() < upTo {
				a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 1, 2000)...)
				time.Sleep(10 * time.Second)
				a.buf.forget(acked)
			}
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return runtime.NumGoroutine(), m.HeapAlloc
		}
		g1, h1 := measure(500)
		g2, h2 := measure(5000)
		if g2 > g1+60 || h2 > h1+2<<20 {
			t.Errorf("after 500 connections %d goroutines and %d KB, after 5000 %d and %d KB", g1, h1>>10, g2, h2>>10)
		}
		t.Logf("after 500 connections %d goroutines and %d KB, after 5000 %d and %d KB", g1, h1>>10, g2, h2>>10)
	}, func(t *timing) { t.least, t.most = 150*time.Millisecond, 300*time.Millisecond })
}
