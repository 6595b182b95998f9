package registry

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
	"wardlink/server/boot"
)

//go:embed boot_0001.sql
var boot1 string

// bootSettled is how long an attestation that says what the one before said is not written down again.
const bootSettled = time.Hour

// Boot is what is known of how a gateway boots.
type Boot struct {
	Gateway  string
	Policy   boot.Policy
	Own      bool // the policy is this gateway's own
	At       time.Time
	State    boot.State // of the newest attestation; "" while there is none
	Matched  string     // the release that it is
	Measured boot.Measurement
	Baseline *Baseline   // nil: nothing was learned
	Held     *Quarantine // nil: it is not in quarantine
}

// Baseline is what was learned of one gateway.
type Baseline struct {
	boot.Measurement
	Seen   int
	Locked time.Time // zero: not yet
}

// Quarantine is the fact that a gateway booted something unknown.
type Quarantine struct {
	Since    time.Time
	Mismatch boot.Mismatch // the newest
}

// Measured judges how a gateway booted, as its TPM has just proven, and notes it. A boot that its policy does not know puts the gateway into
// quarantine, with the event, in the transaction that notes it: who gets a certificate afterwards is marked already. An error means that
// nothing may be answered; what was noted stands.
func (r *Registry) Measured(ctx context.Context, gateway string, m boot.Measurement) error {
	document, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("registry: measurement: %w", err)
	}
	settled := false
	if err := r.db.Read(ctx, func(tx *sql.Tx) error {
		b, err := bootOf(tx, gateway)
		if err == nil {
			settled, err = r.settled(tx, b, m, document)
		}
		return err
	}); err != nil || settled {
		return err
	}
	return r.change(ctx, func(tx *sql.Tx) (bool, error) {
		g, err := get(tx, r.now(), gateway)
		if err != nil {
			return false, err
		}
		b, err := bootOf(tx, gateway)
		if err != nil {
			return false, err
		}
		state, matched, mismatch, err := r.judgeBoot(tx, b, m)
		if err != nil {
			return false, err
		}
		if _, err := tx.Exec(`INSERT INTO boot_measurements (gateway, at, measurement, state, matched) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (gateway) DO UPDATE SET at = excluded.at, measurement = excluded.measurement, state = excluded.state, matched = excluded.matched`,
			gateway, r.now().UnixMilli(), string(document), string(state), matched); err != nil {
			return false, err
		}
		if mismatch == nil {
			return false, nil
		}
		return r.quarantine(tx, g, b, mismatch)
	})
}

// settled says whether a measurement is no news: nothing is written then, and nobody's write waits. Most attestations say what the one before said.
func (r *Registry) settled(tx *sql.Tx, b Boot, m boot.Measurement, document []byte) (bool, error) {
	switch age := r.now().Sub(b.At); {
	case b.Policy.Mode == boot.Off && len(m.PCRs) == 0 && b.State == "":
		return true, nil // of clients that do not quote there is nothing to say
	case b.State == "" || age < 0 || age >= bootSettled || b.learns(m):
		return false, nil
	}
	before, err := json.Marshal(b.Measured)
	if err != nil || string(before) != string(document) {
		return false, err
	}
	state, matched, mismatch, err := r.judgeBoot(tx, b, m)
	return mismatch == nil && b.State == state && b.Matched == matched, err
}

// learns says whether an attestation counts for the baseline.
func (b *Boot) learns(m boot.Measurement) bool {
	return b.Policy.Mode == boot.Learn && (b.Baseline == nil || b.Baseline.Locked.IsZero() && len(m.PCRs) > 0)
}

// judgeBoot says what an attestation is, and learns from it.
func (r *Registry) judgeBoot(tx *sql.Tx, b Boot, m boot.Measurement) (state boot.State, matched string, mismatch *boot.Mismatch, err error) {
	switch b.Policy.Mode {
	case boot.Learn:
		if b.learns(m) {
			state, err = r.learn(tx, b, m)
			return state, "", nil, err
		}
		_, mismatch = boot.Judge(b.Policy, []boot.Known{{Measurement: b.Baseline.Measurement}}, m)
	case boot.Allow:
		releases, err := bootReleases(tx)
		if err != nil {
			return "", "", nil, err
		}
		known := make([]boot.Known, len(releases))
		for i, one := range releases {
			known[i] = boot.Known{Name: one.Name, Measurement: one.Measurement}
		}
		matched, mismatch = boot.Judge(b.Policy, known, m)
	default:
		return boot.Unjudged, "", nil, nil
	}
	if mismatch != nil {
		return boot.Differs, "", mismatch, nil
	}
	return boot.Matches, matched, nil, nil
}

// learn counts attestations with the same values: others begin the count anew. A gateway that never quoted is not learned from.
func (r *Registry) learn(tx *sql.Tx, b Boot, m boot.Measurement) (boot.State, error) {
	if len(m.PCRs) == 0 {
		return boot.Learning, nil
	}
	next := Baseline{Measurement: m, Seen: 1}
	if b.Baseline != nil && m.Same(b.Baseline.Measurement, b.Policy.PCRs) {
		next.Seen = b.Baseline.Seen + 1
	}
	if next.Seen >= b.Policy.After {
		if !m.Same(m, b.Policy.PCRs) {
			return boot.Learning, nil // not all that the policy wants is quoted: it would match nothing
		}
		next.Locked = r.now()
	}
	if err := setBaseline(tx, b.Gateway, next); err != nil {
		return "", err
	}
	if next.Locked.IsZero() {
		return boot.Learning, nil
	}
	return boot.Matches, r.outbox.Add(tx, bootLocked(audit.Actor{ID: "server"}, "", b, next))
}

func bootLocked(who audit.Actor, peer string, b Boot, next Baseline) audit.Event {
	detail := map[string]string{"pcrs": boot.ShowPCRs(b.Policy.PCRs), "attestations": fmt.Sprint(next.Seen)}
	return audit.Event{Type: audit.BootLocked, Actor: who, Peer: peer, Target: b.Gateway, Outcome: audit.Success, Detail: detail}
}

func setBaseline(tx *sql.Tx, gateway string, b Baseline) error {
	document, err := json.Marshal(b.Measurement)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO boot_baselines (gateway, measurement, seen, locked) VALUES ($1, $2, $3, $4)
		ON CONFLICT (gateway) DO UPDATE SET measurement = excluded.measurement, seen = excluded.seen, locked = excluded.locked`,
		gateway, string(document), b.Seen, millis(b.Locked))
	return err
}

// quarantine marks a gateway; it tells whether what the gateway may do has changed. The same mismatch again is no news.
func (r *Registry) quarantine(tx *sql.Tx, g Gateway, b Boot, d *boot.Mismatch) (changed bool, err error) {
	if b.Held != nil && b.Held.Mismatch.Equal(d) {
		return false, nil
	}
	document, err := json.Marshal(d)
	if err != nil {
		return false, err
	}
	if _, err := tx.Exec(`INSERT INTO boot_quarantines (gateway, since, mismatch) VALUES ($1, $2, $3)
		ON CONFLICT (gateway) DO UPDATE SET mismatch = excluded.mismatch`, g.ID, r.now().UnixMilli(), string(document)); err != nil {
		return false, err
	}
	if _, err := tx.Exec("UPDATE gateways SET state = $1 WHERE id = $2 AND state = $3", string(Quarantined), g.ID, string(Active)); err != nil {
		return false, err
	}
	detail := d.Detail()
	detail["policy"] = string(b.Policy.Mode)
	return true, r.outbox.Add(tx, audit.Event{Type: audit.GatewayQuarantined, Actor: audit.Actor{ID: "server"}, Target: g.ID, Outcome: audit.Success,
		Reason: "the gateway booted something that is not known", Detail: detail})
}

// unheld is the state of a gateway that nothing holds any more: quarantine outlasts suspension and revocation.
func unheld(tx *sql.Tx, id string) (State, error) {
	q, err := quarantineOf(tx, id)
	if err != nil || q == nil {
		return Active, err
	}
	return Quarantined, nil
}

// forgetBoot is for a gateway that gets another board: what the former one booted says nothing of it.
func forgetBoot(tx *sql.Tx, id string) error {
	for _, table := range []string{"boot_baselines", "boot_measurements", "boot_quarantines"} {
		if _, err := tx.Exec("DELETE FROM "+table+" WHERE gateway = $1", id); err != nil {
			return err
		}
	}
	_, err := tx.Exec("UPDATE gateways SET state = $1 WHERE id = $2 AND state = $3", string(Active), id, string(Quarantined))
	return err
}

// Readmit ends a gateway's quarantine, for a reason. What was published in it keeps its mark. The newest attestation must be one that the policy
// knows; with accept, under a policy of learn, it becomes the gateway's baseline. ErrUnknown; ErrConflict for a gateway that is not in
// quarantine, or that would be put there again at its next attestation, or that is decommissioned.
func (r *Registry) Readmit(ctx context.Context, who audit.Actor, peer, id, reason string, accept bool) (was Quarantine, err error) {
	if err := CheckReason(reason); err != nil {
		return was, err
	}
	err = r.change(ctx, func(tx *sql.Tx) (bool, error) {
		if _, err := living(tx, r.now(), id); err != nil {
			return false, err
		}
		b, err := bootOf(tx, id)
		if err != nil {
			return false, err
		}
		if b.Held == nil {
			return false, refusal.New(ErrConflict, "gateway %s is not in quarantine", id)
		}
		was = *b.Held
		_, _, mismatch, err := r.judgeBoot(tx, b, b.Measured)
		switch {
		case err != nil:
			return false, err
		case mismatch == nil:
			accept = false
		case len(b.Measured.PCRs) == 0:
			return false, refusal.New(ErrConflict, "gateway %s sends no quote (%s), and its policy asks for one: 'wardlink boot policy off --gateway %s' lets it go without", id, b.Measured.Note, id)
		case b.Policy.Mode == boot.Allow:
			return false, refusal.New(ErrConflict, "what gateway %s booted is not allowed (%s): if it is right, run 'wardlink boot allow RELEASE --from %s' first", id, mismatch, id)
		case !accept:
			return false, refusal.New(ErrConflict, "gateway %s still boots what is not known (%s): boot it as it was, or say --accept if what it boots now is right", id, mismatch)
		default:
			if err := setBaseline(tx, id, Baseline{Measurement: b.Measured, Seen: 1, Locked: r.now()}); err != nil {
				return false, err
			}
		}
		if mismatch != nil {
			if _, err := tx.Exec("UPDATE boot_measurements SET state = $1 WHERE gateway = $2", string(boot.Matches), id); err != nil {
				return false, err
			}
		}
		if _, err := tx.Exec("DELETE FROM boot_quarantines WHERE gateway = $1", id); err != nil {
			return false, err
		}
		if _, err := tx.Exec("UPDATE gateways SET state = $1 WHERE id = $2 AND state = $3", string(Active), id, string(Quarantined)); err != nil {
			return false, err
		}
		detail := was.Mismatch.Detail()
		detail["since"], detail["accepted"] = was.Since.Format(time.RFC3339), fmt.Sprint(accept)
		return true, r.outbox.Add(tx, audit.Event{Type: audit.GatewayReadmitted, Actor: who, Peer: peer, Target: id, Outcome: audit.Success, Reason: reason, Detail: detail})
	})
	if err != nil {
		return was, fmt.Errorf("readmit: %w", err)
	}
	return was, nil
}
