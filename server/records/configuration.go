package records

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

//go:embed configs_0001.sql
var configs1 string

func configMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "records_configs", Version: 1, SQL: configs1}}
}

// What one gateway may make us keep of its steps. An honest one takes three a version; one that invents them must not fill log or disk.
const (
	maxStepsDay = 256
	maxSteps    = 1024
	day         = 24 * 60 * 60 * 1000 // milliseconds
)

var stepTypes = map[telemetry.ConfigState]audit.Type{
	telemetry.ConfigPrepared: audit.ConfigPrepared, telemetry.ConfigApplied: audit.ConfigApplied,
	telemetry.ConfigConfirmed: audit.ConfigConfirmed, telemetry.ConfigReverted: audit.ConfigReverted,
}

// storeConfig keeps what a report says of configurations. A step that is new becomes an event in the same transaction, so that each is in
// the log once, however often reports repeat it. The actor is the gateway: the report is sealed under a key that its TPM signed for.
func (r *Records) storeConfig(tx *sql.Tx, o *opened, newest bool) error {
	rep := o.batch.Report
	if newest {
		if _, err := tx.Exec(`INSERT INTO config_in_force (gateway, own, site, site_version, received) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (gateway) DO UPDATE SET own = excluded.own, site = excluded.site, site_version = excluded.site_version, received = excluded.received`,
			o.gateway, int64(rep.Config), rep.Settings.Site, int64(rep.Settings.Version), o.received); err != nil {
			return err
		}
	}
	for i := range rep.Settings.Steps {
		if err := r.storeStep(tx, o, &rep.Settings.Steps[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *Records) storeStep(tx *sql.Tx, o *opened, s *telemetry.ConfigStep) error {
	var known bool
	var today, all int
	if err := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM config_steps WHERE gateway = $1 AND site = $2 AND version = $3 AND step = $4)`,
		o.gateway, s.Site, int64(s.Version), s.Step).Scan(&known); err != nil || known {
		return err
	}
	if err := tx.QueryRow("SELECT COUNT(*), COUNT(CASE WHEN received > $2 THEN 1 END) FROM config_steps WHERE gateway = $1", o.gateway, o.received-day).
		Scan(&all, &today); err != nil {
		return err
	}
	if today >= maxStepsDay {
		return nil
	}
	if all >= maxSteps {
		if _, err := tx.Exec(`DELETE FROM config_steps WHERE gateway = $1 AND received <=
			(SELECT received FROM config_steps WHERE gateway = $1 ORDER BY received LIMIT 1 OFFSET $2)`, o.gateway, all-maxSteps/2); err != nil {
			return err
		}
	}
	if _, err := tx.Exec("INSERT INTO config_steps (gateway, site, version, step, reason, received) VALUES ($1, $2, $3, $4, $5, $6)",
		o.gateway, s.Site, int64(s.Version), s.Step, s.Reason, o.received); err != nil {
		return err
	}
	ev := audit.Event{
		Type: stepTypes[s.Step], Actor: audit.Actor{ID: r.gatewayID(o.gateway)}, Target: o.gateway, Outcome: audit.Success, Reason: s.Reason,
		Detail: map[string]string{"version": strconv.FormatUint(s.Version, 10)},
	}
	if s.Site != "" {
		ev.Detail["site"] = s.Site
	}
	if s.At > 0 {
		ev.Detail["gateway_time"] = time.UnixMilli(s.At).UTC().Format(time.RFC3339)
	}
	if s.Step == telemetry.ConfigReverted {
		ev.Outcome = audit.Failed
	}
	return r.outbox.Add(tx, ev)
}

func (r *Records) gatewayID(gateway string) string {
	return spiffe.ID{TrustDomain: r.domain, Kind: spiffe.Gateway, Name: gateway}.String()
}

// ConfigState is what a gateway has made of the hospital's configurations, as it reports.
type ConfigState struct {
	Own         uint64 // version in force; 0 for none
	Site        string // whose document is in force beside it
	SiteVersion uint64
	Received    time.Time
	Steps       []ConfigStep // the last step of each version
}

// ConfigStep is the last step that one version took.
type ConfigStep struct {
	Site     string // "" for the gateway's own document
	Version  uint64
	Step     telemetry.ConfigState
	Reason   string
	Received time.Time
}

// ConfigStates gives them by gateway; of one, or of all that have reported with gateway "".
func (r *Records) ConfigStates(ctx context.Context, gateway string) (map[string]ConfigState, error) {
	out := make(map[string]ConfigState)
	rows, err := r.db.Query(ctx, "SELECT gateway, own, site, site_version, received FROM config_in_force WHERE $1 = '' OR gateway = $1", gateway)
	if err != nil {
		return nil, fmt.Errorf("configurations: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id string
		var s ConfigState
		var received int64
		if err := rows.Scan(&id, &s.Own, &s.Site, &s.SiteVersion, &received); err != nil {
			return nil, fmt.Errorf("configurations: %w", err)
		}
		s.Received = time.UnixMilli(received).UTC()
		out[id] = s
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("configurations: %w", err)
	}
	steps, err := r.db.Query(ctx, `SELECT s.gateway, s.site, s.version, s.step, s.reason, s.received FROM config_steps s WHERE ($1 = '' OR s.gateway = $1)
		AND s.step = (SELECT MAX(m.step) FROM config_steps m WHERE m.gateway = s.gateway AND m.site = s.site AND m.version = s.version)
		ORDER BY s.gateway, s.site, s.version`, gateway)
	if err != nil {
		return nil, fmt.Errorf("configurations: %w", err)
	}
	defer func() { _ = steps.Close() }()
	for steps.Next() {
		var id string
		var s ConfigStep
		var received int64
		if err := steps.Scan(&id, &s.Site, &s.Version, &s.Step, &s.Reason, &received); err != nil {
			return nil, fmt.Errorf("configurations: %w", err)
		}
		s.Received = time.UnixMilli(received).UTC()
		state := out[id]
		state.Steps = append(state.Steps, s)
		out[id] = state
	}
	if err := steps.Err(); err != nil {
		return nil, fmt.Errorf("configurations: %w", err)
	}
	return out, nil
}
