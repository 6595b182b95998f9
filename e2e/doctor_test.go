package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// findings is what `wardlink-agent doctor --json` prints.
type findings struct {
	Level    string
	Findings []struct{ Area, Name, Step, Level, Found, Mend string }
}

// doctor examines a gateway and gives the exit code with what it found.
func (b *box) doctor() (code int, r findings) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second) // it promises 10
	defer cancel()
	out, err := exec.CommandContext(ctx, program("wardlink-agent"), "doctor", "--json", "--config", b.config()).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
	return code, r
}

// level is the worst of the findings about an area, or one step of it; "" when it was not looked at.
func (r findings) level(area, step string) (level, found string) {
	for _, f := range r.Findings {
		if f.Area == area && f.Step == step && (level == "" || f.Level == "stops" || f.Level == "warning" && level == "well") {
			level, found = f.Level, f.Found
		}
	}
	return level, found
}

// TestDoctor goes through a gateway's day: all well, server gone, agent gone, TPM gone. Looking never costs the running agent its session.
func TestDoctor(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.deliverAs("icu-7")
	expect := func(when string, r findings, area, step, level, found string) {
		t.Helper()
		if l, f := r.level(area, step); l != level || !strings.Contains(f, found) {
			t.Errorf("%s: %s %s is %s: %s; expected %s with %q", when, area, step, l, f, level, found)
		}
	}

	code, r := b.doctor()
	for _, f := range r.Findings {
		// This machine's clock, its disk and its load are what they are, and the monitor's messages are of a fixed day.
		if f.Level != "well" && f.Area != "clock" && f.Area != "disk" && !strings.Contains(f.Found, "its clock is") {
			t.Errorf("all is well, but %+v", f)
		}
	}
	if code != 0 && code != 2 {
		t.Errorf("exit %d, %+v", code, r)
	}
	for _, step := range []string{"name", "TCP", "TLS", "ALPN", "HTTP", "authorisation"} {
		expect("all well", r, "server", step, "well", "")
	}
	expect("all well", r, "TPM", "", "well", "fingerprint")
	expect("all well", r, "certificate", "", "well", "spiffe://ward.example/gateway/icu-7")
	var s struct {
		Uplink struct{ Connects int }
	}
	if err := json.Unmarshal(h.must("wardlink-agent", "status", "--json", "--config", b.config()), &s); err != nil || s.Uplink.Connects != 1 {
		t.Errorf("%v; %d sessions: the doctor has taken the agent's place", err, s.Uplink.Connects)
	}

	h.proc.Stop()
	code, r = b.doctor()
	if code != 1 {
		t.Errorf("server gone: exit %d, %+v", code, r)
	}
	expect("server gone", r, "server", "TCP", "stops", "nothing listens there")

	h.run()
	b.agent.Stop()
	code, r = b.doctor()
	if code != 1 {
		t.Errorf("agent gone: exit %d, %+v", code, r)
	}
	expect("agent gone", r, "agent", "", "stops", "does not run")
	expect("agent gone", r, "TPM", "", "well", "fingerprint") // which the doctor has opened itself
	expect("agent gone", r, "server", "authorisation", "well", "believes")
	expect("agent gone", r, "buffer", "", "well", "to send, 0 parked")
	expect("agent gone", r, "source", "", "well", "is free")

	b.tpm.Stop()
	_, r = b.doctor()
	expect("TPM gone", r, "TPM", "", "stops", "nothing listens on this socket")
	expect("TPM gone", r, "server", "TLS", "well", "")
}
