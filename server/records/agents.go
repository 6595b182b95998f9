package records

import (
	"context"
	"fmt"
	"time"

	"wardlink/telemetry"
)

// Agents is the release of each gateway's agent, as its newest report says. A gateway chooses the text: it is made fit to be shown.
func (s *Store) Agents(ctx context.Context) (map[string]string, error) {
	rows, err := s.db.Query(ctx, "SELECT gateway, report FROM gateway_reports")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string]string{}
	for rows.Next() {
		var gateway string
		var data []byte
		if err := rows.Scan(&gateway, &data); err != nil {
			return nil, err
		}
		b, err := telemetry.Decode(data)
		if err != nil {
			return nil, fmt.Errorf("report of gateway %s: %w", gateway, err)
		}
		if b.Report != nil && b.Report.Agent != "" {
			out[gateway] = telemetry.OwnHello(b.Report.Agent).Build
		}
	}
	return out, rows.Err()
}

// Seen is when each gateway's newest report came, by the server's clock.
func (s *Store) Seen(ctx context.Context) (map[string]time.Time, error) {
	rows, err := s.db.Query(ctx, "SELECT gateway, received FROM gateway_reports")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string]time.Time{}
	for rows.Next() {
		var gateway string
		var at int64
		if err := rows.Scan(&gateway, &at); err != nil {
			return nil, err
		}
		out[gateway] = time.UnixMilli(at).UTC()
	}
	return out, rows.Err()
}
