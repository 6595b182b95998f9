package api

import (
	"cmp"
	"fmt"
	"net/http"
	"time"

	"wardlink/audit"
	"wardlink/server/alerts"
	"wardlink/server/api/client"
)

// maxResolved bounds the resolved alerts of one answer.
const maxResolved = 1000

func (a *API) alertRoutes() map[string]handler {
	return map[string]handler{
		"GET /v1/alerts":            a.listAlerts,
		"POST /v1/alerts/ack":       a.acknowledgeAlert,
		"GET /v1/alerts/silences":   a.listSilences,
		"POST /v1/alerts/silences":  a.silenceAlerts,
		"POST /v1/alerts/unsilence": a.unsilenceAlerts,
		"POST /v1/alerts/test":      a.testAlerts,
	}
}

// listAlerts is no reading of records: alerts hold no patient and no measurement. Like status and metrics it leaves no event, and is
// answered when the journal cannot be written, which is when it is needed.
func (a *API) listAlerts(w http.ResponseWriter, r *http.Request, _ who) error {
	list, err := a.Alerts.List(r.Context(), r.URL.Query().Get("all") == "true", maxResolved)
	out := client.Alerts{Alerts: []client.Alert{}, Targets: []client.AlertTarget{}, Notes: a.Alerts.Notes()}
	if err != nil {
		out.Problem = "resolved alerts cannot be read: " + err.Error()
	}
	if since, err := a.Alerts.Failing(); err != nil {
		out.Problem = fmt.Sprintf("alerts are kept in memory alone since %s: %v", since.UTC().Format(time.RFC3339), err)
	}
	for _, al := range list {
		out.Alerts = append(out.Alerts, shownAlert(al))
	}
	for _, t := range a.Alerts.Targets() {
		out.Targets = append(out.Targets, client.AlertTarget{
			Name: t.Name, To: t.To, Minimum: t.Minimum.String(), Waiting: t.Waiting, Failing: optional(t.Failing), Error: t.Error,
			LastOK: optional(t.LastOK), Sent: t.Sent, Lost: t.Lost,
		})
	}
	return writeJSON(w, out)
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func shownAlert(al alerts.Alert) client.Alert {
	kind, _ := alerts.KindOf(al.Type)
	out := client.Alert{
		ID: al.ID, Type: string(al.Type), Subject: al.Subject, Severity: al.Severity.String(), State: "open", Opened: al.Opened.UTC(),
		Seen: al.Seen.UTC(), Count: al.Count, Resolved: optional(al.Resolved), Acknowledged: optional(al.Acked), By: al.AckedBy, Note: al.Note,
		Told: optional(al.Told), Silence: al.Silence, Meaning: kind.Meaning, Mend: kind.Mend, Detail: al.Detail,
	}
	switch {
	case !al.Resolved.IsZero():
		out.State = "resolved"
	case al.Silence != "":
		out.State = "silenced"
	case !al.Acked.IsZero():
		out.State = "acknowledged"
	}
	return out
}

func (w who) acting() alerts.Who { return alerts.Who{Actor: w.actor, Peer: w.peer} }

func (a *API) acknowledgeAlert(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.AlertAcknowledgement
	if err := readJSON(r, &in); err != nil {
		return err
	}
	al, err := a.Alerts.Acknowledge(r.Context(), who.acting(), in.Alert, in.Note)
	if err != nil {
		return err
	}
	return writeJSON(w, shownAlert(al))
}

func (a *API) listSilences(w http.ResponseWriter, _ *http.Request, _ who) error {
	out := []client.Silence{}
	for _, s := range a.Alerts.Silences() {
		out = append(out, shownSilence(s))
	}
	return writeJSON(w, out)
}

func shownSilence(s alerts.Silence) client.Silence {
	return client.Silence{
		ID: s.ID, Type: s.Type, Subject: s.Subject, Since: s.Since.UTC(), Until: s.Until.UTC(), By: s.By, Reason: s.Reason,
	}
}

func (a *API) silenceAlerts(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.SilenceRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	span, err := time.ParseDuration(in.For)
	if err != nil {
		return badRequest{fmt.Errorf("for: %.40q; expected a time such as 2h or 30m", in.For)}
	}
	s, err := a.Alerts.Silence(r.Context(), who.acting(), alerts.Silence{Type: in.Type, Subject: in.Subject, Reason: in.Reason}, span)
	if err != nil {
		return err
	}
	return writeJSON(w, shownSilence(s))
}

func (a *API) unsilenceAlerts(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.SilenceEnd
	if err := readJSON(r, &in); err != nil {
		return err
	}
	s, err := a.Alerts.Unsilence(r.Context(), who.acting(), in.ID)
	if err != nil {
		return err
	}
	return writeJSON(w, shownSilence(s))
}

// testAlerts sends a test message through each target. What each answered is an event of its own, journaled before it is told.
func (a *API) testAlerts(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.AlertTest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	results, err := a.Alerts.Test(r.Context(), in.Target)
	if err != nil {
		return err
	}
	out := []client.AlertTestResult{}
	for _, res := range results {
		shown := client.AlertTestResult{Target: res.Target, To: res.To, OK: res.Err == nil, Answer: res.Answer, Milliseconds: res.Took.Milliseconds()}
		ev := audit.Event{Type: audit.AlertTested, Target: res.Target, Outcome: audit.Success, Reason: res.Answer}
		if res.Err != nil {
			shown.Answer = fmt.Sprintf("%.300s", res.Err)
			ev.Outcome, ev.Reason = audit.Failed, shown.Answer
		}
		ev.Reason = cmp.Or(ev.Reason, "sent")
		if err := a.event(r, who, ev); err != nil {
			return err
		}
		out = append(out, shown)
	}
	return writeJSON(w, out)
}
