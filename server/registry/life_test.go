package registry_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/server/journal"
	"wardlink/server/registry"
)

func one(t *testing.T) *fixture {
	t.Helper()
	f := setup(t, 0)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one"), gateway("gw-2", "two")}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) ward(t *testing.T, at time.Time) string {
	t.Helper()
	wards, err := f.Wards(f.ctx, "gw-1")
	if err != nil {
		t.Fatal(err)
	}
	return wards.At(at)
}

// TestMoveKeepsTheOldWardOfOldData: now, in the past, in the future; later moves are dropped by an earlier one.
func TestMoveKeepsTheOldWardOfOldData(t *testing.T) {
	f := one(t)
	start := f.clock
	f.clock = f.clock.Add(48 * time.Hour)
	rev := f.revision(t)
	m, err := f.Move(f.ctx, operator, "", "gw-1", "ICU 4", start.Add(24*time.Hour))
	if err != nil || m.Before != "ICU 2" || m.Already || len(m.Replaced) != 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	if f.revision(t) == rev {
		t.Error("no node would look")
	}
	for at, want := range map[time.Time]string{
		time.UnixMilli(1): "ICU 2", start.Add(24*time.Hour - time.Millisecond): "ICU 2", start.Add(24 * time.Hour): "ICU 4", f.clock.Add(time.Hour): "ICU 4",
	} {
		if got := f.ward(t, at); got != want {
			t.Errorf("at %s: %q, expected %q", at, got, want)
		}
	}
	future := f.clock.Add(72 * time.Hour)
	if _, err := f.Move(f.ctx, operator, "", "gw-1", "ER", future); err != nil {
		t.Fatal(err)
	}
	g, err := f.Get(f.ctx, "gw-1")
	if err != nil || g.Ward != "ICU 4" {
		t.Errorf("before a planned move: %+v, %v", g, err)
	}
	if p, err := f.Planned(f.ctx); err != nil || len(p) != 1 || p["gw-1"].Name != "ER" || !p["gw-1"].Since.Equal(future) {
		t.Errorf("planned: %+v, %v", p, err)
	}
	f.clock = future
	if list, err := f.List(f.ctx); err != nil || list[0].Ward != "ER" || list[1].Ward != "ICU 2" {
		t.Errorf("its time has come: %+v, %v", list, err)
	}
	// An earlier move until further notice drops the later one.
	if m, err = f.Move(f.ctx, operator, "", "gw-1", "ICU 5", future.Add(-time.Hour)); err != nil || m.Before != "ICU 4" || len(m.Replaced) != 1 || m.Replaced[0].Name != "ER" {
		t.Errorf("%+v, %v", m, err)
	}
	if got := f.ward(t, future.Add(time.Hour)); got != "ICU 5" {
		t.Errorf("%q", got)
	}
	rev = f.revision(t)
	if m, err = f.Move(f.ctx, operator, "", "gw-1", "ICU 5", time.Time{}); err != nil || !m.Already || f.revision(t) != rev {
		t.Errorf("again: %+v, %v", m, err)
	}
	for _, bad := range []struct {
		ward string
		from time.Time
	}{{"", f.clock}, {"a\nb", f.clock}, {strings.Repeat("w", 101), f.clock}, {"x", f.clock.Add(-32 * 24 * time.Hour)}, {"x", f.clock.Add(367 * 24 * time.Hour)}} {
		if _, err := f.Move(f.ctx, operator, "", "gw-1", bad.ward, bad.from); err == nil {
			t.Errorf("moved to %.20q from %s", bad.ward, bad.from)
		}
	}
	if _, err := f.Move(f.ctx, operator, "", "gw-9", "x", time.Time{}); !errors.Is(err, registry.ErrUnknown) {
		t.Error(err)
	}
	events := f.journal.Events(t)
	if first := events[2]; first.Type != audit.GatewayMoved || first.Detail["before"] != "ICU 2" || first.Detail["ward"] != "ICU 4" || first.Detail["from"] == "" {
		t.Errorf("%+v", first)
	}
	if len(events) != 6 {
		t.Errorf("%d events", len(events))
	}
}

func TestSuspendAndResume(t *testing.T) {
	f := one(t)
	f.certify(t, "gw-1", 24*time.Hour)
	h, again, err := f.Suspend(f.ctx, operator, "", "gw-1", "looked at")
	if err != nil || again || h.By != operator.ID || f.told != 2 {
		t.Fatalf("%+v, %t, %v, told %d", h, again, err, f.told)
	}
	var held *registry.HeldError
	if _, err := f.AdmitKey(f.ctx, "gw-1", keyOf("gw-1")); !errors.As(err, &held) || !errors.Is(err, registry.ErrNotActive) || held.State != registry.Suspended || held.Reason != "looked at" {
		t.Errorf("admitted: %v", err)
	}
	if g, err := f.ByEK(f.ctx, ek("one")); !errors.As(err, &held) || g.ID != "gw-1" {
		t.Errorf("by its EK: %v", err)
	}
	if err := f.AddKey(f.ctx, keyFor("gw-1", "one", f.clock)); !errors.As(err, &held) {
		t.Errorf("a certificate slipped past: %v", err)
	}
	if cut, err := f.CutOff(f.ctx); err != nil || !slices.Equal(cut, []registry.CutOff{{Gateway: "gw-1", State: registry.Suspended}}) {
		t.Errorf("%v, %v", cut, err)
	}
	if second, again, err := f.Suspend(f.ctx, operator, "", "gw-1", "other"); err != nil || !again || second.Reason != "looked at" {
		t.Errorf("again: %+v, %t, %v", second, again, err)
	}
	if res, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one")}); err != nil || res[0].Outcome != "suspended" || !strings.Contains(res[0].Reason, "resume") {
		t.Errorf("imported: %+v, %v", res, err)
	}
	if was, err := f.Resume(f.ctx, operator, "", "gw-1", ""); err != nil || was != registry.Suspended {
		t.Errorf("%s, %v", was, err)
	}
	if _, err := f.AdmitKey(f.ctx, "gw-1", keyOf("gw-1")); err != nil {
		t.Error(err)
	}
	if was, err := f.Resume(f.ctx, operator, "", "gw-1", ""); err != nil || was != registry.Active {
		t.Errorf("%s, %v", was, err)
	}
	if g, err := f.Get(f.ctx, "gw-1"); err != nil || g.Hold != nil || g.State != registry.Active {
		t.Errorf("%+v, %v", g, err)
	}
}

// TestResumeTakesARevocationBack: for a reason, and the suspension before it with it; what was stands in the event.
func TestResumeTakesARevocationBack(t *testing.T) {
	f := one(t)
	if _, _, err := f.Suspend(f.ctx, operator, "", "gw-1", "looked at"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Revoke(f.ctx, operator, "", "gw-1", "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Suspend(f.ctx, operator, "", "gw-1", "x"); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("a revoked gateway was suspended: %v", err)
	}
	if cut, err := f.CutOff(f.ctx); err != nil || !slices.Equal(cut, []registry.CutOff{{Gateway: "gw-1", State: registry.Revoked}}) {
		t.Errorf("%v, %v", cut, err)
	}
	if _, err := f.Resume(f.ctx, operator, "", "gw-1", ""); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := f.Admit(f.ctx, "gw-1"); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("admitted: %v", err)
	}
	was, err := f.Resume(f.ctx, operator, "", "gw-1", "found again")
	if err != nil || was != registry.Revoked {
		t.Fatal(was, err)
	}
	if _, err := f.Admit(f.ctx, "gw-1"); err != nil {
		t.Error(err)
	}
	events := f.journal.Events(t)
	if ev := events[len(events)-1]; ev.Type != audit.GatewayResumed || ev.Reason != "found again" || ev.Detail["revoked_for"] != "stolen" || ev.Detail["suspended_for"] != "looked at" {
		t.Errorf("%+v", ev)
	}
	if cut, err := f.CutOff(f.ctx); err != nil || len(cut) != 0 {
		t.Errorf("%v, %v", cut, err)
	}
}

// TestSuspendWithoutAJournal: cutting off always works.
func TestSuspendWithoutAJournal(t *testing.T) {
	f := one(t)
	f.journal.Fail(func(journal.Entry) (error, bool) { return errors.New("disk full"), false })
	if _, _, err := f.Suspend(f.ctx, operator, "", "gw-1", "looked at"); !errors.Is(err, registry.ErrLate) {
		t.Errorf("%v", err)
	}
	if _, err := f.Admit(f.ctx, "gw-1"); !errors.Is(err, registry.ErrNotActive) {
		t.Errorf("admitted: %v", err)
	}
	f.journal.Fail(nil)
	if err := f.outbox.Flush(f.ctx); err != nil {
		t.Fatal(err)
	}
	if got := f.journal.Lines(t); got[len(got)-1] != "gateway.suspended gw-1 success" {
		t.Errorf("%q", got)
	}
}

func keyOf(id string) [32]byte { return sha256.Sum256([]byte("key of " + id)) }

func keyFor(id, board string, now time.Time) registry.Key {
	public := []byte("key of " + id + " on " + board)
	return registry.Key{Gateway: id, EK: ek(board), SPKI: sha256.Sum256(public), Public: public, Serial: id + board, NotBefore: now, NotAfter: now.Add(24 * time.Hour)}
}

// TestReplace: the new board is the gateway; the old one is nobody for ever, and what it signed is still verified.
func TestReplace(t *testing.T) {
	f := one(t)
	f.certify(t, "gw-1", time.Hour, 24*time.Hour)
	if err := f.Wait(f.ctx, registry.Waiting{EK: ek("new"), Manufacturer: "m", Model: "m"}); err != nil {
		t.Fatal(err)
	}
	hash := func(s string) string { h := ek(s); return hex.EncodeToString(h[:]) }
	for what, boards := range map[string][]string{
		"nobody waits": {"AAAA-BBBB-CCCC-DDDD"}, "another's": {hash("two")}, "its own": {hash("one")}, "twice": {hash("x"), hash("x")}, "no name": {"new board"}, "none": nil,
	} {
		if _, err := f.Replace(f.ctx, operator, "", "gw-1", "broken", boards); err == nil {
			t.Errorf("%s: replaced", what)
		}
	}
	if g, err := f.Get(f.ctx, "gw-1"); err != nil || !slices.Equal(g.EKs, [][32]byte{ek("one")}) {
		t.Fatalf("a refusal changed it: %+v, %v", g, err)
	}
	told := f.told
	out, err := f.Replace(f.ctx, operator, "", "gw-1", "broken", []string{enroll.Fingerprint(ek("new")), hash("new ecc")})
	if err != nil || len(out.Old) != 1 || len(out.New) != 2 || len(out.Serials) != 2 || f.told != told+1 {
		t.Fatalf("%+v, %v", out, err)
	}
	var retired *registry.RetiredError
	if g, err := f.ByEK(f.ctx, ek("one")); !errors.As(err, &retired) || !errors.Is(err, registry.ErrNotActive) || g.ID != "gw-1" || retired.Reason != "broken" {
		t.Errorf("the old board: %+v, %v", g, err)
	}
	if g, err := f.ByEK(f.ctx, ek("new ecc")); err != nil || g.ID != "gw-1" || g.Ward != "ICU 2" {
		t.Errorf("the new board: %+v, %v", g, err)
	}
	if _, err := f.AdmitKey(f.ctx, "gw-1", keyOf("gw-1")); !errors.As(err, &retired) {
		t.Errorf("the old board's certificate is admitted: %v", err)
	}
	if err := f.AddKey(f.ctx, keyFor("gw-1", "one", f.clock)); !errors.Is(err, registry.ErrNotActive) {
		t.Errorf("a certificate of the old board slipped past: %v", err)
	}
	fresh := keyFor("gw-1", "new", f.clock)
	if err := f.AddKey(f.ctx, fresh); err != nil {
		t.Fatal(err)
	}
	if _, err := f.AdmitKey(f.ctx, "gw-1", fresh.SPKI); err != nil {
		t.Errorf("the new board's certificate: %v", err)
	}
	if k, err := f.KeyBySPKI(f.ctx, keyOf("gw-1")); err != nil || k.Gateway != "gw-1" {
		t.Errorf("what the old board sealed can no longer be verified: %v", err)
	}
	cut, err := f.CutOff(f.ctx)
	if err != nil || !slices.Equal(cut, []registry.CutOff{{Gateway: "gw-1", Key: keyOf("gw-1")}}) {
		t.Errorf("%v, %v", cut, err)
	}
	f.clock = f.clock.Add(25 * time.Hour)
	if cut, err := f.CutOff(f.ctx); err != nil || len(cut) != 0 {
		t.Errorf("a key without a certificate stays in the list: %v, %v", cut, err)
	}
	if w, err := f.Waiting(f.ctx); err != nil || len(w) != 0 {
		t.Errorf("still waiting: %v, %v", w, err)
	}

	// Never again: not by waiting, not by a manifest, under its own id or another, not back into its own gateway.
	if err := f.Wait(f.ctx, registry.Waiting{EK: ek("one")}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("it waits to be admitted anew: %v", err)
	}
	res, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-7", "one"), gateway("gw-1", "one"), gateway("gw-8", "eight", "one")})
	if err != nil || len(outcomes(res)) != 3 || slices.ContainsFunc(res, func(r registry.ImportResult) bool {
		return r.Outcome != registry.Conflict || !strings.Contains(r.Reason, "replaced")
	}) {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := f.Replace(f.ctx, operator, "", "gw-2", "x", []string{hash("one")}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("it became another gateway's board: %v", err)
	}
	if eks, err := f.Retired(f.ctx, "gw-1"); err != nil || !slices.Equal(eks, [][32]byte{ek("one")}) {
		t.Errorf("%v, %v", eks, err)
	}
	lines := f.journal.Lines(t)
	if !slices.Contains(lines, "gateway.replaced gw-1 success") || !slices.Contains(lines, "gateway.imported gw-7 denied") {
		t.Errorf("%q", lines)
	}
}

// TestClearedTPM: another attestation key under the same endorsement key is an event, once, and changes nothing else.
func TestClearedTPM(t *testing.T) {
	f := one(t)
	count := func() (n int) {
		for _, ev := range f.journal.Events(t) {
			if ev.Type == audit.TPMCleared && ev.Target == "gw-1" {
				n++
			}
		}
		return n
	}
	for i, step := range []struct {
		ak   string
		want int
	}{{"first", 0}, {"first", 0}, {"second", 1}, {"second", 1}, {"third", 2}} {
		if err := f.Attested(f.ctx, "gw-1", ek("one"), []byte(step.ak), ""); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != step.want {
			t.Errorf("step %d: %d events, expected %d", i, n, step.want)
		}
	}
	if err := f.Attested(f.ctx, "gw-2", ek("two"), []byte("first"), ""); err != nil || count() != 2 {
		t.Errorf("another TPM's first key is no clearing: %v", err)
	}
	if err := f.Attested(f.ctx, "gw-1", ek("one"), nil, ""); err == nil {
		t.Error("no key was taken for one")
	}
}
