package records_test

import (
	"crypto/sha256"
	"database/sql"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wardlink/server/records"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// everything gives all readings of patients, or of none, the newest first, read in pages of limit.
func (f *fixture) everything(limit int, patients ...string) (out []records.Observation) {
	f.t.Helper()
	s := f.store()
	q := records.Query{Limit: limit, NoPatient: len(patients) == 0}
	for _, p := range patients {
		q.Patients = append(q.Patients, s.PatientID("urn:oid:2.25.77", p))
	}
	for {
		page, err := s.Search(f.ctx, q)
		if err != nil {
			f.t.Fatal(err)
		}
		out = append(out, page.Observations...)
		if !page.More {
			return out
		}
		last := out[len(out)-1].Position()
		q.After = &last
	}
}

// ordered says that pages of every size are the same readings in the order that is promised, each of which is found by its id.
func (f *fixture) ordered(want int, patients ...string) []records.Observation {
	f.t.Helper()
	all := f.everything(10_000, patients...)
	if len(all) != want {
		f.t.Fatalf("%d readings, expected %d", len(all), want)
	}
	for _, limit := range []int{1 + len(all)/40, 7} {
		if paged := f.everything(limit, patients...); !reflect.DeepEqual(paged, all) {
			f.t.Errorf("pages of %d are other readings, or in another order: %d", limit, len(paged))
		}
	}
	for i, o := range all {
		if i > 0 {
			a, b := all[i-1].Position(), o.Position()
			if a.At < b.At || a.At == b.At && (a.Message < b.Message || a.Message == b.Message && a.Index <= b.Index) {
				f.t.Errorf("%v stands before %v", a, b)
			}
		}
		if i%9 != 0 {
			continue
		}
		if one, err := f.store().Observation(f.ctx, o.ID); err != nil || !reflect.DeepEqual(one, o) {
			f.t.Errorf("%s: %v: %+v, expected %+v", o.ID, err, one, o)
		}
	}
	return all
}

func rates(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// odd are messages whose readings do not share all: more than a row takes, some instants, no time, parts of devices, no patient.
func odd() []telemetry.Message {
	large := message("p1", 1, rates(300)...)
	instants := message("p1", 2, rates(12)...)
	for i := range instants.Observations {
		instants.Observations[i].At += int64(i%3) * 500
		instants.Observations[i].Time = fmt.Sprint("own", i%4)
	}
	unread := message("p1", 3, "1", "2", "3")
	unread.Observations[1].At, unread.Observations[1].Time = 0, "yesterday"
	part := message("p1", 4, "", "60")
	part.Observations[0].Code.MDC, part.Observations[0].Marks = 69965, telemetry.MarkNoReading
	none := message("", 5, "", "tab\there", strings.Repeat("long ", 500))
	none.Patient = telemetry.Patient{}
	none.Observations[2].Flags = "H"
	return []telemetry.Message{large, instants, unread, part, none}
}

func TestReadingsOfAMessageShareRows(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(odd()...))
	f.until("stored", func(s records.Stats) bool { return s.Messages == 5 && s.Observations == 319 && s.Parts == 1 })
	f.ordered(316, "p1")
	f.ordered(3)
	// 300 in three; three instants; one with a time and one without; one; one.
	if n := f.count("SELECT COUNT(*) FROM readings"); n != 3+3+2+1+1 {
		t.Errorf("%d rows", n)
	}

	// The same message with readings that were not understood before: what is there stays, and what is new joins it.
	more := message("p1", 2, rates(14)...)
	for i := range more.Observations {
		more.Observations[i].Value = "changed"
	}
	more.Digest = odd()[1].Digest
	more.Observations = more.Observations[5:]
	g.publish("gw-1", g.sealBatch(more))
	f.until("met again", func(s records.Stats) bool { return s.Batches == 2 && s.Observations == 321 })
	changed := 0
	for _, o := range f.ordered(318, "p1") {
		if o.Value == "changed" {
			changed++
		}
	}
	if changed != 2 {
		t.Errorf("%d readings are of the second message, expected 2", changed)
	}
}

// A device that says other readings in each message makes neither its patient's layouts many nor a search wrong.
func TestLayoutsOfASubjectAreBounded(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	var ms []telemetry.Message
	want := 0
	for n := 1; n < 128; n++ {
		m := message("p1", n, rates(7)...)
		var some []telemetry.Observation
		for i, o := range m.Observations {
			if n>>i&1 == 1 {
				some = append(some, o)
			}
		}
		m.Observations = some
		want += len(some)
		ms = append(ms, m)
	}
	g.publish("gw-1", g.sealBatch(ms...))
	f.until("stored", func(s records.Stats) bool { return s.Observations == int64(want) })
	f.ordered(want, "p1")
	if several, one := f.count("SELECT COUNT(*) FROM layouts WHERE width > 1"), f.count("SELECT COUNT(*) FROM layouts WHERE width = 1"); several != 64 || one != 7 {
		t.Errorf("%d layouts of several series and %d of one, expected 64 and 7", several, one)
	}
}

// What an older server wrote, one reading in a row, is found as it was, and lives on like what is new.
func TestAnOldDatabaseIsGathered(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	messages := odd()
	g.publish("gw-1", g.sealBatch(messages...))
	f.until("stored", func(s records.Stats) bool { return s.Messages == 5 })
	patient, none := f.ordered(316, "p1"), f.ordered(3)
	f.ungather(append(patient, none...))
	var said []string
	db, err := sqldb.OpenConfig(sqldb.Config{Path: f.path, Migrations: migrations(), Progress: func(doing string) { said = append(said, doing) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := f.ordered(316, "p1"); !reflect.DeepEqual(got, patient) {
		t.Errorf("%d readings are not as they were", len(got))
	}
	if got := f.ordered(3); !reflect.DeepEqual(got, none) {
		t.Errorf("%d readings without a patient are not as they were", len(got))
	}
	if n := f.count("SELECT CAST(SUM(count) AS BIGINT) FROM readings"); n != 320 {
		t.Errorf("%d readings with parts of devices, expected 320", n)
	}
	if len(said) == 0 {
		t.Error("nobody was told")
	}
	again := messages[3]
	extra := message("p1", 4, "", "60", "61")
	again.Observations = append(again.Observations, extra.Observations[2])
	g.publish("gw-1", g.sealBatch(again))
	f.until("met again", func(s records.Stats) bool { return s.Batches == 2 && s.Observations == 320 && s.Parts == 1 })
	f.ordered(317, "p1")
}

// A reading whose series is not there is not left out in silence: the upgrade fails and leaves all as it was.
func TestAnUpgradeLeavesNoReadingOut(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.until("stored", func(s records.Stats) bool { return s.Messages == 1 })
	f.ungather(f.ordered(1, "p1"))
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO observations (message, idx, series, form, at, value, time, marks) SELECT message, idx + 1, series + 1000, form, at, value, time, marks FROM observations")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(f.path, migrations()...)
	if err == nil {
		_ = db.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "1 of 2 readings belong to no series") {
		t.Errorf("%v", err)
	}
	if n := f.count("SELECT COUNT(*) FROM observations"); n != 2 {
		t.Errorf("%d readings are left, expected 2", n)
	}
}

// ungather makes the database what an older server would have left, with those readings, and the parts of devices that the messages have.
func (f *fixture) ungather(found []records.Observation) {
	f.t.Helper()
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		const insert = "INSERT INTO observations (message, idx, series, form, at, value, time, marks) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
		if _, err := tx.Exec(`CREATE TABLE observations (message BIGINT NOT NULL, idx BIGINT NOT NULL, series BIGINT NOT NULL, form BIGINT NOT NULL,
			at BIGINT NOT NULL, value TEXT NOT NULL, time TEXT, marks BIGINT NOT NULL, PRIMARY KEY (message, idx))`); err != nil {
			return err
		}
		for _, o := range found {
			var series, form int64
			var first string
			if err := tx.QueryRow("SELECT s.id FROM series s JOIN messages m ON m.subject = s.subject WHERE m.id = $1 AND s.mdc = $2 AND s.code = $3 AND s.ucum = $4",
				o.Position().Message, int64(o.Code.MDC), o.Code.ID, o.Unit.UCUM).Scan(&series); err != nil {
				return err
			}
			if err := tx.QueryRow("SELECT id FROM forms WHERE code_name = $1 AND unit = $2 AND sub_id = $3 AND status = $4 AND flags = $5 AND device = $6",
				o.Code.Name, o.Unit.Sent, o.SubID, o.Status, o.Flags, o.Device).Scan(&form); err != nil {
				return err
			}
			if err := tx.QueryRow("SELECT time FROM messages WHERE id = $1", o.Position().Message).Scan(&first); err != nil {
				return err
			}
			if _, err := tx.Exec(insert, o.Position().Message, o.Position().Index, series, form, o.At, o.Value, sql.NullString{String: o.Time, Valid: o.Time != first}, int64(o.Marks)); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`INSERT INTO observations (message, idx, series, form, at, value, time, marks)
			SELECT m.id, 0, s.id, (SELECT MIN(id) FROM forms), m.wall, '', NULL, 1 FROM series s JOIN messages m ON m.subject = s.subject WHERE s.kind = 2 AND m.control = '4'`); err != nil {
			return err
		}
		for _, q := range []string{"DROP TABLE readings", "DROP TABLE layouts", "DELETE FROM schema_versions WHERE domain = 'records_readings'"} {
			if _, err := tx.Exec(q); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		f.t.Fatal(err)
	}
}

// A batch whose number is stored already when its group is settled is not stored twice, and the others of the group are stored.
func TestABatchOfAGroupIsStoredOnce(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range 3 {
		g.publish("gw-1", g.sealBatch(message("p1", n, fmt.Sprint(70+n))))
	}
	r := f.open()
	first := true
	r.SetDecode(func(plain []byte) (telemetry.Batch, error) {
		if first {
			first = false
			if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
				_, err := tx.Exec(`INSERT INTO batches (stream, number, frame, sealing, seq, received, state, attempts, due, reason)
					SELECT id, 1, $1, $1, 3, 1, 2, 1, 0, '' FROM streams WHERE lane = 1`, make([]byte, 32))
				return err
			}); err != nil {
				return telemetry.Batch{}, err
			}
		}
		return telemetry.Decode(plain)
	})
	f.settleWith("the others", r, func(s records.Stats) bool { return s.Batches == 2 && s.Pending+s.Dead == 0 })
	if got := f.values("p1", 9); !slices.Equal(got, []string{"72", "70"}) {
		t.Errorf("%q", got)
	}
}

// A message has as many rows as there are ids for (here: its one row is moved to the last part) and comes again with more: nobody else's is hurt.
func TestAMessageOfTooManyRowsHurtsNobodyElse(t *testing.T) {
	f := setup(t)
	evil, good := f.gateway("gw-evil").enrol().bring("gw-evil"), f.gateway("gw-good").enrol().bring("gw-good")
	big := message("p1", 1, "1", "2", "3", "4")
	for i := range big.Observations {
		big.Observations[i].At += int64(i) // each has a row of its own
	}
	big.Digest = sha256.Sum256([]byte("big"))
	one, rest := big, big
	one.Observations, rest.Observations = big.Observations[:1], big.Observations[1:]
	evil.publish("gw-evil", evil.sealBatch(one))
	f.until("stored", func(s records.Stats) bool { return s.Observations == 1 })
	if err := f.db.Write(f.ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE readings SET id = id + 1048575")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	evil.publish("gw-evil", evil.sealBatch(rest))
	good.publish("gw-good", good.sealBatch(message("p2", 7, "80")))
	f.run("settled", f.open(), func() bool {
		return f.count("SELECT COUNT(*) FROM batches b JOIN streams s ON s.id = b.stream WHERE s.gateway = 'gw-good' AND b.state = 2") == 1
	})
	if n := f.count("SELECT COUNT(*) FROM readings WHERE id / 1048576 NOT IN (SELECT id FROM messages)"); n != 0 {
		t.Errorf("%d rows are of no message", n)
	}
	if got := f.values("p2", 9); !slices.Equal(got, []string{"80"}) {
		t.Errorf("of the other gateway's patient: %q", got)
	}
	if got := f.values("p1", 9); !slices.Equal(got, []string{"1"}) {
		t.Errorf("of the message: %q", got)
	}
}

// Long texts are held for the page alone, not for all that the walk finds; and each is that of its reading, long beside short.
func TestSearchHoldsNoLongTexts(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	const messages, each = 4, 60
	var want []string // the newest first
	for n := range messages {
		m := message("p1", n, rates(each)...)
		for i := range m.Observations {
			o := &m.Observations[i]
			switch i % 3 {
			case 0:
				o.Value = fmt.Sprint(n, i, strings.Repeat("v", 40_000))
			case 1:
				o.Time = fmt.Sprint(n, i, strings.Repeat("t", 600))
			}
			want = append(want, o.Time+o.Value)
		}
		g.publish("gw-1", g.sealBatch(m))
	}
	slices.Reverse(want)
	f.until("stored", func(s records.Stats) bool { return s.Messages == messages })
	var got []string
	for _, o := range f.ordered(messages*each, "p1") {
		got = append(got, o.Time+o.Value)
	}
	if !slices.Equal(got, want) {
		t.Error("readings have not the texts that were sent")
	}
	s := f.store()
	q := records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", "p1")}, Limit: 1000, Room: 500_000}
	if places, size, err := s.WalkHolds(f.ctx, q); err != nil || places != messages*each || size > places*512 {
		t.Errorf("%d places hold %d bytes, %v", places, size, err)
	}
	page, err := s.Search(f.ctx, q)
	if n := len(page.Observations); err != nil || !page.More || n < each/3 || n > each {
		t.Errorf("%d readings on the page, more: %v, %v", n, page.More, err)
	}
}
