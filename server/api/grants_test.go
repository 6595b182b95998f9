package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/registry"
)

// TestWhatAGatewayMayDo: profile and validity are set, explained in the order of admission, and exported.
func TestWhatAGatewayMayDo(t *testing.T) {
	o := newOffice(t)
	who := o.certificate(spiffe.Operator, "ann", domain)
	if _, err := o.reg.Import(t.Context(), audit.Actor{ID: "test"}, "", []registry.Gateway{{ID: "icu-7", EKs: [][32]byte{{1}}, Ward: "icu"}}); err != nil {
		t.Fatal(err)
	}
	if err := o.reg.Describe(t.Context(), [32]byte{1}, registry.Device{Manufacturer: "id:1", Model: "m", Firmware: "7.2", Serial: "S1"}); err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, body string, want int, out any) string {
		t.Helper()
		got := o.do(who, method, path, "application/json", body)
		if got.Code != want {
			t.Fatalf("%s %s: %d %s", method, path, got.Code, got.Body)
		}
		if out != nil {
			if err := json.Unmarshal(got.Body.Bytes(), out); err != nil {
				t.Fatal(err)
			}
		}
		return got.Body.String()
	}
	var e client.GatewayExplanation
	if ask("GET", "/v1/gateways/icu-7/explain", "", http.StatusOK, &e); !e.Allowed || !holds(e, "lane waveform") || !holds(e, "validity") {
		t.Errorf("at first: %+v", e)
	}
	ask("POST", "/v1/profiles/no-waves", `{"lanes":["alarm","vitals"],"publishes":20}`, http.StatusOK, nil)
	ask("POST", "/v1/profiles/no-waves", `{"lanes":["tea"]}`, http.StatusBadRequest, nil)
	ask("POST", "/v1/profiles/default", `{"lanes":["alarm"]}`, http.StatusConflict, nil)
	ask("POST", "/v1/gateways/icu-7/profile", `{"profile":"no-such"}`, http.StatusNotFound, nil)
	ask("POST", "/v1/gateways/icu-7/profile", `{"profile":"no-waves"}`, http.StatusOK, nil)
	text := ask("POST", "/v1/profiles/no-waves", `{"lanes":["vitals"]}`, http.StatusConflict, nil)
	if !strings.Contains(text, "alarms of 1 gateways") {
		t.Errorf("a profile without alarms: %s", text)
	}
	ask("POST", "/v1/profiles/mute", `{"lanes":["vitals"],"without_alarms":true}`, http.StatusOK, nil)
	if text = ask("POST", "/v1/gateways/icu-7/profile", `{"profile":"mute"}`, http.StatusConflict, nil); !strings.Contains(text, "--without-alarms") {
		t.Errorf("a gateway without alarms: %s", text)
	}
	ask("POST", "/v1/gateways/icu-7/profile", `{"profile":"mute","without_alarms":true}`, http.StatusOK, nil)
	ask("POST", "/v1/gateways/icu-7/profile", `{"profile":"no-waves"}`, http.StatusOK, nil)
	ask("POST", "/v1/gateways/icu-7/window", `{}`, http.StatusBadRequest, nil)
	ask("POST", "/v1/gateways/icu-7/window", `{"until":"1900-01-01T00:00:00Z","past":true}`, http.StatusBadRequest, nil)
	ask("POST", "/v1/gateways/icu-7/window", `{"until":"2001-01-01T00:00:00Z"}`, http.StatusConflict, nil)
	ask("POST", "/v1/gateways/icu-7/window", `{"until":"2099-01-01T00:00:00Z"}`, http.StatusOK, nil)
	if text = ask("POST", "/v1/gateways/icu-7/window", `{"always":true,"from":"2000-02-01T00:00:00Z"}`, http.StatusOK, nil); strings.Contains(text, "2099") {
		t.Errorf("always, but for its beginning: %s", text)
	}
	ask("POST", "/v1/gateways/icu-7/window", `{"until":"2001-01-01T00:00:00Z","past":true}`, http.StatusOK, nil)
	e = client.GatewayExplanation{}
	text = ask("GET", "/v1/gateways/icu-7/explain", "", http.StatusOK, &e)
	if e.Allowed || holds(e, "lane waveform") || !holds(e, "lane alarm") || holds(e, "validity") || !strings.Contains(text, "20 publishes") {
		t.Errorf("then: %s", text)
	}
	var code client.CodeAnswer
	ask("POST", "/v1/gateways/icu-7/code", `{"seconds":3600}`, http.StatusOK, &code)
	ask("POST", "/v1/gateways/icu-7/code", `{"seconds":1}`, http.StatusBadRequest, nil)
	if text := ask("GET", "/v1/gateways/icu-7/explain", "", http.StatusOK, nil); !strings.Contains(text, "one-time code") || strings.Contains(text, code.Code) || len(code.Code) != 26 {
		t.Errorf("with a code that waits: %s", text)
	}
	var assets []client.Asset
	ask("GET", "/v1/inventory", "", http.StatusOK, &assets)
	if len(assets) != 1 || assets[0].Firmware != "7.2" || assets[0].Serial != "S1" || assets[0].Profile != "no-waves" || assets[0].NotAfter == nil ||
		assets[0].NotAfter.Year() != 2001 || assets[0].Boot != "" || assets[0].BootPolicy != "off" || assets[0].Added == nil || time.Since(*assets[0].Added) > time.Hour {
		t.Errorf("inventory %+v", assets)
	}
}

func holds(e client.GatewayExplanation, what string) bool {
	for _, c := range e.Checks {
		if c.What == what {
			return c.Holds
		}
	}
	return false
}
