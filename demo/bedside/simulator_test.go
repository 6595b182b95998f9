package bedside

import (
	"math"
	"slices"
	"strconv"
	"testing"
	"time"
)

// series runs a simulation and gives each signal's texts by name.
func series(s Simulation) map[string][]string {
	all := map[string][]string{}
	for row := range Simulate(s) {
		for _, v := range row.Values {
			all[v.Signal.Name] = append(all[v.Signal.Name], v.Text)
		}
	}
	return all
}

func numbers(t *testing.T, texts []string) (all []float64) {
	t.Helper()
	for _, text := range texts {
		if text == "" {
			continue
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func TestSimulationRepeats(t *testing.T) {
	s := DefaultSimulation(7, time.UnixMilli(0), 300)
	if !slices.Equal(flatten(Simulate(s)), flatten(Simulate(s))) {
		t.Error("one seed gave two patients")
	}
	o := s
	o.Seed = 8
	if slices.Equal(flatten(Simulate(s)), flatten(Simulate(o))) {
		t.Error("two seeds gave one patient")
	}
}

// Hours of several patients stay within what a living adult at rest shows, and the three pressures always agree.
func TestSimulationIsPlausible(t *testing.T) {
	bounds := map[string][2]float64{"HR": {45, 115}, "PULSE": {45, 115}, "RESP": {8, 25}, "SpO2": {90, 100}, "TEMP": {36, 38.5},
		"ABPSys": {80, 180}, "ABPDias": {40, 120}, "ABPMean": {55, 140}, "PERF": {1, 5}}
	for seed := range uint64(5) {
		all := series(DefaultSimulation(seed, time.UnixMilli(0), 4*3600))
		if len(all) != len(bounds) {
			t.Fatalf("%d signals", len(all))
		}
		for name, texts := range all {
			n := numbers(t, texts)
			if low, high := slices.Min(n), slices.Max(n); low < bounds[name][0] || high > bounds[name][1] || low == high {
				t.Errorf("seed %d: %s runs from %g to %g", seed, name, low, high)
			}
		}
		sys, dia, mean := numbers(t, all["ABPSys"]), numbers(t, all["ABPDias"]), numbers(t, all["ABPMean"])
		for i := range sys {
			if !(dia[i] < mean[i] && mean[i] < sys[i]) || math.Abs(mean[i]-(dia[i]+(sys[i]-dia[i])/3)) > 0.5 {
				t.Fatalf("seed %d: pressures %g/%g, mean %g", seed, sys[i], dia[i], mean[i])
			}
		}
	}
}

// With the drifts at rest the heart's rate moves with the breath alone: it is the same again one breath later.
func TestHeartFollowsTheBreath(t *testing.T) {
	s := DefaultSimulation(1, time.UnixMilli(0), 240)
	s.RateWander, s.BreathWander, s.ToneWander = 0, 0, 0
	hr := numbers(t, series(s)["HR"])
	const breath = 4 // rows: 15 breaths a minute, a row a second
	if low, high := slices.Min(hr), slices.Max(hr); low != 75 || high != 81 {
		t.Errorf("the rate runs from %g to %g", low, high)
	}
	if !slices.Equal(hr[breath:], hr[:len(hr)-breath]) || hr[0] == hr[breath/2] {
		t.Errorf("the rate does not follow the breath: %v", hr[:2*breath])
	}
}

// The finger probe's readings go missing together and come back; a probe that stays on misses none.
func TestProbeComesOff(t *testing.T) {
	s := DefaultSimulation(3, time.UnixMilli(0), 3600)
	all := series(s)
	off := 0
	for i, text := range all["SpO2"] {
		if text == "" {
			off++
		}
		if (text == "") != (all["PULSE"][i] == "") || (text == "") != (all["PERF"][i] == "") || all["HR"][i] == "" {
			t.Fatalf("row %d: the probe is half off", i)
		}
	}
	if off < 30 || off > 900 { // about 8 s in every 3 min
		t.Errorf("off in %d of 3600 rows", off)
	}
	s.ProbeOffEvery = 0
	if slices.Contains(series(s)["SpO2"], "") {
		t.Error("the probe came off though it never should")
	}
}

func TestSimulatedTimes(t *testing.T) {
	s := DefaultSimulation(1, time.UnixMilli(1234), 3)
	s.Interval = 250 * time.Millisecond
	var at []int64
	for row := range Simulate(s) {
		at = append(at, row.At.UnixMilli())
	}
	if !slices.Equal(at, []int64{1234, 1484, 1734}) {
		t.Error(at)
	}
}
