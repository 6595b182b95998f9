package ingest

import (
	"runtime"
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
	c.work.Signal()
}

// offer queues a packet unless the peer leaves too much unread; then it tells so.
func (c *session) offer(packet []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hard || c.end != "" || len(c.out) > 0 && len(c.out)+len(packet) > maxOut {
		return false
	}
	c.out = append(c.out, packet...)
	c.work.Signal()
	return true
}

// hint asks a gateway that subscribed to stay away for some time once this connection has ended.
func (c *session) hint(after time.Duration) {
	if !c.asked.Load() {
		return
	}
	if body, err := telemetry.EncodeHint(telemetry.Hint{After: after}); err == nil {
		c.offer(appendPublish(nil, telemetry.DownTopic(c.id.gateway, telemetry.DocHint), body))
	}
}

// What hints ask for. Gateways come back after between half and the whole of it.
const (
	hintUnable = 30 * time.Second // nothing can be journaled
	hintLeast  = 2 * time.Second  // at a stop: a start takes as long
	// hintEach is added for each session at a stop, so that no more than 200 a second come back: with TLS, the registry's answer and the
	// journal's fsync a core admits some five times as many.
	hintEach = 10 * time.Millisecond
)

// write sends what is ready, as much as there is in one write, until the session has ended and is answered, or is cut.
func (c *session) write() {
	var spare []byte
	for {
		packets := c.take(spare)
		if packets == nil || !c.armWrite() {
			return
		}
		if _, err := c.conn.Write(packets); err != nil {
			c.stop(endSlow, true)
			return
		}
		spare = packets[:0]
		if cap(spare) > maxOut {
			spare = nil // a configuration was in it; idle connections keep little
		}
	}
}

// take waits for something to send and gives it, built in spare: first the answers, then the PUBACKs of the publishes at the head
// of the window that are durable. nil means the end.
func (c *session) take(spare []byte) []byte {
	yielded := false
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		ready := len(c.out) > 0 || c.ready()
		switch {
		case c.hard, c.end != "" && !ready && (c.failed || c.head == c.tail):
			return nil
		case !ready:
			c.work.Wait()
			yielded = false
		case !yielded && c.end == "":
			// A group commit completes many publishes in a row. Let the journal's goroutine get through them before we pay for
			// a TLS record that acknowledges only the first.
			yielded = true
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		default:
			packets := append(spare, c.out...)
			c.out = nil
			for c.ready() {
				s := c.slots[c.head%uint64(len(c.slots))]
				packets = appendPuback(packets, s.packet)
				c.held -= s.size
				c.head++
				c.srv.metrics.acknowledged.Inc()
			}
			c.room.Signal()
			return packets
		}
	}
}

// ready reports whether the first publish in line is durable. The caller holds mu.
func (c *session) ready() bool {
	return c.head != c.tail && c.slots[c.head%uint64(len(c.slots))].committed
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
