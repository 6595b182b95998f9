package source

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	now := time.Now()
	at := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	th := newThrottle(Limits{Messages: 10, Burst: 20})
	for i := range 20 {
		if d := th.take(at(0), 1); d != 0 {
			t.Fatalf("message %d of the burst waits for %v", i, d)
		}
	}
	for i, want := range []int{100, 200, 300} {
		if d := th.take(at(0), 1); d.Round(time.Millisecond) != time.Duration(want)*time.Millisecond {
			t.Errorf("message %d beyond the burst waits for %v, want %d ms", i, d, want)
		}
	}
	if d := th.take(at(300), 1); d.Round(time.Millisecond) != 100*time.Millisecond {
		t.Errorf("after the debt is paid: %v", d)
	}
	if d := th.take(at(3_600_000), 1); d != 0 {
		t.Errorf("after an hour: %v", d)
	}
	th = newThrottle(Limits{Bytes: 1 << 20})
	if d := th.take(at(0), 1<<20); d != 0 {
		t.Errorf("a second's bytes: %v", d)
	}
	if d := th.take(at(0), 1<<19); d.Round(time.Millisecond) != 500*time.Millisecond {
		t.Errorf("and half: %v", d)
	}
	if d := th.take(at(-1000), 1<<19); d.Round(time.Millisecond) != time.Second {
		t.Errorf("a clock that goes back gives nothing: %v", d)
	}
	if d := newThrottle(Limits{}).take(at(0), 1<<30); d != 0 {
		t.Errorf("without limits: %v", d)
	}
}

// Beyond the limit a device is slowed, and every message is taken in and acknowledged, in its order.
func TestLimitsDropNothing(t *testing.T) {
	s, _ := start(t, Config{Accept: take, Limits: Limits{Messages: 20, Burst: 20}})
	d := dial(t, s)
	var all []byte
	for i := range 26 {
		all = append(all, frame(oru(fmt.Sprint(i)))...)
	}
	d.send(all)
	for i := range 26 {
		if a := d.answer(); a != fmt.Sprintf("MSA|AA|%d", i) {
			t.Fatalf("%q", a)
		}
	}
	if st := s.Stats(); st.Slowed < 5 || st.LastSlowed.IsZero() || st.Received != 26 {
		t.Errorf("%+v", st)
	}
}

// A source that is told to stop does not wait for its limits.
func TestStopWhileSlowed(t *testing.T) {
	s, stop := start(t, Config{Accept: take, Limits: Limits{Messages: 1}})
	d := dial(t, s)
	d.send(bytes.Repeat(frame(oru("1")), 30))
	eventually(t, "nothing is slowed", func() bool { return s.Stats().Slowed > 0 })
	wait(context.Background(), silence)
	if n := s.Stats().Received; n > 10 { // one a second, and this machine may have been busy
		t.Errorf("%d messages were read at once", n)
	}
	stop()
	eventually(t, "the connection is not ended", func() bool { return s.Stats().Connections == 0 })
}

// One address cannot have all places, and gives back those that it had.
func TestFloodOfOneAddress(t *testing.T) {
	s, _ := start(t, Config{Accept: take, MaxConns: 8, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	var flood []device
	for range 6 { // three quarters of 8
		d := dialFrom(t, s, "127.0.0.2")
		d.send(frame(oru("1")))
		d.answer()
		flood = append(flood, d)
	}
	for range 20 {
		dialFrom(t, s, "127.0.0.2").closed()
	}
	for range 2 {
		d := dialFrom(t, s, "127.0.0.3")
		d.send(frame(oru("1")))
		if a := d.answer(); a != "MSA|AA|1" {
			t.Errorf("another device: %q", a)
		}
	}
	if st := s.Stats(); st.OverLimit != 20 || st.Connections != 8 || st.LastUnwelcome.IsZero() {
		t.Errorf("%+v", st)
	}
	flood[0].Close()
	eventually(t, "a place is not given back", func() bool { return s.Stats().Connections == 7 })
	d := dialFrom(t, s, "127.0.0.2")
	d.send(frame(oru("2")))
	d.answer()
	for _, d := range flood {
		d.Close()
	}
}

func TestLimitsCheck(t *testing.T) {
	for want, l := range map[string]Limits{
		"above 0":                               {Messages: -1},
		"limits nothing":                        {Burst: 5},
		"less than a second's":                  {Messages: 10, Burst: 5},
		"less than one message may have (65536": {Bytes: 1000},
	} {
		if err := l.Check(0, 64<<10); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", l, err)
		}
	}
	if err := (Limits{}).Check(1001, 1); err == nil || !strings.Contains(err.Error(), "at most 1000") {
		t.Error(err)
	}
	if _, err := NewMLLP(Config{ID: "x", Listen: "127.0.0.1:0", Accept: func(context.Context, Delivery) error { return nil }, Limits: Limits{Burst: 1}}); err == nil {
		t.Error("accepted")
	}
}
