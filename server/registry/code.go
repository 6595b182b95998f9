package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
)

//go:embed codes_0001.sql
var codes1 string

// Bounds of one-time codes.
const (
	MaxCodeLife = 30 * 24 * time.Hour
	codeTries   = 10 // wrong ones; then another code must be made
	maxGiven    = 64 // bytes of what is given as one
)

// CodeError is why a TPM that is a gateway's is not certified yet: its first attestation wants a one-time code.
type CodeError struct{ Gateway, Why string }

func (e *CodeError) Error() string { return fmt.Sprintf("gateway %s: %s", e.Gateway, e.Why) }

// Code is a one-time code that waits.
type Code struct {
	Ends  time.Time
	Tries int // that are left
	Made  time.Time
	By    string
}

// MakeCode makes the one-time code (130 bits) that the gateway's TPM must be given at its first attestation, in the place of one that waits. It is
// returned here and kept nowhere: the database has its hash. ErrUnknown; ErrConflict when each of the gateway's TPM keys has attested already, and for a gateway that is decommissioned.
func (r *Registry) MakeCode(ctx context.Context, who audit.Actor, peer, id string, life time.Duration) (code string, ends time.Time, err error) {
	if life < time.Minute || life > MaxCodeLife {
		return "", ends, fmt.Errorf("life of the code: %v; expected 1m to %v", life, MaxCodeLife)
	}
	code = rand.Text()
	hash := hashCode(code)
	err = r.change(ctx, func(tx *sql.Tx) (bool, error) {
		now := r.now()
		if _, err := living(tx, now, id); errors.Is(err, ErrUnknown) {
			return false, refusal.New(ErrUnknown, "gateway %.64q: not in the registry, and a code is for one that is, before it first comes: enter it with 'wardlink gateway import FILE' ('wardlink gateway list' shows those that are there)", id)
		} else if err != nil {
			return false, err
		}
		var fresh int
		if err := tx.QueryRow("SELECT COUNT(*) FROM gateway_eks e WHERE e.gateway = $1 AND NOT EXISTS (SELECT 1 FROM attested_aks a WHERE a.ek = e.ek)", id).Scan(&fresh); err != nil {
			return false, err
		}
		if fresh == 0 {
			return false, refusal.New(ErrConflict, "gateway %s has enrolled already; a code is for the first time, and for the first time of another board", id)
		}
		ends = instant(now.Add(life).UnixMilli())
		if _, err := tx.Exec(`INSERT INTO enrol_codes (gateway, hash, ends, tries, made, actor) VALUES ($1, $2, $3, 0, $4, $5)
			ON CONFLICT (gateway) DO UPDATE SET hash = excluded.hash, ends = excluded.ends, tries = 0, made = excluded.made, actor = excluded.actor`,
			id, hash[:], ends.UnixMilli(), now.UnixMilli(), who.ID); err != nil {
			return false, err
		}
		return false, r.outbox.Add(tx, audit.Event{Type: audit.CodeMade, Actor: who, Peer: peer, Target: id, Outcome: audit.Success,
			Detail: map[string]string{"ends": ends.Format(time.RFC3339)}})
	})
	if err != nil {
		return "", ends, fmt.Errorf("code: %w", err)
	}
	return code, ends, nil
}

// hashCode takes a code as people type it: hyphens, spaces and case do not count.
func hashCode(code string) [32]byte {
	return sha256.Sum256([]byte(strings.ToUpper(strings.NewReplacer("-", "", " ", "").Replace(strings.TrimSpace(code)))))
}

// CodeOf gives the code that waits for a gateway, nil when there is none.
func (r *Registry) CodeOf(ctx context.Context, id string) (c *Code, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		c, _, err = codeOf(tx, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return c, nil
}

func codeOf(tx *sql.Tx, id string) (*Code, []byte, error) {
	var c Code
	var hash []byte
	var ends, made int64
	err := tx.QueryRow("SELECT hash, ends, tries, made, actor FROM enrol_codes WHERE gateway = $1", id).Scan(&hash, &ends, &c.Tries, &made, &c.By)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, nil
	}
	c.Ends, c.Made, c.Tries = instant(ends), instant(made), codeTries-c.Tries
	return &c, hash, err
}

// redeem asks for the code of a TPM that has never attested, in the transaction that notes its first attestation: a code is used once or, should that
// transaction fail, not at all. why is set when it is not certified; what redeem wrote then stands.
func (r *Registry) redeem(tx *sql.Tx, id, given string) (why string, err error) {
	c, hash, err := codeOf(tx, id)
	if err != nil || c == nil && !r.codeRequired {
		return "", err
	}
	switch {
	case c == nil:
		return "its first enrolment wants a one-time code, and none was made: 'wardlink provision code " + id + "'", nil
	case !r.now().Before(c.Ends):
		return "its one-time code has ended: 'wardlink provision code " + id + "' makes another", nil
	case c.Tries <= 0:
		return "its one-time code was tried too often: 'wardlink provision code " + id + "' makes another", nil
	case given == "":
		return "its first enrolment wants the one-time code that was made for it: write it into the file enrol-code of the agent's state directory", nil
	}
	sum := hashCode(given[:min(len(given), maxGiven)])
	if subtle.ConstantTimeCompare(sum[:], hash) != 1 {
		_, err := tx.Exec("UPDATE enrol_codes SET tries = tries + 1 WHERE gateway = $1", id)
		return "the one-time code is wrong; " + strconv.Itoa(c.Tries-1) + " tries are left", err
	}
	if _, err := tx.Exec("DELETE FROM enrol_codes WHERE gateway = $1", id); err != nil {
		return "", err
	}
	return "", r.outbox.Add(tx, audit.Event{Type: audit.CodeUsed, Actor: audit.Actor{ID: "server"}, Target: id, Outcome: audit.Success,
		Detail: map[string]string{"made": c.Made.Format(time.RFC3339), "by": c.By}})
}
