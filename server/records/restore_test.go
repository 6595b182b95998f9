package records_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
)

// holed is a journal that no longer has some entries.
type holed struct {
	*sqldbtest.Journal
	gone func(seq uint64) bool
}

func (h holed) Read(from uint64, limit int) ([]journal.Entry, error) {
	for {
		entries, err := h.Journal.Read(from, limit)
		if len(entries) == 0 || err != nil {
			return entries, err
		}
		from = entries[len(entries)-1].Seq + 1
		if entries = slices.DeleteFunc(entries, func(e journal.Entry) bool { return h.gone(e.Seq) }); len(entries) > 0 {
			return entries, nil
		}
	}
}

// wiped puts an empty database in the place of the one that was there.
func (f *fixture) wiped() { f.db, f.path = sqldbtest.New(f.t, migrations()...) }

// A database from before what the journal's cursor says is filled up from the journal.
func TestRestoredDatabaseReadsTheJournalAgain(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range 3 {
		g.publish("gw-1", g.sealBatch(message("p1", n, fmt.Sprint(70+n))))
	}
	f.until("stored", stored(3))
	backup, path := f.db, f.path
	f.wiped()
	f.until("an empty database", stored(3))
	if got := f.values("p1", 10); !slices.Equal(got, []string{"72", "71", "70"}) {
		t.Errorf("after the restore: %q", got)
	}
	// The other way round, and with new data that both lack.
	f.db, f.path = backup, path
	g.publish("gw-1", g.sealBatch(message("p1", 3, "73")))
	f.until("the newer database again", stored(4))
	f.wiped()
	g.publish("gw-1", g.sealBatch(message("p1", 4, "74")))
	f.until("an empty database and news", stored(5))
	if got := f.values("p1", 10); len(got) != 5 || f.journal.Cursor(records.Consumer) != uint64(f.journal.Len()) {
		t.Errorf("at the end: %q", got)
	}
	if n := len(f.journal.Events(t)); n != 0 {
		t.Errorf("%d events, though nothing is missing", n)
	}
}

// oneByOne is a journal that gives one entry at a time, as one with large frames does.
type oneByOne struct{ *sqldbtest.Journal }

func (o oneByOne) Read(from uint64, _ int) ([]journal.Entry, error) { return o.Journal.Read(from, 1) }

// Reading again takes many passes, during which the journal's cursor must stay where it is (the journal refuses to put it back) and
// the database says how far it has come.
func TestReadingAgainLeavesTheCursorAlone(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for n := range 4 {
		g.publish("gw-1", g.sealBatch(message("p1", n, fmt.Sprint(70+n))))
	}
	f.until("stored", stored(4))
	f.wiped()
	f.reading = oneByOne{f.journal}
	f.until("read again", stored(4))
	var seq int
	if err := f.db.QueryRow(f.ctx, "SELECT seq FROM records_totals").Scan(&seq); err != nil || seq != f.journal.Len() {
		t.Errorf("the database says %d of %d, %v", seq, f.journal.Len(), err)
	}
}

// What a restored database lacks and the journal has no more is a gap: said once in the transparency log, for good in the figures.
// Everything else is stored.
func TestWhatNoJournalHasIsAGap(t *testing.T) {
	for name, c := range map[string]struct {
		gone   func(seq uint64) bool
		gaps   []string
		values []string
	}{
		"files that were too old": {func(s uint64) bool { return s == 2 || s == 3 }, []string{"2-3"}, []string{"73", "72"}},
		"two damaged files":       {func(s uint64) bool { return s == 2 || s == 4 }, []string{"2-2", "4-4"}, []string{"73", "71"}},
		"a hole past the cursor":  {func(s uint64) bool { return s == 6 }, nil, []string{"73", "72", "71", "70"}},
		"a hole across it":        {func(s uint64) bool { return s == 5 || s == 6 }, []string{"5-5"}, []string{"72", "71", "70"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t)
			g := f.gateway("gw-1").enrol().bring("gw-1")
			for n := range 4 {
				g.publish("gw-1", g.sealBatch(message("p1", n, fmt.Sprint(70+n)))) // entries 2 to 5
			}
			f.until("stored", stored(4))
			f.wiped()
			f.reading = holed{f.journal, c.gone}
			g.publish("gw-1", g.sealBatch(message("p2", 4, "0"))) // 6
			g.publish("gw-1", g.sealBatch(message("p2", 5, "1"))) // 7
			missing := int64(len(c.gaps))
			if c.gaps != nil && c.gaps[0] == "2-3" {
				missing = 2
			}
			for range 2 { // a second start finds nothing new
				f.during("read again", func() bool {
					return f.journal.Cursor(records.Consumer) >= 7 && len(f.values("p1", 10)) == len(c.values) && len(f.journal.Events(t)) == len(c.gaps)
				})
			}
			if got := f.values("p1", 10); !slices.Equal(got, c.values) {
				t.Errorf("values %q, expected %q", got, c.values)
			}
			var gaps []string
			for _, ev := range f.journal.Events(t) {
				if ev.Type != audit.RecordsGap || ev.Outcome != audit.Failed {
					t.Errorf("%+v", ev)
				}
				gaps = append(gaps, ev.Detail["first"]+"-"+ev.Detail["last"])
			}
			if !slices.Equal(gaps, c.gaps) {
				t.Errorf("gaps %q, expected %q", gaps, c.gaps)
			}
			if s, err := f.open().Stats(f.ctx); err != nil || s.Missing != missing {
				t.Errorf("%d missing, expected %d (%v)", s.Missing, missing, err)
			}
			if said := strings.Contains(f.log.String(), "restore a newer backup"); said != (c.gaps != nil) {
				t.Errorf("said in the log: %v", said)
			}
		})
	}
}

// The database says how far it is also when nothing but events came: else a quiet week would look like a gap.
func TestEventsAloneMoveTheDatabaseOn(t *testing.T) {
	f := setup(t)
	f.gateway("gw-1").bring("gw-1").bring("gw-1")
	var seq int
	f.until("read", func(records.Stats) bool {
		if err := f.db.QueryRow(f.ctx, "SELECT seq FROM records_totals").Scan(&seq); err != nil {
			t.Fatal(err)
		}
		return seq == 2
	})
}

// A second frame is kept and reported; while the first stands or may yet stand, that is all.
func TestSecondFrameIsKeptAndReported(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	first := g.sealBatch(message("p1", 1, "70"))
	g.next = 0
	second := g.sealBatch(message("p1", 2, "99"))
	for range 2 {
		g.publish("gw-1", first)
		g.publish("gw-1", second)
	}
	f.until("conflict", func(s records.Stats) bool { return s.Conflicts == 1 && s.Batches == 1 })
	if got := f.values("p1", 10); !slices.Equal(got, []string{"70"}) {
		t.Errorf("the first must stand: %q", got)
	}
	var kept []byte
	if err := f.db.QueryRow(f.ctx, "SELECT data FROM batch_conflicts").Scan(&kept); err != nil || !slices.Equal(kept, second) {
		t.Errorf("%d bytes kept, %v", len(kept), err)
	}
	evs := f.journal.Events(t)
	if len(evs) != 1 || evs[0].Type != audit.BatchConflict || evs[0].Target != "gw-1" || evs[0].Detail["number"] != "0" ||
		evs[0].Detail["first_sha256"] != fmt.Sprintf("%x", sha(first)) || evs[0].Detail["frame_sha256"] != fmt.Sprintf("%x", sha(second)) {
		t.Errorf("%+v", evs)
	}
}

// A dead first frame gives way, whether it died before the second came or after, and stays as evidence.
func TestSecondFrameTakesADeadOnesPlace(t *testing.T) {
	for name, together := range map[string]bool{"first is dead already": false, "first dies later": true} {
		t.Run(name, func(t *testing.T) {
			f := setup(t)
			g := f.gateway("gw-1").enrol().bring("gw-1")
			dead := g.seal([]byte("no batch"))
			g.next = 0
			alive := g.sealBatch(message("p1", 1, "70"))
			g.publish("gw-1", dead)
			if !together {
				f.until("dead", func(s records.Stats) bool { return s.Dead == 1 })
			}
			g.publish("gw-1", alive)
			g.publish("gw-1", dead)
			settled := func(s records.Stats) bool {
				return s.Batches == 1 && s.Dead == 0 && s.Pending == 0 && s.Conflicts == 1
			}
			f.until("the second is stored", settled)
			f.journal.Rewind(records.Consumer, 0)
			f.until("read again", settled)
			if got := f.values("p1", 10); !slices.Equal(got, []string{"70"}) {
				t.Errorf("%q", got)
			}
			var kept []byte
			if err := f.db.QueryRow(f.ctx, "SELECT data FROM batch_conflicts WHERE tried = 1").Scan(&kept); err != nil || !slices.Equal(kept, dead) {
				t.Errorf("the dead frame: %d bytes kept, %v", len(kept), err)
			}
			lines := f.journal.Lines(t)
			slices.Sort(lines)
			if !slices.Equal(lines, []string{"batch.conflict gw-1 failed", "batch.dead gw-1 failed"}) {
				t.Errorf("%q", lines)
			}
		})
	}
	t.Run("both are dead", func(t *testing.T) {
		f := setup(t)
		g := f.gateway("gw-1").enrol().bring("gw-1")
		for _, text := range []string{"no batch", "none either"} {
			g.next = 0
			g.publish("gw-1", g.seal([]byte(text)))
		}
		f.until("dead twice", func(s records.Stats) bool {
			return s.Dead == 1 && s.Conflicts == 1 && s.Pending == 0 && len(f.journal.Events(t)) == 3
		})
	})
}

// A row that names a device is stored and counted, but not as a reading.
func TestDevicePartsAreCountedApart(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	m := message("p1", 1, "70", "")
	m.Observations[1].Code.MDC, m.Observations[1].Marks = 69965, telemetry.MarkNoReading
	g.publish("gw-1", g.sealBatch(m))
	f.until("stored", func(s records.Stats) bool { return s.Batches == 1 && s.Observations == 1 && s.Parts == 1 })
	if got := f.values("p1", 10); !slices.Equal(got, []string{"70"}) {
		t.Errorf("%q", got)
	}
	var rows int
	if err := f.db.QueryRow(f.ctx, "SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM readings").Scan(&rows); err != nil || rows != 2 {
		t.Errorf("%d rows, %v", rows, err)
	}
}
