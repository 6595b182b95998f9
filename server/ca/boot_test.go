package ca

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/enroll/verify"
	"wardlink/enroll/verify/eventlog"
	"wardlink/internal/swtpmtest"
	"wardlink/server/boot"
)

// From the TPM to the registry: what the firmware measured, and what its log says of it.
func TestEnrolmentTellsHowTheGatewayBooted(t *testing.T) {
	h := newHospital(t, nil)
	sw := swtpmtest.Start(t)
	g := h.gateway(t, sw.Path)
	h.registry.active[g.ek] = "gw-1"
	g.log = filepath.Join(t.TempDir(), "log")
	g.e = h.enroller(t, g)
	last := func() boot.Measurement {
		t.Helper()
		if _, err := g.e.Enroll(t.Context()); err != nil {
			t.Fatal(err)
		}
		return h.registry.booted[len(h.registry.booted)-1]
	}
	before := last()
	if len(before.PCRs) != 15 || len(before.Events) != 0 || before.Note != "the gateway sent no event log" {
		t.Errorf("without a log: %+v", before)
	}
	loader := sha256.Sum256([]byte("loader"))
	sw.Extend(4, loader)
	log := eventlog.Append(eventlog.Header(), 4, eventlog.BootApplication, loader, eventlog.Image(`\EFI\boot.efi`))
	if err := os.WriteFile(g.log, log, 0o600); err != nil {
		t.Fatal(err)
	}
	after := last()
	want := []boot.Event{{Index: 1, PCR: 4, Type: "EV_EFI_BOOT_SERVICES_APPLICATION", Text: `\EFI\boot.efi`, Digest: loader}}
	if after.PCRs[4] == before.PCRs[4] || after.PCRs[5] != before.PCRs[5] || len(after.Events) != 1 || after.Events[0] != want[0] || after.Note != "" {
		t.Errorf("%+v", after)
	}
	sw.Extend(7, loader)
	if m := last(); m.Note != "the event log does not account for PCR 7" || len(m.Events) != 1 {
		t.Errorf("a log that lacks an event: %+v", m)
	}
	// The evidence is named in the transparency log.
	certified := h.events[len(h.events)-1]
	for i := len(h.events) - 1; certified.Type != audit.AKCertified; i-- {
		certified = h.events[i]
	}
	sum := sha256.Sum256(log)
	if certified.Detail["event_log_sha256"] != boot.Digest(sum).String() || len(certified.Detail["quote_sha256"]) != 64 {
		t.Errorf("%v", certified.Detail)
	}
}

// A quote that does not verify brings no certificate, nor does it reach the registry.
func TestForgedQuoteIsRefused(t *testing.T) {
	h := newHospital(t, nil)
	a := h.attacker(t, swtpmtest.Start(t).Path)
	h.registry.active[a.ek.Hash] = "gw-1"
	answered := func(change func(*verify.SecretRequest)) (int, []byte) {
		t.Helper()
		plain := a.activate(a.challenge(a.request()))
		q, err := a.keys.Quote(t.Context(), verify.Qualifying(plain))
		if err != nil {
			t.Fatal(err)
		}
		r := verify.SecretRequest{Secret: plain, Boot: &verify.Boot{Quote: q.Attest, Signature: q.Signature, PCRs: q.PCRs}}
		change(&r)
		return a.post("/attestation/secret", r)
	}
	var old verify.Boot
	if status, body := answered(func(r *verify.SecretRequest) { old = *r.Boot }); status != http.StatusOK {
		t.Fatalf("a genuine quote: %d %s", status, body)
	}
	for name, change := range map[string]func(*verify.SecretRequest){
		"replayed":      func(r *verify.SecretRequest) { r.Boot = &old },
		"another value": func(r *verify.SecretRequest) { r.Boot.PCRs[4] = bytes.Repeat([]byte{1}, 32) },
	} {
		status, body := answered(change)
		var p struct{ Type string }
		if err := json.Unmarshal(body, &p); err != nil || status != http.StatusForbidden || p.Type != "urn:wardlink:quote" {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if n := len(h.registry.booted); n != 1 {
		t.Errorf("%d measurements; expected 1", n)
	}
	if n := h.count(audit.Refused); n != 2 {
		t.Errorf("%d refusals in the log; expected 2", n)
	}
	// Stock clients send none, and a gateway that cannot says why.
	for name, b := range map[string]*verify.Boot{"": nil, ": the bank is off?": {Missing: "the bank is off\n"}} {
		if status, body := answered(func(r *verify.SecretRequest) { r.Boot = b }); status != http.StatusOK {
			t.Errorf("no quote: %d %s", status, body)
		}
		if m := h.registry.booted[len(h.registry.booted)-1]; len(m.PCRs) != 0 || m.Note != "the gateway sent no quote"+name {
			t.Errorf("%+v", m)
		}
	}
	// The longest body that an agent sends passes, and a longer one is cut off.
	for n, want := range map[int]int{verify.MaxEventLog: http.StatusOK, verify.MaxSecretRequest: http.StatusRequestEntityTooLarge} {
		if status, body := answered(func(r *verify.SecretRequest) { r.Boot.Log = make([]byte, n) }); status != want {
			t.Errorf("a log of %d bytes: %d %s", n, status, strings.TrimSpace(string(body)))
		}
	}
}
