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
	if was, err := f.GiveProfile(f.ctx, operator, "", "gw-1", "no-waves", false); err != nil || was != registry.DefaultProfile {
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
	if _, err := f.GiveProfile(f.ctx, operator, "", "gw-1", "no-such", false); !errors.Is(err, registry.ErrUnknown) {
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
	from, until, never := f.clock.Add(time.Hour), f.clock.Add(3*time.Hour), time.Time{}
	if _, _, err := f.SetWindow(f.ctx, operator, "", "gw-1", registry.WindowChange{From: &from, Until: &until}); err != nil {
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
	if _, _, err := f.SetWindow(f.ctx, operator, "", "gw-1", registry.WindowChange{From: &until, Until: &from, Cuts: true}); err == nil {
		t.Error("an end before the beginning")
	}
	if _, _, err := f.SetWindow(f.ctx, operator, "", "gw-1", registry.WindowChange{From: &never, Until: &never}); err != nil {
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

// TestAWindowKeepsItsOtherBound, and cuts nobody off at once unless that is meant.
func TestAWindowKeepsItsOtherBound(t *testing.T) {
	f := one(t)
	from, until, past, later := f.clock.Add(-2*time.Hour).UTC(), f.clock.Add(time.Hour).UTC(), f.clock.Add(-time.Hour).UTC(), f.clock.Add(2*time.Hour).UTC()
	if err := f.AddKey(f.ctx, keyFor("gw-1", "one", f.clock)); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		change      registry.WindowChange
		refused     string
		from, until time.Time
	}{
		{registry.WindowChange{From: &from}, "", from, time.Time{}},
		{registry.WindowChange{Until: &until}, "", from, until},
		{registry.WindowChange{Until: &past}, "has passed", from, until},
		{registry.WindowChange{From: &until}, "not after its beginning", from, until},
		{registry.WindowChange{Until: &past, Cuts: true}, "", from, past},
		{registry.WindowChange{From: &time.Time{}, Until: &time.Time{}}, "", time.Time{}, time.Time{}},
		{registry.WindowChange{From: &until}, "is to come", time.Time{}, time.Time{}},
		{registry.WindowChange{From: &until, Cuts: true}, "", until, time.Time{}},
		{registry.WindowChange{From: &later}, "", later, time.Time{}}, // it is cut off as it is
	} {
		_, _, err := f.SetWindow(f.ctx, operator, "", "gw-1", row.change)
		if (err == nil) != (row.refused == "") || err != nil && (!errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), row.refused)) {
			t.Errorf("%+v: %v; expected %q", row.change, err, row.refused)
		}
		if g, err := f.Get(f.ctx, "gw-1"); err != nil || !g.NotBefore.Equal(row.from) || !g.NotAfter.Equal(row.until) {
			t.Errorf("%+v: from %v until %v, %v", row.change, g.NotBefore, g.NotAfter, err)
		}
	}
}
