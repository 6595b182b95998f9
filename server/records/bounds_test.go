package records_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// A frame of a kilobyte can hold half a million samples. However many such stand in the journal, few are in memory at once.
func TestSmallFramesOfManySamplesAreNotAllOpenedAtOnce(t *testing.T) {
	const batches, most = 48, 40 << 20
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.lane = telemetry.LaneWaveform
	flat := make([]int32, 65536)
	m := second("p1", 1, flat, flat, flat, flat, flat, flat, flat, flat)
	frame := g.sealBatch(m)
	if len(frame) > 4<<10 {
		t.Fatalf("frame of %d bytes", len(frame))
	}
	g.publish("gw-1", frame)
	for n := 1; n < batches; n++ {
		m.Digest[0] = byte(n)
		g.publish("gw-1", g.sealBatch(m))
	}
	r := f.open()
	var opened, worst atomic.Int64
	r.SetDecode(func(b []byte) (telemetry.Batch, error) {
		waiting := opened.Add(1) - f.count("SELECT COUNT(*) FROM batches WHERE state = 2")
		worst.Store(max(worst.Load(), waiting*int64(len(m.Waveforms)*len(flat)*4)))
		return telemetry.Decode(b)
	})
	f.settleWith("stored", r, func(s records.Stats) bool { return s.Batches == batches })
	if worst.Load() > most {
		t.Errorf("%d MB of samples in memory; expected at most %d", worst.Load()>>20, most>>20)
	}
}

// What one gateway's holes cost grows with their number, not with its square: others wait for it.
func TestAGatewayThatLeavesOutEveryOtherNumber(t *testing.T) {
	const batches = 600
	f := setup(t, `CREATE TABLE gap_writes (n INTEGER); INSERT INTO gap_writes VALUES (0);
		CREATE TRIGGER gap_in AFTER INSERT ON account_gaps BEGIN UPDATE gap_writes SET n = n + 1; END;
		CREATE TRIGGER gap_out AFTER DELETE ON account_gaps BEGIN UPDATE gap_writes SET n = n + 1; END`)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	plain, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{message("p", 1, "7")}})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(n uint64) {
		frame, err := g.period.Seal(seal.Header{Lane: g.lane, Number: n, Wall: 1, Mono: 1}, plain)
		if err != nil {
			t.Fatal(err)
		}
		g.publish("gw-1", frame)
	}
	for n := range uint64(batches) {
		publish(2 * n)
	}
	f.until("stored", func(s records.Stats) bool { return s.Batches == batches })
	if gaps, writes := f.count("SELECT COUNT(*) FROM account_gaps"), f.count("SELECT n FROM gap_writes"); gaps != batches-1 || writes > 2*batches {
		t.Errorf("%d gaps, %d rows written", gaps, writes)
	}
	// Then what was missing comes, newest first: runs join, and the highest grows on.
	since := f.count("SELECT MIN(since) FROM account_gaps")
	for n := uint64(2*batches - 1); n > 3; n -= 2 {
		publish(n)
	}
	publish(2 * batches)
	publish(2*batches + 2)
	f.until("filled", func(s records.Stats) bool { return s.Batches == 2*batches })
	gaps, err := f.store().Gaps(f.ctx)
	if err != nil || len(gaps) != 3 || gaps[0].First != 1 || gaps[1].First != 3 || gaps[2].First != 2*batches+1 || gaps[2].Last != 2*batches+1 {
		t.Errorf("%+v, %v", gaps, err)
	}
	if got := gaps[0].Since.UnixMilli(); got != since {
		t.Errorf("a gap that was known was noticed at %d, and now at %d", since, got)
	}
	if n := f.count("SELECT COUNT(*) FROM account_runs"); n != 4 {
		t.Errorf("%d runs", n)
	}
}

func (f *fixture) exec(queries ...string) {
	f.t.Helper()
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		for _, q := range queries {
			if _, err := tx.Exec(q); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		f.t.Fatal(err)
	}
}

// How long something is kept is by its lane, and a lane that holds reports alone has no such time.
func TestContentsOfAnotherLaneAreNotStored(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.lane = telemetry.LaneSelf
	g.publish("gw-1", g.sealBatch(message("p1", 1, "7")))
	g.lane = telemetry.LaneVitals
	report, err := telemetry.Encode(telemetry.Batch{Report: &telemetry.Report{Agent: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	g.publish("gw-1", g.seal(report))
	g.publish("gw-1", g.sealBatch(message("p1", 2, "8")))
	f.until("settled", func(s records.Stats) bool { return s.Batches == 1 && s.Dead == 2 })
	if got := f.values("p1", 10); !slices.Equal(got, []string{"8"}) {
		t.Error(got)
	}
	dead, err := f.open().Dead(f.ctx, records.BatchFilter{Reason: "not of its lane"}, 10)
	if err != nil || dead.Total != 2 || !dead.Batches[0].Kept || f.count("SELECT COUNT(*) FROM gateway_reports") != 0 {
		t.Errorf("%+v, %v", dead, err)
	}
}

// An agent that was updated understands a row of numbers that it did not before, and the device sends its message again.
func TestAnIndexNamesOneThingOfAMessage(t *testing.T) {
	for _, first := range []string{"row of numbers", "waveform"} {
		t.Run(first, func(t *testing.T) {
			f := setup(t)
			g := f.gateway("gw-1").enrol().bring("gw-1")
			wave := second("p1", 1, []int32{1, 2, 3})
			row := wave
			row.Waveforms = nil
			row.Observations = message("p1", 1, "1^2^3").Observations
			row.Observations[0].Index, row.Observations[0].Type = wave.Waveforms[0].Index, "NA"
			batches := []telemetry.Message{row, wave}
			if first == "waveform" {
				slices.Reverse(batches)
			}
			for _, m := range batches {
				g.publish("gw-1", g.sealBatch(m))
			}
			f.until("stored", func(s records.Stats) bool { return s.Batches == 2 })
			s := f.store()
			page, err := s.Search(f.ctx, records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", "p1")}, Limit: 10})
			if err != nil || len(page.Observations) != 1 || (page.Observations[0].Waveform != nil) != (first == "waveform") {
				t.Errorf("%+v, %v", page, err)
			}
		})
	}
}

// Batches that wait for their sealing record are not tried one by one while others are due.
func TestWhatWaitsForItsKeyHoldsUpNoRetry(t *testing.T) {
	const waiting = 2100 // more than one look passes over
	f := setup(t, `CREATE TABLE tried (n INTEGER); INSERT INTO tried VALUES (0);
		CREATE TRIGGER trying AFTER UPDATE OF state ON batches BEGIN UPDATE tried SET n = n + 1 WHERE NEW.state = 1; END`)
	unknown := f.gateway("gw-unknown").bring("gw-unknown")
	plain, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{message("p1", 1, "7")}})
	if err != nil {
		t.Fatal(err)
	}
	for range waiting {
		unknown.publish("gw-unknown", unknown.seal(plain))
	}
	f.until("waiting", func(s records.Stats) bool { return s.Pending == waiting })
	before := f.count("SELECT n FROM tried")
	f.clock.add(6 * time.Minute)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p2", 1, "8")))
	r := f.open()
	failed := false
	r.SetDecode(func(b []byte) (telemetry.Batch, error) {
		if !failed {
			failed = true
			return telemetry.Batch{}, errors.New("not now")
		}
		return telemetry.Decode(b)
	})
	f.settleWith("tried again", r, func(s records.Stats) bool { return s.Batches == 1 && s.Pending == waiting })
	if n := f.count("SELECT n FROM tried") - before; n > 5 {
		t.Errorf("%d batches were tried for one that was due", n)
	}
	// The key comes, and they are opened at once.
	unknown.enrol()
	f.until("opened", func(s records.Stats) bool { return s.Batches == waiting+1 })
}

// A gateway that makes second frames without end hides no other's.
func TestSecondFramesOfOneGatewayHideNoOther(t *testing.T) {
	const flood = 4200
	f := setup(t)
	loud, cloned := f.gateway("gw-loud").enrol().bring("gw-loud"), f.gateway("gw-cloned").enrol().bring("gw-cloned")
	plain, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{message("p1", 1, "7")}})
	if err != nil {
		t.Fatal(err)
	}
	for range flood {
		loud.publish("gw-loud", loud.seal(plain))
		loud.next--
	}
	cloned.publish("gw-cloned", cloned.seal(plain))
	cloned.next--
	cloned.publish("gw-cloned", cloned.seal(plain))
	f.until("read", func(s records.Stats) bool { return s.Batches == 2 })
	told := map[string]int{}
	for _, ev := range f.journal.Events(t) {
		if ev.Type == audit.BatchConflict {
			told[ev.Target]++
		}
	}
	if told["gw-cloned"] != 1 || told["gw-loud"] == 0 || told["gw-loud"] > flood/4 {
		t.Errorf("conflicts told: %v", told)
	}
	if n := f.count("SELECT COUNT(data) FROM batch_conflicts c JOIN streams s ON s.id = c.stream WHERE s.gateway = 'gw-cloned'"); n != 1 {
		t.Errorf("%d frames of the other gateway are kept", n)
	}
}

// A second frame under a number holds readings as the first does, and goes when its time is over.
func TestSecondFramesGoAfterTheirTime(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "7")))
	g.next--
	second := g.sealBatch(message("p1", 2, "8"))
	g.publish("gw-1", second)
	f.ran("stored")
	f.later(30 * testDay)
	f.ran("the first is a range")
	if n := f.count("SELECT COUNT(*) FROM batch_conflicts"); n != 1 || f.count("SELECT COUNT(*) FROM batches") != 0 || !f.holds(string(second)) {
		t.Fatalf("%d second frames", n)
	}
	f.later(336 * testDay)
	f.ran("over")
	events := f.disposals(records.ClassDead)
	if len(events) != 1 || events[0].Count != 1 || events[0].Detail["second_frames"] != "1" {
		t.Errorf("%+v", events)
	}
	f.during("no trace is left", func() bool { return !f.holds(string(second)) })
}

// stuck is a journal that cannot be read from some entry on.
type stuck struct {
	records.Journal
	from uint64
}

func (s stuck) Read(from uint64, limit int) ([]journal.Entry, error) {
	if from >= s.from {
		return nil, errors.New("input/output error")
	}
	return s.Journal.Read(from, min(limit, int(s.from-from)))
}

// oldest are the files of a journal that has nothing before an entry.
type oldest uint64

func (o oldest) Expired(time.Time) []journal.File                       { return nil }
func (o oldest) Dispose(context.Context, journal.File, time.Time) error { return nil }
func (o oldest) Oldest() (uint64, time.Time)                            { return uint64(o), time.Now() }

// A sealing record stays while something that was not read yet may need it, however old both are: without it what is sealed is lost.
func TestSealingRecordsStayForWhatIsNotReadYet(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")          // entry 1
	g.publish("gw-1", g.sealBatch(message("p1", 1, "7"))) // 2
	g.publish("gw-1", g.sealBatch(message("p1", 2, "8"))) // 3, in the next file
	f.reading, f.files = stuck{f.journal, 3}, oldest(3)
	looked := func(since time.Time) func() bool {
		return func() bool {
			return f.count("SELECT COUNT(*) FROM retention_classes WHERE class = 'batches' AND checked > $1", since.UnixMilli()) > 0
		}
	}
	f.during("the first is read, the second cannot be", looked(f.clock.Now()))
	f.later(8 * testDay)
	f.during("days pass", looked(f.clock.Now()))
	f.reading = nil
	f.until("the journal can be read", func(s records.Stats) bool { return s.Batches == 2 })
	f.later(8 * testDay)
	f.ran("nothing needs it")
	if n := f.count("SELECT COUNT(*) FROM sealings"); n != 0 {
		t.Errorf("%d sealing records", n)
	}
}

// Waveforms that go with the message that they came in are in its event.
func TestWaveformsOfAMessageAreCounted(t *testing.T) {
	f := retained(t)
	f.retention.Vitals = testDay
	g := f.gateway("gw-1").enrol().bring("gw-1")
	m := message("p1", 1, "7")
	m.Waveforms = second("p1", 1, []int32{1, 2, 3}, []int32{4}).Waveforms
	m.Waveforms = m.Waveforms[:2]
	m.Waveforms[1].Index = 9
	g.publish("gw-1", g.sealBatch(m))
	f.ran("stored")
	f.later(2 * testDay)
	f.ran("over")
	if events := f.disposals(records.ClassVitals); len(events) != 1 || events[0].Count != 3 || f.count("SELECT COUNT(*) FROM waveforms") != 0 {
		t.Errorf("%+v", events)
	}
}

// It is asked each second, and millions may wait for a gateway that never learns the time.
func TestWhatWaitsForAClockIsNotWalkedThrough(t *testing.T) {
	f := setup(t)
	plan := sqldbtest.Plan(t, f.db, records.WaitingTimes, 10)
	t.Log(plan)
	for step := range strings.Lines(plan) {
		if strings.HasPrefix(step, "SCAN") && strings.Contains(step, "times_waiting") || step == "SCAN w\n" {
			t.Error(step)
		}
	}
}

// TestWhatAReportMayNameIsBounded: a report that names epochs or sources of which nothing ever came fills no database, and what came counts on.
func TestWhatAReportMayNameIsBounded(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.number(0)
	former := g.epoch
	g.restart()
	n := uint64(0)
	for ; n < 20; n++ {
		r := telemetry.Report{At: telemetry.Stamp{Mono: int64(n)}}
		for i := range 63 {
			l := telemetry.LaneReport{Lane: telemetry.LaneVitals, Assigned: 9, Lost: telemetry.NewSpans([]telemetry.Span{{First: 0, Last: 8}}, false)}
			binary.BigEndian.PutUint64(l.Epoch[:], n+1)
			l.Epoch[15] = byte(i)
			r.Lanes = append(r.Lanes, l)
		}
		for i := range 256 {
			r.Sources = append(r.Sources, telemetry.SourceReport{ID: fmt.Sprintf("s%03d-%03d", n, i)})
		}
		g.report(n, r)
	}
	l := lost(false, telemetry.Span{First: 1, Last: 2})
	l.Epoch, l.Lane, l.Assigned = former, telemetry.LaneVitals, 3
	g.report(n, telemetry.Report{At: telemetry.Stamp{Mono: 99}, Lanes: []telemetry.LaneReport{l}})
	f.settled()
	if streams := f.count("SELECT COUNT(*) FROM streams"); streams < 1024 || streams > 1030 {
		t.Errorf("%d streams of a gateway that names %d", streams, 20*63)
	}
	if sources := f.count("SELECT COUNT(*) FROM gateway_sources"); sources < 4096 || sources > 4096+256 {
		t.Errorf("%d sources of a gateway that names %d", sources, 20*256)
	}
	a, err := f.store().NumberAccount(f.ctx, "gw-1")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(a.Rows, func(b records.Balance) bool { return b.Epoch == former })
	if i < 0 || a.Rows[i].Lost != 2 {
		t.Errorf("of what came the report counts; row %d of %+v", i, a.Rows)
	}
	if got := strings.Count(f.log.String(), "more former epochs than"); got < 1 || got > 20 {
		t.Errorf("said %d times in the log", got)
	}
}
