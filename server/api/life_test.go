package api_test

import (
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
	"wardlink/audit"

	"wardlink/enroll"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
)

// TestLifeOfAGateway: each act through the API, its refusals journaled, and only for operators.
func TestLifeOfAGateway(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	hash := func(c string) string { return strings.Repeat(c, 64) }
	manifest := "id,ek_sha256,site,ward,profile\nicu-7," + hash("a") + ",main,ICU 2,default\nicu-8," + hash("b") + ",main,ICU 2,default\n"
	if got := o.do(op, "POST", "/v1/gateways/import", "text/csv", manifest); got.Code != 200 {
		t.Fatal(got.Body)
	}
	old := time.Now().Add(-40 * 24 * time.Hour).UTC().Format(time.RFC3339)
	soon := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	for _, step := range []struct {
		path, body string
		code       int
		says       string
	}{
		{"icu-7/move", `{"ward":""}`, 400, "ward"},
		{"icu-7/move", `{"ward":"ER","from":"` + old + `"}`, 400, "31 days back"},
		{"icu-9/move", `{"ward":"ER"}`, 404, "icu-9"},
		{"icu-7/move", `{"ward":"ER"}`, 200, `"before":"ICU 2"`},
		{"icu-7/move", `{"ward":"ICU 5","from":"` + soon + `"}`, 200, `"before":"ER"`},
		{"icu-7/suspend", `{"reason":""}`, 400, "reason"},
		{"icu-9/suspend", `{"reason":"x"}`, 404, "icu-9"},
		{"icu-7/suspend", `{"reason":"looked at"}`, 200, `"already":false,"journaled":true`},
		{"icu-7/suspend", `{"reason":"again"}`, 200, `"reason":"looked at","already":true`},
		{"icu-7/resume", `{}`, 200, `"was":"suspended"`},
		{"icu-8/revoke", `{"reason":"stolen"}`, 200, "stolen"},
		{"icu-8/resume", `{}`, 409, "give a reason"},
		{"icu-8/resume", `{"reason":"found"}`, 200, `"was":"revoked"`},
		{"icu-7/replace", `{"tpms":["` + hash("c") + `"],"reason":""}`, 400, "reason"},
		{"icu-7/replace", `{"tpms":["` + hash("b") + `"],"reason":"broken"}`, 409, "icu-8"},
		{"icu-7/replace", `{"tpms":["AAAA-BBBB-CCCC-DDDD"],"reason":"broken"}`, 404, "no TPM waits"},
		{"icu-7/replace", `{"tpms":["` + hash("c") + `"],"reason":"broken"}`, 200, hash("a")},
		{"icu-8/replace", `{"tpms":["` + hash("a") + `"],"reason":"broken"}`, 409, "never admitted again"},
		{"icu-7/decommission", `{"reason":""}`, 400, "reason"},
		{"icu-9/decommission", `{"reason":"x"}`, 404, "icu-9"},
		{"icu-7/decommission", `{"reason":"closed"}`, 200, `"drain":true`},
		{"icu-7/decommission", `{"reason":"again"}`, 200, `"reason":"closed","drain":true,"already":true`},
		{"icu-7/decommission", `{"reason":"stolen","now":true}`, 200, `"reason":"stolen","drain":false,"already":false`},
		{"icu-7/resume", `{"reason":"x"}`, 409, "for ever"},
		{"icu-7/revoke", `{"reason":"x"}`, 409, "for ever"},
		{"icu-8/profile", `{"profile":"nosuch"}`, 404, "wardlink profile list"},
		{"ICU_9/suspend", `{"reason":"x"}`, 404, "wardlink gateway list"},
	} {
		if got := o.do(op, "POST", "/v1/gateways/"+step.path, "application/json", step.body); got.Code != step.code || !strings.Contains(got.Body.String(), step.says) {
			t.Errorf("%s %s: %d %s; expected %d and %q", step.path, step.body, got.Code, got.Body, step.code, step.says)
		}
	}
	if !slices.Equal(o.pushed, slices.Repeat([]string{"icu-7"}, 5)) {
		t.Errorf("pushed to %q", o.pushed)
	}
	if got := o.do(op, "GET", "/v1/gateways/icu-8/record", "", ""); got.Code != 409 || !strings.Contains(got.Body.String(), "not decommissioned") {
		t.Errorf("the record of a living gateway: %d %s", got.Code, got.Body)
	}
	show := o.do(op, "GET", "/v1/gateways/icu-7", "", "").Body.String()
	for _, want := range []string{`"ward":"ER"`, `"wards":[{"ward":"ICU 2"},{"ward":"ER","since":`, `"retired_ek_sha256":["` + hash("a") + `"]`, `"ek_sha256":["` + hash("c") + `"]`, `"state":"decommissioned"`, `"end":{"at":`} {
		if !strings.Contains(show, want) {
			t.Errorf("show lacks %s: %s", want, show)
		}
	}
	if list := o.do(op, "GET", "/v1/gateways", "", "").Body.String(); !strings.Contains(list, `"next_ward":{"ward":"ICU 5"`) {
		t.Errorf("list: %s", list)
	}
	log := o.events()
	for line, n := range map[string]int{
		"gateway.moved icu-7 success": 2, "gateway.moved icu-9 denied": 1, "gateway.suspended icu-7 success": 2, "gateway.suspended icu-9 denied": 1,
		"gateway.resumed icu-7 success": 1, "gateway.resumed icu-8 denied": 1, "gateway.resumed icu-8 success": 1,
		"gateway.replaced icu-7 denied": 2, "gateway.replaced icu-7 success": 1, "gateway.replaced icu-8 denied": 1,
		"gateway.decommissioned icu-7 success": 3, "gateway.decommissioned icu-9 denied": 1,
		"gateway.revoked icu-7 denied": 1, "gateway.profiled icu-8 denied": 1, `gateway.suspended "ICU_9" denied`: 1,
	} {
		if got := strings.Count(log, line); got != n {
			t.Errorf("%d times %q, expected %d:\n%s", got, line, n, log)
		}
	}
	if why := o.whyDenied(audit.GatewayProfiled); !slices.Equal(why, []string{`profile: profile "nosuch" is unknown; 'wardlink profile list' shows those that there are`}) {
		t.Errorf("the log says why a profile was not given: %q", why)
	}
	for _, act := range []string{"move", "replace", "suspend", "resume", "decommission"} {
		if got := o.do(o.certificate(spiffe.Access, "ehr", domain), "POST", "/v1/gateways/icu-7/"+act, "application/json", `{"reason":"x","ward":"x"}`); got.Code != 403 {
			t.Errorf("a service account may %s: %d", act, got.Code)
		}
	}
}

// TestClockTokens: for a gateway that is there, of a clock that is vouched for, to operators, and each in the log.
func TestClockTokens(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	if got := o.do(op, "POST", "/v1/gateways/import", "text/csv", "id,ek_sha256,site,ward,profile\nicu-7,"+strings.Repeat("a", 64)+",main,ICU 2,default\n"); got.Code != 200 {
		t.Fatal(got.Body)
	}
	challenge := enroll.NewClockChallenge()
	right := o.wall
	for _, step := range []struct {
		wall           time.Time
		who            *tls.ConnectionState
		path, body     string
		code           int
		says, eventual string
	}{
		{right, op, "icu-7", `{"challenge":"ABCD"}`, 400, "wardlink-agent clock", ""},
		{right, op, "icu-9", `{"challenge":"` + challenge.String() + `"}`, 404, "icu-9", "clock.token icu-9 denied"},
		{right.AddDate(10, 0, 0), op, "icu-7", `{"challenge":"` + challenge.String() + `"}`, 409, "wardlink clock confirm", "clock.token icu-7 denied"},
		{right, o.certificate(spiffe.Access, "ehr", domain), "icu-7", `{"challenge":"` + challenge.String() + `"}`, 403, "", ""},
		{right, op, "icu-7", `{"challenge":"` + strings.ToLower(challenge.String()) + `"}`, 200, `"token":"`, "clock.token icu-7 success"},
	} {
		o.wall = step.wall
		got := o.do(step.who, "POST", "/v1/gateways/"+step.path+"/clock", "application/json", step.body)
		if got.Code != step.code || !strings.Contains(got.Body.String(), step.says) {
			t.Errorf("%s %s: %d %s; expected %d and %q", step.path, step.body, got.Code, got.Body, step.code, step.says)
		}
		if log := o.events(); strings.Count(log, step.eventual) != 1 && step.eventual != "" {
			t.Errorf("no %q in the log:\n%s", step.eventual, log)
		}
		if step.code != 200 {
			continue
		}
		var token client.ClockToken
		if err := json.Unmarshal(got.Body.Bytes(), &token); err != nil {
			t.Fatal(err)
		}
		at, err := enroll.VerifyClockToken(token.Token, o.keys.Config.Public().(ed25519.PublicKey), "icu-7", challenge)
		if err != nil || !at.Equal(right.Truncate(time.Millisecond)) {
			t.Errorf("%v, %v; expected %v", at, err, right)
		}
	}
}

// whyDenied are the reasons of the acts of a type that were denied.
func (o *office) whyDenied(act audit.Type) (out []string) {
	o.t.Helper()
	entries, err := o.journal.Read(1, 10_000)
	if err != nil {
		o.t.Fatal(err)
	}
	for _, e := range entries {
		if ev, err := audit.DecodeEvent(e.Head); err == nil && ev.Type == act && ev.Outcome == audit.Denied {
			out = append(out, ev.Reason)
		}
	}
	return out
}
