package api

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/refusal"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/registry"
)

// lifeRoutes are the acts of a gateway's life between its approval and its end.
func (a *API) lifeRoutes() map[string]handler {
	return map[string]handler{
		"POST /v1/gateways/{id}/move":    a.moveGateway,
		"POST /v1/gateways/{id}/replace": a.replaceGateway,
		"POST /v1/gateways/{id}/suspend": a.suspendGateway,
		"POST /v1/gateways/{id}/resume":  a.resumeGateway,

		"POST /v1/gateways/{id}/decommission": a.decommissionGateway,
		"GET /v1/gateways/{id}/record":        a.gatewayRecord,
	}
}

// denied journals an act that was refused with err, and gives what to answer. The registry undoes the event of a refusal together with the
// act, so that it is journaled here.
func (a *API) denied(r *http.Request, who who, ev audit.Event, err error) error {
	ev.Outcome = audit.Denied
	if jerr := a.event(r, who, ev); jerr != nil {
		return jerr
	}
	return err
}

// deniedAct is denied for an act on the gateway of the request's path.
func (a *API) deniedAct(r *http.Request, who who, act audit.Type, err error) error {
	return a.deniedOn(r, who, act, r.PathValue("id"), err)
}

// deniedOn is denied for an act on a gateway: what the registry refused is an event, and what failed is none.
func (a *API) deniedOn(r *http.Request, who who, act audit.Type, target string, err error) error {
	if !errors.Is(err, registry.ErrUnknown) && !errors.Is(err, registry.ErrConflict) {
		return err
	}
	if spiffe.ValidName(target) != nil { // it can be no gateway's
		target = fmt.Sprintf("%.64q", target)
	}
	return a.denied(r, who, audit.Event{Type: act, Target: target, Reason: whyDenied(err)}, err)
}

// maxWhy bounds the reason of an act that was denied, in bytes.
const maxWhy = 200

// whyDenied is what the operator was told, as an event holds it: one line of printable ASCII, since people typed parts of it.
func whyDenied(err error) string {
	text := err.Error()
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, text[:min(len(text), maxWhy)])
}

// late tells whether an act stands although its event waits for a journal that cannot be written, and logs that.
func (a *API) late(what, id string, err error) bool {
	if !errors.Is(err, registry.ErrLate) {
		return false
	}
	a.Log.Error("an act on a gateway stands, and its event cannot be journaled yet", "act", what, "gateway", id, "error", err)
	return true
}

func (a *API) moveGateway(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.MoveRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := registry.CheckMove(in.Ward, in.From, time.Now()); err != nil {
		return badRequest{err}
	}
	id := r.PathValue("id")
	m, err := a.Registry.Move(r.Context(), who.actor, who.peer, id, in.Ward, in.From)
	if err != nil {
		return a.deniedAct(r, who, audit.GatewayMoved, err)
	}
	a.Configs.changed(id) // its document names the ward
	return writeJSON(w, client.MoveAnswer{Gateway: id, Ward: shownWard(m.Ward), Before: m.Before, Replaced: shownWards(m.Replaced), Already: m.Already})
}

func shownWard(w registry.Ward) client.Ward {
	out := client.Ward{Ward: w.Name, By: w.By}
	if !w.Since.IsZero() {
		out.Since = &w.Since
	}
	return out
}

func shownWards(ws registry.Wards) []client.Ward {
	out := []client.Ward{}
	for _, w := range ws {
		out = append(out, shownWard(w))
	}
	return out
}

func (a *API) replaceGateway(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.ReplaceRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := registry.CheckReason(in.Reason); err != nil {
		return badRequest{err}
	}
	id := r.PathValue("id")
	out, err := a.Registry.Replace(r.Context(), who.actor, who.peer, id, in.Reason, in.TPMs)
	late := a.late("replace", id, err)
	if err != nil && !late {
		return a.deniedAct(r, who, audit.GatewayReplaced, err)
	}
	return writeJSON(w, client.ReplaceAnswer{Gateway: id, Old: hexes(out.Old), New: hexes(out.New), Serials: append([]string{}, out.Serials...),
		State: string(out.State), Journaled: !late})
}

func hexes(eks [][32]byte) []string {
	out := []string{}
	for _, ek := range eks {
		out = append(out, hex.EncodeToString(ek[:]))
	}
	return out
}

// readReason reads why a gateway is to be cut off.
func readReason(r *http.Request) (string, error) {
	var in client.RevokeRequest
	if err := readJSON(r, &in); err != nil {
		return "", err
	}
	if err := registry.CheckReason(in.Reason); err != nil {
		return "", badRequest{err}
	}
	return in.Reason, nil
}

// suspendGateway is answered although its event is not journaled, as a revocation is: cutting off always works.
func (a *API) suspendGateway(w http.ResponseWriter, r *http.Request, who who) error {
	reason, err := readReason(r)
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	h, again, err := a.Registry.Suspend(r.Context(), who.actor, who.peer, id, reason)
	late := a.late("suspend", id, err)
	if err != nil && !late {
		return a.deniedAct(r, who, audit.GatewaySuspended, err)
	}
	return writeJSON(w, client.SuspendAnswer{Gateway: id, Hold: shownHold(h), Already: again, Journaled: !late})
}

func shownHold(h registry.Hold) client.Hold { return client.Hold{At: h.At, By: h.By, Reason: h.Reason} }

func (a *API) resumeGateway(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.ResumeRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if in.Reason != "" {
		if err := registry.CheckReason(in.Reason); err != nil {
			return badRequest{err}
		}
	}
	id := r.PathValue("id")
	was, err := a.Registry.Resume(r.Context(), who.actor, who.peer, id, in.Reason)
	if err != nil {
		return a.deniedAct(r, who, audit.GatewayResumed, err)
	}
	return writeJSON(w, client.ResumeAnswer{Gateway: id, Was: string(was)})
}

// decommissionGateway is answered although its event is not journaled, as a revocation is.
func (a *API) decommissionGateway(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.DecommissionRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := registry.CheckReason(in.Reason); err != nil {
		return badRequest{err}
	}
	id := r.PathValue("id")
	end, again, err := a.Registry.Decommission(r.Context(), who.actor, who.peer, id, in.Reason, !in.Now, a.SignOrder)
	late := a.late("decommission", id, err)
	if err != nil && !late {
		return a.deniedAct(r, who, audit.GatewayDecommissioned, err)
	}
	a.Configs.changed(id) // it is to get the order
	return writeJSON(w, client.DecommissionAnswer{Gateway: id, End: shownEnd(end), Already: again, Journaled: !late})
}

func shownEnd(e registry.End) client.End {
	out := client.End{Hold: shownHold(e.Hold), Drain: e.Drain}
	if e.Done != nil {
		out.Confirmed, out.Undelivered, out.Refused = &e.Confirmed, e.Done.Waiting, e.Done.Parked
	}
	return out
}

// gatewayRecord is the proof of how a gateway's life ended: of its own word where there is one, else of the operator's act.
func (a *API) gatewayRecord(w http.ResponseWriter, r *http.Request, who who) error {
	id := r.PathValue("id")
	if _, err := a.Registry.Get(r.Context(), id); err != nil {
		return err
	}
	end, err := a.Registry.End(r.Context(), id)
	if err != nil {
		return err
	}
	if end == nil {
		return refusal.New(registry.ErrConflict, "gateway %s is not decommissioned, so there is no record of its end", id)
	}
	event := end.Event
	if end.Done != nil {
		event = end.Word
	}
	bundle, err := audit.Prove(a.LogDir, a.LogVerifier, audit.Query{Event: event})
	if errors.Is(err, audit.ErrNotLogged) {
		return refusal.New(registry.ErrConflict, "the log has not come to that event yet; try again in a second: %w", err)
	}
	if err != nil {
		return badRequest{err}
	}
	data, err := bundle.Encode()
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.AuditRead, Target: id, Outcome: audit.Success, Count: 1}); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(data)
	return err
}
