package records_test

import (
	"slices"
	"testing"

	"wardlink/telemetry"
)

// TestHeldIsWhatNeedNotComeAgain: a batch in the middle of being opened when a snapshot was taken has its number in the account and
// its frame nowhere.
func TestHeldIsWhatNeedNotComeAgain(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	former := g.epoch
	for _, n := range []uint64{0, 1, 2, 5, 6} {
		g.number(n)
	}
	f.settled()
	g.restart()
	g.number(0)
	f.settled()
	other := f.gateway("gw-2").enrol().bring("gw-2")
	other.number(7)
	f.settled()
	f.exec("UPDATE batches SET state = 1 WHERE number = 6")
	held, err := f.store().Held(f.ctx, "gw-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(held) != 2 {
		t.Fatalf("%+v; want two epochs", held)
	}
	for _, h := range held {
		want := []telemetry.Span{{First: 0, Last: 0}}
		if h.Epoch == former {
			want = []telemetry.Span{{First: 0, Last: 2}, {First: 5, Last: 5}}
		}
		if h.Lane != telemetry.LaneVitals || !slices.Equal(h.Runs, want) {
			t.Errorf("%+v; want %v", h, want)
		}
	}
	if held, err := f.store().Held(f.ctx, "gw-3"); err != nil || len(held) > 0 {
		t.Errorf("of a gateway that sent nothing: %v, %v", held, err)
	}
}

// TestHeldNamesReportsThatNewerOnesReplaced: a gateway has them as delivered and need not send them; what an upper bound names may be others.
func TestHeldNamesReportsThatNewerOnesReplaced(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	l := telemetry.LaneReport{Lane: telemetry.LaneSelf, Assigned: 5, Void: telemetry.NewSpans([]telemetry.Span{{First: 0, Last: 3}}, false)}
	g.report(4, telemetry.Report{Lanes: []telemetry.LaneReport{l}})
	f.settled()
	held, err := f.store().Held(f.ctx, "gw-1")
	if err != nil || len(held) != 1 || !slices.Equal(held[0].Runs, []telemetry.Span{{First: 0, Last: 4}}) {
		t.Errorf("%+v %v", held, err)
	}
	f.exec("UPDATE account_sets SET upper = 1")
	held, err = f.store().Held(f.ctx, "gw-1")
	if err != nil || len(held) != 1 || !slices.Equal(held[0].Runs, []telemetry.Span{{First: 4, Last: 4}}) {
		t.Errorf("an upper bound: %+v %v", held, err)
	}
}
