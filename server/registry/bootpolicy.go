package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
	"wardlink/internal/spiffe"
	"wardlink/server/boot"
)

// maxReleases bounds the list of what is allowed.
const maxReleases = 256

// Release is what operators allow under one name.
type Release struct {
	boot.Known
	Source string // the gateway whose newest boot it was; "": given as a file
	At     time.Time
	By     string
}

// BootPolicy is who is held to which policy.
type BootPolicy struct {
	Gateway string // "" is every gateway that has none of its own
	boot.Policy
	At time.Time
	By string
}

// SetBootPolicy sets the policy of a gateway, or, for "", of all that have none of their own. It holds from the next attestation of each on;
// nobody leaves a quarantine by it. A nil policy takes a gateway's own away. ErrUnknown for a gateway that is not there,
// ErrConflict for one that is decommissioned.
func (r *Registry) SetBootPolicy(ctx context.Context, who audit.Actor, peer, gateway string, p *boot.Policy) error {
	if p != nil {
		if err := p.Check(); err != nil {
			return err
		}
	}
	return r.change(ctx, func(tx *sql.Tx) (bool, error) {
		ev := audit.Event{Type: audit.BootPolicySet, Actor: who, Peer: peer, Target: "gateways", Outcome: audit.Success, Detail: map[string]string{"policy": "as all others"}}
		if gateway != "" {
			if _, err := living(tx, r.now(), gateway); err != nil {
				return false, err
			}
			ev.Target = gateway
		}
		if p == nil {
			if _, err := tx.Exec("DELETE FROM boot_policies WHERE gateway = $1", gateway); err != nil {
				return false, err
			}
			return false, r.outbox.Add(tx, ev)
		}
		ev.Detail = map[string]string{"policy": string(p.Mode), "pcrs": boot.ShowPCRs(p.PCRs), "after": fmt.Sprint(p.After)}
		if _, err := tx.Exec(`INSERT INTO boot_policies (gateway, mode, pcrs, learn, at, actor) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (gateway) DO UPDATE SET mode = excluded.mode, pcrs = excluded.pcrs, learn = excluded.learn, at = excluded.at, actor = excluded.actor`,
			gateway, string(p.Mode), int64(p.PCRs), p.After, r.now().UnixMilli(), who.ID); err != nil {
			return false, err
		}
		return false, r.outbox.Add(tx, ev)
	})
}

// CheckRelease says what is wrong with the name of a release.
func CheckRelease(name string) error {
	if err := spiffe.ValidName(name); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// AllowBoot allows values under a release's name: those given, or, where from names a gateway, those of its newest attestation. ErrConflict for a
// name that is taken, or a gateway that never quoted.
func (r *Registry) AllowBoot(ctx context.Context, who audit.Actor, peer, name, from string, m boot.Measurement) error {
	if err := CheckRelease(name); err != nil {
		return err
	}
	return r.change(ctx, func(tx *sql.Tx) (bool, error) {
		if from != "" {
			if _, err := get(tx, r.now(), from); err != nil {
				return false, err
			}
			b, err := bootOf(tx, from)
			if err != nil {
				return false, err
			}
			if m = b.Measured; len(m.PCRs) == 0 {
				return false, refusal.New(ErrConflict, "gateway %s has not quoted its PCRs yet: it does at its next renewal, and when its agent is started again after its certificate's half-life", from)
			}
		}
		releases, err := bootReleases(tx)
		if err != nil {
			return false, err
		}
		if len(releases) >= maxReleases {
			return false, refusal.New(ErrConflict, "%d releases are allowed already; withdraw old ones with 'wardlink boot withdraw'", len(releases))
		}
		for _, have := range releases {
			if have.Name == name {
				return false, refusal.New(ErrConflict, "release %s is allowed already; withdraw it first, or choose another name", name)
			}
		}
		document, err := json.Marshal(m)
		if err != nil {
			return false, err
		}
		if _, err := tx.Exec("INSERT INTO boot_releases (name, measurement, source, at, actor) VALUES ($1, $2, $3, $4, $5)",
			name, string(document), from, r.now().UnixMilli(), who.ID); err != nil {
			return false, err
		}
		detail := map[string]string{"from": from}
		for pcr, v := range m.PCRs {
			detail[fmt.Sprint("pcr", pcr)] = v.String()
		}
		return false, r.outbox.Add(tx, audit.Event{Type: audit.BootAllowed, Actor: who, Peer: peer, Target: name, Outcome: audit.Success, Detail: detail})
	})
}

// WithdrawBoot allows a release no more: a gateway that boots it is put into quarantine at its next attestation. ErrUnknown.
func (r *Registry) WithdrawBoot(ctx context.Context, who audit.Actor, peer, name, reason string) error {
	if err := CheckReason(reason); err != nil {
		return err
	}
	return r.change(ctx, func(tx *sql.Tx) (bool, error) {
		done, err := tx.Exec("DELETE FROM boot_releases WHERE name = $1", name)
		if err != nil {
			return false, err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return false, errors.Join(err, refusal.New(ErrUnknown, "release %.64q is not among those allowed; 'wardlink boot show' lists them", name))
		}
		return false, r.outbox.Add(tx, audit.Event{Type: audit.BootWithdrawn, Actor: who, Peer: peer, Target: name, Outcome: audit.Success, Reason: reason})
	})
}

// LockBoot ends the learning of a gateway now, at what was learned so far; with again, it forgets that, and learning begins anew: for a board
// whose firmware is about to be updated. ErrUnknown; ErrConflict when there is nothing to lock, and for a gateway that is decommissioned.
func (r *Registry) LockBoot(ctx context.Context, who audit.Actor, peer, id string, again bool) error {
	return r.change(ctx, func(tx *sql.Tx) (bool, error) {
		if _, err := living(tx, r.now(), id); err != nil {
			return false, err
		}
		b, err := bootOf(tx, id)
		if err != nil {
			return false, err
		}
		if again {
			if _, err := tx.Exec("DELETE FROM boot_baselines WHERE gateway = $1", id); err != nil {
				return false, err
			}
			return false, r.outbox.Add(tx, audit.Event{Type: audit.BootRelearned, Actor: who, Peer: peer, Target: id, Outcome: audit.Success})
		}
		switch {
		case b.Baseline == nil:
			return false, refusal.New(ErrConflict, "nothing was learned of gateway %s yet: it needs a policy of learn and one attestation with a quote", id)
		case !b.Baseline.Same(b.Baseline.Measurement, b.Policy.PCRs):
			return false, refusal.New(ErrConflict, "gateway %s does not quote all of PCRs %s, which its policy asks for", id, boot.ShowPCRs(b.Policy.PCRs))
		case !b.Baseline.Locked.IsZero():
			return false, refusal.New(ErrConflict, "what was learned of gateway %s is locked since %s", id, b.Baseline.Locked.Format(time.RFC3339))
		}
		b.Baseline.Locked = r.now()
		if err := setBaseline(tx, id, *b.Baseline); err != nil {
			return false, err
		}
		return false, r.outbox.Add(tx, bootLocked(who, peer, b, *b.Baseline))
	})
}

// Boot gives what is known of how a gateway boots. ErrUnknown.
func (r *Registry) Boot(ctx context.Context, id string) (b Boot, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		if _, err := get(tx, r.now(), id); err != nil {
			return err
		}
		b, err = bootOf(tx, id)
		return err
	})
	return b, err
}

// Boots gives the policies, the releases, and the quarantines by gateway.
func (r *Registry) Boots(ctx context.Context) (policies []BootPolicy, releases []Release, held map[string]Quarantine, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) (err error) {
		if releases, err = bootReleases(tx); err != nil {
			return err
		}
		if held, err = quarantines(tx); err != nil {
			return err
		}
		policies = nil
		return each(tx, "SELECT gateway, mode, pcrs, learn, at, actor FROM boot_policies ORDER BY gateway", func(rows *sql.Rows) error {
			var p BootPolicy
			var pcrs, at int64
			err := rows.Scan(&p.Gateway, &p.Mode, &pcrs, &p.After, &at, &p.By)
			p.PCRs, p.At = uint32(pcrs), instant(at)
			policies = append(policies, p)
			return err
		})
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("registry: %w", err)
	}
	return policies, releases, held, nil
}

// Quarantines gives what put gateways into quarantine, by gateway.
func (r *Registry) Quarantines(ctx context.Context) (held map[string]Quarantine, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		held, err = quarantines(tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return held, nil
}

func quarantines(tx *sql.Tx) (map[string]Quarantine, error) {
	held := make(map[string]Quarantine)
	return held, each(tx, "SELECT gateway, since, mismatch FROM boot_quarantines", func(rows *sql.Rows) error {
		var id, mismatch string
		var since int64
		if err := rows.Scan(&id, &since, &mismatch); err != nil {
			return err
		}
		q := Quarantine{Since: instant(since)}
		if err := json.Unmarshal([]byte(mismatch), &q.Mismatch); err != nil {
			return err
		}
		held[id] = q
		return nil
	})
}

func quarantineOf(tx *sql.Tx, id string) (*Quarantine, error) {
	var since int64
	var mismatch string
	err := tx.QueryRow("SELECT since, mismatch FROM boot_quarantines WHERE gateway = $1", id).Scan(&since, &mismatch)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	q := &Quarantine{Since: instant(since)}
	return q, json.Unmarshal([]byte(mismatch), &q.Mismatch)
}

// each calls take for each row of a query.
func each(tx *sql.Tx, query string, take func(*sql.Rows) error) error {
	rows, err := tx.Query(query)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := take(rows); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

func bootReleases(tx *sql.Tx) (out []Release, err error) {
	err = each(tx, "SELECT name, measurement, source, at, actor FROM boot_releases ORDER BY name", func(rows *sql.Rows) error {
		var one Release
		var document string
		var at int64
		if err := rows.Scan(&one.Name, &document, &one.Source, &at, &one.By); err != nil {
			return err
		}
		one.At = instant(at)
		out = append(out, one)
		return json.Unmarshal([]byte(document), &out[len(out)-1].Measurement)
	})
	return out, err
}

// bootOf reads what is known of one gateway's boots; a gateway without a policy has the one of all, and else none.
func bootOf(tx *sql.Tx, id string) (b Boot, err error) {
	b = Boot{Gateway: id, Policy: boot.Policy{Mode: boot.Off, PCRs: boot.DefaultPCRs, After: boot.DefaultAfter}}
	var owner string
	var pcrs int64
	err = tx.QueryRow("SELECT gateway, mode, pcrs, learn FROM boot_policies WHERE gateway = $1 OR gateway = '' ORDER BY gateway DESC LIMIT 1", id).
		Scan(&owner, &b.Policy.Mode, &pcrs, &b.Policy.After)
	switch {
	case err == nil:
		b.Policy.PCRs, b.Own = uint32(pcrs), owner != ""
	case !errors.Is(err, sql.ErrNoRows):
		return b, err
	}
	var at, locked int64
	var document string
	err = tx.QueryRow("SELECT at, measurement, state, matched FROM boot_measurements WHERE gateway = $1", id).Scan(&at, &document, &b.State, &b.Matched)
	switch {
	case err == nil:
		b.At = instant(at)
		if err := json.Unmarshal([]byte(document), &b.Measured); err != nil {
			return b, err
		}
	case !errors.Is(err, sql.ErrNoRows):
		return b, err
	}
	base := &Baseline{}
	err = tx.QueryRow("SELECT measurement, seen, locked FROM boot_baselines WHERE gateway = $1", id).Scan(&document, &base.Seen, &locked)
	switch {
	case err == nil:
		b.Baseline, base.Locked = base, instant(locked)
		if err := json.Unmarshal([]byte(document), &base.Measurement); err != nil {
			return b, err
		}
	case !errors.Is(err, sql.ErrNoRows):
		return b, err
	}
	b.Held, err = quarantineOf(tx, id)
	return b, err
}
