package api

import (
	"maps"
	"net/http"
	"slices"

	"wardlink/audit"
	"wardlink/server/api/client"
	"wardlink/server/boot"
	"wardlink/server/registry"
)

// bootRoutes are about how gateways boot, and what follows of it.
func (a *API) bootRoutes() map[string]handler {
	return map[string]handler{
		"GET /v1/boot":           a.showBoots,
		"POST /v1/boot/policy":   a.setBootPolicy,
		"POST /v1/boot/allow":    a.allowBoot,
		"POST /v1/boot/withdraw": a.withdrawBoot,

		"GET /v1/gateways/{id}/boot":          a.showBoot,
		"POST /v1/gateways/{id}/boot/lock":    a.lockBoot(false),
		"POST /v1/gateways/{id}/boot/relearn": a.lockBoot(true),
		"POST /v1/gateways/{id}/readmit":      a.readmitGateway,
	}
}

func (a *API) showBoots(w http.ResponseWriter, r *http.Request, who who) error {
	policies, releases, held, err := a.Registry.Boots(r.Context())
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: "boot", Outcome: audit.Success, Count: uint64(len(policies) + len(releases) + len(held))}); err != nil {
		return err
	}
	out := client.BootOverview{Policies: []client.BootPolicy{}, Releases: []client.BootRelease{}, Quarantined: []client.Quarantine{}}
	for _, p := range policies {
		one := shownPolicy(p.Policy)
		one.Gateway, one.At, one.By = p.Gateway, &p.At, p.By
		out.Policies = append(out.Policies, one)
	}
	for _, one := range releases {
		out.Releases = append(out.Releases, client.BootRelease{Name: one.Name, Source: one.Source, At: one.At, By: one.By, Measurement: one.Measurement})
	}
	for _, id := range slices.Sorted(maps.Keys(held)) {
		out.Quarantined = append(out.Quarantined, *shownQuarantine(id, held[id]))
	}
	return writeJSON(w, out)
}

func shownPolicy(p boot.Policy) client.BootPolicy {
	return client.BootPolicy{Mode: string(p.Mode), PCRs: boot.ShowPCRs(p.PCRs), After: p.After}
}

func shownQuarantine(id string, q registry.Quarantine) *client.Quarantine {
	return &client.Quarantine{Gateway: id, Since: q.Since, Mismatch: q.Mismatch}
}

func (a *API) showBoot(w http.ResponseWriter, r *http.Request, who who) error {
	id := r.PathValue("id")
	b, err := a.Registry.Boot(r.Context(), id)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: id, Outcome: audit.Success, Count: 1}); err != nil {
		return err
	}
	out := client.GatewayBoot{Gateway: id, Policy: shownPolicy(b.Policy), State: string(b.State), Matched: b.Matched}
	if b.Own {
		out.Policy.Gateway = id
	}
	if b.State != "" {
		out.At, out.Measured = &b.At, &b.Measured
	}
	if base := b.Baseline; base != nil {
		out.Baseline = &client.BootBaseline{Seen: base.Seen, Measurement: base.Measurement}
		if !base.Locked.IsZero() {
			out.Baseline.Locked = &base.Locked
		}
	}
	if b.Held != nil {
		out.Quarantine = shownQuarantine(id, *b.Held)
	}
	return writeJSON(w, out)
}

func (a *API) setBootPolicy(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.BootPolicy
	if err := readJSON(r, &in); err != nil {
		return err
	}
	var p *boot.Policy
	if in.Mode != "" || in.Gateway == "" {
		p = &boot.Policy{Mode: boot.Mode(in.Mode), PCRs: boot.DefaultPCRs, After: boot.DefaultAfter}
		if in.PCRs != "" {
			var err error
			if p.PCRs, err = boot.ParsePCRs(in.PCRs); err != nil {
				return badRequest{err}
			}
		}
		if in.After != 0 {
			p.After = in.After
		}
		if err := p.Check(); err != nil {
			return badRequest{err}
		}
	}
	if err := a.Registry.SetBootPolicy(r.Context(), who.actor, who.peer, in.Gateway, p); err != nil {
		return a.deniedOn(r, who, audit.BootPolicySet, in.Gateway, err)
	}
	out := client.BootPolicy{Gateway: in.Gateway}
	if p != nil {
		out = shownPolicy(*p)
		out.Gateway = in.Gateway
	}
	return writeJSON(w, out)
}

func (a *API) allowBoot(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.BootAllow
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := registry.CheckRelease(in.Name); err != nil {
		return badRequest{err}
	}
	if in.From == "" {
		if err := in.Measurement.Check(); err != nil {
			return badRequest{err}
		}
	}
	if err := a.Registry.AllowBoot(r.Context(), who.actor, who.peer, in.Name, in.From, in.Measurement); err != nil {
		return err
	}
	return writeJSON(w, client.BootWithdraw{Name: in.Name})
}

func (a *API) withdrawBoot(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.BootWithdraw
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := registry.CheckReason(in.Reason); err != nil {
		return badRequest{err}
	}
	if err := a.Registry.WithdrawBoot(r.Context(), who.actor, who.peer, in.Name, in.Reason); err != nil {
		return err
	}
	return writeJSON(w, in)
}

// lockBoot ends a gateway's learning, or begins it anew.
func (a *API) lockBoot(again bool) handler {
	return func(w http.ResponseWriter, r *http.Request, who who) error {
		id := r.PathValue("id")
		act := audit.BootLocked
		if again {
			act = audit.BootRelearned
		}
		if err := a.Registry.LockBoot(r.Context(), who.actor, who.peer, id, again); err != nil {
			return a.deniedAct(r, who, act, err)
		}
		return writeJSON(w, client.GatewayBoot{Gateway: id})
	}
}

func (a *API) readmitGateway(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.ReadmitRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := registry.CheckReason(in.Reason); err != nil {
		return badRequest{err}
	}
	id := r.PathValue("id")
	was, err := a.Registry.Readmit(r.Context(), who.actor, who.peer, id, in.Reason, in.Accept)
	if err != nil {
		return a.deniedAct(r, who, audit.GatewayReadmitted, err)
	}
	return writeJSON(w, shownQuarantine(id, was))
}
