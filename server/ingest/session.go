package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// past is a deadline that makes every blocked and later read or write of a connection fail at once.
var past = time.Unix(1, 0)

// session is one connection from its handshake on.
type session struct {
	srv     *Server
	conn    net.Conn
	id      identity
	peer    string
	agent   telemetry.Hello
	version uint16        // of the protocol
	lanes   atomic.Uint32 // registry.Admission.Lanes
	// quarantined is registry.Admission.Quarantined: what is committed meanwhile bears the mark for ever.
	quarantined atomic.Bool
	grant       atomic.Pointer[registry.Admission] // what the registry said last
	topics      [telemetry.LaneCount]string
	key         string

	traffic *traffic
	source  *source
	asked   atomic.Bool // it has subscribed to all its down topics

	// Of the reader alone.
	sealings map[[16]byte]sealing
	silence  time.Duration // longest time until a whole packet has arrived
	scratch  [5]byte
	bucket   bucket
	rate     bucket // of the gateway's own profile,
	allowed  Pace   // which is this; the reader's alone

	line    line     // of srv.queue
	request *request // of srv.asking
	rest    rest
	turn    bool // it has one of srv.turns; see takeTurn

	mu         sync.Mutex
	room       sync.Cond // the reader waits: a place in the window, or space in out
	work       sync.Cond // run waits: the writer has ended, or the session has
	first      *slot     // publishes that are not answered, in the order of receipt
	last       *slot
	flight     int       // how many
	held       int       // and their bytes
	answered   uint64    // publishes
	out        []byte    // packets other than PUBACK
	writing    bool      // there is a writer
	warm       bool      // it has buffers that can be released
	armed      time.Time // when the reader began to wait for the next packet
	hinted     time.Time // when it was last told of an overload
	end        string    // why the session ends; "" while it lives
	hard       bool      // nothing more is read or written
	failed     bool      // commits that are under way are not waited for
	opened     time.Time // zero until admitted and journaled
	judged     int       // how often look has stored what it may do
	generation int64     // among the gateway's sessions of all nodes; 0 until it is counted
	event      audit.EventID

	done chan struct{} // closed when nothing of the session is left
}

// slot is a publish that waits for its commit.
type slot struct {
	owner     *session
	next      *slot
	packet    uint16
	size      int
	committed bool
	counted   bool // it is a batch
	lane      telemetry.Lane
	begun     time.Time
	complete  func(seq uint64, err error) // bound to this slot; made once
}

func newSlot() any {
	s := new(slot)
	s.complete = func(_ uint64, err error) { s.owner.complete(s, err) }
	return s
}

// maxOut is how many bytes of answers other than PUBACKs may wait for a slow peer before its packets are no longer read. A single
// answer may exceed it.
const maxOut = 64 << 10

// ServeConn serves one connection and returns when it is over and closed. state is that of a completed TLS 1.3 handshake;
// whose it is is for prove to say; conn may replay bytes that the listener peeked at. ctx ends the session at once.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn, state tls.ConnectionState) {
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		s.refusals.Add(conn.RemoteAddr(), reasonDraining)
		_ = conn.Close()
		return
	}
	s.active.Add(1)
	s.mu.Unlock()
	defer s.active.Done()
	defer conn.Close()

	c := &session{srv: s, conn: conn, peer: peerOf(conn), done: make(chan struct{})}
	c.room.L, c.work.L = &c.mu, &c.mu
	defer close(c.done)
	defer c.giveTurn()
	// Last resort: a fault of ours costs this connection and not the process. The values in a panic may be a peer's: not logged.
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("fault in a session", "gateway", c.id.gateway, "stack", stackOf(p))
			s.leave(c)
		}
	}()
	var proven bool
	var err error
	c.takeTurn()
	Apart(func() { c.id, proven, err = s.prove(state, time.Now()) })
	c.giveTurn()
	if err != nil {
		if proven {
			c.refused(ctx, err.Error(), c.id.spiffe, nil)
		} else {
			s.refusals.Add(conn.RemoteAddr(), err.Error())
		}
		return
	}
	stopWatch := context.AfterFunc(ctx, func() { c.stop(endDraining, true) })
	defer stopWatch()
	if reason := s.knock(c); reason != "" {
		c.turnedAway(reason)
		return
	}
	hello, err := c.readConnect()
	s.enter(c)
	if c.ended() == endDraining {
		return // it had not asked for anything yet
	}
	if err != nil {
		c.refuseConnect(ctx, err)
		return
	}
	c.run(ctx, hello)
}

// knock counts a connection that has yet to say CONNECT, and says why there is no room for it.
func (s *Server) knock(c *session) (reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return reasonDraining
	case len(s.waiting) >= s.limits.Pending || s.pending[c.id.gateway] >= s.limits.PendingEach:
		return reasonPending
	}
	s.waiting[c] = struct{}{}
	s.pending[c.id.gateway]++
	return ""
}

// enter ends what knock began.
func (s *Server) enter(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, c)
	if s.pending[c.id.gateway]--; s.pending[c.id.gateway] == 0 {
		delete(s.pending, c.id.gateway)
	}
}

// readConnect reads the first packet, which must be a CONNECT for the proven gateway.
func (c *session) readConnect() (connect, error) {
	if !c.arm(c.srv.limits.Connect) {
		return connect{}, os.ErrDeadlineExceeded
	}
	h, err := readHeader(c.conn, &c.scratch, 0)
	if err != nil {
		return connect{}, err
	}
	if h.kind != kindConnect {
		return connect{}, violation{reasonFirst}
	}
	body, err := readBody(c.conn, h)
	if err != nil {
		return connect{}, err
	}
	hello, err := parseConnect(body)
	if err != nil {
		return connect{}, err
	}
	if hello.clientID != c.id.gateway {
		return connect{}, violation{reasonClientID}
	}
	c.agent = hello.agent
	if c.version = hello.agent.Common(c.srv.spoken); c.version == 0 {
		return connect{}, violation{reasonVersions}
	}
	return hello, nil
}

// refuseConnect answers a CONNECT that breaks the profile, where MQTT has a code for it, and journals the refusal first.
func (c *session) refuseConnect(ctx context.Context, err error) {
	var v violation
	switch {
	case errors.As(err, &v):
	case errors.Is(err, os.ErrDeadlineExceeded):
		v.reason = reasonConnectTimeout
	default:
		return // the peer left; nothing was asked, nothing refused
	}
	detail := map[string]string{"packet": "CONNECT"}
	if v.reason == reasonVersions {
		detail["agent"], detail["server"] = c.agent.String(), c.srv.spoken.String()
	}
	c.refused(ctx, v.reason, c.id.gateway, detail)
	code := connackDenied
	switch v.reason {
	case reasonProtocol, reasonVersions:
		code = connackProtocol
	case reasonClientID:
		code = connackClientID
	case reasonCredentials:
		code = connackCredentials
	case reasonSession, reasonWill:
	default:
		return // not a CONNECT: close without an answer (MQTT 4.8)
	}
	c.answerConnect(code)
}

// answerConnect writes the CONNACK that ends a connection, and lets the peer read it.
func (c *session) answerConnect(code byte) {
	if !c.armWrite() {
		return
	}
	if _, err := c.conn.Write(appendConnack(nil, code)); err == nil {
		c.hangUp()
	}
}

// run admits the session, serves it and journals its end.
func (c *session) run(ctx context.Context, hello connect) {
	s := c.srv
	c.traffic = s.trafficOf(c.id.gateway)
	var code byte
	var reason string
	c.takeTurn()
	Apart(func() { code, reason = s.admit(ctx, c) })
	c.giveTurn()
	defer s.leave(c)
	defer s.asking.forget(c)
	switch {
	case code == connackAccepted:
	case reason == reasonSessions, reason == reasonOverload:
		c.turnedAway(reason)
		c.answerConnect(code)
		return
	default:
		c.refused(ctx, reason, c.id.gateway, map[string]string{"packet": "CONNECT"})
		c.answerConnect(code)
		return
	}
	expiry := time.AfterFunc(time.Until(c.id.ends), func() { c.stop(endExpired, true) })
	defer expiry.Stop()

	c.silence = s.limits.KeepAlive * 3 / 2
	if asked := time.Duration(hello.keepAlive) * time.Second; asked > 0 && asked < s.limits.KeepAlive {
		c.silence = asked * 3 / 2
	}
	c.sealings = make(map[[16]byte]sealing)
	for lane := range c.topics {
		c.topics[lane] = telemetry.UpTopic(c.id.gateway, telemetry.Lane(lane))
	}
	c.key = telemetry.KeyTopic(c.id.gateway)
	c.source = s.sourceOf(c.peer)
	defer s.unsource(c.peer)
	c.mu.Lock()
	c.out, c.warm = appendConnack(c.out, connackAccepted), true
	c.kick()
	c.mu.Unlock()
	func() {
		defer c.fault()
		c.stop(c.read(ctx), false)
	}()
	linger := time.AfterFunc(s.limits.Linger, func() { c.stop("", true) })
	c.mu.Lock()
	for !c.flushed() {
		c.work.Wait()
	}
	c.mu.Unlock()
	linger.Stop()
	c.mu.Lock()
	lost, hard := c.end == endLost, c.hard
	c.mu.Unlock()
	if !lost { // else nobody is there who would read it
		c.hangUp()
	}
	if hard { // who is cut off is so at once
		_ = c.conn.Close()
	}
	c.takeTurn()
	c.patiently(func() { _ = c.conn.Close() })
	c.closed(ctx)
	c.giveTurn()
}

// fault turns a panic of one of the connection's goroutines into its end.
func (c *session) fault() {
	if p := recover(); p != nil {
		c.faulted(p)
	}
}

func (c *session) faulted(p any) {
	c.srv.log.Error("fault in a session", "gateway", c.id.gateway, "stack", stackOf(p))
	c.stop(endError, true)
}

// fail ends the session because its publishes cannot be made durable. Nothing that is not durable is acknowledged; a gateway that subscribed
// is asked to stay away for a while, and does not bring the same again at once. It never blocks.
func (c *session) fail() {
	c.hint(hintUnable)
	c.mu.Lock()
	c.failed = true
	c.mu.Unlock()
	c.stop(endError, false)
}

func (c *session) info() (SessionInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return SessionInfo{
		Gateway: c.id.gateway, Peer: c.peer, Serial: c.id.serial, ID: c.event, Opened: c.opened, NotAfter: c.id.ends, Grace: c.id.late,
		Agent: c.agent.Build, Protocol: c.version,
	}, !c.opened.IsZero() && c.end == ""
}

// stop ends the session; the first reason given stands. Softly: no further packet is read, commits on their way are still
// answered. Hard: nothing more is read or written. It never blocks, so that one dead peer cannot hold up the cutting of others.
func (c *session) stop(reason string, hard bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == "" {
		c.end = reason
	}
	if hard && !c.hard {
		c.hard = true
		_ = c.conn.SetDeadline(past)
	} else if !c.hard {
		_ = c.conn.SetReadDeadline(past)
	}
	c.srv.queue.end(&c.line, c.hard)
	c.room.Broadcast()
	c.work.Broadcast()
}

// arm sets the time by which the next packet must be here; false means that the session is ending. Deadlines are set under the
// lock so that none can undo the one of stop.
func (c *session) arm(within time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != "" {
		return false
	}
	c.armed = time.Now()
	c.rest.Store(restWaiting)
	return c.conn.SetReadDeadline(c.armed.Add(within)) == nil
}

func (c *session) armWrite() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hard {
		return false
	}
	return c.conn.SetWriteDeadline(time.Now().Add(c.srv.limits.Write)) == nil
}

// hangUp says that nothing more will come and reads on, a bounded time and amount, until the peer hangs up too. A close with
// unread bytes in the socket sends a reset, which can destroy our last packets - the refusal - before the peer has read them.
func (c *session) hangUp() {
	half, ok := c.conn.(interface{ CloseWrite() error }) // *tls.Conn has it
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.mu.Lock()
	if c.hard {
		c.mu.Unlock()
		return
	}
	err := c.conn.SetReadDeadline(time.Now().Add(c.srv.limits.Linger))
	c.mu.Unlock()
	if err == nil {
		_, _ = io.CopyN(io.Discard, c.conn, int64(c.srv.limits.Window)*maxPublish)
	}
}
