package records

import (
	"container/list"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// States of a sealing record.
const (
	sealingWaiting = 0
	sealingValid   = 1
	sealingRefused = 2
)

// errNotYet means that a batch cannot be opened until something else has arrived; it is no failed attempt.
var errNotYet = errors.New("the sealing record is not there yet")

// sealingKey names a sealing period. The gateway is part of it: a sealing id that another gateway published is another record.
type sealingKey struct {
	gateway string
	id      [16]byte
}

// takeSealing keeps a published sealing record, verified as far as it can be now. What cannot even be parsed was refused by
// ingest; should it be here all the same it is passed over, since the batches that name it stay pending and show.
func (r *Records) takeSealing(ctx context.Context, tx *sql.Tx, e *journal.Entry) error {
	ev, err := audit.DecodeEvent(e.Head)
	if err != nil {
		r.log.Error("journal entry is not an event; restore the journal from its backup", "seq", e.Seq)
		return nil
	}
	actor, err := spiffe.Parse(ev.Actor.ID)
	if err == nil && actor.Kind == spiffe.Operator { // who brings a gateway's card; whose it is shows the signature
		actor.Kind, actor.Name = spiffe.Gateway, ev.Target
	}
	if err != nil || actor.Kind != spiffe.Gateway {
		r.log.Warn("sealing record was not published by a gateway", "seq", e.Seq)
		return nil
	}
	signed, err := seal.ParseSigned(e.Blob)
	if err != nil {
		r.log.Warn("sealing record cannot be read", "seq", e.Seq, "gateway", actor.Name)
		return nil
	}
	rec, err := signed.Unverified()
	if err != nil {
		r.log.Warn("sealing record cannot be read", "seq", e.Seq, "gateway", actor.Name)
		return nil
	}
	// Every connection brings the record again, signed again; one that is valid is enough.
	var valid int
	if err := tx.QueryRow("SELECT COUNT(*) FROM sealings WHERE gateway = $1 AND sealing = $2 AND state = $3",
		actor.Name, rec.ID[:], sealingValid).Scan(&valid); err != nil {
		return err
	}
	if valid > 0 {
		_, err := tx.Exec("UPDATE sealings SET seq = $1 WHERE gateway = $2 AND sealing = $3 AND state = $4", int64(e.Seq), actor.Name, rec.ID[:], sealingValid)
		return err
	}
	hash := sha256.Sum256(e.Blob)
	if _, err := tx.Exec(`INSERT INTO sealings (gateway, sealing, hash, signed, seq, state, due, reason)
		VALUES ($1, $2, $3, $4, $5, $6, 0, '') ON CONFLICT (gateway, sealing, hash) DO NOTHING`,
		actor.Name, rec.ID[:], hash[:], e.Blob, int64(e.Seq), sealingWaiting); err != nil {
		return err
	}
	return r.judgeSealing(ctx, tx, sealingKey{actor.Name, rec.ID}, hash, signed, e.Seq)
}

// judgeSealing decides on a waiting sealing record and binds its epoch to its gateway.
func (r *Records) judgeSealing(ctx context.Context, tx *sql.Tx, k sealingKey, hash [32]byte, signed seal.Signed, seq uint64) error {
	set := func(state int, due int64, reason string) (changed bool, err error) {
		res, err := tx.Exec(`UPDATE sealings SET state = $1, due = $2, reason = $3
			WHERE gateway = $4 AND sealing = $5 AND hash = $6 AND state = $7`,
			state, due, reason, k.gateway, k.id[:], hash[:], sealingWaiting)
		if err != nil {
			return false, err
		}
		n, err := res.RowsAffected()
		return n > 0, err
	}
	rec, reason, err := r.verify(ctx, k.gateway, signed)
	switch {
	case errors.Is(err, registry.ErrUnknown):
		_, err := set(sealingWaiting, r.now().Add(keyInterval).UnixMilli(), "")
		return err
	case err != nil:
		return err
	}
	if reason == "" {
		if reason, err = r.bindEpoch(tx, rec.Epoch, k.gateway, seq); err != nil {
			return err
		}
	}
	if reason != "" {
		changed, err := set(sealingRefused, 0, reason)
		if err != nil || !changed {
			return err
		}
		r.log.Warn("sealing record refused", "gateway", k.gateway, "reason", reason, "seq", seq)
		return r.outbox.Add(tx, audit.Event{
			Type: audit.Refused, Actor: audit.Actor{ID: "server"}, Target: k.gateway, Outcome: audit.Denied, Reason: "sealing record: " + reason,
			Detail: map[string]string{"sealing": fmt.Sprintf("%x", k.id), "epoch": rec.Epoch.String()},
		})
	}
	if _, err := set(sealingValid, 0, ""); err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE batches SET due = 0 WHERE state = 0 AND sealing = $1
		AND stream IN (SELECT id FROM streams WHERE gateway = $2)`, k.id[:], k.gateway)
	if err != nil {
		return err
	}
	return r.reviveWaiting(tx, k)
}

// verify is the one decision that a sealing record is its gateway's: the signer's key is in the registry's history as that
// gateway's, and the signature holds. registry.ErrUnknown: not decided yet; reason: refused.
func (r *Records) verify(ctx context.Context, gateway string, signed seal.Signed) (rec seal.Record, reason string, err error) {
	key, err := r.registry.KeyBySPKI(ctx, signed.SPKI)
	if err != nil {
		return seal.Record{}, "", err
	}
	if key.Gateway != gateway {
		return seal.Record{}, "it is signed by a key of another gateway", nil
	}
	pub, err := publicKey(key.Public)
	if err != nil {
		return seal.Record{}, "the registry's key is not an ECDSA key", nil
	}
	if rec, err = signed.Verify(pub); err != nil {
		return seal.Record{}, "its signature does not hold", nil
	}
	return rec, "", nil
}

// bindEpoch makes the epoch the gateway's unless it is another's, which is an alert: once per epoch and gateway.
func (r *Records) bindEpoch(tx *sql.Tx, epoch telemetry.Epoch, gateway string, seq uint64) (reason string, err error) {
	if _, err := tx.Exec("INSERT INTO epochs (epoch, gateway) VALUES ($1, $2) ON CONFLICT (epoch) DO NOTHING", epoch[:], gateway); err != nil {
		return "", err
	}
	var owner string
	if err := tx.QueryRow("SELECT gateway FROM epochs WHERE epoch = $1", epoch[:]).Scan(&owner); err != nil || owner == gateway {
		return "", err
	}
	res, err := tx.Exec("INSERT INTO epoch_conflicts (epoch, gateway, seq) VALUES ($1, $2, $3) ON CONFLICT (epoch, gateway) DO NOTHING",
		epoch[:], gateway, int64(seq))
	if err != nil {
		return "", err
	}
	if n, err := res.RowsAffected(); err != nil {
		return "", err
	} else if n > 0 {
		if err := r.outbox.Add(tx, audit.Event{
			Type: audit.EpochConflict, Actor: audit.Actor{ID: "server"}, Target: gateway, Outcome: audit.Denied,
			Reason: "the epoch belongs to another gateway", Detail: map[string]string{"epoch": epoch.String(), "gateway": owner},
		}); err != nil {
			return "", err
		}
	}
	return "its epoch belongs to another gateway", nil
}

// retrySealings judges those that waited for their key.
func (r *Records) retrySealings(ctx context.Context) error {
	type due struct {
		key    sealingKey
		hash   [32]byte
		signed []byte
		seq    int64
	}
	rows, err := r.db.Query(ctx, "SELECT gateway, sealing, hash, signed, seq FROM sealings WHERE state = 0 AND due <= $1 ORDER BY due LIMIT $2",
		r.now().UnixMilli(), retryBatches)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var waiting []due
	for rows.Next() {
		var d due
		var id, hash []byte
		if err := rows.Scan(&d.key.gateway, &id, &hash, &d.signed, &d.seq); err != nil {
			return err
		}
		d.key.id, d.hash = [16]byte(id), [32]byte(hash)
		waiting = append(waiting, d)
	}
	if err := rows.Err(); err != nil || len(waiting) == 0 {
		return err
	}
	return r.db.Write(ctx, func(tx *sql.Tx) error {
		for _, d := range waiting {
			signed, err := seal.ParseSigned(d.signed)
			if err != nil {
				return fmt.Errorf("sealing record of %s in the database: %w", d.key.gateway, err)
			}
			if err := r.judgeSealing(ctx, tx, d.key, d.hash, signed, uint64(d.seq)); err != nil {
				return err
			}
		}
		return nil
	})
}

// openers is a bounded cache of opened sealing periods, the least recently used leaving first: a decapsulation costs as much as
// opening a hundred batches.
type openers struct {
	key   seal.PrivateKey
	byKey map[sealingKey]*list.Element
	order *list.List // of *openerEntry, most recent first
}

type openerEntry struct {
	key    sealingKey
	opener *seal.Opener
}

const maxOpeners = 4096

func newOpeners(key seal.PrivateKey) *openers {
	return &openers{key: key, byKey: make(map[sealingKey]*list.Element), order: list.New()}
}

func (o *openers) get(k sealingKey) *seal.Opener {
	el, ok := o.byKey[k]
	if !ok {
		return nil
	}
	o.order.MoveToFront(el)
	return el.Value.(*openerEntry).opener
}

func (o *openers) put(k sealingKey, opener *seal.Opener) {
	o.byKey[k] = o.order.PushFront(&openerEntry{k, opener})
	if o.order.Len() > maxOpeners {
		last := o.order.Back()
		o.order.Remove(last)
		delete(o.byKey, last.Value.(*openerEntry).key)
	}
}

// opener gives the opener of a verified sealing record, or errNotYet.
func (r *Records) opener(ctx context.Context, k sealingKey) (*seal.Opener, error) {
	if o := r.openers.get(k); o != nil {
		return o, nil
	}
	var data []byte
	err := r.db.QueryRow(ctx, "SELECT signed FROM sealings WHERE gateway = $1 AND sealing = $2 AND state = $3",
		k.gateway, k.id[:], sealingValid).Scan(&data)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNotYet
	}
	if err != nil {
		return nil, &unavailable{err}
	}
	signed, err := seal.ParseSigned(data)
	if err != nil {
		return nil, err
	}
	rec, err := signed.Unverified() // judged when it was kept
	if err != nil {
		return nil, err
	}
	o, err := seal.NewOpener(r.openers.key, rec)
	if err != nil {
		return nil, err
	}
	r.openers.put(k, o)
	return o, nil
}
