package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
)

// measuredRun is what 'scale keepup --json' writes, of one run.
type measuredRun struct {
	Batches      int     `json:"batches"`
	Observations int64   `json:"observations"`
	Gateways     int     `json:"gateways"`
	Rate         float64 `json:"rate"`    // batches journaled a second; 0: all before records began
	Seconds      float64 `json:"seconds"` // from the beginning to all visible
	Lag          float64 `json:"lag"`     // longest of records, seconds
}

// validate predicts the second run of a file, an overload, from what the first one, which had all before it, says that a batch costs here.
func validate(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var runs []measuredRun
	if err := json.Unmarshal(data, &runs); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(runs) != 2 || runs[0].Rate != 0 || !(runs[1].Rate > 0) || runs[0].Batches == 0 || !(runs[0].Seconds > 0) {
		return errors.New("expected two runs: one at rate 0, whose costs are taken, and one at a rate, which is predicted")
	}
	costs, err := readCosts(costsJSON)
	if err != nil {
		return err
	}
	seconds, lag := predict(costs, runs[0], runs[1])
	fmt.Printf("%-58s %10s %10s %8s\n", "", "predicted", "measured", "ratio")
	fmt.Printf("%-58s %8.1f s %8.1f s %8.2f\n", fmt.Sprintf("%d batches at %.0f/s: until all is visible", runs[1].Batches, runs[1].Rate), seconds, runs[1].Seconds, seconds/runs[1].Seconds)
	fmt.Printf("%-58s %8.1f s %8.1f s %8.2f\n", "  longest lag of records", lag, runs[1].Lag, lag/runs[1].Lag)
	return nil
}

// predict runs the model's own parts: gateways that live without an outage until they have sent what the run sent, and records of the cost that the
// first run had. It gives when all is visible, and the longest lag.
func predict(c Costs, first, second measuredRun) (seconds, lag float64) {
	each := float64(first.Observations) / float64(first.Batches)
	c.RecordsBatchUS, c.RecordsReadUS = first.Seconds/float64(first.Batches)*1e6, 1e-9
	l := Load{Batches: second.Rate / float64(second.Gateways), Observations: each * second.Rate / float64(second.Gateways), AlarmsDay: 1}
	sends := float64(second.Batches) / second.Rate
	r := Simulate(Scenario{Gateways: second.Gateways, Nodes: c.Nodes(second.Gateways, l), Hours: math.Ceil(sends) / 3600, Load: l, Seed: 1, Costs: c})
	left := r.recordsWait / c.recordsRate(l) // what was journaled last waits for all before it
	return sends + left, max(r.RecordsLag, left)
}
