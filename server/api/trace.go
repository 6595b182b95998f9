package api

import (
	"errors"
	"net/http"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/trace"
)

// trace tells where data stops. Like every read it is journaled before it is answered; while the journal cannot be written that very
// fact is the answer, without a word on any gateway.
func (a *API) trace(w http.ResponseWriter, r *http.Request, who who) error {
	gateway, source := r.URL.Query().Get("gateway"), r.URL.Query().Get("source")
	if gateway == "" && source == "" {
		return badRequest{errors.New("name a gateway or a source")}
	}
	for _, name := range []string{gateway, source} {
		if err := spiffe.ValidName(name); name != "" && err != nil {
			return badRequest{err}
		}
	}
	target := gateway
	if target == "" {
		target = "source " + source
	}
	traces, err := a.Trace(r.Context(), gateway, source)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.TraceRead, Target: target, Outcome: audit.Success, Count: uint64(len(traces))}); err != nil {
		a.Log.Error("a trace could not be journaled", "error", err)
		return writeJSON(w, []client.Trace{{
			Gateway: gateway, Source: source, Stations: []client.Station{{Name: trace.Journaled, State: string(trace.Stopped)}}, Stopped: trace.Journaled,
			Why:  "the server's journal cannot be written, and nothing is shown that cannot be journaled",
			Mend: "free or mend the server's disk; nothing that was acknowledged is lost, and the gateways send again",
		}})
	}
	return writeJSON(w, traces)
}
