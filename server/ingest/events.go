package ingest

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

// eventOf begins an event of this session.
func (c *session) eventOf(t audit.Type, outcome audit.Outcome) audit.Event {
	return audit.Event{
		ID: c.srv.journal.NextID(), Type: t, Time: time.Now().UnixMilli(), Actor: audit.Actor{ID: c.id.spiffe, Serial: c.id.serial},
		Peer: c.peer, Session: c.event, Target: c.id.gateway, Outcome: outcome,
	}
}

// open journals the opening. The session's id is the event's.
func (c *session) open(ctx context.Context) error {
	ev := c.eventOf(audit.SessionOpened, audit.Success)
	ev.Session = ev.ID
	ev.Detail = map[string]string{
		"not_after": c.id.notAfter.UTC().Format(time.RFC3339), "lanes": strconv.Itoa(int(c.lanes.Load())), "protocol": strconv.Itoa(int(c.version)),
	}
	if c.agent.Build != "" {
		ev.Detail["agent"] = c.agent.Build
	}
	events := []audit.Event{ev}
	if c.id.late {
		late := c.eventOf(audit.SessionGrace, audit.Success)
		late.Session = ev.ID
		late.Detail = map[string]string{"not_after": c.id.notAfter.UTC().Format(time.RFC3339), "until": c.id.ends.UTC().Format(time.RFC3339)}
		events = append(events, late)
	}
	err := c.record(ctx, events...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.event = ev.ID
	if err == nil {
		c.opened = time.Now()
	}
	return err
}

// closed journals the end, also when the server is on its way down.
func (c *session) closed(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.srv.limits.Ask)
	defer cancel()
	c.mu.Lock()
	reason, answered := c.end, c.answered
	c.mu.Unlock()
	outcome := audit.Success
	if reason == endError || reason == endBlind {
		outcome = audit.Failed
	}
	ev := c.eventOf(audit.SessionClosed, outcome)
	ev.Reason, ev.Count = reason, answered
	if err := c.record(ctx, ev); err != nil {
		c.srv.log.Error("end of a session is not journaled", "gateway", c.id.gateway, "reason", reason, "error", err)
	}
	c.srv.metrics.closed.WithLabelValues(reason).Inc()
	c.traffic.close(reason)
}

// refusedSingly is how many refusals of one gateway in a minute have an event each. One that breaks the profile again and again would else fill the
// log as fast as it can handshake.
const refusedSingly = 30

// refused journals one refusal of a proven identity, before it is answered, or counts it with others where there were many. When that fails the
// refusal stands all the same.
func (c *session) refused(ctx context.Context, reason, target string, detail map[string]string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.srv.limits.Ask)
	defer cancel()
	if c.srv.rates.refused(c.id.gateway, reason) > refusedSingly {
		c.srv.refusals.add(c.conn.RemoteAddr(), reason)
	} else {
		ev := c.eventOf(audit.Refused, audit.Denied)
		ev.Reason, ev.Target, ev.Detail = reason, target, detail
		if err := c.record(ctx, ev); err != nil {
			c.srv.log.Error("refusal is not journaled", "gateway", c.id.gateway, "reason", reason, "error", err)
		}
	}
	c.srv.log.Warn("refused", "gateway", c.id.gateway, "identity", c.id.spiffe, "peer", c.peer, "reason", reason)
	c.srv.metrics.refused(reason)
	if c.id.gateway != "" {
		c.srv.trafficOf(c.id.gateway).refuse(reason)
	}
}

// turnedAway counts a refusal that is no fault of the gateway's: there is no room, or too much load. They come by the thousand when there is least
// time for them, so they are aggregated with those of peers that have proven nothing.
func (c *session) turnedAway(reason string) {
	c.srv.refusals.add(c.conn.RemoteAddr(), reason)
	c.srv.log.Info("turned away", "gateway", c.id.gateway, "peer", c.peer, "reason", reason)
	c.srv.metrics.refused(reason)
	c.srv.trafficOf(c.id.gateway).refuse(reason)
}

// refusePublish journals the refusal of a PUBLISH and tells the gateway which batch it was, so that it parks it instead of sending
// it again. A frame that cannot be read names no batch; the gateway checks its frames before it sends them.
func (c *session) refusePublish(ctx context.Context, r refusal) {
	detail := map[string]string{"packet": "PUBLISH", "bytes": strconv.Itoa(r.size)}
	if r.frame != nil {
		detail["epoch"] = r.frame.Epoch.String()
		detail["lane"] = r.frame.Lane.String()
		detail["number"] = strconv.FormatUint(r.frame.Number, 10)
	}
	c.refused(ctx, r.reason, r.target, detail)
	if r.frame == nil {
		return
	}
	c.srv.rates.park(c.id.gateway, r.reason)
	packet, err := refusalPacket(c.id.gateway, r)
	if err != nil {
		c.srv.log.Error("gateway is not told of a refusal", "gateway", c.id.gateway, "error", err)
		return
	}
	c.send(packet)
}

// record makes events of a session durable, in their order, and has no turn while it waits.
func (c *session) record(ctx context.Context, events ...audit.Event) (err error) {
	c.aside(func() { err = record(ctx, c.srv.journal, events...) })
	return err
}

// record makes events durable, in their order.
func record(ctx context.Context, j Journal, events ...audit.Event) error {
	var entries []journal.Entry
	for _, ev := range events {
		head, err := audit.EncodeEvent(ev)
		if err != nil {
			return fmt.Errorf("encode %s: %w", ev.Type, err)
		}
		entries = append(entries, journal.Entry{ID: ev.ID, Kind: journal.KindEvent, Head: head})
	}
	if err := j.Append(ctx, entries...); err != nil {
		return fmt.Errorf("journal %s: %w", events[0].Type, err)
	}
	return nil
}
