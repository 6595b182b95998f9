package api_test

import (
	"bytes"
	"database/sql"
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
	write := func(statement string, args ...any) {
		t.Helper()
		if err := o.db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(statement, args...)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	// Of an epoch that balances a list says nothing unless it is asked; one in doubt is always in it.
	write("INSERT INTO streams (id, gateway, epoch, lane) VALUES (1, 'icu-7', $1, 1), (2, 'icu-7', $2, 1)", bytes.Repeat([]byte{10}, 16), bytes.Repeat([]byte{11}, 16))
	for _, statement := range []string{
		"INSERT INTO account_runs (stream, first, last, since) VALUES (1, 0, 4, 1), (2, 0, 1, 1)",
		"INSERT INTO account_stored (stream, stored) VALUES (1, 5), (2, 2)",
		"INSERT INTO account_streams (stream, assigned, covered) VALUES (1, 5, 5), (2, 3, 3)",
	} {
		write(statement)
	}
	for query, want := range map[string]int{"": 1, "?epochs=all": 2} {
		w := o.do(op, "GET", "/v1/accounts"+query, "", "")
		var page client.AccountPage
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || len(page.Accounts) != 1 || len(page.Accounts[0].Epochs) != want {
			t.Fatalf("%q: %d %s %v", query, w.Code, w.Body, err)
		}
		if l := page.Accounts[0].Lanes; len(l) != 1 || l[0].Balances || l[0].Difference != 1 || l[0].Journaled != 7 {
			t.Errorf("%q: %+v", query, l)
		}
	}
	// What a gateway held when it wiped itself is lost.
	held := func() client.Balance {
		t.Helper()
		var one client.Account
		if w := o.do(op, "GET", "/v1/accounts/icu-7", "", ""); json.Unmarshal(w.Body.Bytes(), &one) != nil || len(one.Lanes) != 1 {
			t.Fatal(w.Code, w.Body)
		}
		return one.Lanes[0]
	}
	write("INSERT INTO account_sets (stream, kind, first, last, upper) VALUES (2, 0, 2, 2, 0)")
	if b := held(); b.Buffered != 1 || b.Lost != 0 || !b.Balances {
		t.Errorf("it holds one: %+v", b)
	}
	write("INSERT INTO decommissions (gateway, at, actor, reason, drain, order_doc, event, confirmed) VALUES ('icu-7', 1, 'a', 'r', 0, $1, $2, 0)", []byte{0}, make([]byte, 16))
	if b := held(); b.Buffered != 1 {
		t.Errorf("the order alone destroys nothing: %+v", b)
	}
	write("UPDATE decommissions SET confirmed = 2")
	if b := held(); b.Buffered != 0 || b.Lost != 1 || !b.Balances {
		t.Errorf("it is wiped: %+v", b)
	}
	for path, want := range map[string]int{
		"/v1/accounts/icu-8": http.StatusNotFound, "/v1/accounts/..%2f..": http.StatusBadRequest, "/v1/accounts?after=a%0ab": http.StatusBadRequest, "/v1/accounts?epochs=some": http.StatusBadRequest,
	} {
		if w := o.do(op, "GET", path, "", ""); w.Code != want {
			t.Errorf("%s: %d %s; expected %d", path, w.Code, w.Body, want)
		}
	}
	if w := o.do(o.certificate(spiffe.Access, "reader", domain), "GET", "/v1/accounts", "", ""); w.Code != http.StatusForbidden {
		t.Errorf("a service account reads accounts: %d %s", w.Code, w.Body)
	}
	events := o.events()
	for want, times := range map[string]int{"account.read icu-7 success": 4, "account.read gateways success": 3} {
		if strings.Count(events, want) != times {
			t.Errorf("the journal has not %d %q:\n%s", times, want, events)
		}
	}
}
