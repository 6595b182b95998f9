package alerts

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

func TestAnAlertIsOneUntilItEnds(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	silent := func(detail string) []Condition {
		return []Condition{{Subject: "gw-1", Detail: map[string]string{"silent": detail}}}
	}
	d.Observe(GatewaySilent, silent("10m"))
	for range 20 {
		d.pass(15 * time.Second)
		d.Observe(GatewaySilent, silent("15m"))
		d.Tick()
	}
	d.expectQueued("pager", "alert.raised gw-1")
	d.expectEvents("alert.raised gateway-silent/gw-1 success")
	open, err := d.List(context.Background(), false, 0)
	if err != nil || len(open) != 1 || open[0].Count != 21 || open[0].Detail["silent"] != "15m" {
		t.Fatalf("%+v, %v", open, err)
	}

	// The repeat interval counts from the last message.
	d.pass(4*time.Hour - 5*time.Minute - time.Second)
	d.Observe(GatewaySilent, silent("4h"))
	d.Tick()
	d.expectQueued("pager", "alert.raised gw-1")
	d.pass(time.Second)
	d.Tick()
	d.Tick()
	d.expectQueued("pager", "alert.raised gw-1", "alert.repeated gw-1")

	// One that comes back within a minute has not ended.
	d.Observe(GatewaySilent, nil)
	d.pass(59 * time.Second)
	d.Observe(GatewaySilent, nil)
	d.Observe(GatewaySilent, silent("4h"))
	d.pass(2 * time.Second)
	d.Observe(GatewaySilent, nil)
	d.pass(59 * time.Second)
	d.Observe(GatewaySilent, nil)
	d.expectEvents("alert.raised gateway-silent/gw-1 success")
	d.pass(time.Second)
	d.Observe(GatewaySilent, nil)
	d.expectQueued("pager", "alert.raised gw-1", "alert.repeated gw-1", "alert.resolved gw-1")
	d.expectEvents("alert.raised gateway-silent/gw-1 success", "alert.resolved gateway-silent/gw-1 success")
	if list, err := d.List(context.Background(), true, 10); err != nil || len(list) != 1 || list[0].Resolved.IsZero() || list[0].ID != open[0].ID {
		t.Fatalf("%+v, %v", list, err)
	}

	d.Observe(GatewaySilent, silent("10m"))
	if again, _ := d.List(context.Background(), false, 0); len(again) != 1 || again[0].ID == open[0].ID {
		t.Fatalf("the next one is not a new alert: %+v", again)
	}
}

func TestEscalationEndsAnAcknowledgement(t *testing.T) {
	ctx := context.Background()
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "all", "notice"), unreachable(t, "night", "critical")}})
	d.Raise(DiskLow, Condition{Subject: "server directory"})
	d.expectQueued("all", "alert.raised server directory")
	d.expectQueued("night")
	al, err := d.Acknowledge(ctx, operator, "disk-low/server directory", "on it")
	if err != nil || al.AckedBy != operator.Actor.ID || al.Note != "on it" {
		t.Fatalf("%+v, %v", al, err)
	}
	d.pass(24 * time.Hour)
	d.Raise(DiskLow, Condition{Subject: "server directory"})
	d.Tick()
	d.expectQueued("all", "alert.raised server directory")

	d.Raise(DiskLow, Condition{Subject: "server directory", Severity: Critical})
	d.expectQueued("all", "alert.raised server directory", "alert.escalated server directory")
	d.expectQueued("night", "alert.escalated server directory")
	// Down and up again is no news: the peak counts.
	d.Raise(DiskLow, Condition{Subject: "server directory"})
	d.Raise(DiskLow, Condition{Subject: "server directory", Severity: Critical})
	d.Tick()
	d.expectQueued("night", "alert.escalated server directory")
	d.expectEvents("alert.raised disk-low/server directory success", "alert.acknowledged disk-low/server directory success",
		"alert.raised disk-low/server directory success")
	if ev := d.journal.Events(t)[1]; ev.Actor != operator.Actor || ev.Peer != operator.Peer || ev.Reason != "on it" {
		t.Fatalf("%+v", ev)
	}
	if _, err := d.Acknowledge(ctx, operator, "NOSUCHONE", ""); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
}

func TestSilence(t *testing.T) {
	ctx := context.Background()
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	for _, bad := range []struct {
		s    Silence
		span time.Duration
		says string
	}{
		{Silence{Type: "gateway-silnet", Reason: "x"}, time.Hour, "gateway-silent"},
		{Silence{Type: "gateway-silent"}, time.Hour, "reason"},
		{Silence{Reason: "x"}, time.Second, "1m"},
	} {
		if _, err := d.Silence(ctx, operator, bad.s, bad.span); !errors.Is(err, ErrBad) || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	s, err := d.Silence(ctx, operator, Silence{Type: "gateway-*", Subject: "icu-3-*", Reason: "cabling"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	d.restart() // a silence outlives the process
	observe := func() {
		d.Observe(GatewaySilent, []Condition{{Subject: "icu-3-bed-1"}, {Subject: "icu-4-bed-1"}})
		d.Tick()
	}
	observe()
	d.expectQueued("pager", "alert.raised icu-4-bed-1")
	open, _ := d.List(ctx, false, 0)
	if len(open) != 2 || open[0].Silence+open[1].Silence != s.ID {
		t.Fatalf("%+v", open)
	}
	d.flush()
	if n := d.count("SELECT COUNT(*) FROM alerts"); n != 2 {
		t.Fatalf("%d rows: a silenced alert is a row all the same", n)
	}
	d.pass(time.Hour) // it ends, and what is still wrong is told
	observe()
	d.expectQueued("pager", "alert.raised icu-4-bed-1", "alert.raised icu-3-bed-1")

	s, err = d.Silence(ctx, operator, Silence{Type: "batch-dead", Reason: "test"}, time.Hour)
	d.must(err)
	if _, err := d.Unsilence(ctx, operator, strings.ToLower(s.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Unsilence(ctx, operator, s.ID); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
	d.restart()
	if left := d.Silences(); len(left) != 0 {
		t.Fatalf("%+v", left)
	}
	want := []string{
		"alert.silenced gateway-*/icu-3-* success", "alert.raised gateway-silent/icu-3-bed-1 success", "alert.raised gateway-silent/icu-4-bed-1 success",
		"alert.silenced batch-dead/* success", "alert.unsilenced batch-dead/* success",
	}
	d.expectEvents(want...)
}

// An alert that nobody was told of ends without a message: a pager must not ring for what it never heard of.
func TestResolvedGoesToWhomWasTold(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	_, err := d.Silence(context.Background(), operator, Silence{Type: "disk-low", Reason: "x"}, time.Hour)
	d.must(err)
	d.Raise(DiskLow, Condition{Subject: "journal"})
	d.Raise(LogLags, Condition{})
	for range 2 {
		d.Clear(DiskLow, "journal")
		d.Clear(LogLags, "server")
		d.pass(time.Minute)
	}
	d.Observe(DiskLow, nil)
	d.Observe(LogLags, nil)
	d.expectQueued("pager", "alert.raised server", "alert.resolved server")
}

func TestManySubjectsShareOneAlert(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	d.Observe(GatewaySilent, subjects(maxOpen+50))
	open, _ := d.List(context.Background(), false, 0)
	if len(open) != maxOpen+1 {
		t.Fatalf("%d alerts", len(open))
	}
	i := slices.IndexFunc(open, func(al Alert) bool { return al.Subject == Others })
	if i < 0 || open[i].Detail["subjects"] != "50" {
		t.Fatalf("%+v", open[max(i, 0)])
	}
	if n := len(d.queued("pager")); n != maxOpen+1 {
		t.Fatalf("%d messages", n)
	}
	if n := len(d.lines()); n != maxOpen+1 {
		t.Fatalf("%d leaves", n)
	}
}

// What is about the journal has row and message while the journal fails, and its event afterwards.
func TestJournalThatCannotBeWritten(t *testing.T) {
	r := newReceiver(t, nil)
	d := newDesk(t, Settings{Targets: []Target{r.target("pager", "")}})
	d.journal.Fail(func(journal.Entry) (error, bool) { return errBoom, false })
	d.Raise(JournalFails, Condition{Detail: map[string]string{"error": "disk is full"}})
	d.during("delivery", func() bool { return d.Targets()[0].Sent == 1 })
	if n := d.count("SELECT COUNT(*) FROM alerts WHERE type = 'journal-fails'"); n != 1 {
		t.Fatalf("%d rows", n)
	}
	// An operator can take it on, and is told that the event is still to come.
	if _, err := d.Acknowledge(context.Background(), operator, "journal-fails/server", ""); !errors.Is(err, errBoom) || !strings.Contains(err.Error(), "it holds") {
		t.Fatal(err)
	}
	if d.journal.Len() != 0 {
		t.Fatal("the journal did not fail")
	}
	d.journal.Fail(nil)
	d.flush()
	if got := d.journal.Lines(t); !slices.Equal(got[:2], []string{"alert.raised journal-fails/server success", "alert.acknowledged journal-fails/server success"}) {
		t.Fatal(got)
	}
}

// While the database takes nothing, messages go out from memory; rows and events come later, once.
func TestDatabaseThatCannotBeWritten(t *testing.T) {
	r := newReceiver(t, nil)
	d := newDesk(t, Settings{Targets: []Target{r.target("pager", "")}})
	d.hold, d.limit = 20*time.Millisecond, 50*time.Millisecond
	d.cfg.Now = time.Now
	d.Alerts.now = time.Now
	held, release := make(chan struct{}), make(chan struct{})
	blocked := make(chan error, 1)
	go func() {
		blocked <- d.db.Write(context.Background(), func(*sql.Tx) error { close(held); <-release; return nil })
	}()
	<-held
	d.Raise(DatabaseFails, Condition{})
	d.during("delivery from memory", func() bool {
		since, err := d.Failing()
		return d.Targets()[0].Sent == 1 && !since.IsZero() && err != nil
	})
	if _, err := d.Acknowledge(context.Background(), operator, "database-fails/server", ""); err == nil || !strings.Contains(err.Error(), "only in memory") {
		t.Fatal(err)
	}
	if n := d.count("SELECT COUNT(*) FROM alerts"); n != 0 {
		t.Fatalf("%d rows: the database was not held", n)
	}
	close(release)
	d.must(<-blocked)
	d.limit = writeTime
	d.flush()
	if since, err := d.Failing(); !since.IsZero() || err != nil {
		t.Fatal(since, err)
	}
	if n := d.count("SELECT COUNT(*) FROM alert_spool WHERE state = 0"); n != 0 {
		t.Fatalf("%d messages would be sent again", n)
	}
	d.events = time.Time{}
	lines := d.lines()
	if !slices.Equal(lines, []string{"alert.raised database-fails/server success", "alert.acknowledged database-fails/server success", "alert.delivered pager success"}) {
		t.Fatal(lines)
	}
	if len(r.got()) != 1 {
		t.Fatalf("sent %d times", len(r.got()))
	}
}

// A commit whose answer was lost is written again, and changes nothing: no event and no message twice.
func TestDoubtfulCommit(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	d.Raise(DiskLow, Condition{Subject: "log"})
	d.Alerts.mu.Lock()
	again := slices.Clone(d.unwritten)
	d.Alerts.mu.Unlock()
	d.flush()
	d.Alerts.mu.Lock()
	d.unwritten = again
	d.Alerts.mu.Unlock()
	d.Raise(DiskLow, Condition{Subject: "log", Severity: Critical})
	d.expectEvents("alert.raised disk-low/log success", "alert.raised disk-low/log success")
	if n := d.count("SELECT COUNT(*) FROM alert_spool"); n != 2 {
		t.Fatalf("%d messages in the spool", n)
	}
}

// What is raised while a write is under way is written by the next one.
func TestRaisedDuringAWrite(t *testing.T) {
	d := newDesk(t, Settings{})
	held, release := make(chan struct{}), make(chan struct{})
	blocked := make(chan error, 2)
	go func() {
		blocked <- d.db.Write(context.Background(), func(*sql.Tx) error { close(held); <-release; return nil })
	}()
	<-held
	d.Raise(DiskLow, Condition{Subject: "log"})
	called, real := make(chan struct{}, 100), d.Alerts.now
	d.Alerts.now = func() time.Time { called <- struct{}{}; return real() }
	go func() { blocked <- d.write(context.Background()) }()
	<-called // it asks for the time once it has taken what waits; then it waits for the database
	d.Raise(DiskLow, Condition{Subject: "journal"})
	close(release)
	d.must(<-blocked)
	d.must(<-blocked)
	d.expectEvents("alert.raised disk-low/log success", "alert.raised disk-low/journal success")
}

func TestOpenAlertsOutliveTheProcess(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	d.Raise(BatchDead, Condition{Subject: "gw-1"})
	d.Raise(DiskLow, Condition{Subject: "log"})
	d.flush()
	before, _ := d.List(context.Background(), false, 0)
	d.restart()
	d.expectQueued("pager", "alert.raised gw-1", "alert.raised log")
	d.Observe(DiskLow, nil)
	d.pass(time.Minute)
	d.Observe(DiskLow, nil)
	d.Raise(BatchDead, Condition{Subject: "gw-1"})
	after, _ := d.List(context.Background(), false, 0)
	if len(after) != 1 || after[0].ID != before[0].ID || after[0].Count != 2 {
		t.Fatalf("%+v became %+v", before, after)
	}
	d.expectEvents("alert.raised batch-dead/gw-1 success", "alert.raised disk-low/log success", "alert.resolved disk-low/log success")
}

// A target that takes nothing is itself an alert, for the others.
func TestTargetThatFails(t *testing.T) {
	r := newReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	d := newDesk(t, Settings{Targets: []Target{r.target("pager", ""), unreachable(t, "other", "")}})
	d.hurry()
	d.Raise(LogLags, Condition{})
	d.flush()
	pager := d.targets[0]
	pager.attempt(context.Background(), pager.queue[0])
	d.Tick()
	if d.Open(TargetFails, "pager") {
		t.Fatal("at once")
	}
	d.pass(failingAfter)
	d.Tick()
	d.expectQueued("pager", "alert.raised server")
	d.expectQueued("other", "alert.raised server", "alert.raised pager")
	if s := d.Targets()[0]; s.Error != "HTTP 500 Internal Server Error" || s.Waiting != 1 || s.Failing.IsZero() {
		t.Fatalf("%+v", s)
	}
}

func TestKindsAreWhole(t *testing.T) {
	seen := make(map[Type]bool)
	for _, k := range Kinds() {
		if seen[k.Type] || k.Severity < Notice || k.Severity > Critical || k.Repeat < time.Minute || k.Subject == "" || !strings.HasSuffix(k.Meaning, ".") || !strings.HasSuffix(k.Mend, ".") {
			t.Errorf("%+v", k)
		}
		seen[k.Type] = true
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"*", "", true}, {"*", "10.0.0.0/24", true}, {"", "", true}, {"", "a", false}, {"a?c", "abc", true}, {"a?c", "ac", false},
		{"icu-*-1", "icu-3-bed-1", true}, {"icu-*-1", "icu-3-bed-2", false}, {"**a*", "bcab", true}, {"*a", "aab", false}, {"a*b*c", "a-b-b-c", true},
	} {
		if got := match(c.pattern, c.text); got != c.want {
			t.Errorf("%q %q: %t", c.pattern, c.text, got)
		}
	}
	// A pattern that a naive matcher takes for ever over.
	if match(strings.Repeat("a*", 90)+"b", strings.Repeat("a", maxSubject)) {
		t.Error("matches")
	}
}

// TestASilenceOutlivesNoClock: one that was made while the server's clock stood years ahead does not hold for years once it is right.
func TestASilenceOutlivesNoClock(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	d.pass(20 * 365 * 24 * time.Hour)
	_, err := d.Silence(t.Context(), Who{Actor: audit.Actor{ID: "op"}}, Silence{Reason: "maintenance"}, time.Hour)
	d.must(err)
	d.Raise(BatchDead, Condition{Subject: "icu-7"})
	d.pass(-time.Minute) // the clock is disciplined a little
	d.Tick()
	d.expectQueued("pager")
	d.pass(-20 * 365 * 24 * time.Hour)
	if s := d.Silences(); len(s) != 0 {
		t.Errorf("%+v still holds", s)
	}
	d.flush()
	d.restart()
	d.Tick()
	d.expectQueued("pager", "alert.raised icu-7")
}
