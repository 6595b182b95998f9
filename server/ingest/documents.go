package ingest

import (
	"context"
	"slices"
	"sync"
	"time"

	"wardlink/telemetry"
)

// asking fetches documents for gateways that subscribed, one gateway after the other, in the order in which they asked. Ten thousand
// lookups at once would all wait for the same database, most of them longer than they may, and keep what others publish from being stored.
// Telemetry does not wait for a configuration, so a gateway is read on meanwhile. There is at most one request of a session.
type asking struct {
	mu      sync.Mutex
	line    []*session
	running bool
}

// request is what a session asks for. It belongs to asking.mu.
type request struct {
	all    bool
	wanted map[telemetry.Doc]bool
}

// restShare is how many times as long as a lookup took is left to others before the next: together they take a third of a processor.
const restShare = 2

// mostRest bounds that: a lookup that took longer waited for somebody.
const mostRest = 20 * time.Millisecond

// ask has documents sent to a session: all, or some. If nobody else is answered just now they are on their way when it returns, else the session is
// read on meanwhile. ctx is the session's.
func (s *Server) ask(ctx context.Context, c *session, all bool, wanted map[telemetry.Doc]bool) {
	a := &s.asking
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.request != nil { // it waits already
		c.request.all = c.request.all || all
		for doc := range wanted {
			c.request.wanted[doc] = true
		}
		return
	}
	r := request{all: all, wanted: wanted}
	if a.running {
		c.request = &r
		a.line = append(a.line, c)
		return
	}
	a.running = true
	defer func() { // also after a panic
		if a.running = len(a.line) > 0; a.running {
			s.active.Add(1) // of a session that is active
			go s.answer(context.WithoutCancel(ctx))
		}
	}()
	a.mu.Unlock()
	defer a.mu.Lock()
	Apart(func() { c.fetch(ctx, r) })
}

// next takes who is next.
func (a *asking) next() (*session, request, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.line) == 0 {
		a.line, a.running = nil, false
		return nil, request{}, false
	}
	c := a.line[0]
	a.line[0] = nil
	a.line = a.line[1:]
	r := *c.request
	c.request = nil
	return c, r, true
}

// forget takes a session that has ended out of the line, which may be long when lookups are slow: a session holds a connection's memory.
func (a *asking) forget(c *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.request != nil {
		c.request = nil
		a.line = slices.DeleteFunc(a.line, func(other *session) bool { return other == c })
	}
}

// answer answers requests until there are none.
func (s *Server) answer(ctx context.Context) {
	defer s.active.Done()
	for {
		c, r, more := s.asking.next()
		if !more {
			return
		}
		if c.ended() != "" {
			continue
		}
		began := time.Now()
		func() {
			defer c.fault()
			c.fetch(ctx, r)
		}()
		time.Sleep(min(restShare*time.Since(began), mostRest))
	}
}

// fetch looks up the documents of a session and sends those that were asked for. It waits for no peer: one that has left much unread gets
// them when it subscribes the next time.
func (c *session) fetch(ctx context.Context, r request) {
	ctx, cancel := context.WithTimeout(ctx, c.srv.limits.Ask)
	defer cancel()
	docs, err := c.srv.down(ctx, c.id.gateway)
	if err != nil {
		// Telemetry must not wait for a configuration: the gateway goes on with the one it has.
		c.srv.log.Error("documents for a gateway cannot be had", "gateway", c.id.gateway, "error", err)
	}
	var packets []byte
	for _, d := range docs {
		switch {
		case !r.all && !r.wanted[d.Doc]:
		case len(d.Body) > telemetry.MaxDocument:
			c.srv.log.Error("document is too long to be pushed", "gateway", c.id.gateway, "document", string(d.Doc), "bytes", len(d.Body))
		default:
			packets = appendPublish(packets, telemetry.DownTopic(c.id.gateway, d.Doc), d.Body)
		}
	}
	if len(packets) > 0 && c.deliver(packets) {
		c.srv.log.Warn("a gateway that does not read is not sent its documents", "gateway", c.id.gateway, "bytes", len(packets))
	}
}
