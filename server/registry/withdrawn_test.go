package registry_test

import (
	"strings"
	"testing"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/registry"
)

// TestWithdrawn: whose certificates have not ended and count no more, by reason, and nobody else's.
func TestWithdrawn(t *testing.T) {
	f := setup(t, 0)
	expect := func(what string, want map[string]registry.Withdrawal) {
		t.Helper()
		got, err := f.Registry.Withdrawn(f.ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range got {
			if why, ok := want[w.Serial]; !ok || why != w.Why || w.At.After(f.clock) || w.At.Before(f.clock.Add(-48*time.Hour)) {
				t.Errorf("%s: %+v", what, w)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %+v; expected %v", what, got, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var gateways []registry.Gateway
	for _, id := range []string{"gw-1", "gw-2", "gw-3", "gw-4"} {
		gateways = append(gateways, gateway(id, "of "+id))
	}
	_, err := f.Import(f.ctx, operator, "", gateways)
	must(err)
	for _, g := range gateways {
		f.certify(t, g.ID, time.Second, time.Hour, 24*time.Hour)
	}
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "ehr"}, "e1")
	f.enter(t, registry.Identity{Kind: spiffe.Access, Name: "lab"}, "e2")
	expect("nobody", nil)
	_, _, err = f.Revoke(f.ctx, operator, "", "gw-1", "stolen")
	must(err)
	_, _, err = f.Suspend(f.ctx, operator, "", "gw-2", "repair")
	must(err)
	_, err = f.Replace(f.ctx, operator, "", "gw-3", "broken", []string{hexEK("another board")})
	must(err)
	want := map[string]registry.Withdrawal{"gw-1-1": registry.WithdrawnRevoked, "gw-1-2": registry.WithdrawnRevoked,
		"gw-2-1": registry.WithdrawnHeld, "gw-2-2": registry.WithdrawnHeld, "gw-3-1": registry.WithdrawnReplaced, "gw-3-2": registry.WithdrawnReplaced}
	expect("gateways", want)
	_, _, err = f.SetState(f.ctx, operator, "", spiffe.Access, "ehr", registry.Suspended, "audit")
	must(err)
	want["e1"] = registry.WithdrawnHeld
	_, _, err = f.Rotate(f.ctx, operator, "", spiffe.Access, "lab", "leaked", 0)
	must(err)
	want["e2"] = registry.WithdrawnRotated
	expect("service accounts", want)
	// Who is suspended first and revoked then is revoked.
	_, _, err = f.Revoke(f.ctx, operator, "", "gw-2", "never came back")
	must(err)
	_, _, err = f.SetState(f.ctx, operator, "", spiffe.Access, "ehr", registry.Revoked, "sold")
	must(err)
	want["e1"], want["gw-2-1"], want["gw-2-2"] = registry.WithdrawnRevoked, registry.WithdrawnRevoked, registry.WithdrawnRevoked
	expect("revoked after all", want)
	// More than may be: no list, rather than one that leaves some out.
	if got, err := f.Registry.Withdrawn(f.ctx, len(want)-1); err == nil || !strings.Contains(err.Error(), "more than 7") || got != nil {
		t.Errorf("too many: %v, %v", got, err)
	}
	_, err = f.Resume(f.ctx, operator, "", "gw-2", "it was found")
	must(err)
	f.clock = f.clock.Add(2 * time.Hour)
	expect("taken back, and two hours later", map[string]registry.Withdrawal{"gw-1-2": registry.WithdrawnRevoked, "gw-3-2": registry.WithdrawnReplaced,
		"e1": registry.WithdrawnRevoked, "e2": registry.WithdrawnRotated})
	f.clock = f.clock.Add(24 * time.Hour)
	expect("once all have ended", nil)
}
