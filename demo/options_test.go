package demo

import (
	"strings"
	"testing"
	"time"
)

// TestOK: each promise of the demonstration can break it.
func TestOK(t *testing.T) {
	good := Summary{
		Compared: true, SamplesSent: 10, SamplesAcknowledged: 10, SamplesStored: 10, BatchesAcknowledged: 4, FHIRReads: 2, AuditReads: 2,
		AuditLeaves: 20, AuditRows: 5, AuditVerified: true, ProofVerified: true, AgentKills: 1,
	}
	if !good.OK() {
		t.Fatal("a good summary is not OK")
	}
	if (Summary{}).OK() {
		t.Error("an empty summary is OK")
	}
	for name, change := range map[string]func(*Summary){
		"not compared":            func(s *Summary) { s.Compared = false },
		"not stored":              func(s *Summary) { s.SamplesStored-- },
		"not acknowledged":        func(s *Summary) { s.SamplesAcknowledged--; s.SamplesStored-- },
		"missing":                 func(s *Summary) { s.Missing++ },
		"twice":                   func(s *Summary) { s.Duplicates++ },
		"altered":                 func(s *Summary) { s.Mismatched++ },
		"a publish without a row": func(s *Summary) { s.AuditRows = s.BatchesAcknowledged - 1 },
		"no batches":              func(s *Summary) { s.BatchesAcknowledged = 0 },
		"a read without an event": func(s *Summary) { s.AuditReads-- },
		"an event without a read": func(s *Summary) { s.AuditReads++ },
		"nothing read":            func(s *Summary) { s.AuditReads, s.FHIRReads = 0, 0 },
		"not verified":            func(s *Summary) { s.AuditVerified = false },
		"not proven":              func(s *Summary) { s.ProofVerified = false },
		"nobody killed":           func(s *Summary) { s.AgentKills = 0 },
	} {
		s := good
		if change(&s); s.OK() {
			t.Errorf("%s: still OK", name)
		}
	}
}

// TestLimitGrowsWithTheWork: no number of minutes that is accepted may be one that cannot finish.
func TestLimitGrowsWithTheWork(t *testing.T) {
	for _, o := range []Options{{Minutes: 1}, {Minutes: 24 * 60}, {Minutes: 24 * 60, Gateways: maxGateways}} {
		if err := o.check(); err != nil {
			t.Fatal(err)
		}
		if paced := time.Duration(o.Minutes*60) * pace; o.Limit < 3*paced {
			t.Errorf("%d minutes send for %s alone, and the limit is %s", o.Minutes, paced, o.Limit)
		}
	}
	o := Options{Limit: time.Second}
	if err := o.check(); err != nil || o.Limit != time.Second {
		t.Errorf("a limit that was given became %s, %v", o.Limit, err)
	}
	o = Options{Recording: "no/such/record"}
	if err := o.check(); err == nil {
		t.Error("a recording that is not there is only noticed later")
	}
}

func TestReadsAreCountedByAccount(t *testing.T) {
	const me = "spiffe://demo.wardlink.internal/access/demo-reader"
	lines := `{"type":"records.read","actor":"` + me + `","outcome":"success"}
{"type":"records.read","actor":"` + me + `","outcome":"denied"}
{"type":"records.read","actor":"spiffe://demo.wardlink.internal/access/other","outcome":"success"}
{"type":"audit.read","actor":"` + me + `","outcome":"success"}
{"type":"records.read","actor":"` + me + `","outcome":"success","count":1000}
`
	if n, err := countReads([]byte(lines), me); n != 2 || err != nil {
		t.Errorf("%d reads, %v; expected 2", n, err)
	}
	if _, err := countReads([]byte(lines+"{"), me); err == nil {
		t.Error("a cut list counts")
	}
}

func TestPlural(t *testing.T) {
	if got := strings.Join([]string{plural(1, "gateway"), plural(2, "gateway"), plural(0, "gateway")}, ", "); got != "1 gateway, 2 gateways, 0 gateways" {
		t.Error(got)
	}
}
