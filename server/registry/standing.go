package registry

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
)

// Hold says who put a gateway where it is, and why: suspended or decommissioned.
type Hold struct {
	At     time.Time
	By     string // the operator's SPIFFE id
	Reason string // as the operator gave it
}

// HeldError is the ErrNotActive of a gateway that an operator suspended or decommissioned.
type HeldError struct {
	Gateway string
	State   State
	Reason  string
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("gateway %s is %s: %s", e.Gateway, e.State, e.Reason)
}

// Unwrap gives ErrNotActive.
func (e *HeldError) Unwrap() error { return ErrNotActive }

// CutOff names sessions that may not go on: all of a gateway, or, with a Key, those of one device key of it.
type CutOff struct {
	Gateway string
	Key     [32]byte // SPKI hash; zero: whatever the key
	State   State    // of the gateway: Revoked, Suspended or Decommissioned; "" with a Key
}

// CutOff gives what is cut off: gateways that are revoked, suspended or decommissioned, and the keys of replaced boards whose
// certificates have not ended.
func (r *Registry) CutOff(ctx context.Context) (out []CutOff, err error) {
	rows, err := r.db.Query(ctx, `SELECT gateway, spki, '' FROM retired_keys WHERE not_after > $1
		UNION SELECT v.gateway, NULL, 'revoked' FROM revocations v JOIN gateways g ON g.id = v.gateway AND g.state <> 'decommissioned'
		UNION SELECT g.id, NULL, g.state FROM gateway_holds h JOIN gateways g ON g.id = h.gateway WHERE NOT (g.state = 'suspended' AND g.id IN (SELECT gateway FROM revocations))
		ORDER BY 1, 2 NULLS FIRST`, r.now().UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c CutOff
		var key []byte
		if err := rows.Scan(&c.Gateway, &key, &c.State); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		copy(c.Key[:], key)
		out = append(out, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// Suspend cuts a gateway off until Resume: no session, no certificate. It keeps what it takes in. It stands once Suspend returns nil or
// an ErrLate. Suspending again is harmless: the first stands and is returned with again true, and the repeat leaves its own event.
// ErrUnknown; ErrConflict for a gateway that is revoked or decommissioned.
func (r *Registry) Suspend(ctx context.Context, who audit.Actor, peer, id, reason string) (h Hold, again bool, err error) {
	if err := CheckReason(reason); err != nil {
		return Hold{}, false, err
	}
	err = r.commit(ctx, func(tx *sql.Tx) (bool, error) {
		now := r.now()
		g, err := living(tx, now, id)
		if err != nil {
			return false, err
		}
		ev := audit.Event{Type: audit.GatewaySuspended, Actor: who, Peer: peer, Target: id, Outcome: audit.Success, Reason: reason}
		switch g.State {
		case Suspended:
			h, again = *g.Hold, true
			ev.Detail = map[string]string{"suspended_already": h.At.Format(time.RFC3339)}
			return false, r.outbox.Add(tx, ev)
		case Active, Quarantined:
		default:
			return false, refusal.New(ErrConflict, "gateway %s is %s, which is more than suspended", id, g.State)
		}
		h = Hold{At: instant(now.UnixMilli()), By: who.ID, Reason: reason}
		if err := hold(tx, id, Suspended, h); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, ev)
	})
	if err != nil {
		return Hold{}, false, fmt.Errorf("suspend: %w", err)
	}
	return h, again, r.follow(ctx)
}

func hold(tx *sql.Tx, id string, state State, h Hold) error {
	if _, err := tx.Exec("UPDATE gateways SET state = $1 WHERE id = $2", string(state), id); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO gateway_holds (gateway, at, actor, reason) VALUES ($1, $2, $3, $4)
		ON CONFLICT (gateway) DO UPDATE SET at = excluded.at, actor = excluded.actor, reason = excluded.reason`,
		id, h.At.UnixMilli(), h.By, h.Reason)
	return err
}

// Resume takes a suspension back, and a revocation, for which a reason is needed. It gives what the gateway was. A gateway that is active
// is left alone. ErrUnknown; ErrConflict for a gateway that is decommissioned, which is for ever.
func (r *Registry) Resume(ctx context.Context, who audit.Actor, peer, id, reason string) (was State, err error) {
	if reason != "" {
		if err := CheckReason(reason); err != nil {
			return "", err
		}
	}
	err = r.change(ctx, func(tx *sql.Tx) (bool, error) {
		g, err := living(tx, r.now(), id)
		if err != nil {
			return false, err
		}
		if end, err := endOf(tx, id); err != nil || end != nil && (end.Done != nil || !end.Drain) {
			return false, cmp.Or(err, over(g))
		}
		was = g.State
		ev := audit.Event{Type: audit.GatewayResumed, Actor: who, Peer: peer, Target: id, Outcome: audit.Success, Reason: reason,
			Detail: map[string]string{"was": string(was)}}
		switch {
		case was == Active:
			return false, r.outbox.Add(tx, ev)
		case was == Quarantined:
			return false, refusal.New(ErrConflict, "gateway %s is in quarantine, and connected: 'wardlink gateway readmit %s --reason TEXT' ends that", id, id)
		case was == Revoked && reason == "":
			return false, refusal.New(ErrConflict, "gateway %s is revoked (%s): to take that back give a reason, it stands in the log", id, g.Revoked.Reason)
		case was == Revoked:
			ev.Detail["revoked_at"], ev.Detail["revoked_by"], ev.Detail["revoked_for"] = g.Revoked.At.Format(time.RFC3339), g.Revoked.By, g.Revoked.Reason
			if _, err := tx.Exec("DELETE FROM revocations WHERE gateway = $1", id); err != nil {
				return false, err
			}
			if g.Hold != nil { // it was suspended before
				ev.Detail["suspended_for"] = g.Hold.Reason
			}
		default:
			ev.Detail["suspended_for"] = g.Hold.Reason
		}
		if _, err := tx.Exec("DELETE FROM gateway_holds WHERE gateway = $1", id); err != nil {
			return false, err
		}
		state, err := unheld(tx, id)
		if err != nil {
			return false, err
		}
		if _, err := tx.Exec("UPDATE gateways SET state = $1 WHERE id = $2", string(state), id); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, ev)
	})
	if err != nil {
		return was, fmt.Errorf("resume: %w", err)
	}
	return was, nil
}
