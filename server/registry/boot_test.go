package registry_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/boot"
	"wardlink/server/registry"
)

// booted is a measurement whose PCR 4 has these boot loaders, the rest being the same always.
func booted(loaders ...string) boot.Measurement {
	m := boot.Measurement{PCRs: map[int]boot.Digest{}}
	for pcr := range 8 {
		m.PCRs[pcr] = boot.Digest(ek("firmware"))
	}
	m.PCRs[4] = boot.Digest(ek(strings.Join(loaders, " ")))
	for i, l := range loaders {
		m.Events = append(m.Events, boot.Event{Index: 5 + i, PCR: 4, Type: "EV_EFI_BOOT_SERVICES_APPLICATION", Text: l, Digest: boot.Digest(ek(l))})
	}
	return m
}

// booting is a registry with one gateway.
type booting struct {
	*fixture
	t *testing.T
}

func setupBoot(t *testing.T) booting {
	t.Helper()
	f := booting{setup(t, 0), t}
	if _, err := f.Import(f.ctx, operator, "peer", []registry.Gateway{gateway("gw-1", "one")}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f booting) events(kind audit.Type) (out []audit.Event) {
	f.t.Helper()
	entries, err := f.journal.Read(1, 1000)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, entry := range entries {
		e, err := audit.DecodeEvent(entry.Head)
		if err != nil {
			f.t.Fatal(err)
		}
		if e.Type == kind {
			out = append(out, e)
		}
	}
	return out
}

func (f booting) state(id string) registry.State {
	f.t.Helper()
	g, err := f.Get(f.ctx, id)
	if err != nil {
		f.t.Fatal(err)
	}
	return g.State
}

func (f booting) boot(m boot.Measurement) (registry.State, registry.Boot) {
	f.t.Helper()
	if err := f.Measured(f.ctx, "gw-1", m); err != nil {
		f.t.Fatal(err)
	}
	b, err := f.Boot(f.ctx, "gw-1")
	if err != nil {
		f.t.Fatal(err)
	}
	return f.state("gw-1"), b
}

func (f booting) policy(gateway string, mode boot.Mode, after int) {
	f.t.Helper()
	if err := f.SetBootPolicy(f.ctx, operator, "peer", gateway, &boot.Policy{Mode: mode, PCRs: boot.DefaultPCRs, After: after}); err != nil {
		f.t.Fatal(err)
	}
}

func TestLearnThenLock(t *testing.T) {
	f := setupBoot(t)
	if state, b := f.boot(booted("grub", "linux")); state != registry.Active || b.State != boot.Unjudged || len(b.Measured.PCRs) != 8 {
		t.Fatalf("without a policy: %s %+v", state, b)
	}
	f.policy("", boot.Learn, 3)
	steps := []struct {
		m    boot.Measurement
		want boot.State
		seen int
	}{
		{boot.Measurement{Note: "none"}, boot.Learning, 0}, // a gateway that never quoted is not held to it
		{booted("grub", "linux"), boot.Learning, 1},
		{booted("grub", "linux"), boot.Learning, 2},
		{booted("grub", "linux 2"), boot.Learning, 1}, // others: the count begins anew
		{booted("grub", "linux 2"), boot.Learning, 2},
		{booted("grub", "linux 2"), boot.Matches, 3},
		{booted("grub", "linux 2"), boot.Matches, 3},
	}
	for i, s := range steps {
		state, b := f.boot(s.m)
		seen := 0
		if b.Baseline != nil {
			seen = b.Baseline.Seen
		}
		if state != registry.Active || b.State != s.want || seen != s.seen {
			t.Fatalf("step %d: %s, %s after %d; expected %s after %d", i, state, b.State, seen, s.want, s.seen)
		}
	}
	if n := len(f.events(audit.BootLocked)); n != 1 {
		t.Errorf("%d events of the lock", n)
	}
	revision := f.revision(t)
	state, b := f.boot(booted("grub", "implant", "linux 2"))
	if state != registry.Quarantined || b.State != boot.Differs || b.Held == nil || f.revision(t) == revision {
		t.Fatalf("another boot: %s %+v, revision %d", state, b, f.revision(t))
	}
	events := f.events(audit.GatewayQuarantined)
	if len(events) != 1 || events[0].Detail["pcr"] != "4" || events[0].Detail["entry"] != `entry 6, EV_EFI_BOOT_SERVICES_APPLICATION "implant"` ||
		events[0].Detail["known_entry"] != `entry 6, EV_EFI_BOOT_SERVICES_APPLICATION "linux 2"` {
		t.Errorf("%+v", events)
	}
	// It is admitted, and marked; attested again it is no news; booted as it was it stays where it is.
	if a, err := f.AdmitKey(f.ctx, "gw-1", keyOf("gw-1")); err != nil || !a.Quarantined || a.Lanes == 0 {
		t.Fatalf("a session of it: %+v, %v", a, err)
	}
	if a, err := f.Admit(f.ctx, "gw-1"); err != nil || !a.Quarantined || a.Lanes == 0 {
		t.Errorf("%+v %v", a, err)
	}
	if _, err := f.ByEK(f.ctx, ek("one")); err != nil {
		t.Errorf("it may not renew: %v", err)
	}
	f.boot(booted("grub", "implant", "linux 2"))
	if n := len(f.events(audit.GatewayQuarantined)); n != 1 {
		t.Errorf("%d events of one boot", n)
	}
	if state, b := f.boot(booted("grub", "linux 2")); state != registry.Quarantined || b.State != boot.Matches {
		t.Errorf("a known boot releases: %s", state)
	}
}

func TestReadmit(t *testing.T) {
	f := setupBoot(t)
	readmit := func(accept bool) error {
		_, err := f.Readmit(f.ctx, operator, "peer", "gw-1", "looked at it", accept)
		return err
	}
	refused := func(what string, err error, words string) {
		t.Helper()
		if !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.policy("gw-1", boot.Learn, 1)
	f.boot(booted("grub"))
	refused("not in quarantine", readmit(false), "not in quarantine")
	f.boot(booted("other"))
	refused("unknown still", readmit(false), "--accept")
	f.boot(booted("grub"))
	if err := readmit(true); err != nil || f.state("gw-1") != registry.Active {
		t.Errorf("booted as it was: %v", err)
	}
	if e := f.events(audit.GatewayReadmitted); len(e) != 1 || e[0].Detail["accepted"] != "false" || e[0].Reason != "looked at it" || e[0].Detail["pcr"] != "4" {
		t.Errorf("%+v", e)
	}
	f.boot(booted("grub 2"))
	if err := readmit(true); err != nil {
		t.Fatal(err)
	}
	if state, b := f.boot(booted("grub 2")); state != registry.Active || b.State != boot.Matches {
		t.Errorf("what was accepted: %s %s", state, b.State)
	}
	f.boot(boot.Measurement{Note: "the gateway sent no quote"})
	if f.state("gw-1") != registry.Quarantined {
		t.Error("a gateway that quotes no more is not held")
	}
	refused("no quote", readmit(true), "boot policy off")
	f.policy("gw-1", boot.Off, 1)
	if err := readmit(false); err != nil || f.state("gw-1") != registry.Active {
		t.Errorf("without a policy: %v", err)
	}
	if err := f.AllowBoot(f.ctx, operator, "peer", "r1", "", booted("grub")); err != nil {
		t.Fatal(err)
	}
	f.policy("gw-1", boot.Allow, 1)
	if state, b := f.boot(booted("grub")); state != registry.Active || b.Matched != "r1" {
		t.Errorf("an allowed release: %s %+v", state, b)
	}
	f.boot(booted("grub 2"))
	refused("not allowed", readmit(true), "wardlink boot allow RELEASE --from gw-1")
	if err := f.AllowBoot(f.ctx, operator, "peer", "r2", "gw-1", boot.Measurement{}); err != nil {
		t.Fatal(err)
	}
	refused("a name twice", f.AllowBoot(f.ctx, operator, "peer", "r2", "gw-1", boot.Measurement{}), "withdraw")
	if err := readmit(false); err != nil {
		t.Error(err)
	}
	if err := f.WithdrawBoot(f.ctx, operator, "peer", "r2", "recalled"); err != nil {
		t.Fatal(err)
	}
	if err := f.WithdrawBoot(f.ctx, operator, "peer", "r2", "recalled"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("withdrawn twice: %v", err)
	}
	f.clock = f.clock.Add(2 * time.Hour)
	if state, b := f.boot(booted("grub 2")); state != registry.Quarantined || b.Held.Mismatch.Nearest != "r1" {
		t.Errorf("a release that was withdrawn: %s %+v", state, b.Held)
	}
}

// Other holds hide a quarantine and do not end it; another board does.
func TestQuarantineOutlastsOtherHolds(t *testing.T) {
	f := setupBoot(t)
	f.policy("", boot.Learn, 1)
	f.boot(booted("grub"))
	f.boot(booted("other"))
	if _, err := f.Resume(f.ctx, operator, "peer", "gw-1", "r"); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "readmit") {
		t.Errorf("resumed out of quarantine: %v", err)
	}
	if _, _, err := f.Suspend(f.ctx, operator, "peer", "gw-1", "r"); err != nil || f.state("gw-1") != registry.Suspended {
		t.Fatalf("suspend: %v", err)
	}
	if _, err := f.Admit(f.ctx, "gw-1"); !errors.Is(err, registry.ErrNotActive) {
		t.Errorf("suspended, and admitted: %v", err)
	}
	if _, err := f.Resume(f.ctx, operator, "peer", "gw-1", "r"); err != nil || f.state("gw-1") != registry.Quarantined {
		t.Errorf("resumed: %v, %s", err, f.state("gw-1"))
	}
	if _, _, err := f.Revoke(f.ctx, operator, "peer", "gw-1", "r"); err != nil {
		t.Fatal(err)
	}
	if held, err := f.Quarantines(f.ctx); err != nil || len(held) != 1 || held["gw-1"].Mismatch.PCR != 4 {
		t.Errorf("revoked: %v %v", held, err)
	}
	if _, err := f.Resume(f.ctx, operator, "peer", "gw-1", "a mistake"); err != nil || f.state("gw-1") != registry.Quarantined {
		t.Errorf("revocation taken back: %v, %s", err, f.state("gw-1"))
	}
	board := ek("two")
	if _, err := f.Replace(f.ctx, operator, "peer", "gw-1", "r", []string{boot.Digest(board).String()}); err != nil || f.state("gw-1") != registry.Active {
		t.Errorf("another board: %v, %s", err, f.state("gw-1"))
	}
	if b, err := f.Boot(f.ctx, "gw-1"); err != nil || b.Held != nil || b.Baseline != nil || b.State != "" {
		t.Errorf("the former board's boots: %+v %v", b, err)
	}
}

// An ingest node sees who is in quarantine by the state alone: it may read nothing of why.
func TestPolicies(t *testing.T) {
	f := setupBoot(t)
	f.policy("", boot.Allow, 1)
	f.policy("gw-1", boot.Off, 2)
	b, err := f.Boot(f.ctx, "gw-1")
	if err != nil || !b.Own || b.Policy.Mode != boot.Off {
		t.Errorf("its own: %+v %v", b, err)
	}
	if err := f.SetBootPolicy(f.ctx, operator, "peer", "gw-1", nil); err != nil {
		t.Fatal(err)
	}
	if b, err = f.Boot(f.ctx, "gw-1"); err != nil || b.Own || b.Policy.Mode != boot.Allow {
		t.Errorf("that of all: %+v %v", b, err)
	}
	if state, b := f.boot(booted("grub")); state != registry.Quarantined || b.Held.Mismatch.Why != "no values are allowed yet" {
		t.Errorf("nothing is allowed: %s %+v", state, b.Held)
	}
	for name, p := range map[string]boot.Policy{"a mode": {Mode: "on", PCRs: 1, After: 1}, "no PCR": {Mode: boot.Learn, After: 1},
		"PCR 24": {Mode: boot.Learn, PCRs: 1 << 24, After: 1}, "never": {Mode: boot.Learn, PCRs: 1}, "late": {Mode: boot.Learn, PCRs: 1, After: 101}} {
		if err := f.SetBootPolicy(f.ctx, operator, "peer", "", &p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for what, err := range map[string]error{
		"policy": f.SetBootPolicy(f.ctx, operator, "peer", "gw-9", nil), "lock": f.LockBoot(f.ctx, operator, "peer", "gw-9", false),
		"measured": f.Measured(f.ctx, "gw-9", booted("x")), "allow": f.AllowBoot(f.ctx, operator, "peer", "r", "gw-9", boot.Measurement{}),
	} {
		if !errors.Is(err, registry.ErrUnknown) {
			t.Errorf("%s of an unknown gateway: %v", what, err)
		}
	}
	if err := f.LockBoot(f.ctx, operator, "peer", "gw-1", false); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("nothing to lock: %v", err)
	}
	policies, releases, held, err := f.Boots(context.Background())
	if err != nil || len(policies) != 1 || len(releases) != 0 || len(held) != 1 {
		t.Errorf("%v %v %v %v", policies, releases, held, err)
	}
}

func TestLockByHandAndLearnAnew(t *testing.T) {
	f := setupBoot(t)
	f.policy("", boot.Learn, 50)
	f.boot(booted("grub"))
	if err := f.LockBoot(f.ctx, operator, "peer", "gw-1", false); err != nil {
		t.Fatal(err)
	}
	if err := f.LockBoot(f.ctx, operator, "peer", "gw-1", false); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("locked twice: %v", err)
	}
	if err := f.LockBoot(f.ctx, operator, "peer", "gw-1", true); err != nil {
		t.Fatal(err)
	}
	if state, b := f.boot(booted("grub 2")); state != registry.Active || b.State != boot.Learning || b.Baseline.Seen != 1 {
		t.Errorf("after an update that was announced: %s %+v", state, b)
	}
	// One that quotes less than the policy wants is not locked by itself: it would be held at once.
	f.policy("", boot.Learn, 1)
	short := booted("grub")
	delete(short.PCRs, 7)
	if state, b := f.boot(short); state != registry.Active || b.State != boot.Learning {
		t.Errorf("%s %+v", state, b)
	}
}
