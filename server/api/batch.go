package api

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"

	"wardlink/enroll"
	"wardlink/server/api/client"
	"wardlink/server/registry"
)

// approveBatch admits many waiting TPMs; each row has a result of its own, and those admitted or refused an event.
func (a *API) approveBatch(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.BatchApproval
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if n := len(in.Rows); n == 0 || n > client.MaxApprovalRows {
		return badRequest{fmt.Errorf("rows: %d; expected 1 to %d", n, client.MaxApprovalRows)}
	}
	b := registry.Batch{Last: in.Last}
	for i, text := range in.TrustSerial {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return badRequest{fmt.Errorf("trust_serial[%d]: %.60q; expected a network such as 10.20.0.0/16", i, text)}
		}
		b.TrustSerial = append(b.TrustSerial, p)
	}
	for _, row := range in.Rows {
		b.Rows = append(b.Rows, registry.BatchRow{
			Gateway: registry.Gateway{ID: row.ID, Site: row.Site, Ward: row.Ward, Profile: row.Profile},
			Serial:  row.Serial, EK: row.EK, Fingerprint: row.Fingerprint,
		})
	}
	results, err := a.Registry.ApproveBatch(r.Context(), who.actor, who.peer, b)
	if err != nil {
		return err
	}
	out := make([]client.ApprovalResult, 0, len(results))
	for _, res := range results {
		shown := client.ApprovalResult{ID: res.ID, Result: string(res.Outcome), By: res.By, Serial: res.Serial, Reason: res.Reason}
		if res.EK != ([32]byte{}) {
			shown.EK, shown.Fingerprint = hex.EncodeToString(res.EK[:]), enroll.Fingerprint(res.EK)
		}
		out = append(out, shown)
	}
	return writeJSON(w, out)
}
