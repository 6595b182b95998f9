package registry

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

//go:embed profiles_0001.sql
var profiles1 string

// DefaultProfile is the profile of a gateway whose manifest names none: all lanes, no rate. It cannot be changed, so that a gateway
// that nobody thought of is not cut short by an edit that was meant for others.
const DefaultProfile = "default"

// Bounds of profiles. A gateway has 64 publishes in flight, its alarms first: at the least rate an alarm waits for some six seconds of them.
const (
	maxProfiles  = 200
	MinPublishes = 10        // per second
	MinBytes     = 256 << 10 // per second: a whole frame
	maxRate      = 1 << 30
)

// selfLane carries a gateway's accounts of itself, without which nobody would see what the others do to it.
const selfLane = uint8(1) << telemetry.LaneSelf

// Profile is what a class of gateways may do.
type Profile struct {
	Name      string // as a gateway's id
	Lanes     uint8  // a bit for each telemetry.Lane; self is always among them
	Publishes int    // per second, 0: no rate of its own
	Bytes     int    // of frames, per second, 0: no rate of its own

	// Set by the registry.
	At       time.Time
	By       string
	Gateways int // that have it
}

// Check says what is wrong with a profile and how to mend it.
func (p *Profile) Check() error {
	if err := spiffe.ValidName(p.Name); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	if p.Lanes |= selfLane; p.Lanes >= 1<<telemetry.LaneCount {
		return fmt.Errorf("profile %s: lanes: a lane that there is not", p.Name)
	}
	if p.Publishes != 0 && (p.Publishes < MinPublishes || p.Publishes > maxRate) {
		return fmt.Errorf("profile %s: %d publishes a second; expected %d or more, or 0 for no rate: alarms wait behind what is in flight", p.Name, p.Publishes, MinPublishes)
	}
	if p.Bytes != 0 && (p.Bytes < MinBytes || p.Bytes > maxRate) {
		return fmt.Errorf("profile %s: %d bytes a second; expected %d or more, or 0 for no rate: one batch has up to that", p.Name, p.Bytes, MinBytes)
	}
	return nil
}

// LaneNames are the lanes of a bit mask, the most urgent first.
func LaneNames(lanes uint8) (names []string) {
	for l := range telemetry.Lane(telemetry.LaneCount) {
		if lanes>>l&1 == 1 {
			names = append(names, l.String())
		}
	}
	return names
}

// ParseLanes reads lanes by name into a bit mask.
func ParseLanes(names []string) (lanes uint8, err error) {
	for _, name := range names {
		l, err := telemetry.ParseLane(name)
		if err != nil {
			return 0, err
		}
		lanes |= 1 << l
	}
	return lanes, nil
}

// Profiles are all of them by name.
func (r *Registry) Profiles(ctx context.Context) (out []Profile, err error) {
	rows, err := r.db.Query(ctx, `SELECT p.name, p.lanes, p.publishes, p.bytes, p.at, p.actor, (SELECT COUNT(*) FROM gateways g WHERE g.profile = p.name)
		FROM profiles p ORDER BY p.name`)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var p Profile
		var at int64
		if err := rows.Scan(&p.Name, &p.Lanes, &p.Publishes, &p.Bytes, &at, &p.By, &p.Gateways); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		p.At = instant(at)
		out = append(out, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// SetProfile makes or changes a profile; gateways that have it may do what it says within two seconds. ErrConflict for the default one, and when there
// are too many.
func (r *Registry) SetProfile(ctx context.Context, who audit.Actor, peer string, p Profile) error {
	if err := p.Check(); err != nil {
		return err
	}
	if p.Name == DefaultProfile {
		return refusal.New(ErrConflict, "the profile %q allows everything, for ever; make another one and give it to gateways: wardlink gateway profile ID NAME", DefaultProfile)
	}
	err := r.change(ctx, func(tx *sql.Tx) (bool, error) {
		var others int
		if err := tx.QueryRow("SELECT COUNT(*) FROM profiles WHERE name <> $1", p.Name).Scan(&others); err != nil {
			return false, err
		}
		if others >= maxProfiles {
			return false, refusal.New(ErrConflict, "there are %d profiles, which is the most", others)
		}
		if _, err := tx.Exec(`INSERT INTO profiles (name, lanes, publishes, bytes, at, actor) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (name) DO UPDATE SET lanes = excluded.lanes, publishes = excluded.publishes, bytes = excluded.bytes, at = excluded.at, actor = excluded.actor`,
			p.Name, p.Lanes, p.Publishes, p.Bytes, r.now().UnixMilli(), who.ID); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, audit.Event{Type: audit.ProfileSet, Actor: who, Peer: peer, Target: p.Name, Outcome: audit.Success,
			Detail: map[string]string{"lanes": strings.Join(LaneNames(p.Lanes), " "), "publishes": strconv.Itoa(p.Publishes), "bytes": strconv.Itoa(p.Bytes)}})
	})
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return nil
}

// knowsProfile gives ErrUnknown for a profile that there is not.
func knowsProfile(q querier, name string) error {
	var n int
	if err := q.QueryRow("SELECT COUNT(*) FROM profiles WHERE name = $1", name).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return refusal.New(ErrUnknown, "profile %.40q is unknown; 'wardlink profile list' shows those that there are", name)
	}
	return nil
}

// GiveProfile gives a gateway another profile, which holds within two seconds, and says what it had. ErrUnknown for a gateway or a profile that there
// is not; ErrConflict for a gateway that is decommissioned, and for a profile without lane alarm, by which its alarms stay on it, unless that is meant.
func (r *Registry) GiveProfile(ctx context.Context, who audit.Actor, peer, id, profile string, withoutAlarms bool) (was string, err error) {
	err = r.change(ctx, func(tx *sql.Tx) (bool, error) {
		g, err := living(tx, r.now(), id)
		if err != nil {
			return false, err
		}
		if err := knowsProfile(tx, profile); err != nil {
			return false, err
		}
		var lanes uint8
		if err := tx.QueryRow("SELECT lanes FROM profiles WHERE name = $1", profile).Scan(&lanes); err != nil {
			return false, err
		}
		if lanes>>telemetry.LaneAlarm&1 == 0 && !withoutAlarms {
			return false, refusal.New(ErrConflict, "profile %s has no lane alarm, so that the alarms of gateway %s would stay on it, unseen by the hospital; "+
				"give it one that has, 'wardlink profile list' shows them, or add --without-alarms if that is meant", profile, id)
		}
		was = g.Profile
		if _, err := tx.Exec("UPDATE gateways SET profile = $1 WHERE id = $2", profile, id); err != nil {
			return false, err
		}
		return was != profile, r.outbox.Add(tx, audit.Event{Type: audit.GatewayProfiled, Actor: who, Peer: peer, Target: id, Outcome: audit.Success,
			Detail: map[string]string{"profile": profile, "was": was}})
	})
	if err != nil {
		return was, fmt.Errorf("profile: %w", err)
	}
	return was, nil
}

// WindowError is the ErrNotActive of a gateway whose time has not come, or is over.
type WindowError struct {
	Gateway   string
	NotBefore time.Time // zero: no limit
	NotAfter  time.Time
}

func (e *WindowError) Error() string {
	return fmt.Sprintf("gateway %s is outside of its validity (%s)", e.Gateway, Window(e.NotBefore, e.NotAfter))
}

// Unwrap gives ErrNotActive.
func (e *WindowError) Unwrap() error { return ErrNotActive }

// Window is a validity for people.
func Window(from, until time.Time) string {
	switch {
	case from.IsZero() && until.IsZero():
		return "always"
	case from.IsZero():
		return "until " + until.UTC().Format(time.RFC3339)
	case until.IsZero():
		return "from " + from.UTC().Format(time.RFC3339)
	}
	return from.UTC().Format(time.RFC3339) + " until " + until.UTC().Format(time.RFC3339)
}

// CheckWindow says what is wrong with a validity.
func CheckWindow(from, until time.Time) error {
	if !from.IsZero() && !until.IsZero() && !until.After(from) {
		return errors.New("the end of the validity is not after its beginning")
	}
	for _, at := range []time.Time{from, until} {
		if !at.IsZero() && (at.Year() < 2000 || at.Year() > 2200) {
			return fmt.Errorf("%s: expected an instant between the years 2000 and 2200", at.Format(time.RFC3339))
		}
	}
	return nil
}

// WindowChange says what of a gateway's validity becomes another: nil leaves a bound as it is, a zero instant is no limit.
type WindowChange struct {
	From, Until *time.Time
	Cuts        bool // that it cuts the gateway off at once is meant: an end that has passed, a beginning that is to come
}

// SetWindow says from when until when a gateway may connect and have certificates, and gives what it is then. At the end its session is cut. ErrConflict for an
// end that has passed, and a beginning that is to come of a gateway that may connect and has a key, unless that is meant; for an end before the
// beginning that stands; and for a gateway that is decommissioned.
func (r *Registry) SetWindow(ctx context.Context, who audit.Actor, peer, id string, change WindowChange) (from, until time.Time, err error) {
	err = r.change(ctx, func(tx *sql.Tx) (bool, error) {
		now := r.now()
		g, err := living(tx, now, id)
		if err != nil {
			return false, err
		}
		from, until = g.NotBefore, g.NotAfter
		if change.From != nil {
			from = *change.From
		}
		if change.Until != nil {
			until = *change.Until
		}
		if err := CheckWindow(from, until); err != nil {
			return false, refusal.New(ErrConflict, "gateway %s would be valid %s: %v; give the other bound, too, or --always before both", id, Window(from, until), err)
		}
		if change.Until != nil && !until.IsZero() && !until.After(now) && !change.Cuts {
			return false, refusal.New(ErrConflict, "%s has passed: gateway %s would be cut off at once; if that is meant, add --yes; "+
				"'wardlink gateway suspend %s' cuts it off for a time and names a reason, 'wardlink gateway decommission %s' for ever", until.UTC().Format(time.RFC3339), id, id, id)
		}
		if from.After(now) && !g.NotBefore.After(now) && !change.Cuts {
			var keys int // before the first there is nobody to be cut off
			if err := tx.QueryRow("SELECT COUNT(*) FROM gateway_keys WHERE gateway = $1", id).Scan(&keys); err != nil {
				return false, err
			}
			if keys > 0 && (g.NotAfter.IsZero() || g.NotAfter.After(now)) {
				return false, refusal.New(ErrConflict, "%s is to come: gateway %s, which is enrolled, would be cut off at once, until then; if that is meant, add --yes; "+
					"'wardlink gateway suspend %s' cuts it off and names a reason", from.UTC().Format(time.RFC3339), id, id)
			}
		}
		if _, err := tx.Exec("UPDATE gateways SET not_before = $1, not_after = $2 WHERE id = $3", millis(from), millis(until), id); err != nil {
			return false, err
		}
		return true, r.outbox.Add(tx, audit.Event{Type: audit.GatewayWindowed, Actor: who, Peer: peer, Target: id, Outcome: audit.Success,
			Detail: map[string]string{"valid": Window(from, until), "was": Window(g.NotBefore, g.NotAfter)}})
	})
	if err != nil {
		return from, until, fmt.Errorf("window: %w", err)
	}
	return from, until, nil
}

// granted takes what stands in a row of profiles; a gateway whose profile is gone may publish nothing.
func (g *Gateway) granted(lanes, publishes, bytes sql.NullInt64) {
	g.Grant = Profile{Name: g.Profile, Lanes: uint8(lanes.Int64), Publishes: int(publishes.Int64), Bytes: int(bytes.Int64)}
}
