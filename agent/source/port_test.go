package source

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// A port that another program holds stops neither the start nor the source for ever: Stats name the port and who has it, and devices
// are served once it is free.
func TestPortTaken(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	address := busy.Addr().String()
	s, _ := start(t, Config{Listen: address, Accept: take, Reopen: time.Millisecond})
	st := s.Stats()
	me := fmt.Sprintf("(process %d)", os.Getpid())
	if st.Listening || s.Addr() != nil || st.Address != address || !strings.Contains(st.Trouble, address) || !strings.Contains(st.Trouble, me) {
		t.Errorf("%+v; want the port and %q", st, me)
	}
	busy.Close()
	eventually(t, "the port is free and not opened", func() bool { return s.Stats().Listening })
	if st := s.Stats(); st.Trouble != "" {
		t.Errorf("%+v", st)
	}
	d := dial(t, s)
	d.send(frame(oru("1")))
	if a := d.answer(); a != "MSA|AA|1" {
		t.Errorf("%q", a)
	}
}

// A source that waits for its port ends when it is told to.
func TestPortTakenStop(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, stop := start(t, Config{Listen: busy.Addr().String(), Accept: take, Reopen: time.Hour})
	stop() // start's cleanup sees Run return
}

func TestPortTrouble(t *testing.T) {
	anyone := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s, _ := start(t, Config{Listen: "192.0.2.1:0", Accept: take, Allow: anyone, Reopen: time.Hour}) // RFC 5737: an address of nobody
	if st := s.Stats(); st.Listening || !strings.Contains(st.Trouble, "192.0.2.1:0 is not an address of this machine") {
		t.Errorf("%+v", st)
	}
}

func TestRate(t *testing.T) {
	var r Rate
	at := func(s int) time.Time { return time.Unix(1_800_000_000+int64(s), 0) }
	for s := range 100 { // one a second, and three more in the last
		r.Add(at(s), 1)
	}
	r.Add(at(99), 3)
	for _, c := range []struct {
		second int
		want   uint64
	}{{99, 63}, {100, 62}, {129, 33}, {158, 4}, {159, 0}, {9999, 0}} {
		if n := r.Within(at(c.second)); n != c.want {
			t.Errorf("second %d: %d, want %d", c.second, n, c.want)
		}
	}
	r.Add(at(10_000), 1)
	r.Add(at(5), 1) // the clock was set back
	if n := r.Within(at(10_000)); n != 2 {
		t.Errorf("%d after the clock was set back", n)
	}
	hours := Rate{Unit: time.Minute}
	hours.Add(at(0), 1000)
	hours.Add(at(59*60), 24)
	if n, later := hours.Within(at(59*60)), hours.Within(at(60*60)); n != 1024 || later != 24 {
		t.Errorf("by minutes: %d, then %d", n, later)
	}
}
