package ca

import (
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/crypto/acme"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/verify"
	"wardlink/internal/swtpmtest"
)

// TestRevokedGatewayGetsNothing: at each step at which a certificate could still be had, and each refusal is in the log as the gateway's.
func TestRevokedGatewayGetsNothing(t *testing.T) {
	h := newHospital(t, nil)
	a := h.attacker(t, swtpmtest.Start(t).Path)
	h.registry.active[a.ek.Hash] = "gw-1"
	chain := a.akChain()
	order, challenge, err := a.prove("gw-1", chain, -257)
	if err != nil || challenge.Status != acme.StatusValid {
		t.Fatalf("%v, challenge %+v", err, challenge)
	}
	second, challenge, err := a.prove("gw-1", chain, -257)
	if err != nil || challenge.Status != acme.StatusValid {
		t.Fatalf("%v, challenge %+v", err, challenge)
	}
	refused := func(what string) {
		t.Helper()
		h.mu.Lock()
		defer h.mu.Unlock()
		ev := h.events[len(h.events)-1]
		if ev.Type != audit.Refused || ev.Outcome != audit.Denied || ev.Actor.ID != "spiffe://ward.example/gateway/gw-1" || !strings.Contains(ev.Reason, "revoked") {
			t.Errorf("%s: the last event is %+v", what, ev)
		}
	}

	// In the instant between the last question and the record of the key.
	h.registry.set(func() { h.registry.late = func() { h.registry.revoked[a.ek.Hash] = "stolen" } })
	_, err = a.finalize(second, a.keys.Device(), x509.CertificateRequest{})
	refusedWith(t, "revoked while it was issued", err, "revoked by the hospital: stolen")
	refused("while it was issued")
	h.registry.set(func() { h.registry.late = nil })

	_, err = a.finalize(order, a.keys.Device(), x509.CertificateRequest{})
	refusedWith(t, "revoked after the attestation", err, "revoked by the hospital: stolen")
	refused("after the attestation")

	_, challenge, err = a.prove("gw-1", chain, -257)
	if err != nil || challenge.Status != acme.StatusInvalid || challenge.Error == nil || !strings.Contains(challenge.Error.Error(), "stolen") {
		t.Errorf("with an AK certificate that is still good: %v %+v", err, challenge)
	}
	refused("with an AK certificate that is still good")

	status, body := a.post("/attestation/secret", verify.SecretRequest{Secret: a.activate(a.challenge(a.request()))})
	if status != http.StatusForbidden || !strings.Contains(string(body), enroll.RevokedProblem) || !strings.Contains(string(body), "stolen") {
		t.Errorf("attestation: %d %s", status, body)
	}
	refused("attestation")
	if n := h.count(audit.CertIssued); n != 0 {
		t.Errorf("%d certificates", n)
	}
}

// TestAgentHearsThatItIsRevoked: what the agent's own client makes of the answer.
func TestAgentHearsThatItIsRevoked(t *testing.T) {
	h := newHospital(t, nil)
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.active[g.ek] = "gw-1"
	if _, err := g.e.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.registry.set(func() { h.registry.revoked[g.ek] = "stolen from \x1b[2J ward 3" })
	var revoked *enroll.CutOffError
	_, err := g.e.Enroll(t.Context())
	if !errors.As(err, &revoked) || revoked.Error() != "revoked by the hospital: stolen from ?[2J ward 3" {
		t.Errorf("%v", err)
	}
}

// TestCutOffOtherwise: suspended, replaced and decommissioned gateways get nothing, hear why, and are in the log by that name.
func TestCutOffOtherwise(t *testing.T) {
	h := newHospital(t, nil)
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.active[g.ek] = "gw-1"
	if _, err := g.e.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for kind, title := range map[string]string{enroll.SuspendedProblem: "suspended", enroll.ReplacedProblem: "replaced", enroll.DecommissionedProblem: "decommissioned", enroll.WindowProblem: "kept out"} {
		h.registry.set(func() { h.registry.cut[g.ek] = &CutOffError{Type: kind, Title: title, Reason: "because"} })
		var cut *enroll.CutOffError
		if _, err := g.e.Enroll(t.Context()); !errors.As(err, &cut) || cut.What != title || cut.Reason != "because" {
			t.Errorf("%s: %v", title, err)
		}
		h.mu.Lock()
		ev := h.events[len(h.events)-1]
		h.mu.Unlock()
		if ev.Type != audit.Refused || ev.Actor.ID != "spiffe://ward.example/gateway/gw-1" || ev.Reason != "gateway is "+title {
			t.Errorf("%s: %+v", title, ev)
		}
	}
	h.registry.set(func() { delete(h.registry.cut, g.ek) })
	if _, err := g.e.Enroll(t.Context()); err != nil {
		t.Errorf("resumed: %v", err)
	}
}

// TestCutOffWhileItIsIssued: also between attestation and certificate.
func TestCutOffWhileItIsIssued(t *testing.T) {
	h := newHospital(t, nil)
	a := h.attacker(t, swtpmtest.Start(t).Path)
	h.registry.active[a.ek.Hash] = "gw-1"
	order, challenge, err := a.prove("gw-1", a.akChain(), -257)
	if err != nil || challenge.Status != acme.StatusValid {
		t.Fatalf("%v, challenge %+v", err, challenge)
	}
	h.registry.set(func() {
		h.registry.cut[a.ek.Hash] = &CutOffError{Type: enroll.SuspendedProblem, Title: "suspended", Reason: "because"}
	})
	_, err = a.finalize(order, a.keys.Device(), x509.CertificateRequest{})
	refusedWith(t, "suspended after the attestation", err, "suspended by the hospital: because")
	if n := h.count(audit.CertIssued); n != 0 {
		t.Errorf("%d certificates", n)
	}
}
