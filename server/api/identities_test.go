package api_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"wardlink/internal/spiffe"
	"wardlink/server/api"
	"wardlink/server/api/client"
)

// account makes a service account, and gives what its holder shows.
func (o *office) account(op *tls.ConnectionState, name, scope string) *tls.ConnectionState {
	o.t.Helper()
	_, csr, err := client.NewKey(name)
	if err != nil {
		o.t.Fatal(err)
	}
	body, _ := json.Marshal(client.AccessRequest{Name: name, CSR: csr})
	text := strings.TrimSuffix(string(body), "}") + `,"scope":` + scope + "}"
	var grant client.AccessGrant
	got := o.do(op, "POST", "/v1/access", "application/json", text)
	if err := json.Unmarshal(got.Body.Bytes(), &grant); err != nil || got.Code != 200 {
		o.t.Fatal(got.Code, got.Body)
	}
	return o.shown(grant)
}

func (o *office) shown(grant client.AccessGrant) *tls.ConnectionState {
	o.t.Helper()
	block, _ := pem.Decode([]byte(grant.Certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		o.t.Fatal(err)
	}
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf, o.keys.Issuing}}}
}

// TestIdentitiesAreChangedShownAndExplained, and no identifier of a patient is kept, shown or logged.
func TestIdentitiesAreChangedShownAndExplained(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	if got := o.do(op, "POST", "/v1/gateways/import", "text/csv", "id,ek_sha256,site,ward,profile\nicu-7,"+strings.Repeat("a", 64)+",main,ICU 2,default\n"); got.Code != 200 {
		t.Fatal(got.Body)
	}
	o.account(op, "ehr", `{"wards":["ICU 3"],"identifiers":["urn:oid:1.2|SECRET4711"]}`)
	for _, c := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"GET", "/v1/identities?kind=access", "", 200, `"scope":"wards ICU 3; 1 patient: read, search"`},
		{"GET", "/v1/identities", "", 200, `"log key"`},
		{"GET", "/v1/identities/operator/op", "", 200, `"POST /v1/access"`},
		{"GET", "/v1/identities/access/nobody", "", 404, "not in the registry; 'wardlink access list'"},
		{"GET", "/v1/identities/gateway/ehr", "", 400, "expected access or operator"},
		{"POST", "/v1/identities/access/ehr/explain", `{"ward":"ICU 3","operation":"search","identifier":"urn:oid:1.2|SECRET4711"}`, 200, `"allowed":true`},
		{"POST", "/v1/identities/access/ehr/explain", `{"identifier":"urn:oid:1.2|SECRET4712"}`, 200, `"allowed":false`},
		{"POST", "/v1/identities/access/ehr/explain", `{"ward":"ICU 4"}`, 200, `"allowed":false`},
		{"POST", "/v1/identities/access/ehr/explain", `{"operation":"waveforms"}`, 200, `"allowed":false`},
		{"POST", "/v1/identities/access/ehr/explain", `{"code":"8867-4"}`, 400, "loinc|8867-4"},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"codes":["loinc|8867-4"]},"owner":"Clinical IT"}`, 200, `"owner":"Clinical IT"`},
		{"POST", "/v1/identities/access/ehr/explain", `{"code":"mdc|147842"}`, 200, `"allowed":true`},
		{"POST", "/v1/identities/access/ehr/explain", `{"code":"mdc|150456"}`, 200, `"allowed":false`},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"wards":[" "]}}`, 400, "ward"},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"subjects":["nosuch"]}}`, 400, "32 hex digits"},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"subjects":["0123456789abcdef0123456789ABCDEF"]}}`, 400, "32 hex digits"},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"subjects":["0123456789abcdef0123456789abcdef"]}}`, 200, "1 patient"},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"wards":["icu-2","ER"]}}`, 200, `"no gateway is or was in ward \"ER\", so nothing is seen of it; 'wardlink gateway list' shows the wards","no gateway is or was in ward \"icu-2\", so nothing is seen of it; is it \"ICU 2\"?`},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"wards":["ICU 2"]}}`, 200, `"scope":"wards ICU 2: read, search"`},
		{"POST", "/v1/identities/access/ehr/change", `{"scope":{"codes":["loinc|8867-4"]}}`, 200, "loinc"},
		{"POST", "/v1/identities/access/ehr/change", `{"role":"admin"}`, 400, "no role"},
		{"POST", "/v1/identities/operator/op/change", `{"role":"viewer"}`, 409, "last admin"},
		{"POST", "/v1/identities/access/nobody/change", `{"owner":"x"}`, 404, "not in the registry"},
		{"POST", "/v1/identities/access/ehr/state", `{"state":"suspended"}`, 400, "reason"},
		{"POST", "/v1/identities/access/ehr/state", `{"state":"asleep","reason":"x"}`, 400, "expected active"},
		{"POST", "/v1/identities/access/ehr/rotate", `{"reason":"x","overlap_seconds":86401}`, 400, "overlap"},
		{"POST", "/v1/identities/access/ehr/state", `{"state":"revoked","reason":"lost laptop"}`, 200, `"journaled":true`},
		{"POST", "/v1/identities/access/ehr/explain", `{}`, 200, "lost laptop"},
		{"POST", "/v1/identities/access/ehr/state", `{"state":"active","reason":"x"}`, 409, "never used again"},
		{"POST", "/v1/identities/access/ehr/rotate", `{"reason":"x"}`, 409, "revoked"},
	} {
		got := o.do(op, c.method, c.path, "application/json", c.body)
		if body := got.Body.String(); got.Code != c.code || !strings.Contains(body, c.says) || strings.Contains(body, "SECRET") {
			t.Errorf("%s %s %s: %d %s; expected %d that says %s", c.method, c.path, c.body, got.Code, body, c.code, c.says)
		}
	}
	events := o.events()
	for _, want := range []string{"identity.created access/ehr success", "access.issued ehr success", "identity.changed access/ehr success", "identity.changed operator/op denied",
		"identity.changed access/nobody denied", "identity.revoked access/ehr success", "identity.resumed access/ehr denied", "identity.rotated access/ehr denied", "identities.read access/ehr success"} {
		if !strings.Contains(events, want) {
			t.Errorf("no event %q in\n%s", want, events)
		}
	}
	entries, err := o.journal.Read(1, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(string(e.Head), "SECRET") {
			t.Errorf("an event holds an identifier: %q", e.Head)
		}
	}
}

// TestRenewalIsByTheHolderAlone: a service account renews by the certificate that counts, for another key, and both count then.
func TestRenewalIsByTheHolderAlone(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	ehr := o.account(op, "ehr", `{"all":true}`)
	h := o.api.Hospital(http.NotFoundHandler())
	ask := func(state *tls.ConnectionState, method, path string, body any) *httptest.ResponseRecorder {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(method, path, strings.NewReader(string(text)))
		r.TLS = state
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	_, csr, err := client.NewKey("someone-else")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		state *tls.ConnectionState
		csr   []byte
		code  int
	}{
		"nobody":                         {nil, csr, 401},
		"an operator":                    {op, csr, 403},
		"an account that nobody entered": {o.certificate(spiffe.Access, "other", domain), csr, 403},
		"no request":                     {ehr, []byte("x"), 400},
	} {
		if got := ask(c.state, "POST", api.RenewPath, client.RenewRequest{CSR: c.csr}); got.Code != c.code {
			t.Errorf("%s: %d %s", name, got.Code, got.Body)
		}
	}
	got := ask(ehr, "POST", api.RenewPath, client.RenewRequest{CSR: csr})
	var grant client.AccessGrant
	if err := json.Unmarshal(got.Body.Bytes(), &grant); err != nil || got.Code != 200 || grant.ID != "spiffe://"+domain+"/access/ehr" {
		t.Fatal(got.Code, got.Body)
	}
	next := o.shown(grant)
	if got := ask(next, "POST", api.RenewPath, client.RenewRequest{CSR: csr}); got.Code != 400 || !strings.Contains(got.Body.String(), "a new one") {
		t.Errorf("for the key that is in use: %d %s", got.Code, got.Body)
	}
	own := func(state *tls.ConnectionState, renew bool) {
		t.Helper()
		var own client.Own
		got := ask(state, "GET", api.SelfPath, nil)
		if err := json.Unmarshal(got.Body.Bytes(), &own); err != nil || got.Code != 200 || own.Renew != renew || own.Scope != "all: read, search, waveforms" {
			t.Errorf("%d %s; expected renew %t", got.Code, got.Body, renew)
		}
	}
	own(ehr, false)
	own(next, false)
	if got := o.do(op, "POST", "/v1/identities/access/ehr/rotate", "", `{"reason":"x","overlap_seconds":600}`); got.Code != 200 {
		t.Fatal(got.Code, got.Body)
	}
	own(ehr, true)
	own(next, true)
	if got := o.do(op, "POST", "/v1/identities/access/ehr/rotate", "", `{"reason":"x"}`); got.Code != 200 {
		t.Fatal(got.Code, got.Body)
	}
	for _, state := range []*tls.ConnectionState{ehr, next} {
		if got := ask(state, "GET", api.SelfPath, nil); got.Code != 403 || !strings.Contains(got.Body.String(), "ended") {
			t.Errorf("after the rotation: %d %s", got.Code, got.Body)
		}
	}
}
