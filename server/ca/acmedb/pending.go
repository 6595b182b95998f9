package acmedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"wardlink/server/sqldb"
)

// maxVerified bounds what is kept of a TPM with its challenge; it is some 700 bytes.
const maxVerified = 8 << 10

// AddPending keeps a challenge of the attestation CA for LifeChallenge, by the SHA-256 of its secret: the secrets themselves are not kept.
// ErrFull when there are too many, so that a flood is refused instead of pushing honest gateways out.
func (s *Store) AddPending(ctx context.Context, secret [32]byte, verified []byte) error {
	if len(verified) > maxVerified {
		return fmt.Errorf("a challenge with %d bytes; expected at most %d", len(verified), maxVerified)
	}
	if int(s.rows.pending.Load()) >= s.limits.Pending {
		return ErrFull
	}
	ends := s.now().Add(LifeChallenge).UnixMilli()
	if err := s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		_, err := tx.Exec("INSERT INTO ca_pending (secret, ends, verified) VALUES ($1, $2, $3)", secret[:], ends, verified)
		return err
	}); err != nil {
		return fmt.Errorf("challenge: %w", err)
	}
	s.rows.pending.Add(1)
	return nil
}

// TakePending removes and returns the challenge of a secret: each is answered once, within its minute, whichever process gave it. Looking up
// by hash keeps the time it takes independent of how much of a guess is right.
func (s *Store) TakePending(ctx context.Context, secret [32]byte) (verified []byte, ok bool, err error) {
	// Most of what is asked for and not there is a guess: that costs no transaction.
	if err := s.db.QueryRow(ctx, "SELECT 1 FROM ca_pending WHERE secret = $1", secret[:]).Scan(new(int)); errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, fmt.Errorf("challenge: %w", err)
	}
	var ends int64
	err = s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		return tx.QueryRow("DELETE FROM ca_pending WHERE secret = $1 RETURNING ends, verified", secret[:]).Scan(&ends, &verified)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("challenge: %w", err)
	}
	s.rows.pending.Add(-1)
	if ends < s.now().UnixMilli() {
		return nil, false, nil
	}
	return verified, true, nil
}
