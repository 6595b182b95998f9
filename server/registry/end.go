package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/enroll/wipe"
	"wardlink/internal/refusal"
	"wardlink/server/sqldb"
)

// End is how a gateway's life ends.
type End struct {
	Hold
	Drain     bool   // the gateway first hands over what waits; until it has, it is active
	Order     []byte // the signed order (package wipe)
	Event     audit.EventID
	Confirmed time.Time // when the gateway's word came; zero: not yet, and perhaps never
	Done      *wipe.Done
	Word      audit.EventID // the event of its word
}

// Decommission ends a gateway's life, for ever. With drain, the gateway stays active until it has handed over what waits and says that it
// has wiped itself; else it is cut off at once, and told to wipe itself when it next asks for a certificate. sign makes the order. It stands
// once Decommission returns nil or an ErrLate. Repeating it is harmless and gives the first with again true, except that without drain it
// cuts short a draining that goes on. ErrUnknown; ErrConflict for draining a gateway that is cut off and cannot drain.
func (r *Registry) Decommission(ctx context.Context, who audit.Actor, peer, id, reason string, drain bool, sign func(wipe.Order) ([]byte, error)) (end End, again bool, err error) {
	if err := CheckReason(reason); err != nil {
		return End{}, false, err
	}
	err = r.commit(ctx, func(tx *sql.Tx) (bool, error) {
		now := r.now()
		g, err := get(tx, now, id)
		if err != nil {
			return false, err
		}
		former, err := endOf(tx, id)
		if err != nil {
			return false, err
		}
		if former != nil && (g.State == Decommissioned || drain) {
			end, again = *former, true
			return false, r.outbox.Add(tx, audit.Event{Type: audit.GatewayDecommissioned, Actor: who, Peer: peer, Target: id, Outcome: audit.Success,
				Reason: reason, Detail: map[string]string{"decommissioned_already": former.At.Format(time.RFC3339)}})
		}
		if drain && g.State != Active && g.State != Quarantined {
			return false, refusal.New(ErrConflict, "gateway %s is %s, so it cannot hand over what waits: resume it first, or decommission it with --now, which destroys that", id, g.State)
		}
		end, err = r.end(tx, who, peer, g, reason, drain, now, sign)
		return true, err
	})
	if err != nil {
		return End{}, false, fmt.Errorf("decommission: %w", err)
	}
	return end, again, r.follow(ctx)
}

func (r *Registry) end(tx *sql.Tx, who audit.Actor, peer string, g Gateway, reason string, drain bool, now time.Time, sign func(wipe.Order) ([]byte, error)) (End, error) {
	order := wipe.Order{Gateway: g.ID, Issued: now.UnixMilli(), Reason: reason, Drain: drain}
	for _, ek := range g.EKs {
		order.Boards = append(order.Boards, ek[:])
	}
	doc, err := sign(order)
	if err != nil {
		return End{}, err
	}
	serials, valid, err := validSerials(tx, g.ID, now)
	if err != nil {
		return End{}, err
	}
	end := End{Hold: Hold{At: instant(now.UnixMilli()), By: who.ID, Reason: reason}, Drain: drain, Order: doc, Event: r.outbox.NextID()}
	if _, err := tx.Exec(`INSERT INTO decommissions (gateway, at, actor, reason, drain, order_doc, event, confirmed) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)
		ON CONFLICT (gateway) DO UPDATE SET at = excluded.at, actor = excluded.actor, reason = excluded.reason, drain = excluded.drain,
			order_doc = excluded.order_doc, event = excluded.event`,
		g.ID, now.UnixMilli(), who.ID, reason, sqldb.Flag(drain), doc, end.Event[:]); err != nil {
		return End{}, err
	}
	if !drain {
		if err := finish(tx, g.ID, end.Hold); err != nil {
			return End{}, err
		}
	}
	mode := "now"
	if drain {
		mode = "after drain"
	}
	hash := sha256.Sum256(doc)
	return end, r.outbox.Add(tx, audit.Event{ID: end.Event, Type: audit.GatewayDecommissioned, Actor: who, Peer: peer, Target: g.ID, Outcome: audit.Success, Reason: reason,
		Detail: map[string]string{"mode": mode, "state": string(g.State), "ek_sha256": hexes(g.EKs), "serials": strings.Join(serials, " "), "certificates": strconv.Itoa(valid),
			"order_sha256": hex.EncodeToString(hash[:]), "order": base64.StdEncoding.EncodeToString(doc)}})
}

// finish makes a gateway decommissioned. A revocation goes: what it did, this does, and for ever.
func finish(tx *sql.Tx, id string, h Hold) error {
	if _, err := tx.Exec("DELETE FROM revocations WHERE gateway = $1", id); err != nil {
		return err
	}
	if err := settle(tx, id, nil); err != nil {
		return err
	}
	return hold(tx, id, Decommissioned, h)
}

// End gives how a gateway's life ends; nil while nobody has ended it.
func (r *Registry) End(ctx context.Context, gateway string) (end *End, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		end, err = endOf(tx, gateway)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return end, nil
}

// Draining gives the gateways that hand over what waits before they are decommissioned.
func (r *Registry) Draining(ctx context.Context) (map[string]Hold, error) {
	rows, err := r.db.Query(ctx, `SELECT d.gateway, d.at, d.actor, d.reason FROM decommissions d JOIN gateways g ON g.id = d.gateway
		WHERE g.state <> $1`, string(Decommissioned))
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	out := make(map[string]Hold)
	for rows.Next() {
		var id string
		var at int64
		var h Hold
		if err := rows.Scan(&id, &at, &h.By, &h.Reason); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		h.At = instant(at)
		out[id] = h
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

func endOf(q querier, gateway string) (*End, error) {
	var end End
	var at, confirmed int64
	var event, word, confirmation []byte
	err := q.QueryRow("SELECT at, actor, reason, drain, order_doc, event, word, confirmed, confirmation FROM decommissions WHERE gateway = $1", gateway).
		Scan(&at, &end.By, &end.Reason, &end.Drain, &end.Order, &event, &word, &confirmed, &confirmation)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	end.At, end.Confirmed = instant(at), instant(confirmed)
	copy(end.Event[:], event)
	copy(end.Word[:], confirmation)
	if word != nil {
		done, err := wipe.ParseDone(word) // verified when it came
		if err != nil {
			return nil, err
		}
		end.Done = &done
	}
	return &end, nil
}

// ErrNotOrdered marks a gateway's word about an order that nobody gave, or that is not its own word.
var ErrNotOrdered = errors.New("no such wipe was ordered")

// Confirm takes a gateway's signed word that it has wiped itself: from then on it is decommissioned, if it was draining. actor is its
// SPIFFE id's maker. A word after the first changes nothing. ErrNotOrdered when the word is not about the order in force, or is not
// signed by a device key of that gateway's present board.
func (r *Registry) Confirm(ctx context.Context, actor func(gateway string) audit.Actor, peer string, word []byte) error {
	claimed, err := wipe.ParseDone(word)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotOrdered, err)
	}
	key, err := r.KeyBySPKI(ctx, [32]byte(claimed.SPKI))
	if err != nil && !errors.Is(err, ErrUnknown) {
		return err
	}
	if err != nil || key.Gateway != claimed.Gateway {
		return fmt.Errorf("%w: its key is not gateway %s's", ErrNotOrdered, claimed.Gateway)
	}
	return r.change(ctx, func(tx *sql.Tx) (bool, error) {
		end, err := endOf(tx, claimed.Gateway)
		if err != nil {
			return false, err
		}
		if end == nil {
			return false, fmt.Errorf("%w for gateway %s", ErrNotOrdered, claimed.Gateway)
		}
		if was, err := retiredKey(tx, key.SPKI); err != nil || was != "" {
			return false, cmp.Or(err, fmt.Errorf("%w: its key is the former board's", ErrNotOrdered))
		}
		if end.Done != nil { // of a copy of its disk, about an order of that time: its own is on record
			return false, nil
		}
		hash := sha256.Sum256(end.Order)
		done, err := wipe.VerifyDone(word, key.Public, hash)
		if err != nil {
			return false, fmt.Errorf("%w: %w", ErrNotOrdered, err)
		}
		event := r.outbox.NextID()
		if _, err := tx.Exec("UPDATE decommissions SET word = $1, confirmed = $2, confirmation = $3 WHERE gateway = $4",
			word, r.now().UnixMilli(), event[:], done.Gateway); err != nil {
			return false, err
		}
		if err := finish(tx, done.Gateway, end.Hold); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, audit.Event{ID: event, Type: audit.GatewayWiped, Actor: actor(done.Gateway), Peer: peer, Target: done.Gateway, Outcome: audit.Success,
			Reason: end.Reason,
			Detail: map[string]string{"ordered_by": end.By, "ordered_at": end.At.Format(time.RFC3339), "decommissioned": end.Event.String(),
				"order_sha256": hex.EncodeToString(hash[:]), "order": base64.StdEncoding.EncodeToString(end.Order),
				"word": base64.StdEncoding.EncodeToString(word), "key": base64.StdEncoding.EncodeToString(key.Public),
				"destroyed_undelivered": strconv.FormatUint(done.Waiting, 10), "destroyed_refused": strconv.FormatUint(done.Parked, 10)}})
	})
}
