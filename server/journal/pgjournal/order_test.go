package pgjournal_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wardlink/internal/pgserver"
	"wardlink/server/journal"
	"wardlink/server/journal/journaltest"
	"wardlink/server/journal/pgjournal"
)

// held makes PostgreSQL hold each group of a login between its insert and its commit, as long as somebody holds the advisory lock 7.
func held(t testing.TB, url, login string) (let func()) {
	t.Helper()
	exec(t, url, `CREATE FUNCTION hold() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN
		PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$;
		CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON journal_groups DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
		WHEN (NEW.login = '`+login+`') EXECUTE FUNCTION hold()`)
	holder := connect(t, url)
	if _, err := holder.Exec(t.Context(), "SELECT pg_advisory_lock(7)"); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := holder.Exec(t.Context(), "SELECT pg_advisory_unlock(7)"); err != nil {
			t.Fatal(err)
		}
	}
}

// loginURL makes a login of the role that ingest nodes have, and gives the URL with it.
func loginURL(t testing.TB, url, login string) string {
	t.Helper()
	exec(t, url, "DO $$ BEGIN CREATE ROLE "+login+" LOGIN IN ROLE wardlink_ingest; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return "postgres://" + login + "@/" + c.Database + "?host=" + c.Host
}

// TestALateCommitIsNotSkipped: one process's group has its numbers and is not committed yet. Another process's group, which came later, must
// not be seen before it, and a reader that goes on by its cursor meets both.
func TestALateCommitIsNotSkipped(t *testing.T) {
	t.Parallel()
	p := place(t)
	reader := p.MustOpen(t)
	slow := must(t, pgjournal.Config{URL: loginURL(t, p.Name, "slow")})
	fast := must(t, pgjournal.Config{URL: loginURL(t, p.Name, "fast")})
	if err := fast.Append(t.Context(), journaltest.EntryOf(fast, "before", 10)); err != nil {
		t.Fatal(err)
	}
	let := held(t, p.Name, "slow")
	end := follow(t, reader)
	order := make(chan string, 2)
	submit := func(name string, j journal.Store) {
		t.Helper()
		if err := j.Submit(journaltest.EntryOf(j, name, 10), func(_ uint64, err error) {
			if err != nil {
				t.Error(err)
			}
			order <- name
		}); err != nil {
			t.Fatal(err)
		}
	}
	submit("slow", slow)
	time.Sleep(100 * time.Millisecond) // it is held now, as a rule; where it is not, the test shows less and still holds
	submit("fast", fast)
	select {
	case name := <-order:
		t.Fatalf("%s is acknowledged while a group with smaller numbers is not committed", name)
	case <-time.After(300 * time.Millisecond):
	}
	if got, err := reader.Read(1, 10); err != nil || len(got) != 1 {
		t.Fatalf("%d entries can be read, %v; expected the one from before", len(got), err)
	}
	let()
	<-order // the two answers are on their ways to two processes: which comes first says nothing
	<-order
	if err := reader.Wait(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	seen := end()
	all := journaltest.ReadAll(t, reader, 1)
	if len(all) != 3 || string(all[1].Head) != "slow" || string(all[2].Head) != "fast" {
		t.Fatalf("%d entries: %v", len(all), all)
	}
	agree(t, seen, all)
}

// TestANumberOfARolledBackGroupIsGivenAgain: the group that is held dies before its commit. The next takes its numbers, and nobody has seen them.
func TestANumberOfARolledBackGroupIsGivenAgain(t *testing.T) {
	t.Parallel()
	p := place(t)
	reader := p.MustOpen(t)
	slow := must(t, pgjournal.Config{URL: loginURL(t, p.Name, "slow")})
	fast := must(t, pgjournal.Config{URL: loginURL(t, p.Name, "fast")})
	held(t, p.Name, "slow")
	end := follow(t, reader)
	failed := make(chan error, 1)
	if err := slow.Submit(journaltest.EntryOf(slow, "slow", 10), func(_ uint64, err error) { failed <- err }); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, p.Name)
	for killed := false; !killed; {
		if err := conn.QueryRow(t.Context(), `SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity
			WHERE usename = 'slow' AND datname = current_database() AND wait_event = 'advisory'`).Scan(&killed); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-failed; err == nil {
		t.Fatal("a group that was rolled back was acknowledged")
	}
	if err := fast.Append(t.Context(), journaltest.EntryOf(fast, "fast", 10)); err != nil {
		t.Fatal(err)
	}
	all := journaltest.ReadAll(t, reader, 1)
	if len(all) != 1 || string(all[0].Head) != "fast" || all[0].Seq != 1 {
		t.Fatalf("%v", all)
	}
	agree(t, end(), all)
}

// TestAClientThatStandsStillHoldsNobodyUp: half of a group has been sent. Others go on.
func TestAClientThatStandsStillHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	p := place(t)
	j := p.MustOpen(t)
	stands := connect(t, loginURL(t, p.Name, "stands"))
	var oid uint32
	if err := stands.QueryRow(t.Context(), "SELECT 'public.journal_append(bytea, integer, integer)'::regprocedure::oid").Scan(&oid); err != nil {
		t.Fatal(err)
	}
	message := []byte{'F', 0, 0, 1, 0}
	message = binary.BigEndian.AppendUint32(message, oid)
	message = append(message, 0, 1, 0, 1, 0, 3, 0, 0, 0, 200)
	if _, err := stands.PgConn().Conn().Write(message); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := j.Append(t.Context(), journaltest.EntryOf(j, "x", 10)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManyWritersAndOneReader: writers of several processes' journals, backends that are ended at random, and PostgreSQL as a whole with
// them, because that is what it does when one is killed. The reader meets every number in its order, and what it read is what is there.
func TestManyWritersAndOneReader(t *testing.T) {
	t.Parallel()
	s, p := own(t, pgserver.Config{})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	var journals []journal.Store
	for _, login := range []string{"one", "two", "three"} {
		journals = append(journals, must(t, pgjournal.Config{URL: loginURL(t, p.Name, login) + "&port=5432"}))
	}
	reader := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	end := follow(t, reader)
	l := startLoad(t, 24, append(journals, reader)...)
	for round := range rounds(12) {
		l.more(t, 50+rng.IntN(200))
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		kill := round%4 == 3
		victim(t, s, rng, kill)
	}
	l.more(t, 200)
	if _, errs := l.count(); errs == 0 {
		t.Error("nobody was disturbed")
	}
	seen := func() []string { l.end(t, p); return end() }()
	agree(t, seen, journaltest.ReadAll(t, reader, 1))
	if len(seen) < 1000 {
		t.Errorf("the reader saw %d entries only", len(seen))
	}
}

// victim ends a backend that serves a journal: with SIGKILL, after which PostgreSQL ends all others and recovers, or as an operator does.
func victim(t testing.TB, s *pgserver.Server, rng *rand.Rand, kill bool) {
	t.Helper()
	var conn *pgx.Conn
	var pids []int32
	for end := time.Now().Add(time.Minute); len(pids) == 0; { // PostgreSQL may be at its recovery, or end us with the others
		if time.Now().After(end) {
			t.Fatal("no backend serves a journal for a minute")
		}
		var err error
		if conn, err = pgx.Connect(t.Context(), s.URL("postgres", pgserver.Superuser)); err != nil {
			continue
		}
		defer func() { _ = conn.Close(context.Background()) }()
		rows, _ := conn.Query(t.Context(), "SELECT pid FROM pg_stat_activity WHERE datname = 'wardlink' ORDER BY pid")
		pids, _ = pgx.CollectRows(rows, pgx.RowTo[int32])
	}
	pid := pids[rng.IntN(len(pids))]
	if kill {
		_ = syscall.Kill(int(pid), syscall.SIGKILL) // it may be gone by itself
		return
	}
	_, _ = conn.Exec(t.Context(), "SELECT pg_terminate_backend($1)", pid)
}
