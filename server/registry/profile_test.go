package registry_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

const alarmsAndVitals = uint8(1)<<telemetry.LaneAlarm | uint8(1)<<telemetry.LaneVitals

// TestProfile: what it grants is in the next admission, self always; one that is not there grants nothing.
func TestProfile(t *testing.T) {
	f := one(t)
	rev := f.revision(t)
	p := registry.Profile{Name: "no-waves", Lanes: alarmsAndVitals, Publishes: 20, Bytes: 1 << 20}
	if err := f.SetProfile(f.ctx, operator, "", p); err != nil {
		t.Fatal(err)
	}
	if was, err := f.GiveProfile(f.ctx, operator, "", "gw-1", "no-waves"); err != nil || was != registry.DefaultProfile {
		t.Fatalf("was %s, %v", was, err)
	}
	if f.revision(t) < rev+2 {
		t.Error("no node looks")
	}
	adm, err := f.AdmitKey(f.ctx, "gw-1", keyOf("gw-1"))
	if err != nil || adm.Lanes != alarmsAndVitals|1<<telemetry.LaneSelf || adm.Publishes != 20 || adm.Bytes != 1<<20 {
		t.Fatalf("admitted %+v, %v", adm, err)
	}
	results, err := f.Import(f.ctx, operator, "", []registry.Gateway{{ID: "gw-2", EKs: [][32]byte{ek("two")}, Profile: "no-such"}})
	if err != nil || results[0].Outcome != registry.Conflict || !strings.Contains(results[0].Reason, "wardlink profile list") {
		t.Errorf("import into a profile that there is not: %+v, %v", results, err)
	}
	if _, err := f.GiveProfile(f.ctx, operator, "", "gw-1", "no-such"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("given a profile that there is not: %v", err)
	}
	for name, bad := range map[string]registry.Profile{
		"default": {Name: registry.DefaultProfile, Lanes: 1}, "a name": {Name: "No", Lanes: 1}, "lanes": {Name: "x", Lanes: 1 << 4},
		"publishes": {Name: "x", Publishes: 9}, "bytes": {Name: "x", Bytes: 1000},
	} {
		if err := f.SetProfile(f.ctx, operator, "", bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	list, err := f.Profiles(f.ctx)
	if err != nil || len(list) != 2 || list[0].Name != "default" || list[0].Lanes != 15 || list[1].Gateways != 1 || list[1].By != operator.ID {
		t.Errorf("listed %+v, %v", list, err)
	}
}

// TestWindow: outside of it there is neither session nor certificate, and the refusal says why.
func TestWindow(t *testing.T) {
	f := one(t)
	from, until := f.clock.Add(time.Hour), f.clock.Add(3*time.Hour)
	if err := f.SetWindow(f.ctx, operator, "", "gw-1", from, until); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		in    bool
	}{{0, false}, {time.Hour, true}, {3*time.Hour - time.Millisecond, true}, {3 * time.Hour, false}} {
		start := f.clock
		f.clock = f.clock.Add(step.after)
		adm, err := f.AdmitKey(f.ctx, "gw-1", keyOf("gw-1"))
		_, byEK := f.ByEK(f.ctx, ek("one"))
		var window *registry.WindowError
		switch {
		case step.in && (err != nil || byEK != nil || !adm.Until.Equal(until)):
			t.Errorf("after %v: %+v, %v, %v", step.after, adm, err, byEK)
		case !step.in && (!errors.As(err, &window) || !errors.As(byEK, &window) || !errors.Is(err, registry.ErrNotActive) || !strings.Contains(err.Error(), until.Format(time.RFC3339))):
			t.Errorf("after %v: %v, %v", step.after, err, byEK)
		}
		if err := f.AddKey(f.ctx, keyFor("gw-1", "one", f.clock)); (err == nil) != step.in {
			t.Errorf("after %v a key: %v", step.after, err)
		}
		f.clock = start
	}
	if err := f.SetWindow(f.ctx, operator, "", "gw-1", until, from); err == nil {
		t.Error("an end before the beginning")
	}
	if err := f.SetWindow(f.ctx, operator, "", "gw-1", time.Time{}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if adm, err := f.AdmitKey(f.ctx, "gw-1", keyOf("gw-1")); err != nil || !adm.Until.IsZero() {
		t.Errorf("without limits: %+v, %v", adm, err)
	}
	events := 0
	for _, ev := range f.journal.Events(t) {
		if ev.Type == audit.GatewayWindowed {
			events++
		}
	}
	if events != 2 {
		t.Errorf("%d events", events)
	}
}
