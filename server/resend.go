package server

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

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
