package demo

import (
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/server/api/client"
)

// TestOK: each promise of the demonstration can break it.
func TestOK(t *testing.T) {
	good := Summary{
		Compared: true, SamplesSent: 10, SamplesAcknowledged: 10, SamplesStored: 10, BatchesAcknowledged: 4, FHIRReads: 2, AuditReads: 2,
		AuditLeaves: 20, AuditRows: 5, AuditVerified: true, ProofVerified: true, AgentKills: 1, ServerKills: 1,
		Kills: Kills{Total: 3, Agent: 1, Server: 1, Network: 1}, OutageSeconds: 4, BacklogPeak: 100, RevokeSeconds: 0.3,
		AccountLooks: 3, Quarantine: &Quarantine{Gateway: "gw-02", PCR: 4, Entry: "entry 2", Released: true, Readings: 7},
		Account: []Accounted{
			{Rows: 2, Balance: client.Balance{Lane: "vitals", Assigned: 5, Journaled: 4, Stored: 4, Void: 1, Told: true, Balances: true}},
			{Rows: 2, Balance: client.Balance{Lane: "self", Assigned: 9, Journaled: 6, Stored: 5, Pending: 1, Buffered: 2, Void: 1, Told: true, Balances: true, AtMost: []string{"buffered"}}},
		},
		Refusals: []Refusal{
			{Case: "one", Refused: true, Leaf: 7, Actor: "peer", Reason: "certificate"}, {Case: "two", Refused: true, Leaf: 8, Actor: "a", Reason: "topic"},
			{Case: "three", Refused: true, Leaf: 9, Actor: "a", Reason: "revoked"}, {Case: "four", Refused: true, Leaf: 10, Actor: "a", Reason: "revoked"},
		},
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
		"never looked":            func(s *Summary) { s.AccountLooks = 0 },
		"missing for a moment":    func(s *Summary) { s.Imbalances = 1 },
		"no account":              func(s *Summary) { s.Account = nil },
		"nothing in the account":  func(s *Summary) { s.Account = s.Account[1:] },
		"an account in doubt":     func(s *Summary) { s.Account[1].Balances = false },
		"a difference":            func(s *Summary) { s.Account[0].Assigned++; s.Account[0].Difference++ },
		"a sum that is wrong":     func(s *Summary) { s.Account[0].Assigned++ },
		"a state that is wrong":   func(s *Summary) { s.Account[1].Stored-- },
		"a loss":                  func(s *Summary) { s.Account[0].Lost, s.Account[0].Void = 1, 0 },
		"a dead batch":            func(s *Summary) { s.Account[0].Dead, s.Account[0].Stored = 1, 3 },
		"a parked batch":          func(s *Summary) { s.Account[0].Parked, s.Account[0].Void = 1, 0 },
		"something left behind":   func(s *Summary) { s.Account[0].Buffered, s.Account[0].Void = 1, 0 },
		"an upper bound":          func(s *Summary) { s.Account[0].AtMost = []string{"void"} },
		"a publish without a row": func(s *Summary) { s.AuditRows = s.BatchesAcknowledged - 1 },
		"no batches":              func(s *Summary) { s.BatchesAcknowledged = 0 },
		"a read without an event": func(s *Summary) { s.AuditReads-- },
		"an event without a read": func(s *Summary) { s.AuditReads++ },
		"nothing read":            func(s *Summary) { s.AuditReads, s.FHIRReads = 0, 0 },
		"not verified":            func(s *Summary) { s.AuditVerified = false },
		"not proven":              func(s *Summary) { s.ProofVerified = false },
		"no agent killed":         func(s *Summary) { s.AgentKills = 0; s.Kills.Agent = 0; s.Kills.Total-- },
		"no server killed":        func(s *Summary) { s.ServerKills = 0; s.Kills.Server = 0; s.Kills.Total-- },
		"no network cut":          func(s *Summary) { s.Kills.Network = 0; s.Kills.Total-- },
		"kills that do not add":   func(s *Summary) { s.Kills.Total++ },
		"an outage of no time":    func(s *Summary) { s.OutageSeconds = 0 },
		"nothing buffered":        func(s *Summary) { s.BacklogPeak = 0 },
		"a lazy chaos":            func(s *Summary) { s.Chaos = 60 },
		"never revoked":           func(s *Summary) { s.RevokeSeconds = 0 },
		"revoked too slowly":      func(s *Summary) { s.RevokeSeconds = 2.1 },
		"an attack not refused":   func(s *Summary) { s.Refusals[1].Refused = false },
		"a refusal not logged":    func(s *Summary) { s.Refusals[2].Leaf = 0 },
		"a leaf not verified":     func(s *Summary) { s.Refusals[2].Leaf = s.AuditLeaves },
		"no actor":                func(s *Summary) { s.Refusals[0].Actor = "" },
		"no reason":               func(s *Summary) { s.Refusals[3].Reason = "" },
		"an attack left out":      func(s *Summary) { s.Refusals = s.Refusals[:3] },
		"no quarantine":           func(s *Summary) { s.Quarantine = nil },
		"another PCR named":       func(s *Summary) { s.Quarantine.PCR = 0 },
		"no entry named":          func(s *Summary) { s.Quarantine.Entry = "" },
		"not released":            func(s *Summary) { s.Quarantine.Released = false },
		"no reading marked":       func(s *Summary) { s.Quarantine.Readings = 0 },
		"no attacks":              func(s *Summary) { s.Refusals = nil },
	} {
		s := good
		s.Refusals, s.Account = slices.Clone(good.Refusals), slices.Clone(good.Account)
		held := *good.Quarantine
		s.Quarantine = &held
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
	for _, chaos := range []int{-1, 1, minChaos - 1, maxChaos + 1} {
		o := Options{Chaos: chaos}
		if o.check() == nil {
			t.Errorf("--chaos %d is accepted", chaos)
		}
	}
	o = Options{Chaos: 60}
	if err := o.check(); err != nil || o.Seed == 0 || o.Limit < 3*time.Duration(o.rows())*pace {
		t.Errorf("--chaos 60: %v, %+v", err, o)
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
