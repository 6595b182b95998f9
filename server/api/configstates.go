package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/records"
	"wardlink/server/registry"
)

// configRoutes are what operators do with configurations.
func (a *API) configRoutes() map[string]handler {
	return map[string]handler{
		"GET /v1/configs":                a.listConfigs,
		"GET /v1/configs/{kind}/{name}":  a.showConfig,
		"POST /v1/configs/{kind}/{name}": a.setConfig,
	}
}

func targetOf(r *http.Request) (Target, error) {
	t := Target{Site: r.PathValue("kind") == "site", Name: r.PathValue("name")}
	if kind := r.PathValue("kind"); kind != "site" && kind != "gateway" {
		return t, badRequest{fmt.Errorf("%.40q: expected gateway or site", kind)}
	}
	if err := spiffe.ValidName(t.Name); err != nil {
		return t, badRequest{err}
	}
	return t, nil
}

func (a *API) listConfigs(w http.ResponseWriter, r *http.Request, who who) error {
	states, err := a.Configs.All(r.Context())
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: "configurations", Outcome: audit.Success, Count: uint64(len(states))}); err != nil {
		return err
	}
	return writeJSON(w, append([]client.ConfigState{}, states...))
}

// shownVersions is how many versions a history shows.
const shownVersions = 50

func (a *API) showConfig(w http.ResponseWriter, r *http.Request, who who) error {
	t, err := targetOf(r)
	if err != nil {
		return err
	}
	ids, err := a.Configs.concerned(r.Context(), t)
	if err != nil {
		return err
	}
	versions, err := a.Configs.Versions(r.Context(), t, shownVersions)
	if err != nil {
		return err
	}
	states, err := a.Configs.All(r.Context())
	if err != nil {
		return err
	}
	out := client.ConfigTarget{Target: t.String(), Versions: []client.ConfigVersion{}, Gateways: []client.ConfigState{}}
	for _, v := range versions {
		out.Versions = append(out.Versions, shownVersion(v))
	}
	of := make(map[string]bool, len(ids))
	for _, id := range ids {
		of[id] = true
	}
	for _, s := range states {
		if of[s.Gateway] {
			out.Gateways = append(out.Gateways, s)
		}
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: "configuration of " + t.String(), Outcome: audit.Success, Count: uint64(len(versions))}); err != nil {
		return err
	}
	return writeJSON(w, out)
}

func (a *API) setConfig(w http.ResponseWriter, r *http.Request, who who) error {
	t, err := targetOf(r)
	if err != nil {
		return err
	}
	var in client.ConfigRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	set, err := settingsOf(in.Settings)
	if err != nil {
		return badRequest{err}
	}
	c, err := a.Configs.Set(r.Context(), Change{
		Actor: who.actor, Peer: who.peer, Target: t, Settings: set, Expect: in.Expect, Again: in.Retry, Back: in.Rollback, Dry: in.DryRun,
	})
	if err != nil {
		return a.deniedConfig(r, who, t, in.DryRun, err)
	}
	return writeJSON(w, client.ConfigAnswer{
		Target: t.String(), Before: shownVersion(c.Before), After: shownVersion(c.After), Issued: c.New && !in.DryRun, New: c.New, Gateways: c.Gateways,
	})
}

// deniedConfig journals an act that was refused. A dry run acts on nothing.
func (a *API) deniedConfig(r *http.Request, who who, t Target, dry bool, err error) error {
	reason := ""
	var bad badRequest
	switch {
	case dry:
	case errors.Is(err, registry.ErrUnknown):
		reason = "not in the registry"
	case errors.Is(err, registry.ErrConflict):
		reason = "conflicts with what is there"
	case errors.As(err, &bad):
		reason = "not a configuration"
	}
	if reason == "" {
		return err
	}
	return a.denied(r, who, audit.Event{Type: audit.ConfigIssued, Target: t.String(), Reason: reason}, err)
}

func settingsOf(in client.ConfigSettings) (enroll.Settings, error) {
	out := enroll.Settings{Servers: in.Servers}
	if in.ReportEvery != "" {
		d, err := time.ParseDuration(in.ReportEvery)
		if err != nil || d < enroll.MinReportEvery || d > enroll.MaxReportEvery || d%time.Millisecond != 0 {
			return out, fmt.Errorf("report_every: %.40q; expected 1s to 1h, such as 60s", in.ReportEvery)
		}
		out.ReportEvery = uint64(d.Milliseconds())
	}
	return out, out.Check()
}

func shownSettings(s enroll.Settings) client.ConfigSettings {
	out := client.ConfigSettings{Servers: s.Servers}
	if s.ReportEvery > 0 {
		out.ReportEvery = (time.Duration(s.ReportEvery) * time.Millisecond).String()
	}
	return out
}

func shownVersion(v Version) client.ConfigVersion {
	return client.ConfigVersion{Version: v.Version, Issued: v.Issued, By: v.Actor, Settings: shownSettings(v.Settings)}
}

// All tells how far each gateway in service is with what is wanted of it.
func (c *Configs) All(ctx context.Context) ([]client.ConfigState, error) {
	gateways, err := c.Registry.List(ctx)
	if err != nil {
		return nil, err
	}
	wanted, err := c.newestOfAll(ctx)
	if err != nil {
		return nil, err
	}
	reports := map[string]records.ConfigState{}
	if c.States != nil {
		if reports, err = c.States(ctx, ""); err != nil {
			return nil, err
		}
	}
	var out []client.ConfigState
	for _, g := range gateways {
		if g.State != registry.Active && g.State != registry.Quarantined {
			continue
		}
		own, site, report := wanted[Target{Name: g.ID}], wanted[Target{Site: true, Name: g.Site}], reports[g.ID]
		s := client.ConfigState{
			Gateway: g.ID, Site: g.Site, Own: part(own, report.Own, "", report.Steps), Reported: report.Received,
			Settings: shownSettings(enroll.Overlay(site.Settings, own.Settings)),
		}
		if g.Site != "" && site.Version > 0 {
			inForce := uint64(0)
			if report.Site == g.Site {
				inForce = report.SiteVersion
			}
			p := part(site, inForce, g.Site, report.Steps)
			s.OfSite = &p
		}
		out = append(out, s)
	}
	return out, nil
}

// part judges one document by what is wanted and what was reported.
func part(wanted Version, inForce uint64, site string, steps []records.ConfigStep) client.ConfigPart {
	p := client.ConfigPart{Wanted: wanted.Version, Issued: wanted.Issued, InForce: inForce, State: "waiting", Since: wanted.Issued}
	switch {
	case wanted.Version == 0:
		p.State = "none"
		return p
	case inForce >= wanted.Version: // an agent of an earlier release reports no steps
		p.State = "confirmed"
	}
	for _, s := range steps {
		if s.Site == site && s.Version == wanted.Version {
			p.Since = s.Received
			if p.State != "confirmed" {
				p.State, p.Reason = s.Step.String(), s.Reason
			}
		}
	}
	return p
}

func (c *Configs) newestOfAll(ctx context.Context) (map[Target]Version, error) {
	rows, err := c.DB.Query(ctx, `SELECT site, target, `+versionColumns+` FROM config_versions v
		WHERE version = (SELECT MAX(version) FROM config_versions WHERE site = v.site AND target = v.target)`)
	if err != nil {
		return nil, fmt.Errorf("configurations: %w", err)
	}
	defer func() { _ = rows.Close() }()
	out := make(map[Target]Version)
	for rows.Next() {
		var t Target
		v, err := scanVersion(func(into ...any) error { return rows.Scan(append([]any{&t.Site, &t.Name}, into...)...) })
		if err != nil {
			return nil, fmt.Errorf("configurations: %w", err)
		}
		out[t] = v
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("configurations: %w", err)
	}
	return out, nil
}
