package records_test

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/server/records"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
)

func ms(n int64) *int64 { return &n }

func stored(n int64) func(records.Stats) bool {
	return func(s records.Stats) bool { return s.Batches == n }
}

func TestStoresWhatWasSealedOnce(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	first := g.sealBatch(message("p1", 1, "98.60", ""), message("p1", 2, "0"))
	g.publish("gw-1", first)
	g.publish("gw-1", first) // the PUBACK was lost, the agent sent it again
	// The monitor sent message 2 again and the agent, restarted, put it into another batch; identical bytes that were a new
	// message have another copy number.
	again, later := message("p1", 2, "0"), message("p1", 2, "0")
	later.Copy = 1
	g.publish("gw-1", g.sealBatch(again, later, message("p2", 3, "61")))
	f.until("stored", stored(2))
	if got := f.values("p1", 100); !slices.Equal(got, []string{"0", "0", "", "98.60"}) {
		t.Errorf("p1: %q", got)
	}
	if got := f.values("p1", 1); len(got) != 4 {
		t.Errorf("page by page: %q", got)
	}
	if got := f.values("p2", 100); !slices.Equal(got, []string{"61"}) {
		t.Errorf("p2: %q", got)
	}
	// A cursor put back, as by a restored journal, changes nothing.
	f.journal.Rewind(records.Consumer, 0)
	f.until("replayed", func(s records.Stats) bool { return s.Observations == 5 && s.Batches == 2 && s.Messages == 4 })
	if got := f.values("p1", 100); len(got) != 4 {
		t.Errorf("after a replay: %q", got)
	}
}

func TestEveryFieldComesBack(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	m := message("p1", 1, "98.60", "12")
	m.Observations[1].Time, m.Observations[1].At = "later", start+1500
	m.Observations[1].Marks = telemetry.MarkImplausible
	m.Observations[1].Flags, m.Observations[1].Limits, m.Observations[1].Status = "PN~TEST", "50-120", "C"
	m.Raw, m.Problems = []byte("MSH|raw"), []telemetry.Problem{{Where: "OBX[9]", Reason: "odd"}}
	g.publish("gw-1", g.sealBatch(m))
	f.until("stored", stored(1))
	s := f.store()
	page, err := s.Search(f.ctx, records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", "p1")}, Limit: 10})
	if err != nil || len(page.Observations) != 2 {
		t.Fatal(page, err)
	}
	o, want := page.Observations[0], m.Observations[1]
	got := telemetry.Observation{
		Index: want.Index, Type: o.Type, Code: o.Code, Value: o.Value, Unit: o.Unit, SubID: o.SubID, Limits: o.Limits, Flags: o.Flags,
		Status: o.Status, Time: o.Time, At: o.At, Device: o.Device, Marks: o.Marks,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if o.Patient.System != "urn:oid:2.25.77" || o.Patient.Value != "p1" || o.Gateway != "gw-1" || o.Source != "bed-1" || o.Process != "P" ||
		o.Received != m.Received || o.Location != "ICU^1" || o.Journaled == 0 {
		t.Errorf("%+v", o)
	}
	one, err := s.Observation(f.ctx, o.ID)
	if err != nil || one != o || len(o.ID) > 64 {
		t.Errorf("by id: %+v %v", one, err)
	}
	for _, id := range []string{"", o.ID + "0", strings.ToUpper(o.ID), o.ID[:33] + "01", o.ID[1:], "x" + o.ID[1:]} {
		if _, err := s.Observation(f.ctx, id); err != records.ErrNotFound {
			t.Errorf("id %q: %v", id, err)
		}
	}
	if page.Observations[1].Time != "t1" {
		t.Errorf("time of the first: %q", page.Observations[1].Time)
	}
	var raw []byte
	var problems string
	if err := f.db.QueryRow(f.ctx, "SELECT raw, problems FROM leftovers").Scan(&raw, &problems); err != nil || string(raw) != "MSH|raw" || !strings.Contains(problems, "OBX[9]") {
		t.Error(string(raw), problems, err)
	}
}

func TestPendingUntilKeyAndSealingRecordAreThere(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.until("pending without a sealing record", func(s records.Stats) bool { return s.Pending == 1 })
	f.clock.add(time.Hour)
	f.until("still pending, not dead", func(s records.Stats) bool { return s.Pending == 1 && s.Dead == 0 })
	g.bring("gw-1")
	f.until("pending without a key", func(s records.Stats) bool { return s.Pending == 1 })
	g.enrol()
	f.until("stored", stored(1))
	if got := f.values("p1", 10); !slices.Equal(got, []string{"70"}) {
		t.Error(got)
	}
}

func TestPoisonBatchDiesAloneAndIsKept(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	garbage := g.seal([]byte("patient p1 is no batch"))
	g.publish("gw-1", garbage)
	g.publish("gw-1", g.sealBatch(message("p1", 2, "71")))
	f.until("one dead, others stored", func(s records.Stats) bool { return s.Dead == 1 && s.Batches == 2 && s.Pending == 0 })
	if got := f.values("p1", 10); !slices.Equal(got, []string{"71", "70"}) {
		t.Error(got)
	}
	var kept []byte
	var attempts int
	if err := f.db.QueryRow(f.ctx, "SELECT f.frame, b.attempts FROM batch_frames f JOIN batches b ON b.stream = f.stream AND b.number = f.number").Scan(&kept, &attempts); err != nil || string(kept) != string(garbage) || attempts != 3 {
		t.Errorf("frame of %d bytes kept, %d attempts, %v", len(kept), attempts, err)
	}
	if got := f.journal.Lines(t); !slices.Equal(got, []string{"batch.dead gw-1 failed"}) {
		t.Error(got)
	}
	ev := f.journal.Events(t)[0]
	if ev.Detail["number"] != "1" || ev.Detail["epoch"] != g.epoch.String() || ev.Reason == "" {
		t.Errorf("%+v", ev)
	}
	if strings.Contains(f.log.String(), "p1") || strings.Contains(fmt.Sprint(ev), "p1") {
		t.Error("what was sealed is in the log or the event")
	}
	f.until("dead stays dead", func(s records.Stats) bool { return s.Dead == 1 })
	if n := len(f.journal.Events(t)); n != 1 {
		t.Errorf("%d events", n)
	}
}

func TestFrameSealedByAnotherPeriodDoesNotOpen(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	frame := g.sealBatch(message("p1", 1, "70"))
	frame[len(frame)-40] ^= 1 // inside the ciphertext; a broken ingest makes the trailing hash and the row fit
	reseal := frame[:len(frame)-32]
	sum := sha(reseal)
	frame = append(reseal, sum[:]...)
	g.publish("gw-1", frame)
	f.until("dead", func(s records.Stats) bool { return s.Dead == 1 && s.Observations == 0 })
}

func TestSealingRecordMustBeTheGatewaysOwn(t *testing.T) {
	t.Run("key of another gateway", func(t *testing.T) {
		f := setup(t)
		g := f.gateway("gw-1").enrol().bring("gw-2") // gw-2 replays what gw-1 signed
		g.publish("gw-2", g.sealBatch(message("p1", 1, "70")))
		f.until("pending", func(s records.Stats) bool { return s.Pending == 1 })
		if got := f.journal.Lines(t); !slices.Equal(got, []string{"refused gw-2 denied"}) {
			t.Error(got)
		}
	})
	t.Run("epoch of another gateway", func(t *testing.T) {
		f := setup(t)
		g := f.gateway("gw-1").enrol().bring("gw-1")
		g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
		thief := f.gateway("gw-2").enrol()
		thief.epoch = g.epoch
		thief.newPeriod()
		for range 2 {
			thief.bring("gw-2")
		}
		thief.publish("gw-2", thief.sealBatch(message("p1", 2, "99")))
		f.until("not opened", func(s records.Stats) bool { return s.Dead == 1 && s.Batches == 1 })
		if got := f.values("p1", 10); !slices.Equal(got, []string{"70"}) {
			t.Error(got)
		}
		got := f.journal.Lines(t)
		slices.Sort(got)
		got = slices.Compact(got)
		if !slices.Equal(got, []string{"batch.dead gw-2 failed", "epoch.conflict gw-2 denied", "refused gw-2 denied"}) {
			t.Error(got)
		}
		conflicts := 0
		for _, l := range f.journal.Lines(t) {
			if strings.HasPrefix(l, "epoch.conflict") {
				conflicts++
			}
		}
		if conflicts != 1 {
			t.Errorf("%d conflict events, expected one", conflicts)
		}
	})
	t.Run("bad signature", func(t *testing.T) {
		f := setup(t)
		g := f.gateway("gw-1").enrol()
		genuine := g.device
		g.device = f.gateway("gw-1").device
		g.bringAs("gw-1", genuine) // signed by one key, naming another
		g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
		f.until("pending", func(s records.Stats) bool { return s.Pending == 1 })
		if got := f.journal.Lines(t); !slices.Equal(got, []string{"refused gw-1 denied"}) {
			t.Error(got)
		}
	})
}

// A process that dies while it opens a batch has counted the attempt; the third time the batch is dead, and its neighbours are not.
func TestCrashWhileOpening(t *testing.T) {
	for _, c := range []struct {
		attempts int
		dead     int64
	}{{1, 0}, {2, 0}, {3, 1}} {
		t.Run(fmt.Sprint(c.attempts), func(t *testing.T) {
			f := setup(t)
			g := f.gateway("gw-1").enrol().bring("gw-1")
			frame := g.sealBatch(message("p1", 1, "70"))
			g.publish("gw-1", frame)
			g.publish("gw-1", g.sealBatch(message("p1", 2, "71")))
			// What a former life left: the attempt committed, the cursor where it was.
			if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
				if _, err := tx.Exec("INSERT INTO streams (id, gateway, epoch, lane) VALUES (1, 'gw-1', $1, 1)", g.epoch[:]); err != nil {
					return err
				}
				hash := sha(frame)
				_, err := tx.Exec("INSERT INTO batches (stream, number, frame, sealing, seq, received, state, attempts, due, reason) VALUES (1, 0, $1, $3, 2, 1, 1, $2, 0, '')", hash[:], c.attempts, []byte{})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			f.until("settled", func(s records.Stats) bool { return s.Dead == c.dead && s.Batches == 2-c.dead && s.Pending == 0 })
			want := []string{"71", "70"}[:2-c.dead]
			if got := f.values("p1", 10); !slices.Equal(got, want) {
				t.Error(got)
			}
		})
	}
}

// A full disk keeps batches waiting and never makes them dead: nothing about them is wrong.
func TestFullDiskIsNotTheBatchesFault(t *testing.T) {
	sqldbtest.SQLite(t, "it bounds SQLite's file; what PostgreSQL cannot do meanwhile is in TestLostPostgresIsNotTheBatchesFault")
	f := setup(t)
	limit := func(pages int) {
		if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
			return tx.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Scan(new(int))
		}); err != nil {
			t.Fatal(err)
		}
	}
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.until("stored", stored(1))
	limit(1) // SQLite raises it to what the file has
	for n := range 300 {
		g.publish("gw-1", g.sealBatch(message("p1", 2+n, "71", "72", "73", strings.Repeat("x", 500))))
	}
	full := func() int { return strings.Count(f.log.String(), "free space") }
	f.during("the disk is full", func() bool { return full() >= 5 })
	limit(1 << 30)
	f.until("stored after all", func(s records.Stats) bool { return s.Batches == 301 && s.Dead == 0 && s.Pending == 0 })
	if got := f.values("p1", 1000); len(got) != 1201 {
		t.Errorf("%d values", len(got))
	}
}

func TestPatientIDsRevealNothingAndAreStable(t *testing.T) {
	a := records.PatientID(pseudonym, "urn:oid:1.2", "123")
	if a != records.PatientID(pseudonym, "urn:oid:1.2", "123") || len(a) != 32 {
		t.Error(a)
	}
	for _, b := range []string{
		records.PatientID(pseudonym, "urn:oid:1.2", "124"), records.PatientID(pseudonym, "urn:oid:1.21", "23"),
		records.PatientID([]byte("another key of sixteen"), "urn:oid:1.2", "123"),
	} {
		if a == b {
			t.Error("two patients or two keys share an id")
		}
	}
}

func TestAuthoritySystem(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "",
		"HOSP":                                "urn:wardlink:authority:HOSP",
		"HOSP&2.25.123&ISO":                   "urn:oid:2.25.123",
		"HOSP^2.25.123^ISO":                   "urn:oid:2.25.123",
		"&2.25.123&ISO":                       "urn:oid:2.25.123",
		"HOSP&2.25.0123&ISO":                  "urn:wardlink:authority:HOSP",
		"HOSP&http://hospital.example/id&URI": "http://hospital.example/id",
		"X&0F8FAD5B-D9CB-469F-A165-70867728950E&UUID": "urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e",
		"St Mary/2": "urn:wardlink:authority:St%20Mary%2F2",
		"HOSP&&":    "urn:wardlink:authority:HOSP",
	} {
		if got := records.AuthoritySystem(in); got != want {
			t.Errorf("%q: %q, expected %q", in, got, want)
		}
	}
}

func TestSearchFilters(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range 50 {
		g.publish("gw-1", g.sealBatch(message("p1", n, fmt.Sprint(n), fmt.Sprint(100+n)), message("", n, "x")))
	}
	f.until("stored", stored(50))
	s := f.store()
	p1 := []string{s.PatientID("urn:oid:2.25.77", "p1")}
	search := func(q records.Query) (out []string) {
		page, err := s.Search(f.ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Observations {
			out = append(out, o.Value)
		}
		return out
	}
	hr := func(s records.Series) bool { return s.Code.MDC == 147842 }
	for name, c := range map[string]struct {
		q    records.Query
		want []string
	}{
		"code":       {records.Query{Patients: p1, Match: hr, Limit: 2}, []string{"49", "48"}},
		"both codes": {records.Query{Patients: p1, Limit: 3}, []string{"149", "49", "148"}},
		"from":       {records.Query{Patients: p1, Match: hr, From: ms(start + 48_000), Limit: 10}, []string{"49", "48"}},
		"to":         {records.Query{Patients: p1, Match: hr, To: ms(start + 2_000), Limit: 10}, []string{"1", "0"}},
		"nobody":     {records.Query{Limit: 10}, nil},
		"unknown":    {records.Query{Patients: []string{"x"}, Limit: 10}, nil},
		"no patient": {records.Query{NoPatient: true, Limit: 2}, []string{"x", "x"}},
	} {
		if got := search(c.q); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, expected %q", name, got, c.want)
		}
	}
}

// A page that is asked for while data arrive neither repeats nor skips what was there before.
func TestPagesAreStableWhileDataArrive(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range 10 {
		g.publish("gw-1", g.sealBatch(message("p1", n, fmt.Sprint(n))))
	}
	f.until("stored", stored(10))
	s := f.store()
	q := records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", "p1")}, Limit: 3}
	var got []string
	for round := 0; ; round++ {
		page, err := s.Search(f.ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Observations {
			got = append(got, o.Value)
		}
		if !page.More {
			break
		}
		last, err := records.ParsePosition(page.Observations[len(page.Observations)-1].Position().String())
		if err != nil {
			t.Fatal(err)
		}
		q.After = &last
		g.publish("gw-1", g.sealBatch(message("p1", 100+round, "new")))
		f.until("stored", stored(int64(11+round)))
	}
	if want := strings.Fields("9 8 7 6 5 4 3 2 1 0"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	f := setup(t)
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if err := f.open().Run(ctx); err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
}
