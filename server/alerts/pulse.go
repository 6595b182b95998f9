package alerts

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Pulse writes the clock into the database: what cannot be written shows, also when nothing else is. It waits at most 10 s.
func (a *Alerts) Pulse(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.limit)
	defer cancel()
	return a.cfg.DB.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE alert_pulse SET at = $1", a.now().UnixMilli())
		return err
	})
}

// LastPulse is the clock as it was written last; zero when it never was.
func (a *Alerts) LastPulse(ctx context.Context) (time.Time, error) {
	var at int64
	if err := a.cfg.DB.QueryRow(ctx, "SELECT at FROM alert_pulse").Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("alerts: %w", err)
	}
	return instant(at), nil
}

// Heard gives when each gateway was last heard of, as far as it was written.
func (a *Alerts) Heard(ctx context.Context) (map[string]time.Time, error) {
	rows, err := a.cfg.DB.Query(ctx, "SELECT gateway, heard FROM alert_gateways")
	if err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	defer func() { _ = rows.Close() }()
	out := make(map[string]time.Time)
	for rows.Next() {
		var gateway string
		var at int64
		if err := rows.Scan(&gateway, &at); err != nil {
			return nil, fmt.Errorf("alerts: %w", err)
		}
		out[gateway] = instant(at)
	}
	return out, rows.Err()
}

// SetHeard writes when gateways were last heard of.
func (a *Alerts) SetHeard(ctx context.Context, heard map[string]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, a.limit)
	defer cancel()
	return a.cfg.DB.Write(ctx, func(tx *sql.Tx) error {
		for gateway, at := range heard {
			if _, err := tx.Exec("INSERT INTO alert_gateways (gateway, heard) VALUES ($1, $2) ON CONFLICT (gateway) DO UPDATE SET heard = excluded.heard",
				gateway, millis(at)); err != nil {
				return err
			}
		}
		return nil
	})
}
