package api_test

import (
	"crypto/ed25519"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// newSite is an office with two gateways of one site and one of another.
func newSite(t *testing.T) *office {
	t.Helper()
	o := newOffice(t)
	if _, err := o.reg.Import(t.Context(), audit.Actor{ID: "test"}, "", []registry.Gateway{
		{ID: "icu-7", EKs: [][32]byte{{1}}, Site: "main", Ward: "icu"}, {ID: "icu-8", EKs: [][32]byte{{2}}, Site: "main", Ward: "icu"},
		{ID: "er-1", EKs: [][32]byte{{3}}, Site: "annexe", Ward: "er"},
	}); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *office) setConfig(path, body string, want int) (out client.ConfigAnswer) {
	o.t.Helper()
	got := o.do(o.certificate(spiffe.Operator, "op", domain), "POST", "/v1/configs/"+path, "application/json", body)
	if got.Code != want {
		o.t.Fatalf("POST %s %s: %d %s; expected %d", path, body, got.Code, got.Body, want)
	}
	if want == 200 {
		if err := json.Unmarshal(got.Body.Bytes(), &out); err != nil {
			o.t.Fatal(err)
		}
	}
	return out
}

// verified are the documents of a gateway as it reads them.
func (o *office) verified(gateway, site string) (own, of enroll.Configuration) {
	o.t.Helper()
	docs, err := o.configs.Documents(o.t.Context(), gateway)
	if err != nil {
		o.t.Fatal(err)
	}
	key := o.keys.Config.Public().(ed25519.PublicKey)
	if own, err = enroll.VerifyConfiguration(docs[0], key, gateway, site, 0); err != nil {
		o.t.Fatal(err)
	}
	if len(docs) > 1 {
		if of, err = enroll.VerifyConfiguration(docs[1], key, gateway, site, 0); err != nil {
			o.t.Fatal(err)
		}
	}
	return own, of
}

func TestOperatorSetsAConfiguration(t *testing.T) {
	o := newSite(t)
	own, _ := o.verified("icu-7", "main")
	if own.Version != 1 || len(own.Servers) != 0 {
		t.Fatalf("%+v", own)
	}
	dry := o.setConfig("gateway/icu-7", `{"settings":{"servers":["a:1"]},"dry_run":true}`, 200)
	if own, _ := o.verified("icu-7", "main"); !dry.New || dry.Issued || dry.After.Version != 2 || own.Version != 1 || len(o.pushed) != 0 {
		t.Errorf("a dry run: %+v, document %+v", dry, own)
	}
	set := o.setConfig("gateway/icu-7", `{"settings":{"servers":["a:1","b:2"],"report_every":"30s"},"expect":1}`, 200)
	own, _ = o.verified("icu-7", "main")
	if !set.Issued || set.Before.Version != 1 || own.Version != 2 || !slices.Equal(own.Servers, []string{"a:1", "b:2"}) || own.ReportEvery != 30_000 || own.Ward != "icu" || own.Lanes == 0 {
		t.Errorf("%+v, document %+v", set, own)
	}
	if same := o.setConfig("gateway/icu-7", `{"settings":{"servers":["a:1","b:2"],"report_every":"30s"}}`, 200); same.New || same.After.Version != 2 {
		t.Errorf("the same again: %+v", same)
	}
	if again := o.setConfig("gateway/icu-7", `{"settings":{"servers":["a:1","b:2"],"report_every":"30s"},"retry":true}`, 200); !again.Issued || again.After.Version != 3 {
		t.Errorf("once more: %+v", again)
	}
	// What the registry says changes; what the operator set stays.
	if got := o.do(o.certificate(spiffe.Operator, "op", domain), "POST", "/v1/gateways/icu-7/move", "application/json", `{"ward":"or"}`); got.Code != 200 {
		t.Fatal(got.Body)
	}
	if own, _ = o.verified("icu-7", "main"); own.Version != 4 || own.Ward != "or" || own.ReportEvery != 30_000 {
		t.Errorf("after a move: %+v", own)
	}
	if !slices.Equal(o.pushed, []string{"icu-7", "icu-7", "icu-7"}) { // set, retry, move
		t.Errorf("pushed to %v", o.pushed)
	}
	for body, want := range map[string]int{
		`{"settings":{"servers":["a:2"]},"expect":2}`:       409,
		`{"settings":{"servers":["no port"]}}`:              400,
		`{"settings":{"report_every":"1ms"}}`:               400,
		`{"settings":{"reportevery":"1m"}}`:                 400,
		`{"settings":{"servers":["a:1","a:1"]},"expect":4}`: 400,
		`{"settings":{"servers":["a:\u001b1"]},"expect":4}`: 400,
		`{"settings":{"report_every":"2h"},"dry_run":true}`: 400,
	} {
		o.setConfig("gateway/icu-7", body, want)
	}
	o.setConfig("gateway/icu-9", `{"settings":{}}`, 404)
	o.setConfig("site/nowhere", `{"settings":{}}`, 404)
	o.setConfig("ward/icu", `{"settings":{}}`, 400)
	log := o.events()
	for text, n := range map[string]int{"config.issued icu-7 success": 4, "config.issued icu-7 denied": 1, "config.issued icu-9 denied": 1, "config.issued site:nowhere denied": 1} {
		if got := strings.Count(log, text); got != n {
			t.Errorf("%d of %q, expected %d:\n%s", got, text, n, log)
		}
	}
}

func TestSiteConfiguration(t *testing.T) {
	o := newSite(t)
	set := o.setConfig("site/main", `{"settings":{"servers":["site:1"]}}`, 200)
	if !slices.Equal(set.Gateways, []string{"icu-7", "icu-8"}) || !slices.Equal(o.pushed, set.Gateways) || set.After.Version != 1 {
		t.Errorf("%+v, pushed %v", set, o.pushed)
	}
	if _, of := o.verified("icu-8", "main"); of.ForSite != "main" || !slices.Equal(of.Servers, []string{"site:1"}) {
		t.Errorf("%+v", of)
	}
	if _, of := o.verified("er-1", "annexe"); of.Version != 0 {
		t.Errorf("another site has it: %+v", of)
	}
	o.setConfig("gateway/icu-7", `{"settings":{"report_every":"5s"}}`, 200)
	var all []client.ConfigState
	got := o.do(o.certificate(spiffe.Operator, "op", domain), "GET", "/v1/configs", "", "")
	if err := json.Unmarshal(got.Body.Bytes(), &all); err != nil || len(all) != 3 {
		t.Fatalf("%v, %s", err, got.Body)
	}
	for _, s := range all {
		if s.Gateway == "icu-7" && (s.OfSite == nil || s.OfSite.State != "waiting" || s.Settings.ReportEvery != "5s" || !slices.Equal(s.Settings.Servers, []string{"site:1"})) {
			t.Errorf("%+v", s)
		}
	}
}

// say puts into the database what a gateway's reports say.
func (o *office) say(gateway string, own uint64, steps ...telemetry.ConfigStep) {
	o.t.Helper()
	err := o.db.Write(o.t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec(`INSERT INTO config_in_force (gateway, own, site, site_version, received) VALUES ($1, $2, '', 0, 1000)
			ON CONFLICT (gateway) DO UPDATE SET own = excluded.own`, gateway, int64(own)); err != nil {
			return err
		}
		for _, s := range steps {
			if _, err := tx.Exec("INSERT INTO config_steps (gateway, site, version, step, reason, received) VALUES ($1, $2, $3, $4, $5, 1000)",
				gateway, s.Site, int64(s.Version), s.Step, s.Reason); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		o.t.Fatal(err)
	}
}

func TestHowFarAGatewayIs(t *testing.T) {
	o := newSite(t)
	o.verified("icu-7", "main")
	state := func() string {
		all, err := o.configs.All(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(s client.ConfigState) bool { return s.Gateway == "icu-7" })
		return fmt.Sprintf("%d/%d %s %s", all[i].Own.InForce, all[i].Own.Wanted, all[i].Own.State, all[i].Own.Reason)
	}
	for _, step := range []struct {
		say  func()
		want string
	}{
		{func() {}, "0/1 waiting "},
		{func() { o.say("icu-7", 1) }, "1/1 confirmed "}, // an agent that reports no steps
		{func() { o.setConfig("gateway/icu-7", `{"settings":{"servers":["a:1"]}}`, 200) }, "1/2 waiting "},
		{func() { o.say("icu-7", 1, telemetry.ConfigStep{Version: 2, Step: telemetry.ConfigPrepared}) }, "1/2 prepared "},
		{func() { o.say("icu-7", 1, telemetry.ConfigStep{Version: 2, Step: telemetry.ConfigApplied}) }, "1/2 applied "},
		{func() {
			o.say("icu-7", 1, telemetry.ConfigStep{Version: 2, Step: telemetry.ConfigReverted, Reason: "no"})
		}, "1/2 reverted no"},
		{func() { o.setConfig("gateway/icu-7", `{"settings":{"servers":["a:1"]},"retry":true}`, 200) }, "1/3 waiting "},
		{func() { o.say("icu-7", 3, telemetry.ConfigStep{Version: 3, Step: telemetry.ConfigConfirmed}) }, "3/3 confirmed "},
	} {
		step.say()
		if got := state(); got != step.want {
			t.Errorf("%q, expected %q", got, step.want)
		}
	}
}

// A database that was restored knows less than the gateways; the next version is above what they know, or they would refuse it. A number
// that no honest gateway has counts for nothing.
func TestVersionsPassThoseThatGatewaysKnow(t *testing.T) {
	o := newSite(t)
	o.verified("icu-7", "main")
	o.say("icu-7", 7, telemetry.ConfigStep{Version: 9, Step: telemetry.ConfigReverted}, telemetry.ConfigStep{Site: "main", Version: 4, Step: telemetry.ConfigConfirmed},
		telemetry.ConfigStep{Version: 1 << 40, Step: telemetry.ConfigReverted})
	if own, _ := o.verified("icu-7", "main"); own.Version != 10 {
		t.Errorf("version %d", own.Version)
	}
	if set := o.setConfig("site/main", `{"settings":{"servers":["a:1"]}}`, 200); set.After.Version != 5 {
		t.Errorf("site's version %d", set.After.Version)
	}
}
