package registry

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/refusal"
	"wardlink/internal/spiffe"
)

//go:embed conflicts_0001.sql
var conflicts1 string

// Claim is one way in which two cannot both be who they say.
type Claim string

// The claims. Each was refused when it was noted.
const (
	// OneKey: an operator entered an endorsement key of the gateway for the rival, too: two gateways with one key, or one under two ids.
	OneKey Claim = "one-key"
	// OneTPM: the TPM of the gateway proved that it is the rival's, too, or asked for the rival's certificate.
	OneTPM Claim = "one-tpm"
	// ForeignDisk: a TPM that is not the gateway's came with the gateway's disk, or a copy of it; the rival is that TPM's gateway or fingerprint.
	ForeignDisk Claim = "foreign-disk"
)

// claims say what happened, and what mends it, each in at most 200 bytes, as an alert holds them; the gateway and the rival stand where the verbs are.
var claims = map[Claim]struct{ what, mend string }{
	OneKey: {"an endorsement key of gateway %[1]s was entered for %[2]s, too; it stays %[1]s's",
		"'wardlink gateway show %[1]s' has its key: compare it with both boxes; of two that show one fingerprint one is a copy"},
	OneTPM: {"the TPM of gateway %[1]s claims to be gateway %[2]s, too",
		"one box is entered twice, or somebody on %[1]s tries another name: look at the box, and decommission the entry that is wrong"},
	ForeignDisk: {"the disk of gateway %[1]s, or a copy of it, is in the box of %[2]s",
		"board changed: 'wardlink gateway replace %[1]s'; wrong box: put it back; else the disk was copied, and none of its keys works there"},
}

// Contention is a claim that was refused.
type Contention struct {
	Claim   Claim
	Gateway string // who is registered
	Rival   string // another gateway's id, or the fingerprint of a TPM
	Peer    string // from where it came last

	// Set by the registry.
	First, Last time.Time
	Count       int
}

// What and Mend say in a sentence what happened and what to do.
func (c *Contention) What() string { return fmt.Sprintf(claims[c.Claim].what, c.Gateway, c.Rival) }

// Mend says what to do. A board that is a gateway already can take no other's place.
func (c *Contention) Mend() string {
	if c.Claim == ForeignDisk && spiffe.ValidName(c.Rival) == nil {
		return fmt.Sprintf("put the disk of %[1]s where it belongs, and the own one of %[2]s or an empty one into the box of %[2]s; 'wardlink salvage' reads what is on it", c.Gateway, c.Rival)
	}
	return fmt.Sprintf(claims[c.Claim].mend, c.Gateway, c.Rival)
}

// What a TPM shows of a disk is only its word, and anybody at the gateways' port may have a TPM. So these claims have a room of their own, in which a board
// that is registered comes before a stranger, and take none from contentions that were proven.
const (
	maxContentions   = 1000 // proven
	maxDiskClaims    = 200
	maxDisksOfOne    = 8           // claims about one gateway
	contentionSettle = time.Minute // one that comes again sooner costs no write
	contentionTell   = time.Hour   // and sooner than this no event
)

// Contend notes a claim that was refused, which is an alert for a day (Contentions). Its event is in the journal when Contend returns nil; what
// comes again and again has one event an hour. A gateway that is not registered is left out: anybody may say any name.
func (r *Registry) Contend(ctx context.Context, who audit.Actor, c Contention) error {
	settled := errors.New("noted a moment ago")
	err := r.change(ctx, func(tx *sql.Tx) (bool, error) {
		var last int64
		err := tx.QueryRow("SELECT last_seen FROM identity_conflicts WHERE kind = $1 AND gateway = $2 AND rival = $3", string(c.Claim), c.Gateway, c.Rival).Scan(&last)
		if since := r.now().UnixMilli() - last; err == nil && since >= 0 && since < contentionSettle.Milliseconds() {
			return false, settled
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return false, err
		}
		return false, r.contend(tx, who, c)
	})
	if errors.Is(err, settled) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// contend is Contend within tx.
func (r *Registry) contend(tx *sql.Tx, who audit.Actor, c Contention) error {
	if _, ok := claims[c.Claim]; !ok {
		return fmt.Errorf("claim %.40q is unknown", c.Claim)
	}
	var known int // one that is decommissioned has nothing to be taken any more, and no other board can have its place
	if err := tx.QueryRow("SELECT COUNT(*) FROM gateways WHERE id = $1 AND ($2 <> 'foreign-disk' OR state <> 'decommissioned')", c.Gateway, string(c.Claim)).Scan(&known); err != nil || known == 0 {
		return err
	}
	now := r.now().UnixMilli()
	var last int64
	err := tx.QueryRow("SELECT last_seen FROM identity_conflicts WHERE kind = $1 AND gateway = $2 AND rival = $3", string(c.Claim), c.Gateway, c.Rival).Scan(&last)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		if ok, err := makeRoom(tx, c); err != nil || !ok {
			return err
		}
	case err != nil:
		return err
	}
	if _, err := tx.Exec(`INSERT INTO identity_conflicts AS c (kind, gateway, rival, peer, first_seen, last_seen, count) VALUES ($1, $2, $3, $4, $5, $5, 1)
		ON CONFLICT (kind, gateway, rival) DO UPDATE SET peer = excluded.peer, last_seen = excluded.last_seen, count = c.count + 1`,
		string(c.Claim), c.Gateway, c.Rival, c.Peer, now); err != nil {
		return err
	}
	if now-last < contentionTell.Milliseconds() && now >= last {
		return nil
	}
	return r.outbox.Add(tx, audit.Event{Type: audit.IdentityConflict, Actor: who, Peer: c.Peer, Target: c.Gateway, Outcome: audit.Denied, Reason: c.What(),
		Detail: map[string]string{"claim": string(c.Claim), "rival": c.Rival}})
}

// makeRoom lets the contention that was not seen for longest go where a new one has no room. False: there is none for a stranger's claim about a disk, since all
// are of boards that are registered.
func makeRoom(tx *sql.Tx, c Contention) (bool, error) {
	if c.Claim != ForeignDisk {
		return drop(tx, maxContentions, "kind <> $1", string(ForeignDisk))
	}
	var registered int
	if err := tx.QueryRow("SELECT COUNT(*) FROM gateways WHERE id = $1", c.Rival).Scan(&registered); err != nil {
		return false, err
	}
	for _, bound := range []struct {
		most  int
		where string
		args  []any
	}{
		{maxDisksOfOne, "kind = $1 AND gateway = $2", []any{string(c.Claim), c.Gateway}},
		{maxDiskClaims, "kind = $1", []any{string(c.Claim)}},
	} {
		where := bound.where
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM identity_conflicts WHERE "+where, bound.args...).Scan(&n); err != nil {
			return false, err
		}
		if n < bound.most {
			continue
		}
		if registered == 0 {
			where += " AND rival NOT IN (SELECT id FROM gateways)"
		}
		if ok, err := drop(tx, 0, where, bound.args...); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// drop deletes the oldest of those contentions, strangers' first, if there are most or more. False: there is none to delete.
func drop(tx *sql.Tx, most int, where string, args ...any) (bool, error) {
	var n int
	if err := tx.QueryRow("SELECT COUNT(*) FROM identity_conflicts WHERE "+where, args...).Scan(&n); err != nil || n < most {
		return err == nil, err
	}
	done, err := tx.Exec(`DELETE FROM identity_conflicts WHERE (kind, gateway, rival) IN (SELECT kind, gateway, rival FROM identity_conflicts
		WHERE `+where+` ORDER BY rival IN (SELECT id FROM gateways), last_seen LIMIT 1)`, args...)
	if err != nil {
		return false, err
	}
	gone, err := done.RowsAffected()
	return gone > 0, err
}

// settle removes the contentions that end with a gateway's board: the one TPM that was two gateways is not this one's any more, and the boards that came with
// its disk are its own now.
func settle(tx *sql.Tx, gateway string, boards [][32]byte) error {
	if _, err := tx.Exec("DELETE FROM identity_conflicts WHERE kind = $1 AND (gateway = $2 OR rival = $2)", string(OneTPM), gateway); err != nil {
		return err
	}
	for _, ek := range boards {
		if _, err := tx.Exec("DELETE FROM identity_conflicts WHERE kind = $1 AND gateway = $2 AND rival = $3", string(ForeignDisk), gateway, enroll.Fingerprint(ek)); err != nil {
			return err
		}
	}
	return nil
}

// Contentions are the claims that were seen since, those that were proven first, and of each the newest first: at most 1,200.
func (r *Registry) Contentions(ctx context.Context, since time.Time) (out []Contention, err error) {
	rows, err := r.db.Query(ctx, `SELECT kind, gateway, rival, peer, first_seen, last_seen, count FROM identity_conflicts
		WHERE last_seen >= $1 ORDER BY kind = $2, last_seen DESC, kind, gateway, rival`, since.UnixMilli(), string(ForeignDisk))
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c Contention
		var first, last int64
		if err := rows.Scan(&c.Claim, &c.Gateway, &c.Rival, &c.Peer, &first, &last, &c.Count); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		if _, ok := claims[c.Claim]; !ok {
			continue // of a later program
		}
		c.First, c.Last = instant(first), instant(last)
		out = append(out, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// takenError is the ErrConflict of an endorsement key that is another gateway's: the transaction that meets it is undone, and what it met is
// noted by itself.
type takenError struct {
	error
	contention Contention
}

func (e *takenError) Unwrap() error { return e.error }

// ErrTwoGateways is why a TPM is not certified that has proven to be two gateways.
var ErrTwoGateways = fmt.Errorf("this TPM is another gateway's, too: %w", ErrConflict)

// otherOf gives the gateway, other than this one, under whose endorsement key a TPM has shown the same attestation key; "" when there is none. One
// that is decommissioned is none: it can never be certified again, and that is how an operator ends one of two.
func otherOf(q querier, gateway string, ak []byte) (other string, err error) {
	err = q.QueryRow(`SELECT e.gateway FROM attested_aks a JOIN gateway_eks e ON e.ek = a.ek JOIN gateways g ON g.id = e.gateway
		WHERE a.ak = $1 AND e.gateway <> $2 AND g.state <> 'decommissioned' ORDER BY e.gateway LIMIT 1`, ak, gateway).Scan(&other)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return other, err
}

// noteTaken notes the contention of an act that was undone, and gives the act's error back.
func (r *Registry) noteTaken(ctx context.Context, who audit.Actor, err error) error {
	var taken *takenError
	if !errors.As(err, &taken) {
		return err
	}
	if noted := r.Contend(ctx, who, taken.contention); noted != nil {
		return errors.Join(err, noted)
	}
	return err
}

// refuseTaken refuses an endorsement key for gateway id that is owner's, or for another reason.
func refuseTaken(reason, owner, id, peer string) error {
	err := refusal.New(ErrConflict, "%s", reason)
	if owner == "" || owner == id { // who enters a gateway's key for it once more claims nothing
		return err
	}
	return &takenError{err, Contention{Claim: OneKey, Gateway: owner, Rival: id, Peer: peer}}
}
