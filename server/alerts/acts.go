package alerts

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
)

// What callers branch on.
var (
	ErrUnknown = errors.New("no such alert, silence or target")
	ErrBad     = errors.New("not possible")
)

// Who acts: an operator and where from.
type Who struct {
	Actor audit.Actor
	Peer  string
}

// Silence keeps messages of matching alerts back until it ends.
type Silence struct {
	ID      string
	Type    string // pattern: * and ?
	Subject string // pattern
	Since   time.Time
	Until   time.Time
	By      string
	Reason  string
}

// holds says whether the silence holds now. One that begins in the future was made while the clock stood ahead, and would hold until then.
func (s Silence) holds(now time.Time) bool {
	return now.Before(s.Until) && s.Since.Sub(now) < clockSlack
}

func (s Silence) covers(al *Alert, now time.Time) bool {
	return s.holds(now) && match(s.Type, string(al.Type)) && match(s.Subject, al.Subject)
}

const (
	maxSilences = 1000
	maxSilence  = 90 * 24 * time.Hour
	maxNote     = 500
	clockSlack  = time.Hour // by which the clock may go back under a silence
)

// Notes say what an empty list does not mean.
func (a *Alerts) Notes() []string {
	var out []string
	if len(a.targets) == 0 {
		out = append(out, "No targets are configured: alerts are seen here and in the log alone; see 'alerts:' in server.yaml.")
	}
	if a.cfg.BackupStamp == "" {
		out = append(out, "Backups are not watched: 'alerts: backup_stamp:' in server.yaml names no file.")
	}
	return out
}

func (a *Alerts) openAlerts() []Alert {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	out := make([]Alert, 0, len(a.open))
	for _, al := range a.open {
		shown := *al
		shown.Detail = maps.Clone(al.Detail)
		shown.Silence = a.silenced(al, now)
		out = append(out, shown)
	}
	slices.SortFunc(out, func(x, y Alert) int {
		return cmp.Or(cmp.Compare(y.Severity, x.Severity), x.Opened.Compare(y.Opened), cmp.Compare(x.ID, y.ID))
	})
	return out
}

// silenced gives the silence that covers an alert. The caller holds mu.
func (a *Alerts) silenced(al *Alert, now time.Time) string {
	for _, s := range a.silences {
		if s.covers(al, now) {
			return s.ID
		}
	}
	return ""
}

// expire forgets silences that have ended. The caller holds mu.
func (a *Alerts) expire(now time.Time) {
	a.silences = slices.DeleteFunc(a.silences, func(s Silence) bool { return !s.holds(now) })
}

// Acknowledge notes that somebody has taken an open alert on: it is not repeated any more, unless its severity rises. name is its id
// or type/subject.
func (a *Alerts) Acknowledge(ctx context.Context, who Who, name, note string) (Alert, error) {
	if len(note) > maxNote {
		return Alert{}, refusal.New(ErrBad, "note: %d bytes; at most %d", len(note), maxNote)
	}
	a.mu.Lock()
	al := a.find(name)
	if al == nil {
		a.mu.Unlock()
		return Alert{}, refusal.New(ErrUnknown, "%.80q is no open alert; 'wardlink alerts' lists them", name)
	}
	now := a.now()
	al.Acked, al.AckedBy, al.Note = now, who.Actor.ID, cut(note, maxNote)
	ev := a.event(al, audit.AlertAcked, now)
	ev.Actor, ev.Peer, ev.Reason, ev.Count = who.Actor, who.Peer, al.Note, 0
	a.put(al, nil, ev)
	shown := *al
	shown.Detail = maps.Clone(al.Detail)
	a.mu.Unlock()
	return shown, a.finish(ctx)
}

// find gives an open alert by id or type/subject. The caller holds mu.
func (a *Alerts) find(name string) *Alert {
	if t, subject, ok := strings.Cut(name, "/"); ok {
		return a.open[key{Type(t), subject}]
	}
	for _, al := range a.open {
		if strings.EqualFold(al.ID, name) {
			return al
		}
	}
	return nil
}

// Silence keeps messages of matching alerts back for a while. Rows and events are made all the same. Type and Subject are patterns; By
// and the times are filled.
func (a *Alerts) Silence(ctx context.Context, who Who, s Silence, span time.Duration) (Silence, error) {
	s.Type, s.Subject = cmp.Or(s.Type, "*"), cmp.Or(s.Subject, "*")
	switch {
	case !slices.ContainsFunc(kinds, func(k Kind) bool { return match(s.Type, string(k.Type)) }):
		return s, refusal.New(ErrBad, "type: %.80q fits no type of alert; they are %s", s.Type, typeNames())
	case len(s.Type) > maxSubject || len(s.Subject) > maxSubject:
		return s, refusal.New(ErrBad, "type and subject: at most %d bytes", maxSubject)
	case strings.TrimSpace(s.Reason) == "" || len(s.Reason) > maxNote:
		return s, refusal.New(ErrBad, "reason: %d bytes; expected 1 to %d: whoever misses an alert will want to know", len(s.Reason), maxNote)
	case span < time.Minute || span > maxSilence:
		return s, refusal.New(ErrBad, "for: %s; expected 1m to %dh", span, int(maxSilence.Hours()))
	}
	a.mu.Lock()
	now := a.now()
	a.expire(now)
	if len(a.silences) >= maxSilences {
		a.mu.Unlock()
		return s, refusal.New(ErrBad, "%d silences hold already; end some with 'wardlink alerts unsilence'", maxSilences)
	}
	s.ID, s.Since, s.Until, s.By = newID(), now, now.Add(span), who.Actor.ID
	s.Type, s.Subject, s.Reason = cut(s.Type, maxSubject), cut(s.Subject, maxSubject), cut(s.Reason, maxNote)
	a.silences = append(a.silences, s)
	a.putSilence(s, who, audit.AlertSilenced, now)
	a.mu.Unlock()
	return s, a.finish(ctx)
}

// Unsilence ends a silence early.
func (a *Alerts) Unsilence(ctx context.Context, who Who, id string) (Silence, error) {
	a.mu.Lock()
	now := a.now()
	a.expire(now)
	i := slices.IndexFunc(a.silences, func(s Silence) bool { return strings.EqualFold(s.ID, id) })
	if i < 0 {
		a.mu.Unlock()
		return Silence{}, refusal.New(ErrUnknown, "%.80q is no silence that holds; 'wardlink alerts silences' lists them", id)
	}
	s := a.silences[i]
	a.silences = slices.Delete(a.silences, i, i+1)
	s.Until = now
	a.putSilence(s, who, audit.AlertUnsilenced, now)
	a.mu.Unlock()
	return s, a.finish(ctx)
}

// Silences are those that hold now, the first to end first.
func (a *Alerts) Silences() []Silence {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire(a.now())
	out := slices.Clone(a.silences)
	slices.SortFunc(out, func(x, y Silence) int { return cmp.Or(x.Until.Compare(y.Until), cmp.Compare(x.ID, y.ID)) })
	return out
}

func (a *Alerts) putSilence(s Silence, who Who, t audit.Type, now time.Time) {
	a.unwritten = append(a.unwritten, &change{silence: &s, events: []audit.Event{{
		ID: a.cfg.NextID(), Type: t, Time: now.UnixMilli(), Actor: who.Actor, Peer: who.Peer, Target: s.Type + "/" + s.Subject,
		Outcome: audit.Success, Reason: s.Reason, Detail: map[string]string{"silence": s.ID, "until": s.Until.UTC().Format(time.RFC3339)},
	}}})
	a.signal()
}

// writeSilence writes a silence once: a repeat after a doubtful commit finds its row as it should be.
func (a *Alerts) writeSilence(tx *sql.Tx, c *change) error {
	s := c.silence
	res, err := tx.Exec(`INSERT INTO alert_silences (id, type, subject, since, until, by_whom, reason) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (id) DO UPDATE SET until = excluded.until WHERE excluded.until < alert_silences.until`,
		s.ID, s.Type, s.Subject, millis(s.Since), millis(s.Until), s.By, s.Reason)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	for _, ev := range c.events {
		if err := a.cfg.Outbox.Add(tx, ev); err != nil {
			return err
		}
	}
	return nil
}

func (a *Alerts) readSilences(ctx context.Context, now time.Time) ([]Silence, error) {
	rows, err := a.cfg.DB.Query(ctx, "SELECT id, type, subject, since, until, by_whom, reason FROM alert_silences WHERE until > $1 LIMIT $2",
		now.UnixMilli(), maxSilences)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Silence
	for rows.Next() {
		var s Silence
		var since, until int64
		if err := rows.Scan(&s.ID, &s.Type, &s.Subject, &since, &until, &s.By, &s.Reason); err != nil {
			return nil, err
		}
		s.Since, s.Until = instant(since), instant(until)
		out = append(out, s)
	}
	return out, rows.Err()
}

// finish makes an operator's act durable, row and event, before it is answered. When that fails the act holds all the same, in memory,
// and is written later: it may be an act about the very thing that fails.
func (a *Alerts) finish(ctx context.Context) error {
	if err := a.write(ctx); err != nil {
		return fmt.Errorf("it holds, but only in memory until the database can be written: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	if err := a.cfg.Outbox.Flush(ctx); err != nil {
		return fmt.Errorf("it holds, but its event is not in the journal yet: %w", err)
	}
	return nil
}
