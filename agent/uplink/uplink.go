// Package uplink carries sealed batches from the gateway's buffer to the hospital's ingest endpoint over MQTT 3.1.1 and TLS 1.3.
// It is the product's only importer of paho's client.
//
// The buffer is the only store: paho keeps nothing beyond a connection and never reconnects by itself. A batch is taken from the
// buffer, published at QoS 1 and stays taken until its PUBACK, which the server sends after its fsync: only then the buffer hears
// Ack. Whatever ends the connection first gives the batch back with Release, so that it is sent again: at least once, and the
// server knows a batch by its id. A batch that the server refuses is parked; a Buffer with Parked has it tried again, seldom, one at a time
// and after all else.
package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"wardlink/agent/egress"
	"wardlink/buffer"
	"wardlink/internal/build"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

// Receipts is where the fate of a taken batch is told. Every batch that Take gives out meets exactly one of the three.
type Receipts interface {
	Ack(ids ...buffer.ID)             // the hospital has them durably
	Release(ids ...buffer.ID)         // not known to have arrived: give them out again
	Park(id buffer.ID, reason string) // refused, or not fit to be sent: keep, do not give out again
}

// Buffer is where batches wait.
type Buffer interface {
	Receipts
	// Began says that a connection begins: of what waits now, all but the newest is history, and comes behind what is live.
	Began()
	// Rest keeps lanes from Take until it is called again; bit n stands for lane n.
	Rest(lanes uint8)
	// Take gives out at most max batches, the most urgent first, and marks them as taken.
	Take(max int) ([]buffer.Batch, error)
	// Changed is signalled after there may be more to take.
	Changed() <-chan struct{}
}

// Urgency is what a Buffer may have besides: while it is true, waits between attempts to connect stay below 5 s.
type Urgency interface {
	Urgent() bool // an alarm waits to be sent
}

// Parked is what a Buffer may have besides: batches that were refused, one at a time, whose turn it is to be sent once more. They meet the fates
// of what Take gives out.
type Parked interface {
	TakeParked() (b buffer.Batch, ok bool, err error)
}

// ErrNoSealing is what Config.Sealing wraps when a sealing record is gone for good. Batches that need it are parked: nobody can open
// them without it, and they must not hold up the others.
var ErrNoSealing = errors.New("sealing record does not exist")

// Config is what an Uplink is made of. All fields but Current, Way, Down, Again, NotAdmitted, Moment and Log are required.
type Config struct {
	Servers []string // host:port, tried in this order
	// Current gives the servers to try now, in their order, at every attempt to connect; nil: Servers. It must not block. Whoever changes
	// what it gives calls Move.
	Current func() []string
	// Way leads to the servers, and knows which of them did not work of late; nil: directly.
	Way    *egress.Way
	Server spiffe.ID // the identity that the server must prove, whatever its address
	Roots  *x509.CertPool
	// Identity gives the gateway's certificate, its key in the TPM, and its id. It is asked at every attempt to connect and every
	// few seconds meanwhile, so it must be quick; when the certificate changes, the connection moves to the new one.
	Identity func() (cert tls.Certificate, gateway string, err error)
	Buffer   Buffer
	// Sealing gives the signed sealing record of a period; it may sign it with the TPM first. An error means "later", unless it
	// wraps ErrNoSealing.
	Sealing func(ctx context.Context, id [16]byte) (signed []byte, err error)
	// Down takes the documents that the server pushes, except refusals. It must not block for long: meanwhile nothing is sent. nil
	// drops them.
	Down func(doc telemetry.Doc, body []byte)
	// Again gives out delivered batches that the hospital asks for once more, at most max; none: there are no more now. They are sent when nothing
	// else waits, few at a time, and what becomes of them is told to nobody: the hospital asks again at the next connection. nil: never.
	Again func(max int) ([]buffer.Batch, error)
	// NotAdmitted is called when the server does not admit this gateway's certificate (CONNACK 5), which has no room for a reason: who
	// has issued it can say more. It must not block; it may be nil.
	NotAdmitted func()
	// Moment is what is known of the present, for judging the server's certificate; nil: the system's clock, trusted. While it is a floor
	// a session is provisional: what the server acknowledges stays in the buffer until the clock is trusted and the certificate's dates
	// have been checked by it, and the session has become a full one. What it refuses is sent again on a full one and not parked before.
	Moment func() spiffe.Moment
	Log    *slog.Logger // nil discards
}

// timing are the product's waits, in one place so that tests can see them end.
type timing struct {
	handshake time.Duration // TCP, TLS and CONNECT each at most; a TPM may take seconds to sign
	write     time.Duration // until the network has taken 16 KB, or a packet
	ack       time.Duration // until the next acknowledgement, or the answer to a ping; then the connection counts as dead
	drain     time.Duration // for the PUBACKs in flight, at shutdown and before a change of certificate
	identity  time.Duration // between two looks at Identity
	sealing   time.Duration // until a sealing record or a batch that could not be had is asked for again
	stable    time.Duration // a connection that lived this long resets the backoff
	least     time.Duration // backoff: first ceiling
	most      time.Duration // backoff: last ceiling
	urgent    time.Duration // backoff: ceiling while an alarm waits
	asked     time.Duration // the same where the server asked for time
}

var defaultTiming = timing{
	handshake: 60 * time.Second, write: 30 * time.Second, ack: 60 * time.Second, drain: 5 * time.Second,
	identity: 10 * time.Second, sealing: 5 * time.Second, stable: 30 * time.Second,
	least: time.Second, most: 5 * time.Minute, urgent: 5 * time.Second, asked: 30 * time.Second,
}

const (
	window    = 64 // publishes in flight
	keepAlive = 30 * time.Second
)

// Uplink is the one connection of a gateway to its hospital.
type Uplink struct {
	cfg    Config
	log    *slog.Logger
	timing timing
	// open makes the transport to one server: TCP and TLS. A field so that the waits can be tested on a fake clock, without sockets.
	open func(ctx context.Context, server string, cert tls.Certificate) (net.Conn, error)
	// doubted was refused on provisional sessions and stays taken: it is neither parked on the word of a server that nobody could judge,
	// nor does it end one session after the other. A full session sends it again. Of Run's goroutine alone.
	doubted []buffer.ID
	// unwanted was sent again and refused: not a third time, or each connection would end with it. Of Run's goroutine alone.
	unwanted map[buffer.ID]bool

	barred restraint // of Run's goroutine alone
	asked  asked     // of Run's goroutine alone

	hello telemetry.Hello
	mute  map[string]time.Time // servers that take no hello, and until when that is believed; of Run's goroutine and its dialers, under mu

	mu     sync.Mutex
	route  uint64        // how often Move was called
	turned chan struct{} // closed, and made anew, when route grows
	status Status
}

// Status is what the uplink knows of itself.
type Status struct {
	Connected   bool      `json:"connected"`
	Server      string    `json:"server"`           // the server of the connection, or of the last one
	Since       time.Time `json:"since"`            // since when Connected is what it is
	Proxy       string    `json:"proxy,omitempty"`  // the proxy that all connections go through
	Before      []Fault   `json:"before,omitempty"` // while connected: the servers that come before Server
	InFlight    int       `json:"in_flight"`        // publishes without PUBACK
	LastError   string    `json:"last_error"`       // "" while all is well; says what to mend
	LastErrorAt time.Time `json:"last_error_at"`

	// Provisional says that the clock is not trusted yet: what the server has acknowledged is kept all the same.
	Provisional bool `json:"provisional,omitempty"`

	// What the server answered to the agent's hello. A server of the first release answers nothing, and speaks version 1.
	Protocol    uint16 `json:"protocol,omitempty"`      // version of the session
	ServerBuild string `json:"server_build,omitempty"`  // the server's release, as it says
	ServerSpeak string `json:"server_speaks,omitempty"` // its range of versions, such as 1-2

	Route        uint64 `json:"route"`        // what Move gave when the session's connection was about to be made
	Connects     uint64 `json:"connects"`     // sessions that the server has admitted
	Published    uint64 `json:"published"`    // batches handed to the network
	Acknowledged uint64 `json:"acknowledged"` // batches that the hospital has
	Parked       uint64 `json:"parked"`       // batches refused, or damaged
	Again        uint64 `json:"again"`        // batches that the hospital had, lost, and has again
	Dropped      uint64 `json:"dropped"`      // documents that came faster than they could be taken

	Fault string                           `json:"fault"` // class of the last error, a constant text without address or cause; "" before the first
	Lanes [telemetry.LaneCount]LaneTraffic `json:"lanes"`
}

// LaneTraffic is what of one lane went out and was acknowledged.
type LaneTraffic struct {
	Published    uint64    `json:"published"`
	PublishedAt  time.Time `json:"published_at"` // zero before the first
	Acknowledged uint64    `json:"acknowledged"`
	AckedAt      time.Time `json:"acknowledged_at"` // zero before the first
}

// New checks the configuration. Nothing is started before Run.
func New(cfg Config) (*Uplink, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("uplink: no server is configured; expected at least one host:port")
	}
	for _, s := range cfg.Servers {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("uplink: server %q; expected host:port, such as ingest.ward.example:8883", s)
		}
	}
	if cfg.Server.Kind != spiffe.Service || cfg.Server.TrustDomain == "" || cfg.Server.Name == "" {
		return nil, fmt.Errorf("uplink: server identity %s; expected a service of a trust domain", cfg.Server)
	}
	if cfg.Roots == nil || cfg.Identity == nil || cfg.Buffer == nil || cfg.Sealing == nil {
		return nil, errors.New("uplink: roots, identity, buffer and sealing are required")
	}
	if cfg.Moment == nil {
		cfg.Moment = func() spiffe.Moment { return spiffe.Moment{Time: time.Now()} }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	u := &Uplink{cfg: cfg, log: cfg.Log, unwanted: map[buffer.ID]bool{}, timing: defaultTiming, hello: telemetry.OwnHello(build.Version), mute: map[string]time.Time{}, turned: make(chan struct{})}
	u.open = u.openTLS
	u.status.Since = time.Now()
	return u, nil
}

// Status gives the present state. Safe for concurrent use.
func (u *Uplink) Status() Status {
	u.mu.Lock()
	s := u.status
	u.mu.Unlock()
	s.Proxy = u.cfg.Way.Proxy()
	if servers := u.servers(); s.Connected && slices.Contains(servers, s.Server) {
		for _, server := range servers[:slices.Index(servers, s.Server)] {
			fault := Fault{Server: server}
			if at, err := u.cfg.Way.Fault(server); err != nil {
				fault.Error, fault.At = err.Error(), at
			}
			s.Before = append(s.Before, fault)
		}
	}
	return s
}

// Fault is a server that is not used, and why.
type Fault struct {
	Server string    `json:"server"`
	Error  string    `json:"error,omitempty"` // "" when it has not failed of late: it is tried next
	At     time.Time `json:"at"`              // zero where Error is ""
}

// Move says that Current gives other servers now. A connection that stands is kept until one to them is made, which is tried at once and
// then every few seconds; one that is waited for is tried at once. The session that comes of it has this Status.Route, or a greater one.
// Safe for concurrent use; it does not block.
func (u *Uplink) Move() (route uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.route++
	close(u.turned)
	u.turned = make(chan struct{})
	return u.route
}

// way is the present route, and what is closed when it is not the present one any more.
func (u *Uplink) way() (route uint64, turned <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.route, u.turned
}

func (u *Uplink) note(change func(s *Status)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change(&u.status)
}

// fault notes an error for Status, and logs it unless it is the one before.
func (u *Uplink) fault(err error) {
	text := err.Error()
	u.mu.Lock()
	again := u.status.LastError == text
	u.status.LastError, u.status.LastErrorAt, u.status.Fault = text, time.Now(), class(err)
	u.mu.Unlock()
	if !again {
		u.log.Warn("uplink", "error", err)
	}
}

// Run connects, drains the buffer and connects again until ctx ends; then it waits, at most a few seconds, for the PUBACKs in
// flight. It returns nil. Nothing that happens on the network ends it.
func (u *Uplink) Run(ctx context.Context) error {
	wait := backoff{timing: u.timing}
	var next *transport // made already, when the certificate has changed
	for ctx.Err() == nil {
		t := next
		next = nil
		shown := u.leaf()
		_, turned := u.way()
		if t != nil {
			shown = t.leaf
		} else {
			var err error
			if t, err = u.dial(ctx, u.servers); err != nil {
				if ctx.Err() == nil && !errors.Is(err, errMoved) {
					if errors.Is(err, errNoIdentity) { // nothing is wrong yet: the gateway is enrolling, or waits for approval
						u.note(func(s *Status) { s.LastError, s.LastErrorAt, s.Fault = err.Error(), time.Now(), class(err) })
					} else {
						u.fault(err)
					}
					u.pause(ctx, &wait, errors.Is(err, errNoIdentity), shown, turned)
				}
				continue
			}
		}
		var lived time.Duration
		var err error
		before := u.Status()
		var mute bool
		next, lived, mute, err = u.serve(ctx, t)
		switch {
		case u.asked.elsewhere(u.servers(), time.Now()):
			u.cfg.Way.Failed(t.server, errAsked)
		case lived >= u.timing.stable && !mute:
			wait.reset()
			u.cfg.Way.Worked(t.server)
		case u.Status().Acknowledged > before.Acknowledged, u.Status().Parked > before.Parked:
			wait.ease()
		case err != nil && ctx.Err() == nil:
			u.cfg.Way.Failed(t.server, err) // TLS worked and MQTT did not: another server may do better
		}
		if err != nil && ctx.Err() == nil {
			u.fault(err)
		}
		if next == nil && ctx.Err() == nil {
			// Also after a session that the server ended: who is admitted and then kicked must not hammer.
			u.pause(ctx, &wait, false, shown, turned)
		}
	}
	if next != nil {
		_ = next.conn.Close()
	}
	u.settleDoubted()
	return nil
}

// settleDoubted gives back what provisional sessions were refused.
func (u *Uplink) settleDoubted() {
	if len(u.doubted) > 0 {
		u.cfg.Buffer.Release(u.doubted...)
		u.doubted = nil
	}
}

// serve runs one connection to its end. next is not nil when it ended because its successor is ready; mute says that the server admitted us
// and acknowledged nothing of what was sent.
func (u *Uplink) serve(ctx context.Context, t *transport) (next *transport, lived time.Duration, mute bool, err error) {
	l := newLink(u, t)
	defer l.close()
	if err := l.connect(ctx); err != nil {
		return nil, 0, false, err
	}
	began := time.Now()
	u.note(func(s *Status) {
		s.Connected, s.Since, s.Server, s.LastError = true, began, t.server, ""
		s.Provisional, s.Route = t.judge != nil, t.route
		s.Protocol, s.ServerBuild, s.ServerSpeak = telemetry.ProtocolOldest, "", "" // until it says more
		s.Connects++
	})
	u.cfg.Buffer.Rest(u.barred.now(began))
	u.cfg.Buffer.Began()
	u.log.Info("connected", "server", t.server, "gateway", t.gateway)
	if t.judge == nil {
		u.settleDoubted()
	}
	next, err = l.pump(ctx)
	u.note(func(s *Status) { s.Connected, s.Provisional, s.Since, s.InFlight = false, false, time.Now(), 0 })
	return next, time.Since(began), l.published() && !l.taken, err
}
