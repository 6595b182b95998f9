package records_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/telemetry"
)

// configEvents are the steps in the journal, in their order.
func (f *fixture) configEvents() (out []string) {
	f.t.Helper()
	entries, err := f.journal.Read(1, 10_000)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil || !strings.HasPrefix(string(ev.Type), "config.") {
			continue
		}
		if !strings.HasSuffix(ev.Actor.ID, "/gateway/"+ev.Target) {
			f.t.Errorf("%s by %s", ev.Type, ev.Actor.ID)
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s%s %s %s", ev.Type, ev.Detail["site"], ev.Detail["version"], ev.Outcome, ev.Reason)))
	}
	return out
}

// Reports repeat the steps, one report overtakes another, an agent starts anew: each step is one event.
func TestEachStepOfAConfigurationIsOneEvent(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	steps := []telemetry.ConfigStep{
		{Version: 1, Step: telemetry.ConfigPrepared, At: 1795357800000}, {Version: 1, Step: telemetry.ConfigApplied},
		{Version: 1, Step: telemetry.ConfigConfirmed}, {Site: "main", Version: 1, Step: telemetry.ConfigPrepared},
		{Site: "main", Version: 1, Step: telemetry.ConfigReverted, Reason: "no"},
	}
	g.report(0, telemetry.Report{Settings: telemetry.ConfigReport{Steps: steps[:2]}})
	g.report(2, telemetry.Report{Config: 1, Settings: telemetry.ConfigReport{Site: "main", Version: 7, Steps: steps}})
	f.settled()
	g.report(1, telemetry.Report{Settings: telemetry.ConfigReport{Steps: steps[:3]}}) // an older one that comes late
	g.restart()
	g.report(0, telemetry.Report{Config: 1, Settings: telemetry.ConfigReport{Site: "main", Version: 7, Steps: steps}})
	f.settled()
	want := []string{"config.prepared 1 success", "config.applied 1 success", "config.confirmed 1 success", "config.prepared main1 success", "config.reverted main1 failed no"}
	if got := f.configEvents(); !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
	states, err := f.open().ConfigStates(f.ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	s := states["gw-1"]
	if s.Own != 1 || s.Site != "main" || s.SiteVersion != 7 || len(s.Steps) != 2 || s.Steps[0].Step != telemetry.ConfigConfirmed || s.Steps[1].Reason != "no" {
		t.Errorf("%+v", s)
	}
}

// A gateway that invents steps fills neither log nor disk.
func TestInventedStepsAreBounded(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range uint64(20) {
		var steps []telemetry.ConfigStep
		for i := range uint64(telemetry.MaxConfigSteps) {
			steps = append(steps, telemetry.ConfigStep{Version: 1 + n*telemetry.MaxConfigSteps + i, Step: telemetry.ConfigPrepared})
		}
		g.report(n, telemetry.Report{Settings: telemetry.ConfigReport{Steps: steps}})
	}
	f.settled()
	if n := len(f.configEvents()); n != 256 {
		t.Errorf("%d events in a day", n)
	}
}
