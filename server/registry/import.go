package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"

	"wardlink/audit"
	"wardlink/enroll"
)

// ImportResult is what became of one gateway of a manifest.
type ImportResult struct {
	ID      string
	Outcome Imported
	Reason  string // why it was refused

	owner string // of the endorsement key for which it was refused
}

// Imported is the outcome for one gateway of a manifest.
type Imported string

// The outcomes. One that is there just like this and may not speak has its State for an outcome, and the Reason says what lifts that.
const (
	Added     Imported = "added"
	Unchanged Imported = "unchanged" // it is in the registry, just like this
	Conflict  Imported = "refused"
)

// importChunk bounds the transaction of a large manifest; other writers get their turn between chunks.
const importChunk = 1000

// Import enters gateways. One that is there already just as given is left alone; one that contradicts the registry (another
// gateway owns its EK, or its id has other data) is refused and reported, in the result and as an event, and does not stop the
// others. Importing the same manifest again is therefore harmless, also after a crash in its middle.
func (r *Registry) Import(ctx context.Context, who audit.Actor, peer string, gs []Gateway) ([]ImportResult, error) {
	for i := range gs {
		if err := gs[i].check(); err != nil {
			return nil, err
		}
	}
	results := make([]ImportResult, 0, len(gs))
	for len(gs) > 0 {
		chunk := gs[:min(importChunk, len(gs))]
		gs = gs[len(chunk):]
		done := len(results)
		err := r.change(ctx, func(tx *sql.Tx) (changed bool, err error) {
			results = results[:done]
			for i := range chunk {
				res, err := r.enter(tx, who, peer, &chunk[i], audit.GatewayImported)
				if err != nil {
					return false, err
				}
				changed = changed || res.Outcome == Added
				results = append(results, res)
			}
			return changed, nil
		})
		if err != nil {
			return results, fmt.Errorf("import: %w", err)
		}
	}
	return results, nil
}

// enter adds one gateway within tx, with its event.
func (r *Registry) enter(tx *sql.Tx, who audit.Actor, peer string, g *Gateway, act audit.Type) (ImportResult, error) {
	reason, owner, have, err := r.contradiction(tx, g)
	if err != nil {
		return ImportResult{}, err
	}
	ev := audit.Event{
		Type: act, Actor: who, Peer: peer, Target: g.ID, Outcome: audit.Success,
		Detail: map[string]string{"site": g.Site, "ward": g.Ward, "profile": g.Profile, "ek_sha256": hexes(g.EKs)},
	}
	maps.Copy(ev.Detail, g.matched)
	switch {
	case reason == "" && have != nil && have.State == Active:
		return ImportResult{ID: g.ID, Outcome: Unchanged}, nil
	case reason == "" && have != nil:
		return ImportResult{ID: g.ID, Outcome: Imported(have.State), Reason: have.cutOff()}, nil
	case reason != "":
		ev.Outcome, ev.Reason = audit.Denied, reason
		if owner != "" {
			if err := r.contend(tx, who, Contention{Claim: OneKey, Gateway: owner, Rival: g.ID, Peer: peer}); err != nil {
				return ImportResult{}, err
			}
		}
		return ImportResult{ID: g.ID, Outcome: Conflict, Reason: reason, owner: owner}, r.outbox.Add(tx, ev)
	}
	if _, err := tx.Exec(`INSERT INTO gateways (id, site, ward, profile, state, not_before, not_after, added)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		g.ID, g.Site, g.Ward, g.Profile, string(Active), millis(g.NotBefore), millis(g.NotAfter), r.now().UnixMilli()); err != nil {
		return ImportResult{}, err
	}
	if _, err := tx.Exec("INSERT INTO gateway_wards (gateway, since, ward, entered, actor) VALUES ($1, 0, $2, $3, '')", g.ID, g.Ward, r.now().UnixMilli()); err != nil {
		return ImportResult{}, err
	}
	for _, ek := range g.EKs {
		if _, err := tx.Exec("INSERT INTO gateway_eks (ek, gateway) VALUES ($1, $2)", ek[:], g.ID); err != nil {
			return ImportResult{}, err
		}
		if _, err := tx.Exec("DELETE FROM waiting WHERE ek = $1", ek[:]); err != nil {
			return ImportResult{}, err
		}
	}
	return ImportResult{ID: g.ID, Outcome: Added}, r.outbox.Add(tx, ev)
}

// cutOff says why a gateway may not speak, and what lifts that.
func (g *Gateway) cutOff() string {
	switch {
	case g.Revoked != nil:
		return fmt.Sprintf("revoked (%s); if that was a mistake: wardlink gateway resume %s --reason TEXT", g.Revoked.Reason, g.ID)
	case g.State == Suspended && g.Hold != nil:
		return fmt.Sprintf("suspended (%s); wardlink gateway resume %s", g.Hold.Reason, g.ID)
	case g.State == Quarantined:
		return fmt.Sprintf("in quarantine, and connected; wardlink gateway readmit %s --reason TEXT", g.ID)
	case g.Hold != nil:
		return fmt.Sprintf("%s (%s), for ever", g.State, g.Hold.Reason)
	}
	return string(g.State)
}

// contradiction compares an entered gateway with the registry: a reason says why it cannot be entered; else have is the gateway that is
// there just like this, or nil when it is new. owner is set when an endorsement key is another gateway's.
func (r *Registry) contradiction(tx *sql.Tx, g *Gateway) (reason, owner string, have *Gateway, err error) {
	if err := knowsProfile(tx, g.Profile); errors.Is(err, ErrUnknown) {
		return err.Error(), "", nil, nil
	} else if err != nil {
		return "", "", nil, err
	}
	own := 0
	seen := make(map[[32]byte]bool)
	for _, ek := range g.EKs {
		if seen[ek] {
			return "endorsement key " + enroll.Fingerprint(ek) + " is given twice", "", nil, nil
		}
		seen[ek] = true
		reason, owner, err := taken(tx, ek)
		switch {
		case err != nil:
			return "", "", nil, err
		case owner != "" && owner == g.ID:
			own++
		case reason != "":
			return reason, owner, nil, nil
		}
	}
	there, err := get(tx, r.now(), g.ID)
	if errors.Is(err, ErrUnknown) {
		return "", "", nil, nil
	}
	if err != nil {
		return "", "", nil, err
	}
	if own != len(g.EKs) || own != len(there.EKs) {
		return "gateway " + g.ID + " is registered with another TPM; choose another id, or put a new board in its place: wardlink gateway replace " + g.ID, "", nil, nil
	}
	if there.Site != g.Site || there.Ward != g.Ward || there.Profile != g.Profile || millis(there.NotBefore) != millis(g.NotBefore) || millis(there.NotAfter) != millis(g.NotAfter) {
		return "gateway " + g.ID + " is registered with another site, ward, profile or validity; make the manifest agree with wardlink gateway show " + g.ID + ", or move it: wardlink gateway move " + g.ID, "", nil, nil
	}
	return "", "", &there, nil
}
