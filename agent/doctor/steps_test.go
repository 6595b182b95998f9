package doctor

import (
	"strings"
	"testing"
	"time"

	"wardlink/agent"
	"wardlink/agent/uplink"
	"wardlink/enroll"
)

// TestSteps follows an installation: each step waits for what is before it, and only the hospital's own word ends it.
func TestSteps(t *testing.T) {
	now := time.Date(2026, 11, 27, 8, 40, 0, 0, time.UTC)
	well := func(area string) agent.Finding { return agent.Finding{Area: area, Level: agent.Well, Found: "well"} }
	var in Install
	expect := func(when string, open string, words ...string) {
		t.Helper()
		steps := in.Steps(now)
		i := Open(steps)
		name := ""
		if i >= 0 {
			name = steps[i].Name
		}
		if name != open {
			t.Fatalf("%s: open is %q, %+v; expected %q", when, name, steps, open)
		}
		for _, w := range words {
			if s := steps[max(i, 0)]; i >= 0 && !strings.Contains(s.Found+s.Mend, w) {
				t.Errorf("%s: %+v; expected %q", when, s, w)
			}
		}
	}
	expect("nothing is known", "configuration")
	in.Report.Findings = []agent.Finding{well(AreaConfiguration), {Area: AreaKit, Level: agent.Stops, Found: "none", Mend: "copy it"}, well(agent.AreaTPM)}
	expect("no kit", "kit", "none", "copy it")
	in.Report.Findings[1] = well(AreaKit)
	in.Report.Findings = append(in.Report.Findings, agent.Finding{Area: AreaServer, Name: "a:1", Step: "TCP", Level: agent.Stops, Found: "refused", Mend: "start it"})
	expect("no server", "server", "a:1: TCP: refused", "start it")
	in.Report.Findings = append(in.Report.Findings, agent.Finding{Area: AreaServer, Name: "b:1", Step: "TCP", Level: agent.Well, Found: "connected"})
	expect("the second server answers", "agent", "does not answer")
	in.Status = &agent.Status{Epoch: "e2", Identity: "waiting for approval", Waiting: "ABCD-EFGH-IJKL-MNOP"}
	expect("it waits", "approved", "ABCD-EFGH-IJKL-MNOP", "gateway approve")
	in.Status.Gateway = "icu-7"
	expect("approved", "connected", "connecting")
	in.Status.Uplink = uplink.Status{Connected: true, Server: "b:1"}
	expect("connected", "heartbeat", "not opened")
	in.Seen = enroll.Seen{Gateway: "icu-7", First: now, Last: now, Epoch: "e1"}
	expect("a heartbeat of a former start", "heartbeat", "not opened")
	in.Seen.Epoch = "e2"
	expect("seen", "")
	steps := in.Steps(now)
	if last := steps[len(steps)-1].Found; !strings.Contains(last, "first heartbeat of icu-7 at 2026-11-27 08:40:00 UTC") {
		t.Errorf("%q", last)
	}
	in.Status.Revoked = true
	expect("revoked", "approved")
}
