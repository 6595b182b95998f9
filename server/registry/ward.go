package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
)

// How far from the present a move may begin: back as far as somebody still remembers when a gateway was carried, and ahead as far
// as a hospital plans.
const (
	maxMoveBack  = 31 * 24 * time.Hour
	maxMoveAhead = 366 * 24 * time.Hour
)

// Ward is where a gateway stands from an instant on, until its next Ward.
type Ward struct {
	Name  string
	Since time.Time // zero: from the beginning
	By    string    // the operator's SPIFFE id; "" where the gateway was entered with it
}

// Wards are a gateway's wards in the order of time. The last may lie in the future.
type Wards []Ward

// At is the ward of an instant; "" when there is none.
func (w Wards) At(t time.Time) string {
	n := sort.Search(len(w), func(i int) bool { return w[i].Since.After(t) })
	if n == 0 {
		return ""
	}
	return w[n-1].Name
}

// Wards gives a gateway's wards; none for a gateway that is not in the registry.
func (r *Registry) Wards(ctx context.Context, gateway string) (out Wards, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		out, err = wards(tx, gateway, -1)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// wards are those that begin after an instant in Unix milliseconds.
func wards(q querier, gateway string, after int64) (out Wards, err error) {
	rows, err := q.Query("SELECT ward, since, actor FROM gateway_wards WHERE gateway = $1 AND since > $2 ORDER BY since", gateway, after)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var w Ward
		var since int64
		if err := rows.Scan(&w.Name, &since, &w.By); err != nil {
			return nil, err
		}
		w.Since = instant(since)
		out = append(out, w)
	}
	return out, rows.Err()
}

// Planned gives the next ward of each gateway that is to move.
func (r *Registry) Planned(ctx context.Context) (map[string]Ward, error) {
	rows, err := r.db.Query(ctx, "SELECT gateway, ward, since, actor FROM gateway_wards WHERE since > $1 ORDER BY gateway, since DESC", r.now().UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	out := make(map[string]Ward)
	for rows.Next() {
		var id string
		var w Ward
		var since int64
		if err := rows.Scan(&id, &w.Name, &since, &w.By); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		w.Since = instant(since)
		out[id] = w
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// WardNames are the wards in which a gateway stands, stood or is to stand, in their order.
func (r *Registry) WardNames(ctx context.Context) (out []string, err error) {
	rows, err := r.db.Query(ctx, "SELECT DISTINCT ward FROM gateway_wards WHERE ward <> '' ORDER BY ward")
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var ward string
		if err := rows.Scan(&ward); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		out = append(out, ward)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// Move is what Move did.
type Move struct {
	Ward     Ward
	Before   string // the ward until then
	Replaced Wards  // later moves that hold no longer
	Already  bool   // the gateway stood there from then on, and nothing was changed
}

// CheckMove says what is wrong with a move and how to mend it. A zero from is now.
func CheckMove(ward string, from, now time.Time) error {
	switch {
	case strings.TrimSpace(ward) == "" || !oneLine(ward, maxLabel):
		return fmt.Errorf("ward: expected 1 to %d bytes of printable UTF-8", maxLabel)
	case !from.IsZero() && now.Sub(from) > maxMoveBack:
		return fmt.Errorf("the move would begin at %s: at most %d days back", from.UTC().Format(time.RFC3339), maxMoveBack/(24*time.Hour))
	case from.Sub(now) > maxMoveAhead:
		return fmt.Errorf("the move would begin at %s: at most %d days ahead", from.UTC().Format(time.RFC3339), maxMoveAhead/(24*time.Hour))
	}
	return nil
}

// Move says that a gateway stands in a ward from an instant on; a zero from is now. What it took in before keeps its ward. The move
// holds until further notice: moves that were to begin later are dropped, and returned. ErrUnknown; ErrConflict for a gateway that is
// decommissioned.
func (r *Registry) Move(ctx context.Context, who audit.Actor, peer, id, ward string, from time.Time) (m Move, err error) {
	now := r.now()
	if err := CheckMove(ward, from, now); err != nil {
		return Move{}, err
	}
	if from.IsZero() {
		from = now
	}
	since := from.UnixMilli()
	err = r.change(ctx, func(tx *sql.Tx) (bool, error) {
		if _, err := living(tx, now, id); err != nil {
			return false, err
		}
		m = Move{Ward: Ward{ward, instant(since), who.ID}}
		if m.Replaced, err = wards(tx, id, since); err != nil {
			return false, err
		}
		var holds string
		err = tx.QueryRow("SELECT ward FROM gateway_wards WHERE gateway = $1 AND since <= $2 ORDER BY since DESC LIMIT 1", id, since).Scan(&holds)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return false, err
		}
		m.Before, m.Already = holds, holds == ward && len(m.Replaced) == 0
		ev := audit.Event{Type: audit.GatewayMoved, Actor: who, Peer: peer, Target: id, Outcome: audit.Success,
			Detail: map[string]string{"ward": ward, "before": holds, "from": m.Ward.Since.Format(time.RFC3339), "replaced": strconv.Itoa(len(m.Replaced))}}
		if m.Already {
			ev.Reason = "it stands there already"
			return false, r.outbox.Add(tx, ev)
		}
		if _, err := tx.Exec("DELETE FROM gateway_wards WHERE gateway = $1 AND since >= $2", id, since); err != nil {
			return false, err
		}
		if _, err := tx.Exec("INSERT INTO gateway_wards (gateway, since, ward, entered, actor) VALUES ($1, $2, $3, $4, $5)",
			id, since, ward, now.UnixMilli(), who.ID); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, ev)
	})
	if err != nil && !errors.Is(err, ErrLate) {
		return Move{}, fmt.Errorf("move: %w", err)
	}
	return m, err
}
