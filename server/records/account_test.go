package records_test

import (
	"crypto/rand"
	"database/sql"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/server/records"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// number publishes a vitals batch under a number of the test's choice.
func (g *gateway) number(n uint64) {
	g.f.t.Helper()
	next := g.next
	g.next = n
	g.publish(g.name, g.sealBatch(message("p1", int(n), "72")))
	g.next = next
}

// report publishes a report under its number on lane self.
func (g *gateway) report(n uint64, r telemetry.Report) {
	g.f.t.Helper()
	g.reportOf([16]byte{1}, n, r)
}

// reportOf is one of a boot of the gateway's kernel.
func (g *gateway) reportOf(boot [16]byte, n uint64, r telemetry.Report) {
	g.f.t.Helper()
	plain, err := telemetry.Encode(telemetry.Batch{Boot: boot, Report: &r})
	if err != nil {
		g.f.t.Fatal(err)
	}
	frame, err := g.period.Seal(seal.Header{Lane: telemetry.LaneSelf, Number: n, Wall: 1, Mono: 1}, plain)
	if err != nil {
		g.f.t.Fatal(err)
	}
	g.publish(g.name, frame)
}

// restart is the gateway's agent started again.
func (g *gateway) restart() {
	g.f.t.Helper()
	_, _ = rand.Read(g.epoch[:])
	g.newPeriod()
	g.bring(g.name)
}

// settled runs the records until all of the journal is opened.
func (f *fixture) settled() {
	f.t.Helper()
	f.until("all is opened", func(s records.Stats) bool { return s.Pending == 0 })
}

// gaps are those of a gateway as text: "2-4 firm".
func (f *fixture) gaps() (out []string) {
	f.t.Helper()
	gaps, err := f.store().Gaps(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, g := range gaps {
		text := fmt.Sprintf("%s %d-%d", g.Lane, g.First, g.Last)
		if g.Firm {
			text += " firm"
		}
		out = append(out, text)
	}
	return out
}

func (f *fixture) wantGaps(when string, want ...string) {
	f.t.Helper()
	f.settled()
	if got := f.gaps(); !slices.Equal(got, want) {
		f.t.Errorf("%s: gaps %q; expected %q", when, got, want)
	}
}

func vitalsLane(assigned uint64, l telemetry.LaneReport) telemetry.Report {
	l.Lane, l.Assigned = telemetry.LaneVitals, assigned
	return telemetry.Report{Lanes: []telemetry.LaneReport{l}}
}

func held(runs ...telemetry.Span) telemetry.LaneReport {
	return telemetry.LaneReport{Held: telemetry.NewSpans(runs, false)}
}

func TestAGapIsWhatNobodyAccountsFor(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for _, n := range []uint64{0, 1, 4, 7} {
		g.number(n)
	}
	f.wantGaps("numbers are left out", "vitals 2-3", "vitals 5-6")
	noticed, err := f.store().Gaps(f.ctx)
	if err != nil || time.Since(noticed[0].Since) > time.Hour {
		t.Fatalf("%+v %v", noticed, err)
	}
	// The gateway still has 2, and 5 is void: what is left is 3 and 6, and a number that it assigned and that has not come.
	l := held(telemetry.Span{First: 2, Last: 2})
	l.Void = telemetry.NewSpans([]telemetry.Span{{First: 5, Last: 5}}, false)
	g.report(0, vitalsLane(9, l))
	f.wantGaps("after a report", "vitals 3-3 firm", "vitals 6-6 firm", "vitals 8-8 firm")
	later, err := f.store().Gaps(f.ctx)
	if err != nil || !later[0].Since.Equal(noticed[0].Since) {
		t.Errorf("a gap that shrinks forgets since when: %v, was %v (%v)", later[0].Since, noticed[0].Since, err)
	}
	// A gap that fills is gone, also when it was accounted for otherwise.
	for _, n := range []uint64{3, 5, 8} {
		g.number(n)
	}
	f.wantGaps("after some turned up", "vitals 6-6 firm")
	// What is held no more and did not come is missing.
	g.report(1, vitalsLane(9, telemetry.LaneReport{}))
	f.wantGaps("nothing is held", "vitals 6-6 firm", "vitals 2-2 firm") // the longest known first
	// What came after the report may be on its way.
	g.number(11)
	f.wantGaps("beyond the report", "vitals 6-6 firm", "vitals 2-2 firm", "vitals 9-10")
	for _, n := range []uint64{2, 6, 10, 9} {
		g.number(n)
	}
	f.wantGaps("all came")
}

// TestAGapAcrossARestart: an epoch that ended says no more; what is left of it is what the next one's reports hold.
func TestAGapAcrossARestart(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	former := g.epoch
	for _, n := range []uint64{0, 1, 3} {
		g.number(n)
	}
	g.report(0, vitalsLane(8, held(telemetry.Span{First: 2, Last: 2}, telemetry.Span{First: 4, Last: 7})))
	f.wantGaps("all is held")
	g.restart()
	g.number(0)
	f.wantGaps("before the first report of the new epoch")
	left := held(telemetry.Span{First: 4, Last: 5})
	left.Epoch, left.Lane, left.Assigned = former, telemetry.LaneVitals, 6
	r := vitalsLane(1, telemetry.LaneReport{})
	r.At.Mono = 100
	r.Lanes = append(r.Lanes, left)
	g.report(0, r)
	f.wantGaps("the gateway has only some of it", "vitals 2-2 firm", "vitals 6-7 firm")
	r.Lanes = r.Lanes[:1]
	g.report(1, r)
	f.wantGaps("the gateway has nothing of it", "vitals 2-2 firm", "vitals 4-7 firm")
	// An old report that arrives late takes nothing back.
	epoch, period := g.epoch, g.period
	g.epoch = former
	g.newPeriod()
	g.bring("gw-1")
	g.report(1, vitalsLane(8, held(telemetry.Span{First: 2, Last: 7})))
	for n := uint64(4); n < 8; n++ {
		g.number(n)
	}
	g.epoch, g.period = epoch, period
	f.wantGaps("an old report", "vitals 2-2 firm")
}

// TestAKilledAgentLeavesNoGapThatNobodyCanFill: what an epoch assigned after its last report is known as far as it was journaled or is held.
func TestAKilledAgentLeavesNoGapThatNobodyCanFill(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.report(0, vitalsLane(1, telemetry.LaneReport{}))
	for n := range uint64(5) {
		g.number(n)
	}
	g.restart()
	g.report(0, telemetry.Report{At: telemetry.Stamp{Mono: 9}})
	f.wantGaps("all that is known of came")
}

// TestOnlyTheNewestReportSaysWhatIsHeld, whatever order they are read in.
func TestOnlyTheNewestReportSaysWhatIsHeld(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.number(0)
	g.report(1, vitalsLane(3, held(telemetry.Span{First: 2, Last: 2})))
	g.report(0, vitalsLane(3, held(telemetry.Span{First: 1, Last: 1})))
	f.wantGaps("the older came last", "vitals 1-1 firm")

	// A late report of a former epoch knows nothing of the new one, whose own is still to come.
	former, period := g.epoch, g.period
	g.restart()
	g.number(0)
	g.number(2)
	f.wantGaps("a new epoch", "vitals 1-1 firm", "vitals 1-1")
	g.epoch, g.period = former, period
	r := vitalsLane(3, held(telemetry.Span{First: 1, Last: 2}))
	r.At.Mono = 50
	g.report(2, r)
	f.wantGaps("a late report", "vitals 1-1")
}

// TestALateReportKnowsNothingOfAnEpochOfTheSameMoment: two epochs may have come first in one millisecond, or at nodes whose clocks differ.
func TestALateReportKnowsNothingOfAnEpochOfTheSameMoment(t *testing.T) {
	for name, step := range map[string]time.Duration{"the same": 0, "the clock went back": -time.Hour} {
		f := setup(t)
		f.step = 0
		g := f.gateway("gw-1").enrol().bring("gw-1")
		g.number(0)
		g.report(0, telemetry.Report{})
		former, period := g.epoch, g.period
		f.settled()
		f.clock.set(f.clock.Now().Add(step))
		g.restart()
		g.number(0)
		g.number(2)
		f.wantGaps(name, "vitals 1-1")
		g.epoch, g.period = former, period
		g.report(1, telemetry.Report{At: telemetry.Stamp{Mono: 50}})
		f.wantGaps(name, "vitals 1-1")
	}
}

// TestAFormerEpochIsOver: below its highest number nothing more is to come but what is held.
func TestAFormerEpochIsOver(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	former := g.epoch
	g.report(0, telemetry.Report{})
	for _, n := range []uint64{0, 1, 5} {
		g.number(n)
	}
	f.settled()
	g.restart()
	l := held(telemetry.Span{First: 2, Last: 2})
	l.Epoch, l.Lane, l.Assigned = former, telemetry.LaneVitals, 3
	g.report(0, telemetry.Report{At: telemetry.Stamp{Mono: 7}, Lanes: []telemetry.LaneReport{l}})
	f.wantGaps("one is held", "vitals 3-4 firm")
}

// TestADiskThatCannotBeReadMakesNoFirmGap: its numbers are in no report, and may come back.
func TestADiskThatCannotBeReadMakesNoFirmGap(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.number(0)
	r := vitalsLane(4, telemetry.LaneReport{})
	r.Buffer.Unread = 1
	g.report(0, r)
	f.wantGaps("one file cannot be read", "vitals 1-3")
}

// TestTheAccountOutlivesItsBatches: disposal takes rows away, and their numbers do not look missing then.
func TestTheAccountOutlivesItsBatches(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range uint64(20) {
		g.number(n)
	}
	f.settled()
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error { _, err := tx.Exec("DELETE FROM batches"); return err }); err != nil {
		t.Fatal(err)
	}
	g.number(20)
	g.report(0, vitalsLane(21, telemetry.LaneReport{}))
	f.wantGaps("after a disposal")
}

// TestReportsAndArrivalsInAnyOrder holds the account against one made of plain sets, with restarts of the records in between.
func TestReportsAndArrivalsInAnyOrder(t *testing.T) {
	for seed := range uint64(6) {
		rnd := mrand.New(mrand.NewPCG(seed, 7))
		f := setup(t)
		g := f.gateway("gw-1").enrol().bring("gw-1")
		const most = 60
		journaled, void := map[uint64]bool{}, map[uint64]bool{}
		reports := uint64(0)
		var heldNow map[uint64]bool
		covered := uint64(0)
		top := uint64(0)
		for step := range 40 {
			switch rnd.IntN(6) {
			case 0:
				covered = max(covered, top, rnd.Uint64N(most))
				heldNow = map[uint64]bool{}
				l := telemetry.LaneReport{}
				var runs []telemetry.Span
				for n := range covered {
					if !journaled[n] && rnd.IntN(3) == 0 {
						heldNow[n] = true
						runs = append(runs, telemetry.Span{First: n, Last: n})
					}
				}
				if n := rnd.Uint64N(most); rnd.IntN(2) == 0 {
					void[n] = true
					l.Void = telemetry.NewSpans([]telemetry.Span{{First: n, Last: n}}, false)
				}
				l.Held = telemetry.NewSpans(runs, false)
				if l.Held.Upper { // the model below knows no upper bounds
					l.Held, heldNow = telemetry.Spans{}, map[uint64]bool{}
				}
				g.report(reports, vitalsLane(covered, l))
				reports++
			default:
				for range 1 + rnd.IntN(5) {
					n := min(top+rnd.Uint64N(4), most-1)
					if rnd.IntN(3) == 0 {
						n = rnd.Uint64N(most)
					}
					if !journaled[n] {
						journaled[n] = true
						top = max(top, n+1)
						g.number(n)
					}
				}
			}
			if rnd.IntN(4) > 0 && step < 39 {
				continue
			}
			f.settled()
			var want []string
			for n := range max(top, covered) {
				if journaled[n] || void[n] || heldNow[n] {
					continue
				}
				text := fmt.Sprint(n)
				if n < covered {
					text += "!"
				}
				want = append(want, text)
			}
			var got []string
			gaps, err := f.store().Gaps(f.ctx)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(gaps, func(a, b records.Gap) int { return int(a.First) - int(b.First) })
			for _, gap := range gaps {
				if gap.Lane == telemetry.LaneVitals {
					for n := gap.First; n <= gap.Last; n++ {
						got = append(got, fmt.Sprint(n)+map[bool]string{true: "!"}[gap.Firm])
					}
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, step %d: missing %s; expected %s", seed, step, strings.Join(got, " "), strings.Join(want, " "))
			}
		}
	}
}

// TestAReportSentOnceMoreIsNotTheNewest: after a restore a gateway sends what it delivered once more, behind what is new. A report of a former
// boot among it says nothing of what is held now.
func TestAReportSentOnceMoreIsNotTheNewest(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	now := f.clock.Now().UnixMilli()
	trusted := func(at int64) telemetry.ClockReport {
		return telemetry.ClockReport{Known: true, Trusted: true, Offset: at - 1}
	}
	former, period := g.epoch, g.period
	g.restart()
	g.number(0)
	g.number(2)
	newer := vitalsLane(3, held(telemetry.Span{First: 1, Last: 1}))
	newer.At, newer.Clock = telemetry.Stamp{Wall: 1}, trusted(now)
	g.reportOf([16]byte{2}, 0, newer)
	f.wantGaps("the present boot's report")
	g.epoch, g.period = former, period
	older := vitalsLane(1, telemetry.LaneReport{})
	older.At, older.Clock = telemetry.Stamp{Wall: 1}, trusted(now-60_000)
	g.reportOf([16]byte{1}, 0, older)
	g.number(0)
	f.wantGaps("a former boot's, sent once more")
	if beats, err := f.store().Heartbeats(f.ctx, "gw-1"); err != nil || beats.Epoch == former.String() {
		t.Errorf("the former epoch's report stands as the newest: %+v %v", beats, err)
	}

	// A time that is still to come was told by a wrong clock: it keeps no later report away.
	ahead := older
	ahead.Clock = trusted(now + 10*365*24*3600_000)
	g.restart()
	g.reportOf([16]byte{3}, 0, ahead)
	g.restart()
	g.reportOf([16]byte{4}, 0, newer)
	f.settled()
	if beats, err := f.store().Heartbeats(f.ctx, "gw-1"); err != nil || beats.Epoch != g.epoch.String() {
		t.Errorf("a report of ten years ahead stays the newest: %+v %v", beats, err)
	}
}

// TestAReportThatIsNotWholeTakesNothingBack: what the former one said is held may be in a file that cannot be read now, or of an epoch that a full
// report has no room for.
func TestAReportThatIsNotWholeTakesNothingBack(t *testing.T) {
	for name, change := range map[string]func(r *telemetry.Report){
		"unread files": func(r *telemetry.Report) { r.Buffer.Unread = 1 },
		"a full report": func(r *telemetry.Report) {
			for i := len(r.Lanes); i < telemetry.MaxLanes; i++ {
				r.Lanes = append(r.Lanes, telemetry.LaneReport{Epoch: telemetry.Epoch{1, byte(i)}, Lane: telemetry.LaneVitals})
			}
		},
	} {
		f := setup(t)
		g := f.gateway("gw-1").enrol().bring("gw-1")
		g.number(0)
		g.report(0, vitalsLane(3, held(telemetry.Span{First: 1, Last: 2})))
		g.restart()
		r := vitalsLane(0, telemetry.LaneReport{})
		r.At.Mono = 7
		change(&r)
		g.report(0, r)
		f.wantGaps(name)
		r = vitalsLane(0, telemetry.LaneReport{})
		r.At.Mono = 8
		g.report(1, r)
		f.wantGaps(name+", and then a whole one", "vitals 1-2 firm")
	}
}
