package server

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/internal/spiffe"
)

func peerAt(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }

// TestOneNetworkLeavesPlaces: one may have three quarters of what there is, and all the others still find room.
func TestOneNetworkLeavesPlaces(t *testing.T) {
	a := newArrivals(handshakeLimits{arrivals: 4096}.withDefaults())
	fill := func(ip string, n int) (got int) {
		for i := range n {
			if _, _, refusal := a.arrive(peerAt(ip, i)); refusal == "" {
				got++
			}
		}
		return got
	}
	if n := fill("10.1.1.1", 5000); n != 3072 {
		t.Errorf("one network has %d of 4096 places; expected 3072", n)
	}
	if n := fill("10.1.1.9", 100); n != 0 {
		t.Errorf("the same network has %d more from another address", n)
	}
	if n := fill("10.2.2.2", 5000); n != 768 {
		t.Errorf("a second network has %d places; expected three quarters of the rest", n)
	}
	for i := range 3 {
		if n := fill(netip.AddrFrom4([4]byte{10, 3, byte(i), 1}).String(), 60); n != 60 {
			t.Errorf("another network has %d of 60 places", n)
		}
	}
}

// TestTenThousandBehindOneAddress: the default limits let a hospital behind one address come back at once.
func TestTenThousandBehindOneAddress(t *testing.T) {
	a := newArrivals(handshakeLimits{}.withDefaults())
	var ends []func()
	for i := range 10_000 {
		settled, gone, refusal := a.arrive(peerAt("203.0.113.7", i))
		if refusal != "" {
			t.Fatalf("number %d: %s", i, refusal)
		}
		ends = append(ends, gone)
		if i%2 == 0 {
			settled()
		}
	}
	if arriving, all := a.counts(); arriving != 5000 || all != 10_000 {
		t.Errorf("%d arriving of %d", arriving, all)
	}
	for _, gone := range ends {
		gone()
		gone()
	}
	if arriving, all := a.counts(); arriving != 0 || all != 0 || len(a.of)+len(a.conns) != 0 {
		t.Errorf("%d and %d are left, %v %v", arriving, all, a.of, a.conns)
	}
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	a := newArrivals(handshakeLimits{each: 3}.withDefaults())
	for i := range 3 {
		settled, _, refusal := a.arrive(peerAt("10.1.1.1", i))
		if refusal != "" {
			t.Fatal(refusal)
		}
		settled() // they are served: they count on
	}
	if _, _, refusal := a.arrive(peerAt("10.1.1.1", 9)); refusal != "too many connections from one address" {
		t.Errorf("a fourth: %q", refusal)
	}
	if _, _, refusal := a.arrive(peerAt("10.1.1.2", 9)); refusal != "" {
		t.Errorf("its neighbour: %q", refusal)
	}
}

// TestNetworksTakeTurns: whoever has a thousand waiting for a slot waits for each of them, and others for one.
func TestNetworksTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1)
		hold, ok := s.take(t.Context(), peerAt("10.9.9.9", 1))
		if !ok {
			t.Fatal("no slot")
		}
		var mu sync.Mutex
		var order []string
		var all sync.WaitGroup
		wait := func(ip string) {
			all.Go(func() {
				release, ok := s.take(t.Context(), peerAt(ip, 1))
				if !ok {
					t.Error("no slot")
					return
				}
				mu.Lock()
				order = append(order, ip)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				release()
				release()
			})
			synctest.Wait()
		}
		for range 100 {
			wait("10.1.1.1")
		}
		wait("10.2.2.2")
		wait("10.3.3.3")
		ctx, cancel := context.WithCancel(t.Context())
		all.Go(func() {
			if _, ok := s.take(ctx, peerAt("10.4.4.4", 1)); ok {
				t.Error("a slot for who is gone")
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		hold()
		all.Wait()
		if len(order) != 102 || order[1] != "10.2.2.2" || order[2] != "10.3.3.3" {
			t.Errorf("%d had a slot, first %v", len(order), order[:4])
		}
		if taken, waiting := s.counts(); taken != 0 || waiting != 0 || s.free != 1 || len(s.turns)+len(s.waiting) != 0 {
			t.Errorf("%d taken, %d wait, %d free at the end", taken, waiting, s.free)
		}
	})
}

// TestOneNetworkLeavesSlots: peers of one network that begin and do not go on leave slots to the others, who need not wait at all.
func TestOneNetworkLeavesSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(16)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		var mu sync.Mutex
		var held []func()
		for range 40 {
			all.Go(func() {
				if release, ok := s.take(ctx, peerAt("10.1.1.1", 1)); ok {
					mu.Lock()
					held = append(held, release)
					mu.Unlock()
				}
			})
		}
		synctest.Wait()
		if taken, waiting := s.counts(); taken != 12 || waiting != 28 {
			t.Errorf("one network has %d of 16 slots, and %d wait; expected 12 and 28", taken, waiting)
		}
		for i := range 100 {
			now, gone := context.WithTimeout(t.Context(), time.Millisecond)
			release, ok := s.take(now, peerAt(netip.AddrFrom4([4]byte{10, 3, byte(i), 1}).String(), 1))
			gone()
			if !ok {
				t.Fatalf("network %d finds no slot", i)
			}
			release()
		}
		for i := 0; i < 40; i++ { // what is given back goes to those that wait, to the last
			synctest.Wait()
			mu.Lock()
			if i >= len(held) {
				t.Errorf("%d of 40 had a slot", i)
				mu.Unlock()
				break
			}
			release := held[i]
			mu.Unlock()
			release()
		}
		cancel()
		all.Wait()
		if taken, waiting := s.counts(); taken != 0 || waiting != 0 || s.free != 16 || len(s.turns)+len(s.waiting)+len(s.of) != 0 {
			t.Errorf("%d taken, %d wait, %d free at the end", taken, waiting, s.free)
		}
	})
}

// TestHandshakesShareTheCores: while one waits for its peer another computes, and no more compute than may.
func TestHandshakesShareTheCores(t *testing.T) {
	tr := newTrust(t)
	own := tr.certificate(t, spiffe.Service, "ingest")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := newHandshakes(handshakeLimits{cores: 1})
	var computing, most atomic.Int64
	conf := listenerTLS(func() (*tls.Certificate, error) {
		n := computing.Add(1)
		defer computing.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(2 * time.Millisecond)
		return &own, nil
	}, tr.root, "http/1.1")
	conf.ClientAuth = tls.NoClientCert
	d := &doorway{ln: inner, tls: conf, refuse: func(net.Addr, string) {}, at: at, waiting: 10 * time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- d.open(ctx, func(conn *tls.Conn, settled func()) {
			settled()
			io.WriteString(conn, "in")
			conn.Close()
		})
	}()
	// A peer that begins and does not go on holds a slot and no core.
	stuck := silent(t, "127.0.0.1", inner.Addr().String())
	if _, err := stuck.Write([]byte{22, 3, 1}); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			conn, err := tls.Dial("tcp", inner.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "in" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
	if n := most.Load(); n != 1 {
		t.Errorf("%d handshakes computed at a time; one may", n)
	}
	if taken, _ := at.slots.counts(); taken != 1 {
		t.Errorf("%d slots are taken; expected that of the peer that does not go on", taken)
	}
	stuck.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	d.wait()
	if len(at.cores) != 0 {
		t.Errorf("%d cores are still taken", len(at.cores))
	}
}
