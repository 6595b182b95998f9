package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"wardlink/internal/spiffe"
	"wardlink/server/alerts"
	"wardlink/server/api/client"
)

// Operators' acts are in the log; looking is not, since alerts hold no record.
func TestAlerts(t *testing.T) {
	o := newOffice(t)
	jane := o.certificate(spiffe.Operator, "jane", domain)
	o.alerts.Raise(alerts.GatewaySilent, alerts.Condition{Subject: "gw-1", Detail: map[string]string{"silent": "12m"}})
	list := func(query string) (out client.Alerts) {
		t.Helper()
		got := o.do(jane, "GET", "/v1/alerts"+query, "", "")
		if err := json.Unmarshal(got.Body.Bytes(), &out); err != nil || got.Code != 200 {
			t.Fatalf("%d %s", got.Code, got.Body)
		}
		return out
	}
	all := list("")
	if len(all.Alerts) != 1 || all.Alerts[0].State != "open" || all.Alerts[0].Told != nil || all.Alerts[0].Mend == "" || len(all.Notes) != 2 {
		t.Fatalf("%+v", all)
	}
	for _, c := range []struct {
		path, body string
		code       int
		says       string
	}{
		{"/v1/alerts/ack", `{"alert":"gateway-silent/gw-2"}`, 404, "wardlink alerts"},
		{"/v1/alerts/ack", `{"alert":"gateway-silent/gw-1","note":"` + strings.Repeat("x", 501) + `"}`, 400, "500"},
		{"/v1/alerts/ack", `{"alert":"gateway-silent/gw-1","note":"on it"}`, 200, `"state":"acknowledged"`},
		{"/v1/alerts/silences", `{"type":"nonsense","for":"1h","reason":"x"}`, 400, "gateway-silent"},
		{"/v1/alerts/silences", `{"type":"disk-low","for":"soon","reason":"x"}`, 400, "2h"},
		{"/v1/alerts/silences", `{"type":"gateway-*","subject":"gw-*","for":"1h","reason":"cabling"}`, 200, `"by":"spiffe://ward.example/operator/jane"`},
		{"/v1/alerts/unsilence", `{"id":"NONE"}`, 404, "silences"},
		{"/v1/alerts/test", `{"target":"none"}`, 404, "server.yaml"},
		{"/v1/alerts/test", `{}`, 200, "[]"},
	} {
		if got := o.do(jane, "POST", c.path, "application/json", c.body); got.Code != c.code || !strings.Contains(got.Body.String(), c.says) {
			t.Errorf("%s %s: %d %s", c.path, c.body, got.Code, got.Body)
		}
	}
	one := list("?all=true").Alerts[0]
	if one.State != "silenced" || one.By != "spiffe://ward.example/operator/jane" || one.Note != "on it" {
		t.Errorf("%+v", one)
	}
	var silences []client.Silence
	if err := json.Unmarshal(o.do(jane, "GET", "/v1/alerts/silences", "", "").Body.Bytes(), &silences); err != nil || len(silences) != 1 {
		t.Fatalf("%+v, %v", silences, err)
	}
	if got := o.do(jane, "POST", "/v1/alerts/unsilence", "application/json", `{"id":"`+silences[0].ID+`"}`); got.Code != 200 {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	want := []string{
		"alert.raised gateway-silent/gw-1 success", "alert.acknowledged gateway-silent/gw-1 success", "alert.silenced gateway-*/gw-* success",
		"alert.unsilenced gateway-*/gw-* success",
	}
	if got := o.events(); got != strings.Join(want, "\n") {
		t.Errorf("events:\n%s", got)
	}
	if got := o.do(o.certificate(spiffe.Access, "ehr", domain), "GET", "/v1/alerts", "", ""); got.Code != 403 {
		t.Errorf("a service account sees alerts: %d", got.Code)
	}
}
