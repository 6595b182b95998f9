package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"wardlink/audit"
	"wardlink/server/api/client"
	"wardlink/telemetry"
)

// maxList bounds one answer of the audit list.
const maxList = 100_000

// listAudit streams lines of JSON. What is listed and how much of it is itself journaled first.
func (a *API) listAudit(w http.ResponseWriter, r *http.Request, who who) error {
	f, err := client.ParseFilter(r.URL.Query())
	if err != nil {
		return badRequest{err}
	}
	if f.Limit <= 0 || f.Limit > maxList {
		f.Limit = maxList
	}
	if err := a.event(r, who, audit.Event{Type: audit.AuditRead, Target: "list", Outcome: audit.Success}); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	for item, err := range audit.List(a.LogDir, f) {
		if err != nil {
			return enc.Encode(map[string]string{"error": err.Error()})
		}
		if err := enc.Encode(client.ShowItem(item)); err != nil {
			return err
		}
	}
	return nil
}

// proveAudit makes a proof bundle; it needs no trust in this server to be checked.
func (a *API) proveAudit(w http.ResponseWriter, r *http.Request, who who) error {
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		return badRequest{err}
	}
	bundle, err := audit.Prove(a.LogDir, a.LogVerifier, q)
	if err != nil {
		return badRequest{err}
	}
	data, err := bundle.Encode()
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{Type: audit.AuditRead, Target: "proof", Outcome: audit.Success, Count: 1}); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(data)
	return err
}

func parseQuery(v url.Values) (audit.Query, error) {
	q := audit.Query{Gateway: v.Get("gateway")}
	lane, err := telemetry.ParseLane(v.Get("lane"))
	if err != nil {
		return q, err
	}
	q.Lane = uint8(lane)
	if q.Number, err = strconv.ParseUint(v.Get("number"), 10, 64); err != nil {
		return q, fmt.Errorf("number: %q; expected a batch number", v.Get("number"))
	}
	if text := v.Get("epoch"); text != "" {
		epoch, err := telemetry.ParseEpoch(text)
		if err != nil {
			return q, err
		}
		q.Epoch = (*[16]byte)(&epoch)
	}
	if q.Gateway == "" {
		return q, errors.New("gateway: missing")
	}
	return q, nil
}
