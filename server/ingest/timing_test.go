package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// pipeBench is a server whose connections are pipes, so that its clock is synctest's.
type pipeBench struct {
	*bench
	ctx context.Context
}

// inBubble runs a test on a fake clock, with Run going, and drains the server at the end.
func inBubble(t *testing.T, limits Limits, test func(t *testing.T, b *pipeBench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ca: newAuthority(t), journal: newJournal(t), reg: newRegistry("gw-1", "gw-2")}
		b.srv = New(Config{Journal: b.journal, Registry: b.reg, TrustDomain: domain, Roots: b.ca.pool(), Limits: limits})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := b.srv.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
		test(t, &pipeBench{b, ctx})
		cancel()
		if err := b.srv.Drain(context.Background()); err != nil {
			t.Errorf("drain: %v", err)
		}
		b.serving.Wait()
		running.Wait()
		b.journal.close()
	})
}

// open makes a connection for a gateway whose certificate lives as long as life.
func (b *pipeBench) open(name string, life time.Duration) *client {
	b.t.Helper()
	return b.openWith(b.ca.issue("spiffe://"+domain+"/gateway/"+name, time.Now().Add(life)))
}

func (b *pipeBench) openWith(cert tls.Certificate) *client {
	b.t.Helper()
	near, far := net.Pipe()
	b.t.Cleanup(func() { near.Close() })
	state := b.ca.state(cert)
	b.serving.Go(func() { b.srv.ServeConn(b.ctx, far, state) })
	return &client{t: b.t, conn: near}
}

func (b *pipeBench) session(name string, life time.Duration, keepAlive uint16) *client {
	b.t.Helper()
	c := b.open(name, life)
	c.send(connectPacket(name, keepAlive))
	c.expectConnack(connackAccepted)
	return c
}

// pinging is lives of a client that says something every minute.
func (b *pipeBench) pinging(c *client) (time.Duration, string) {
	b.t.Helper()
	began := time.Now()
	for {
		if _, err := c.conn.Write([]byte{0xc0, 0}); err != nil {
			break
		}
		if _, _, err := c.packet(); err != nil {
			break
		}
		time.Sleep(time.Minute)
	}
	took := time.Since(began)
	synctest.Wait()
	closed := b.journal.events(audit.SessionClosed)
	if len(closed) == 0 {
		return took, ""
	}
	return took, closed[len(closed)-1].Reason
}

// lives gives how long the server keeps a connection that says no more, and why its session ended.
func (b *pipeBench) lives(c *client) (time.Duration, string) {
	b.t.Helper()
	began := time.Now()
	c.expectEnd()
	took := time.Since(began)
	synctest.Wait()
	closed := b.journal.events(audit.SessionClosed)
	if len(closed) == 0 {
		return took, ""
	}
	return took, closed[len(closed)-1].Reason
}

func TestSilenceEndsTheSession(t *testing.T) {
	for _, tc := range []struct {
		keepAlive uint16
		lives     time.Duration
	}{{10, 15 * time.Second}, {0, 450 * time.Second}, {3600, 450 * time.Second}} {
		inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
			c := b.session("gw-1", 10*time.Hour, tc.keepAlive)
			if took, why := b.lives(c); took != tc.lives || why != endSilent {
				t.Errorf("keep-alive %d: ended after %s (%s), expected %s", tc.keepAlive, took, why, tc.lives)
			}
		})
	}
}

func TestPingsKeepTheSession(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 10)
		for range 100 {
			time.Sleep(14 * time.Second)
			c.send([]byte{0xc0, 0})
			c.expect(kindPingresp)
		}
	})
}

// TestAPacketMustArriveWithinTheKeepAlive: a peer that sends a byte now and then must not hold a connection.
func TestAPacketMustArriveWithinTheKeepAlive(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 10)
		b.serving.Go(func() {
			for range 100 {
				time.Sleep(time.Second)
				if _, err := c.conn.Write([]byte{0x32}); err != nil {
					return
				}
				c.conn.Write([]byte{0xff, 0x01, 0})
			}
		})
		if took, _ := b.lives(c); took > 16*time.Second {
			t.Errorf("ended after %s", took)
		}
	})
}

func TestConnectMustComeInTime(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.open("gw-1", 10*time.Hour)
		if took, _ := b.lives(c); took != 15*time.Second {
			t.Errorf("ended after %s", took)
		}
		if ev := b.journal.events(audit.Refused); len(ev) != 1 || ev[0].Reason != reasonConnectTimeout {
			t.Errorf("refused: %+v", ev)
		}
	})
}

func TestSessionEndsAtNotAfter(t *testing.T) {
	inBubble(t, Limits{Poll: time.Hour}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", time.Minute, 0)
		took, why := b.lives(c)
		// X.509 times are whole seconds.
		if took > time.Minute || took < 59*time.Second || why != endExpired {
			t.Errorf("ended after %s (%s)", took, why)
		}
	})
}

// TestWallClockEndsSessionsToo: a timer does not notice that the clock was set; the poll does.
func TestWallClockEndsSessionsToo(t *testing.T) {
	inBubble(t, Limits{Poll: time.Hour}, func(t *testing.T, b *pipeBench) {
		c, other := b.session("gw-1", time.Hour, 0), b.session("gw-2", 10*time.Hour, 0)
		b.srv.cutExpired(time.Now().Add(2 * time.Hour))
		if took, why := b.lives(c); took != 0 || why != endExpired {
			t.Errorf("ended after %s (%s)", took, why)
		}
		other.send([]byte{0xc0, 0})
		other.expect(kindPingresp)
	})
}

func TestExpiredCertificateIsRefused(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.open("gw-1", -time.Second)
		b.lives(c)
		if ev := b.journal.events(audit.Refused); len(ev) != 1 || ev[0].Reason != reasonExpired {
			t.Errorf("refused: %+v", ev)
		}
	})
}

func TestSlowReaderIsCut(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		began := time.Now()
		for { // ask, and never read what comes
			if _, err := c.conn.Write([]byte{0xc0, 0}); err != nil {
				break
			}
		}
		synctest.Wait()
		if ev := b.journal.events(audit.SessionClosed); len(ev) != 1 || ev[0].Reason != endSlow || time.Since(began) > 11*time.Second {
			t.Errorf("closed %+v after %s", ev, time.Since(began))
		}
	})
}

func TestRevokedGatewayIsCut(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c, other := b.session("gw-1", 10*time.Hour, 0), b.session("gw-2", 10*time.Hour, 0)
		b.reg.change(func() { b.reg.inactive["gw-1"] = true })
		if took, why := b.lives(c); took > time.Second || why != endRevoked {
			t.Errorf("cut after %s (%s)", took, why)
		}
		other.send([]byte{0xc0, 0})
		other.expect(kindPingresp)
	})
}

// TestASessionsEndSaysWhatEndedIt: by the list of what is cut off, and by the question about this one.
func TestASessionsEndSaysWhatEndedIt(t *testing.T) {
	for why, err := range map[string]error{
		endSuspended: &registry.HeldError{Gateway: "gw-1", State: registry.Suspended, Reason: "looked at"},
		endEnded:     &registry.HeldError{Gateway: "gw-1", State: registry.Decommissioned, Reason: "scrapped"},
		endReplaced:  &registry.RetiredError{Gateway: "gw-1", Reason: "broken"},
		endWindow:    &registry.WindowError{Gateway: "gw-1"},
		endRevoked:   &registry.RevokedError{Gateway: "gw-1", Reason: "stolen"},
	} {
		if got := endFor(err); got != why {
			t.Errorf("%v: %q, expected %q", err, got, why)
		}
	}
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		b.reg.change(func() { b.reg.revoked["gw-1"], b.reg.cut = true, registry.Suspended })
		if took, why := b.lives(c); took > time.Second || why != endSuspended {
			t.Errorf("cut after %s (%s)", took, why)
		}
	})
}

// TestNudgeCutsAtOnce: a change that this process made itself is not waited for.
func TestNudgeCutsAtOnce(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		b.reg.change(func() { b.reg.revoked["gw-1"] = true })
		b.srv.Nudge()
		b.srv.Nudge() // never blocks
		if took, why := b.lives(c); took != 0 || why != endRevoked {
			t.Errorf("cut after %s (%s)", took, why)
		}
		again := b.open("gw-1", 10*time.Hour)
		again.send(connectPacket("gw-1", 0))
		again.expectConnack(connackDenied)
		ev := b.journal.events(audit.Refused)
		if len(ev) != 1 || ev[0].Reason != reasonRevoked || ev[0].Actor.ID != "spiffe://"+domain+"/gateway/gw-1" {
			t.Errorf("refused: %+v", ev)
		}
	})
}

// TestReplacedBoardIsCut: its key, and not the gateway: the new board's session, which has the same name, stands.
func TestReplacedBoardIsCut(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		b.srv.mu.Lock()
		old := b.srv.sessions["gw-1"].id.key
		b.srv.mu.Unlock()
		b.reg.change(func() { b.reg.retired[old] = "gw-1" })
		if took, why := b.lives(c); took > time.Second || why != endReplaced {
			t.Errorf("cut after %s (%s)", took, why)
		}
		fresh := b.session("gw-1", 10*time.Hour, 0) // another key
		b.reg.change(func() {})
		time.Sleep(2 * time.Second)
		fresh.send([]byte{0xc0, 0})
		fresh.expect(kindPingresp)

		var again [32]byte
		b.srv.mu.Lock()
		again = b.srv.sessions["gw-1"].id.key
		b.srv.mu.Unlock()
		if again == old || again == [32]byte{} {
			t.Fatal("two certificates have one key")
		}
	})
}

// TestWhyAGatewayIsTurnedAway: each way of being cut off has its own words in the log.
func TestWhyAGatewayIsTurnedAway(t *testing.T) {
	for reason, refusal := range map[string]error{
		reasonSuspended:      &registry.HeldError{Gateway: "gw-1", State: registry.Suspended, Reason: "looked at"},
		reasonDecommissioned: &registry.HeldError{Gateway: "gw-1", State: registry.Decommissioned, Reason: "scrapped"},
		reasonReplaced:       &registry.RetiredError{Gateway: "gw-1", Reason: "broken"},
	} {
		inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
			b.reg.change(func() { b.reg.err = refusal })
			c := b.open("gw-1", 10*time.Hour)
			c.send(connectPacket("gw-1", 0))
			c.expectConnack(connackDenied)
			if ev := b.journal.events(audit.Refused); len(ev) != 1 || ev[0].Reason != reason {
				t.Errorf("refused: %+v; expected %q", ev, reason)
			}
			b.reg.change(func() { b.reg.err = nil })
		})
	}
}

// TestRevocationDoesNotWaitForTheJournal: sessions are cut while no event can be written and aggregated refusals hang on the way.
func TestRevocationDoesNotWaitForTheJournal(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		b.journal.set(func() { b.journal.held = true })
		b.srv.Refusals().Add(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, "handshake failed")
		time.Sleep(2 * time.Minute) // the refusals' flush hangs by now
		b.reg.change(func() { b.reg.revoked["gw-1"] = true })
		if took, _ := b.lives(c); took > time.Second {
			t.Errorf("cut after %s", took)
		}
		b.journal.set(func() { b.journal.held = false })
		synctest.Wait()
		if ev := b.journal.events(audit.SessionClosed); len(ev) != 1 || ev[0].Reason != endRevoked {
			t.Errorf("closed: %+v", ev)
		}
	})
}

func TestLanesChangeInASession(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		p := newPeriod(t)
		c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
		c.expectPuback(1)
		b.reg.change(func() { b.reg.lanes["gw-1"] = 1 << telemetry.LaneAlarm })
		time.Sleep(time.Second)
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 0, 1)))
		c.expect(kindPublish)
		c.expectEnd()
	})
}

// A quarantine that begins or ends in a session: the session stays, and each publish bears the verdict of its moment.
func TestQuarantineInASession(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		c := b.session("gw-1", 10*time.Hour, 0)
		p := newPeriod(t)
		c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
		c.expectPuback(1)
		want := []string{}
		for i, held := range []bool{false, true, true, false} {
			b.reg.change(func() { b.reg.held = held })
			time.Sleep(time.Second)
			id := uint16(2 + i)
			c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), id, p.frame(telemetry.LaneVitals, uint64(i), 1)))
			c.expectPuback(id)
			if want = append(want, audit.Accepted); held {
				want[i] = audit.AcceptedQuarantined
			}
		}
		got := []string{}
		for _, row := range b.journal.rows() {
			got = append(got, row.Verdict)
		}
		if !slices.Equal(got, want) {
			t.Errorf("verdicts %q; expected %q", got, want)
		}
	})
}

// A gateway that is in quarantine when it connects is admitted, and its first publish is marked.
func TestQuarantineAtConnect(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		b.reg.change(func() { b.reg.held = true })
		c := b.session("gw-1", 10*time.Hour, 0)
		p := newPeriod(t)
		c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
		c.expectPuback(1)
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), 2, p.frame(telemetry.LaneVitals, 0, 1)))
		c.expectPuback(2)
		if rows := b.journal.rows(); len(rows) != 1 || rows[0].Verdict != audit.AcceptedQuarantined {
			t.Errorf("%+v", rows)
		}
	})
}

func TestHalfOpenConnectionsAreBounded(t *testing.T) {
	inBubble(t, Limits{Pending: 6, PendingEach: 4}, func(t *testing.T, b *pipeBench) {
		open := func(name string, n int) (kept int) {
			for range n {
				b.open(name, 10*time.Hour)
			}
			synctest.Wait()
			b.srv.mu.Lock()
			defer b.srv.mu.Unlock()
			return len(b.srv.waiting)
		}
		if n := open("gw-1", 50); n != 4 {
			t.Errorf("%d connections of one gateway wait, expected 4", n)
		}
		if n := open("gw-2", 50); n != 6 {
			t.Errorf("%d connections wait, expected 6", n)
		}
		time.Sleep(16 * time.Second)
		if n := open("gw-1", 0); n != 0 {
			t.Errorf("%d connections wait after the deadline", n)
		}
		b.session("gw-1", 10*time.Hour, 0)
	})
}

func TestRefusalsAreAggregated(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		for i := range 100_000 { // a scan from many networks
			addr := &net.TCPAddr{IP: net.IPv4(10, byte(i>>8), byte(i), 1), Port: 1 + i%60000}
			b.srv.Refusals().Add(addr, "handshake failed")
		}
		v6 := &net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3::4"), Port: 5}
		b.srv.Refusals().Add(v6, "handshake failed")
		b.srv.Refusals().Add(nil, "\xff")
		time.Sleep(61 * time.Second)
		synctest.Wait()
		var total uint64
		bytes := 0
		b.journal.mu.Lock()
		for _, e := range b.journal.done {
			bytes += len(e.Head)
		}
		b.journal.mu.Unlock()
		events := b.journal.events(audit.RefusedPeers)
		for _, ev := range events {
			total += ev.Count
		}
		if total != 100_002 {
			t.Errorf("%d refusals are accounted for, expected 100002", total)
		}
		if bytes > 2*maxRefusalBytes {
			t.Errorf("a scan cost %d bytes of journal", bytes)
		}
		if got := prefixOf(v6); got != "2001:db8:1:2::/64" {
			t.Errorf("prefix %s", got)
		}
		if got := prefixOf(&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.9"), Port: 5}); got != "192.0.2.0/24" {
			t.Errorf("prefix %s", got)
		}
	})
}

// TestFirstRefusalIsSoonInTheLog: who is attacked sees it within seconds; the thousand that follow cost one event more.
func TestFirstRefusalIsSoonInTheLog(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute))) // a minute's begin
		peer := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}
		b.srv.Refusals().Add(peer, "handshake failed")
		time.Sleep(tellRefusals)
		synctest.Wait()
		if ev := b.journal.events(audit.RefusedPeers); len(ev) != 1 || ev[0].Count != 1 || ev[0].Actor.ID != "peer" || ev[0].Reason != "handshake failed" {
			t.Fatalf("after %s: %+v", tellRefusals, ev)
		}
		for range 20 {
			for range 50 {
				b.srv.Refusals().Add(peer, "handshake failed")
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if ev := b.journal.events(audit.RefusedPeers); len(ev) != 2 || ev[1].Count != 1000 {
			t.Errorf("%d events: %+v", len(ev), ev)
		}
		r := b.srv.Refusals()
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.bytes != 0 || len(r.kinds) != 0 {
			t.Errorf("%d bytes and %d kinds are held once all is told", r.bytes, len(r.kinds))
		}
	})
}

func TestRefusalsOutliveAJournalThatFails(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		b.srv.Refusals().Add(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, "handshake failed")
		b.journal.set(func() { b.journal.refuse = errors.New("full") })
		time.Sleep(61 * time.Second)
		b.journal.set(func() { b.journal.refuse = nil })
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if ev := b.journal.events(audit.RefusedPeers); len(ev) != 1 || ev[0].Count != 1 || ev[0].Peer != "10.0.0.0/24" {
			t.Errorf("%+v", ev)
		}
	})
}
