package alerts

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"wardlink/audit"
)

// change is one change that waits for the database: of an alert's row or of a silence.
type change struct {
	row      *Alert
	silence  *Silence
	events   []audit.Event
	messages []*message
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

const (
	writePause  = time.Second // after a write that failed
	eventTime   = time.Minute // one leaf per target, outcome and minute at most
	pruneTime   = time.Hour
	keepRows    = 90 * 24 * time.Hour // resolved alerts and ended silences; the log keeps their events for ever
	keepResults = 10_000              // resolved alerts
)

// writeBehind writes what waits until ctx ends, and once more then.
func (a *Alerts) writeBehind(ctx context.Context) {
	last := context.WithoutCancel(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := a.write(last); err != nil {
				a.cfg.Log.Error("alerts are not all written; what is still wrong is raised again at the next start", "error", err)
			}
			return
		case <-a.wake:
		case <-timer.C:
		}
		pause := eventTime
		if err := a.write(ctx); err != nil && ctx.Err() == nil {
			pause = writePause
		}
		timer.Reset(pause)
	}
}

// write writes all that waits in one transaction. On an error everything stays and is written later; what a doubtful commit has
// written all the same is recognised by the row's count of changes.
func (a *Alerts) write(ctx context.Context) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.mu.Lock()
	changes, settled := a.unwritten[:len(a.unwritten):len(a.unwritten)], a.settled[:len(a.settled):len(a.settled)]
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, a.limit)
	defer cancel()
	now := a.now()
	due := now.Sub(a.events) >= eventTime || now.Before(a.events)
	prune := now.Sub(a.pruned) >= pruneTime || now.Before(a.pruned)
	if len(changes)+len(settled) == 0 && !due && !prune {
		return nil
	}
	err := a.cfg.DB.Write(ctx, func(tx *sql.Tx) error {
		for _, c := range changes {
			if err := a.writeChange(tx, c); err != nil {
				return err
			}
		}
		for _, m := range settled {
			state, reason := m.outcome()
			if _, err := tx.Exec("UPDATE alert_spool SET state = $1, reason = $2 WHERE target = $3 AND message = $4", state, reason, m.to.name, m.id); err != nil {
				return err
			}
		}
		if due {
			if err := a.writeOutcomes(tx); err != nil {
				return err
			}
		}
		if prune {
			return a.prune(tx, now)
		}
		return nil
	})
	a.wrote(err, len(changes), len(settled))
	if err != nil {
		return err
	}
	if due {
		a.events = now
	}
	if prune {
		a.pruned = now
	}
	for _, c := range changes {
		for _, m := range c.messages {
			m.to.written(m)
		}
	}
	return nil
}

// wrote forgets what is written, and remembers since when nothing can be.
func (a *Alerts) wrote(err error, changes, settled int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if a.failing.IsZero() {
			a.failing = a.now()
			a.cfg.Log.Error("alerts cannot be written; they are kept and delivered from memory", "error", err)
		}
		a.failure = err
		return
	}
	if !a.failing.IsZero() {
		a.cfg.Log.Info("alerts are written again", "since", a.failing)
	}
	a.failing, a.failure = time.Time{}, nil
	a.unwritten, a.settled = a.unwritten[changes:], a.settled[settled:]
}

func (a *Alerts) writeChange(tx *sql.Tx, c *change) error {
	if c.silence != nil {
		return a.writeSilence(tx, c)
	}
	r := c.row
	detail, err := json.Marshal(r.Detail)
	if err != nil {
		return err
	}
	res, err := tx.Exec(`INSERT INTO alerts (id, type, subject, severity, peak, detail, opened, seen, count, resolved, acked, acked_by, note,
			told, messages, changes)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
		ON CONFLICT (id) DO UPDATE SET severity = excluded.severity, peak = excluded.peak, detail = excluded.detail, seen = excluded.seen,
			count = excluded.count, resolved = excluded.resolved, acked = excluded.acked, acked_by = excluded.acked_by, note = excluded.note,
			told = excluded.told, messages = excluded.messages, changes = excluded.changes
		WHERE excluded.changes > alerts.changes`,
		r.ID, string(r.Type), r.Subject, int(r.Severity), int(r.Peak), string(detail), millis(r.Opened), millis(r.Seen), r.Count,
		millis(r.Resolved), millis(r.Acked), r.AckedBy, r.Note, millis(r.Told), r.messages, r.changes)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err // a commit that was in doubt had it
	}
	for _, ev := range c.events {
		if err := a.cfg.Outbox.Add(tx, ev); err != nil {
			return err
		}
	}
	for _, m := range c.messages {
		if _, err := tx.Exec("INSERT INTO alert_spool (target, message, body, made, state, reason) VALUES ($1, $2, $3, $4, 0, '')",
			m.to.name, m.id, m.body, millis(m.made)); err != nil {
			return err
		}
	}
	return nil
}

// writeOutcomes turns what was delivered and given up since the last time into one event per target and outcome, and forgets it.
func (a *Alerts) writeOutcomes(tx *sql.Tx) error {
	rows, err := tx.Query(`SELECT target, state, reason, COUNT(*), MIN(position), MAX(position) FROM alert_spool
		WHERE state > 0 GROUP BY target, state, reason`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var evs []audit.Event
	var ends [][2]int64
	for rows.Next() {
		ev := audit.Event{Actor: audit.Actor{ID: "server"}, Type: audit.AlertDelivered, Outcome: audit.Success}
		var state int
		var end [2]int64
		if err := rows.Scan(&ev.Target, &state, &ev.Reason, &ev.Count, &end[0], &end[1]); err != nil {
			return err
		}
		if state == givenUp {
			ev.Type, ev.Outcome = audit.AlertUndelivered, audit.Failed
		}
		evs, ends = append(evs, ev), append(ends, end)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for i, ev := range evs {
		ev.Detail = map[string]string{}
		for j, name := range []string{"first", "last"} {
			var id string
			if err := tx.QueryRow("SELECT message FROM alert_spool WHERE position = $1", ends[i][j]).Scan(&id); err != nil {
				return err
			}
			ev.Detail[name] = id
		}
		if err := a.cfg.Outbox.Add(tx, ev); err != nil {
			return err
		}
	}
	_, err = tx.Exec("DELETE FROM alert_spool WHERE state > 0")
	return err
}

// prune forgets rows that are old; their events stay in the log.
func (a *Alerts) prune(tx *sql.Tx, now time.Time) error {
	old := now.Add(-keepRows).UnixMilli()
	for _, q := range []string{
		"DELETE FROM alerts WHERE resolved > 0 AND resolved < $1",
		"DELETE FROM alert_silences WHERE until < $1",
		"DELETE FROM alert_gateways WHERE heard < $1",
	} {
		if _, err := tx.Exec(q, old); err != nil {
			return err
		}
	}
	_, err := tx.Exec(`DELETE FROM alerts WHERE resolved > 0 AND resolved <=
		COALESCE((SELECT resolved FROM alerts WHERE resolved > 0 ORDER BY resolved DESC LIMIT 1 OFFSET $1), 0)`, keepResults)
	return err
}

const alertColumns = "id, type, subject, severity, peak, detail, opened, seen, count, resolved, acked, acked_by, note, told, messages, changes"

func scanAlert(rows *sql.Rows) (*Alert, error) {
	var al Alert
	var detail string
	var opened, seen, resolved, acked, told int64
	if err := rows.Scan(&al.ID, &al.Type, &al.Subject, &al.Severity, &al.Peak, &detail, &opened, &seen, &al.Count, &resolved, &acked, &al.AckedBy,
		&al.Note, &told, &al.messages, &al.changes); err != nil {
		return nil, err
	}
	al.Opened, al.Seen, al.Resolved, al.Acked, al.Told = instant(opened), instant(seen), instant(resolved), instant(acked), instant(told)
	return &al, json.Unmarshal([]byte(detail), &al.Detail)
}

// load reads what is open, what is silenced and what waits.
func (a *Alerts) load(ctx context.Context) error {
	rows, err := a.cfg.DB.Query(ctx, "SELECT "+alertColumns+" FROM alerts WHERE resolved = 0")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		al, err := scanAlert(rows)
		if err != nil {
			return err
		}
		a.open[key{al.Type, al.Subject}] = al
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if a.silences, err = a.readSilences(ctx, a.now()); err != nil {
		return err
	}
	return a.loadSpool(ctx)
}

// loadSpool hands what waits to its targets, in order. What waits for a target that is not configured any more is given up.
func (a *Alerts) loadSpool(ctx context.Context) error {
	rows, err := a.cfg.DB.Query(ctx, "SELECT target, message, body, made FROM alert_spool WHERE state = 0 ORDER BY position")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		m := &message{kept: true}
		var name string
		var made int64
		if err := rows.Scan(&name, &m.id, &m.body, &made); err != nil {
			return err
		}
		var p payload
		if err := json.Unmarshal(m.body, &p); err != nil {
			return fmt.Errorf("message %s in the spool: %w", m.id, err)
		}
		m.made = instant(made)
		m.severity, _ = ParseSeverity(p.Data.Severity)
		for _, t := range a.targets {
			if t.name == name {
				m.to = t
			}
		}
		if m.to == nil {
			m.to = &target{name: name}
			m.state, m.reason = givenUp, "the target is not configured any more"
			a.settled = append(a.settled, m)
			continue
		}
		m.to.add(m)
	}
	return rows.Err()
}

// List gives the open alerts, the most severe and then the oldest first, and with all also up to limit resolved ones, the newest
// first. Open ones come from memory, so that they are answered whatever fails; the error is that of the resolved ones.
func (a *Alerts) List(ctx context.Context, all bool, limit int) ([]Alert, error) {
	out := a.openAlerts()
	if !all {
		return out, nil
	}
	rows, err := a.cfg.DB.Query(ctx, "SELECT "+alertColumns+" FROM alerts WHERE resolved > 0 ORDER BY resolved DESC LIMIT $1", limit)
	if err != nil {
		return out, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		al, err := scanAlert(rows)
		if err != nil {
			return out, err
		}
		out = append(out, *al)
	}
	return out, rows.Err()
}
