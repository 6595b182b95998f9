package api_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/api"
	"wardlink/server/registry"
)

// granted is who may do what, written down a second time: v(iewer), a(uditor), o(perator), A(dmin).
var granted = map[string]string{
	"GET /metrics": "vaoA", "GET /v1/status": "vaoA", "GET /v1/clock": "vaoA", "GET /v1/gateways": "vaoA", "GET /v1/gateways/{id}": "vaoA", "GET /v1/trace": "vaoA",
	"GET /v1/accounts": "vaoA", "GET /v1/accounts/{id}": "vaoA", "GET /v1/alerts": "vaoA", "GET /v1/alerts/silences": "vaoA", "GET /v1/configs": "vaoA",
	"GET /v1/configs/{kind}/{name}": "vaoA", "GET /v1/records/dead": "vaoA", "GET /v1/records/reopen/{n}": "vaoA", "GET /v1/records/retention": "vaoA",
	"GET /v1/audit/log-verifier": "vaoA", "GET /v1/self": "vaoA", "POST /v1/self/renew": "vaoA",

	"GET /v1/profiles": "vaoA", "GET /v1/gateways/{id}/explain": "vaoA", "GET /v1/inventory": "vaoA", "POST /v1/gateways/{id}/profile": "oA",
	"POST /v1/gateways/{id}/window": "oA", "POST /v1/gateways/{id}/code": "oA", "POST /v1/profiles/{name}": "A",

	"GET /v1/kit": "oA", "POST /v1/clock/confirm": "oA", "POST /v1/gateways/{id}/clock": "oA", "POST /v1/gateways/import": "oA", "POST /v1/gateways/approve": "oA",
	"POST /v1/gateways/approve-batch": "oA", "POST /v1/gateways/{id}/revoke": "oA", "POST /v1/gateways/{id}/move": "oA", "POST /v1/gateways/{id}/replace": "oA",
	"POST /v1/gateways/{id}/suspend": "oA", "POST /v1/gateways/{id}/resume": "oA", "POST /v1/gateways/{id}/decommission": "oA", "GET /v1/gateways/{id}/held": "oA",
	"POST /v1/gateways/{id}/salvage": "oA", "POST /v1/configs/{kind}/{name}": "oA", "POST /v1/records/reopen": "oA", "POST /v1/alerts/ack": "oA",
	"POST /v1/alerts/silences": "oA", "POST /v1/alerts/unsilence": "oA", "POST /v1/alerts/test": "oA",

	"GET /v1/boot": "vaoA", "GET /v1/gateways/{id}/boot": "vaoA", "POST /v1/boot/policy": "oA", "POST /v1/boot/allow": "oA", "POST /v1/boot/withdraw": "oA",
	"POST /v1/gateways/{id}/boot/lock": "oA", "POST /v1/gateways/{id}/boot/relearn": "oA", "POST /v1/gateways/{id}/readmit": "oA",

	"GET /v1/audit": "aA", "GET /v1/audit/proof": "aA", "GET /v1/gateways/{id}/record": "aoA", "GET /v1/identities": "aA", "GET /v1/identities/{kind}/{name}": "aA",
	"POST /v1/identities/{kind}/{name}/explain": "aA",

	"POST /v1/access": "A", "POST /v1/identities/{kind}/{name}/change": "A", "POST /v1/identities/{kind}/{name}/state": "A", "POST /v1/identities/{kind}/{name}/rotate": "A",
}

// TestEveryRouteForEveryRole: each cell that is not granted is refused, and in the log with its route and its reason; each that is gets further.
func TestEveryRouteForEveryRole(t *testing.T) {
	o := newOffice(t)
	o.certificate(spiffe.Operator, "last-admin", domain)
	routes := api.Routes()
	if got, want := slices.Sorted(maps.Keys(routes)), slices.Sorted(maps.Keys(granted)); !slices.Equal(got, want) {
		t.Fatalf("routes %q\nexpected %q", got, want)
	}
	path := strings.NewReplacer("{id}", "icu-7", "{kind}", "access", "{name}", "ehr", "{n}", "1")
	var want []string
	for letter, role := range map[string]registry.Role{"v": registry.Viewer, "a": registry.Auditor, "o": registry.Operate, "A": registry.Admin} {
		who := o.certificate(spiffe.Operator, "who-"+string(role), domain)
		if _, err := o.reg.Change(t.Context(), audit.Actor{ID: "test"}, "", spiffe.Operator, "who-"+string(role), func(i *registry.Identity) { i.Role = role }); err != nil {
			t.Fatal(err)
		}
		for route, may := range granted {
			method, pattern, _ := strings.Cut(route, " ")
			got := o.do(who, method, path.Replace(pattern), "application/json", "{}")
			switch refused := got.Code == 403; {
			case got.Code == 401 || got.Code == 405 || strings.HasPrefix(got.Body.String(), "404 page not found"):
				t.Errorf("%s, %s: %d %s", role, route, got.Code, got.Body)
			case refused == strings.Contains(may, letter):
				t.Errorf("%s, %s: %d %s; granted to %s", role, route, got.Code, got.Body, may)
			}
			if !strings.Contains(may, letter) {
				want = append(want, fmt.Sprintf("who-%s role %s may not %s", role, role, route))
				if got.Header().Get("Connection") != "close" {
					t.Errorf("%s, %s: the connection stays", role, route)
				}
			}
		}
	}
	slices.Sort(want)
	if got := o.refusals(); len(want) < 60 || !slices.Equal(got, want) {
		t.Errorf("refusals in the log:\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// refusals are the events of refusals, sorted: who, why, which route.
func (o *office) refusals() (out []string) {
	o.t.Helper()
	entries, err := o.journal.Read(1, 10_000)
	if err != nil {
		o.t.Fatal(err)
	}
	for _, e := range entries {
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			o.t.Fatal(err)
		}
		if id, err := spiffe.Parse(ev.Actor.ID); err == nil && ev.Type == audit.Refused && ev.Outcome == audit.Denied {
			out = append(out, id.Name+" "+ev.Reason+" "+ev.Detail["route"])
		}
	}
	slices.Sort(out)
	return out
}
