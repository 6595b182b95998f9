package api

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/registry"
)

func (a *API) listGateways(w http.ResponseWriter, r *http.Request, who who) error {
	gs, err := a.Registry.List(r.Context())
	if err != nil {
		return err
	}
	ws, err := a.Registry.Waiting(r.Context())
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{
		Type: audit.RegistryRead, Target: "gateways", Outcome: audit.Success, Count: uint64(len(gs) + len(ws)),
	}); err != nil {
		return err
	}
	out := client.GatewayList{Gateways: []client.Gateway{}, Waiting: []client.Waiting{}}
	draining, err := a.Registry.Draining(r.Context())
	if err != nil {
		return err
	}
	planned, err := a.Registry.Planned(r.Context())
	if err != nil {
		return err
	}
	agents, err := a.Agents(r.Context())
	if err != nil {
		return err
	}
	held, err := a.Registry.Quarantines(r.Context())
	if err != nil {
		return err
	}
	for _, g := range gs {
		one := shown(g)
		if q, ok := held[g.ID]; ok {
			one.Quarantine = shownQuarantine(g.ID, q)
		}
		one.Agent = agents[g.ID]
		if h, ok := draining[g.ID]; ok {
			one.End = &client.End{Hold: shownHold(h), Drain: true}
		}
		if next, ok := planned[g.ID]; ok {
			w := shownWard(next)
			one.Next = &w
		}
		out.Gateways = append(out.Gateways, one)
	}
	for _, q := range ws {
		out.Waiting = append(out.Waiting, client.Waiting{
			Fingerprint: q.Fingerprint, EK: hex.EncodeToString(q.EK[:]), Manufacturer: q.Manufacturer, Model: q.Model,
			Chain: q.Chain, Peer: q.Peer, Serial: q.Serial, SerialOf: q.SerialOf, FirstSeen: q.FirstSeen, LastSeen: q.LastSeen,
		})
	}
	return writeJSON(w, out)
}

func (a *API) showGateway(w http.ResponseWriter, r *http.Request, who who) error {
	id := r.PathValue("id")
	g, err := a.Registry.Get(r.Context(), id)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: g.ID, Outcome: audit.Success, Count: 1}); err != nil {
		return err
	}
	out := shown(g)
	b, err := a.Registry.Boot(r.Context(), id)
	if err != nil {
		return err
	}
	if b.Held != nil {
		out.Quarantine = shownQuarantine(id, *b.Held)
	}
	wards, err := a.Registry.Wards(r.Context(), id)
	if err != nil {
		return err
	}
	out.Wards = shownWards(wards)
	retired, err := a.Registry.Retired(r.Context(), id)
	if err != nil {
		return err
	}
	out.Retired = hexes(retired)
	agents, err := a.Agents(r.Context())
	if err != nil {
		return err
	}
	out.Agent = agents[id]
	end, err := a.Registry.End(r.Context(), id)
	if err != nil {
		return err
	}
	if end != nil {
		shown := shownEnd(*end)
		out.End = &shown
	}
	return writeJSON(w, out)
}

func shown(g registry.Gateway) client.Gateway {
	out := client.Gateway{ID: g.ID, Site: g.Site, Ward: g.Ward, Profile: g.Profile, State: string(g.State), EK: hexes(g.EKs), NotBefore: g.NotBefore, NotAfter: g.NotAfter, Outside: g.Outside(time.Now())}
	if g.Hold != nil {
		h := shownHold(*g.Hold)
		out.Hold = &h
	}
	if g.Revoked != nil {
		r := revocation(g.ID, *g.Revoked)
		out.Revoked = &r
	}
	return out
}

func revocation(gateway string, r registry.Revocation) client.Revocation {
	return client.Revocation{Gateway: gateway, At: r.At, By: r.By, Reason: r.Reason, Serials: append([]string{}, r.Serials...)}
}

// revokeGateway cuts a gateway off. It is answered although its event is not journaled: whoever holds a stolen gateway must not be
// protected by a full disk. The event waits in the database, and the answer says so.
func (a *API) revokeGateway(w http.ResponseWriter, r *http.Request, who who) error {
	reason, err := readReason(r)
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	rev, again, err := a.Registry.Revoke(r.Context(), who.actor, who.peer, id, reason)
	late := a.late("revoke", id, err)
	if err != nil && !late {
		return a.deniedAct(r, who, audit.GatewayRevoked, err)
	}
	return writeJSON(w, client.RevokeAnswer{Revocation: revocation(id, rev), Already: again, Journaled: !late})
}

func (a *API) importGateways(w http.ResponseWriter, r *http.Request, who who) error {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	gs, err := registry.ParseManifest(bytes.NewReader(text))
	if err != nil {
		return badRequest{err}
	}
	results, err := a.Registry.Import(r.Context(), who.actor, who.peer, gs)
	if err != nil {
		return err
	}
	out := []client.ImportResult{}
	for _, res := range results {
		out = append(out, client.ImportResult{ID: res.ID, Result: string(res.Outcome), Reason: res.Reason})
	}
	return writeJSON(w, out)
}

func (a *API) approveGateway(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.Approval
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := spiffe.ValidName(in.ID); err != nil {
		return badRequest{fmt.Errorf("id: %w", err)}
	}
	g := registry.Gateway{ID: in.ID, Site: in.Site, Ward: in.Ward, Profile: in.Profile}
	err := a.Registry.Approve(r.Context(), who.actor, who.peer, in.Fingerprint, g)
	if errors.Is(err, registry.ErrConflict) || errors.Is(err, registry.ErrUnknown) {
		return a.denied(r, who, audit.Event{
			Type: audit.GatewayApproved, Target: in.ID, Reason: whyDenied(err),
			Detail: map[string]string{"fingerprint": fmt.Sprintf("%.80q", in.Fingerprint)},
		}, err)
	}
	if err != nil {
		return err
	}
	return writeJSON(w, in)
}
