package records

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"wardlink/server/sqldb"
)

//go:embed heartbeats_0001.sql
var heartbeats1 string

func heartbeatMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "records_heartbeats", Version: 1, SQL: heartbeats1}}
}

// beat keeps the receipt of a gateway's first report; that of the newest is the report's own. A backlog may bring an older one later.
func beat(tx *sql.Tx, o *opened) error {
	_, err := tx.Exec(`INSERT INTO first_heartbeats (gateway, received) VALUES ($1, $2)
		ON CONFLICT (gateway) DO UPDATE SET received = excluded.received WHERE excluded.received < first_heartbeats.received`, o.gateway, o.received)
	return err
}

// Heartbeats are when the hospital received a gateway's reports of itself, by its own clock; only reports that could be opened count.
// All is zero while there was none.
type Heartbeats struct {
	First, Last time.Time
	Epoch       string // of the newest, hexadecimal
}

// Heartbeats looks them up.
func (s *Store) Heartbeats(ctx context.Context, gateway string) (Heartbeats, error) {
	var first, last int64
	var epoch []byte
	err := s.db.QueryRow(ctx, `SELECT f.received, g.received, g.epoch FROM first_heartbeats f JOIN gateway_reports g ON g.gateway = f.gateway
		WHERE f.gateway = $1`, gateway).Scan(&first, &last, &epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return Heartbeats{}, nil
	}
	if err != nil {
		return Heartbeats{}, fmt.Errorf("heartbeats: %w", err)
	}
	return Heartbeats{First: time.UnixMilli(first).UTC(), Last: time.UnixMilli(max(first, last)).UTC(), Epoch: hex.EncodeToString(epoch)}, nil
}
