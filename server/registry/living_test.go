package registry_test

import (
	"cmp"
	"database/sql"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"wardlink/enroll"
	"wardlink/server/boot"
	"wardlink/server/registry"
)

// acts are all that changes a gateway of the registry, but its end.
func (e *ending) acts(t *testing.T) map[string]func() error {
	t.Helper()
	hash := ek("another board")
	waits := ek("waits")
	if err := e.Wait(e.ctx, registry.Waiting{EK: waits}); err != nil {
		t.Fatal(err)
	}
	return map[string]func() error{
		"revoke":  func() error { _, _, err := e.Revoke(e.ctx, operator, "", "gw-1", "x"); return err },
		"suspend": func() error { _, _, err := e.Suspend(e.ctx, operator, "", "gw-1", "x"); return err },
		"resume":  func() error { _, err := e.Resume(e.ctx, operator, "", "gw-1", "x"); return err },
		"move":    func() error { _, err := e.Move(e.ctx, operator, "", "gw-1", "ER", time.Time{}); return err },
		"replace": func() error {
			_, err := e.Replace(e.ctx, operator, "", "gw-1", "x", []string{hex.EncodeToString(hash[:])})
			return err
		},
		"profile": func() error {
			_, err := e.GiveProfile(e.ctx, operator, "", "gw-1", registry.DefaultProfile, false)
			return err
		},
		"window": func() error {
			until := e.clock.Add(time.Hour)
			_, _, err := e.SetWindow(e.ctx, operator, "", "gw-1", registry.WindowChange{Until: &until})
			return err
		},
		"code": func() error { _, _, err := e.MakeCode(e.ctx, operator, "", "gw-1", time.Hour); return err },
		"boot policy": func() error {
			return e.SetBootPolicy(e.ctx, operator, "", "gw-1", &boot.Policy{Mode: boot.Off, PCRs: boot.DefaultPCRs, After: 1})
		},
		"no policy":     func() error { return e.SetBootPolicy(e.ctx, operator, "", "gw-1", nil) },
		"lock boot":     func() error { return e.LockBoot(e.ctx, operator, "", "gw-1", false) },
		"learn anew":    func() error { return e.LockBoot(e.ctx, operator, "", "gw-1", true) },
		"readmit":       func() error { _, err := e.Readmit(e.ctx, operator, "", "gw-1", "x", false); return err },
		"approve":       func() error { return e.Approve(e.ctx, operator, "", enroll.Fingerprint(waits), gateway("gw-1")) },
		"a certificate": func() error { return e.AddKey(e.ctx, keyFor("gw-1", "one", e.clock)) },
	}
}

// TestTheEndIsForEver: nothing that an operator can do to a gateway changes one that is decommissioned, and its TPM gets nothing.
func TestTheEndIsForEver(t *testing.T) {
	e := newEnding(t)
	if _, _, err := e.Decommission(e.ctx, operator, "", "gw-1", "ward closed", false, e.sign); err != nil {
		t.Fatal(err)
	}
	acts := e.acts(t)
	events, revision := e.journal.Lines(t), e.revision(t)
	for _, name := range slices.Sorted(maps.Keys(acts)) {
		if err := acts[name](); !errors.Is(err, registry.ErrConflict) && !errors.Is(err, registry.ErrNotActive) {
			t.Errorf("%s: %v", name, err)
		}
		g, err := e.Get(e.ctx, "gw-1")
		if err != nil || g.State != registry.Decommissioned || g.Hold == nil || g.Hold.Reason != "ward closed" || g.Ward != "ICU 2" || !g.NotAfter.IsZero() {
			t.Fatalf("after %s: %+v, %v", name, g, err)
		}
		var held *registry.HeldError
		if g, err := e.ByEK(e.ctx, ek("one")); !errors.As(err, &held) || held.State != registry.Decommissioned || g.ID != "gw-1" {
			t.Errorf("after %s its TPM is answered %+v, %v", name, g, err)
		}
	}
	if got := e.journal.Lines(t); len(got) != len(events) || e.revision(t) != revision {
		t.Errorf("what was refused left %q", got[len(events):])
	}
	// Neither as another gateway nor as one that waits.
	if err := e.Wait(e.ctx, registry.Waiting{EK: ek("one")}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("its TPM waits to be admitted: %v", err)
	}
}

// TestAFormerReleasesRevocationHidesNoEnd: a release before this one let a decommissioned gateway be revoked, and a resumption of that end the end.
func TestAFormerReleasesRevocationHidesNoEnd(t *testing.T) {
	e := newEnding(t)
	if _, _, err := e.Decommission(e.ctx, operator, "", "gw-1", "ward closed", false, e.sign); err != nil {
		t.Fatal(err)
	}
	write := func(query string) {
		t.Helper()
		if err := e.db.Write(e.ctx, func(tx *sql.Tx) error { _, err := tx.Exec(query); return err }); err != nil {
			t.Fatal(err)
		}
	}
	write("INSERT INTO revocations (gateway, at, actor, reason, serials) VALUES ('gw-1', 1, 'x', 'x', '')")
	if g, err := e.Get(e.ctx, "gw-1"); err != nil || g.State != registry.Decommissioned || g.Revoked != nil {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := e.Resume(e.ctx, operator, "", "gw-1", "x"); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("resumed: %v", err)
	}
	// It was resumed: it can be cut off, which no resumption takes back, and ended again.
	write("UPDATE gateways SET state = 'active' WHERE id = 'gw-1'")
	write("DELETE FROM revocations")
	if _, _, err := e.Revoke(e.ctx, operator, "", "gw-1", "x"); err != nil {
		t.Error(err)
	}
	if _, err := e.Resume(e.ctx, operator, "", "gw-1", "x"); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("resumed once more: %v", err)
	}
	if _, _, err := e.Decommission(e.ctx, operator, "", "gw-1", "ward closed", false, e.sign); err != nil {
		t.Error(err)
	}
	if g, err := e.Get(e.ctx, "gw-1"); err != nil || g.State != registry.Decommissioned {
		t.Errorf("%+v, %v", g, err)
	}
}

// TestWhatIsCutOffStaysSo: of all acts only a resumption, or for a revocation nothing less than that, lets a gateway that is cut off connect again.
func TestWhatIsCutOffStaysSo(t *testing.T) {
	for state, cut := range map[registry.State]func(e *ending) error{
		registry.Suspended: func(e *ending) error { _, _, err := e.Suspend(e.ctx, operator, "", "gw-1", "cut"); return err },
		registry.Revoked:   func(e *ending) error { _, _, err := e.Revoke(e.ctx, operator, "", "gw-1", "cut"); return err },
	} {
		t.Run(string(state), func(t *testing.T) {
			e := newEnding(t)
			// Quarantine is a state, too, and another act ends it.
			if err := cmp.Or(e.SetBootPolicy(e.ctx, operator, "", "gw-1", &boot.Policy{Mode: boot.Allow, PCRs: boot.DefaultPCRs, After: 1}), e.Measured(e.ctx, "gw-1", boot.Measurement{}), cut(e)); err != nil {
				t.Fatal(err)
			}
			acts := e.acts(t)
			for _, name := range slices.Sorted(maps.Keys(acts)) {
				if name == "resume" || name == "revoke" {
					continue
				}
				err := acts[name]()
				g, gerr := e.Get(e.ctx, "gw-1")
				if _, aerr := e.Admit(e.ctx, "gw-1"); gerr != nil || g.State != state || !errors.Is(aerr, registry.ErrNotActive) {
					t.Fatalf("after %s (%v) it is %s: %v, %v", name, err, g.State, gerr, aerr)
				}
			}
		})
	}
}
