package records_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
)

// watched is a journal that looks, each time the records have passed a part of it, whether something is visible yet. From then on it gives
// nothing, so that what was reached until then stands.
type watched struct {
	*sqldbtest.Journal
	visible func() bool
	at      atomic.Uint64 // the records' cursor when it was; 0: never
}

func (w *watched) Read(from uint64, limit int) ([]journal.Entry, error) {
	if w.at.Load() > 0 {
		return nil, errors.New("test: enough was seen")
	}
	return w.Journal.Read(from, limit)
}

func (w *watched) SetCursor(consumer string, seq uint64) error {
	err := w.Journal.SetCursor(consumer, seq)
	if w.visible() {
		w.at.CompareAndSwap(0, seq)
	}
	return err
}

// seen runs the records until the patient's reading is visible, and gives the cursor at the end of the pass then.
func (f *fixture) seen(patient, value string) uint64 {
	f.t.Helper()
	w := &watched{Journal: f.journal, visible: func() bool { return slices.Equal(f.values(patient, 10), []string{value}) }}
	f.reading = w
	r := f.open()
	r.LookAheadFreely()
	f.run("the alarm is visible", r, func() bool {
		if end := uint64(f.journal.Len()); f.journal.Cursor(records.Consumer) == end && w.visible() { // a retry after the last pass
			w.at.CompareAndSwap(0, end)
		}
		return w.at.Load() > 0
	})
	f.reading = nil
	return w.at.Load()
}

// backlog journals n batches of a gateway, on its lane.
func (g *gateway) backlog(n int) {
	g.f.t.Helper()
	for range n {
		g.publish(g.name, g.sealBatch(message("backlog", int(g.next), "72")))
	}
}

func (f *fixture) alarming(name string) *gateway {
	g := f.gateway(name).enrol()
	g.lane = telemetry.LaneAlarm
	return g
}

// wantAlarms holds the account of a gateway's lane alarm.
func (f *fixture) wantAlarms(gateway, want string) {
	f.t.Helper()
	rows := f.balance(gateway, telemetry.LaneAlarm)
	if len(rows) != 1 || shown(rows[0]) != want || !rows[0].Balances() {
		f.t.Errorf("%s: %+v; expected %s", gateway, rows, want)
	}
}

func (f *fixture) wantStored(batches, observations int64) {
	f.t.Helper()
	s, err := f.open().Stats(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	messages := f.count("SELECT COUNT(*) FROM messages")
	if s.Batches != batches || s.Observations != observations || s.Messages != observations || messages != observations || s.Pending != 0 || s.Dead != 0 {
		f.t.Errorf("%+v, %d messages; expected %d batches, %d observations", s, messages, batches, observations)
	}
	if n := f.count("SELECT seq FROM records_totals"); n != int64(f.journal.Len()) {
		f.t.Errorf("settled up to %d of %d", n, f.journal.Len())
	}
	if n := f.count("SELECT SUM(stored) FROM account_stored"); n != batches {
		f.t.Errorf("%d batches stored in the account, expected %d", n, batches)
	}
	if n := f.count("SELECT COUNT(*) FROM lane_stations WHERE journaled <> stored"); n != 0 {
		f.t.Errorf("%d lanes have batches that were journaled and not stored", n)
	}
}

const behind = 6000 // entries, some passes

// TestAnAlarmOvertakesABacklog: it is visible long before what was journaled before it, the records stop in the middle and go on; nothing
// counts twice, neither its resends nor that it is met again.
func TestAnAlarmOvertakesABacklog(t *testing.T) {
	f := setup(t)
	flood := f.gateway("gw-1").enrol().bring("gw-1")
	flood.backlog(behind)
	g := f.alarming("gw-2").bring("gw-2")
	frame := g.sealBatch(message("alarmed", 1, "190"))
	g.publish("gw-2", frame)
	g.publish("gw-2", frame)
	flood.backlog(1000)
	g.publish("gw-2", frame)
	g.next = 0
	g.publish("gw-2", g.sealBatch(message("alarmed", 1, "another frame")))

	at := f.seen("alarmed", "190")
	if at > behind-2000 {
		t.Errorf("visible when the records were at %d of %d", at, behind)
	}
	if n := f.count("SELECT seq FROM records_totals"); n != int64(at) {
		t.Errorf("the database says that all up to %d is settled; the cursor is %d", n, at)
	}
	g.report(0, telemetry.Report{Lanes: []telemetry.LaneReport{{Lane: telemetry.LaneAlarm, Assigned: 1}}})
	flood.report(0, vitalsLane(behind+1000, telemetry.LaneReport{}))
	f.wantAlarms("gw-2", "1 = 1 (1 0 0) + 0 + 0 + 0 + 0, 0")
	f.wantBalance("at the end", "gw-1", "7000 = 7000 (7000 0 0) + 0 + 0 + 0 + 0, 0", true)
	f.wantStored(behind+1000+1+2, behind+1000+1)
	if got := f.values("alarmed", 10); !slices.Equal(got, []string{"190"}) {
		t.Errorf("values %v", got)
	}
	if n := f.count("SELECT MAX(attempts) FROM batches"); n != 1 {
		t.Errorf("a batch was opened %d times", n)
	}
	if n := f.count("SELECT COUNT(*) FROM batch_conflicts"); n != 1 {
		t.Errorf("%d second frames, expected 1", n)
	}
}

// TestAnAlarmOvertakesWithItsSealingRecord: the record stands in the journal after the alarm, and both after a backlog.
func TestAnAlarmOvertakesWithItsSealingRecord(t *testing.T) {
	f := setup(t)
	flood := f.gateway("gw-1").enrol().bring("gw-1")
	flood.backlog(behind / 2)
	g := f.alarming("gw-2")
	g.publish("gw-2", g.sealBatch(message("alarmed", 1, "190")))
	flood.backlog(behind / 2)
	g.bring("gw-2")
	flood.backlog(100)
	if at := f.seen("alarmed", "190"); at > behind-1000 {
		t.Errorf("visible when the records were at %d, its sealing record at %d", at, behind)
	}
	f.settled()
	f.wantStored(behind+100+1, behind+100+1)
	if n := f.count("SELECT COUNT(*) FROM batch_frames"); n != 0 {
		t.Errorf("%d frames are kept", n)
	}
}

// TestAFloodOfAlarmsOvertakesNobody: who sends alarms without end has some of them taken ahead, and another's comes before the others.
func TestAFloodOfAlarmsOvertakesNobody(t *testing.T) {
	f := setup(t)
	f.alarming("gw-1").bring("gw-1").backlog(behind)
	g := f.alarming("gw-2").bring("gw-2")
	g.publish("gw-2", g.sealBatch(message("alarmed", 1, "190")))
	at := f.seen("alarmed", "190")
	if at > behind-1000 {
		t.Errorf("visible when the records were at %d of %d", at, behind)
	}
	if n := f.count("SELECT COUNT(*) FROM batches WHERE state = 2 AND seq > $1", int64(at)); n > 256+1 {
		t.Errorf("%d batches are stored ahead of their turn", n)
	}
	f.settled()
	f.wantStored(behind+1, behind+1)
}

// TestAnAlarmLeftByACrashIsStoredOnce: the process ends while an alarm is opened ahead of its turn. It is counted as journaled and not as
// stored, and the cursor is far before it.
func TestAnAlarmLeftByACrashIsStoredOnce(t *testing.T) {
	f := setup(t)
	f.gateway("gw-1").enrol().bring("gw-1").backlog(behind)
	g := f.alarming("gw-2").bring("gw-2")
	frame := g.sealBatch(message("alarmed", 1, "190"))
	g.publish("gw-2", frame)
	g.publish("gw-2", frame)
	ctx, stop := context.WithCancel(f.ctx)
	defer stop()
	r := f.open()
	r.LookAheadFreely()
	r.SetDecode(func(b []byte) (telemetry.Batch, error) {
		batch, err := telemetry.Decode(b)
		if len(batch.Messages) == 1 && batch.Messages[0].Patient.ID == "alarmed" {
			stop()
		}
		return batch, err
	})
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	alarm := "(SELECT id FROM streams WHERE lane = 0)"
	if at := f.journal.Cursor(records.Consumer); at > behind-1000 || len(f.values("alarmed", 10)) != 0 || f.count("SELECT state FROM batches WHERE stream = "+alarm) != 1 {
		t.Fatalf("the cursor is at %d, or the alarm is not being opened", at)
	}
	f.exec("UPDATE batches SET attempts = 1 WHERE stream = " + alarm) // nobody takes back the attempt of a process that was killed
	if at := f.seen("alarmed", "190"); at > behind-1000 {
		t.Errorf("visible when the records were at %d of %d", at, behind)
	}
	g.report(0, telemetry.Report{Lanes: []telemetry.LaneReport{{Lane: telemetry.LaneAlarm, Assigned: 1}}})
	f.wantAlarms("gw-2", "1 = 1 (1 0 0) + 0 + 0 + 0 + 0, 0")
	f.wantStored(behind+1+1, behind+1)
	if n := f.count("SELECT attempts FROM batches WHERE stream = " + alarm); n != 2 {
		t.Errorf("opened %d times", n)
	}
}
