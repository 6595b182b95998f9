package client

import (
	"net/url"
	"testing"

	"wardlink/audit"
)

// TestFilterGoesThroughItsQuery: what the tool asks for is what the server looks for.
func TestFilterGoesThroughItsQuery(t *testing.T) {
	f := audit.Filter{Type: audit.Refused, Actor: "a", Gateway: "gw-1", Outcome: audit.Denied, Reason: "revoked & more", From: 1, To: 1 << 50, Limit: 7, Newest: true, Publishes: true}
	if got, err := ParseFilter(Query(f)); err != nil || got != f {
		t.Errorf("%+v, %v; expected %+v", got, err, f)
	}
	if got, err := ParseFilter(Query(audit.Filter{})); err != nil || got != (audit.Filter{}) {
		t.Errorf("an empty filter becomes %+v, %v", got, err)
	}
	for _, bad := range []string{"outcome=perhaps", "from=yesterday", "limit=0"} {
		v, err := url.ParseQuery(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseFilter(v); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add("type=refused&limit=20&newest=true")
	f.Add("limit=-1")
	f.Fuzz(func(t *testing.T, query string) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		if filter, err := ParseFilter(v); err == nil && filter.Limit < 0 {
			t.Errorf("limit %d", filter.Limit)
		}
	})
}
