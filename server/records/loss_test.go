package records_test

import (
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry"
)

// losses are the events that tell of losses, as text.
func (f *fixture) losses() (out []string) {
	f.t.Helper()
	f.settled()
	entries, err := f.journal.Read(1, 10_000)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Kind != journal.KindEvent {
			continue
		}
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil {
			f.t.Fatal(err)
		}
		if ev.Type == audit.BatchesLost || ev.Type == audit.BatchesFound {
			text := fmt.Sprintf("%s %s %d: %s of %s %s", ev.Type, ev.Target, ev.Count, ev.Detail["lost"], ev.Detail["lane"], ev.Detail["numbers"])
			if ev.Detail["at_most"] != "" {
				text += " at most"
			}
			if !strings.HasSuffix(ev.Actor.ID, "/gateway/"+ev.Target) {
				f.t.Errorf("%s: the actor is %q", text, ev.Actor.ID)
			}
			out = append(out, strings.TrimSpace(text))
		}
	}
	return out
}

func lost(upper bool, runs ...telemetry.Span) telemetry.LaneReport {
	return telemetry.LaneReport{Lost: telemetry.NewSpans(runs, upper)}
}

// TestLossIsTold once, by an event with its numbers, however often it is reported; and taken back for what comes after all.
func TestLossIsTold(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for _, n := range []uint64{0, 1} {
		g.number(n)
	}
	gone := lost(false, telemetry.Span{First: 2, Last: 5})
	g.report(0, vitalsLane(8, gone))
	g.report(1, vitalsLane(8, gone))
	want := []string{"batches.lost gw-1 4: 4 of vitals 2-5"}
	if got := f.losses(); !slices.Equal(got, want) {
		t.Fatalf("%q; expected %q", got, want)
	}
	count := func(after time.Duration) string {
		t.Helper()
		list, err := f.open().LossesByGateway(f.ctx, f.clock.Now().Add(-after), 10)
		if err != nil {
			t.Fatal(err)
		}
		n, err := f.store().LossesOf(f.ctx, "gw-1", f.clock.Now().Add(-after))
		if err != nil || len(list) > 0 && n != uint64(list[0].Batches) || len(list) == 0 && n != 0 {
			t.Fatalf("%d %+v %v", n, list, err)
		}
		if len(list) == 0 {
			return ""
		}
		return fmt.Sprintf("%s %d %s %t", list[0].Gateway, list[0].Batches, list[0].Lanes, list[0].AtMost)
	}
	if got := count(time.Hour); got != "gw-1 4 vitals false" {
		t.Errorf("losses by gateway: %q", got)
	}
	g.number(2) // directly above what came last
	g.number(4) // and amid the lost ones
	g.report(2, vitalsLane(10, lost(false, telemetry.Span{First: 2, Last: 5}, telemetry.Span{First: 8, Last: 8})))
	got := f.losses()
	if n := len(got); n < 3 || got[n-1] != "batches.lost gw-1 1: 3 of vitals 3 5 8" || !strings.HasPrefix(got[n-2], "batches.found gw-1") || !strings.HasSuffix(got[n-2], "2 of vitals 3 5") {
		t.Errorf("%q", got)
	}
	for _, n := range []uint64{3, 5, 6, 7, 8, 9} {
		g.number(n)
	}
	if got := f.losses(); !strings.HasSuffix(got[len(got)-1], ": 0 of vitals") {
		t.Errorf("all came: %q", got)
	}
	f.wantBalance("all came", "gw-1", "10 = 10 (10 0 0) + 0 + 0 + 0 + 0, 0", true)
	if got := count(time.Hour); got != "" {
		t.Errorf("losses by gateway once all came: %q", got)
	}
	g.report(3, vitalsLane(40, lost(true, telemetry.Span{First: 20, Last: 29})))
	if got := f.losses(); got[len(got)-1] != "batches.lost gw-1 10: 10 of vitals 20-29 at most" {
		t.Errorf("an upper bound: %q", got)
	}
	f.clock.add(25 * time.Hour)
	if got := count(24 * time.Hour); got != "" {
		t.Errorf("after a day: %q", got)
	}
}

// TestLossOfALastSegment: of a gateway's last file nobody knows how many batches it held. They are lost, at most so many, although no report
// had said that their numbers were used.
func TestLossOfALastSegment(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for _, n := range []uint64{0, 1, 2} {
		g.number(n)
	}
	g.report(0, vitalsLane(3, lost(true, telemetry.Span{First: 3, Last: 502})))
	if got := f.losses(); !slices.Equal(got, []string{"batches.lost gw-1 500: 500 of vitals 3-502 at most"}) {
		t.Errorf("%q", got)
	}
	f.wantBalance("the last file is damaged", "gw-1", "503 = 3 (3 0 0) + 0 + 0 + 500 + 0, 0 at most 2", true)
}

// TestLostIsMoreThanVoid: a batch of which Append failed may be on disk all the same; its monitor's resend is known then, and acknowledged.
// Evicted later it is lost, and not nothing.
func TestLostIsMoreThanVoid(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.number(0)
	l := lost(false, telemetry.Span{First: 1, Last: 2})
	l.Void = telemetry.NewSpans([]telemetry.Span{{First: 2, Last: 3}}, false)
	g.report(0, vitalsLane(4, l))
	if got := f.losses(); !slices.Equal(got, []string{"batches.lost gw-1 2: 2 of vitals 1-2"}) {
		t.Errorf("%q", got)
	}
	f.wantBalance("void, then lost", "gw-1", "4 = 1 (1 0 0) + 0 + 0 + 2 + 1, 0", true)
}

// TestLossIsToldOnceWhenReadAgain: the row that says that the event was written is of one transaction with what the report told.
func TestLossIsToldOnceWhenReadAgain(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.report(0, vitalsLane(8, lost(false, telemetry.Span{First: 0, Last: 7})))
	f.settled()
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE records_totals SET seq = 0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	g.report(1, vitalsLane(8, lost(false, telemetry.Span{First: 0, Last: 7})))
	if got := f.losses(); !slices.Equal(got, []string{"batches.lost gw-1 8: 8 of vitals 0-7"}) {
		t.Errorf("%q", got)
	}
}

// TestWhatIsJournaledIsNotLost, settled or not: a gateway is not told that the hospital has a batch that is being opened when it asks, and may
// call it gone, as it may anything else.
func TestWhatIsJournaledIsNotLost(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.number(0)
	g.number(1)
	f.settled()
	f.exec("UPDATE batches SET state = 1 WHERE number = 0")
	f.exec("UPDATE account_stored SET stored = 1")
	if held, err := f.store().Held(f.ctx, "gw-1"); err != nil || len(held) != 1 || held[0].Runs[0].First != 1 {
		t.Fatalf("the gateway is told of it: %+v %v", held, err)
	}
	g.report(0, vitalsLane(3, lost(false, telemetry.Span{First: 0, Last: 0}, telemetry.Span{First: 2, Last: 2})))
	f.during("the report is kept", func() bool {
		beats, err := f.store().Heartbeats(f.ctx, "gw-1")
		return err == nil && beats.Epoch != ""
	})
	a, err := f.store().NumberAccount(f.ctx, "gw-1")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shown(a.Rows[0]), "3 = 2 (1 1 0) + 0 + 0 + 1 + 0, 0"; got != want || !a.Rows[0].Balances() {
		t.Errorf("%s; expected %s", got, want)
	}
	f.exec("UPDATE batches SET state = 2 WHERE number = 0 AND state = 1")
	if got := f.losses(); !slices.Equal(got, []string{"batches.lost gw-1 1: 1 of vitals 2"}) {
		t.Errorf("%q", got)
	}
}

// TestOneGatewaysClaimHidesNoOthers: what a gateway says of itself may be anything, and other gateways' losses are told all the same.
func TestOneGatewaysClaimHidesNoOthers(t *testing.T) {
	f := setup(t)
	liar := f.gateway("gw-1").enrol().bring("gw-1")
	all := lost(false, telemetry.Span{First: 0, Last: math.MaxInt64 - 1})
	r := vitalsLane(1, all)
	all.Lane, all.Assigned = telemetry.LaneAlarm, 1
	r.Lanes = append(r.Lanes, all)
	liar.report(0, r)
	g := f.gateway("gw-2").enrol().bring("gw-2")
	g.report(0, vitalsLane(8, lost(false, telemetry.Span{First: 2, Last: 5})))
	f.settled()
	list, err := f.open().LossesByGateway(f.ctx, f.clock.Now().Add(-time.Hour), 10)
	if err != nil || len(list) != 2 || list[1].Batches != 4 || list[0].Batches <= 0 {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := f.store().NumberAccounts(f.ctx, "", 10); err != nil {
		t.Error(err)
	}
	if n, err := f.store().LossesOf(f.ctx, "gw-1", f.clock.Now().Add(-time.Hour)); err != nil || n == 0 {
		t.Error(n, err)
	}
}

// The same of numbers that a gateway says it assigned, and that are nowhere.
func TestOneGatewaysGapHidesNoOthers(t *testing.T) {
	f := setup(t)
	r := vitalsLane(math.MaxInt64, telemetry.LaneReport{})
	r.Lanes = append(r.Lanes, telemetry.LaneReport{Lane: telemetry.LaneAlarm, Assigned: math.MaxInt64})
	f.gateway("gw-1").enrol().bring("gw-1").report(0, r)
	f.gateway("gw-2").enrol().bring("gw-2").report(0, vitalsLane(8, telemetry.LaneReport{}))
	f.settled()
	list, err := f.open().GapsByGateway(f.ctx, f.clock.Now().Add(time.Hour), 10)
	if err != nil || len(list) != 2 || list[1].Batches != 8 || list[0].Batches <= 0 {
		t.Errorf("%+v %v", list, err)
	}
}
