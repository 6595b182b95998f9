package pgjournal_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/pgtest"
	"wardlink/server/journal"
	"wardlink/server/journal/journaltest"
	"wardlink/server/journal/pgjournal"
)

// TestPartsGoWhenAllHavePassedAndTimeIsOver: with their events before them, never the newest, and Oldest says what is left.
func TestPartsGoWhenAllHavePassedAndTimeIsOver(t *testing.T) {
	t.Parallel()
	p := place(t)
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	if seq, _ := j.Oldest(); seq != 1 {
		t.Fatalf("an empty journal begins at %d", seq)
	}
	for range 20 {
		if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 200_000)); err != nil {
			t.Fatal(err)
		}
	}
	week := 7 * 24 * time.Hour
	pass := func(consumer string, seq uint64) {
		t.Helper()
		if err := j.SetCursor(consumer, seq); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(now time.Time, want int) []journal.File {
		t.Helper()
		files := j.Expired(now)
		if len(files) != want {
			t.Fatalf("%d parts are too old, expected %d: %+v", len(files), want, files)
		}
		return files
	}
	later := time.Now().Add(week + time.Hour)
	pass("log", 20)
	expect(later, 0) // records has not passed
	pass("records", 9)
	expect(later, 1)
	pass("records", 20)
	expect(time.Now().Add(week-time.Hour), 0)
	files := expect(later, 3)
	if err := j.Dispose(t.Context(), files[1], later); err == nil {
		t.Fatal("a part went that is not the oldest")
	}
	for i, f := range files {
		if f.First != uint64(1+6*i) || f.Last != uint64(6+6*i) || f.Bytes != 6*200_001 {
			t.Errorf("%+v", f)
		}
		if err := j.Dispose(t.Context(), f, later.Add(-week)); err != nil {
			t.Fatal(err)
		}
		if err := j.Dispose(t.Context(), f, later); err == nil {
			t.Fatal("a part was disposed of twice")
		}
	}
	if seq, _ := j.Oldest(); seq != 19 {
		t.Errorf("the journal begins at %d, expected 19", seq)
	}
	all := journaltest.ReadAll(t, j, 1)
	if len(all) != 5 || all[0].Seq != 19 {
		t.Fatalf("%d entries from %d on", len(all), all[0].Seq)
	}
	for i, e := range all[2:] {
		ev, err := audit.DecodeEvent(e.Head)
		if err != nil || ev.Type != audit.RecordsDisposed || ev.Target != "journal" || ev.Detail["first_entry"] != []string{"1", "7", "13"}[i] {
			t.Errorf("%+v %v", ev, err)
		}
	}
	p.Check(t)
}

// TestADamagedGroupCostsOnlyItself: what was changed behind PostgreSQL's back is passed over and named.
func TestADamagedGroupCostsOnlyItself(t *testing.T) {
	t.Parallel()
	p := place(t)
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	for range 5 {
		if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 5000)); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, p.Name, "UPDATE journal_pieces SET bytes = set_byte(bytes, 3000, 0) WHERE first = 3")
	for range 2 {
		got := journaltest.ReadAll(t, j, 1)
		if len(got) != 4 || got[1].Seq != 2 || got[2].Seq != 4 {
			t.Fatalf("%d entries", len(got))
		}
	}
	if got := journaltest.ReadAll(t, j, 3); len(got) != 2 || got[0].Seq != 4 {
		t.Fatalf("%d entries from 3 on", len(got))
	}
	if d := j.Stats().Damaged; len(d) != 1 || d[0] != "group 3 to 3" {
		t.Errorf("damaged: %q", d)
	}
	exec(t, p.Name, "DELETE FROM journal_groups WHERE first = 2; DELETE FROM journal_pieces WHERE first = 2")
	r, err := pgjournal.Check(t.Context(), p.Name)
	if err != nil || len(r.Findings) != 4 || r.Entries != 4 {
		t.Errorf("check: %+v, %v", r, err)
	}
}

// TestALoginOfIngestMayOnlyAppend: every table and function of the journal but three, and those with what is no group.
func TestALoginOfIngestMayOnlyAppend(t *testing.T) {
	t.Parallel()
	p := place(t)
	url := loginURL(t, p.Name, "ingest_only")
	j := must(t, pgjournal.Config{URL: url})
	if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Read(1, 1); err == nil {
		t.Error("it reads")
	}
	conn := connect(t, url)
	rows, err := connect(t, p.Name).Query(t.Context(), "SELECT relname FROM pg_class WHERE relname LIKE 'journal%' AND relkind = 'r'")
	if err != nil {
		t.Fatal(err)
	}
	var statements []string
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			t.Fatal(err)
		}
		table = "public." + table
		statements = append(statements, "TABLE "+table, "DELETE FROM "+table, "TRUNCATE "+table, "BEGIN; LOCK TABLE "+table+" IN ACCESS SHARE MODE", "INSERT INTO "+table+" SELECT",
			"DROP TABLE "+table, "ALTER TABLE "+table+" ADD x INT")
	}
	if len(statements) < 8*7 {
		t.Fatalf("%d statements", len(statements))
	}
	for _, s := range statements {
		_, err := conn.Exec(t.Context(), s)
		if err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("%s: %v; expected that it is forbidden", s, err)
		}
		_, _ = conn.Exec(t.Context(), "ROLLBACK") // of the BEGIN, where there is one
	}
	for _, s := range []string{
		"SELECT public.journal_append('\\x00', 1, 1)", "SELECT public.journal_append(convert_to(repeat('x', 1000), 'UTF8'), 5000, 1)",
		"SELECT public.journal_append(convert_to(repeat('x', 34), 'UTF8'), 2, 1)", "SELECT public.journal_append(convert_to(repeat('x', 8), 'UTF8'), 0, 0)",
		"SET synchronous_commit = off; SELECT public.journal_append(convert_to(repeat('x', 34), 'UTF8'), 1, 1)",
	} {
		if _, err := conn.Exec(t.Context(), s); err == nil {
			t.Errorf("%s is taken", s)
		}
	}
	// What is shaped like a group and is none is a hole of one group, under the login's own name.
	forger := connect(t, url)
	if _, err := forger.Exec(t.Context(), "SELECT public.journal_append(convert_to(repeat('x', 34), 'UTF8'), 1, 1)"); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(t.Context(), journaltest.EntryOf(j, "y", 100)); err != nil {
		t.Fatal(err)
	}
	reader := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	if got := journaltest.ReadAll(t, reader, 1); len(got) != 2 || got[1].Seq != 3 {
		t.Errorf("%d entries", len(got))
	}
	var login string
	if err := connect(t, p.Name).QueryRow(t.Context(), "SELECT login FROM journal_groups WHERE first = 2").Scan(&login); err != nil || login != "ingest_only" {
		t.Errorf("login %s, %v", login, err)
	}
}

// TestNoTwoProcessesGiveOneID: each login has its node number, each opening its start.
func TestNoTwoProcessesGiveOneID(t *testing.T) {
	t.Parallel()
	p := place(t)
	seen := map[audit.EventID]bool{}
	nodes := map[uint32]bool{}
	for range 3 {
		for _, url := range []string{loginURL(t, p.Name, "id_one"), loginURL(t, p.Name, "id_two"), p.Name} {
			j := must(t, pgjournal.Config{URL: url}) // stays open
			for range 10 {
				id := j.NextID()
				if seen[id] {
					t.Fatalf("id %s was given twice", id)
				}
				seen[id] = true
				nodes[uint32(id[0])<<24|uint32(id[1])<<16|uint32(id[2])<<8|uint32(id[3])] = true
			}
		}
	}
	if len(nodes) != 3 || nodes[0] {
		t.Errorf("node numbers %v of three logins", nodes)
	}
}

// TestAJournalThatTakesALostOnesPlace begins behind it in everything.
func TestAJournalThatTakesALostOnesPlace(t *testing.T) {
	t.Parallel()
	p := place(t)
	c := pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()}
	started := time.Now().Add(time.Hour)
	if err := pgjournal.CreateAfter(context.Background(), c, 500, started); err != nil {
		t.Fatal(err)
	}
	j := must(t, c)
	if j.Stats().Committed != 500 || j.Cursor("log") != 500 || j.Cursor("records") != 500 {
		t.Errorf("%+v", j.Stats())
	}
	if err := j.SetCursor("log", 501); err == nil {
		t.Error("a cursor passed the beginning")
	}
	if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 1)); err != nil {
		t.Fatal(err)
	}
	id := j.NextID()
	start := int64(id[4])<<24 | int64(id[5])<<16 | int64(id[6])<<8 | int64(id[7])
	if got := journaltest.ReadAll(t, j, 1); len(got) != 1 || got[0].Seq != 501 || start <= started.Unix() {
		t.Errorf("%d entries, start %d", len(got), start)
	}
	if err := pgjournal.CreateAfter(context.Background(), c, 900, started); err == nil {
		t.Error("a journal that is used begins anew")
	}
	p.Check(t)
}

// TestAnotherProcessMovesACursor: who takes a consumer's part over sees where the former was, and the former is told that it is behind.
func TestAnotherProcessMovesACursor(t *testing.T) {
	t.Parallel()
	p := place(t)
	a, b := p.MustOpen(t), p.MustOpen(t)
	waited := make(chan error, 1)
	go func() { waited <- b.Wait(context.Background(), 2) }()
	if err := a.Append(t.Context(), journaltest.EntryOf(a, "x", 1), journaltest.EntryOf(a, "y", 1), journaltest.EntryOf(a, "z", 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if err := b.SetCursor("log", 2); err != nil {
		t.Fatal(err)
	}
	if got := a.Cursor("log"); got != 2 {
		t.Errorf("the other process sees %d", got)
	}
	if err := a.SetCursor("log", 1); err == nil {
		t.Error("one that was passed sets the cursor back")
	}
}

// TestAServerThatForgetsIsRefused: when it is opened, and in the middle of a run.
func TestAServerThatForgetsIsRefused(t *testing.T) {
	t.Parallel()
	p := place(t)
	url := loginURL(t, p.Name, "forgets")
	j := must(t, pgjournal.Config{URL: url})
	if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 1)); err != nil {
		t.Fatal(err)
	}
	exec(t, p.Name, "ALTER ROLE forgets SET synchronous_commit = off")
	if _, err := pgjournal.Open(t.Context(), pgjournal.Config{URL: url}); err == nil || !strings.Contains(err.Error(), "synchronous_commit") {
		t.Errorf("open: %v", err)
	}
	exec(t, p.Name, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'forgets'")
	ill(t, j)
	for !strings.Contains(errorText(j.Health()), "synchronous_commit") {
		_ = j.Append(t.Context(), journaltest.EntryOf(j, "x", 1))
	}
	exec(t, p.Name, "ALTER ROLE forgets RESET synchronous_commit")
	well(t, j)
}

// TestACursorThatWentBack: the database moves to a standby that had not the last groups and not the cursor behind them, and others append: their
// entries have numbers that the consumer has passed. It must not pass them by its own memory; where it begins again, it finds them. That somebody
// looks at the cursor between lets it pass nothing.
func TestACursorThatWentBack(t *testing.T) {
	t.Parallel()
	p := place(t)
	a, b := p.MustOpen(t), p.MustOpen(t)
	for _, what := range []string{"u", "v", "lost"} {
		if err := a.Append(t.Context(), journaltest.EntryOf(a, what, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.SetCursor("log", 3); err != nil {
		t.Fatal(err)
	}
	exec(t, p.Name, "DELETE FROM journal_groups WHERE first = 3; DELETE FROM journal_pieces WHERE first = 3; UPDATE journal_cursors SET seq = 2 WHERE consumer = 'log'")
	again := journaltest.EntryOf(b, "x", 1)
	if err := b.Append(t.Context(), again, journaltest.EntryOf(b, "y", 1)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also once the journal has seen for itself where the cursor is, and somebody has looked
		if err := a.SetCursor("log", 4); err == nil || !strings.Contains(err.Error(), "went back from 3 to 2") {
			t.Fatalf("it passes an entry that it has not seen: %v", err)
		}
		if at := a.Cursor("log"); at != 2 {
			t.Fatalf("the cursor is at %d", at)
		}
	}
	at, err := a.Resume("log")
	if err != nil || at != 2 {
		t.Fatalf("it begins at %d: %v", at, err)
	}
	if es, err := a.Read(at+1, 10); err != nil || len(es) != 2 || es[0].ID != again.ID {
		t.Fatalf("behind it: %v, %v", es, err)
	}
	if err := a.SetCursor("log", 4); err != nil {
		t.Errorf("a consumer that began again: %v", err)
	}
}

// TestADisposalHasOneEvent: PostgreSQL has disposed of a part and its answer is lost. The part is gone, and its event there once.
func TestADisposalHasOneEvent(t *testing.T) {
	t.Parallel()
	p := place(t)
	g, through := pgtest.NewGate(t, p.Name)
	j := must(t, pgjournal.Config{URL: through, Consumers: []string{"log"}})
	exec(t, p.Name, "DELETE FROM journal_cursors WHERE consumer <> 'log'")
	if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 5000)); err != nil {
		t.Fatal(err)
	}
	exec(t, p.Name, "UPDATE journal_groups SET filled = 67108864") // the part is full
	if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 5000)); err != nil {
		t.Fatal(err)
	}
	if err := j.SetCursor("log", 2); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(8 * 24 * time.Hour)
	files := j.Expired(later)
	if len(files) != 1 {
		t.Fatalf("too old: %+v", files)
	}
	g.LoseAnswer("DELETE FROM public.journal_parts")
	if err := j.Dispose(t.Context(), files[0], later); err == nil || g.Lost() != 1 {
		t.Fatalf("%d answers were lost: %v", g.Lost(), err)
	}
	for _, f := range j.Expired(later) { // as the next pass does
		if err := j.Dispose(t.Context(), f, later); err != nil {
			t.Fatal(err)
		}
	}
	var rows int
	if err := connect(t, p.Name).QueryRow(t.Context(), "SELECT count(*) FROM journal_groups").Scan(&rows); err != nil || rows != 2 {
		t.Errorf("%d groups, expected the second entry's and the event's: %v", rows, err)
	}
}
