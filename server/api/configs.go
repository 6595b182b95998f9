package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/refusal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

var (
	//go:embed sqlite_0001.sql
	schema1 string
	//go:embed sqlite_0002.sql
	schema2 string
)

// Migrations is the schema that this package owns: the configurations of gateways and sites.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "api", Version: 1, SQL: schema1}, {Domain: "api", Version: 2, SQL: schema2}}
}

// Configs issues the signed configurations of gateways and sites. It holds the config key, which ingest does not: ingest relays documents
// that it cannot make. Safe for concurrent use.
type Configs struct {
	DB       *sqldb.DB
	Outbox   *sqldb.Outbox
	Registry *registry.Registry
	Key      ed25519.PrivateKey
	Log      string // verifier key of the log that a restore began; "" where none did
	Now      func() time.Time
	// States is what gateways report of their configurations; of one, or of all with "". nil: nobody reports.
	States func(ctx context.Context, gateway string) (map[string]records.ConfigState, error)
	// Changed is told whose documents may have changed, so that those with a session are sent them. It must not block; it may be nil.
	Changed func(gateways []string)
}

// Target is what a configuration is for.
type Target struct {
	Site bool // else a gateway
	Name string
}

// String is the target as events and people name it.
func (t Target) String() string {
	if t.Site {
		return "site:" + t.Name
	}
	return t.Name
}

// Version is one configuration of a target.
type Version struct {
	Version  uint64 // 0: none was ever issued
	Settings enroll.Settings
	Issued   time.Time
	Actor    string // "server" where the registry changed
	digest   []byte
	document []byte
}

// Bounds of what is kept and believed.
const (
	keptVersions = 200       // of one target; older ones are in the log
	maxAhead     = 1_000_000 // versions by which a report may be ahead of a restored database
)

// Documents are a gateway's own configuration and, where there is one, its site's, as down/config carries them. A new version of its own is
// signed when the registry says something else than the last document did; its event is journaled before the document is given out.
func (c *Configs) Documents(ctx context.Context, gateway string) ([][]byte, error) {
	v, site, err := c.wanted(ctx, gateway)
	if err != nil {
		return nil, err
	}
	docs := [][]byte{v.document}
	if site != "" {
		of, err := c.newest(ctx, Target{Site: true, Name: site})
		if err != nil {
			return nil, err
		}
		if of.Version > 0 {
			docs = append(docs, of.document)
		}
	}
	// Whoever stored one may have failed, or be about, to move its event to the journal.
	if err := c.Outbox.Flush(ctx); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return docs, nil
}

// wanted is the newest version of a gateway's own, issued now if the registry has changed, or if the gateway knows a later version than a
// database that was restored.
func (c *Configs) wanted(ctx context.Context, gateway string) (Version, string, error) {
	conf, err := c.facts(ctx, gateway)
	if err != nil {
		return Version{}, "", err
	}
	t := Target{Name: gateway}
	have, err := c.newest(ctx, t)
	if err != nil {
		return Version{}, "", err
	}
	conf.Settings = have.Settings
	ahead, err := c.reported(ctx, t, have.Version)
	if err != nil {
		return Version{}, "", err
	}
	if digest := digestOf(conf); have.Version > 0 && ahead <= have.Version && bytes.Equal(have.digest, digest[:]) {
		return have, conf.Site, nil
	}
	conf.Version = max(have.Version, ahead) + 1
	v, err := c.issue(ctx, t, conf, audit.Event{Actor: audit.Actor{ID: "server"}, Detail: map[string]string{"ward": conf.Ward, "profile": conf.Profile}}, have.Version)
	return v, conf.Site, err
}

// facts is what the registry says of a gateway, as its document says it.
func (c *Configs) facts(ctx context.Context, gateway string) (enroll.Configuration, error) {
	g, err := c.Registry.Get(ctx, gateway)
	if err != nil {
		return enroll.Configuration{}, fmt.Errorf("configuration: %w", err)
	}
	admission, err := c.Registry.Admit(ctx, gateway)
	if err != nil {
		return enroll.Configuration{}, fmt.Errorf("configuration: %w", err)
	}
	return enroll.Configuration{Gateway: gateway, Site: g.Site, Ward: g.Ward, Profile: g.Profile, Lanes: admission.Lanes, Log: c.Log}, nil
}

// digestOf is of everything that a document says but its version and time. A document without settings has the digest that it had before
// there were any.
func digestOf(c enroll.Configuration) [32]byte {
	h := sha256.New()
	text := func(s string) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	for _, s := range []string{c.Site, c.Ward, c.Profile} {
		text(s)
	}
	if c.Log != "" {
		text("log")
		text(c.Log)
	}
	h.Write([]byte{c.Lanes})
	if len(c.Servers) > 0 || c.ReportEvery > 0 {
		for _, s := range c.Servers {
			text(s)
		}
		h.Write(binary.BigEndian.AppendUint64(nil, c.ReportEvery))
	}
	return [32]byte(h.Sum(nil))
}

// reported is the greatest version that reports name, as far as it can be an honest one; 0 without any.
func (c *Configs) reported(ctx context.Context, t Target, have uint64) (top uint64, err error) {
	if c.States == nil {
		return 0, nil
	}
	gateway, site := t.Name, ""
	if t.Site {
		gateway, site = "", t.Name
	}
	states, err := c.States(ctx, gateway)
	if err != nil {
		return 0, fmt.Errorf("configuration: %w", err)
	}
	look := func(v uint64) {
		if v <= have+maxAhead {
			top = max(top, v)
		}
	}
	for _, s := range states {
		if !t.Site {
			look(s.Own)
		} else if s.Site == site {
			look(s.SiteVersion)
		}
		for _, step := range s.Steps {
			if step.Site == site {
				look(step.Version)
			}
		}
	}
	return top, nil
}

const versionColumns = "version, settings, digest, document, issued, actor"

func scanVersion(scan func(...any) error) (v Version, err error) {
	var version, issued int64
	var settings string
	if err := scan(&version, &settings, &v.digest, &v.document, &issued, &v.Actor); err != nil {
		return Version{}, err
	}
	v.Version, v.Issued = uint64(version), time.UnixMilli(issued).UTC()
	return v, json.Unmarshal([]byte(settings), &v.Settings)
}

// newest is the wanted version of a target; its Version is 0 when there is none.
func (c *Configs) newest(ctx context.Context, t Target) (Version, error) {
	v, err := scanVersion(c.DB.QueryRow(ctx, "SELECT "+versionColumns+" FROM config_versions WHERE site = $1 AND target = $2 ORDER BY version DESC LIMIT 1",
		sqldb.Flag(t.Site), t.Name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Version{}, nil
	}
	if err != nil {
		return Version{}, fmt.Errorf("configuration of %s: %w", t, err)
	}
	return v, nil
}

// Versions are those of a target, the newest first.
func (c *Configs) Versions(ctx context.Context, t Target, limit int) (out []Version, err error) {
	rows, err := c.DB.Query(ctx, "SELECT "+versionColumns+" FROM config_versions WHERE site = $1 AND target = $2 ORDER BY version DESC LIMIT $3", sqldb.Flag(t.Site), t.Name, limit)
	if err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", t, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		v, err := scanVersion(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("configuration of %s: %w", t, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", t, err)
	}
	return out, nil
}

// errMoved says that somebody else was faster.
var errMoved = errors.New("another version was issued meanwhile")

// issue signs and stores a version after the one that the caller saw. Two callers at once sign the same version; the second finds the
// first's and, if the server itself issued it, keeps it.
func (c *Configs) issue(ctx context.Context, t Target, conf enroll.Configuration, ev audit.Event, seen uint64) (Version, error) {
	if conf.Version > math.MaxInt64 {
		return Version{}, fmt.Errorf("configuration of %s: there is no version after %d", t, seen)
	}
	conf.Issued = c.Now().UnixMilli()
	doc, err := enroll.SignConfiguration(conf, c.Key)
	if err != nil {
		return Version{}, err
	}
	settings, err := json.Marshal(conf.Settings)
	if err != nil {
		return Version{}, err
	}
	digest := digestOf(conf)
	v := Version{Version: conf.Version, Settings: conf.Settings, Issued: time.UnixMilli(conf.Issued).UTC(), Actor: ev.Actor.ID, digest: digest[:], document: doc}
	err = c.DB.Write(ctx, func(tx *sql.Tx) error {
		now, err := scanVersion(tx.QueryRow("SELECT "+versionColumns+" FROM config_versions WHERE site = $1 AND target = $2 ORDER BY version DESC LIMIT 1", sqldb.Flag(t.Site), t.Name).Scan)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if now.Version != seen {
			if bytes.Equal(now.digest, digest[:]) {
				v = now
				return nil
			}
			return errMoved
		}
		if _, err := tx.Exec("INSERT INTO config_versions (site, target, "+versionColumns+") VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
			sqldb.Flag(t.Site), t.Name, int64(v.Version), string(settings), v.digest, doc, conf.Issued, v.Actor); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM config_versions WHERE site = $1 AND target = $2 AND version <=
			(SELECT version FROM config_versions WHERE site = $1 AND target = $2 ORDER BY version DESC LIMIT 1 OFFSET $3)`, sqldb.Flag(t.Site), t.Name, keptVersions); err != nil {
			return err
		}
		ev.Type, ev.Target, ev.Outcome = audit.ConfigIssued, t.String(), audit.Success
		ev.Detail["version"] = strconv.FormatUint(v.Version, 10)
		for i, server := range conf.Servers {
			ev.Detail[fmt.Sprintf("server_%02d", i+1)] = server
		}
		if conf.ReportEvery > 0 {
			ev.Detail["report_every"] = (time.Duration(conf.ReportEvery) * time.Millisecond).String()
		}
		return c.Outbox.Add(tx, ev)
	})
	if err == nil {
		err = c.Outbox.Flush(ctx)
	}
	if err != nil {
		return Version{}, fmt.Errorf("configuration of %s: %w", t, err)
	}
	return v, nil
}

// Change is what an operator asks for.
type Change struct {
	Actor    audit.Actor
	Peer     string
	Target   Target
	Settings enroll.Settings // all of them: what is not set is unset
	Expect   *uint64         // the version that the operator saw; nil: whatever it is
	Again    bool            // a new version although nothing changes, so that gateways that took the last one back try it again
	Back     uint64          // for the log: the version whose settings these are
	Dry      bool            // only say what would change
}

// Changed is what came of a Change.
type Changed struct {
	Before, After Version
	Gateways      []string // that get it
	New           bool     // After was issued, or would be
}

// Set issues a new version with an operator's settings. registry.ErrUnknown: no such gateway or site; registry.ErrConflict: somebody else
// was faster, or the gateway is not in service.
func (c *Configs) Set(ctx context.Context, ch Change) (out Changed, err error) {
	if err := ch.Settings.Check(); err != nil {
		return out, badRequest{err}
	}
	conf := enroll.Configuration{ForSite: ch.Target.Name}
	if out.Gateways, err = c.concerned(ctx, ch.Target); err != nil {
		return out, err
	}
	if !ch.Target.Site {
		conf, err = c.facts(ctx, ch.Target.Name)
		if errors.Is(err, registry.ErrNotActive) {
			return out, refusal.New(registry.ErrConflict, "gateway %s is not in service, so it takes no configuration", ch.Target.Name)
		}
		if err != nil {
			return out, err
		}
	}
	if out.Before, err = c.newest(ctx, ch.Target); err != nil {
		return out, err
	}
	if ch.Expect != nil && *ch.Expect != out.Before.Version {
		return out, refusal.New(registry.ErrConflict, "version %d is wanted by now, and you saw %d; look again with 'wardlink config show'", out.Before.Version, *ch.Expect)
	}
	ahead, err := c.reported(ctx, ch.Target, out.Before.Version)
	if err != nil {
		return out, err
	}
	conf.Settings, conf.Version = ch.Settings, max(out.Before.Version, ahead)+1
	out.New = ch.Again || !sameSettings(ch.Settings, out.Before.Settings)
	switch {
	case !out.New:
		out.After = out.Before
		return out, nil
	case ch.Dry:
		out.After = Version{Version: conf.Version, Settings: conf.Settings}
		return out, nil
	}
	ev := audit.Event{Actor: ch.Actor, Peer: ch.Peer, Detail: map[string]string{}}
	if ch.Back > 0 {
		ev.Detail["settings_of"] = strconv.FormatUint(ch.Back, 10)
	}
	out.After, err = c.issue(ctx, ch.Target, conf, ev, out.Before.Version)
	if errors.Is(err, errMoved) {
		return out, refusal.New(registry.ErrConflict, "%w; look again with 'wardlink config show'", err)
	}
	if err == nil {
		c.changed(out.Gateways...)
	}
	return out, err
}

func sameSettings(a, b enroll.Settings) bool {
	return slices.Equal(a.Servers, b.Servers) && a.ReportEvery == b.ReportEvery
}

func (c *Configs) changed(gateways ...string) {
	if c.Changed != nil && len(gateways) > 0 {
		c.Changed(gateways)
	}
}

// concerned are the gateways that a target's configuration is for.
func (c *Configs) concerned(ctx context.Context, t Target) (out []string, err error) {
	if !t.Site {
		g, err := c.Registry.Get(ctx, t.Name)
		if err != nil {
			return nil, err
		}
		return []string{g.ID}, nil
	}
	all, err := c.Registry.List(ctx)
	if err != nil {
		return nil, err
	}
	var sites []string
	for _, g := range all {
		if g.Site == t.Name {
			out = append(out, g.ID)
		}
		if g.Site != "" && !slices.Contains(sites, g.Site) {
			sites = append(sites, g.Site)
		}
	}
	if len(out) == 0 || t.Name == "" {
		slices.Sort(sites)
		return nil, refusal.New(registry.ErrUnknown, "site %.64q: no gateway is of it; sites are %.300q", t.Name, sites)
	}
	return out, nil
}
