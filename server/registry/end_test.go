package registry_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll/wipe"
	"wardlink/server/journal"
	"wardlink/server/registry"
)

// ending is a fixture with a gateway whose device key is at hand.
type ending struct {
	*fixture
	config ed25519.PrivateKey
	device *ecdsa.PrivateKey
}

func newEnding(t *testing.T) *ending {
	t.Helper()
	e := &ending{fixture: one(t)}
	var err error
	if _, e.config, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if e.device, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&e.device.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.AddKey(e.ctx, registry.Key{Gateway: "gw-1", EK: ek("one"), SPKI: sha256.Sum256(der), Public: der, Serial: "01", NotBefore: e.clock, NotAfter: e.clock.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *ending) sign(o wipe.Order) ([]byte, error) { return wipe.Sign(o, e.config) }

func (e *ending) word(t *testing.T, gateway string, order []byte, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	hash := sha256.Sum256(order)
	doc, err := wipe.SignDone(wipe.Done{Gateway: gateway, Order: hash[:], At: 1, Waiting: 2}, key)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func actorOf(gateway string) audit.Actor {
	return audit.Actor{ID: "spiffe://ward.example/gateway/" + gateway}
}

// TestDrainThenDecommissioned: it stays active until its word comes; only its own word about this order counts, and once.
func TestDrainThenDecommissioned(t *testing.T) {
	e := newEnding(t)
	end, again, err := e.Decommission(e.ctx, operator, "", "gw-1", "ward closed", true, e.sign)
	if err != nil || again || !end.Drain {
		t.Fatalf("%+v, %t, %v", end, again, err)
	}
	if o, err := wipe.Verify(end.Order, e.config.Public().(ed25519.PublicKey), "gw-1", ek("one")); err != nil || !o.Drain || o.Reason != "ward closed" {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := e.Admit(e.ctx, "gw-1"); err != nil {
		t.Errorf("while it drains: %v", err)
	}
	if _, err := e.Replace(e.ctx, operator, "", "gw-1", "x", []string{"abababababababababababababababababababababababababababababababab"}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("replaced while it drains: %v", err)
	}
	if d, err := e.Draining(e.ctx); err != nil || len(d) != 1 || d["gw-1"].Reason != "ward closed" {
		t.Errorf("%+v, %v", d, err)
	}
	if second, again, err := e.Decommission(e.ctx, operator, "", "gw-1", "other", true, e.sign); err != nil || !again || second.Reason != "ward closed" {
		t.Errorf("again: %+v, %t, %v", second, again, err)
	}
	other, _, err := e.Decommission(e.ctx, operator, "", "gw-2", "ward closed", true, e.sign)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for what, word := range map[string][]byte{
		"a stranger's": e.word(t, "gw-1", end.Order, stranger), "about another order": e.word(t, "gw-1", []byte("x"), e.device),
		"in another's name": e.word(t, "gw-2", other.Order, e.device), "no word": []byte("x"), "nothing": nil,
	} {
		if err := e.Confirm(e.ctx, actorOf, "", word); !errors.Is(err, registry.ErrNotOrdered) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := e.Admit(e.ctx, "gw-1"); err != nil {
		t.Errorf("somebody else's word ended it: %v", err)
	}
	word := e.word(t, "gw-1", end.Order, e.device)
	for range 2 {
		if err := e.Confirm(e.ctx, actorOf, "10.0.0.1:1", word); err != nil {
			t.Fatal(err)
		}
	}
	var held *registry.HeldError
	if _, err := e.Admit(e.ctx, "gw-1"); !errors.As(err, &held) || held.State != registry.Decommissioned || held.Reason != "ward closed" {
		t.Errorf("admitted: %v", err)
	}
	if got, err := e.End(e.ctx, "gw-1"); err != nil || got.Done == nil || got.Done.Waiting != 2 || got.Confirmed.IsZero() || got.Word == (audit.EventID{}) {
		t.Errorf("%+v, %v", got, err)
	}
	var wiped []audit.Event
	for _, ev := range e.journal.Events(t) {
		if ev.Type == audit.GatewayWiped {
			wiped = append(wiped, ev)
		}
	}
	if len(wiped) != 1 || wiped[0].Actor != actorOf("gw-1") || wiped[0].Detail["ordered_by"] != operator.ID || wiped[0].Detail["word"] != base64.StdEncoding.EncodeToString(word) {
		t.Errorf("%+v", wiped)
	}
	if d, err := e.Draining(e.ctx); err != nil || len(d) != 1 || d["gw-2"].Reason != "ward closed" {
		t.Errorf("%+v, %v", d, err)
	}
	// For ever.
	if _, err := e.Resume(e.ctx, operator, "", "gw-1", "x"); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("resumed: %v", err)
	}
	if _, err := e.Move(e.ctx, operator, "", "gw-1", "x", time.Time{}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("moved: %v", err)
	}
	if res, err := e.Import(e.ctx, operator, "", []registry.Gateway{gateway("gw-1", "one"), gateway("gw-9", "one")}); err != nil || res[0].Outcome != "decommissioned" || res[1].Outcome != registry.Conflict {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestDecommissionNow: cut off at once, also without a journal; a draining is cut short; one that is cut off cannot drain.
func TestDecommissionNow(t *testing.T) {
	e := newEnding(t)
	if _, _, err := e.Decommission(e.ctx, operator, "", "gw-1", "ward closed", true, e.sign); err != nil {
		t.Fatal(err)
	}
	e.journal.Fail(func(journal.Entry) (error, bool) { return errors.New("disk full"), false })
	end, again, err := e.Decommission(e.ctx, operator, "", "gw-1", "stolen", false, e.sign)
	if !errors.Is(err, registry.ErrLate) || again || end.Drain || end.Reason != "stolen" {
		t.Errorf("%+v, %t, %v", end, again, err)
	}
	e.journal.Fail(nil)
	if _, err := e.Admit(e.ctx, "gw-1"); !errors.Is(err, registry.ErrNotActive) {
		t.Errorf("admitted: %v", err)
	}
	if cut, err := e.CutOff(e.ctx); err != nil || !slices.Equal(cut, []registry.CutOff{{Gateway: "gw-1", State: registry.Decommissioned}}) {
		t.Errorf("%v, %v", cut, err)
	}
	if g, err := e.ByEK(e.ctx, ek("one")); !errors.Is(err, registry.ErrNotActive) || g.ID != "gw-1" {
		t.Errorf("%v", err)
	}
	if err := e.Confirm(e.ctx, actorOf, "", e.word(t, "gw-1", end.Order, e.device)); err != nil {
		t.Error(err)
	}
	if _, _, err := e.Revoke(e.ctx, operator, "", "gw-2", "lost"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Decommission(e.ctx, operator, "", "gw-2", "x", true, e.sign); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("a revoked gateway drains: %v", err)
	}
	if _, _, err := e.Decommission(e.ctx, operator, "", "gw-2", "lost for good", false, e.sign); err != nil {
		t.Error(err)
	}
	if g, err := e.Get(e.ctx, "gw-2"); err != nil || g.State != registry.Decommissioned || g.Revoked != nil || g.Hold.Reason != "lost for good" {
		t.Errorf("%+v, %v", g, err)
	}
	if _, _, err := e.Decommission(e.ctx, operator, "", "gw-9", "x", false, e.sign); !errors.Is(err, registry.ErrUnknown) {
		t.Error(err)
	}
}

// TestFormerBoardCannotConfirm: a board that was replaced knows its device key yet, and the order's hash stands in the log for auditors.
// Its word must not end the board that is the gateway now.
func TestFormerBoardCannotConfirm(t *testing.T) {
	e := newEnding(t)
	if _, err := e.Replace(e.ctx, operator, "", "gw-1", "stolen", []string{strings.Repeat("ab", 32)}); err != nil {
		t.Fatal(err)
	}
	end, _, err := e.Decommission(e.ctx, operator, "", "gw-1", "ward closed", true, e.sign)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Confirm(e.ctx, actorOf, "", e.word(t, "gw-1", end.Order, e.device)); !errors.Is(err, registry.ErrNotOrdered) {
		t.Errorf("%v", err)
	}
	if _, err := e.Admit(e.ctx, "gw-1"); err != nil {
		t.Errorf("the former board's word ended the one that drains: %v", err)
	}
}
