// Package ingest is the MQTT 3.1.1 endpoint of the gateways: not a broker, but the way from a proven identity into the journal.
// MQTT.md is its profile; each row there names the test that holds it.
//
// Parties: a gateway, whose TLS client certificate names it; the registry, which says whether it is admitted and on which lanes; the
// journal, the server's durable first word. The promise to the gateway is that a PUBACK follows the journal's fsync, never
// precedes it, so that the gateway may delete what was acknowledged. The promise to an auditor is that a session, a publish, a
// sealing record and a refusal are each in the journal before they are answered. Frames are sealed to a key that this package
// never sees: it checks who brings what, and that it is whole.
//
// A connection has one goroutine while it is idle: the reader (ServeConn's caller) parses, judges and submits; it stops reading while the
// window of unanswered publishes is full, which is all the back-pressure there is. A writer lives while there is something to send:
// acknowledgements in the order of receipt, as many in one write as are ready. Between the sessions and the journal stands a queue that
// shares the journal out fairly (queue.go).
package ingest

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// Journal is what ingest needs of the server's durable first word.
type Journal interface {
	NextID() audit.EventID
	// Submit queues an entry and blocks while the queue is full. done runs once the entry's group is durable (or has failed), in
	// order of submission; it must not block. After an error from Submit itself done never runs.
	Submit(e journal.Entry, done func(seq uint64, err error)) error
	// Append returns once the entries are durable.
	Append(ctx context.Context, entries ...journal.Entry) error
}

// Registry says who may publish what.
type Registry interface {
	// AdmitKey gives registry.ErrUnknown or registry.ErrNotActive for a gateway that may not connect, or not with that device key (SHA-256
	// of its SPKI); any other error means that nobody knows.
	AdmitKey(ctx context.Context, gateway string, key [32]byte) (registry.Admission, error)
	// Revision grows with every change of who may do what.
	Revision(ctx context.Context) (int64, error)
	// CutOff gives the gateways, and the keys of replaced boards, that are cut off: a short list, so that they need not wait until
	// everybody is judged.
	CutOff(ctx context.Context) ([]registry.CutOff, error)
	// HoldsNewest says whether a certificate is one of the gateway's, and of its newest key.
	HoldsNewest(ctx context.Context, gateway string, key [32]byte, serial string) (bool, error)
}

// Document is a body for one of a gateway's down topics. Ingest relays it and cannot tell whether it is genuine: the gateway
// verifies its signature.
type Document struct {
	Doc  telemetry.Doc
	Body []byte // at most telemetry.MaxDocument bytes
}

// Config is what a Server is made of. Journal, Registry, TrustDomain and Roots are required.
type Config struct {
	Journal     Journal
	Registry    Registry
	TrustDomain string
	Roots       *x509.CertPool // what gateways' chains end in; nil is none, and then nobody is let in
	Grace       Grace
	Sessions    Sessions // nil: there is no other node
	// Down gives the documents that are pushed to a gateway when it subscribes; with an error, those that could be had. nil means none.
	Down   func(ctx context.Context, gateway string) ([]Document, error)
	Log    *slog.Logger // nil discards
	Limits Limits
	// Turns are those of the port's handshakes, which admissions and ends of sessions share; nil: as many as NewTurns makes by itself.
	Turns Turns
	// Versions of the protocol that are spoken; zero: telemetry.Spoken.
	Versions telemetry.Versions
}

// Limits bound what peers can make the server hold or wait for. A zero field takes the default that its comment names.
type Limits struct {
	Connect     time.Duration // from the end of the handshake to the CONNECT: 15 s, room for an agent that drains its old connection first
	KeepAlive   time.Duration // longest keep-alive; a longer one, or none, counts as this: 5 min
	Write       time.Duration // until a peer has taken what we write: 10 s
	Linger      time.Duration // until the last commits are answered and the peer has hung up: 5 s
	Ask         time.Duration // until the registry, the documents or an event's commit have answered: 10 s
	Poll        time.Duration // between two looks at the registry's revision: 500 ms
	Blind       time.Duration // how long sessions live on while the registry cannot be asked, and a question for QuestionTime of it: 30 s
	Window      int           // publishes of one connection that wait for their commit: 128
	WindowBytes int           // and their bytes; one publish always fits: 2 MB
	Sealings    int           // sealing records of one connection: 4096
	Sessions    int           // sessions: 20,000
	Pending     int           // connections without CONNECT: 1,024
	PendingEach int           // the same for one identity: 4
	Queue       int           // bytes of publishes that wait for the journal before who has some of them is no longer read: 64 MB
	Overload    time.Duration // a publish that waits so long for the journal is an overload: CONNECTs are turned away: 5 s
	Gateway     Pace          // while publishes wait for long, of one gateway: 500 publishes and 4 MB a second
	Address     Pace          // and of all behind one address: 50,000 publishes and 256 MB a second
}

func (l Limits) withDefaults() Limits {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	count := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	set(&l.Connect, 15*time.Second)
	set(&l.KeepAlive, 5*time.Minute)
	set(&l.Write, 10*time.Second)
	set(&l.Linger, 5*time.Second)
	set(&l.Ask, 10*time.Second)
	set(&l.Poll, 500*time.Millisecond)
	set(&l.Blind, 30*time.Second)
	count(&l.Window, 128)
	count(&l.WindowBytes, 2<<20)
	count(&l.Sealings, 4096)
	count(&l.Sessions, 20_000)
	count(&l.Pending, 1024)
	count(&l.PendingEach, 4)
	count(&l.Queue, 64<<20)
	set(&l.Overload, 5*time.Second)
	l.Gateway = l.Gateway.or(Pace{500, 4 << 20})
	l.Address = l.Address.or(Pace{50_000, 256 << 20})
	return l
}

// Server holds the sessions of one node.
type Server struct {
	journal  Journal
	registry Registry
	domain   string
	roots    *x509.CertPool
	grace    Grace
	spoken   telemetry.Versions
	down     func(ctx context.Context, gateway string) ([]Document, error)
	log      *slog.Logger
	limits   Limits
	metrics  *metrics
	refusals *Refusals
	rates    rates
	fences   Sessions
	turns    Turns
	asking   asking
	queue    *queue
	slots    sync.Pool     // of *slot that no session needs; one whose commit failed does not come back
	nudged   chan struct{} // one place: a nudge that waits stands for all

	overloaded atomic.Bool // of relieve

	mu       sync.Mutex
	traffic  map[string]*traffic   // by gateway, also of those that have no session
	sessions map[string]*session   // by gateway; from CONNECT, before admission, so that no change of the registry slips between
	pending  map[string]int        // connections without CONNECT, by gateway
	waiting  map[*session]struct{} // all of pending
	sources  map[netip.Addr]*source
	draining bool
	active   sync.WaitGroup // ServeConn calls
}

// New makes a server. It starts nothing: Run polls the registry, ServeConn serves.
func New(cfg Config) *Server {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	roots := cfg.Roots
	if roots == nil {
		roots = x509.NewCertPool() // else the machine's own would count
	}
	if cfg.Versions == (telemetry.Versions{}) {
		cfg.Versions = telemetry.Spoken()
	}
	s := &Server{
		spoken:  cfg.Versions,
		journal: cfg.Journal, registry: cfg.Registry, domain: cfg.TrustDomain, roots: roots, grace: cfg.Grace, down: cfg.Down, log: log,
		limits: cfg.Limits.withDefaults(), traffic: make(map[string]*traffic), sessions: make(map[string]*session), pending: make(map[string]int), waiting: make(map[*session]struct{}),
		nudged: make(chan struct{}, 1), sources: make(map[netip.Addr]*source), fences: cfg.Sessions, turns: cfg.Turns,
	}
	if s.turns == nil {
		s.turns = NewTurns(0)
	}
	if s.fences == nil {
		s.fences = new(oneNode)
	}
	s.slots.New = newSlot
	s.queue = newQueue(cfg.Journal, s.limits.Queue)
	s.metrics = newMetrics(s)
	s.refusals = newRefusals(cfg.Journal, s.metrics)
	s.refusals.rates = &s.rates
	return s
}

// Refusals is where a listener reports what it refused before an identity was proven: failed handshakes, wrong protocols.
func (s *Server) Refusals() *Refusals { return s.refusals }

// SessionInfo is one live session.
type SessionInfo struct {
	Gateway  string
	Peer     string // ip:port
	Serial   string // certificate serial, lower-case hex
	ID       audit.EventID
	Opened   time.Time
	NotAfter time.Time // when its certificate ends it, or the grace
	Grace    bool      // its certificate has ended; it is let in while the CA cannot issue
	Agent    string    // the agent's build as it says; "": an agent of protocol version 1
	Protocol uint16    // version of the session
}

// Sessions gives the sessions that have been admitted, in no order.
func (s *Server) Sessions() []SessionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]SessionInfo, 0, len(s.sessions))
	for _, c := range s.sessions {
		if info, ok := c.info(); ok {
			list = append(list, info)
		}
	}
	return list
}

// Run polls the registry's revision and flushes the aggregated refusals until ctx ends. Sessions of gateways that are no longer
// admitted are cut within two polls, and at once after a Nudge. While the registry cannot be asked, or answers too late, the sessions go on,
// for at most Limits.Blind, a poll and a question; then all are cut, since a revocation could hide behind the silence. Cutting never waits for the journal. It returns nil.
func (s *Server) Run(ctx context.Context) error {
	var flushing sync.WaitGroup // apart from the polls: a journal that hangs must not hide a revocation
	flushing.Go(func() { s.refusals.run(ctx, s.log) })
	defer flushing.Wait()
	poll := time.NewTicker(s.limits.Poll)
	defer poll.Stop()
	again := time.NewTicker(time.Minute)
	defer again.Stop()
	idle := time.NewTicker(idleAfter)
	defer idle.Stop()
	seen := sight{revision: -1, at: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			seen.revision = -1 // a gateway's validity also ends by the clock, which moves no revision
			continue
		case now := <-idle.C:
			for _, c := range s.all() {
				c.poke(now)
			}
			continue
		case <-poll.C:
		case <-s.nudged:
		}
		var err error
		if seen, err = s.look(ctx, seen); err != nil && ctx.Err() == nil && time.Since(seen.at) >= s.limits.Blind {
			s.log.Error("registry cannot be asked; all sessions are cut", "since", seen.at, "error", err)
			s.cutAll(endBlind)
		}
		s.heedClock(time.Now())
	}
}

// heedClock does what is due whether or not the registry answers.
func (s *Server) heedClock(now time.Time) {
	s.relieve(now)
	s.cutExpired(now)
}

// relieve looks whether publishes wait too long for the journal. Then CONNECTs are turned away, and who waits is asked not to come back at once
// should its connection end. No session is ended for the load: a gateway that is connected is slowed down by its window, and its
// alarms come first; one that is sent away has no way for them.
func (s *Server) relieve(now time.Time) {
	l := s.queue.load()
	over := l.delay >= s.limits.Overload
	if was := s.overloaded.Swap(over); was != over {
		s.log.Warn("publishes wait for the journal", "overloaded", over, "delay", l.delay, "bytes", l.waiting)
	}
	if !over {
		return
	}
	for _, c := range s.all() {
		c.mu.Lock()
		due := c.flight > 0 && now.Sub(c.hinted) >= hintAgain
		c.mu.Unlock()
		if due && c.hint(hintUnable) {
			c.mu.Lock()
			c.hinted = now
			c.mu.Unlock()
		}
	}
}

// Nudge makes Run look at the registry now instead of at its next poll: for changes that this process has made itself. It never blocks.
func (s *Server) Nudge() {
	select {
	case s.nudged <- struct{}{}:
	default:
	}
}

// Push sends a gateway's documents again, which have changed. It asks for them, which may take Limits.Ask, and waits for no peer: one that
// does not read gets them when it subscribes the next time, like one that has no session here.
func (s *Server) Push(ctx context.Context, gateway string) error {
	s.mu.Lock()
	c := s.sessions[gateway]
	s.mu.Unlock()
	if c == nil || s.down == nil || !c.asked.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.Ask)
	defer cancel()
	docs, err := s.down(ctx, gateway)
	if err != nil {
		return fmt.Errorf("documents for gateway %s: %w", gateway, err)
	}
	for _, d := range docs {
		if len(d.Body) > telemetry.MaxDocument {
			return fmt.Errorf("document %s for gateway %s has %d bytes; at most %d", d.Doc, gateway, len(d.Body), telemetry.MaxDocument)
		}
		if !c.offer(appendPublish(nil, telemetry.DownTopic(gateway, d.Doc), d.Body)) {
			return nil
		}
	}
	return nil
}

// admit takes what the registry says of the session's gateway.
func (c *session) admit(adm registry.Admission) {
	c.lanes.Store(uint32(adm.Lanes))
	c.grant.Store(&adm)
	if was := c.quarantined.Swap(adm.Quarantined); was != adm.Quarantined {
		c.srv.log.Warn("what a gateway publishes is marked, or no more", "gateway", c.id.gateway, "quarantined", adm.Quarantined)
	}
}

func (s *Server) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*session, 0, len(s.sessions))
	for _, c := range s.sessions {
		list = append(list, c)
	}
	return list
}

func (s *Server) cutAll(reason string) {
	for _, c := range s.all() {
		c.stop(reason, true)
	}
}

// cutExpired ends sessions by the wall clock, at the end of a certificate or of a gateway's validity; each session's own timer does not notice when that clock is set. Sessions under grace also
// end once the CA has been well for long enough.
func (s *Server) cutExpired(now time.Time) {
	over := s.grace.over(now)
	for _, c := range s.all() {
		if !now.Before(c.id.ends) || c.id.late && over {
			c.stop(endExpired, true)
		}
		if adm := c.grant.Load(); adm != nil && !adm.Until.IsZero() && !now.Before(adm.Until) {
			s.log.Warn("a gateway's validity is over; its session is cut", "gateway", c.id.gateway, "until", adm.Until)
			c.stop(endWindow, true)
		}
	}
}

// Drain stops reading on every connection, answers what is committed, journals the ends of the sessions and the aggregated
// refusals, and returns when the last connection is gone. When ctx ends first, the remaining ones are cut and its error returned.
// New connections are closed from its first moment. Run may have ended before.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	for c := range s.waiting { // nothing of theirs is under way
		c.stop(endDraining, true)
	}
	s.mu.Unlock()
	all := s.all()
	for _, c := range all {
		c.hint(hintLeast + time.Duration(len(all))*hintEach) // they would come back all at once, and again and again until the next start
		c.stop(endDraining, false)
	}
	gone := make(chan struct{})
	go func() { s.active.Wait(); close(gone) }()
	var err error
	select {
	case <-gone:
	case <-ctx.Done():
		err = context.Cause(ctx)
		s.cutAll(endDraining)
		select {
		case <-gone:
		case <-time.After(s.limits.Linger):
		}
	}
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.limits.Ask)
	defer cancel()
	if ferr := s.refusals.flush(flush); ferr != nil && err == nil {
		err = ferr
	}
	return err
}

// Describe and Collect make the server a prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) { s.metrics.describe(ch) }

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) { s.metrics.collect(ch) }

func peerOf(conn net.Conn) string {
	if addr := conn.RemoteAddr(); addr != nil {
		return addr.String()
	}
	return "unknown"
}
