package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
	"wardlink/server/api/client"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// grantRoutes are about what gateways may do: profiles, validity, why, and the register of all of them.
func (a *API) grantRoutes() map[string]handler {
	return map[string]handler{
		"GET /v1/profiles":               a.listProfiles,
		"POST /v1/profiles/{name}":       a.setProfile,
		"POST /v1/gateways/{id}/profile": a.giveProfile,
		"POST /v1/gateways/{id}/window":  a.setWindow,
		"POST /v1/gateways/{id}/code":    a.makeCode,
		"GET /v1/gateways/{id}/explain":  a.explainGateway,
		"GET /v1/inventory":              a.inventory,
	}
}

func shownProfile(p registry.Profile) client.Profile {
	out := client.Profile{Name: p.Name, Lanes: registry.LaneNames(p.Lanes), Publishes: p.Publishes, Bytes: p.Bytes, By: p.By, Gateways: p.Gateways}
	if !p.At.IsZero() {
		out.At = &p.At
	}
	return out
}

func (a *API) listProfiles(w http.ResponseWriter, r *http.Request, who who) error {
	all, err := a.Registry.Profiles(r.Context())
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: "profiles", Outcome: audit.Success, Count: uint64(len(all))}); err != nil {
		return err
	}
	out := []client.Profile{}
	for _, p := range all {
		out = append(out, shownProfile(p))
	}
	return writeJSON(w, out)
}

func (a *API) setProfile(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.ProfileChange
	if err := readJSON(r, &in); err != nil {
		return err
	}
	lanes, err := registry.ParseLanes(in.Lanes)
	if err != nil {
		return badRequest{err}
	}
	p := registry.Profile{Name: r.PathValue("name"), Lanes: lanes, Publishes: in.Publishes, Bytes: in.Bytes}
	if err := p.Check(); err != nil {
		return badRequest{err}
	}
	if err := a.alarmsMeant(r, who, p, in.WithoutAlarms); err != nil {
		return err
	}
	if err := a.Registry.SetProfile(r.Context(), who.actor, who.peer, p); errors.Is(err, registry.ErrConflict) {
		return a.denied(r, who, audit.Event{Type: audit.ProfileSet, Target: p.Name, Reason: whyDenied(err)}, err)
	} else if err != nil {
		return err
	}
	return writeJSON(w, shownProfile(p))
}

// alarmsMeant refuses a profile without lane alarm, by which alarms stay on the gateways that have it, unless that is meant.
func (a *API) alarmsMeant(r *http.Request, who who, p registry.Profile, meant bool) error {
	if meant || p.Lanes>>telemetry.LaneAlarm&1 == 1 {
		return nil
	}
	all, err := a.Registry.Profiles(r.Context())
	if err != nil {
		return err
	}
	have := 0
	if i := slices.IndexFunc(all, func(one registry.Profile) bool { return one.Name == p.Name }); i >= 0 {
		have = all[i].Gateways
	}
	return a.denied(r, who, audit.Event{Type: audit.ProfileSet, Target: p.Name, Reason: "no lane alarm"}, refusal.New(registry.ErrConflict,
		"profile %s would be without lane alarm, so that the alarms of %d gateways that have it stay on them, unseen by the hospital; add --lane alarm, or --without-alarms if that is meant", p.Name, have))
}

func (a *API) giveProfile(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.ProfileRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	id := r.PathValue("id")
	was, err := a.Registry.GiveProfile(r.Context(), who.actor, who.peer, id, in.Profile, in.WithoutAlarms)
	if err != nil {
		return a.deniedAct(r, who, audit.GatewayProfiled, err)
	}
	a.Configs.changed(id) // its document names profile and lanes
	return writeJSON(w, client.ProfileAnswer{Gateway: id, Profile: in.Profile, Was: was})
}

func (a *API) setWindow(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.WindowRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	change := registry.WindowChange{From: in.From, Until: in.Until, Cuts: in.Past}
	switch {
	case in.Always:
		change.From, change.Until = cmp.Or(in.From, &time.Time{}), cmp.Or(in.Until, &time.Time{})
	case in.From == nil && in.Until == nil:
		return badRequest{errors.New("expected from, until or always")}
	}
	for _, at := range []*time.Time{in.From, in.Until} {
		if at == nil {
			continue
		}
		if err := registry.CheckWindow(*at, time.Time{}); err != nil {
			return badRequest{err}
		}
	}
	id := r.PathValue("id")
	from, until, err := a.Registry.SetWindow(r.Context(), who.actor, who.peer, id, change)
	if err != nil {
		return a.deniedAct(r, who, audit.GatewayWindowed, err)
	}
	return writeJSON(w, client.WindowAnswer{Gateway: id, Valid: registry.Window(from, until)})
}

// makeCode makes a one-time code, which is in this answer and nowhere else.
func (a *API) makeCode(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.CodeRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	life := time.Duration(in.Seconds) * time.Second
	if in.Seconds < 60 || life > registry.MaxCodeLife || life/time.Second != time.Duration(in.Seconds) {
		return badRequest{fmt.Errorf("seconds: %d; expected 60 to %d", in.Seconds, registry.MaxCodeLife/time.Second)}
	}
	id := r.PathValue("id")
	code, ends, err := a.Registry.MakeCode(r.Context(), who.actor, who.peer, id, life)
	if err != nil {
		return a.deniedAct(r, who, audit.CodeMade, err)
	}
	return writeJSON(w, client.CodeAnswer{Gateway: id, Code: code, Ends: ends})
}
