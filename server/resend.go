package server

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/ingest"
	"wardlink/server/records"
	"wardlink/telemetry"
)

// askAgain is how long after a restore gateways are asked for what is missing. They keep what they delivered for three days; the rest is for those
// that were switched off meanwhile.
const askAgain = 30 * 24 * time.Hour

// restored gives the last restore, if it is not long ago.
func (s *Server) restored(ctx context.Context) (generation [16]byte, ok bool, err error) {
	var id []byte
	var at int64
	err = s.db.QueryRow(ctx, "SELECT generation, restored FROM restores ORDER BY restored DESC LIMIT 1").Scan(&id, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return generation, false, nil
	}
	if err != nil {
		return generation, false, fmt.Errorf("restores: %w", err)
	}
	age := time.Since(time.UnixMilli(at))
	return [16]byte(id), age < askAgain, nil
}

// resend is the document that asks a gateway for what a restore may have lost; nil when there was none. Each connection is asked anew, by
// what is there then: so nobody has to remember how far the answer got.
func (s *Server) resend(ctx context.Context, gateway string) ([]ingest.Document, error) {
	generation, ok, err := s.restored(ctx)
	if err != nil || !ok {
		return nil, err
	}
	held, err := records.NewStore(s.db, s.keys.Pseudonym).Held(ctx, gateway)
	if err != nil {
		return nil, err
	}
	body, err := telemetry.EncodeResend(telemetry.Resend{Generation: generation, Held: held})
	if err != nil {
		return nil, err
	}
	return []ingest.Document{{Doc: telemetry.DocResend, Body: body}}, nil
}

// restoredRow is what is known of a restore beside its generation.
type restoredRow struct {
	made    time.Time // of the backup
	journal uint64    // the former journal's entries up to here are in the database
	log     uint64    // number of the log that began; 0: none did
}

// beginGeneration begins a generation of restores, for which gateways are asked for what is missing. begun: it was not there yet.
func beginGeneration(tx *sql.Tx, generation [16]byte, row restoredRow) (begun bool, err error) {
	res, err := tx.Exec("INSERT INTO restores (generation, restored, made, journal, log) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (generation) DO NOTHING",
		generation[:], time.Now().UnixMilli(), row.made.UnixMilli(), int64(row.journal), int64(row.log))
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// AskAgain has each gateway asked, as it connects, for what it delivered and the database lacks, as after a restore: for a database that lost
// commits although its log goes on, such as at a standby that had not everything. It works beside a running server. Row and event are one transaction; to
// ask twice is harmless.
func AskAgain(ctx context.Context, dir string) (generation string, err error) {
	var id [16]byte
	rand.Read(id[:])
	generation = hex.EncodeToString(id[:])
	ev := audit.Event{Type: audit.ResendAsked, Detail: map[string]string{"generation": generation, "by": "wardlink-server resend"}}
	return generation, leave(ctx, dir, ev, func(tx *sql.Tx) error {
		_, err := beginGeneration(tx, id, restoredRow{made: time.Now()})
		return err
	})
}
