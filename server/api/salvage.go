package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"wardlink/audit"
	"wardlink/server/api/client"
	"wardlink/server/ingest"
	"wardlink/server/registry"
)

// salvageRoutes bring in what a dead gateway left.
func (a *API) salvageRoutes() map[string]handler {
	return map[string]handler{
		"GET /v1/gateways/{id}/held":     a.heldBatches,
		"POST /v1/gateways/{id}/salvage": a.salvageGateway,
	}
}

// heldBatches gives the numbers of a gateway's batches that are journaled. It shows no contents.
func (a *API) heldBatches(w http.ResponseWriter, r *http.Request, who who) error {
	id := r.PathValue("id")
	g, err := a.Registry.Get(r.Context(), id)
	if err != nil {
		return a.deniedAct(r, who, audit.GatewaySalvaged, err)
	}
	held, err := a.Held(r.Context(), id)
	if err != nil {
		return err
	}
	out := client.HeldAnswer{Gateway: id, State: string(g.State), Streams: []client.HeldStream{}}
	for _, h := range held {
		s := client.HeldStream{Epoch: h.Epoch.String(), Lane: h.Lane.String()}
		for _, run := range h.Runs {
			s.Runs = append(s.Runs, [2]uint64{run.First, run.Last})
		}
		out.Streams = append(out.Streams, s)
	}
	if err := a.event(r, who, audit.Event{Type: audit.RegistryRead, Target: id, Outcome: audit.Success, Count: 1}); err != nil {
		return err
	}
	return writeJSON(w, out)
}

// salvageGateway journals batches of a dead gateway's card. The act's own event stands before them in the journal.
func (a *API) salvageGateway(w http.ResponseWriter, r *http.Request, who who) error {
	id := r.PathValue("id")
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, client.MaxSalvageBytes))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return err
	} else if err != nil {
		return badRequest{fmt.Errorf("body: %w", err)}
	}
	up, err := client.ParseSalvage(body)
	if err != nil {
		return badRequest{err}
	}
	out, err := a.Salvage.Bring(r.Context(), ingest.Card{
		Gateway: id, Actor: who.actor, Peer: who.peer, Despite: r.URL.Query().Get("despite"), Sealings: up.Sealings, Frames: up.Frames,
	})
	if errors.Is(err, registry.ErrUnknown) || errors.Is(err, registry.ErrConflict) {
		return a.deniedAct(r, who, audit.GatewaySalvaged, err)
	}
	if err != nil {
		return fmt.Errorf("what came may or may not be journaled; send it again: %w", err)
	}
	return writeJSON(w, client.SalvageAnswer{Gateway: id, Event: out.Event.String(), Frames: out.Frames, Sealings: out.Sealings})
}
