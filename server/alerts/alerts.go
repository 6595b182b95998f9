// Package alerts is the one mechanism by which the server says that something is wrong. An alert has a type of a closed list and a
// subject; it is a row of the database, an event of the log, and messages to the configured targets.
//
// Senders say what holds now (Observe, or Raise and Clear); saying it again is harmless. An open alert counts, tells its targets again
// only after the type's repeat interval or when its severity rises, and resolves by itself once its condition has been gone for a
// while. Operators acknowledge (no more repeats) and silence (no messages; rows and events all the same).
//
// What may fail is what alerts are about, so that nothing here waits for it: the state lives in memory and is written behind. An alert
// about the journal has its row and its messages at once, and its event once the journal takes it from the outbox. While the database
// cannot be written, messages go out from memory after holdTime, and rows and events are written when it can be; only a process that
// ends before that loses them, and the next one raises what still holds.
//
// Nothing here holds PHI: subjects are ids of gateways, networks, targets and parts of the server; details are figures and constants.
package alerts

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/audit"
	"wardlink/server/sqldb"
)

//go:embed sqlite_0001.sql
var schema1 string

// Migrations is the schema that this package owns.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "alerts", Version: 1, SQL: schema1}}
}

// Config is what Alerts are made of. DB, Outbox, NextID, Server and Log are required.
type Config struct {
	DB     *sqldb.DB     // with Migrations and sqldb.OutboxMigrations
	Outbox *sqldb.Outbox // of the same DB
	NextID func() audit.EventID
	Server string // named in every message: the trust domain
	Settings
	Log *slog.Logger
	Now func() time.Time // nil: time.Now
}

const (
	settleTime   = time.Minute     // a condition that is gone for shorter has not ended: it bounds the leaves of one that flaps
	refreshTime  = time.Minute     // how old count and last-seen in a row may be
	holdTime     = 3 * time.Second // a message waits this long for the database before it goes out from memory
	tickTime     = 5 * time.Second
	writeTime    = 10 * time.Second // one write of the database
	maxOpen      = 100              // open alerts of one type; further subjects share one alert
	maxUnwritten = 4096             // changes that wait for the database, before open alerts stay as they are
	maxSubject   = 200
	maxDetails   = 12
	maxDetail    = 200
)

// Others is the subject under which alerts of one type beyond maxOpen are raised together.
const Others = "others"

// Condition is one thing that is wrong now.
type Condition struct {
	Subject  string            // at most 200 bytes
	Severity Severity          // 0: the type's
	Detail   map[string]string // figures and constants, never PHI; at most 12, values at most 200 bytes
}

// Alert is one alert as it stands.
type Alert struct {
	ID       string
	Type     Type
	Subject  string
	Severity Severity
	Peak     Severity // the highest it had
	Detail   map[string]string
	Opened   time.Time
	Seen     time.Time // its condition held then
	Count    int64     // how often it was raised
	Resolved time.Time // zero: open
	Acked    time.Time // zero: not acknowledged
	AckedBy  string
	Note     string
	Told     time.Time // the last message was made then; zero: nobody was told
	Silence  string    // id of the silence that covers it now

	messages int
	changes  int64
	gone     time.Time // since when its condition is gone
	risen    bool      // its severity rose and nobody has been told
	stale    bool      // the row is behind
	written  time.Time // the last change of the row was made then
}

// key finds the open alert.
type key struct {
	typ     Type
	subject string
}

// Alerts holds the state. All methods are safe for concurrent use.
type Alerts struct {
	cfg     Config
	now     func() time.Time
	targets []*target
	wake    chan struct{} // something waits to be written
	hold    time.Duration // holdTime
	limit   time.Duration // writeTime

	mu        sync.Mutex
	open      map[key]*Alert
	silences  []Silence
	unwritten []*change
	settled   []*message // whose outcome waits to be written
	failing   time.Time  // since when the database cannot be written; zero when it can
	failure   error

	writing sync.Mutex // one write at a time
	events  time.Time  // when the spool's events were last written; under writing
	pruned  time.Time  // under writing
}

// New reads what is open and what waits in the spool, and opens the targets' secrets and certificates. It starts nothing.
func New(cfg Config) (*Alerts, error) {
	if cfg.DB == nil || cfg.Outbox == nil || cfg.NextID == nil || cfg.Server == "" || cfg.Log == nil {
		return nil, errors.New("alerts: DB, Outbox, NextID, Server and Log are required")
	}
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	a := &Alerts{cfg: cfg, now: cfg.Now, wake: make(chan struct{}, 1), hold: holdTime, limit: writeTime, open: make(map[key]*Alert)}
	if a.now == nil {
		a.now = time.Now
	}
	for i, t := range cfg.Targets {
		s, err := newSender(t, cfg.Server)
		if err != nil {
			return nil, fmt.Errorf("alerts: targets[%d] (%s): %w", i, t.Name, err)
		}
		a.targets = append(a.targets, newTarget(t, s, a))
	}
	if err := a.load(context.Background()); err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	return a, nil
}

// Run delivers, repeats and writes until ctx ends. What waits then stays in the spool. It returns nil.
func (a *Alerts) Run(ctx context.Context) error {
	var g errgroup.Group
	for _, t := range a.targets {
		g.Go(func() error { t.run(ctx); return nil })
	}
	g.Go(func() error { a.writeBehind(ctx); return nil })
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	for ctx.Err() == nil {
		a.Tick()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return g.Wait()
}

// Tick makes the messages that are due by now. Run calls it; a test may.
func (a *Alerts) Tick() {
	a.observeTargets()
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	a.expire(now)
	for _, al := range a.open {
		if kind, ok := a.due(al, now); ok {
			a.put(al, a.message(al, kind, now))
		} else if al.stale && now.Sub(al.written) >= refreshTime && len(a.unwritten) == 0 {
			a.put(al, nil)
		}
	}
	if len(a.unwritten)+len(a.settled) > 0 {
		a.signal()
	}
}

// Observe says everything that is wrong now of one type: what is not among conditions has ended.
func (a *Alerts) Observe(t Type, conditions []Condition) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	held := make(map[string]bool, len(conditions))
	more := 0
	for _, c := range conditions {
		c = clean(c)
		if a.room(t, c.Subject) {
			held[c.Subject] = true
			a.raise(t, c, now)
		} else {
			more++
		}
	}
	if more > 0 {
		held[Others] = true
		a.raise(t, Condition{Subject: Others, Detail: map[string]string{"subjects": fmt.Sprint(more)}}, now)
	}
	for k, al := range a.open {
		if k.typ == t && !held[k.subject] {
			a.ended(al, now)
		}
	}
}

// Raise says that one thing is wrong. An unknown type is a mistake of the program: it is logged and raised as a warning.
func (a *Alerts) Raise(t Type, c Condition) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c = clean(c)
	if !a.room(t, c.Subject) {
		c = Condition{Subject: Others, Severity: c.Severity}
	}
	a.raise(t, c, a.now())
}

// Clear says that it is not wrong any more. The alert resolves once it has been said for a minute.
func (a *Alerts) Clear(t Type, subject string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if al, ok := a.open[key{t, subject}]; ok {
		a.ended(al, a.now())
	}
}

// Open says whether an alert is open.
func (a *Alerts) Open(t Type, subject string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.open[key{t, subject}]
	return ok
}

// room says whether a subject may have an alert of its own.
func (a *Alerts) room(t Type, subject string) bool {
	if _, ok := a.open[key{t, subject}]; ok {
		return true
	}
	n := 0
	for k := range a.open {
		if k.typ == t && k.subject != Others {
			n++
		}
	}
	return n < maxOpen
}

// clean cuts what is too long. Senders are ours: this keeps one that errs from breaking the log's limits.
func clean(c Condition) Condition {
	c.Subject = cut(c.Subject, maxSubject)
	if c.Subject == "" {
		c.Subject = "server"
	}
	detail := make(map[string]string, len(c.Detail))
	for k, v := range c.Detail {
		if len(detail) < maxDetails {
			detail[cut(k, 40)] = cut(v, maxDetail)
		}
	}
	c.Detail = detail
	return c
}

func (a *Alerts) raise(t Type, c Condition, now time.Time) {
	kind, known := KindOf(t)
	if !known {
		a.cfg.Log.Error("an alert of an unknown type is raised", "type", string(t))
		kind = Kind{Type: t, Severity: Warning, Repeat: time.Hour}
	}
	if c.Severity == 0 {
		c.Severity = kind.Severity
	}
	k := key{t, c.Subject}
	al, ok := a.open[k]
	if !ok {
		al = &Alert{
			ID: newID(), Type: t, Subject: c.Subject, Severity: c.Severity, Peak: c.Severity, Detail: c.Detail, Opened: now, Seen: now, Count: 1,
		}
		a.open[k] = al
		a.cfg.Log.Warn("alert", "id", al.ID, "type", string(t), "subject", c.Subject, "severity", c.Severity.String())
		a.put(al, a.tell(al, now), a.event(al, audit.AlertRaised, now))
		return
	}
	al.Seen, al.gone, al.stale = now, time.Time{}, true
	al.Count++
	al.Severity, al.Detail = c.Severity, c.Detail
	if c.Severity <= al.Peak || len(a.unwritten) >= maxUnwritten {
		return
	}
	// An acknowledgement was given for what it was then.
	al.Peak, al.risen, al.Acked, al.AckedBy, al.Note = c.Severity, true, time.Time{}, "", ""
	a.put(al, a.tell(al, now), a.event(al, audit.AlertRaised, now))
}

// ended resolves an alert whose condition has been gone for settleTime.
func (a *Alerts) ended(al *Alert, now time.Time) {
	if al.gone.IsZero() || now.Before(al.gone) {
		al.gone = now
	}
	if now.Sub(al.gone) < settleTime || len(a.unwritten) >= maxUnwritten {
		return
	}
	al.Resolved = now
	delete(a.open, key{al.Type, al.Subject})
	a.cfg.Log.Info("alert resolved", "id", al.ID, "type", string(al.Type), "subject", al.Subject)
	var msgs []*message
	if !al.Told.IsZero() { // whoever was told is told of the end, silenced or not: nobody keeps a case open for nothing
		msgs = a.message(al, msgResolved, now)
	}
	a.put(al, msgs, a.event(al, audit.AlertResolved, now))
}

// tell makes the messages that are due.
func (a *Alerts) tell(al *Alert, now time.Time) []*message {
	if kind, ok := a.due(al, now); ok {
		return a.message(al, kind, now)
	}
	return nil
}

// due says which message an open alert should send now.
func (a *Alerts) due(al *Alert, now time.Time) (string, bool) {
	if a.silenced(al, now) != "" || !al.Acked.IsZero() || !a.anybody(al) {
		return "", false
	}
	if al.Told.After(now) { // the clock went back
		al.Told = now
	}
	switch {
	case al.Told.IsZero():
		return msgRaised, true
	case al.risen:
		return msgEscalated, true
	case al.gone.IsZero() && now.Sub(al.Told) >= a.repeat(al.Type):
		return msgRepeated, true
	}
	return "", false
}

func (a *Alerts) repeat(t Type) time.Duration {
	if d := a.cfg.Repeat[t]; d > 0 {
		return d
	}
	kind, _ := KindOf(t)
	return max(kind.Repeat, time.Minute)
}

// put queues a change of the row, with its events and messages, and hands the messages to their targets, which wait a moment for the
// row. The caller holds mu.
func (a *Alerts) put(al *Alert, msgs []*message, events ...audit.Event) {
	al.changes++
	al.stale, al.written = false, a.now()
	row := *al
	row.Detail = maps.Clone(al.Detail)
	a.unwritten = append(a.unwritten, &change{row: &row, events: events, messages: msgs})
	for _, m := range msgs {
		m.to.add(m)
	}
	a.signal()
}

func (a *Alerts) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// event begins the event of an alert. Its id is given now, so that writing it twice can be told.
func (a *Alerts) event(al *Alert, t audit.Type, now time.Time) audit.Event {
	ev := audit.Event{
		ID: a.cfg.NextID(), Type: t, Time: now.UnixMilli(), Actor: audit.Actor{ID: "server"}, Target: string(al.Type) + "/" + al.Subject,
		Outcome: audit.Success, Count: uint64(al.Count), Detail: map[string]string{"alert": al.ID, "severity": al.Severity.String()},
	}
	for k, v := range al.Detail {
		if _, taken := ev.Detail[k]; !taken {
			ev.Detail[k] = v
		}
	}
	return ev
}

// Failing is since when the database takes no alerts and why; zero when it does.
func (a *Alerts) Failing() (time.Time, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failing, a.failure
}
