package records_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/server/records"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
)

// What the watchers ask is what has become of the batches.
func TestDeadByGatewayAndBacklog(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	early := f.gateway("gw-2") // its key is not known yet: its batch waits
	g.publish("gw-1", g.sealBatch(message("p1", 1, "60")))
	g.publish("gw-1", spoil(g.sealBatch(message("p1", 2, "61"))))
	g.publish("gw-1", g.seal([]byte("no batch")))
	early.publish("gw-2", early.sealBatch(message("p2", 1, "62")))
	r := f.open()
	f.settleWith("two dead, one waits", r, func(s records.Stats) bool { return s.Dead == 2 && s.Batches == 1 && s.Pending == 1 })
	dead, err := r.DeadByGateway(f.ctx, 10)
	if err != nil || len(dead) != 1 || dead[0].Gateway != "gw-1" || dead[0].Batches != 2 || dead[0].Reason == "" || dead[0].Oldest.IsZero() {
		t.Errorf("%+v, %v", dead, err)
	}
	b, err := r.Backlog(f.ctx)
	if err != nil || b.Pending != 1 || b.Oldest.IsZero() || b.Oldest.After(f.clock.Now()) {
		t.Errorf("%+v, %v", b, err)
	}
	early.enrol().bring("gw-2")
	f.settleWith("none waits", r, func(s records.Stats) bool { return s.Pending == 0 && s.Batches == 2 })
	if b, err := r.Backlog(f.ctx); err != nil || b.Pending != 0 || !b.Oldest.IsZero() {
		t.Errorf("%+v, %v", b, err)
	}
}

// Neither question may cost more as the years of stored batches grow: they walk the index of what is not stored.
func TestWatchersReadNoWholeTable(t *testing.T) {
	f := setup(t)
	for _, q := range records.WatchQueries() {
		plan := strings.Split(sqldbtest.Plan(t, f.db, q, 10), "\n")
		if !slices.ContainsFunc(plan, func(s string) bool {
			return s == "SEARCH b USING INDEX batches_unsettled (state=?)" || s == "SEARCH batches USING INDEX batches_unsettled (state=?)"
		}) {
			t.Errorf("%s:\n%q", q, plan)
		}
	}
}

func TestGapsAndParkedByGateway(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for _, n := range []uint64{0, 1, 4, 7} {
		g.number(n)
	}
	f.settled()
	r := f.open()
	ask := func(age time.Duration) []records.GapCount {
		t.Helper()
		gaps, err := r.GapsByGateway(f.ctx, f.clock.Now().Add(-age), 10)
		if err != nil {
			t.Fatal(err)
		}
		return gaps
	}
	if gaps := ask(0); len(gaps) != 1 || gaps[0].Gateway != "gw-1" || gaps[0].Batches != 4 || gaps[0].Firm {
		t.Errorf("%+v", gaps)
	}
	if gaps := ask(time.Hour); len(gaps) != 0 {
		t.Errorf("gaps of an hour ago: %+v", gaps)
	}
	l := held(telemetry.Span{First: 2, Last: 3})
	l.Waiting, l.Parked = 2, 2
	g.report(0, vitalsLane(8, l))
	f.settled()
	if gaps := ask(0); len(gaps) != 1 || gaps[0].Batches != 2 || !gaps[0].Firm {
		t.Errorf("after the report: %+v", gaps)
	}
	parked, err := r.ParkedByReport(f.ctx)
	if err != nil || len(parked) != 1 || parked["gw-1"].Batches != 2 || parked["gw-1"].Received.IsZero() {
		t.Errorf("%+v, %v", parked, err)
	}
}
