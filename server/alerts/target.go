package alerts

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"wardlink/internal/refusal"
)

// sender sends one message. answer is what the other side said, for a person; an error may be a *failure.
type sender interface {
	send(ctx context.Context, m *message) (answer string, err error)
	String() string // where to, without secrets
}

// failure is an attempt that the other side answered.
type failure struct {
	text  string
	after time.Duration // it asked to be left alone for so long
	ours  bool          // this message is what it objects to, not the sender
}

func (f *failure) Error() string { return f.text }

const (
	maxSpool     = 1000               // messages that wait for one target
	maxAge       = 3 * 24 * time.Hour // after which a message is given up
	maxObjected  = 5                  // attempts of a message that the other side objects to
	retryFirst   = time.Second
	retryMost    = 5 * time.Minute
	retryUrgent  = 30 * time.Second // instead, while a critical message waits
	maxAfter     = time.Hour        // of what a receiver may ask for
	failingAfter = 2 * time.Minute  // failing for so long is an alert
)

// target sends its messages in order, one at a time. A message that it has taken is marked in the spool after that: after a crash in
// between it is sent again, with the same id, by which receivers know it.
type target struct {
	name    string
	min     Severity
	timeout time.Duration
	sender  sender
	alerts  *Alerts
	first   time.Duration // of the back-off

	mu      sync.Mutex
	queue   []*message
	wake    chan struct{}
	retry   time.Time // not before
	asked   bool      // the receiver asked for it
	failing time.Time // since the first failure after a success
	tries   int       // since then
	lastErr string
	lastOK  time.Time
	sent    uint64
	lost    uint64
}

func newTarget(t Target, s sender, a *Alerts) *target {
	minimum := Warning
	if t.Minimum != "" {
		minimum, _ = ParseSeverity(t.Minimum) // Check has seen to it
	}
	timeout := t.Timeout
	if timeout == 0 {
		timeout = 15 * time.Second
	}
	return &target{name: t.Name, min: minimum, timeout: timeout, sender: s, alerts: a, first: retryFirst, wake: make(chan struct{}, 1)}
}

// takes says whether the target gets an alert. That it fails itself it is not told: the others are.
func (t *target) takes(al *Alert) bool {
	return al.Peak >= t.min && !(al.Type == TargetFails && al.Subject == t.name)
}

// add queues a message. At the bound the oldest of the least severe goes, but never the first, which may be under way: nobody who can
// cause warnings pushes out a critical one. What holds is still among 'wardlink alerts', and is repeated.
func (t *target) add(m *message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = append(t.queue, m)
	if soon := t.alerts.now().Add(rand.N(retryUrgent)); m.severity == Critical && !t.asked && t.retry.After(soon) {
		t.retry = soon
	}
	if len(t.queue) > maxSpool {
		i := 1
		for j, m := range t.queue[1:] {
			if m.severity < t.queue[i].severity {
				i = j + 1
			}
		}
		old := t.queue[i]
		t.queue = slices.Delete(t.queue, i, i+1)
		t.lost++
		old.state, old.reason = givenUp, "too many messages wait for the target"
		t.alerts.settled = append(t.alerts.settled, old) // add is called under the alerts' mutex
	}
	t.signal()
}

// written says that a message is in the spool.
func (t *target) written(m *message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m.kept = true
	t.signal()
}

func (t *target) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (m *message) outcome() (int, string) {
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	return m.state, m.reason
}

// run sends until ctx ends.
func (t *target) run(ctx context.Context) {
	for ctx.Err() == nil {
		m, wait := t.next()
		if m == nil {
			t.pause(ctx, wait)
			continue
		}
		t.attempt(ctx, m)
	}
}

// next is the message to send now, or how long to wait for one: for ever when none is there.
func (t *target) next() (*message, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		return nil, time.Hour
	}
	m, now := t.queue[0], t.alerts.now()
	if wait := t.retry.Sub(now); wait > 0 {
		return nil, min(wait, maxAfter) // also when the clock went back
	}
	if wait := m.hold.Sub(now); !m.kept && wait > 0 {
		return nil, min(wait, holdTime)
	}
	return m, 0
}

// pause waits for d or for something new.
func (t *target) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-t.wake:
	}
}

// attempt sends once. After a failure it sets when the next one may be.
func (t *target) attempt(ctx context.Context, m *message) {
	now := t.alerts.now()
	if age := now.Sub(m.made); age > maxAge {
		t.settle(m, givenUp, "not delivered within 3 days")
		return
	}
	limited, cancel := context.WithTimeout(ctx, t.timeout)
	_, err := t.sender.send(limited, m)
	cancel()
	if err == nil {
		t.mu.Lock()
		t.failing, t.retry, t.tries, t.lastErr, t.lastOK = time.Time{}, time.Time{}, 0, "", t.alerts.now()
		t.sent++
		t.mu.Unlock()
		t.settle(m, delivered, "")
		return
	}
	if ctx.Err() != nil { // the server stops; nothing is said against the target
		return
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{text: err.Error()}
	}
	t.mu.Lock()
	if t.failing.IsZero() {
		t.failing = now
	}
	t.tries++
	m.attempts++
	t.lastErr = cut(f.text, maxDetail)
	urgent := slices.ContainsFunc(t.queue, func(m *message) bool { return m.severity == Critical })
	t.asked = f.after > 0
	t.retry = t.alerts.now().Add(max(backoff(t.first, t.tries, urgent), min(f.after, maxAfter)))
	first, objected := t.tries == 1, f.ours && m.attempts >= maxObjected
	t.mu.Unlock()
	if first {
		t.alerts.cfg.Log.Warn("target takes no alerts; they wait", "target", t.name, "error", t.lastErr)
	}
	if objected {
		t.settle(m, givenUp, "the target objects to this message")
	}
}

// settle takes a message out of the queue; its outcome is written behind.
func (t *target) settle(m *message, state int, reason string) {
	t.mu.Lock()
	m.state, m.reason = state, reason
	if i := slices.Index(t.queue, m); i >= 0 {
		t.queue = slices.Delete(t.queue, i, i+1)
	}
	if state == givenUp {
		t.lost++
	}
	t.mu.Unlock()
	a := t.alerts
	a.mu.Lock()
	a.settled = append(a.settled, m)
	a.mu.Unlock()
	a.signal()
}

// backoff is full jitter: anything up to the bound, which doubles.
func backoff(first time.Duration, tries int, urgent bool) time.Duration {
	most := retryMost
	if urgent {
		most = retryUrgent
	}
	bound := first
	for i := 1; i < tries && bound < most; i++ {
		bound *= 2
	}
	return time.Duration(rand.Int64N(int64(min(bound, most)))) + 1
}

// TargetState is a target as it stands.
type TargetState struct {
	Name    string
	To      string // where to, without secrets
	Minimum Severity
	Waiting int
	Failing time.Time // since when; zero when the last attempt was good or there was none
	Error   string
	LastOK  time.Time
	Sent    uint64 // since the start
	Lost    uint64 // since the start: given up
}

// Targets gives all of them, in the order of the configuration.
func (a *Alerts) Targets() []TargetState {
	out := make([]TargetState, 0, len(a.targets))
	for _, t := range a.targets {
		t.mu.Lock()
		out = append(out, TargetState{
			Name: t.name, To: t.sender.String(), Minimum: t.min, Waiting: len(t.queue), Failing: t.failing, Error: t.lastErr, LastOK: t.lastOK,
			Sent: t.sent, Lost: t.lost,
		})
		t.mu.Unlock()
	}
	return out
}

// observeTargets raises for targets that fail.
func (a *Alerts) observeTargets() {
	now := a.now()
	var failing []Condition
	for _, s := range a.Targets() {
		if !s.Failing.IsZero() && now.Sub(s.Failing) >= failingAfter {
			failing = append(failing, Condition{Subject: s.Name, Detail: map[string]string{
				"since": s.Failing.UTC().Format(time.RFC3339), "waiting": strconv.Itoa(s.Waiting), "error": s.Error,
			}})
		}
	}
	a.Observe(TargetFails, failing)
}

// Result is what a target answered to a test message.
type Result struct {
	Target string
	To     string
	Answer string
	Err    error
	Took   time.Duration
}

// Test sends a message of its own to each target, or to the one named, without spool and retry, and says what was answered.
func (a *Alerts) Test(ctx context.Context, name string) ([]Result, error) {
	var chosen []*target
	for _, t := range a.targets {
		if name == "" || t.name == name {
			chosen = append(chosen, t)
		}
	}
	if len(chosen) == 0 && name != "" {
		return nil, refusal.New(ErrUnknown, "%.80q is no target of alerts in server.yaml", name)
	}
	now := a.now()
	p := testPayload(a.cfg.Server, now)
	out := make([]Result, len(chosen))
	var wg sync.WaitGroup
	for i, t := range chosen {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, t.timeout)
			defer cancel()
			m := &message{to: t, id: "msg_" + p.Data.ID + "_1", body: encode(p), severity: Notice, made: now}
			begin := time.Now()
			answer, err := t.sender.send(ctx, m)
			out[i] = Result{Target: t.name, To: t.sender.String(), Answer: answer, Err: err, Took: time.Since(begin)}
		})
	}
	wg.Wait()
	return out, nil
}
