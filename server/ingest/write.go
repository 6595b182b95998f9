package ingest

import (
	"runtime"
	"sync"
	"time"

	"wardlink/telemetry"
)

// send queues an answer other than a PUBACK. It waits while a slow peer leaves too much unread; a peer that reads nothing at all
// meets the writer's deadline.
func (c *session) send(packet []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.hard && c.end == "" && len(c.out) > 0 && len(c.out)+len(packet) > maxOut {
		c.room.Wait()
	}
	c.out = append(c.out, packet...)
	c.kick()
}

// offer queues a packet unless the peer leaves too much unread; then it tells so.
func (c *session) offer(packet []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hard || c.end != "" || len(c.out) > 0 && len(c.out)+len(packet) > maxOut {
		return false
	}
	c.out = append(c.out, packet...)
	c.kick()
	return true
}

// deliver queues the documents of one lookup, which may exceed maxOut. It tells whether the peer has left too much unread for that.
func (c *session) deliver(packets []byte) (unread bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hard || len(c.out) > maxOut {
		return !c.hard
	}
	c.out = append(c.out, packets...)
	c.kick()
	return false
}

// hint asks a gateway that subscribed to stay away for some time once this connection has ended. It tells whether the hint is on its way.
func (c *session) hint(after time.Duration) bool {
	if !c.asked.Load() {
		return false
	}
	body, err := telemetry.EncodeHint(telemetry.Hint{After: after})
	return err == nil && c.offer(appendPublish(nil, telemetry.DownTopic(c.id.gateway, telemetry.DocHint), body))
}

// What hints ask for. Gateways come back after between half and the whole of it.
const (
	hintUnable = 30 * time.Second // nothing can be journaled, or not in time
	hintLeast  = 2 * time.Second  // at a stop: a start takes as long
	// hintEach is added for each session at a stop, so that no more than 200 a second come back: with TLS, the registry's answer and the
	// journal's fsync a core admits some five times as many.
	hintEach = 10 * time.Millisecond
	// hintAgain is how long a hint of overload is left alone. An agent counts one for a minute.
	hintAgain = 40 * time.Second
)

// kick starts the writer when there is something to send and none is under way: a session that is idle has no goroutine for it. The
// caller holds mu.
func (c *session) kick() {
	if !c.writing && !c.hard && c.sendable() {
		c.writing = true
		go c.write()
	}
}

// sendable says whether there is something to send. The caller holds mu.
func (c *session) sendable() bool { return len(c.out) > 0 || c.ready() }

// outs are buffers for what is written: sessions have one while they write.
var outs = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// write sends what is ready, as much as there is in one write, until there is no more or the session is cut.
func (c *session) write() {
	defer c.written()
	buf := outs.Get().(*[]byte)
	for {
		// A group commit completes many publishes in a row. Let the journal's goroutine get through those of this session before we pay for a TLS
		// record that acknowledges only the first. Not without need: who yields is passed over by the scheduler for as long as the machine is busy.
		if c.more() {
			runtime.Gosched()
		}
		packets := c.take((*buf)[:0])
		if packets == nil || !c.armWrite() {
			break
		}
		if _, err := c.conn.Write(packets); err != nil {
			c.stop(endSlow, true)
			break
		}
		if cap(packets) <= maxOut { // else a configuration was in it
			*buf = packets[:0]
		}
	}
	outs.Put(buf)
}

// written ends a writer, also one that panicked.
func (c *session) written() {
	if p := recover(); p != nil {
		c.faulted(p)
	}
	c.mu.Lock()
	c.writing = false
	c.kick() // what became ready since take found nothing
	c.work.Broadcast()
	c.mu.Unlock()
}

// take gives what is ready, built in spare: first the answers, then the PUBACKs of the publishes at the head of the window that are
// durable. nil: there is nothing, or nothing may be sent any more.
func (c *session) take(spare []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hard || !c.sendable() {
		return nil
	}
	packets := append(spare, c.out...)
	c.out = nil
	for c.ready() {
		s := c.first
		packets = appendPuback(packets, s.packet)
		if c.first = s.next; c.first == nil {
			c.last = nil
		}
		c.held -= s.size
		c.flight--
		c.answered++
		c.srv.metrics.acknowledged.Inc()
		s.owner, s.next = nil, nil
		c.srv.slots.Put(s)
	}
	c.room.Signal()
	return packets
}

// ready reports whether the first publish in line is durable. The caller holds mu.
func (c *session) ready() bool { return c.first != nil && c.first.committed }

// more reports whether publishes of the session are still on their way through the journal.
func (c *session) more() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last != nil && !c.last.committed
}

// flushed reports whether nothing is left to be sent, or to wait for. The caller holds mu.
func (c *session) flushed() bool {
	return !c.writing && (c.hard || !c.sendable() && (c.failed || c.first == nil))
}

// refusalPacket is the down/refused document for a batch.
func refusalPacket(gateway string, r refusal) ([]byte, error) {
	body, err := telemetry.EncodeRefusal(telemetry.Refusal{
		Epoch: r.frame.Epoch, Lane: r.frame.Lane, Number: r.frame.Number, Reason: r.reason,
	})
	if err != nil {
		return nil, err
	}
	return appendPublish(nil, telemetry.DownTopic(gateway, telemetry.DocRefused), body), nil
}
