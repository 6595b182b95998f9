package api

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/durable"
	"wardlink/server/api/client"
)

const (
	// maxStep is how far the server's clock may move against itself before it is no longer vouched for (DESIGN: 48 h). A server that was
	// off for longer cannot tell that from a clock that jumped; an operator can.
	maxStep = 48 * time.Hour
	// vouchInterval is how often the moment is kept that the next start is held against.
	vouchInterval = 10 * time.Minute
)

// ErrDoubt is why no time is signed.
var ErrDoubt = errors.New("the server does not vouch for its clock")

// ClockConfig is what a Clock is made of. Path, Key and Log are required.
type ClockConfig struct {
	Path      string             // of the A/B pair that keeps the last moment vouched for
	Key       ed25519.PrivateKey // the config key
	LastEntry time.Time          // of the journal's last entry before this start; counts where nothing is kept at Path; zero: a new server
	Event     func(audit.Event)  // journals an act of the server's own, now or later
	Log       *slog.Logger
	Now       func() time.Time     // nil: time.Now
	Elapsed   func() time.Duration // monotonic, since any instant; nil: the process's
}

// Clock vouches for the server's clock and signs it for gateways that have none. It is safe for concurrent use.
//
// It is held against itself: within a process's life it may differ from the monotonic clock by maxStep in all, so that no chain of
// smaller steps leads further, and across a restart from the last moment that was vouched for. That moment is kept on disk and does not move on while there is doubt, so that starting the server again
// settles nothing; a clock that is set right does.
type Clock struct {
	cfg ClockConfig

	mu      sync.Mutex
	file    *durable.AB
	ref     time.Time     // the last moment vouched for
	refMono time.Duration // when that was
	first   time.Time     // the first moment that this process vouched for, or an operator's; zero: none yet
	firstAt time.Duration // when that was, on the monotonic clock
	kept    time.Time     // what is on disk
	doubted bool          // at the last look
}

// OpenClock reads the moment that was vouched for last. A pair that is damaged is an error: an operator has to remove it.
func OpenClock(cfg ClockConfig) (*Clock, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Elapsed == nil {
		begun := time.Now()
		cfg.Elapsed = func() time.Duration { return time.Since(begun) }
	}
	c := &Clock{cfg: cfg}
	var data []byte
	var err error
	if c.file, data, err = durable.OpenAB(cfg.Path, 8); err != nil {
		return nil, fmt.Errorf("clock: %w; remove %s.a and %s.b, then the journal's last entry counts", err, cfg.Path, cfg.Path)
	}
	switch {
	case len(data) == 8:
		c.ref = time.UnixMilli(int64(binary.BigEndian.Uint64(data)))
		c.kept = c.ref
	case !cfg.LastEntry.IsZero():
		c.ref = cfg.LastEntry
	default:
		c.ref = cfg.Now()
	}
	c.ref = c.ref.Round(0)
	c.refMono = cfg.Elapsed()
	_, _ = c.vouch()
	return c, nil
}

// vouch gives the present, or ErrDoubt.
func (c *Clock) vouch() (time.Time, error) {
	now, began, err := c.look()
	if began != nil { // outside of the lock: the journal may be slow
		c.cfg.Log.Error("no time is signed for gateways", "error", err)
		c.cfg.Event(*began)
	}
	return now, err
}

// look is vouch; it gives the event of a doubt that begins with it.
func (c *Clock) look() (time.Time, *audit.Event, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, mono := c.cfg.Now().Round(0), c.cfg.Elapsed()
	expected := c.ref.Add(mono - c.refMono)
	if !c.first.IsZero() {
		expected = c.first.Add(mono - c.firstAt)
	}
	if step := now.Sub(expected); step > maxStep || step < -maxStep {
		err := fmt.Errorf("%w: it shows %s, which is %s from where it should stand; set it right, or, if it is right, run: wardlink clock confirm",
			ErrDoubt, now.UTC().Format(time.RFC3339), step.Round(time.Minute))
		if c.doubted {
			return time.Time{}, nil, err
		}
		c.doubted = true
		return time.Time{}, &audit.Event{
			Type: audit.ClockDoubted, Outcome: audit.Failed, Reason: "the server's clock moved more than 48 hours",
			Detail: map[string]string{"shows": now.UTC().Format(time.RFC3339), "expected": expected.UTC().Format(time.RFC3339)},
		}, err
	}
	if c.doubted {
		c.doubted = false
		c.cfg.Log.Info("the server's clock is where it should be again")
	}
	if c.first.IsZero() {
		c.first, c.firstAt = now, mono
	}
	c.move(now, mono)
	return now, nil, nil
}

// move makes now the moment that later ones are held against. Under mu.
func (c *Clock) move(now time.Time, mono time.Duration) {
	c.ref, c.refMono = now, mono
	if d := now.Sub(c.kept); d < vouchInterval && d > -vouchInterval {
		return
	}
	if err := c.file.Store(binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))); err != nil {
		c.cfg.Log.Error("the moment at which the clock was right cannot be kept; the next start is held against an older one", "error", err)
		return
	}
	c.kept = now
}

// Run looks at the clock until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	tick := time.NewTicker(vouchInterval / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			_, _ = c.vouch()
		}
	}
}

// State is what operators see.
func (c *Clock) State() client.Clock {
	now, err := c.vouch()
	if err != nil {
		now = c.cfg.Now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := client.Clock{Now: now.UTC(), Vouched: err == nil, Last: c.ref.UTC()}
	if err != nil {
		s.Doubt = err.Error()
	}
	return s
}

// confirm takes the clock as it is, on an operator's word.
func (c *Clock) confirm() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubted = false
	now, mono := c.cfg.Now().Round(0), c.cfg.Elapsed()
	c.first, c.firstAt = now, mono
	c.move(now, mono)
	return now
}

// ServeHTTP answers POST enroll.TimePath. Anybody may ask: the answer says nothing that a wall clock does not, holds for one request, and
// is not journaled, or anybody could fill the log.
func (c *Clock) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeProblem(w, http.StatusMethodNotAllowed, "method not allowed", "POST a time-request")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, enroll.MaxTimeBytes))
	if err != nil {
		writeProblem(w, http.StatusRequestEntityTooLarge, "request is too large", fmt.Sprintf("at most %d bytes", enroll.MaxTimeBytes))
		return
	}
	request, err := enroll.ParseTimeRequest(body)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, "bad request", "expected a time-request in CBOR")
		return
	}
	now, err := c.vouch()
	if err != nil {
		writeProblem(w, http.StatusServiceUnavailable, "no time", ErrDoubt.Error())
		return
	}
	doc, err := enroll.SignTime(request, now, c.cfg.Key)
	if err != nil {
		writeProblem(w, http.StatusServiceUnavailable, "no time", ErrDoubt.Error())
		return
	}
	w.Header().Set("Content-Type", enroll.TimeType)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(doc)
}

func (a *API) showClock(w http.ResponseWriter, _ *http.Request, _ who) error {
	return writeJSON(w, a.Clock.State())
}

// confirmClock takes an operator's word for the clock. It is journaled first.
func (a *API) confirmClock(w http.ResponseWriter, r *http.Request, who who) error {
	s := a.Clock.State()
	if err := a.event(r, who, audit.Event{Type: audit.ClockConfirmed, Outcome: audit.Success,
		Detail: map[string]string{"shows": s.Now.Format(time.RFC3339), "last": s.Last.Format(time.RFC3339)}}); err != nil {
		return err
	}
	a.Clock.confirm()
	if err := a.Records.ClockIsRight(r.Context(), who.actor, who.peer); err != nil {
		return err
	}
	return writeJSON(w, a.Clock.State())
}

// clockToken makes the token that sets a gateway's floor back. It is journaled first, with all that the token says.
func (a *API) clockToken(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.ClockTokenRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	challenge, err := enroll.ParseClockChallenge(in.Challenge)
	if err != nil {
		return badRequest{err}
	}
	id := r.PathValue("id")
	if _, err := a.Registry.Get(r.Context(), id); err != nil {
		return a.deniedAct(r, who, audit.ClockToken, err)
	}
	now, err := a.Clock.vouch()
	if err != nil {
		return a.denied(r, who, audit.Event{Type: audit.ClockToken, Target: id, Reason: "the server's clock is in doubt"}, err)
	}
	token, err := enroll.SignClockToken(id, challenge, now, a.Clock.cfg.Key)
	if err != nil {
		return badRequest{err}
	}
	if err := a.event(r, who, audit.Event{Type: audit.ClockToken, Target: id, Outcome: audit.Success,
		Detail: map[string]string{"challenge": challenge.String(), "time": now.UTC().Format(time.RFC3339)}}); err != nil {
		return err
	}
	return writeJSON(w, client.ClockToken{Gateway: id, Time: now.UTC(), Token: token})
}
