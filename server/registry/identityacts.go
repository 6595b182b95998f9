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
	"wardlink/internal/refusal"
	"wardlink/internal/spiffe"
)

const (
	// maxCertificates of one identity count at a time: one that renews itself at half-life has two, and a few more after answers that were
	// lost. The next one ends the oldest, so that nobody is locked out by it, and the list stays short.
	maxCertificates = 8
	// keptCertificates is how long a certificate's row stays behind its end: for who looks when it was.
	keptCertificates = 90 * 24 * time.Hour
	// MaxOverlap of a rotation: no longer than a certificate of a service account lives.
	MaxOverlap = 24 * time.Hour
)

// check says what is wrong with an identity that is to be entered, and gives its scope in its one spelling.
func (i *Identity) check() (err error) {
	if err := spiffe.ValidName(i.Name); err != nil {
		return err
	}
	for name, label := range map[string]string{"owner": i.Owner, "contact": i.Contact} {
		if !oneLine(label, maxLabel) {
			return fmt.Errorf("%s: expected at most %d bytes of printable UTF-8", name, maxLabel)
		}
	}
	if i.Scope, err = i.Scope.Checked(); err != nil {
		return err
	}
	switch i.Kind {
	case spiffe.Access:
		if i.Role != "" {
			return errors.New("a service account has no role; give it a scope")
		}
	case spiffe.Operator:
		if !i.Scope.Empty() {
			return errors.New("an operator has no scope; give a role")
		}
		if err := CheckRole(i.Role); err != nil {
			return err
		}
	default:
		return fmt.Errorf("an identity of kind %.20q is not made here", i.Kind)
	}
	return nil
}

// CheckIdentity says what is wrong with an identity that is to be entered, and how to mend it.
func CheckIdentity(i Identity) error { return i.check() }

// AddIdentity enters an identity in tx, for a command that works beside the server: an operator is made with the CA's key. One that is
// there must be active, and keeps what it is but for a role that is given. The caller leaves the event.
func AddIdentity(tx *sql.Tx, now time.Time, by string, i Identity) (again bool, err error) {
	former, err := identityOf(tx, now, i.Kind, i.Name)
	switch {
	case errors.Is(err, ErrUnknown):
		if i.Kind == spiffe.Operator && i.Role == "" {
			i.Role = Operate
		}
		if err := i.check(); err != nil {
			return false, err
		}
		scope, err := i.Scope.text()
		if err != nil {
			return false, err
		}
		_, err = tx.Exec(`INSERT INTO identities (kind, name, owner, contact, role, scope, state, changed, changed_by, reason, created, creator, used, used_for)
			VALUES ($1, $2, $3, $4, $5, $6, 'active', 0, '', '', $7, $8, 0, '')`,
			string(i.Kind), i.Name, i.Owner, i.Contact, string(i.Role), scope, now.UnixMilli(), by)
		return false, err
	case err != nil:
		return false, err
	case former.admissible() != nil:
		return true, refusal.New(ErrConflict, "%w; %s", former.admissible(), mendState(former))
	case i.Role != "" && i.Role != former.Role:
		_, err = tx.Exec("UPDATE identities SET role = $1 WHERE kind = $2 AND name = $3", string(i.Role), string(i.Kind), i.Name)
	}
	return true, err
}

func mendState(i Identity) string {
	if i.State == Suspended {
		return fmt.Sprintf("'wardlink %s resume %s' lets it go on", commandOf(i.Kind), i.Name)
	}
	return "a name that was revoked is never used again; take another"
}

// commandOf is the operator's tool's command for a kind.
func commandOf(k spiffe.Kind) string { return string(k) }

// AddCertificate enters a certificate of an identity in tx, before it is handed out. Of those that count maxCertificates stay, and never
// does the one with the serial keep end for it.
func AddCertificate(tx *sql.Tx, now time.Time, kind spiffe.Kind, name, keep string, c IdentityCertificate) error {
	if c.Serial == "" || len(c.Serial) > 64 || c.NotAfter.IsZero() {
		return errors.New("certificate: expected a serial of 1 to 64 hex digits and an end of validity")
	}
	if _, err := tx.Exec("DELETE FROM identity_certificates WHERE kind = $1 AND name = $2 AND not_after < $3", string(kind), name, now.Add(-keptCertificates).UnixMilli()); err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE identity_certificates SET ends = $1 WHERE serial IN (
		SELECT serial FROM identity_certificates WHERE kind = $2 AND name = $3 AND not_after > $1 AND ends > $1 AND serial <> $4 ORDER BY added DESC, not_after DESC, serial LIMIT 1000 OFFSET $5)`,
		now.UnixMilli(), string(kind), name, keep, maxCertificates-2); err != nil {
		return err
	}
	res, err := tx.Exec(`INSERT INTO identity_certificates (serial, kind, name, spki, not_before, not_after, ends, added) VALUES ($1, $2, $3, $4, $5, $6, $6, $7)
		ON CONFLICT (serial) DO NOTHING`, c.Serial, string(kind), name, c.SPKI[:], millis(c.NotBefore), millis(c.NotAfter), now.UnixMilli())
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, refusal.New(ErrConflict, "certificate serial %s is taken", c.Serial))
	}
	return nil
}

// Enter makes an identity: ErrConflict when there is one of that name, now or ever.
func (r *Registry) Enter(ctx context.Context, who audit.Actor, peer string, i Identity) error {
	if err := i.check(); err != nil {
		return err
	}
	err := r.change(ctx, func(tx *sql.Tx) (bool, error) {
		if former, err := identityOf(tx, r.now(), i.Kind, i.Name); err == nil {
			return false, refusal.New(ErrConflict, "%s %s is there already, %s", kindName(i.Kind), i.Name, former.State)
		} else if !errors.Is(err, ErrUnknown) {
			return false, err
		}
		if _, err := AddIdentity(tx, r.now(), who.ID, i); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, audit.Event{Type: audit.IdentityCreated, Actor: who, Peer: peer, Target: i.Subject(), Outcome: audit.Success, Detail: i.detail()})
	})
	return named("enter", err)
}

// detail is what an event says of an identity's powers.
func (i Identity) detail() map[string]string {
	out := map[string]string{"owner": i.Owner, "contact": i.Contact}
	if i.Kind == spiffe.Operator {
		out["role"] = string(i.Role)
	} else {
		out["scope"] = i.Scope.detail()
	}
	return out
}

// detail is the scope as an event holds it, whose values have at most 1 KB: the lists' beginnings where they are longer.
func (s Scope) detail() string {
	const most = 1000
	if text, err := s.text(); err == nil && len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(s.String()[:min(len(s.String()), most)], "")
}

// Certify enters a certificate of an identity that is active, before it is handed out: ErrUnknown, or an *IdentityError. shown is the serial
// of the certificate by which the holder asked for it; "" when an operator did.
func (r *Registry) Certify(ctx context.Context, who audit.Actor, peer string, kind spiffe.Kind, name, shown string, c IdentityCertificate) error {
	err := r.change(ctx, func(tx *sql.Tx) (bool, error) {
		i, err := identityOf(tx, r.now(), kind, name)
		if err == nil {
			err = i.admissible()
		}
		if err != nil {
			return false, err
		}
		if err := r.renews(tx, i, shown); err != nil {
			return false, err
		}
		if err := AddCertificate(tx, r.now(), kind, name, shown, c); err != nil {
			return false, err
		}
		ev := audit.Event{Type: audit.AccessIssued, Actor: who, Peer: peer, Target: name, Outcome: audit.Success, Detail: map[string]string{
			"serial": c.Serial, "spki_sha256": fmt.Sprintf("%x", c.SPKI), "not_after": c.NotAfter.UTC().Format(time.RFC3339)}}
		if kind == spiffe.Operator {
			ev.Type, ev.Target = audit.OperatorRenewed, i.Subject()
		}
		if shown != "" {
			ev.Detail["renews"] = shown
		}
		return true, r.outbox.Add(tx, ev)
	})
	return named("certify", err)
}

// maxRenewals of one identity within an hour: a system that keeps itself needs one, and each costs the CA a signature and the log two leaves.
const maxRenewals = 30

// renews says why a certificate may not be renewed by the one that is shown, which may have been rotated out since its holder was let in; nil for
// shown == "", when an operator asks.
func (r *Registry) renews(tx *sql.Tx, i Identity, shown string) error {
	if shown == "" {
		return nil
	}
	now := r.now()
	var ends int64
	err := tx.QueryRow("SELECT ends FROM identity_certificates WHERE serial = $1 AND kind = $2 AND name = $3", shown, string(i.Kind), i.Name).Scan(&ends)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("certificate %s: %w", shown, ErrUnknown)
	case err != nil:
		return err
	case ends <= now.UnixMilli():
		return refusal.New(ErrConflict, "the certificate of %s that is shown was rotated out", i.Subject())
	}
	var lately int
	if err := tx.QueryRow("SELECT COUNT(*) FROM identity_certificates WHERE kind = $1 AND name = $2 AND not_after > $3 AND added > $4",
		string(i.Kind), i.Name, now.UnixMilli(), now.Add(-time.Hour).UnixMilli()).Scan(&lately); err != nil {
		return err
	}
	if lately >= maxRenewals {
		return refusal.New(ErrConflict, "%s had %d certificates within an hour; a client that keeps itself asks once in half a day", i.Subject(), lately)
	}
	return nil
}

// Change gives an identity another owner, contact, role or scope. set changes the identity that it is given. ErrUnknown; ErrConflict for one that is revoked,
// and for taking the role of the last active admin. The identity as it is now is returned.
func (r *Registry) Change(ctx context.Context, who audit.Actor, peer string, kind spiffe.Kind, name string, set func(*Identity)) (now Identity, err error) {
	err = r.change(ctx, func(tx *sql.Tx) (bool, error) {
		former, err := identityOf(tx, r.now(), kind, name)
		if err != nil {
			return false, err
		}
		if former.State == Revoked {
			return false, refusal.New(ErrConflict, "%w; %s", former.admissible(), mendState(former))
		}
		now = former
		set(&now)
		now.Kind, now.Name = kind, name
		if err := now.check(); err != nil {
			return false, err
		}
		if former.Role == Admin && now.Role != Admin {
			if err := notTheLast(tx, former); err != nil {
				return false, err
			}
		}
		scope, err := now.Scope.text()
		if err != nil {
			return false, err
		}
		if _, err := tx.Exec("UPDATE identities SET owner = $1, contact = $2, role = $3, scope = $4 WHERE kind = $5 AND name = $6",
			now.Owner, now.Contact, string(now.Role), scope, string(kind), name); err != nil {
			return false, err
		}
		detail := now.detail()
		for key, value := range former.detail() {
			if detail[key] != value {
				detail["before_"+key] = value
			}
		}
		return true, r.outbox.Add(tx, audit.Event{Type: audit.IdentityChanged, Actor: who, Peer: peer, Target: now.Subject(), Outcome: audit.Success, Detail: detail})
	})
	return now, named("change", err)
}

// notTheLast keeps an admin that there is no other of.
func notTheLast(tx *sql.Tx, i Identity) error {
	if i.Kind != spiffe.Operator || i.Role != Admin || i.State != Active {
		return nil
	}
	var others int
	if err := tx.QueryRow("SELECT COUNT(*) FROM identities WHERE kind = 'operator' AND role = 'admin' AND state = 'active' AND name <> $1", i.Name).Scan(&others); err != nil {
		return err
	}
	if others == 0 {
		return refusal.New(ErrConflict, "%s is the last admin: nobody could undo it here; make another first, with 'wardlink-server operator --role admin' on the server", i.Name)
	}
	return nil
}

// stateEvents are the events of the states that an operator sets.
var stateEvents = map[State]audit.Type{Active: audit.IdentityResumed, Suspended: audit.IdentitySuspended, Revoked: audit.IdentityRevoked}

// SetState suspends, resumes (Active) or revokes an identity, from the commit on, in every process. Revoked is for ever. It stands once
// SetState returns nil or an ErrLate: the journal is waited for, but only for two seconds. Repeating it is harmless: the first stands, with
// again true. ErrUnknown; ErrConflict for anything but revoking one that is revoked, and for the last active admin.
func (r *Registry) SetState(ctx context.Context, who audit.Actor, peer string, kind spiffe.Kind, name string, to State, reason string) (now Identity, again bool, err error) {
	if err := CheckReason(reason); err != nil {
		return Identity{}, false, err
	}
	event, ok := stateEvents[to]
	if !ok {
		return Identity{}, false, fmt.Errorf("state %.20q is none of an identity", to)
	}
	err = r.commit(ctx, func(tx *sql.Tx) (bool, error) {
		former, err := identityOf(tx, r.now(), kind, name)
		if err != nil {
			return false, err
		}
		now, again = former, former.State == to
		ev := audit.Event{Type: event, Actor: who, Peer: peer, Target: former.Subject(), Outcome: audit.Success, Reason: reason, Detail: map[string]string{"was": string(former.State)}}
		if again {
			return false, r.outbox.Add(tx, ev)
		}
		if former.State == Revoked {
			return false, refusal.New(ErrConflict, "%w; %s", former.admissible(), mendState(former))
		}
		if err := notTheLast(tx, former); err != nil {
			return false, err
		}
		now.State, now.Changed, now.ChangedBy, now.Reason = to, instant(r.now().UnixMilli()), who.ID, reason
		if _, err := tx.Exec("UPDATE identities SET state = $1, changed = $2, changed_by = $3, reason = $4 WHERE kind = $5 AND name = $6",
			string(to), r.now().UnixMilli(), who.ID, reason, string(kind), name); err != nil {
			return false, err
		}
		ev.Detail["certificates"] = strconv.Itoa(former.Valid)
		return true, r.outbox.Add(tx, ev)
	})
	if err != nil {
		return Identity{}, false, named("set the state", err)
	}
	return now, again, r.follow(ctx)
}

// Rotate ends all certificates of an identity that count now after overlap, 0 to MaxOverlap: within it the holder renews, by itself where
// 'wardlink access keep' runs. n is how many that were. ErrUnknown; an *IdentityError for one that is not active.
func (r *Registry) Rotate(ctx context.Context, who audit.Actor, peer string, kind spiffe.Kind, name, reason string, overlap time.Duration) (end time.Time, n int64, err error) {
	if err := CheckReason(reason); err != nil {
		return time.Time{}, 0, err
	}
	if overlap < 0 || overlap > MaxOverlap {
		return time.Time{}, 0, fmt.Errorf("overlap: expected 0 to %s", MaxOverlap)
	}
	err = r.commit(ctx, func(tx *sql.Tx) (bool, error) {
		i, err := identityOf(tx, r.now(), kind, name)
		if err == nil {
			err = i.admissible()
		}
		if err != nil {
			return false, err
		}
		end = instant(r.now().Add(overlap).UnixMilli())
		res, err := tx.Exec("UPDATE identity_certificates SET ends = $1 WHERE kind = $2 AND name = $3 AND not_after > $1 AND ends > $1", end.UnixMilli(), string(kind), name)
		if err != nil {
			return false, err
		}
		if n, err = res.RowsAffected(); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, audit.Event{Type: audit.IdentityRotated, Actor: who, Peer: peer, Target: i.Subject(), Outcome: audit.Success, Reason: reason,
			Detail: map[string]string{"end": end.Format(time.RFC3339), "certificates": strconv.FormatInt(n, 10)}})
	})
	if err != nil {
		return time.Time{}, 0, named("rotate", err)
	}
	return end, n, r.follow(ctx)
}

// named says what failed, and leaves what is known as it is.
func named(what string, err error) error {
	if err == nil || errors.Is(err, ErrLate) || errors.Is(err, ErrConflict) || errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotActive) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}
