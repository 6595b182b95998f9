// Package bedside is a bedside monitor that owes nothing to the product it feeds. It has its own HL7 v2.6 writer (IHE PCD-01 for readings,
// chapter 7's waveforms), its own physiological simulator, its own reader of PhysioNet recordings, its own MLLP client, and it keeps its own
// account of what it sent and what was acknowledged. It imports nothing of wardlink, so that whoever compares its account with
// what the hospital reads compares two things that were made apart.
//
// A Source gives rows of readings or of waveforms, the monitor writes each row as one message, sends it, and waits for that message's
// acknowledgement before it sends the next. What is not acknowledged is sent again with the same bytes, over a new connection.
//
// Every message is marked as training data (MSH-11 = T): nothing that this package sends is a patient's present state.
package bedside

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"
)

// Config is what one monitor needs to know.
type Config struct {
	Address string      // host:port of the MLLP listener; required
	TLS     *tls.Config // nil: plain TCP, which is allowed to loopback addresses only

	Patient Patient        // whom the monitor is attached to; required
	Ward    string         // PV1-3.1, the point of care; may be empty
	Bed     string         // PV1-3.3; may be empty
	Device  uint64         // the monitor's EUI-64 (MSH-3, OBX-18); required
	Zone    *time.Location // the zone that times are written in; nil is UTC

	// Source gives the rows to send, oldest first; required. A row is not sent before its time has come, so a source
	// whose rows lie in the past is sent as fast as acknowledgements allow, and one that starts now runs in real time.
	Source Source

	// Speed is how fast rows follow each other, in seconds of their own time for each second that passes: 1 is real time. 0 sends
	// as fast as acknowledgements allow.
	Speed float64

	AckTimeout time.Duration // how long one dial, or one message with its acknowledgement, may take; 0 is 10 s
	Log        *slog.Logger  // nil discards

	// Dial opens the connection below TLS; nil is a net.Dialer. Tests use it.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Patient is the subject as the monitor names it in PID-3.
type Patient struct {
	ID        string `json:"id"`        // PID-3.1
	Namespace string `json:"namespace"` // PID-3.4.1, the assigning authority's local name
	OID       string `json:"oid"`       // PID-3.4.2, the assigning authority's ISO object identifier
}

// System is the assigning authority as FHIR writes it in Identifier.system.
func (p Patient) System() string { return "urn:oid:" + p.OID }

// Source is a sequence of rows, oldest first.
type Source = iter.Seq[Row]

// Row becomes one message: the readings of one instant, or waveforms of about a second. It has one of the two.
type Row struct {
	At     time.Time // of the readings, or of the earliest sample; milliseconds count, finer parts are cut off
	Values []Value
	Waves  []Wave
}

// complete is when the last of the row is measured. A monitor cannot send it before.
func (r Row) complete() time.Time {
	at := r.At
	for _, w := range r.Waves {
		if end := w.At.Add(w.Span()); end.After(at) {
			at = end
		}
	}
	return at
}

// Value is one measured value of a row.
type Value struct {
	Signal Signal
	Text   string // decimal text; "" means that there is no reading
}

// Monitor sends one source's rows to one MLLP listener.
type Monitor struct {
	cfg     Config
	writer  writer
	client  *client
	account *Account
	log     *slog.Logger
}

// New checks cfg and makes a monitor. It opens no connection.
func New(cfg Config) (*Monitor, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("bedside monitor: %w", err)
	}
	if cfg.Zone == nil {
		cfg.Zone = time.UTC
	}
	if cfg.AckTimeout == 0 {
		cfg.AckTimeout = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// The prefix keeps MSH-10 unique over restarts of the monitor, with room for a counter in the 20 characters that
	// older receivers grant the field.
	var prefix [5]byte
	if _, err := rand.Read(prefix[:]); err != nil {
		return nil, fmt.Errorf("bedside monitor: control id: %w", err)
	}
	return &Monitor{
		cfg: cfg,
		writer: writer{
			patient: cfg.Patient, ward: cfg.Ward, bed: cfg.Bed, zone: cfg.Zone,
			device: fmt.Sprintf("%016X", cfg.Device),
			prefix: fmt.Sprintf("%X", prefix),
		},
		client:  newClient(cfg),
		account: &Account{patient: cfg.Patient},
		log:     cfg.Log,
	}, nil
}

func (c *Config) check() error {
	host, _, err := net.SplitHostPort(c.Address)
	switch {
	case err != nil:
		return fmt.Errorf("address %q: %w; expected host:port", c.Address, err)
	case c.TLS == nil && !loopback(host):
		return fmt.Errorf("address %q is not loopback; plain MLLP would show readings to the network: set TLS", c.Address)
	case c.Source == nil:
		return errors.New("no source; use Simulate or Recording.Replay")
	case c.Device == 0:
		return errors.New("no device; expected an EUI-64")
	case c.Patient.ID == "" || c.Patient.OID == "":
		return errors.New("patient: expected an id and the OID of its assigning authority")
	case c.AckTimeout < 0:
		return fmt.Errorf("acknowledgement timeout %s is negative", c.AckTimeout)
	case !(c.Speed >= 0 && c.Speed <= maxSpeed):
		return fmt.Errorf("speed %g: expected 0 to %g", c.Speed, float64(maxSpeed))
	}
	for _, text := range []string{c.Patient.ID, c.Patient.Namespace, c.Patient.OID, c.Ward, c.Bed} {
		// A carriage return in a field would begin a new segment.
		if strings.ContainsFunc(text, unicode.IsControl) {
			return errors.New("patient, ward or bed holds a control character")
		}
	}
	return nil
}

// maxSpeed is more than any link can keep up with.
const maxSpeed = 1e6

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// Run sends every row and returns nil once the source has ended and each message was acknowledged or refused for good. It
// tries for as long as ctx lives; then it returns ctx's error and the account shows what was sent without acknowledgement.
// Run is called once.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.client.close()
	var began, first time.Time
	for row := range m.cfg.Source {
		due := row.complete()
		if first.IsZero() {
			began, first = time.Now(), due
		}
		if m.cfg.Speed > 0 {
			passed := time.Duration(float64(due.Sub(first)) / m.cfg.Speed)
			due = later(due, began.Add(passed))
		}
		if err := waitUntil(ctx, due); err != nil {
			return err
		}
		if err := m.sendRow(ctx, row); err != nil {
			return err
		}
	}
	return nil
}

// sendRow enters the row into the account before its first byte can leave: from then on the receiver may have it.
func (m *Monitor) sendRow(ctx context.Context, row Row) error {
	id, message := m.writer.message(row, time.Now())
	if err := m.client.connect(ctx); err != nil {
		return err
	}
	entry := m.account.send(row)
	switch err := m.client.deliver(ctx, id, message); {
	case errors.Is(err, errRefused):
		m.log.Warn("message was refused for good", "control_id", id, "error", err)
	case err != nil:
		return err
	default:
		m.account.acknowledge(entry)
	}
	return nil
}

// Account is the monitor's own list of what it sent. It grows while Run runs and may be read at any time.
func (m *Monitor) Account() *Account { return m.account }

// Traffic is what the monitor's connection has lived through so far.
func (m *Monitor) Traffic() Traffic { return m.client.traffic() }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func waitUntil(ctx context.Context, at time.Time) error {
	return pause(ctx, time.Until(at))
}

// pause waits for d, or less if ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
