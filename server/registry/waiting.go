package registry

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/refusal"
	"wardlink/server/sqldb"
)

// Waiting is a TPM that has proven an endorsement key which nobody has entered.
type Waiting struct {
	EK           [32]byte // SHA-256 of the EK's public key
	EKPublic     []byte
	Manufacturer string
	Model        string
	Chain        bool // its EK certificate chains to a manufacturer that we know
	Peer         string
	Serial       string // what the gateway says that its serial number is; anybody can say anything

	// Set by the registry.
	Fingerprint         string
	FirstSeen, LastSeen time.Time
	SerialOf            string // the gateway that was approved by this very serial number, when another TPM had it; one of the two lies
}

const (
	maxEKPublic  = 4096
	maxTPMName   = 100
	maxSerial    = 64
	seenInterval = time.Minute // how precisely LastSeen is kept; a TPM that asks more often costs no write
)

// Wait puts a TPM into the list, or notes that it is still there. The list is bounded: when it is full, the TPM that has not been
// seen for longest makes room, and is counted. A TPM that was entered meanwhile is not put back: ErrConflict.
func (r *Registry) Wait(ctx context.Context, w Waiting) error {
	if len(w.EKPublic) > maxEKPublic {
		return fmt.Errorf("endorsement key: %d bytes; at most %d", len(w.EKPublic), maxEKPublic)
	}
	if w.EKPublic == nil {
		w.EKPublic = []byte{} // nil would be NULL
	}
	w.Manufacturer, w.Model, w.Serial = printable(w.Manufacturer), printable(w.Model), printable(w.Serial[:min(len(w.Serial), maxSerial)])
	now := r.now().UnixMilli()
	var last int64
	err := r.db.QueryRow(ctx, "SELECT last_seen FROM waiting WHERE ek = $1", w.EK[:]).Scan(&last)
	switch {
	case err == nil && now-last < seenInterval.Milliseconds() && now >= last:
		return nil
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("registry: %w", err)
	}
	return r.change(ctx, func(tx *sql.Tx) (bool, error) { return false, r.wait(tx, &w, now) })
}

func (r *Registry) wait(tx *sql.Tx, w *Waiting, now int64) error {
	reason, _, err := taken(tx, w.EK)
	if err != nil {
		return err
	}
	if reason != "" {
		return refusal.New(ErrConflict, "%s", reason)
	}
	res, err := tx.Exec("UPDATE waiting SET last_seen = $1, peer = $2 WHERE ek = $3", now, w.Peer, w.EK[:])
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return errors.Join(err, claim(tx, w))
	}
	if err := r.makeRoom(tx); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO waiting (ek, fingerprint, ek_public, manufacturer, model, chain, peer, first_seen, last_seen)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)`,
		w.EK[:], enroll.Fingerprint(w.EK), w.EKPublic, w.Manufacturer, w.Model, sqldb.Flag(w.Chain), w.Peer, now); err != nil {
		return err
	}
	if err := claim(tx, w); err != nil {
		return err
	}
	return r.outbox.Add(tx, audit.Event{
		Type: audit.GatewayWaiting, Actor: audit.Actor{ID: "peer"}, Peer: w.Peer, Target: enroll.Fingerprint(w.EK), Outcome: audit.Success,
		Detail: map[string]string{"ek_sha256": hex.EncodeToString(w.EK[:]), "manufacturer": w.Manufacturer, "model": w.Model, "chain": fmt.Sprint(w.Chain), "claimed_serial": w.Serial},
	})
}

// claim keeps what a waiting gateway says its serial number is, in the place of what it said before.
func claim(tx *sql.Tx, w *Waiting) error {
	if w.Serial == "" {
		_, err := tx.Exec("DELETE FROM waiting_serials WHERE ek = $1", w.EK[:])
		return err
	}
	_, err := tx.Exec("INSERT INTO waiting_serials (ek, serial) VALUES ($1, $2) ON CONFLICT (ek) DO UPDATE SET serial = excluded.serial", w.EK[:], w.Serial)
	return err
}

func (r *Registry) makeRoom(tx *sql.Tx) error {
	var n int
	if err := tx.QueryRow("SELECT COUNT(*) FROM waiting").Scan(&n); err != nil {
		return err
	}
	drop := n - r.maxWaiting + 1
	if drop <= 0 {
		return nil
	}
	if _, err := tx.Exec("DELETE FROM waiting WHERE ek IN (SELECT ek FROM waiting ORDER BY last_seen, ek LIMIT $1)", drop); err != nil {
		return err
	}
	_, err := tx.Exec("UPDATE registry_state SET waiting_dropped = waiting_dropped + $1", drop)
	return err
}

// printable shortens what a TPM says of itself and takes out what could play with an operator's terminal.
func printable(s string) string { return strings.TrimSpace(ascii(s, maxTPMName)) }

// ascii keeps the first bytes of a text, each that is not printable ASCII as a question mark.
func ascii(s string, most int) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s[:min(len(s), most)])
}

// Waiting lists the TPMs that wait, the latest first.
func (r *Registry) Waiting(ctx context.Context) ([]Waiting, error) {
	rows, err := r.db.Query(ctx, `SELECT w.ek, w.fingerprint, w.ek_public, w.manufacturer, w.model, w.chain, w.peer, w.first_seen, w.last_seen,
		COALESCE(s.serial, ''), COALESCE(g.gateway, '')
		FROM waiting w LEFT JOIN waiting_serials s ON s.ek = w.ek LEFT JOIN gateway_serials g ON g.serial = s.serial
		ORDER BY w.first_seen DESC, w.ek`)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Waiting
	for rows.Next() {
		var w Waiting
		var ek []byte
		var chain int
		var first, last int64
		if err := rows.Scan(&ek, &w.Fingerprint, &w.EKPublic, &w.Manufacturer, &w.Model, &chain, &w.Peer, &first, &last,
			&w.Serial, &w.SerialOf); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		w.EK, w.Chain = [32]byte(ek), chain == 1
		w.FirstSeen, w.LastSeen = instant(first), instant(last)
		out = append(out, w)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// WaitingDropped is how many TPMs had to make room in the list since the registry was made.
func (r *Registry) WaitingDropped(ctx context.Context) (n int64, err error) {
	if err = r.db.QueryRow(ctx, "SELECT waiting_dropped FROM registry_state").Scan(&n); err != nil {
		return 0, fmt.Errorf("registry: %w", err)
	}
	return n, nil
}

// Approve admits the waiting TPM with the given fingerprint, or EK hash in hex, as the gateway g; g.EKs is not used. ErrUnknown
// when no such TPM waits, ErrConflict when g's id is taken.
func (r *Registry) Approve(ctx context.Context, who audit.Actor, peer string, fingerprint string, g Gateway) error {
	err := r.change(ctx, func(tx *sql.Tx) (bool, error) {
		ek, err := findWaiting(tx, fingerprint)
		if err != nil {
			return false, err
		}
		g.EKs = [][32]byte{ek}
		if err := g.check(); err != nil {
			return false, err
		}
		res, err := r.enter(tx, who, peer, &g, audit.GatewayApproved)
		if err != nil {
			return false, err
		}
		if res.Outcome != Added {
			// The transaction is undone; the caller journals what it refuses.
			return false, refuseTaken(res.Reason, res.owner, g.ID, peer)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("approve: %w", r.noteTaken(ctx, who, err))
	}
	return nil
}

// findWaiting takes a fingerprint with or without its hyphens and in either case, or the whole hash in hex.
func findWaiting(tx *sql.Tx, s string) (ek [32]byte, err error) {
	var found [][32]byte
	compact := strings.ToUpper(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	if hash, whole := wholeHash(compact); whole {
		found, err = hashes(tx, "SELECT ek FROM waiting WHERE ek = $1", hash[:])
	} else if len(compact) == 16 {
		found, err = hashes(tx, "SELECT ek FROM waiting WHERE fingerprint = $1", compact[0:4]+"-"+compact[4:8]+"-"+compact[8:12]+"-"+compact[12:16])
	} else {
		return ek, fmt.Errorf("%.80q is neither a fingerprint (ABCD-EFGH-IJKL-MNOP) nor the SHA-256 of an endorsement key (64 hex digits)", s)
	}
	switch {
	case err != nil:
		return ek, err
	case len(found) == 0:
		return ek, refusal.New(ErrUnknown, "no TPM waits under %.80q; 'wardlink gateway list' shows those that do", s)
	case len(found) > 1:
		return ek, refusal.New(ErrConflict, "%d TPMs wait under %.80q; give the whole SHA-256 of the endorsement key", len(found), s)
	}
	return found[0], nil
}
