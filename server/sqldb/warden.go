package sqldb

import (
	"context"
	"log/slog"
	"time"
)

// Whoever has an ingest node's login can call what appends to the journal within a transaction of its own and not end that: everybody else
// then waits for the turn to append, and for the rows of sessions. A node itself sends each call as one message, so it never has written
// something and keeps PostgreSQL waiting for its next word. The settings that bound such transactions (idle_in_transaction_session_timeout and its
// like) are any login's own to change, so the owner looks.
const (
	wardenInterval = time.Second
	// wardenIdle is how long a node's transaction that has written may wait for its client, or sleep.
	wardenIdle = 2 * time.Second
	// wardenLongest is how long a node's transaction may take in all, twice what the journal gives a group.
	wardenLongest = time.Minute
	// wardenPatience is how many transactions of a login are ended within wardenMemory before the login is.
	wardenPatience = 3
	wardenMemory   = 10 * time.Minute
)

// Warden looks after the logins of ingest nodes: one that keeps a transaction open is cut off, and shut out when it does so again and again.
// It returns when ctx ends, and on SQLite at once. Any number of processes may run it. What it does not catch is a flood of short
// transactions, and a login that its owner is no member of (see SetLogin).
func (d *DB) Warden(ctx context.Context, log *slog.Logger) error {
	if d.url == "" {
		return nil
	}
	tick := time.NewTicker(wardenInterval)
	defer tick.Stop()
	ended := make(map[string][]time.Time)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		logins, err := d.endHeld(ctx)
		if err != nil {
			continue // the database is away, which others tell
		}
		for _, login := range logins {
			now := time.Now()
			recent := ended[login][:0]
			for _, at := range ended[login] {
				if now.Sub(at) < wardenMemory {
					recent = append(recent, at)
				}
			}
			ended[login] = append(recent, now)
			log.Error("the login of an ingest node kept a transaction open, by which it could hold up all others; its connection was ended", "login", login)
			if len(ended[login]) < wardenPatience {
				continue
			}
			if err := d.shutLogin(ctx, login); err != nil {
				log.Error("the login of an ingest node that holds up others cannot be shut out; remove the node", "login", login, "error", err)
				continue
			}
			delete(ended, login)
			log.Error("the login of an ingest node is shut out: it kept transactions open again and again, which no node does. Remove the node and look who has its password", "login", login)
		}
	}
}

// endHeld ends the connections that keep a transaction open, and gives their logins.
func (d *DB) endHeld(ctx context.Context) (logins []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rows, err := d.readers.QueryContext(ctx, `SELECT usename FROM (
		SELECT a.usename, a.pid FROM pg_stat_activity a
		WHERE a.datname = current_database() AND left(a.usename, length($1)) = $1 AND pg_has_role(a.usesysid, 'MEMBER')
		AND (a.backend_xid IS NOT NULL AND a.wait_event_type IN ('Client', 'Timeout') AND a.xact_start < clock_timestamp() - make_interval(secs => $2)
			OR a.xact_start < clock_timestamp() - make_interval(secs => $3)) OFFSET 0) held
		WHERE pg_terminate_backend(held.pid)`, IngestRole+"_", wardenIdle.Seconds(), wardenLongest.Seconds())
	if err != nil {
		return nil, explain(d.path, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var login string
		if err := rows.Scan(&login); err != nil {
			return nil, explain(d.path, err)
		}
		logins = append(logins, login)
	}
	return logins, explain(d.path, rows.Err())
}
