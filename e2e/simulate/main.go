// Command simulate says what a fleet does that no two cores can hold: gateways that renew, that all come back after an outage, that drain what they
// kept, while one cell's server takes, opens and logs it. It is a discrete-event simulation of one cell, in the standard library alone; the same seed
// gives the same events, and the seed is printed.
//
// What things cost comes from costs.json, each figure with its source. docs/SCALE.md says what the model holds and what it leaves out.
//
// With --measured, a file that 'scale keepup --json' wrote in an overload, it predicts that run from another one's costs and prints the ratio.
package main

import (
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

//go:embed costs.json
var costsJSON []byte

// cost is one figure and where it comes from.
type cost struct {
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Source string  `json:"source"`
}

// readCosts gives the figures by name. A name that is missing, or one too many, is an error: a model that reads another file than it thinks predicts
// nothing.
func readCosts(data []byte) (Costs, error) {
	var raw map[string]cost
	if err := json.Unmarshal(data, &raw); err != nil {
		return Costs{}, fmt.Errorf("costs: %w", err)
	}
	var c Costs
	fields := c.fields()
	for name, into := range fields {
		got, ok := raw[name]
		if !ok || !(got.Value > 0) || got.Unit == "" || got.Source == "" {
			return Costs{}, fmt.Errorf("costs: %s: expected a value above 0, a unit and a source", name)
		}
		*into = got.Value
	}
	for name := range raw {
		if fields[name] == nil {
			return Costs{}, fmt.Errorf("costs: %s is no figure of the model", name)
		}
	}
	return c, nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	f := flag.NewFlagSet("simulate", flag.ContinueOnError)
	fleets := f.String("gateways", "10,1000,10000,100000,1000000", "sizes of fleets")
	cell := f.Int("cell", 0, "gateways of a cell; 0: as many as its records can hold with a third to spare")
	hours := f.Float64("hours", 48, "simulated")
	outage := f.Float64("outage", 4, "hours for which no gateway reaches its servers")
	monitors := f.Float64("messages", 1, "messages of a gateway a second: 1 is a monitor each second, 0.0167 each minute; up to 50 have a batch each")
	readings := f.Float64("readings", 10, "readings of a message")
	alarms := f.Float64("alarms", 144, "alarms of a gateway a day")
	nodes := f.Int("nodes", 0, "ingest nodes of a cell; 0: as many as the live load and half as much again need")
	seed := f.Uint64("seed", 1, "of all that is random")
	path := f.String("costs", "", "a file like costs.json (default: that of the program)")
	measured := f.String("measured", "", "a run of 'scale keepup --json' to be predicted")
	if err := f.Parse(args); err != nil {
		return err
	}
	data := costsJSON
	if *path != "" {
		var err error
		if data, err = os.ReadFile(*path); err != nil {
			return err
		}
	}
	costs, err := readCosts(data)
	if err != nil {
		return err
	}
	if *measured != "" {
		return validate(*measured)
	}
	load := Load{Batches: min(*monitors, 50), Observations: *monitors * *readings, AlarmsDay: *alarms}
	fmt.Printf("seed %d; %.0f h, of which an outage of %.1f h for all; %.3g batches and %.3g observations a second of each gateway\n\n",
		*seed, *hours, *outage, load.Batches, load.Observations)
	fmt.Print(header)
	for _, text := range strings.Split(*fleets, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("gateways: %.20q; expected numbers from 1 on, with commas between", text)
		}
		size := *cell
		if size == 0 {
			size = costs.CellSize(load)
		}
		cells := (n + size - 1) / size
		perCell := (n + cells - 1) / cells
		k := *nodes
		if k == 0 {
			k = costs.Nodes(perCell, load)
		}
		began := time.Now()
		r := Simulate(Scenario{Gateways: perCell, Nodes: k, Hours: *hours, OutageHours: *outage, Load: load, Seed: *seed, Costs: costs})
		if err := r.Check(); err != nil {
			return err
		}
		r.print(n, cells, k, time.Since(began))
	}
	fmt.Println("\n" + legend)
	return nil
}
