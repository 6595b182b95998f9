// Package registry knows who may do what: gateways (each a set of TPM endorsement keys), their profiles and keys, the TPMs that
// wait to be admitted, service accounts and operators, and the revision that every node watches.
package registry

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"wardlink/enroll"
	"wardlink/internal/refusal"
	"wardlink/internal/spiffe"
	"wardlink/server/sqldb"
)

//go:embed sqlite_0001.sql
var schema1 string

//go:embed revocations_0001.sql
var revocations1 string

//go:embed waiting_0001.sql
var waiting1 string

//go:embed standing_0001.sql
var standing1 string

//go:embed standing_0002.sql
var standing2 string

//go:embed wards_0001.sql
var wards1 string

// Migrations is the registry's schema. Domains are migrated in the order of their names: those behind registry may name its tables.
func Migrations() []sqldb.Migration {
	own := []sqldb.Migration{{Domain: "registry", Version: 1, SQL: schema1}, {Domain: "operators", Version: 1, SQL: operators1}, {Domain: "revocations", Version: 1, SQL: revocations1},
		{Domain: "standing_codes", Version: 1, SQL: codes1}, {Domain: "standing_conflicts", Version: 1, SQL: conflicts1},
		{Domain: "standing_devices", Version: 1, SQL: devices1},
		{Domain: "registry_identities", Version: 1, SQL: identities1}, {Domain: "registry_boot", Version: 1, SQL: boot1}, {Domain: "registry_profiles", Version: 1, SQL: profiles1},
		{Domain: "standing", Version: 1, SQL: standing1}, {Domain: "standing", Version: 2, SQL: standing2},
		{Domain: "waiting", Version: 1, SQL: waiting1}, {Domain: "wards", Version: 1, SQL: wards1}}
	return append(own, nodeMigrations()...)
}

// What callers branch on.
var (
	ErrUnknown   = errors.New("not in the registry")
	ErrNotActive = errors.New("not active")
	ErrConflict  = errors.New("conflicts with the registry")
)

// State of a gateway.
type State string

// The states.
const (
	Active         State = "active"
	Suspended      State = "suspended"
	Quarantined    State = "quarantined" // admitted, and what it publishes is marked: it booted something unknown
	Decommissioned State = "decommissioned"
	Revoked        State = "revoked" // there is a Revocation, whatever the state was before
)

// Limits of what the registry keeps about one gateway.
const (
	maxLabel = 100 // bytes of a site or ward name
	maxEKs   = 8   // EKs of one TPM: two in the field, RSA and ECC in two strengths at most
)

// Gateway is one gateway as an operator enters it.
type Gateway struct {
	ID      string // SPIFFE name: 1 to 63 of a-z, 0-9, hyphens inside
	EKs     [][32]byte
	Site    string
	Ward    string // as the registry gives it: the one of this moment
	Profile string // "" is DefaultProfile

	// The validity; a zero time is no limit.
	NotBefore, NotAfter time.Time

	matched map[string]string // how a batch found its TPM, for the event

	// Set by the registry.
	Grant   Profile // what the profile allows
	State   State
	Added   time.Time
	Revoked *Revocation // nil unless State is Revoked
	Hold    *Hold       // of a gateway that is suspended or decommissioned, or was before it was revoked
}

// check says what is wrong with an entered gateway and how to mend it.
func (g *Gateway) check() error {
	if err := spiffe.ValidName(g.ID); err != nil {
		return fmt.Errorf("gateway id: %w", err)
	}
	if n := len(g.EKs); n == 0 || n > maxEKs {
		return fmt.Errorf("gateway %s: %d endorsement keys; expected 1 to %d", g.ID, n, maxEKs)
	}
	for name, label := range map[string]string{"site": g.Site, "ward": g.Ward} {
		if !oneLine(label, maxLabel) {
			return fmt.Errorf("gateway %s: %s: expected at most %d bytes of printable UTF-8", g.ID, name, maxLabel)
		}
	}
	if g.Profile == "" {
		g.Profile = DefaultProfile
	}
	if err := spiffe.ValidName(g.Profile); err != nil {
		return fmt.Errorf("gateway %s: profile: %w", g.ID, err)
	}
	return nil
}

// oneLine says whether a text is printable UTF-8 on one line and of at most that many bytes.
func oneLine(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// Config is what a Registry needs.
type Config struct {
	DB     *sqldb.DB     // with Migrations and sqldb.OutboxMigrations
	Outbox *sqldb.Outbox // of the same DB
	Now    func() time.Time
	// MaxWaiting bounds the list of waiting TPMs; 0 means 10,000.
	MaxWaiting int
	// CodeRequired has each TPM's first attestation want a one-time code (MakeCode); else those alone for which one was made.
	CodeRequired bool
	// Changed is called after each change of who may do what, as soon as it stands and before its event is in the journal: so that a
	// node need not wait for its next look at the revision. It must not block; it may be nil.
	Changed func()
}

// Registry is safe for concurrent use. Every method that changes something writes its audit event in the same transaction and
// returns only once the event is in the journal; if that fails the change stands, the error says so, and the event follows.
type Registry struct {
	db           *sqldb.DB
	outbox       *sqldb.Outbox
	now          func() time.Time
	maxWaiting   int
	changed      func()
	codeRequired bool
	uses         uses
}

// New makes the registry of a database.
func New(cfg Config) (*Registry, error) {
	if cfg.DB == nil || cfg.Outbox == nil {
		return nil, errors.New("registry: DB and Outbox are required")
	}
	r := &Registry{db: cfg.DB, outbox: cfg.Outbox, now: cfg.Now, maxWaiting: cfg.MaxWaiting, codeRequired: cfg.CodeRequired, changed: cfg.Changed}
	if r.now == nil {
		r.now = time.Now
	}
	if r.changed == nil {
		r.changed = func() {}
	}
	if r.maxWaiting <= 0 {
		r.maxWaiting = 10_000
	}
	return r, nil
}

// commit runs fn in a write transaction that raises the revision if fn says that who may do what has changed.
func (r *Registry) commit(ctx context.Context, fn func(tx *sql.Tx) (changed bool, err error)) error {
	changed := false
	err := r.db.Write(ctx, func(tx *sql.Tx) (err error) {
		if changed, err = fn(tx); err != nil || !changed {
			return err
		}
		_, err = tx.Exec("UPDATE registry_state SET revision = revision + 1")
		return err
	})
	if err == nil && changed {
		r.changed()
	}
	return err
}

// change commits fn and flushes the events that it added.
func (r *Registry) change(ctx context.Context, fn func(tx *sql.Tx) (changed bool, err error)) error {
	if err := r.commit(ctx, fn); err != nil {
		return err
	}
	if err := r.outbox.Flush(ctx); err != nil {
		return fmt.Errorf("the change is made, but %w: %w", ErrLate, err)
	}
	return nil
}

// Revision grows with every change of who may do what.
func (r *Registry) Revision(ctx context.Context) (rev int64, err error) {
	if err = r.db.QueryRow(ctx, "SELECT revision FROM registry_state").Scan(&rev); err != nil {
		return 0, fmt.Errorf("registry: %w", err)
	}
	return rev, nil
}

const (
	gatewayColumns = `g.id, g.site,
		COALESCE((SELECT w.ward FROM gateway_wards w WHERE w.gateway = g.id AND w.since <= $1 ORDER BY w.since DESC LIMIT 1), g.ward),
		g.profile, g.state, g.not_before, g.not_after, g.added, v.at, v.actor, v.reason, v.serials, h.at, h.actor, h.reason, p.lanes, p.publishes, p.bytes` // $1: now
	gatewayRows   = "SELECT " + gatewayColumns + ", e.ek FROM " + gatewayTables + " JOIN gateway_eks e ON e.gateway = g.id" // one for each endorsement key
	gatewayTables = "gateways g LEFT JOIN revocations v ON v.gateway = g.id LEFT JOIN gateway_holds h ON h.gateway = g.id LEFT JOIN profiles p ON p.name = g.profile"
)

type scanner interface{ Scan(dest ...any) error }

func scanGateway(row scanner, more ...any) (Gateway, error) {
	var g Gateway
	var notBefore, notAfter, added int64
	var at, heldAt, lanes, publishes, bytes sql.NullInt64
	var actor, reason, serials, heldBy, heldFor sql.NullString
	err := row.Scan(append([]any{&g.ID, &g.Site, &g.Ward, &g.Profile, &g.State, &notBefore, &notAfter, &added,
		&at, &actor, &reason, &serials, &heldAt, &heldBy, &heldFor, &lanes, &publishes, &bytes}, more...)...)
	g.granted(lanes, publishes, bytes)
	g.NotBefore, g.NotAfter, g.Added = instant(notBefore), instant(notAfter), instant(added)
	if heldAt.Valid {
		g.Hold = &Hold{At: instant(heldAt.Int64), By: heldBy.String, Reason: heldFor.String}
	}
	// Nothing counts beside the end of its life: a release before this one let a decommissioned gateway be revoked, too.
	if at.Valid && g.State != Decommissioned {
		g.State = Revoked
		g.Revoked = &Revocation{At: instant(at.Int64), By: actor.String, Reason: reason.String, Serials: strings.Fields(serials.String)}
	}
	return g, err
}

// instant and millis keep the zero time as 0 in the database.
func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// List gives all gateways in the order of their ids.
func (r *Registry) List(ctx context.Context) ([]Gateway, error) {
	out, err := gateways(r.db.Query(ctx, gatewayRows+" ORDER BY g.id, e.ek", r.now().UnixMilli()))
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// gateways reads rows of gatewayRows, in the order of ids, and closes them.
func gateways(rows *sql.Rows, err error) (out []Gateway, _ error) {
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var ek []byte
		g, err := scanGateway(rows, &ek)
		if err != nil {
			return nil, err
		}
		if len(out) == 0 || out[len(out)-1].ID != g.ID {
			out = append(out, g)
		}
		last := &out[len(out)-1]
		last.EKs = append(last.EKs, [32]byte(ek))
	}
	return out, rows.Err()
}

// querier is a transaction or the reader pool.
type querier interface {
	Query(query string, args ...any) (*sql.Rows, error)
	QueryRow(query string, args ...any) *sql.Row
}

const gatewayByID = gatewayRows + " WHERE g.id = $2 ORDER BY e.ek"

// Get gives one gateway, or ErrUnknown.
func (r *Registry) Get(ctx context.Context, id string) (Gateway, error) {
	found, err := gateways(r.db.Query(ctx, gatewayByID, r.now().UnixMilli(), id))
	return only(id, found, err)
}

func get(q querier, now time.Time, id string) (Gateway, error) {
	found, err := gateways(q.Query(gatewayByID, now.UnixMilli(), id))
	return only(id, found, err)
}

// only is what was found by a gateway's id.
func only(id string, found []Gateway, err error) (Gateway, error) {
	if err != nil {
		return Gateway{}, err
	}
	if len(found) == 0 {
		return Gateway{}, refusal.New(ErrUnknown, "gateway %.64q: not in the registry; 'wardlink gateway list' shows those that are there", id)
	}
	return found[0], nil
}

// living gives a gateway that may still be changed: ErrConflict for one that is decommissioned, which is for ever. Every act that changes a gateway asks it.
func living(q querier, now time.Time, id string) (Gateway, error) {
	g, err := get(q, now, id)
	if err != nil || g.State != Decommissioned {
		return g, err
	}
	return g, over(g)
}

// over is the ErrConflict of an act on a gateway whose life has ended.
func over(g Gateway) error {
	return refusal.New(ErrConflict, "gateway %s is decommissioned, which is for ever: nothing of it is changed any more; enter a box with another TPM under another id", g.ID)
}

// hashes are the endorsement keys' hashes that a query gives.
func hashes(q querier, query string, args ...any) (out [][32]byte, err error) {
	rows, err := q.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return nil, err
		}
		if len(b) != 32 {
			return nil, errors.New("an endorsement key's hash in the registry is not 32 bytes long")
		}
		out = append(out, [32]byte(b))
	}
	return out, rows.Err()
}

// ByEK gives the gateway that owns an endorsement key: ErrUnknown when nobody entered it; the gateway and ErrNotActive, a
// *RevokedError or a *HeldError among them, when it may not have a certificate now; the gateway's id and a *RetiredError for a
// board that was replaced.
func (r *Registry) ByEK(ctx context.Context, ek [32]byte) (Gateway, error) {
	now := r.now()
	// One statement, since each attestation asks three times.
	found, err := gateways(r.db.Query(ctx, gatewayRows+" WHERE g.id = (SELECT gateway FROM gateway_eks WHERE ek = $2) ORDER BY e.ek", now.UnixMilli(), ek[:]))
	if err != nil {
		return Gateway{}, fmt.Errorf("registry: %w", err)
	}
	if len(found) > 0 {
		return found[0], found[0].admissible(now)
	}
	retired := &RetiredError{}
	err = r.db.QueryRow(ctx, "SELECT gateway, reason FROM retired_eks WHERE ek = $1", ek[:]).Scan(&retired.Gateway, &retired.Reason)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Gateway{}, fmt.Errorf("endorsement key %s: %w", enroll.Fingerprint(ek), ErrUnknown)
	case err != nil:
		return Gateway{}, fmt.Errorf("registry: %w", err)
	}
	return Gateway{ID: retired.Gateway}, retired
}

func (g *Gateway) admissible(now time.Time) error {
	switch {
	case g.Revoked != nil:
		return &RevokedError{g.ID, g.Revoked.Reason}
	case g.State != Active && g.Hold != nil:
		return &HeldError{g.ID, g.State, g.Hold.Reason}
	case g.State != Active && g.State != Quarantined:
		return fmt.Errorf("gateway %s is %s: %w", g.ID, g.State, ErrNotActive)
	case g.Outside(now):
		return &WindowError{g.ID, g.NotBefore, g.NotAfter}
	}
	return nil
}

// Outside says whether an instant is outside of the gateway's validity.
func (g *Gateway) Outside(now time.Time) bool {
	return !g.NotBefore.IsZero() && now.Before(g.NotBefore) || !g.NotAfter.IsZero() && !now.Before(g.NotAfter)
}

// Lanes are the lanes of the gateway's profile, a bit for each: whether it is admitted at all is Admit's to say.
func (g *Gateway) Lanes() uint8 { return g.Grant.Lanes }

// Admission is what a gateway may do in the session that it opens.
type Admission struct {
	Gateway string
	Lanes   uint8 // bit per telemetry.Lane that it may publish on
	// Publishes and Bytes per second are its profile's rates; 0: none.
	Publishes, Bytes int
	Until            time.Time // when its validity ends; zero: never
	// Quarantined marks what it publishes: it booted something unknown.
	Quarantined bool
}

// Admit says what a gateway may do now: ErrUnknown, ErrNotActive (a *RevokedError among them), or its admission.
func (r *Registry) Admit(ctx context.Context, gateway string) (Admission, error) {
	g, err := r.Get(ctx, gateway)
	if err != nil {
		return Admission{}, err
	}
	return g.admission(r.now())
}

// admission is what a gateway may do now.
func (g *Gateway) admission(now time.Time) (Admission, error) {
	if err := g.admissible(now); err != nil {
		return Admission{}, err
	}
	return Admission{Gateway: g.ID, Lanes: g.Lanes(), Publishes: g.Grant.Publishes, Bytes: g.Grant.Bytes, Until: g.NotAfter, Quarantined: g.State == Quarantined}, nil
}

// AdmitKey is Admit for a session that a device key opens, by the SHA-256 of its SPKI: one of a board that was replaced is admitted no more.
func (r *Registry) AdmitKey(ctx context.Context, gateway string, key [32]byte) (Admission, error) {
	// One statement, since a whole hospital may ask at once.
	var was sql.NullString
	now := r.now()
	g, err := scanGateway(r.db.QueryRow(ctx, "SELECT "+gatewayColumns+", (SELECT k.gateway FROM retired_keys k WHERE k.spki = $3) FROM "+gatewayTables+" WHERE g.id = $2",
		now.UnixMilli(), gateway, key[:]), &was)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Admission{}, fmt.Errorf("gateway %.64q: %w", gateway, ErrUnknown)
	case err != nil:
		return Admission{}, fmt.Errorf("registry: %w", err)
	}
	a, err := g.admission(now)
	if err == nil && was.Valid {
		return Admission{}, &RetiredError{Gateway: was.String, Reason: "its key is the former board's"}
	}
	return a, err
}

// retiredKey is the gateway of whose former board a device key is; "" for any other key.
func retiredKey(q querier, key [32]byte) (gateway string, err error) {
	err = q.QueryRow("SELECT gateway FROM retired_keys WHERE spki = $1", key[:]).Scan(&gateway)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return gateway, err
}

// RetiredKey says whether a device key, by the SHA-256 of its SPKI, is of a board that was replaced.
func (r *Registry) RetiredKey(ctx context.Context, key [32]byte) (retired bool, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		gateway, err := retiredKey(tx, key)
		retired = gateway != ""
		return err
	})
	if err != nil {
		return false, fmt.Errorf("registry: %w", err)
	}
	return retired, nil
}

func hexes(eks [][32]byte) string {
	texts := make([]string, len(eks))
	for i, ek := range eks {
		texts[i] = hex.EncodeToString(ek[:])
	}
	return strings.Join(texts, " ")
}
