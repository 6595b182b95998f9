package demo

import (
	"reflect"
	"testing"
	"time"
)

// TestChaosIsAsPromised: something happens in every three seconds, of every kind, a kill falls in every two on average, and the seed repeats it.
func TestChaosIsAsPromised(t *testing.T) {
	for seed := range uint64(200) {
		for _, seconds := range []int{minChaos, 60, 300} {
			length := time.Duration(seconds) * time.Second
			plan := planChaos(seed, length, 20)
			if !reflect.DeepEqual(plan, planChaos(seed, length, 20)) {
				t.Fatalf("seed %d does not repeat", seed)
			}
			kinds := map[string]int{}
			last := time.Duration(0)
			again, kills := 0, 0
			for _, b := range plan {
				kinds[b.what]++
				kills += b.kills()
				if b.again > 0 {
					again++
				}
				if b.at-last > 3*time.Second || b.at >= length || b.gateway >= 20 {
					t.Fatalf("seed %d: %+v after %s", seed, b, last)
				}
				last = b.at
			}
			if length-last > 3*time.Second || kinds[blowAgent] == 0 || kinds[blowServer] == 0 || kinds[blowCut] == 0 || kills < seconds/2-2 {
				t.Fatalf("seed %d: %d blows in %s: %v, %d of them kills, the last at %s", seed, len(plan), length, kinds, kills, last)
			}
			if seconds == 60 && (again == 0 || kinds[blowHole] == 0) {
				t.Logf("seed %d: %d kills at starts, %d holes", seed, again, kinds[blowHole])
			}
		}
	}
	if reflect.DeepEqual(planChaos(1, time.Minute, 1), planChaos(2, time.Minute, 1)) {
		t.Error("two seeds are one")
	}
}

// TestAmbushRepeats: the first enrolment is hurt as the seed says, everybody once, and not without chaos.
func TestAmbushRepeats(t *testing.T) {
	th := &theatre{Options: Options{Chaos: 10, Seed: 7}}
	a := th.planAmbush(21)
	if !reflect.DeepEqual(a, th.planAmbush(21)) || len(a.agents) != 21 {
		t.Errorf("%+v", a)
	}
	th.Seed = 8
	if reflect.DeepEqual(a, th.planAmbush(21)) {
		t.Error("two seeds are one")
	}
	th.Chaos = 0
	if th.planAmbush(21) != nil {
		t.Error("an ambush without chaos")
	}
}
