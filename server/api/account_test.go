package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
)

// TestAccountIsReadAndJournaled: what the account says is the records' own tests' matter; here, who may ask and what the log keeps of it.
func TestAccountIsReadAndJournaled(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "alice", domain)
	if w := o.do(op, "POST", "/v1/gateways/import", "text/csv", "id,ek_sha256,site,ward,profile\nicu-7,"+strings.Repeat("a", 64)+",s,w,default\n"); w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	w := o.do(op, "GET", "/v1/accounts/icu-7", "", "")
	var one client.Account
	if err := json.Unmarshal(w.Body.Bytes(), &one); err != nil || w.Code != http.StatusOK || one.Gateway != "icu-7" || one.Lanes == nil || one.Reported != nil {
		t.Errorf("%d %s %v", w.Code, w.Body, err)
	}
	w = o.do(op, "GET", "/v1/accounts?after=icu-7", "", "")
	var page client.AccountPage
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != http.StatusOK || len(page.Accounts) != 0 || page.Next != "" {
		t.Errorf("%d %s %v", w.Code, w.Body, err)
	}
	for path, want := range map[string]int{
		"/v1/accounts/icu-8": http.StatusNotFound, "/v1/accounts/..%2f..": http.StatusBadRequest, "/v1/accounts?after=a%0ab": http.StatusBadRequest,
	} {
		if w := o.do(op, "GET", path, "", ""); w.Code != want {
			t.Errorf("%s: %d %s; expected %d", path, w.Code, w.Body, want)
		}
	}
	if w := o.do(o.certificate(spiffe.Access, "reader", domain), "GET", "/v1/accounts", "", ""); w.Code != http.StatusForbidden {
		t.Errorf("a service account reads accounts: %d %s", w.Code, w.Body)
	}
	events := o.events()
	for _, want := range []string{"account.read icu-7 success", "account.read gateways success"} {
		if strings.Count(events, want) != 1 {
			t.Errorf("the journal lacks one %q:\n%s", want, events)
		}
	}
}
