package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wardlink/enroll"
	"wardlink/internal/swtpmtest"
)

func spki(t *testing.T, id *enroll.Identity) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(id.Signer().Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestClearedTPMEnrolsAnew: under a running agent and over its restart. The EK still says who it is; the keys are new.
func TestClearedTPMEnrolsAnew(t *testing.T) {
	h := newHospital(t, nil)
	sw := swtpmtest.Start(t)
	g := h.gateway(t, sw.Path)
	h.registry.active[g.ek] = "gw-1"
	first, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ak := h.registry.aks[g.ek]
	sw.Clear()
	var second *enroll.Identity
	for attempt := 0; second == nil; attempt++ { // the running agent notices with a failure or two, and lets go of the dead keys
		if second, err = g.e.Enroll(t.Context()); err != nil && attempt == 4 {
			t.Fatal(err)
		}
	}
	h.checkIdentity(t, second, "gw-1")
	if bytes.Equal(spki(t, first), spki(t, second)) || h.registry.aks[g.ek] == ak {
		t.Error("the keys are the old ones")
	}
	sw.Clear()
	restarted := h.enroller(t, g)
	if id, err := restarted.Load(t.Context()); err == nil {
		t.Errorf("loaded a certificate of a dead key: %+v", id)
	}
	third, err := restarted.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(spki(t, second), spki(t, third)) {
		t.Error("the key is the old one")
	}
	// What a cleared TPM explains is no licence: keys that are gone for no reason are still an error.
	for _, name := range []string{"device.tpm", "ak.tpm"} {
		if err := os.Remove(filepath.Join(g.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.enroller(t, g).Enroll(t.Context()); err == nil || !strings.Contains(err.Error(), "although this gateway was enrolled") {
		t.Errorf("lost keys: %v", err)
	}
}

// TestNewBoardWithTheOldDisk: it waits for an operator, is the same gateway once replaced, and never takes over another gateway's disk.
func TestNewBoardWithTheOldDisk(t *testing.T) {
	h := newHospital(t, nil)
	old := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.active[old.ek] = "gw-1"
	first, err := old.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh := h.gateway(t, swtpmtest.Manufacture(t).Start(t).Path)
	fresh.dir = old.dir
	fresh.e = h.enroller(t, fresh)
	var waiting *enroll.WaitingError
	if _, err := fresh.e.Enroll(t.Context()); !errors.As(err, &waiting) || waiting.Fingerprint != enroll.Fingerprint(fresh.ek) {
		t.Fatalf("an unknown board: %v", err)
	}
	h.registry.set(func() { h.registry.active[fresh.ek] = "gw-2" })
	if _, err := fresh.e.Enroll(t.Context()); err == nil || !strings.Contains(err.Error(), "the disk in it is gateway gw-1's") {
		t.Errorf("another gateway's board took the disk: %v", err)
	}
	h.registry.set(func() {
		want := []Contention{{Gateway: "gw-1", Rival: enroll.Fingerprint(fresh.ek), Disk: true}, {Gateway: "gw-1", Rival: "gw-2", Disk: true}}
		for i := range h.registry.claimed {
			h.registry.claimed[i].Peer = ""
		}
		if !slices.Equal(h.registry.claimed, want) {
			t.Errorf("noted %+v, expected %+v", h.registry.claimed, want)
		}
		if h.registry.aks[fresh.ek] != "" {
			t.Error("the wrong board was certified")
		}
	})
	h.registry.set(func() { h.registry.active[fresh.ek] = "gw-1" })
	second, err := fresh.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.checkIdentity(t, second, "gw-1")
	if bytes.Equal(spki(t, first), spki(t, second)) {
		t.Error("the key is the old board's")
	}
	kept, err := h.enroller(t, fresh).Load(t.Context())
	if err != nil || !bytes.Equal(spki(t, kept), spki(t, second)) {
		t.Errorf("after a restart: %v", err)
	}
	// The disk goes back to the old board, whose keys are still there.
	back, err := h.enroller(t, old).Enroll(t.Context())
	if err != nil || !bytes.Equal(spki(t, back), spki(t, first)) {
		t.Errorf("back in the old board: %v", err)
	}
}
