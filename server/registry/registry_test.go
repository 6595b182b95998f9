package registry_test

import (
	"context"
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
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

type fixture struct {
	*registry.Registry
	journal *sqldbtest.Journal
	outbox  *sqldb.Outbox
	db      *sqldb.DB
	clock   time.Time
	told    int // of changes
	ctx     context.Context
}

var operator = audit.Actor{ID: "spiffe://ward.example/operator/ann", Serial: "0a"}

func setup(t *testing.T, maxWaiting int) *fixture {
	t.Helper()
	f := &fixture{journal: &sqldbtest.Journal{}, clock: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), ctx: context.Background()}
	db, _ := sqldbtest.New(t, append(registry.Migrations(), sqldb.OutboxMigrations()...)...)
	now := func() time.Time { return f.clock }
	outbox, err := sqldb.NewOutbox(db, f.journal, now)
	if err != nil {
		t.Fatal(err)
	}
	f.outbox, f.db = outbox, db
	if f.Registry, err = registry.New(registry.Config{DB: db, Outbox: outbox, Now: now, MaxWaiting: maxWaiting, Changed: func() { f.told++ }}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) revision(t *testing.T) int64 {
	t.Helper()
	rev, err := f.Revision(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func ek(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func gateway(id string, eks ...string) registry.Gateway {
	g := registry.Gateway{ID: id, Site: "North", Ward: "ICU 2"}
	for _, e := range eks {
		g.EKs = append(g.EKs, ek(e))
	}
	return g
}

func outcomes(results []registry.ImportResult) (out []string) {
	for _, r := range results {
		out = append(out, r.ID+" "+string(r.Outcome))
	}
	return out
}

func TestImportIsIdempotentAndReportsConflicts(t *testing.T) {
	f := setup(t, 0)
	manifest := func() []registry.Gateway {
		return []registry.Gateway{gateway("gw-1", "one", "one ecc"), gateway("gw-2", "two")}
	}
	before := f.revision(t)
	res, err := f.Import(f.ctx, operator, "10.0.0.1:1", manifest())
	if err != nil || !slices.Equal(outcomes(res), []string{"gw-1 added", "gw-2 added"}) {
		t.Fatal(res, err)
	}
	after := f.revision(t)
	if after <= before {
		t.Fatalf("revision %d -> %d", before, after)
	}
	if res, err = f.Import(f.ctx, operator, "10.0.0.1:1", manifest()); err != nil || !slices.Equal(outcomes(res), []string{"gw-1 unchanged", "gw-2 unchanged"}) {
		t.Fatal(res, err)
	}
	if f.revision(t) != after {
		t.Error("an import that changed nothing raised the revision")
	}
	moved := gateway("gw-2", "two")
	moved.Ward = "ICU 3"
	res, err = f.Import(f.ctx, operator, "10.0.0.1:1", []registry.Gateway{
		gateway("gw-3", "two"), gateway("gw-1", "one"), moved, gateway("gw-4", "four", "one"), gateway("gw-5", "five"),
	})
	want := []string{"gw-3 refused", "gw-1 refused", "gw-2 refused", "gw-4 refused", "gw-5 added"}
	if err != nil || !slices.Equal(outcomes(res), want) {
		t.Fatal(res, err)
	}
	if !strings.Contains(res[0].Reason, "belongs to gateway gw-2") {
		t.Error(res[0].Reason)
	}
	wantEvents := []string{
		"gateway.imported gw-1 success", "gateway.imported gw-2 success",
		"identity.conflict gw-2 denied", "gateway.imported gw-3 denied", "gateway.imported gw-1 denied", "gateway.imported gw-2 denied",
		"identity.conflict gw-1 denied", "gateway.imported gw-4 denied",
		"gateway.imported gw-5 success",
	}
	if got := f.journal.Lines(t); !slices.Equal(got, wantEvents) {
		t.Errorf("events %q", got)
	}
	list, err := f.List(f.ctx)
	if err != nil || len(list) != 3 || len(list[0].EKs) != 2 || list[0].Ward != "ICU 2" || list[2].ID != "gw-5" || list[0].State != registry.Active {
		t.Fatal(list, err)
	}
}

func TestByEKAndAdmit(t *testing.T) {
	f := setup(t, 0)
	g := gateway("gw-1", "one", "one ecc")
	g.NotBefore, g.NotAfter = f.clock.Add(-time.Hour), f.clock.Add(time.Hour)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{g}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []string{"one", "one ecc"} {
		if got, err := f.ByEK(f.ctx, ek(e)); err != nil || got.ID != "gw-1" {
			t.Fatal(got, err)
		}
	}
	if _, err := f.ByEK(f.ctx, ek("other")); !errors.Is(err, registry.ErrUnknown) {
		t.Fatal(err)
	}
	if a, err := f.Admit(f.ctx, "gw-1"); err != nil || a.Lanes != 0x0f || a.Gateway != "gw-1" {
		t.Fatal(a, err)
	}
	if _, err := f.Admit(f.ctx, "gw-9"); !errors.Is(err, registry.ErrUnknown) {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{-2 * time.Hour, 4 * time.Hour} {
		f.clock = f.clock.Add(d)
		if _, err := f.Admit(f.ctx, "gw-1"); !errors.Is(err, registry.ErrNotActive) {
			t.Errorf("admitted %v from its validity: %v", d, err)
		}
		if _, err := f.ByEK(f.ctx, ek("one")); !errors.Is(err, registry.ErrNotActive) {
			t.Error(err)
		}
	}
}

func TestWaitingAndApprove(t *testing.T) {
	f := setup(t, 0)
	w := registry.Waiting{EK: ek("new"), EKPublic: []byte("public"), Manufacturer: "STM\x1b[2J", Model: "ST33", Chain: true, Peer: "10.0.0.7:9"}
	for range 3 {
		if err := f.Wait(f.ctx, w); err != nil {
			t.Fatal(err)
		}
		f.clock = f.clock.Add(2 * time.Minute)
	}
	list, err := f.Waiting(f.ctx)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	got := list[0]
	if got.Fingerprint != enroll.Fingerprint(ek("new")) || got.Manufacturer != "STM?[2J" || !got.Chain || got.LastSeen.Sub(got.FirstSeen) != 4*time.Minute {
		t.Errorf("%+v", got)
	}
	before := f.revision(t)
	if err := f.Approve(f.ctx, operator, "", "AAAA-BBBB-CCCC-DDDD", gateway("gw-1")); !errors.Is(err, registry.ErrUnknown) {
		t.Fatal(err)
	}
	if err := f.Approve(f.ctx, operator, "", "gw-1", gateway("gw-1")); err == nil || !strings.Contains(err.Error(), "64 hex digits") {
		t.Fatal(err)
	}
	if err := f.Approve(f.ctx, operator, "", strings.ToLower(strings.ReplaceAll(got.Fingerprint, "-", "")), gateway("gw-1")); err != nil {
		t.Fatal(err)
	}
	if f.revision(t) <= before {
		t.Error("approval did not raise the revision")
	}
	if g, err := f.ByEK(f.ctx, ek("new")); err != nil || g.ID != "gw-1" || g.Ward != "ICU 2" {
		t.Fatal(g, err)
	}
	if list, err := f.Waiting(f.ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	if err := f.Wait(f.ctx, w); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("an entered TPM waits again: %v", err)
	}
	second := ek("second")
	if err := f.Wait(f.ctx, registry.Waiting{EK: second}); err != nil {
		t.Fatal(err)
	}
	if err := f.Approve(f.ctx, operator, "", hex.EncodeToString(second[:]), gateway("gw-1")); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("a second TPM took the id: %v", err)
	}
	want := []string{
		"gateway.waiting " + enroll.Fingerprint(ek("new")) + " success", "gateway.approved gw-1 success",
		"gateway.waiting " + enroll.Fingerprint(second) + " success",
	}
	if got := f.journal.Lines(t); !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
}

func TestWaitingIsBounded(t *testing.T) {
	f := setup(t, 3)
	for _, name := range []string{"a", "b", "c"} {
		f.clock = f.clock.Add(2 * time.Minute)
		if err := f.Wait(f.ctx, registry.Waiting{EK: ek(name)}); err != nil {
			t.Fatal(err)
		}
	}
	f.clock = f.clock.Add(2 * time.Minute)
	for _, name := range []string{"a", "d"} { // a is seen again, so b is the one not seen for longest
		if err := f.Wait(f.ctx, registry.Waiting{EK: ek(name)}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := f.Waiting(f.ctx)
	if err != nil || len(list) != 3 || slices.ContainsFunc(list, func(w registry.Waiting) bool { return w.EK == ek("b") }) {
		t.Fatal(list, err)
	}
	if n, err := f.WaitingDropped(f.ctx); err != nil || n != 1 {
		t.Fatal(n, err)
	}
}

func TestKeys(t *testing.T) {
	f := setup(t, 0)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one"), gateway("gw-2", "two")}); err != nil {
		t.Fatal(err)
	}
	public := []byte("a PKIX key")
	k := registry.Key{Gateway: "gw-1", EK: ek("one"), SPKI: sha256.Sum256(public), Public: public, Serial: "01", NotBefore: f.clock, NotAfter: f.clock.Add(24 * time.Hour)}
	for range 2 {
		if err := f.AddKey(f.ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	f.clock = f.clock.Add(12 * time.Hour)
	renewed := k
	renewed.Serial, renewed.NotAfter = "02", f.clock.Add(24*time.Hour)
	if err := f.AddKey(f.ctx, renewed); err != nil {
		t.Fatal(err)
	}
	got, err := f.KeyBySPKI(f.ctx, k.SPKI)
	if err != nil || got.Gateway != "gw-1" || got.Serial != "02" || string(got.Public) != string(public) || !got.NotAfter.Equal(renewed.NotAfter) {
		t.Fatal(got, err)
	}
	other := []byte("the key of a gateway set up anew")
	for _, tc := range []struct {
		spki    [32]byte
		gateway string
		serial  string
		want    bool
	}{
		{k.SPKI, "gw-1", "02", true}, {k.SPKI, "gw-1", "01", true}, {k.SPKI, "gw-1", "03", false}, {k.SPKI, "gw-2", "02", false}, {sha256.Sum256(other), "gw-1", "02", false},
	} {
		if got, err := f.HoldsNewest(f.ctx, tc.gateway, tc.spki, tc.serial); err != nil || got != tc.want {
			t.Errorf("%s %s: %t, %v", tc.gateway, tc.serial, got, err)
		}
	}
	f.clock = f.clock.Add(time.Hour)
	anew := registry.Key{Gateway: "gw-1", EK: ek("one"), SPKI: sha256.Sum256(other), Public: other, Serial: "09", NotBefore: f.clock, NotAfter: f.clock.Add(time.Hour)}
	if err := f.AddKey(f.ctx, anew); err != nil {
		t.Fatal(err)
	}
	if former, err := f.HoldsNewest(f.ctx, "gw-1", k.SPKI, "02"); err != nil || former {
		t.Errorf("a former key is the newest: %v", err)
	}
	if now, err := f.HoldsNewest(f.ctx, "gw-1", anew.SPKI, "09"); err != nil || !now {
		t.Errorf("the newest key is not: %v", err)
	}
	if _, err := f.KeyBySPKI(f.ctx, sha256.Sum256(nil)); !errors.Is(err, registry.ErrUnknown) {
		t.Fatal(err)
	}
	stolen, forged, nobody := k, k, k
	stolen.Gateway, stolen.EK, stolen.Serial = "gw-2", ek("two"), "03"
	forged.SPKI[0] ^= 1
	nobody.Gateway = "gw-3"
	if err := f.AddKey(f.ctx, stolen); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("one key under two gateways: %v", err)
	}
	if err := f.AddKey(f.ctx, forged); err == nil {
		t.Error("a hash that is not the key's was taken")
	}
	if err := f.AddKey(f.ctx, nobody); !errors.Is(err, registry.ErrUnknown) {
		t.Error(err)
	}
}

// The event waits in the same database as the change, so that it follows when the journal is back.
func TestChangeWhoseEventIsLate(t *testing.T) {
	f := setup(t, 0)
	f.journal.Fail(func(journal.Entry) (error, bool) { return errors.New("disk full"), false })
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one")}); err == nil || !strings.Contains(err.Error(), "not in the journal yet") {
		t.Fatal(err)
	}
	f.journal.Fail(nil)
	if res, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one")}); err != nil || res[0].Outcome != registry.Unchanged {
		t.Fatal(res, err)
	}
	if got := f.journal.Lines(t); !slices.Equal(got, []string{"gateway.imported gw-1 success"}) {
		t.Errorf("events %q", got)
	}
}

func TestImportRefusesWhatCannotBeAnID(t *testing.T) {
	f := setup(t, 0)
	long := gateway("gw-1", "one")
	long.Site = strings.Repeat("x", 101)
	profile := gateway("gw-1", "one")
	profile.Profile = "Every thing"
	for _, g := range []registry.Gateway{gateway("../etc", "one"), gateway("gw-1"), long, profile} {
		if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{g}); err == nil {
			t.Errorf("%+v was taken", g)
		}
	}
	if list, _ := f.List(f.ctx); len(list) != 0 {
		t.Error(list)
	}
}
