package translog

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/server/journal"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// openJournal opens the journal at a place: a database's URL or a directory.
func openJournal(place string) (journal.Store, error) {
	if sqldb.IsPostgres(place) {
		return pgjournal.Open(context.Background(), pgjournal.Config{URL: place, Consumers: []string{consumer}})
	}
	return journal.Open(journal.Config{Dir: place, Node: 7, Consumers: []string{consumer}})
}

// onEachJournal runs a test on a fresh journal of each kind.
func onEachJournal(t *testing.T, test func(t *testing.T, place string)) {
	t.Run("segments", func(t *testing.T) {
		t.Parallel()
		c := journal.Config{Dir: filepath.Join(t.TempDir(), "journal")}
		if err := journal.Create(c); err != nil {
			t.Fatal(err)
		}
		test(t, c.Dir)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, sqldbtest.Filled(t, pgjournal.Migrations()...))
	})
}

// growReal appends n entries of makeEntry behind those that are there. One process at a time may.
func growReal(t testing.TB, j journal.Store, n int) (last uint64) {
	t.Helper()
	last = j.Stats().Committed
	var entries []journal.Entry
	for range n {
		last++
		entries = append(entries, makeEntry(t, last))
	}
	if err := j.Append(context.Background(), entries...); err != nil {
		t.Fatal(err)
	}
	return last
}

const diesEnv = "WARDLINK_TRANSLOG_DIES"

// TestDyingChild is the process of TestWriterDiesAtAStep; called by itself it does nothing.
func TestDyingChild(t *testing.T) {
	step, place := os.Getenv(diesEnv), os.Getenv(childEnv)
	if step == "" {
		return
	}
	signer, err := note.NewSigner(os.Getenv(childKey))
	if err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(place)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(Config{Dir: os.Getenv("WARDLINK_TRANSLOG_DIR"), Origin: testOrigin, Signer: signer, Journal: j, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	passes := 0
	l.step = func(name string) error {
		if name == step {
			if passes++; passes == 3 {
				return syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
		return nil
	}
	go func() {
		for {
			growReal(t, j, 7)
		}
	}()
	t.Fatal(l.Run(context.Background()))
}

// TestWriterDiesAtAStep: SIGKILL of the log's process after its leaves are in Tessera and before its mark is stored, and between the mark and
// the cursor, while the journal grows, on each kind of journal. No act is lost, none is there twice.
func TestWriterDiesAtAStep(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"mark", "cursor"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			onEachJournal(t, func(t *testing.T, place string) {
				dir := filepath.Join(t.TempDir(), "log")
				create(t, testConfig(t, dir, nil))
				skey, _ := testKey()
				for range 2 {
					child := exec.Command(os.Args[0], "-test.run=^TestDyingChild$")
					child.Env = append(os.Environ(), diesEnv+"="+step, childEnv+"="+place, "WARDLINK_TRANSLOG_DIR="+dir, childKey+"="+skey)
					out, err := child.CombinedOutput()
					if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
						t.Fatalf("the child was not killed: %v: %s", err, out)
					}
				}
				j, err := openJournal(place)
				if err != nil {
					t.Fatal(err)
				}
				last := growReal(t, j, 1)
				l, stop := start(t, testConfig(t, dir, j))
				waitFor(t, l, last)
				stop()
				if r := verify(t, dir, last); last < 40 || r.Windows < 4 {
					t.Errorf("too little happened: %d entries, %+v", last, r)
				}
				if got := j.Cursor(consumer); got != last {
					t.Errorf("the cursor is at %d of %d", got, last)
				}
				if err := j.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestTwoWritersAtOnce starts two writers of one log at once, on each kind of journal: one writes, the other is refused and changes nothing.
func TestTwoWritersAtOnce(t *testing.T) {
	t.Parallel()
	onEachJournal(t, func(t *testing.T, place string) {
		j, err := openJournal(place)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = j.Close() }()
		dir := filepath.Join(t.TempDir(), "log")
		create(t, testConfig(t, dir, nil))
		last := growReal(t, j, 100)
		logs := make(chan *Log, 2)
		for range 2 {
			go func() {
				l, err := Open(testConfig(t, dir, j))
				if err != nil && !errors.Is(err, ErrLocked) {
					t.Errorf("the second writer: %v", err)
				}
				logs <- l
			}()
		}
		a, b := <-logs, <-logs
		if (a == nil) == (b == nil) {
			t.Fatalf("two writers opened the log: %v, %v", a != nil, b != nil)
		}
		if a == nil {
			a = b
		}
		runUntil(t, a, func() uint64 { return last })
		verify(t, dir, last)
	})
}

// TestSupersededWriter: two processes of one cell run the log's service; the one that has the place loses its connection to PostgreSQL, and
// the standby goes on where it was.
func TestSupersededWriter(t *testing.T) {
	t.Parallel()
	url := sqldbtest.Filled(t, pgjournal.Migrations()...)
	dir := filepath.Join(t.TempDir(), "log")
	create(t, testConfig(t, dir, nil))
	var open, runs atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{}, 2)
	for range 2 {
		db := sqldbtest.Open(t, url, pgjournal.Migrations()...)
		j, err := openJournal(url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = j.Close() })
		go func() {
			for ctx.Err() == nil {
				err := db.Singleton(ctx, "log", func(ctx context.Context, _ sqldb.Place) error {
					l, err := Open(testConfig(t, dir, j))
					if err != nil {
						return err // the former one is not out yet
					}
					if open.Add(1) != 1 {
						t.Error("two writers at once")
					}
					defer open.Add(-1)
					runs.Add(1)
					return l.Run(ctx)
				})
				if err != nil && !errors.Is(err, sqldb.ErrSuperseded) && !errors.Is(err, ErrLocked) && ctx.Err() == nil {
					t.Errorf("singleton: %v", err)
				}
			}
			ended <- struct{}{}
		}()
	}
	j, err := openJournal(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	last := uint64(0)
	for round := range int32(3) {
		last = growReal(t, j, 200)
		for end := time.Now().Add(30 * time.Second); j.Cursor(consumer) < last || runs.Load() <= round; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("round %d: the log is at %d of %d, %d writers have run", round, j.Cursor(consumer), last, runs.Load())
			}
			if round < 2 && j.Cursor(consumer) > last-150 && runs.Load() > round {
				break // in the middle of this round's writer: the next must take the place from one that has begun
			}
		}
		db := sqldbtest.Open(t, url, pgjournal.Migrations()...)
		// The holder's connection is now and then asked whether it is there, and is not idle then.
		var gone int
		for end := time.Now().Add(30 * time.Second); gone == 0; time.Sleep(5 * time.Millisecond) {
			if err := db.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity a
				WHERE application_name = 'wardlink log' AND datname = current_database() AND state = 'idle in transaction'`).Scan(&gone); err != nil || gone > 1 || time.Now().After(end) {
				t.Fatalf("%d holders of the place: %v", gone, err)
			}
		}
	}
	last = growReal(t, j, 50)
	for j.Cursor(consumer) < last {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	<-ended
	<-ended
	verify(t, dir, last)
}
