package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// link is one MQTT connection, with a paho client of its own that dies with it. One goroutine (pump) owns all that is not a channel.
type link struct {
	u      *Uplink
	t      *transport
	guard  *guard
	client paho.Client
	named  bool          // this connection's CONNECT names what the agent speaks
	up     bool          // between CONNACK and our DISCONNECT
	lost   chan struct{} // closed when paho has handled all that it had received before the peer ended the connection

	inbox chan paho.Message // what the server pushed
	jobs  chan job          // to the one goroutine that calls paho's Publish, which may block as long as a write may
	sent  chan paho.Token   // its answers

	flight   []flight // in the order of sending, which is that of the PUBACKs
	bytes    int      // of the frames in flight
	pace     pace
	taken    bool // something that was published is acknowledged
	queue    []buffer.Batch
	held     []buffer.Batch    // their sealing record cannot be had at the moment
	missing  map[[16]byte]bool // the sealing records that held waits for
	brought  map[[16]byte]bool // sealing records published on this connection
	topics   [telemetry.LaneCount]string
	bringing map[buffer.ID]bool // sent once more, not acknowledged
	trying   *buffer.ID         // refused before, and sent again; nil: none is on its way
	kept     []buffer.ID        // acknowledged on a provisional session; the buffer still holds them as taken
	retry    <-chan time.Time   // when held, and a buffer that failed, is tried again
	empty    bool               // the last Take gave nothing
	more     []buffer.ID        // scratch
}

type job struct {
	topic   string
	payload []byte
}

// flight is a packet that waits for its acknowledgement.
type flight struct {
	token paho.Token
	at    time.Time
	batch bool // else a sealing record or the SUBSCRIBE
	id    buffer.ID
	size  int
}

// inboxSize bounds the documents that wait for the pump. The server pushes a handful at SUBSCRIBE.
const inboxSize = 16

// maxBrought is how many sealing records one connection carries, a little below the server's limit; then a new one is made.
const maxBrought = 4000

func newLink(u *Uplink, t *transport) *link {
	l := &link{
		u: u, t: t, guard: newGuard(t.conn, u.timing.write), lost: make(chan struct{}), inbox: make(chan paho.Message, inboxSize),
		pace: pace{most: windowStart}, jobs: make(chan job), sent: make(chan paho.Token, 1), missing: make(map[[16]byte]bool), brought: make(map[[16]byte]bool), bringing: make(map[buffer.ID]bool),
	}
	for lane := range l.topics {
		l.topics[lane] = telemetry.UpTopic(t.gateway, telemetry.Lane(lane))
	}
	o := paho.NewClientOptions()
	o.AddBroker("tcp://" + t.server) // a label: the connection is made already
	o.SetCustomOpenConnectionFn(l.hand)
	o.SetClientID(t.gateway)
	o.SetProtocolVersion(4)
	if l.named = u.named(t.server, time.Now()); l.named {
		o.SetUsername(u.hello.String())
	}
	o.SetCleanSession(true)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetResumeSubs(false)
	o.SetStore(paho.NewMemoryStore())
	o.SetConnectTimeout(u.timing.handshake)
	o.SetWriteTimeout(u.timing.ack) // of a publish that waits for its turn; the guard has the deadlines of writes
	o.SetKeepAlive(keepAlive)
	o.SetPingTimeout(u.timing.ack) // on a slow line the answer waits behind what was sent before
	// In order, and so in paho's own goroutine: by the time it reports the loss, deliver has seen every packet that came before,
	// so that a refusal is known before the batches in flight are given back. deliver never blocks.
	o.SetOrderMatters(true)
	o.SetDefaultPublishHandler(l.deliver)
	o.SetConnectionLostHandler(func(paho.Client, error) { close(l.lost) })
	l.client = paho.NewClient(o)
	return l
}

// hand gives paho the connection that was made before.
func (l *link) hand(*url.URL, paho.ClientOptions) (net.Conn, error) { return l.guard, nil }

// connect says CONNECT on the connection made before, and SUBSCRIBE.
func (l *link) connect(ctx context.Context) error {
	token := l.client.Connect()
	timer := time.NewTimer(l.u.timing.handshake)
	defer timer.Stop()
	select {
	case <-token.Done():
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("server %s: no CONNACK within %s", l.t.server, l.u.timing.handshake)
	}
	if err := token.Error(); err != nil {
		if errors.Is(err, packets.ErrorRefusedNotAuthorised) && l.u.cfg.NotAdmitted != nil {
			l.u.cfg.NotAdmitted()
		}
		if errors.Is(err, packets.ErrorRefusedServerUnavailable) {
			l.u.asked.unavailable = true
		}
		if errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) && l.named {
			l.u.anonymous(l.t.server, time.Now())
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("it closed the connection instead of admitting this gateway; its audit log says why (%w)", err)
		}
		return fmt.Errorf("server %s: %w", l.t.server, l.u.explain(err))
	}
	l.up = true
	go l.publisher()
	// Of a connection that ended just as it was admitted paho's Subscribe knows nothing, and waits its write timeout, a minute. So may its
	// goroutine; the pump sees the end at once.
	subscribed := make(chan paho.Token, 1)
	go func() { subscribed <- l.client.Subscribe(telemetry.DownFilter(l.t.gateway), 0, nil) }()
	select {
	case token := <-subscribed:
		l.flight = append(l.flight, flight{token: token, at: time.Now()})
	case <-l.guard.gone:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// publisher calls paho's Publish for the pump, so that a stalled network stalls this goroutine and not the pump. It outlives a lost
// connection by one acknowledgement's time at most.
func (l *link) publisher() {
	for j := range l.jobs {
		l.sent <- l.client.Publish(j.topic, 1, false, j.payload)
	}
}

// close gives back what was not acknowledged and leaves nothing behind.
func (l *link) close() {
	select {
	case <-l.guard.gone:
		// Refusals and PUBACKs may still be on their way through paho. It reports a loss that it has not caused itself.
		if l.up && !errors.Is(l.guard.err, net.ErrClosed) {
			timer := time.NewTimer(l.u.timing.drain)
			select {
			case <-l.lost:
			case <-timer.C:
			}
			timer.Stop()
		}
	default:
	}
	_ = l.guard.Close()
	close(l.jobs)
	l.client.Disconnect(250) // frees what paho holds; nothing can be sent any more
	l.settle()
	var back []buffer.ID
	for _, f := range l.flight {
		if f.batch && !l.bringing[f.id] {
			back = append(back, f.id)
		}
	}
	for _, b := range append(l.queue, l.held...) {
		if !l.bringing[b.ID] {
			back = append(back, b.ID)
		}
	}
	back = append(back, l.kept...) // nothing is deleted on the word of a session that stayed provisional: they are sent again
	l.flight, l.queue, l.held, l.kept = nil, nil, nil, nil
	if len(back) > 0 {
		l.u.cfg.Buffer.Release(back...)
	}
}

// pump sends and acknowledges until the connection is lost, the certificate has changed or ctx ends.
func (l *link) pump(ctx context.Context) (*transport, error) {
	identity := time.NewTicker(l.u.timing.identity)
	defer identity.Stop()
	next := succession{l: l}
	defer next.abandon()
	settling, stopSettling := l.settling()
	defer stopSettling()
	dialCtx, stopDialing := context.WithCancel(ctx)
	defer stopDialing()
	_, turned := l.u.way()
	next.look(dialCtx)
	for {
		l.read()
		if err := l.sweep(); err != nil {
			return nil, err
		}
		if err := l.fill(ctx); err != nil {
			return nil, l.over(err)
		}
		l.u.note(func(s *Status) { s.InFlight = len(l.flight) })
		var changed <-chan struct{}
		if l.empty && l.room() {
			changed = l.u.cfg.Buffer.Changed()
		}
		head, overdue, stop := l.head()
		select {
		case <-head:
		case <-changed:
			l.empty = false
		case <-l.retry:
			l.again()
		case m := <-l.inbox:
			l.document(m)
		case <-l.guard.gone:
			return nil, l.over(nil)
		case <-overdue:
			return nil, fmt.Errorf("server %s: no acknowledgement within %s; the connection counts as dead", l.t.server, l.u.timing.ack)
		case <-settling:
			if err := l.become(); err != nil {
				stop()
				return nil, err
			}
			if l.t.judge == nil {
				settling = nil
			}
		case <-turned:
			_, turned = l.u.way()
			next.abandon() // its dial ends by itself
			next.look(dialCtx)
		case <-identity.C:
			next.look(dialCtx)
			l.u.cfg.Buffer.Rest(l.u.barred.now(time.Now()))
		case t := <-next.dialing:
			next.dialing = nil
			if t != nil {
				stop()
				return t, l.drain()
			}
		case <-ctx.Done():
			stop()
			return nil, l.drain()
		}
		stop()
	}
}

// drain waits for the PUBACKs in flight, a bounded time, and says goodbye.
func (l *link) drain() error {
	timer := time.NewTimer(l.u.timing.drain)
	defer timer.Stop()
	for {
		l.read()
		if err := l.sweep(); err != nil {
			return err
		}
		if len(l.flight) == 0 {
			break
		}
		select {
		case <-l.flight[0].token.Done():
			continue
		case m := <-l.inbox:
			l.document(m)
			continue
		case <-l.guard.gone:
			return l.over(nil)
		case <-timer.C:
		}
		break
	}
	l.client.Disconnect(250) // milliseconds
	l.up = false             // paho reports no loss after this
	return nil
}

// over gives the reason of a connection's end. What the connection itself has met says more than what paho made of it.
func (l *link) over(err error) error {
	select {
	case <-l.guard.gone:
		if err == nil || errors.Is(err, errGone) {
			err = l.guard.err
		}
	default:
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("server %s: it closed the connection; its audit log says why", l.t.server)
	}
	return fmt.Errorf("server %s: connection lost: %w", l.t.server, l.u.explain(err))
}

// settle takes in what had arrived before the connection was lost: refusals first, then every acknowledgement in flight, also those
// behind one that is missing.
func (l *link) settle() {
	l.read()
	rest := l.flight[:0]
	l.more = l.more[:0]
	for _, f := range l.flight {
		if done, err := f.answered(l.t.gateway); !done || err != nil {
			rest = append(rest, f)
		} else if f.batch {
			l.arrived(f.id)
		}
	}
	l.flight = rest
	l.acknowledge()
}

// head gives what the pump waits for at the front of the flight: its acknowledgement, or its being overdue.
func (l *link) head() (done <-chan struct{}, overdue <-chan time.Time, stop func()) {
	if len(l.flight) == 0 {
		return nil, nil, func() {}
	}
	f := l.flight[0]
	// While acknowledgements come, one after the other, the line is slow and not dead.
	since := f.at
	if l.pace.heard.After(since) {
		since = l.pace.heard
	}
	timer := time.NewTimer(time.Until(since.Add(l.u.timing.ack)))
	return f.token.Done(), timer.C, func() { timer.Stop() }
}

// sweep acknowledges the run of acknowledged batches at the front of the flight, in one call.
func (l *link) sweep() error {
	l.more = l.more[:0]
	n := 0
	var failed error
	for ; n < len(l.flight); n++ {
		f := l.flight[n]
		var done bool
		if done, failed = f.answered(l.t.gateway); !done || failed != nil {
			break
		}
		if f.batch {
			l.arrived(f.id)
			l.bytes -= f.size
		}
		_, subscribed := f.token.(*paho.SubscribeToken)
		l.taken = l.taken || !subscribed
		l.pace.answered(f.at, time.Now(), f.size)
	}
	l.flight = append(l.flight[:0], l.flight[n:]...)
	l.acknowledge()
	if failed != nil {
		return l.over(failed)
	}
	return nil
}

// published reports whether a publish is in flight.
func (l *link) published() bool {
	for _, f := range l.flight {
		if _, subscribe := f.token.(*paho.SubscribeToken); !subscribe {
			return true
		}
	}
	return false
}

// arrived notes a batch for acknowledge, unless the buffer has it acknowledged already.
func (l *link) arrived(id buffer.ID) {
	if l.bringing[id] {
		delete(l.bringing, id)
		l.u.note(func(s *Status) { s.Again++ })
		return
	}
	l.tried(id)
	l.more = append(l.more, id)
}

// answered reports whether the server has answered, and the error when the answer is none or a refusal.
func (f flight) answered(gateway string) (bool, error) {
	select {
	case <-f.token.Done():
	default:
		return false, nil
	}
	if err := f.token.Error(); err != nil {
		return true, fmt.Errorf("%w: %w", errGone, err)
	}
	if sub, ok := f.token.(*paho.SubscribeToken); ok && sub.Result()[telemetry.DownFilter(gateway)] >= 0x80 {
		return true, errors.New("the server refused the subscription to the gateway's own documents")
	}
	return true, nil
}

var (
	errWaiting = errors.New("not acknowledged yet")
	errGone    = errors.New("connection is over")
)

// maxKept is how many acknowledgements and refusals are remembered of provisional sessions; then no more is sent until the time is known.
const maxKept = 65_536

// settling ticks while the session is provisional.
func (l *link) settling() (<-chan time.Time, func()) {
	if l.t.judge == nil {
		return nil, func() {}
	}
	t := time.NewTicker(l.u.timing.least)
	return t.C, t.Stop
}

// become makes a provisional session a full one once the clock is trusted: the server's certificate is judged by it, dates and all. Then
// what was acknowledged before is acknowledged to the buffer. A certificate that does not hold ends the session.
func (l *link) become() error {
	m := l.u.cfg.Moment()
	if l.t.judge == nil || m.Floor {
		return nil
	}
	if err := l.t.judge(m.Time); err != nil {
		return fmt.Errorf("server %s: now that the time is known: %w", l.t.server, err)
	}
	l.t.judge = nil
	l.more = append(l.more[:0], l.kept...)
	l.kept = nil
	l.acknowledge()
	l.u.settleDoubted()
	l.u.note(func(s *Status) { s.Provisional = false })
	l.u.log.Info("the time is known; the session counts in full", "server", l.t.server)
	return nil
}

func (l *link) acknowledge() {
	if len(l.more) == 0 {
		return
	}
	if l.t.judge != nil {
		l.kept = append(l.kept, l.more...)
		l.more = l.more[:0]
		return
	}
	l.u.cfg.Buffer.Ack(l.more...)
	l.u.note(func(s *Status) {
		s.Acknowledged += uint64(len(l.more))
		now := time.Now()
		for _, id := range l.more {
			l.u.barred[id.Lane].refused = 0
			s.Lanes[id.Lane].Acknowledged++
			s.Lanes[id.Lane].AckedAt = now
		}
	})
	l.more = l.more[:0]
}
