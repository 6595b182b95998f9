package records_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/records"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
)

const testDay = 24 * time.Hour

// count is the number that a query gives.
func (f *fixture) count(query string, args ...any) (n int64) {
	f.t.Helper()
	if err := f.db.QueryRow(f.ctx, query, args...).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

// disposals are the journaled disposals of a class.
func (f *fixture) disposals(class records.Class) (out []audit.Event) {
	f.t.Helper()
	for _, ev := range f.journal.Events(f.t) {
		if ev.Type == audit.RecordsDisposed && ev.Target == string(class) {
			out = append(out, ev)
		}
	}
	return out
}

// retained is a fixture that disposes of what is over.
func retained(t *testing.T) *fixture {
	f := setup(t)
	keep := records.DefaultRetention()
	f.retention, f.step = &keep, 20*time.Second
	return f
}

// later is that much later. The server was down meanwhile, and an operator says that the clock is right all the same.
func (f *fixture) later(d time.Duration) {
	f.t.Helper()
	f.clock.add(d)
	if err := f.open().ClockIsRight(f.ctx, operator, ""); err != nil {
		f.t.Fatal(err)
	}
}

// ran runs the records until every class was looked at anew, and all is settled.
func (f *fixture) ran(what string) {
	f.t.Helper()
	begin := f.clock.Now().UnixMilli()
	f.until(what, func(s records.Stats) bool {
		return s.Pending == 0 && f.count("SELECT COUNT(*) FROM retention_classes WHERE checked > $1", begin) == 6
	})
}

// holds says whether the text is anywhere in the database's files.
func (f *fixture) holds(text string) bool {
	f.t.Helper()
	if sqldbtest.Postgres(f.t) {
		return f.rowsHold(text)
	}
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(f.path + suffix)
		if err != nil && !os.IsNotExist(err) {
			f.t.Fatal(err)
		}
		if bytes.Contains(data, []byte(text)) {
			return true
		}
	}
	return false
}

// rowsHold is holds on PostgreSQL, whose files keep what was deleted until it is vacuumed away: whether any row of any table has it.
func (f *fixture) rowsHold(text string) bool {
	f.t.Helper()
	rows, err := f.db.Query(f.ctx, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
	if err != nil {
		f.t.Fatal(err)
	}
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			f.t.Fatal(err)
		}
		tables = append(tables, name)
	}
	if err := rows.Err(); err != nil || len(tables) < 30 {
		f.t.Fatal(len(tables), err)
	}
	n := int64(0)
	for _, name := range tables {
		n += f.count("SELECT COUNT(*) FROM "+name+" t WHERE strpos(t::TEXT, $1) > 0 OR strpos(t::TEXT, $2) > 0", text, hex.EncodeToString([]byte(text)))
	}
	return n > 0
}

// copied makes what stands for a copy of the database from before an upgrade. On PostgreSQL nobody makes one, and
// nobody removes it.
func (f *fixture) copied(at time.Time) string {
	f.t.Helper()
	dir := sqldb.CopiesDir(f.path)
	if sqldbtest.Postgres(f.t) {
		dir = filepath.Join(f.t.TempDir(), "backups")
	}
	path := filepath.Join(dir, "before-0.0.1-"+at.UTC().Format("20060102T150405Z")+".db")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func TestEachClassGoesWhenItsTimeIsOver(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	raw := message("p-vitals", 1, "70", "71")
	raw.Raw, raw.Problems = []byte("PID|SECRET-NAME"), []telemetry.Problem{{Where: "OBX[9]", Reason: "odd"}}
	raw.Patient.Visit = "SECRET-VISIT"
	g.publish("gw-1", g.sealBatch(raw))
	g.lane = telemetry.LaneAlarm
	g.publish("gw-1", g.sealBatch(message("p-alarm", 1, "200")))
	g.lane = telemetry.LaneVitals
	received := f.clock.Now()
	f.ran("stored")
	if n := f.count("SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM readings"); n != 3 {
		t.Fatalf("%d observations", n)
	}

	// A copy from before an upgrade holds what has been disposed of since, so it goes too.
	copied := f.copied(received)
	f.later(29 * testDay)
	f.ran("a copy is kept for 30 days")
	if _, err := os.Stat(copied); err != nil {
		t.Error(err)
	}
	f.later(51 * testDay)
	g.publish("gw-1", g.sealBatch(message("p-late", 1, "60")))
	f.ran("days before")
	if _, err := os.Stat(copied); !errors.Is(err, os.ErrNotExist) && !sqldbtest.Postgres(t) {
		t.Errorf("the copy is still there: %v", err)
	}
	if n := f.count("SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM readings"); n != 4 || len(f.disposals(records.ClassVitals)) != 0 {
		t.Fatalf("%d observations", n)
	}
	f.later(11 * testDay)
	f.ran("vitals are over")
	if got := append(f.values("p-vitals", 9), append(f.values("p-alarm", 9), f.values("p-late", 9)...)...); !slices.Equal(got, []string{"200", "60"}) {
		t.Errorf("%q", got)
	}
	for table, want := range map[string]int64{"leftovers": 0, "messages": 2, "subjects": 2, "origins": 1} {
		if n := f.count("SELECT COUNT(*) FROM " + table); n != want {
			t.Errorf("%s: %d rows, expected %d", table, n, want)
		}
	}
	evs := f.disposals(records.ClassVitals)
	if len(evs) != 1 {
		t.Fatalf("%+v", evs)
	}
	ev := evs[0]
	at := received.UTC().Format(time.RFC3339)
	if ev.Count != 2 || ev.Reason != "retention" || ev.Actor.ID != "server" || ev.Detail["first"] != at || ev.Detail["last"] != at ||
		ev.Detail["patients"] != "1" || ev.Detail["messages"] != "1" || ev.Detail["leftovers"] != "1" || ev.Detail["origins"] != "1" || ev.Detail["cutoff"] == "" {
		t.Errorf("%+v", ev)
	}
	if strings.Contains(fmt.Sprint(f.journal.Events(t))+f.log.String(), "SECRET") || strings.Contains(fmt.Sprint(f.journal.Events(t)), "p-vitals") {
		t.Error("a disposal tells what it disposed of")
	}

	// Nothing of it is left in the file: not in free pages, and soon not in the write-ahead log.
	if !f.holds("p-late") {
		t.Error("the file does not hold what is kept: this test looks at the wrong thing")
	}
	f.during("no trace is left", func() bool { return !f.holds("SECRET-NAME") && !f.holds("SECRET-VISIT") && !f.holds("p-vitals") })

	f.later(280 * testDay)
	f.ran("alarms are over, and everything else")
	for _, table := range []string{"leftovers", "messages", "subjects", "origins", "readings", "batches"} {
		if n := f.count("SELECT COUNT(*) FROM " + table); n != 0 {
			t.Errorf("%s: %d rows left", table, n)
		}
	}
	// The same patient comes again: ids that the interner remembers are gone.
	g.publish("gw-1", g.sealBatch(message("p-alarm", 2, "61")))
	f.ran("a patient comes again")
	if got := f.values("p-alarm", 9); !slices.Equal(got, []string{"61"}) {
		t.Errorf("%q", got)
	}
}

// The same life of the server sees a patient go and come again.
func TestRememberedRowsAreForgottenWhenTheyGo(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	r := f.open()
	f.settleWith("stored", r, stored(1))
	f.later(91 * testDay)
	r = f.open()
	gone := false
	f.run("goes and comes again", r, func() bool {
		if !gone && f.count("SELECT COUNT(*) FROM subjects") == 0 {
			gone = true
			g.publish("gw-1", g.sealBatch(message("p1", 2, "71")))
			g.publish("gw-1", g.sealBatch(message("p2", 2, "72")))
		}
		return gone && f.count("SELECT COUNT(*) FROM messages") == 2
	})
	if got := append(f.values("p1", 9), f.values("p2", 9)...); !slices.Equal(got, []string{"71", "72"}) {
		t.Errorf("%q", got)
	}
}

// A batch whose row is gone is known all the same, whenever it is published again.
func TestBatchesBecomeRanges(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	var frames [][]byte
	for n := range 20 {
		frames = append(frames, g.sealBatch(message("p1", n, fmt.Sprint(n))))
	}
	garbage := g.seal([]byte("no batch")) // number 20
	frames = append(frames, garbage, g.sealBatch(message("p1", 21, "21")))
	for _, n := range []int{5, 4, 3, 2, 1, 0, 9, 7, 20, 21} { // live first, the backlog behind it, some not yet
		g.publish("gw-1", frames[n])
	}
	f.ran("stored")
	f.later(8 * testDay)
	f.ran("rows are gone")
	if n := f.count("SELECT COUNT(*) FROM batches"); n != 1 {
		t.Errorf("%d rows left, expected the dead one", n)
	}
	rows := ""
	for _, at := range []int64{0, 7, 9, 21} {
		rows += fmt.Sprintf("%d-%d ", at, f.count("SELECT last FROM batch_ranges WHERE first = $1", at))
	}
	if rows != "0-5 7-7 9-9 21-21 " || f.count("SELECT COUNT(*) FROM batch_ranges") != 4 {
		t.Error(rows)
	}
	messages := f.count("SELECT COUNT(*) FROM messages")
	for _, n := range []int{0, 5, 9, 21} {
		g.publish("gw-1", frames[n])
	}
	g.publish("gw-1", frames[6])
	g.publish("gw-1", frames[8])
	f.ran("published again")
	if n := f.count("SELECT COUNT(*) FROM messages"); n != messages+2 {
		t.Errorf("%d messages, expected %d", n, messages+2)
	}
	f.later(8 * testDay)
	f.ran("ranges join")
	if last := f.count("SELECT last FROM batch_ranges WHERE first = 0"); last != 9 || f.count("SELECT COUNT(*) FROM batch_ranges") != 2 {
		t.Errorf("0-%d", last)
	}
	// Even after its messages are gone, an old frame that somebody publishes again brings nothing back.
	f.later(100 * testDay)
	f.ran("all is gone")
	g.publish("gw-1", frames[3])
	f.ran("replayed")
	if n := f.count("SELECT COUNT(*) FROM messages"); n != 0 {
		t.Errorf("%d messages came back", n)
	}
}

// A clock that jumps ahead disposes of nothing, and says so; one that comes back, or an operator's word, lets disposal go on.
func TestAClockThatJumpsDisposesOfNothing(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.ran("stored")
	right := f.clock.Now()
	f.clock.set(right.Add(20 * 365 * testDay))
	suspended := func() bool {
		s, err := f.open().Retention(f.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s.Suspended
	}
	f.during("a jump", suspended)
	f.clock.add(testDay)
	f.until("still", func(s records.Stats) bool { return suspended() })
	if got := f.values("p1", 9); len(got) != 1 {
		t.Fatalf("a jump of the clock disposed of %q", got)
	}
	// What comes now has a time of receipt twenty years ahead; it must not be kept until then.
	g.publish("gw-1", g.sealBatch(message("p2", 1, "61")))
	f.until("stored meanwhile", stored(2))
	f.clock.set(right.Add(26 * time.Hour))
	f.during("the clock is mended", func() bool { return !suspended() })
	f.ran("goes on")
	if len(f.values("p1", 9))+len(f.values("p2", 9)) != 2 {
		t.Error("something is gone")
	}
	f.clock.add(91 * testDay)
	f.during("restarted after 91 days: down, or jumped? nobody knows", func() bool { return true })
	if !suspended() && f.count("SELECT COUNT(*) FROM messages") == 2 {
		f.during("suspended", suspended)
	}
	if err := f.open().ClockIsRight(f.ctx, operator, "10.0.0.9:1"); err != nil {
		t.Fatal(err)
	}
	f.ran("an operator says that it is right")
	if n := f.count("SELECT COUNT(*) FROM messages"); n != 0 {
		t.Errorf("%d messages left", n)
	}
	var lines []string
	for _, ev := range f.journal.Events(t) {
		if ev.Type == audit.RetentionSuspended || ev.Type == audit.RetentionResumed {
			lines = append(lines, string(ev.Type)+" "+ev.Actor.ID)
		}
	}
	if len(lines) < 3 || lines[0] != "retention.suspended server" || lines[1] != "retention.resumed server" || lines[len(lines)-1] != "retention.resumed "+operator.ID {
		t.Errorf("%q", lines)
	}
}

// The log does not say that disposal was resumed when nothing had suspended it.
func TestClockIsRightAnyhow(t *testing.T) {
	f := retained(t)
	f.ran("a clock that is right")
	if err := f.open().ClockIsRight(f.ctx, operator, "10.0.0.9:1"); err != nil {
		t.Fatal(err)
	}
	for _, ev := range f.journal.Events(t) {
		if ev.Type == audit.RetentionResumed {
			t.Errorf("%+v", ev)
		}
	}
}

// What was received while the clock stood at 1970 is not fifty years old.
func TestReceivedWhileTheClockWasAt1970(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	f.ran("a clock that is right")
	right := f.clock.Now()
	f.clock.set(time.Unix(1000, 0))
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.until("stored", stored(1))
	f.clock.set(right.Add(time.Hour))
	f.ran("right again")
	f.later(80 * testDay)
	f.ran("80 days later")
	if got := f.values("p1", 9); len(got) != 1 {
		t.Errorf("%q", got)
	}
	f.later(11 * testDay)
	f.ran("91 days later")
	if got := f.values("p1", 9); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// Dead batches go after their own time, with a leaf.
func TestDeadBatchesGoAfterTheirTime(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	frame := g.seal([]byte("no batch"))
	g.publish("gw-1", frame)
	f.until("dead", func(s records.Stats) bool { return s.Dead == 1 })
	f.later(366 * testDay)
	f.ran("gone")
	if f.count("SELECT COUNT(*) FROM batch_frames") != 0 || f.count("SELECT COUNT(*) FROM batches") != 0 {
		t.Error("its frame is kept")
	}
	if evs := f.disposals(records.ClassDead); len(evs) != 1 || evs[0].Count != 1 {
		t.Errorf("%+v", evs)
	}
	g.publish("gw-1", frame)
	f.ran("published again")
	if f.count("SELECT COUNT(*) FROM batches") != 0 {
		t.Error("it is back")
	}
}

// Chunks of samples go by their own age: those of a message with readings too, which stays; and a message that held nothing else.
func TestWaveformsGoFirst(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	mixed, only := message("p1", 1, "70"), message("p2", 2)
	mixed.Waveforms = second("p1", 1, []int32{1, 2, 3}).Waveforms
	only.Waveforms = second("p2", 2, []int32{4, 5, 6}).Waveforms
	g.publish("gw-1", g.sealBatch(mixed))
	g.lane = telemetry.LaneWaveform
	g.publish("gw-1", g.sealBatch(only))
	f.ran("stored")
	if n := f.count("SELECT COUNT(*) FROM waveforms"); n != 2 {
		t.Fatalf("%d chunks", n)
	}
	f.later(48 * time.Hour)
	f.ran("two days later")
	if n := f.count("SELECT COUNT(*) FROM waveforms"); n != 2 {
		t.Errorf("%d chunks after two days", n)
	}
	f.later(25 * time.Hour)
	f.ran("three days later")
	if n := f.count("SELECT COUNT(*) FROM waveforms"); n != 0 || f.count("SELECT COUNT(*) FROM messages") != 1 || f.count("SELECT COUNT(*) FROM subjects") != 1 {
		t.Errorf("%d chunks", n)
	}
	var chunks, samples, messages int64
	for _, ev := range f.disposals(records.ClassWaveforms) {
		chunks += int64(ev.Count)
		var s, m int64
		_, _ = fmt.Sscan(ev.Detail["samples"], &s)
		_, _ = fmt.Sscan(ev.Detail["messages"], &m)
		samples, messages = samples+s, messages+m
	}
	if chunks != 2 || samples == 0 || messages != 1 {
		t.Errorf("events tell of %d chunks, %d samples, %d messages", chunks, samples, messages)
	}
	if got := f.values("p1", 9); !slices.Equal(got, []string{"70"}) {
		t.Errorf("%q", got)
	}
}

// A server whose clock stood at 1970 from its first day on loses nothing when the clock is set.
func TestAServerThatBeganIn1970(t *testing.T) {
	f := retained(t)
	right := f.clock.Now()
	f.clock.set(time.Unix(1000, 0))
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.ran("stored")
	f.clock.set(right)
	f.later(time.Hour)
	f.ran("the clock is set, and an operator says that it is right")
	if got := f.values("p1", 9); len(got) != 1 {
		t.Errorf("%q", got)
	}
	f.later(91 * testDay)
	f.ran("91 days later")
	if got := f.values("p1", 9); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// A run that has more to delete than its rests let it rests no longer: what is over goes as fast as it came.
func TestDisposalThatIsLateDoesNotRest(t *testing.T) {
	f := retained(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range 4 {
		var ms []telemetry.Message
		for i := range 1000 { // a step takes no more
			ms = append(ms, message("p1", n*1000+i, "60"))
		}
		g.publish("gw-1", g.sealBatch(ms...))
	}
	keep := f.retention
	f.retention = nil
	f.until("stored", func(s records.Stats) bool { return s.Messages == 4000 })
	f.retention = keep
	f.later(100 * testDay)
	r := f.open()
	if err := r.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	steps := func(n int) (deleted int64) {
		t.Helper()
		before := f.count("SELECT COUNT(*) FROM messages")
		for range n {
			if _, err := r.Dispose(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		return before - f.count("SELECT COUNT(*) FROM messages")
	}
	for f.clock.add(time.Minute); steps(1) == 0; f.clock.add(time.Second) { // waveforms come first
	}
	if n := steps(20); n != 0 {
		t.Errorf("%d messages went without a rest, in a run that has just begun", n)
	}
	f.clock.add(2 * time.Hour)
	if n := steps(20); n != 3000 {
		t.Errorf("%d messages went in a run that is two hours late; expected all 3000 that were left, without a rest", n)
	}
}
