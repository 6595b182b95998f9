package registry_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/registry"
)

// certify gives the gateway a key and certificates that end after the given lives.
func (f *fixture) certify(t *testing.T, id string, lives ...time.Duration) {
	t.Helper()
	public := []byte("key of " + id)
	g, err := f.Get(f.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	for i, life := range lives {
		k := registry.Key{Gateway: id, EK: g.EKs[0], SPKI: sha256.Sum256(public), Public: public, Serial: fmt.Sprintf("%s-%d", id, i), NotBefore: f.clock, NotAfter: f.clock.Add(life)}
		if err := f.AddKey(f.ctx, k); err != nil {
			t.Fatal(err)
		}
		f.clock = f.clock.Add(time.Second)
	}
}

func TestRevoke(t *testing.T) {
	f := setup(t, 0)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one"), gateway("gw-2", "two")}); err != nil {
		t.Fatal(err)
	}
	f.certify(t, "gw-1", time.Second, time.Hour, 24*time.Hour)
	f.certify(t, "gw-2", time.Hour)
	before := f.revision(t)
	for _, reason := range []string{"", "  ", "two\nlines", strings.Repeat("x", 201), "\xff"} {
		if _, _, err := f.Revoke(f.ctx, operator, "", "gw-1", reason); err == nil {
			t.Errorf("revoked for %.20q", reason)
		}
	}
	if _, _, err := f.Revoke(f.ctx, operator, "", "gw-9", "stolen"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("an unknown gateway: %v", err)
	}
	if f.revision(t) != before {
		t.Error("what revoked nobody raised the revision")
	}
	rev, again, err := f.Revoke(f.ctx, operator, "10.0.0.1:1", "gw-1", "stolen")
	if err != nil || again || rev.By != operator.ID || rev.Reason != "stolen" || !slices.Equal(rev.Serials, []string{"gw-1-2", "gw-1-1"}) {
		t.Fatalf("%+v, %t, %v", rev, again, err)
	}
	if f.revision(t) <= before {
		t.Error("the revision did not grow: no node would look")
	}
	f.refuses(t)
	if a, err := f.Admit(f.ctx, "gw-2"); err != nil || a.Lanes == 0 {
		t.Errorf("another gateway: %v", err)
	}
	// The history of its keys stays: what it sealed before is still verified.
	if k, err := f.KeyBySPKI(f.ctx, sha256.Sum256([]byte("key of gw-1"))); err != nil || k.Gateway != "gw-1" {
		t.Error(k, err)
	}
	// Again, by another operator and much later: the first revocation stands.
	f.clock = f.clock.Add(48 * time.Hour)
	second, again, err := f.Revoke(f.ctx, audit.Actor{ID: "spiffe://ward.example/operator/bob"}, "", "gw-1", "broken")
	if err != nil || !again || second.By != operator.ID || second.Reason != "stolen" || !second.At.Equal(rev.At) {
		t.Errorf("again: %+v, %t, %v", second, again, err)
	}
	if res, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one")}); err != nil || res[0].Outcome != "revoked" || !strings.Contains(res[0].Reason, "stolen") {
		t.Errorf("imported again: %v %v", res, err)
	}
	f.refuses(t)
	if ids, err := f.CutOff(f.ctx); err != nil || !slices.Equal(ids, []registry.CutOff{{Gateway: "gw-1", State: registry.Revoked}}) {
		t.Errorf("revoked: %q, %v", ids, err)
	}
	list, err := f.List(f.ctx)
	if err != nil || len(list) != 2 || list[0].State != registry.Revoked || list[0].Revoked == nil || list[0].Revoked.By != operator.ID || list[1].Revoked != nil {
		t.Errorf("list: %+v, %v", list, err)
	}
	events := f.journal.Events(t)
	first, repeat := events[len(events)-2], events[len(events)-1]
	if first.Type != audit.GatewayRevoked || first.Actor != operator || first.Target != "gw-1" || first.Reason != "stolen" || first.Detail["serials"] != "gw-1-2 gw-1-1" {
		t.Errorf("event: %+v", first)
	}
	if repeat.Type != audit.GatewayRevoked || repeat.Detail["revoked_already"] == "" || repeat.Detail["serials"] != "" {
		t.Errorf("event of the repeat: %+v", repeat)
	}
}

// refuses asks the registry for gw-1 in every way there is.
func (f *fixture) refuses(t *testing.T) {
	t.Helper()
	var revoked *registry.RevokedError
	_, err := f.Admit(f.ctx, "gw-1")
	if !errors.As(err, &revoked) || !errors.Is(err, registry.ErrNotActive) || !errors.Is(err, registry.ErrRevoked) || revoked.Reason != "stolen" {
		t.Errorf("admitted: %v", err)
	}
	if g, err := f.ByEK(f.ctx, ek("one")); !errors.Is(err, registry.ErrRevoked) || g.ID != "gw-1" {
		t.Errorf("by its EK: %s, %v", g.ID, err)
	}
	public := []byte("key of gw-1")
	renewed := registry.Key{Gateway: "gw-1", EK: ek("one"), SPKI: sha256.Sum256(public), Public: public, Serial: "gw-1-9", NotBefore: f.clock, NotAfter: f.clock.Add(time.Hour)}
	if err := f.AddKey(f.ctx, renewed); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("a certificate slipped past: %v", err)
	}
	if err := f.Wait(f.ctx, registry.Waiting{EK: ek("one")}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("its TPM waits to be admitted anew: %v", err)
	}
}

// TestRevokeWithoutAJournal: the revocation stands and everybody is told to look, and the event follows.
func TestRevokeWithoutAJournal(t *testing.T) {
	f := setup(t, 0)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one")}); err != nil {
		t.Fatal(err)
	}
	f.journal.Fail(func(journal.Entry) (error, bool) { return errors.New("disk full"), false })
	f.told = 0
	rev, _, err := f.Revoke(f.ctx, operator, "", "gw-1", "stolen")
	if !errors.Is(err, registry.ErrLate) || rev.Reason != "stolen" || f.told != 1 {
		t.Fatalf("%+v, %v, told %d times", rev, err, f.told)
	}
	f.refuses(t)
	f.journal.Fail(nil)
	if err := f.outbox.Flush(f.ctx); err != nil {
		t.Fatal(err)
	}
	if got := f.journal.Lines(t); !slices.Equal(got, []string{"gateway.imported gw-1 success", "gateway.revoked gw-1 success"}) {
		t.Errorf("events %q", got)
	}
}

// TestRevokeWithAJournalThatHangs: a disk that does not answer must not hold a revocation either.
func TestRevokeWithAJournalThatHangs(t *testing.T) {
	f := setup(t, 0)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one")}); err != nil {
		t.Fatal(err)
	}
	answer := make(chan struct{})
	f.journal.Fail(func(journal.Entry) (error, bool) { <-answer; return nil, true })
	_, _, err := f.Revoke(f.ctx, operator, "", "gw-1", "stolen")
	if !errors.Is(err, registry.ErrLate) {
		t.Errorf("%v; expected to be told that the event is late", err)
	}
	if _, err := f.Admit(f.ctx, "gw-1"); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("admitted: %v", err)
	}
	close(answer)
	if err := f.outbox.Flush(f.ctx); err != nil { // waits for the one under way
		t.Fatal(err)
	}
	if got := f.journal.Lines(t); !slices.Equal(got, []string{"gateway.imported gw-1 success", "gateway.revoked gw-1 success"}) {
		t.Errorf("events %q", got)
	}
}
