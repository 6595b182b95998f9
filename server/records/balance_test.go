package records_test

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"wardlink/server/records"
	"wardlink/telemetry"
)

// runsOf makes ascending runs of the numbers below n that pick chooses.
func runsOf(n uint64, pick func(uint64) bool) (out []telemetry.Span) {
	for i := range n {
		if !pick(i) {
			continue
		}
		if k := len(out); k > 0 && out[k-1].Last+1 == i {
			out[k-1].Last = i
			continue
		}
		out = append(out, telemetry.Span{First: i, Last: i})
	}
	return out
}

func has(runs []telemetry.Span, n uint64) bool {
	for _, r := range runs {
		if r.First <= n && n <= r.Last {
			return true
		}
	}
	return false
}

// TestBalanceCountsEachNumberOnce holds the set arithmetic against a walk over every number.
func TestBalanceCountsEachNumberOnce(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		n := 1 + r.Uint64N(40)
		some := func(share int) []telemetry.Span {
			return runsOf(n, func(uint64) bool { return r.IntN(100) < share })
		}
		upper := func(s []telemetry.Span) telemetry.Spans {
			return telemetry.Spans{Runs: s, Upper: len(s) > 0 && r.IntN(4) == 0}
		}
		l := records.Ledger{
			Lane: telemetry.Lane(r.IntN(telemetry.LaneCount)), Journaled: some(60), Held: upper(some(20)), Void: upper(some(10)), Lost: upper(some(10)),
			Parked: r.Uint64N(4), Assigned: r.Uint64N(n + 5), Covered: r.Uint64N(n + 5), Told: true,
		}
		l.Covered = min(l.Covered, l.Assigned)
		got := l.Balance()

		end := l.Assigned
		for i := range n {
			if has(l.Journaled, i) {
				end = max(end, i+1)
			}
			if has(l.Lost.Runs, i) {
				end = max(end, i+1)
			}
		}
		order := []*telemetry.Spans{&l.Held, &l.Lost, &l.Void}
		if l.Lane == telemetry.LaneSelf {
			order = []*telemetry.Spans{&l.Void, &l.Held, &l.Lost} // as what is held when a report is made is void once it is kept
		}
		slices.SortStableFunc(order, func(x, y *telemetry.Spans) int {
			switch {
			case x.Upper == y.Upper:
				return 0
			case x.Upper:
				return 1
			}
			return -1
		})
		count := map[*telemetry.Spans]uint64{}
		var journaled, untold, missing uint64
	numbers:
		for i := range end {
			if has(l.Journaled, i) {
				journaled++
				continue
			}
			for _, s := range order {
				if has(s.Runs, i) {
					count[s]++
					continue numbers
				}
			}
			if i >= l.Covered {
				untold++
			} else {
				missing++
			}
		}
		parked := min(l.Parked, count[&l.Held])
		want := []uint64{end, journaled, count[&l.Held] - parked + untold, parked, count[&l.Lost], count[&l.Void], untold}
		have := []uint64{got.Assigned, got.Journaled, got.Buffered, got.Parked, got.Lost, got.Void, got.Untold}
		if !slices.Equal(have, want) || got.Difference() != int64(missing) {
			t.Fatalf("seed %d: %+v\ngives %v, %d missing; expected %v, %d", seed, l, have, got.Difference(), want, missing)
		}
		for _, m := range got.Missing {
			for i := m.First; i <= m.Last; i++ {
				if has(l.Journaled, i) || i >= l.Covered {
					t.Fatalf("seed %d: %+v: %d is named as missing", seed, l, i)
				}
			}
		}
		if upper := untold > 0 || l.Held.Upper && count[&l.Held] > 0; upper != (got.AtMost&records.ClassBuffered != 0) {
			t.Fatalf("seed %d: %+v: the upper bound of what is buffered is %t", seed, l, !upper)
		}
	}
}

// balance is the one row of a lane.
func (f *fixture) balance(gateway string, lane telemetry.Lane) (out []records.Balance) {
	f.t.Helper()
	f.settled()
	a, err := f.store().NumberAccount(f.ctx, gateway)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, b := range a.Rows {
		if b.Lane == lane {
			out = append(out, b)
		}
	}
	return out
}

func shown(b records.Balance) string {
	upper := ""
	if b.AtMost != 0 {
		upper = fmt.Sprintf(" at most %d", b.AtMost)
	}
	return fmt.Sprintf("%d = %d (%d %d %d) + %d + %d + %d + %d, %d%s", b.Assigned, b.Journaled, b.Stored, b.Pending, b.Dead, b.Buffered, b.Parked,
		b.Lost, b.Void, b.Difference(), upper)
}

func (f *fixture) wantBalance(when, gateway, want string, balances bool) {
	f.t.Helper()
	rows := f.balance(gateway, telemetry.LaneVitals)
	if len(rows) != 1 {
		f.t.Fatalf("%s: %d rows", when, len(rows))
	}
	if got := shown(rows[0]); got != want || rows[0].Balances() != balances {
		f.t.Errorf("%s: %s, balances: %t; expected %s, %t", when, got, rows[0].Balances(), want, balances)
	}
}

// TestBalanceOfAGateway walks one lane through what can become of its batches.
func TestBalanceOfAGateway(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for _, n := range []uint64{0, 1, 2} {
		g.number(n)
	}
	f.wantBalance("no report", "gw-1", "3 = 3 (3 0 0) + 0 + 0 + 0 + 0, 0", false)

	l := held(telemetry.Span{First: 3, Last: 5})
	l.Parked = 1
	l.Void = telemetry.NewSpans([]telemetry.Span{{First: 6, Last: 6}}, false)
	l.Lost = telemetry.NewSpans([]telemetry.Span{{First: 7, Last: 8}}, false)
	g.report(0, vitalsLane(9, l))
	f.wantBalance("a report", "gw-1", "9 = 3 (3 0 0) + 2 + 1 + 2 + 1, 0", true)
	g.number(4) // in flight at the report
	f.wantBalance("one came", "gw-1", "9 = 4 (4 0 0) + 1 + 1 + 2 + 1, 0", true)
	g.number(7) // called lost, and turned up
	f.wantBalance("a lost one came", "gw-1", "9 = 5 (5 0 0) + 1 + 1 + 1 + 1, 0", true)
	g.number(6) // called void, and turned up
	f.wantBalance("a void one came", "gw-1", "9 = 6 (6 0 0) + 1 + 1 + 1 + 0, 0", true)
	g.number(9) // assigned after the report
	f.wantBalance("a new one", "gw-1", "10 = 7 (7 0 0) + 1 + 1 + 1 + 0, 0", true)
	g.number(12) // and a later one: 10 and 11 are on their way
	f.wantBalance("newest first", "gw-1", "13 = 8 (8 0 0) + 3 + 1 + 1 + 0, 0 at most 1", true)
	g.report(1, vitalsLane(13, held(telemetry.Span{First: 3, Last: 3}, telemetry.Span{First: 11, Last: 11})))
	f.wantBalance("5 and 10 are nowhere", "gw-1", "13 = 8 (8 0 0) + 2 + 0 + 1 + 0, 2", false)
	rows := f.balance("gw-1", telemetry.LaneVitals)
	if want := []telemetry.Span{{First: 5, Last: 5}, {First: 10, Last: 10}}; !slices.Equal(rows[0].Missing, want) {
		t.Errorf("missing %v; expected %v", rows[0].Missing, want)
	}
	for _, n := range []uint64{3, 5, 10, 11} {
		g.number(n)
	}
	f.wantBalance("all came", "gw-1", "13 = 12 (12 0 0) + 0 + 0 + 1 + 0, 0", true)

	// What cannot be opened is journaled all the same: pending, then dead.
	g.next = 13
	g.publish("gw-1", g.seal([]byte("no batch")))
	f.until("it is dead", func(s records.Stats) bool { return s.Dead == 1 })
	f.wantBalance("one is dead", "gw-1", "14 = 13 (12 0 1) + 0 + 0 + 1 + 0, 0", true)
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE account_stored SET stored = stored - 1")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	f.wantBalance("a state that is lost", "gw-1", "14 = 13 (11 0 1) + 0 + 0 + 1 + 0, 0", false)
}

// TestBalanceOfSelf: a report that a newer one took the place of is void, though the newer one still held it when it was made.
func TestBalanceOfSelf(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	self := func(assigned uint64, l telemetry.LaneReport) telemetry.Report {
		l.Lane, l.Assigned = telemetry.LaneSelf, assigned
		return telemetry.Report{Lanes: []telemetry.LaneReport{l}}
	}
	g.report(0, self(1, telemetry.LaneReport{}))
	l := held(telemetry.Span{First: 1, Last: 1})
	l.Void = telemetry.NewSpans([]telemetry.Span{{First: 1, Last: 1}}, false)
	g.report(2, self(3, l))
	rows := f.balance("gw-1", telemetry.LaneSelf)
	if got, want := shown(rows[0]), "3 = 2 (2 0 0) + 0 + 0 + 0 + 1, 0"; got != want {
		t.Errorf("%s; expected %s", got, want)
	}
}

// TestBalanceOfFormerEpochs: a former epoch that no report ever spoke of is told by the next one's, and not before.
func TestBalanceOfFormerEpochs(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.number(0)
	g.number(1)
	f.wantBalance("killed before its first report", "gw-1", "2 = 2 (2 0 0) + 0 + 0 + 0 + 0, 0", false)
	g.restart()
	g.report(0, vitalsLane(0, telemetry.LaneReport{}))
	f.wantBalance("the next start's report", "gw-1", "2 = 2 (2 0 0) + 0 + 0 + 0 + 0, 0", true)
	all, err := f.store().NumberAccounts(f.ctx, "", 10)
	if err != nil || len(all) != 1 || all[0].Gateway != "gw-1" || len(all[0].Rows) != 2 || all[0].Reported.IsZero() {
		t.Errorf("%+v %v", all, err)
	}
}

// TestBalanceOfATornLane: of a lane that leaves out every other number the newest are looked at, and the rest is not called whole.
func TestBalanceOfATornLane(t *testing.T) {
	l := records.Ledger{Assigned: 10, Covered: 10, Told: true, Former: 6, FormerJournaled: 3, Journaled: []telemetry.Span{{First: 6, Last: 9}}, Stored: 7}
	b := l.Balance()
	if b.Difference() != 3 || b.AtMost != records.ClassMissing || b.Balances() {
		t.Errorf("%+v", b)
	}
}

// TestAFormerEpochsLastWord: the next epoch's report comes first and knows nothing of the numbers that came to nothing. They are not missing while
// a report of their own epoch is still held.
func TestAFormerEpochsLastWord(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	former, period := g.epoch, g.period
	g.number(0)
	g.number(2)
	f.settled()
	g.restart()
	left := []telemetry.LaneReport{
		{Epoch: former, Lane: telemetry.LaneVitals, Assigned: 3},
		{Epoch: former, Lane: telemetry.LaneSelf, Assigned: 3, Held: telemetry.NewSpans([]telemetry.Span{{First: 2, Last: 2}}, false)},
	}
	g.report(0, telemetry.Report{At: telemetry.Stamp{Mono: 7}, Lanes: left})
	f.wantBalance("the next epoch's report", "gw-1", "3 = 2 (2 0 0) + 1 + 0 + 0 + 0, 0 at most 1", true)
	g.epoch, g.period = former, period
	said := vitalsLane(3, telemetry.LaneReport{Void: telemetry.NewSpans([]telemetry.Span{{First: 1, Last: 1}}, false)})
	said.Lanes = append(said.Lanes, telemetry.LaneReport{Lane: telemetry.LaneSelf, Assigned: 3, Void: telemetry.NewSpans([]telemetry.Span{{First: 0, Last: 1}}, false)})
	g.report(2, said)
	f.wantBalance("its own last one", "gw-1", "3 = 2 (2 0 0) + 0 + 0 + 0 + 1, 0", true)

	// Without a word on it the number is missing once no report is left that could say it.
	h := f.gateway("gw-2").enrol().bring("gw-2")
	former, period = h.epoch, h.period
	h.number(0)
	h.number(2)
	f.settled()
	h.restart()
	left[0].Epoch, left[1].Epoch = former, former
	h.report(0, telemetry.Report{At: telemetry.Stamp{Mono: 7}, Lanes: left})
	h.epoch, h.period = former, period
	h.report(2, vitalsLane(3, telemetry.LaneReport{}))
	f.wantBalance("nothing said", "gw-2", "3 = 2 (2 0 0) + 0 + 0 + 0 + 0, 1", false)

	// Nor while all that is left of its reports is parked: the hospital refused it, and it does not come.
	k := f.gateway("gw-3").enrol().bring("gw-3")
	former = k.epoch
	k.number(0)
	k.number(2)
	f.settled()
	k.restart()
	left[0].Epoch, left[1].Epoch, left[1].Parked = former, former, 1
	k.report(0, telemetry.Report{At: telemetry.Stamp{Mono: 7}, Lanes: left})
	f.wantBalance("its last one is parked", "gw-3", "3 = 2 (2 0 0) + 0 + 0 + 0 + 0, 1", false)
}

// TestABatchLeftByACrashIsStoredOnce: the server stopped while it opened a batch that it had not acknowledged, and so its gateway sent it again:
// it stands in the journal twice, and is met as left by the crash in one pass.
func TestABatchLeftByACrashIsStoredOnce(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	frame := g.sealBatch(message("P1", 1, "72"))
	g.publish("gw-1", frame)
	g.publish("gw-1", frame)
	g.report(0, vitalsLane(1, telemetry.LaneReport{}))
	f.settled()
	f.wantBalance("no crash", "gw-1", "1 = 1 (1 0 0) + 0 + 0 + 0 + 0, 0", true)
	stream := "(SELECT id FROM streams WHERE lane = 1)"
	f.exec("UPDATE batches SET state = 1 WHERE stream = "+stream, "UPDATE account_stored SET stored = 0 WHERE stream = "+stream, "UPDATE records_totals SET seq = 0")
	f.wantBalance("left by a crash", "gw-1", "1 = 1 (1 0 0) + 0 + 0 + 0 + 0, 0", true)
	if got := f.values("P1", 10); len(got) != 1 {
		t.Errorf("values %v", got)
	}
	if n := f.count("SELECT attempts FROM batches WHERE stream = " + stream); n != 2 {
		t.Errorf("opened %d times", n)
	}
}
