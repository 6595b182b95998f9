package ingest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/server/journal"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// sealing is what a connection has brought of one sealing period. It is not verified here: records does that with the registry's
// history of the gateway's keys. Ingest only makes sure that no batch is committed whose sealing record is missing.
type sealing struct {
	epoch telemetry.Epoch
	key   [8]byte
}

// read serves packets until the session ends and gives the reason.
func (c *session) read(ctx context.Context) string {
	for {
		if !c.arm(c.silence) {
			return c.ended()
		}
		reason, err := c.packet(ctx)
		if err == nil {
			if reason != "" {
				return reason
			}
			continue
		}
		var r refusal
		var v violation
		switch {
		case errors.As(err, &r):
			c.refusePublish(ctx, r)
			return endRefused
		case errors.As(err, &v):
			c.refused(ctx, v.reason, c.id.gateway, nil)
			return endRefused
		case c.ended() != "":
			return c.ended()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return endSilent
		case errors.Is(err, errFault):
			c.fail() // its slot will never be committed: there is nothing to wait for
			return endError
		default:
			return endLost
		}
	}
}

// errFault marks what went wrong on our side, so that the session ends without PUBACK and the gateway sends again.
var errFault = errors.New("ingest fault")

func (c *session) ended() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// packet reads and serves one packet. A reason ends the session in peace.
func (c *session) packet(ctx context.Context) (reason string, err error) {
	h, err := c.header()
	if err != nil {
		return "", err
	}
	body, err := readBody(c.conn, h)
	if err != nil {
		return "", err
	}
	switch h.kind {
	case kindPublish:
		return "", c.publish(h, body)
	case kindSubscribe:
		return "", c.subscribe(ctx, body)
	case kindPuback:
		// All we publish is QoS 0, so nothing waits for this. Well-formed ones are let pass, as MQTT does.
		_, err := parsePuback(body)
		return "", err
	case kindPingreq:
		c.send(appendPingresp(nil))
		return "", nil
	case kindDisconnect:
		return endDisconnect, nil
	default:
		return "", violation{reasonSecondConnect}
	}
}

// refusal is a violation by a PUBLISH, with what is known of its batch.
type refusal struct {
	violation
	target string // the gateway of the topic
	size   int
	frame  *seal.Header // nil when the frame could not be read
}

// publish judges one PUBLISH and submits it to the journal. MQTT 3.1.1 cannot refuse a PUBLISH, so an error ends the session.
func (c *session) publish(h header, body []byte) error {
	p, err := parsePublish(h, body)
	if err != nil {
		return err
	}
	// The comparison with the gateway's own topics is the authorisation: a topic of anyone else equals none of them.
	for lane := range c.topics {
		if string(p.topic) == c.topics[lane] {
			return c.batch(p, telemetry.Lane(lane))
		}
	}
	if string(p.topic) == c.key {
		return c.sealing(p)
	}
	r := refusal{violation: violation{reasonTopic}, target: c.id.gateway, size: len(p.payload)}
	if p.topic[0] == '$' {
		r.reason = reasonSystem
	} else if other, _, _, err := telemetry.ParseUp(string(p.topic)); err == nil {
		r.reason, r.target = reasonForeign, other
	}
	return r
}

// batch takes a frame on a lane.
func (c *session) batch(p publish, lane telemetry.Lane) error {
	r := refusal{target: c.id.gateway, size: len(p.payload)}
	frame, hash, err := seal.CheckAndHash(p.payload)
	if err != nil {
		r.reason = reasonFrame
		if id, ok := seal.Peek(p.payload); ok { // a version that we do not know: the gateway must park it, or it blocks its lane
			r.frame = &seal.Header{Epoch: id.Epoch, Lane: id.Lane, Number: id.Number}
		}
		return r
	}
	r.frame = &frame
	if frame.Lane != lane {
		r.reason = reasonFrameLane
		return r
	}
	s, brought := c.sealings[frame.Sealing]
	if r.reason = judge(frame, uint8(c.lanes.Load()), s, brought); r.reason != "" {
		return r
	}
	return c.commitBatch(p, frame, hash)
}

func (c *session) commitBatch(p publish, frame seal.Header, hash [32]byte) error {
	s, err := c.reserve(p)
	if err != nil {
		return err
	}
	by := bearer{gateway: c.id.gateway, session: c.event, actor: audit.Actor{ID: c.id.spiffe, Serial: c.id.serial}, peer: c.peer, verdict: audit.Accepted}
	if c.quarantined.Load() {
		by.verdict = audit.AcceptedQuarantined
	}
	e, err := by.publish(c.srv.journal.NextID(), frame, hash, p.payload, s.begun)
	if err != nil {
		return err
	}
	c.srv.metrics.received(frame.Lane, len(p.payload))
	s.lane, s.counted = frame.Lane, true
	return c.submit(e, s, frame.Lane == telemetry.LaneAlarm)
}

// sealing takes a signed sealing record. It counts as brought from here on: the journal commits in order, so that a batch that
// follows it is never durable without it.
func (c *session) sealing(p publish) error {
	r := refusal{violation: violation{reasonSealingRecord}, target: c.id.gateway, size: len(p.payload)}
	if len(p.payload) > telemetry.MaxDocument {
		r.reason = reasonTooLong
		return r
	}
	signed, record, err := parseSealing(p.payload)
	if err != nil {
		return r
	}
	if _, again := c.sealings[record.ID]; !again && len(c.sealings) >= c.srv.limits.Sealings {
		r.reason = reasonSealings
		return r
	}
	s, err := c.reserve(p)
	if err != nil {
		return err
	}
	e, err := sealingEntry(c.eventOf(audit.SealingBrought, audit.Success), signed, record, p.payload)
	if err != nil {
		return err
	}
	c.sealings[record.ID] = sealing{epoch: record.Epoch, key: record.Key}
	c.srv.metrics.sealings.Inc()
	return c.submit(e, s, false)
}

// submit hands an entry over. From here on the commit decides about the PUBACK.
func (c *session) submit(e journal.Entry, s *slot, urgent bool) error {
	if err := c.srv.queue.submit(&c.line, item{e, s, urgent}); err != nil {
		c.srv.log.Error("publish is not journaled; its session ends without acknowledgement", "gateway", c.id.gateway, "error", err)
		return fmt.Errorf("%w: %w", errFault, err)
	}
	return nil
}

// reserve waits for a place in the window and takes it. The wait is the back-pressure: meanwhile nothing is read.
func (c *session) reserve(p publish) (*slot, error) {
	size := len(p.payload)
	c.allotted(size)
	c.pace(size)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.end == "" && (c.flight >= c.srv.limits.Window || (c.held > 0 && c.held+size > c.srv.limits.WindowBytes)) {
		c.room.Wait()
	}
	if c.end != "" {
		return nil, os.ErrDeadlineExceeded
	}
	if !p.again {
		// A client must not give an id to another publish before the first is acknowledged (2.3.1-2); else it could not tell which of
		// them the PUBACK is for, and would delete the wrong one. With DUP it is the same publish once more (4.4): each is answered.
		for other := c.first; other != nil; other = other.next {
			if other.packet == p.id {
				return nil, violation{reasonInUse}
			}
		}
	}
	s := c.srv.slots.Get().(*slot)
	s.owner, s.next, s.packet, s.size, s.committed, s.counted, s.begun = c, nil, p.id, size, false, false, time.Now()
	if c.last == nil {
		c.first = s
	} else {
		c.last.next = s
	}
	c.last = s
	c.flight++
	c.held += size
	c.warm = true
	return s, nil
}

// complete is what the journal calls once a publish is durable, or will not be. It runs in the journal's goroutine.
func (c *session) complete(s *slot, err error) {
	c.srv.queue.gone(s.size)
	c.traffic.committed(s, err)
	if err != nil {
		c.srv.log.Error("commit failed; the session ends without acknowledgement", "gateway", c.id.gateway, "error", err)
		c.srv.metrics.failed.Inc()
		c.fail()
		return
	}
	c.mu.Lock()
	s.committed = true
	c.srv.metrics.commit.Observe(time.Since(s.begun).Seconds())
	if s == c.first {
		c.kick() // PUBACKs go out in the order of receipt: only the first in line starts the writer
	}
	c.mu.Unlock()
}

// subscribe grants the gateway its own down topics at QoS 0 and asks for the documents that they are for, which are pushed as soon as they are
// there. Any other filter ends the session.
func (c *session) subscribe(ctx context.Context, body []byte) error {
	sub, err := parseSubscribe(body)
	if err != nil {
		return err
	}
	wanted := make(map[telemetry.Doc]bool)
	all := false
	for _, filter := range sub.filters {
		if filter == telemetry.DownFilter(c.id.gateway) {
			all = true
			continue
		}
		gateway, doc, err := telemetry.ParseDown(filter)
		if err != nil || gateway != c.id.gateway {
			c.send(appendSuback(nil, sub.id, len(sub.filters), 0x80))
			return violation{filterReason(filter)}
		}
		wanted[doc] = true
	}
	c.send(appendSuback(nil, sub.id, len(sub.filters), 0))
	if c.agent.Build != "" && (all || wanted[telemetry.DocHello]) {
		body, err := telemetry.EncodeWelcome(telemetry.Welcome{Version: c.version, Server: c.srv.spoken, Build: telemetry.OwnHello(build.Version).Build})
		if err != nil {
			return err
		}
		c.send(appendPublish(nil, telemetry.DownTopic(c.id.gateway, telemetry.DocHello), body))
	}
	if all {
		c.asked.Store(true) // before the documents are fetched: a change after that is pushed
	}
	if c.srv.down != nil {
		c.srv.ask(ctx, c, all, wanted)
	}
	return nil
}

func filterReason(filter string) string {
	if strings.HasPrefix(filter, "$") {
		return reasonSystem
	}
	return reasonFilter
}
