package main

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"testing"
)

func costs(t *testing.T) Costs {
	t.Helper()
	c, err := readCosts(costsJSON)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func scenario(t *testing.T, gateways int) Scenario {
	c := costs(t)
	l := Load{Batches: 1, Observations: 10, AlarmsDay: 144}
	return Scenario{Gateways: gateways, Nodes: c.Nodes(gateways, l), Hours: 4, OutageHours: 1, Load: l, Seed: 1, Costs: c}
}

// Nothing is lost: what gateways made is journaled or with them, what is journaled is stored, logged or waits; whatever is overloaded.
func TestNothingIsLost(t *testing.T) {
	for name, change := range map[string]func(*Scenario){
		"as it is":            func(*Scenario) {},
		"no outage":           func(s *Scenario) { s.OutageHours = 0 },
		"outage to the end":   func(s *Scenario) { s.OutageHours = 4 },
		"ingest too slow":     func(s *Scenario) { s.Costs.JournalBatches = 0.9 * float64(s.Gateways) },
		"records too slow":    func(s *Scenario) { s.Costs.RecordsBatchUS = 1e5 },
		"log too slow":        func(s *Scenario) { s.Costs.LogRows = 10 },
		"hardly a handshake":  func(s *Scenario) { s.Costs.HandshakesNode = 0.5 },
		"hardly an enrolment": func(s *Scenario) { s.Costs.EnrolmentsCA, s.OutageHours, s.Hours = 0.01, 14, 18 },
	} {
		sc := scenario(t, 100)
		change(&sc)
		r := Simulate(sc)
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// And what they made is what the load says: a second more or less for each gateway's return.
		want := float64(sc.Gateways) * sc.Hours * 3600 * sc.Load.Batches
		if math.Abs(r.produced-want) > 2*float64(sc.Gateways) {
			t.Errorf("%s: gateways made %.0f batches, expected %.0f", name, r.produced, want)
		}
	}
}

// The books are held: a batch that vanishes is an error.
func TestBooksThatDoNotBalance(t *testing.T) {
	r := Simulate(scenario(t, 50))
	for i, lose := range []func(*Result){func(r *Result) { r.journaled -= 50 }, func(r *Result) { r.stored -= 50 }, func(r *Result) { r.logged += 50 }, func(r *Result) { r.buffered -= 50 }} {
		broken := r
		lose(&broken)
		if broken.Check() == nil {
			t.Errorf("loss %d was not noticed", i)
		}
	}
}

func TestTheSameSeedIsTheSameRun(t *testing.T) {
	a, b := Simulate(scenario(t, 300)), Simulate(scenario(t, 300))
	if !reflect.DeepEqual(a, b) {
		t.Errorf("two runs of one seed differ:\n%+v\n%+v", a, b)
	}
	other := scenario(t, 300)
	other.Seed = 2
	if reflect.DeepEqual(a, Simulate(other)) {
		t.Error("another seed is the same run: nothing is random")
	}
}

// What is worse makes nothing better.
func TestMoreLoadIsNoFaster(t *testing.T) {
	base := Simulate(scenario(t, 1000))
	if base.BackAfter == 0 || base.DrainAfter < base.BackAfter || base.CaughtUp < base.DrainAfter || base.RecordsLag == 0 {
		t.Fatalf("the base does not show an outage: %+v", base)
	}
	for name, c := range map[string]struct {
		change func(*Scenario)
		figure func(Result) float64
	}{
		"fewer handshakes: back later":           {func(s *Scenario) { s.Costs.HandshakesNode = 1 }, func(r Result) float64 { return r.BackAfter }},
		"a longer outage: drained later":         {func(s *Scenario) { s.OutageHours = 1.5 }, func(r Result) float64 { return r.DrainAfter }},
		"a slower journal: drained later":        {func(s *Scenario) { s.Costs.JournalBatches = 1500 }, func(r Result) float64 { return r.DrainAfter }},
		"slower records: caught up later":        {func(s *Scenario) { s.Costs.RecordsReadUS *= 1.5 }, func(r Result) float64 { return r.CaughtUp }},
		"more in flight: alarms wait for longer": {func(s *Scenario) { s.Costs.InFlight = 640 }, func(r Result) float64 { return r.AlarmMS }},
	} {
		sc := scenario(t, 1000)
		c.change(&sc)
		if got, was := c.figure(Simulate(sc)), c.figure(base); got <= was {
			t.Errorf("%s: %.1f, before %.1f", name, got, was)
		}
	}
}

// Laws that can be reckoned by hand.
func TestAgainstArithmetic(t *testing.T) {
	near := func(what string, got, want, part float64) {
		t.Helper()
		if math.Abs(got-want) > part*want {
			t.Errorf("%s: %.1f, by hand %.1f", what, got, want)
		}
	}
	sc := scenario(t, 1000)
	sc.Costs.HandshakesNode, sc.Nodes = 2, 1
	near("back: the number by the handshakes let in, and a last try", Simulate(sc).BackAfter, 1000/2+150, 0.35)

	sc = scenario(t, 1000)
	sc.Costs.JournalBatches, sc.Costs.RecordsBatchUS, sc.Costs.RecordsReadUS, sc.Costs.LogRows = 3000, 1, 0.1, 1e9
	near("drained: an hour of 1000/s through what 3000/s leave", Simulate(sc).DrainAfter, 3600*1000/2000.0, 0.1)

	sc = scenario(t, 1000)
	sc.Costs.JournalBatches, sc.Costs.RecordsBatchUS, sc.Costs.RecordsReadUS = 1e6, 500, 1e-6 // 2000/s
	near("caught up: records drain what the journal has at once", Simulate(sc).CaughtUp, 3600*1000/1000.0, 0.1)

	sc = scenario(t, 500)
	sc.Hours, sc.OutageHours = 48, 0
	near("renewals: each gateway's at half of 24 h, 48 h long", float64(Simulate(sc).Renewals), 500*4, 0.12)
}

// A file of costs that lacks a figure, has one too many, or one without a source is refused.
func TestCostsAreWhole(t *testing.T) {
	var all map[string]cost
	if err := json.Unmarshal(costsJSON, &all); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(map[string]cost){
		"missing":   func(m map[string]cost) { delete(m, "log_rows") },
		"unknown":   func(m map[string]cost) { m["log_cows"] = m["log_rows"] },
		"zero":      func(m map[string]cost) { c := m["log_rows"]; c.Value = 0; m["log_rows"] = c },
		"no source": func(m map[string]cost) { c := m["log_rows"]; c.Source = ""; m["log_rows"] = c },
	} {
		m := map[string]cost{}
		for k, v := range all {
			m[k] = v
		}
		change(m)
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readCosts(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := readCosts(bytes.TrimSuffix(costsJSON, []byte("}\n"))); err == nil {
		t.Error("half a file: accepted")
	}
}

// A prediction is arithmetic where the model is simple: three times what records settle, for ten seconds, is visible after thirty.
func TestPrediction(t *testing.T) {
	seconds, lag := predict(costs(t), measuredRun{Batches: 1000, Observations: 10_000, Seconds: 10}, measuredRun{Batches: 3000, Gateways: 50, Rate: 300})
	if math.Abs(seconds-30) > 1 || math.Abs(lag-20) > 1 {
		t.Errorf("visible after %.1f s, lag %.1f s; by hand 30 s, and 20 s of what was journaled last", seconds, lag)
	}
}
