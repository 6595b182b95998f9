package ingest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry"
)

// stepJournal commits only when it is told to.
type stepJournal struct {
	mu   sync.Mutex
	in   []waitingEntry // all there ever were, in order
	done int
	fail error
}

func (j *stepJournal) NextID() (id audit.EventID)                     { return id }
func (j *stepJournal) Append(context.Context, ...journal.Entry) error { return nil }
func (j *stepJournal) Submit(e journal.Entry, done func(uint64, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return j.fail
	}
	j.in = append(j.in, waitingEntry{e, done})
	return nil
}

// step commits n entries, or all that are there.
func (j *stepJournal) step(n int) {
	for ; n > 0; n-- {
		j.mu.Lock()
		if j.done == len(j.in) {
			j.mu.Unlock()
			return
		}
		next := j.in[j.done]
		j.done++
		j.mu.Unlock()
		next.done(1, nil)
	}
}

func (j *stepJournal) has() []journal.Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []journal.Entry
	for _, w := range j.in {
		all = append(all, w.entry)
	}
	return all
}

// lane is a session as far as the queue knows it.
type lane struct {
	q    *queue
	name byte
	line line
	n    uint64
	mu   sync.Mutex
	err  error
}

func (l *lane) submit(t *testing.T, size int, alarm bool) {
	t.Helper()
	l.n++
	s := &slot{size: size, begun: time.Now()}
	s.complete = func(_ uint64, err error) {
		l.q.gone(size)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = err
	}
	if err := l.q.submit(&l.line, item{journal.Entry{Seq: l.n, Head: []byte{l.name}}, s, alarm}); err != nil {
		t.Error(err)
	}
}

// inQueue runs a test of a queue of which the journal has room for n bytes, and looks that nothing is left at its end.
func inQueue(t *testing.T, bytes, most int, test func(t *testing.T, j *stepJournal, q *queue)) {
	synctest.Test(t, func(t *testing.T) {
		j := new(stepJournal)
		q := newQueue(j, most)
		q.bytes = bytes
		test(t, j, q)
		for range 1000 {
			j.step(1000)
			synctest.Wait()
		}
		if l := q.load(); l.waiting != 0 || l.inside != 0 || l.delay != 0 || q.within != 0 {
			t.Errorf("left over: %+v, %d entries", l, q.within)
		}
		inOrder(t, j.has())
	})
}

// inOrder: of each session all, once, in its order.
func inOrder(t *testing.T, all []journal.Entry) {
	t.Helper()
	last := map[byte]uint64{}
	for _, e := range all {
		if e.Seq != last[e.Head[0]]+1 {
			t.Fatalf("session %d: %d follows %d", e.Head[0], e.Seq, last[e.Head[0]])
		}
		last[e.Head[0]] = e.Seq
	}
}

// TestAFloodCostsTheOthersNothing: behind a gateway with ten times as much waiting, whoever has one publish waits for no more than one turn of
// each of the others.
func TestAFloodCostsTheOthersNothing(t *testing.T) {
	inQueue(t, 128<<10, 64<<20, func(t *testing.T, j *stepJournal, q *queue) {
		flood := &lane{q: q, name: 1}
		for range 1000 {
			flood.submit(t, 1024, false)
		}
		synctest.Wait()
		const others = 20
		for i := range others {
			l := &lane{q: q, name: byte(10 + i)}
			l.submit(t, 1024, false)
		}
		synctest.Wait()
		// What is inside already, a turn of the flood, one publish of each: so much is within the next commit.
		before := len(j.has())
		j.step(before)
		synctest.Wait()
		seen := 0
		for _, e := range j.has()[:before+quantum/1024+others] {
			if e.Head[0] != 1 {
				seen++
			}
		}
		if seen != others {
			t.Errorf("%d of %d others have had their turn after %d of the flood's publishes", seen, others, len(j.has())-seen)
		}
	})
}

// TestAlarmsComeFirst: an alarm waits for what its own gateway sent before it, and for nobody's backlog.
func TestAlarmsComeFirst(t *testing.T) {
	inQueue(t, 16<<10, 64<<20, func(t *testing.T, j *stepJournal, q *queue) {
		for i := range 100 { // a tenant's backlog
			l := &lane{q: q, name: byte(100 + i)}
			for range 30 {
				l.submit(t, 4096, false)
			}
		}
		sick := &lane{q: q, name: 1}
		sick.submit(t, 100, false) // its sealing record
		sick.submit(t, 100, true)
		sick.submit(t, 100, false)
		synctest.Wait()
		before := len(j.has())
		j.step(before)
		synctest.Wait()
		alarm := -1
		for i, e := range j.has() {
			if e.Head[0] == 1 && e.Seq == 2 {
				alarm = i
			}
		}
		if alarm < 0 || alarm > before+2 {
			t.Errorf("the alarm is at %d; the journal had %d when it came", alarm, before)
		}
		if all := j.has(); len(all) > alarm+1 && all[len(all)-1].Head[0] == 1 && all[len(all)-1].Seq == 3 {
			t.Error("what followed the alarm came with it")
		}
	})
}

// TestAlarmsWithoutEndStarveNobody: a gateway whose every publish is called an alarm leaves the others a quarter.
func TestAlarmsWithoutEndStarveNobody(t *testing.T) {
	inQueue(t, 16<<10, 64<<20, func(t *testing.T, j *stepJournal, q *queue) {
		loud, calm := &lane{q: q, name: 1}, &lane{q: q, name: 2}
		for range 400 {
			loud.submit(t, 4096, true)
			calm.submit(t, 4096, false)
		}
		synctest.Wait()
		for range 200 {
			j.step(1)
			synctest.Wait()
		}
		count := map[byte]int{}
		for _, e := range j.has() {
			count[e.Head[0]]++
		}
		if n := count[1] + count[2]; count[2] < n/5 || count[1] < n/2 {
			t.Errorf("alarms %d, others %d", count[1], count[2])
		}
	})
}

// TestTheQueueIsBounded: who has something waiting is held up when too much waits, who has nothing is not.
func TestTheQueueIsBounded(t *testing.T) {
	inQueue(t, 1024, 8<<10, func(t *testing.T, j *stepJournal, q *queue) {
		var flood sync.WaitGroup
		l := &lane{q: q, name: 1}
		flood.Go(func() {
			for range 50 {
				l.submit(t, 1024, false)
			}
		})
		synctest.Wait()
		if got := q.load(); got.waiting != 8<<10 || got.waits == 0 {
			t.Errorf("%+v waits, the bound is 8 KB", got)
		}
		calm := &lane{q: q, name: 2}
		calm.submit(t, 1024, false) // returns
		for range 100 {
			j.step(1)
			synctest.Wait()
		}
		flood.Wait()
	})
}

// TestASessionThatEndsIsNotHeldUp: its reader waits for room that may never come.
func TestASessionThatEndsIsNotHeldUp(t *testing.T) {
	inQueue(t, 1024, 2048, func(t *testing.T, j *stepJournal, q *queue) {
		l := &lane{q: q, name: 1}
		var done sync.WaitGroup
		done.Go(func() {
			for range 10 {
				l.submit(t, 1024, false)
			}
		})
		synctest.Wait()
		q.end(&l.line, false)
		done.Wait() // or the bubble is in a deadlock
	})
}

// TestWhatWaitsOfASessionThatIsCutIsDropped: nothing of it was acknowledged. What others have waiting is not touched.
func TestWhatWaitsOfASessionThatIsCutIsDropped(t *testing.T) {
	inQueue(t, 1024, 64<<10, func(t *testing.T, j *stepJournal, q *queue) {
		revoked, other := &lane{q: q, name: 1}, &lane{q: q, name: 2}
		for range 5 {
			revoked.submit(t, 1024, true)
			other.submit(t, 1024, false)
		}
		synctest.Wait()
		q.end(&revoked.line, true)
		revoked.submit(t, 1024, false)
		for range 20 {
			j.step(1)
			synctest.Wait()
		}
		count := map[byte]int{}
		for _, e := range j.has() {
			count[e.Head[0]]++
		}
		if count[1] != 1 || count[2] != 5 {
			t.Errorf("%d of the session that was cut, %d of the other; expected the one that the journal had, and all 5", count[1], count[2])
		}
	})
}

// TestAJournalThatRefusesWhatWaited: it is as if its commit had failed.
func TestAJournalThatRefusesWhatWaited(t *testing.T) {
	inQueue(t, 1024, 64<<10, func(t *testing.T, j *stepJournal, q *queue) {
		l := &lane{q: q, name: 1}
		for range 3 {
			l.submit(t, 1024, false)
		}
		synctest.Wait()
		j.mu.Lock()
		j.fail = errors.New("closed")
		j.mu.Unlock()
		j.step(1)
		synctest.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.err == nil {
			t.Error("it was not told")
		}
	})
}

// TestQueueInAnyOrder: whatever comes when, all arrives, once, each session's in its order, and the journal never has more than its share.
func TestQueueInAnyOrder(t *testing.T) {
	for seed := range uint64(40) {
		inQueue(t, 20<<10, 1<<20, func(t *testing.T, j *stepJournal, q *queue) {
			random := rand.New(rand.NewPCG(seed, 1))
			lanes := make([]*lane, 1+random.IntN(12))
			for i := range lanes {
				lanes[i] = &lane{q: q, name: byte(i)}
			}
			sent := 0
			for range 600 {
				switch random.IntN(4) {
				case 0:
					j.step(random.IntN(8))
				case 1:
					synctest.Wait()
				default:
					lanes[random.IntN(len(lanes))].submit(t, 1+random.IntN(6000), random.IntN(5) == 0)
					sent++
				}
				if l := q.load(); l.inside > 20<<10 {
					t.Fatalf("seed %d: %d bytes inside", seed, l.inside)
				}
			}
			for range sent {
				j.step(1)
				synctest.Wait()
			}
			if n := len(j.has()); n != sent {
				t.Fatalf("seed %d: %d of %d arrived", seed, n, sent)
			}
		})
	}
}

// burstOf sends a sealing record and n frames on a lane, without waiting for answers.
func (c *client) burstOf(p *period, gateway string, n int) {
	c.t.Helper()
	packets := publishPacket(0x32, telemetry.KeyTopic(gateway), 1, p.signed)
	for i := range n {
		packets = append(packets, publishPacket(0x32, telemetry.UpTopic(gateway, telemetry.LaneVitals), uint16(2+i), p.frame(telemetry.LaneVitals, uint64(i), 10))...)
	}
	c.send(packets)
}

// TestOverloadTurnsConnectsAway: while publishes wait too long for the journal a CONNECT gets CONNACK 3 and one aggregated event; who is connected stays
// so, keeps its older session, and is asked not to hurry back. Then all is as before.
func TestOverloadTurnsConnectsAway(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		b.srv.queue.bytes = 1
		c := b.session("gw-1", 10*time.Hour, 0)
		c.send(subscribePacket(9, telemetry.DownFilter("gw-1"), 0))
		c.expect(kindSuback)
		b.journal.hold()
		c.burstOf(newPeriod(t), "gw-1", 5)
		time.Sleep(7 * time.Second)
		if body := c.expect(kindPublish); string(body[2:2+len(telemetry.DownTopic("gw-1", telemetry.DocHint))]) != telemetry.DownTopic("gw-1", telemetry.DocHint) {
			t.Errorf("pushed %q", body)
		}
		for _, name := range []string{"gw-2", "gw-1"} {
			other := b.open(name, 10*time.Hour)
			other.send(connectPacket(name, 0))
			other.expectConnack(connackUnavailable)
			other.expectEnd()
		}
		c.ping() // and there was one hint, not one for each look
		b.journal.release()
		for id := range uint16(6) {
			c.expectPuback(1 + id)
		}
		time.Sleep(time.Second)
		b.session("gw-2", 10*time.Hour, 0)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		var told uint64
		for _, ev := range b.journal.events(audit.RefusedPeers) {
			if ev.Reason == reasonOverload {
				told += ev.Count
			}
		}
		if n := len(b.journal.events(audit.Refused)); told != 2 || n != 0 {
			t.Errorf("%d refusals aggregated, %d single", told, n)
		}
	})
}

// TestRateHoldsWhileOthersWait: who is over the rate is read later, but only while publishes wait: a backlog drains as fast as it can.
func TestRateHoldsWhileOthersWait(t *testing.T) {
	for _, busy := range []bool{true, false} {
		inBubble(t, Limits{Window: 200, Gateway: Pace{Publishes: 10, Bytes: 1 << 20}}, func(t *testing.T, b *pipeBench) {
			c, other := b.session("gw-1", 10*time.Hour, 0), b.session("gw-2", 10*time.Hour, 0)
			if busy {
				b.srv.queue.bytes = 1
				b.journal.hold()
			}
			period := newPeriod(t)
			if busy { // somebody has waited for a while
				other.burstOf(newPeriod(t), "gw-2", 2)
				b.serving.Go(func() { other.expectEnd() })
				time.Sleep(pressure)
			}
			b.serving.Go(func() { c.burstOf(period, "gw-1", 150) })
			flight := func() (n int) {
				b.srv.mu.Lock()
				s := b.srv.sessions["gw-1"]
				b.srv.mu.Unlock()
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.flight + int(s.answered)
			}
			b.serving.Go(func() { // the pipe has no buffer
				for {
					if _, _, err := c.packet(); err != nil {
						return
					}
				}
			})
			time.Sleep(time.Second)
			synctest.Wait()
			switch n := flight(); {
			case busy && (n < burst*10 || n > burst*10+15):
				t.Errorf("%d publishes within a second; expected the burst of %d and 10 more", n, burst*10)
			case !busy && n != 151:
				t.Errorf("%d of 151 publishes are read although nothing waits", n)
			}
			if busy {
				b.srv.queue.mu.Lock()
				b.srv.queue.bytes = handedBytes
				b.srv.queue.mu.Unlock()
				b.journal.release()
				time.Sleep(time.Second)
				synctest.Wait()
				if n := flight(); n != 151 {
					t.Errorf("%d of 151 publishes are read once nothing waits any more", n)
				}
			}
			c.conn.Close()
		})
	}
}
