package pgjournal_test

import (
	"context"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wardlink/internal/mounttest"
	"wardlink/internal/pgserver"
	"wardlink/server/journal"
	"wardlink/server/journal/journaltest"
	"wardlink/server/journal/pgjournal"
)

// rounds is how often a fault comes: few in a unit test, WARDLINK_JOURNAL_ROUNDS times as many in scripts/faults.
func rounds(n int) int {
	if times, err := strconv.Atoi(os.Getenv("WARDLINK_JOURNAL_ROUNDS")); err == nil && times > 0 {
		return n * times
	}
	return n
}

// TestPostgresKilledUnderLoad: SIGKILL of postmaster and backends, and a start again.
func TestPostgresKilledUnderLoad(t *testing.T) {
	t.Parallel()
	s, p := own(t, pgserver.Config{})
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	node := must(t, pgjournal.Config{URL: p.Name})
	l := startLoad(t, 16, j, node)
	for range rounds(3) {
		l.more(t, 300)
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		begin, _ := l.count()
		ill(t, j)
		if got, _ := l.count(); got > begin+16 { // what PostgreSQL had answered already
			t.Fatalf("%d entries were acknowledged without PostgreSQL", got-begin)
		}
		if _, err := j.Read(1, 1); err == nil {
			t.Log("read from memory")
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	l.more(t, 300)
	well(t, j)
	l.end(t, p)
}

// TestPostgresGoneForAWhile: the outage lasts longer than every pause between tries, which are at most 2 s apart, so a longer one meets
// nothing that 6 s do not (20 s in `make check`). Submitters get their errors at once, nothing piles up, and everything goes on by itself.
func TestPostgresGoneForAWhile(t *testing.T) {
	t.Parallel()
	outage := 6 * time.Second
	if os.Getenv("WARDLINK_JOURNAL_ROUNDS") != "" {
		outage = 20 * time.Second
	}
	s, p := own(t, pgserver.Config{})
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	l := startLoad(t, 8, j)
	l.more(t, 100)
	if err := s.Halt(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(outage); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if st := j.Stats(); st.Queued > 8*12_000 {
			t.Fatalf("%d bytes wait", st.Queued)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := j.Alive(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	if j.Health() == nil {
		t.Error("healthy without PostgreSQL")
	}
	if _, err := j.Read(1_000_000, 1); err == nil {
		t.Error("a read without PostgreSQL says that there is nothing")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	l.more(t, 100)
	t.Logf("%v from PostgreSQL's start to acknowledgements", time.Since(began).Round(time.Millisecond))
	l.end(t, p)
}

// TestAnIdleJournalMendsItself: without any traffic the outage shows, and its end.
func TestAnIdleJournalMendsItself(t *testing.T) {
	t.Parallel()
	s, p := own(t, pgserver.Config{})
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	node := must(t, pgjournal.Config{URL: p.Name})
	if err := s.Halt(); err != nil {
		t.Fatal(err)
	}
	ill(t, j)
	ill(t, node)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	well(t, j)
	well(t, node)
	p.Check(t)
}

// ill waits until the journal says that it cannot be written.
func ill(t testing.TB, j journal.Store)  { health(t, j, false) }
func well(t testing.TB, j journal.Store) { health(t, j, true) }

func health(t testing.TB, j journal.Store, want bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); (j.Health() == nil) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute the journal's health is %v", j.Health())
		}
	}
}

// fullForAWhile fills the disk until the journal is ill and some groups were refused, and makes room again.
func fullForAWhile(t *testing.T, disk *mounttest.Disk, j journal.Store, l *load) {
	t.Helper()
	disk.Fill()
	ill(t, j)
	_, before := l.count()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, errs := l.count(); errs > before+20 {
			break
		} else if time.Now().After(end) {
			t.Fatal("no more errors with a full disk")
		}
	}
	t.Logf("the journal says: %v", j.Health())
	disk.Free()
}

// TestFullDisk: the disk of the database is full. Groups are refused, for certain, and none is acknowledged that is not there; with room the
// journal goes on by itself, idle or not.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if !mounttest.Inside(t) {
		return
	}
	base, err := os.MkdirTemp("", "j") // a socket's name is short, and PostgreSQL's user must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(base) })
	disk := mounttest.Mount(t, base, "220m")
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	_, p := own(t, pgserver.Config{Base: base, Settings: map[string]string{"max_wal_size": "64MB", "shared_buffers": "16MB"}})
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	l := startLoad(t, 8, j)
	l.more(t, 200)
	fullForAWhile(t, disk, j, l)
	l.more(t, 200)
	well(t, j)
	l.end(t, p)
}

// TestFullDiskOfTheWriteAheadLog: PostgreSQL's log has no room, and PostgreSQL ends itself. Whoever runs it makes room and starts it.
func TestFullDiskOfTheWriteAheadLog(t *testing.T) {
	t.Parallel()
	if !mounttest.Inside(t) {
		return
	}
	wal, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(wal) })
	disk := mounttest.Mount(t, wal, "96m")
	if err := os.Chmod(wal, 0o777); err != nil {
		t.Fatal(err)
	}
	s, p := own(t, pgserver.Config{Settings: map[string]string{"max_wal_size": "64MB"}})
	if err := s.Halt(); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(s.Dir(), "data", "pg_wal")
	if out, err := osexec.Command("sh", "-c", "cp -a "+inside+" "+wal+"/ && rm -rf "+inside+" && ln -s "+wal+"/pg_wal "+inside).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	l := startLoad(t, 8, j)
	l.more(t, 200)
	fullForAWhile(t, disk, j, l)
	if err := s.Halt(); err != nil { // it may have ended, or be at its recovery again and again
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	l.more(t, 200)
	well(t, j)
	l.end(t, p)
}

// TestConnectionsExhausted: PostgreSQL has no connection left when the journal needs a new one.
func TestConnectionsExhausted(t *testing.T) {
	t.Parallel()
	_, p := own(t, pgserver.Config{Settings: map[string]string{"max_connections": "12", "superuser_reserved_connections": "3"}})
	login := loginURL(t, p.Name, "node")
	j := must(t, pgjournal.Config{URL: login})
	l := startLoad(t, 4, j)
	l.more(t, 50)
	super := connect(t, p.Name)
	var others []func()
	for {
		conn, err := connectAs(t, login)
		if err != nil {
			break
		}
		others = append(others, conn)
	}
	if len(others) == 0 || len(others) > 12 {
		t.Fatalf("%d other connections", len(others))
	}
	// Its connection is ended, and another takes the place.
	for taken := false; !taken; {
		if _, err := super.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wardlink' AND usename = 'node'"); err != nil {
			t.Fatal(err)
		}
		if conn, err := connectAs(t, login); err == nil {
			others, taken = append(others, conn), true
		}
	}
	ill(t, j)
	for !strings.Contains(errorText(j.Health()), "connections") {
		time.Sleep(5 * time.Millisecond)
	}
	for _, end := range others {
		end()
	}
	l.more(t, 50)
	l.end(t, p)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestSlowPostgres: each commit takes 300 ms. Nothing is lost, groups grow instead, and what waits is bounded.
func TestSlowPostgres(t *testing.T) {
	t.Parallel()
	p := place(t)
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	exec(t, p.Name, `CREATE FUNCTION slow() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$;
		CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON journal_groups DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()`)
	l := startLoad(t, 64, j)
	l.more(t, 64*6)
	if j.Health() != nil {
		t.Errorf("slow is not ill: %v", j.Health())
	}
	l.end(t, p)
	var groups int
	if err := connect(t, p.Name).QueryRow(t.Context(), "SELECT count(*) FROM journal_groups").Scan(&groups); err != nil {
		t.Fatal(err)
	}
	if groups > 30 {
		t.Errorf("%d groups for some %d entries: they do not share commits", groups, 64*7)
	}
}

// TestPostgresHangs: everything of PostgreSQL stands still, its connections are open. Waiting submitters wait, a read ends with an error in
// its time, and everything goes on when PostgreSQL does.
func TestPostgresHangs(t *testing.T) {
	t.Parallel()
	s, p := own(t, pgserver.Config{})
	j := must(t, pgjournal.Config{URL: p.Name, Consumers: journaltest.Consumers()})
	l := startLoad(t, 8, j)
	l.more(t, 100)
	if err := s.Pause(true); err != nil {
		t.Fatal(err)
	}
	begin, _ := l.count()
	time.Sleep(time.Second)
	if got, _ := l.count(); got > begin+8 {
		t.Errorf("%d entries were acknowledged while PostgreSQL stood still", got-begin)
	}
	if err := s.Pause(false); err != nil {
		t.Fatal(err)
	}
	l.more(t, 100)
	l.end(t, p)
}

// connectAs makes a connection and gives what ends it.
func connectAs(t testing.TB, url string) (end func(), err error) {
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		return nil, err
	}
	return func() { _ = conn.Close(context.Background()) }, nil
}
