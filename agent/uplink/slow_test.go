package uplink

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// slowLine carries what is written to near at some bytes a second, behind a socket buffer of so many bytes as the kernel's; answers are not held up.
func slowLine(rate, buffer int) (near, far net.Conn) {
	near, a := net.Pipe()
	b, far := net.Pipe()
	const piece = 1 << 10
	held := make(chan []byte, buffer/piece)
	go func() {
		defer close(held)
		for {
			buf := make([]byte, piece)
			n, err := a.Read(buf)
			if n > 0 {
				held <- buf[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer b.Close()
		for buf := range held {
			time.Sleep(time.Duration(len(buf)) * time.Second / time.Duration(rate))
			if _, err := b.Write(buf); err != nil {
				a.Close()
			}
		}
	}()
	go func() {
		defer a.Close()
		buf := make([]byte, piece)
		for {
			n, err := b.Read(buf)
			if err != nil {
				return
			}
			if _, err := a.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	return near, far
}

// TestASlowLineIsNotADeadOne: over lines down to what a poor mobile connection carries, a backlog drains over one connection, nothing is
// sent twice, and an alarm does not wait behind a window of a megabyte.
func TestASlowLineIsNotADeadOne(t *testing.T) {
	for name, c := range map[string]struct {
		rate, buffer, batches, size int
		within                      time.Duration // an alarm, while the backlog drains
	}{
		"1 KB/s, small batches":                {1 << 10, 128 << 10, 200, 2000, 30 * time.Second},
		"2 KB/s, small batches":                {2 << 10, 128 << 10, 200, 2000, 25 * time.Second},
		"5 KB/s, large batches, little buffer": {5 << 10, 16 << 10, 10, 250_000, 110 * time.Second}, // one write takes 45 s
		"8 KB/s":                               {8 << 10, 128 << 10, 60, 20_000, 20 * time.Second},
		"8 KB/s, large batches":                {8 << 10, 128 << 10, 10, 250_000, 80 * time.Second},
		"64 KB/s":                              {64 << 10, 128 << 10, 200, 20_000, 10 * time.Second},
		"64 KB/s, large batches":               {64 << 10, 128 << 10, 40, 250_000, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newFakeClockAgent(t)
				a.buf.check = func(buffer.ID) error { return nil }
				var count atomic.Int64
				a.open = func(context.Context, string, tls.Certificate) (net.Conn, error) {
					count.Add(1)
					near, far := slowLine(c.rate, c.buffer)
					go acknowledgeFor(far, 100*time.Hour)
					return near, nil
				}
				a.during(t, func() {
					p := a.ward.period()
					a.buf.add(a.ward.batches(p, telemetry.LaneVitals, c.batches, c.size)...)
					within := func(what string, limit time.Duration, ok func() bool) {
						for began := time.Now(); !ok(); time.Sleep(100 * time.Millisecond) {
							if time.Since(began) > limit {
								t.Fatalf("%s took more than %s; %+v", what, limit, a.Status())
							}
						}
					}
					all := 2*time.Duration(c.batches*c.size/c.rate)*time.Second + time.Minute
					within("half of the backlog", all, func() bool { return a.buf.count(acked) >= c.batches/2 })
					alarm := a.ward.batches(p, telemetry.LaneAlarm, 1, 200)
					a.buf.urge(alarm[0])
					within("an alarm", c.within, func() bool { return a.buf.fateOf(alarm[0].ID) == acked })
					within("all", all, func() bool { return a.buf.count(acked) > c.batches })
					if s := a.Status(); s.Published != uint64(c.batches)+1 || count.Load() != 1 {
						t.Errorf("%d publishes of %d batches over %d connections; %s", s.Published, c.batches+1, count.Load(), s.LastError)
					}
				})
			})
		})
	}
}
