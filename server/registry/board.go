package registry

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/refusal"
)

// RetiredError is the ErrNotActive of a board that was replaced: its TPM is nobody's gateway any more, and never will be.
type RetiredError struct {
	Gateway string // that it was
	Reason  string
}

func (e *RetiredError) Error() string {
	return fmt.Sprintf("this TPM was gateway %s until its board was replaced (%s); it is never admitted again", e.Gateway, e.Reason)
}

// Unwrap gives ErrNotActive.
func (e *RetiredError) Unwrap() error { return ErrNotActive }

// Replacement is what Replace did.
type Replacement struct {
	Gateway  string
	Old, New [][32]byte // endorsement keys
	Serials  []string   // of the old board's certificates that were valid, the newest first, at most 24
	State    State      // of the gateway: a replacement does not resume one that is suspended or revoked
}

// Replace gives a gateway another board: the TPM or TPM keys that boards names, each by the fingerprint of a TPM that waits or by the
// whole hash of an endorsement key in hex. The old board's keys stay as tombstones: no session, no certificate, no id ever again. The
// history of its device keys stays too, so that what it sealed is still verified. It stands once Replace returns nil or an ErrLate.
// ErrUnknown for a gateway or a fingerprint that is not there; ErrConflict when the gateway is decommissioned or a TPM is another's,
// retired, or the gateway's own.
func (r *Registry) Replace(ctx context.Context, who audit.Actor, peer, id, reason string, boards []string) (out Replacement, err error) {
	if err := CheckReason(reason); err != nil {
		return out, err
	}
	if len(boards) == 0 || len(boards) > maxEKs {
		return out, fmt.Errorf("%d endorsement keys of the new board; expected 1 to %d", len(boards), maxEKs)
	}
	err = r.commit(ctx, func(tx *sql.Tx) (bool, error) {
		now := r.now()
		g, err := living(tx, now, id)
		if err != nil {
			return false, err
		}
		if end, err := endOf(tx, id); err != nil || end != nil {
			return false, cmp.Or(err, refusal.New(ErrConflict, "gateway %s is being decommissioned; register the new board under another id", id))
		}
		out = Replacement{Gateway: id, Old: g.EKs, State: g.State}
		if out.New, err = newBoard(tx, id, peer, boards); err != nil {
			return false, err
		}
		serials, valid, err := validSerials(tx, id, now)
		if err != nil {
			return false, err
		}
		out.Serials = serials
		if err := swap(tx, who, id, reason, now, out); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, audit.Event{Type: audit.GatewayReplaced, Actor: who, Peer: peer, Target: id, Outcome: audit.Success, Reason: reason,
			Detail: map[string]string{"old_ek_sha256": hexes(out.Old), "ek_sha256": hexes(out.New),
				"serials": strings.Join(serials, " "), "certificates": strconv.Itoa(valid)}})
	})
	if err != nil {
		return Replacement{}, fmt.Errorf("replace: %w", r.noteTaken(ctx, who, err))
	}
	return out, r.follow(ctx)
}

// newBoard finds the endorsement keys that an operator named, and refuses those that are taken.
func newBoard(tx *sql.Tx, id, peer string, boards []string) (eks [][32]byte, err error) {
	seen := make(map[[32]byte]bool)
	for _, name := range boards {
		ek, whole := wholeHash(name)
		if !whole {
			if ek, err = findWaiting(tx, name); err != nil {
				return nil, err
			}
		}
		reason, owner, err := taken(tx, ek)
		if err != nil {
			return nil, err
		}
		if reason == "" && seen[ek] {
			reason = "endorsement key " + enroll.Fingerprint(ek) + " is given twice"
		}
		if reason != "" {
			return nil, refuseTaken(reason, owner, id, peer)
		}
		seen[ek] = true
		eks = append(eks, ek)
	}
	return eks, nil
}

func wholeHash(s string) (ek [32]byte, ok bool) {
	b, err := hex.DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != len(ek) {
		return ek, false
	}
	return [32]byte(b), true
}

// taken says whose an endorsement key is or was; "" for one that is free. owner is set where it is a gateway's now.
func taken(tx *sql.Tx, ek [32]byte) (reason, owner string, err error) {
	err = tx.QueryRow("SELECT gateway FROM gateway_eks WHERE ek = $1", ek[:]).Scan(&owner)
	if err == nil {
		return "endorsement key " + enroll.Fingerprint(ek) + " belongs to gateway " + owner + " already; one TPM is one gateway", owner, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return "", "", err
	}
	var was string
	var at int64
	err = tx.QueryRow("SELECT gateway, at FROM retired_eks WHERE ek = $1", ek[:]).Scan(&was, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return "", "", nil
	}
	return fmt.Sprintf("endorsement key %s was gateway %s's until its board was replaced at %s; it is never admitted again",
		enroll.Fingerprint(ek), was, instant(at).Format(time.RFC3339)), "", err
}

// swap retires the old board and enters the new one.
func swap(tx *sql.Tx, who audit.Actor, id, reason string, now time.Time, s Replacement) error {
	for _, ek := range s.Old {
		if _, err := tx.Exec("INSERT INTO retired_eks (ek, gateway, at, actor, reason) VALUES ($1, $2, $3, $4, $5)",
			ek[:], id, now.UnixMilli(), who.ID, reason); err != nil {
			return err
		}
	}
	if _, err := tx.Exec("DELETE FROM gateway_eks WHERE gateway = $1", id); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO retired_keys (spki, gateway, not_after)
		SELECT k.spki, k.gateway, COALESCE((SELECT MAX(c.not_after) FROM gateway_certificates c WHERE c.spki = k.spki), 0)
		FROM gateway_keys k WHERE k.gateway = $1 ON CONFLICT (spki) DO NOTHING`, id); err != nil {
		return err
	}
	if err := errors.Join(forgetBoot(tx, id), settle(tx, id, s.New)); err != nil {
		return err
	}
	for _, ek := range s.New {
		if _, err := tx.Exec("INSERT INTO gateway_eks (ek, gateway) VALUES ($1, $2)", ek[:], id); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM waiting WHERE ek = $1", ek[:]); err != nil {
			return err
		}
	}
	return nil
}

// Retired gives the endorsement keys of a gateway's former boards, in the order in which they were replaced.
func (r *Registry) Retired(ctx context.Context, gateway string) (eks [][32]byte, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		eks, err = hashes(tx, "SELECT ek FROM retired_eks WHERE gateway = $1 ORDER BY at, ek", gateway)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return eks, nil
}

// Attested notes the attestation key that a gateway's TPM has just proven. Another one than before, under the same endorsement key, is an
// event: the TPM was cleared, or what the gateway keeps of its keys was lost. Neither changes who the gateway is. ErrTwoGateways for a key that a TPM has shown
// under another gateway's endorsement key: it is one box, and the contention is noted. A *CodeError for a first attestation that wants a one-time
// code, and code is not it.
func (r *Registry) Attested(ctx context.Context, gateway string, ek [32]byte, ak []byte, code string) error {
	if len(ak) == 0 || len(ak) > 128 {
		return fmt.Errorf("attestation key: a name of %d bytes", len(ak))
	}
	var have []byte
	err := r.db.QueryRow(ctx, "SELECT ak FROM attested_aks WHERE ek = $1", ek[:]).Scan(&have)
	switch {
	case err == nil && string(have) == string(ak):
		return nil
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("registry: %w", err)
	}
	other, wants := "", ""
	err = r.change(ctx, func(tx *sql.Tx) (_ bool, err error) {
		if other, err = otherOf(tx, gateway, ak); err != nil {
			return false, err
		}
		if other != "" {
			return false, r.contend(tx, audit.Actor{ID: "server"}, Contention{Claim: OneTPM, Gateway: gateway, Rival: other})
		}
		if have == nil {
			if wants, err = r.redeem(tx, gateway, code); err != nil || wants != "" {
				return false, err
			}
		}
		if _, err := tx.Exec(`INSERT INTO attested_aks (ek, ak, at) VALUES ($1, $2, $3)
			ON CONFLICT (ek) DO UPDATE SET ak = excluded.ak, at = excluded.at`, ek[:], ak, r.now().UnixMilli()); err != nil {
			return false, err
		}
		if have == nil {
			return false, nil
		}
		return false, r.outbox.Add(tx, audit.Event{Type: audit.TPMCleared, Actor: audit.Actor{ID: "server"}, Target: gateway, Outcome: audit.Success,
			Reason: "a new attestation key under the same endorsement key: the TPM was cleared, or the gateway's key files were lost",
			Detail: map[string]string{"ek_sha256": hex.EncodeToString(ek[:]), "ak_name": hex.EncodeToString(ak), "ak_name_before": hex.EncodeToString(have)}})
	})
	switch {
	case err != nil:
	case wants != "":
		return &CodeError{gateway, wants}
	case other != "":
		err = fmt.Errorf("gateway %s is gateway %s: %w", gateway, other, ErrTwoGateways)
	}
	return err
}
