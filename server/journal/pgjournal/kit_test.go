package pgjournal_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/journal"
	"wardlink/server/journal/journaltest"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
)

// exec runs a statement as superuser, on a connection of its own.
func exec(t testing.TB, url, statement string, args ...any) {
	t.Helper()
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// own is a journal on a PostgreSQL of the test's own, which may be killed.
func own(t testing.TB, c pgserver.Config) (*pgserver.Server, journaltest.Place) {
	t.Helper()
	s := pgtest.Own(t, c)
	if err := s.Exec(t.Context(), "postgres", "CREATE DATABASE wardlink TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
		t.Fatal(err)
	}
	url := s.URL("wardlink", pgserver.Superuser)
	if err := sqldb.Create(url, migrations()...); err != nil {
		t.Fatal(err)
	}
	return s, placeAt(url)
}

// must opens a journal that is closed when the test ends.
func must(t testing.TB, c pgjournal.Config) *pgjournal.Journal {
	t.Helper()
	c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	j, err := pgjournal.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// load is what a fleet does: writers that go on after an error, each with another entry, until stop. Everything that was acknowledged is in
// its account.
type load struct {
	mu      sync.Mutex
	account journaltest.Account
	errors  int
	longest time.Duration // without any acknowledgement
	last    time.Time
	stop    chan struct{}
	wg      sync.WaitGroup
}

func startLoad(t testing.TB, writers int, journals ...journal.Store) *load {
	l := &load{stop: make(chan struct{}), last: time.Now()}
	for w := range writers {
		j := journals[w%len(journals)]
		l.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				e := journaltest.EntryOf(j, "load", (i*1013+w*77)%12_000)
				result := make(chan error, 1)
				err := j.Submit(e, func(seq uint64, err error) {
					l.done(t, e, seq, err)
					result <- err
				})
				if err == nil {
					err = <-result
				}
				if err != nil {
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	return l
}

func (l *load) done(t testing.TB, e journal.Entry, seq uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errors++
		return
	}
	l.longest, l.last = max(l.longest, time.Since(l.last)), time.Now()
	l.account.Line(t, fmt.Sprintf("%d %s", seq, e.ID))
}

func (l *load) count() (acknowledged, errors int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.account.Acknowledged), l.errors
}

// more waits until so many more entries are acknowledged: the journal goes on by itself.
func (l *load) more(t testing.TB, n int) {
	t.Helper()
	begin, _ := l.count()
	deadline := time.Now().Add(time.Minute)
	for {
		got, errs := l.count()
		if got >= begin+n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d entries more in a minute, expected %d; %d errors", got-begin, n, errs)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// end stops the writers and verifies their account in a journal of its own. PostgreSQL may be at its recovery still: acknowledgements that a test
// waited for may have come before it noticed what had been done to it.
func (l *load) end(t testing.TB, p journaltest.Place) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if j, err := p.Open(); err == nil {
			_ = j.Close()
			break
		}
	}
	j := p.MustOpen(t)
	total := l.account.Verify(t, j)
	t.Logf("%d acknowledged, %d there, %d errors, at most %v without an acknowledgement", len(l.account.Acknowledged), total, l.errors, l.longest.Round(time.Millisecond))
}

// follow reads on by "number > cursor" while others write, as log and records do, and fails the test at once where a number is passed over.
// What it gives ends it and returns all ids by number, for comparison with what is there at last.
func follow(t testing.TB, j journal.Store) func() []string {
	stop, ended := make(chan struct{}), make(chan struct{})
	var seen []string
	go func() {
		defer close(ended)
		for {
			got, err := j.Read(uint64(len(seen))+1, 100)
			if err != nil {
				time.Sleep(5 * time.Millisecond)
			}
			for _, e := range got {
				if e.Seq != uint64(len(seen))+1 {
					t.Errorf("a reader that had passed %d met %d", len(seen), e.Seq)
					return
				}
				seen = append(seen, e.ID.String())
			}
			if len(got) == 0 {
				select {
				case <-stop:
					return
				default:
				}
			}
		}
	}()
	return func() []string {
		close(stop)
		<-ended
		return seen
	}
}

// agree compares what a follower saw with what is there.
func agree(t testing.TB, seen []string, all []journal.Entry) {
	t.Helper()
	if len(seen) > len(all) {
		t.Fatalf("a reader saw %d entries of %d", len(seen), len(all))
	}
	for i, id := range seen {
		if all[i].ID.String() != id {
			t.Fatalf("entry %d was read as %s and is %s", i+1, id, all[i].ID)
		}
	}
}
