package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
)

// Revocation is the fact that a gateway was cut off: from its moment on it is admitted nowhere and certified by nobody.
type Revocation struct {
	At      time.Time
	By      string   // the operator's SPIFFE id
	Reason  string   // as the operator gave it
	Serials []string // of the gateway's certificates that were valid, the newest first, at most 24; lower-case hex
}

// ErrRevoked is the ErrNotActive of a gateway that was cut off. Those who want the operator's reason look for a *RevokedError.
var ErrRevoked = fmt.Errorf("revoked: %w", ErrNotActive)

// RevokedError is what is answered for a revoked gateway.
type RevokedError struct{ Gateway, Reason string }

func (e *RevokedError) Error() string {
	return fmt.Sprintf("gateway %s is revoked: %s", e.Gateway, e.Reason)
}

// Unwrap gives ErrRevoked.
func (e *RevokedError) Unwrap() error { return ErrRevoked }

// ErrLate marks an act that is done and whose event is not in the journal yet. The event waits in the database and follows.
var ErrLate = errors.New("its event is not in the journal yet")

const (
	maxReason  = 200             // bytes of an operator's reason
	maxSerials = 24              // certificates in a revocation's event; a gateway that renews at half-life has two or three
	eventWait  = 2 * time.Second // how long a revocation's answer waits for the journal
)

// CheckReason says what is wrong with an operator's reason and how to mend it.
func CheckReason(reason string) error {
	if strings.TrimSpace(reason) == "" {
		return errors.New("a reason is needed (--reason TEXT): it stands in the log, and whom it concerns is told")
	}
	if !oneLine(reason, maxReason) {
		return fmt.Errorf("reason: expected at most %d bytes of printable UTF-8 on one line", maxReason)
	}
	return nil
}

// Revoke cuts a gateway off, for the given reason. It stands once Revoke returns nil or an ErrLate: the journal is waited for, but
// only for two seconds, and a journal that cannot be written undoes nothing. Revoking again is harmless: the first revocation
// stands and is returned with again true, and the repeat leaves its own event. ErrUnknown when there is no such gateway;
// ErrConflict for one that is decommissioned, which is more and for ever.
func (r *Registry) Revoke(ctx context.Context, who audit.Actor, peer, id, reason string) (rev Revocation, again bool, err error) {
	if err := CheckReason(reason); err != nil {
		return Revocation{}, false, err
	}
	err = r.commit(ctx, func(tx *sql.Tx) (bool, error) {
		g, err := living(tx, r.now(), id)
		if err != nil {
			return false, err
		}
		ev := audit.Event{Type: audit.GatewayRevoked, Actor: who, Peer: peer, Target: id, Outcome: audit.Success, Reason: reason}
		if g.Revoked != nil {
			rev, again = *g.Revoked, true
			ev.Detail = map[string]string{"revoked_already": rev.At.Format(time.RFC3339)}
			return false, r.outbox.Add(tx, ev)
		}
		now := r.now()
		serials, valid, err := validSerials(tx, id, now)
		if err != nil {
			return false, err
		}
		rev = Revocation{At: instant(now.UnixMilli()), By: who.ID, Reason: reason, Serials: serials}
		ev.Detail = map[string]string{"serials": strings.Join(serials, " "), "certificates": strconv.Itoa(valid)}
		if _, err := tx.Exec("INSERT INTO revocations (gateway, at, actor, reason, serials) VALUES ($1, $2, $3, $4, $5)",
			id, now.UnixMilli(), who.ID, reason, ev.Detail["serials"]); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, ev)
	})
	if err != nil {
		return Revocation{}, false, fmt.Errorf("revoke: %w", err)
	}
	return rev, again, r.follow(ctx)
}

// follow moves events to the journal, and waits a bounded time for it. A journal that hangs holds Flush, which no context reaches
// while another holds it; that one goes on by itself.
func (r *Registry) follow(ctx context.Context) error {
	flushed := make(chan error, 1)
	go func() { flushed <- r.outbox.Flush(context.WithoutCancel(ctx)) }()
	timer := time.NewTimer(eventWait)
	defer timer.Stop()
	select {
	case err := <-flushed:
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLate, err)
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("%w: the journal does not answer", ErrLate)
	}
}

// validSerials are the newest of the gateway's certificates that are valid now, and how many there are in all.
func validSerials(tx *sql.Tx, gateway string, now time.Time) (serials []string, valid int, err error) {
	rows, err := tx.Query(`SELECT c.serial FROM gateway_certificates c JOIN gateway_keys k ON k.spki = c.spki
		WHERE k.gateway = $1 AND c.not_after > $2 ORDER BY c.added DESC, c.serial`, gateway, now.UnixMilli())
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = rows.Close() }()
	for ; rows.Next(); valid++ {
		var serial string
		if err := rows.Scan(&serial); err != nil {
			return nil, 0, err
		}
		if len(serials) < maxSerials {
			serials = append(serials, serial)
		}
	}
	return serials, valid, rows.Err()
}
