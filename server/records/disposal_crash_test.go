package records_test

import (
	"bufio"
	crand "crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// unwilling is a journal whose ids differ from those of every other process.
type unwilling struct{ *sqldbtest.Journal }

func (unwilling) NextID() (id audit.EventID) {
	_, _ = crand.Read(id[:])
	return id
}

const childVariable = "WARDLINK_TEST_DISPOSE"

// TestDisposalChild is the process that the next test kills: it disposes, and its journal takes no event, so that they stay in the
// database.
func TestDisposalChild(t *testing.T) {
	path := os.Getenv(childVariable)
	if path == "" {
		return // it is not a test by itself: TestKilledDisposalLosesNoLeaf runs it
	}
	db, err := sqldb.Open(path, migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	j := unwilling{&sqldbtest.Journal{}}
	j.Fail(func(journal.Entry) (error, bool) { return errors.New("not now"), false })
	outbox, err := sqldb.NewOutbox(db, j, nil)
	if err != nil {
		t.Fatal(err)
	}
	keep, now := records.DefaultRetention(), &clock{now: time.Now()}
	r, err := records.New(records.Config{
		DB: db, Outbox: outbox, Journal: j, Registry: &keys{}, Pseudonym: pseudonym, Log: slog.New(slog.DiscardHandler),
		Now: now.Now, Elapsed: now.elapsed, Retention: &keep,
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	for {
		// An error is the journal's at the end of a run; the database's would show in what the parent counts.
		if _, err := r.Dispose(t.Context()); err != nil && !strings.Contains(err.Error(), "not now") {
			t.Fatal(err)
		}
		now.add(time.Millisecond) // the rest between steps is over soon; hours would look like a jump
	}
}

// Killed at any instant, a disposal has deleted nothing that is not in an event or in a tally that becomes one; and what it disposed of
// stays away.
func TestKilledDisposalLosesNoLeaf(t *testing.T) {
	f := setup(t)
	f.clock.set(time.Now().Add(-100 * testDay))
	g := f.gateway("gw-1").enrol().bring("gw-1")
	const messages, values, patients = 300, 60, 12
	for n := range messages {
		g.publish("gw-1", g.sealBatch(message(fmt.Sprintf("p%d", n%patients), n, slices.Repeat([]string{"70"}, values)...)))
	}
	f.until("stored", stored(messages))
	if err := f.db.Reclaim(f.ctx); err != nil {
		t.Fatal(err)
	}
	path := f.path
	left, kills, between := int64(messages*values), 0, 0
	window := 10 * time.Millisecond // in which a child dies; it grows as long as children die before they have done anything
	for ; left > 0; kills++ {
		if kills == 200 {
			t.Fatalf("%d observations are left", left)
		}
		killDisposal(t, path, rand.N(window))
		var events, pending int64
		before := left
		left, events, pending = f.disposal()
		if left+events+pending != messages*values {
			t.Fatalf("kill %d: %d left, %d in events, %d in the tally; expected %d together", kills+1, left, events, pending, messages*values)
		}
		if pending > 0 {
			between++
		}
		if left == before {
			window += window / 8
		}
	}
	if kills < 2 || between == 0 {
		t.Fatalf("%d kills, %d of them between a deletion and its event: this test proves nothing", kills, between)
	}
	t.Logf("%d kills, %d between a deletion and its event", kills, between)
	for _, events, _ := f.disposal(); events != messages*values; _, events, _ = f.disposal() {
		if kills++; kills > 300 || events > messages*values {
			t.Fatalf("%d are in events", events)
		}
		killDisposal(t, path, 20*time.Millisecond)
	}
}

// disposal counts the observations that are left, those that are in vitals' events in the database, and those in the tally, all of one
// moment: a backend of PostgreSQL whose client was killed may still commit.
func (f *fixture) disposal() (left, events, pending int64) {
	f.t.Helper()
	if err := f.db.Read(f.ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRow(`SELECT (SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM readings), (SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM retention_runs WHERE class = 'vitals')`).
			Scan(&left, &pending); err != nil {
			return err
		}
		rows, err := tx.Query("SELECT event FROM events_out")
		if err != nil {
			return err
		}
		for rows.Next() {
			var data []byte
			if err := rows.Scan(&data); err != nil {
				return errors.Join(err, rows.Close())
			}
			ev, err := audit.DecodeEvent(data)
			if err != nil {
				return errors.Join(err, rows.Close())
			}
			if ev.Type == audit.RecordsDisposed && ev.Target == "vitals" {
				events += int64(ev.Count)
			}
		}
		return errors.Join(rows.Err(), rows.Close())
	}); err != nil {
		f.t.Fatal(err)
	}
	return left, events, pending
}

func killDisposal(t *testing.T, path string, after time.Duration) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestDisposalChild$")
	c.Env = append(os.Environ(), childVariable+"="+path)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
	}
	if lines.Text() != "ready" {
		t.Fatalf("the child did not begin: %v", c.Wait())
	}
	time.Sleep(after) // the instant of the kill: any will do
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
}
