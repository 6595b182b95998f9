package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"wardlink/enroll"
	"wardlink/telemetry"
)

// TestHTTPNamesVersions: on the gateways' port an agent with no version in common is told so before anything else is done for it; who
// names none is served and told nothing.
func TestHTTPNamesVersions(t *testing.T) {
	var refusals, served int
	h := versioned(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }), telemetry.Versions{Oldest: 3, Newest: 5}, func(string) { refusals++ })
	for _, tc := range []struct {
		said   string
		status int
	}{{"", 200}, {"wl/1-3/0.1.0", 200}, {"wl/5-9/3.0.0", 200}, {"wl/1-2/0.1.0", 426}, {"wl/6-9/9.0.0", 426}, {"anything", 400}} {
		r := httptest.NewRequest("POST", "/attestation/attest", nil)
		if tc.said != "" {
			r.Header.Set(telemetry.HelloHeader, tc.said)
		}
		before := served
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tc.status || (served > before) != (tc.status == 200) {
			t.Errorf("%q: %d, served %t", tc.said, w.Code, served > before)
		}
		if got := w.Header().Get(telemetry.ServerHeader); (got == "") != (tc.said == "") || got != "" && !strings.HasPrefix(got, "wl/3-5/") {
			t.Errorf("%q: the server says %q", tc.said, got)
		}
		if tc.status != 426 {
			continue
		}
		var p enroll.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Type != enroll.VersionsProblem || !strings.Contains(p.Detail, "3-5") || !strings.Contains(p.Detail, "install") ||
			w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%q: %s, %v", tc.said, w.Body, err)
		}
	}
	if refusals != 3 {
		t.Errorf("%d refusals", refusals)
	}
}
