package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/journal"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// adjoining is a journal in a table that takes no id twice.
type adjoining struct {
	sqldbtest.Journal
	node byte
}

func (j *adjoining) NextID() audit.EventID {
	id := j.Journal.NextID()
	id[0] = j.node
	return id
}

func (j *adjoining) Submit(journal.Entry, func(uint64, error)) error {
	return errors.New("events go by AppendSQL alone")
}

func (j *adjoining) AppendSQL(entries ...journal.Entry) (string, error) {
	var rows []string
	for _, e := range entries {
		rows = append(rows, fmt.Sprintf(`('\x%x', '\x%x')`, e.ID[:], e.Head))
	}
	return "INSERT INTO journaled (id, head) VALUES " + strings.Join(rows, ", "), nil
}

func withJournaled() []sqldb.Migration {
	return append(sqldb.OutboxMigrations(), sqldb.Migration{Domain: "journaled", Version: 1,
		SQL: "CREATE TABLE journaled (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, head BLOB NOT NULL)"})
}

// journaled gives the targets in the journal's order, and fails if the outbox still has any.
func journaled(t *testing.T, db *sqldb.DB) (out []string) {
	t.Helper()
	rows, err := db.Query(t.Context(), "SELECT head FROM journaled ORDER BY seq")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var head []byte
		if err := rows.Scan(&head); err != nil {
			t.Fatal(err)
		}
		ev, err := audit.DecodeEvent(head)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ev.Target)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func open(url string, node byte) (*sqldb.DB, *sqldb.Outbox, error) {
	db, err := sqldb.Open(url, withJournaled()...)
	if err != nil {
		return nil, nil, err
	}
	o, err := sqldb.NewOutbox(db, &adjoining{node: node}, nil)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, o, nil
}

// actor writes events "node-number" and flushes after each, until it is told to stop; what it was told is durable it says to done.
func actor(url string, node byte, n int, done func(target string)) error {
	db, o, err := open(url, node)
	for err != nil && sqldb.Environment(err) { // a busy machine comes to this when PostgreSQL is killed already
		time.Sleep(5 * time.Millisecond)
		db, o, err = open(url, node)
	}
	if err != nil {
		return err
	}
	for i := range n {
		target := fmt.Sprintf("%d-%04d", node, i)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		id := o.NextID() // of the act: one that is done again cannot be done twice, since the outbox and the journal take no id twice
		for {
			err := db.Write(ctx, func(tx *sql.Tx) error {
				return o.Add(tx, audit.Event{ID: id, Type: audit.GatewayImported, Target: target, Outcome: audit.Success})
			})
			if err == nil {
				break
			} else if !sqldb.Environment(err) {
				cancel()
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
		for err = o.Flush(ctx); err != nil && sqldb.Environment(err); err = o.Flush(ctx) {
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
		if err != nil {
			return err
		}
		done(target)
	}
	return db.Close()
}

// TestOutboxProcesses: four processes write and flush at once, one is killed with SIGKILL again and again, and so is PostgreSQL. Every
// event that was said to be durable is in the journal once, those of one process in its order.
func TestOutboxProcesses(t *testing.T) {
	if url := os.Getenv("OUTBOX_URL"); url != "" {
		var node byte
		if _, err := fmt.Sscan(os.Getenv("OUTBOX_NODE"), &node); err != nil {
			t.Fatal(err)
		}
		if err := actor(url, node, 1<<30, func(target string) { fmt.Println("done", target) }); err != nil {
			t.Fatal(err)
		}
		return
	}
	s := pgtest.Own(t, pgserver.Config{})
	pgtest.Create(t, s, "w", "template0")
	url := s.URL("w", pgserver.Superuser)
	if err := sqldb.Create(url, withJournaled()...); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	durable := make(map[string]bool)
	say := func(target string) { mu.Lock(); durable[target] = true; mu.Unlock() }
	var steady, killed sync.WaitGroup
	for node := range byte(3) {
		steady.Go(func() {
			if err := actor(url, node, 60, say); err != nil {
				t.Error(err)
			}
		})
	}
	stop := make(chan struct{})
	killed.Go(func() {
		for node := 3; ; node++ {
			select {
			case <-stop:
				return
			default:
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestOutboxProcesses$")
			cmd.Env = append(os.Environ(), "OUTBOX_URL="+url, fmt.Sprint("OUTBOX_NODE=", node))
			out, err := cmd.StdoutPipe()
			if err != nil || cmd.Start() != nil {
				t.Error(err)
				return
			}
			timer := time.AfterFunc(time.Duration(200+37*node)*time.Millisecond, func() { _ = cmd.Process.Kill() })
			var line, target string
			for {
				if _, err := fmt.Fscan(out, &line, &target); err != nil {
					break
				}
				if line == "done" {
					say(target)
				}
			}
			timer.Stop()
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	for range 2 {
		time.Sleep(400 * time.Millisecond)
		if err := errors.Join(s.Kill(), s.Start()); err != nil {
			t.Fatal(err)
		}
	}
	steady.Wait()
	close(stop)
	killed.Wait()
	db := sqldbtest.Open(t, url, withJournaled()...)
	o, err := sqldb.NewOutbox(db, &adjoining{node: 255}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Flush(t.Context()); err != nil { // what killed processes left
		t.Fatal(err)
	}
	last, seen := make(map[string]string), make(map[string]int)
	for _, target := range journaled(t, db) {
		node, _, _ := strings.Cut(target, "-")
		if target < last[node] {
			t.Errorf("%s behind %s", target, last[node])
		}
		last[node] = target
		seen[target]++
	}
	for target := range durable {
		if seen[target] != 1 {
			t.Errorf("%s was said to be durable and is %d times in the journal", target, seen[target])
		}
	}
	if len(durable) < 180 || len(last) < 4 {
		t.Errorf("%d events of %d processes", len(durable), len(last))
	}
}

// TestAddOnce: an event whose transaction had an unknown outcome is added again and journaled once, whether it still waits, is moved already, or
// was never there.
func TestAddOnce(t *testing.T) {
	j := &sqldbtest.Journal{}
	db, o, _ := newOutbox(t, j)
	once := func(ev audit.Event, after uint64) {
		t.Helper()
		if _, err := o.AddOnce(t.Context(), ev, after); err != nil {
			t.Fatal(err)
		}
	}
	add(t, db, o, "before")
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	ev := audit.Event{ID: o.NextID(), Type: audit.CARotated, Target: "a", Outcome: audit.Success}
	for range 2 {
		once(ev, 1) // never there, then waiting
	}
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	once(ev, 1) // moved
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := targets(t, j); !slices.Equal(got, []string{"before", "a"}) {
		t.Error(got)
	}
}

// TestAddOnceReadsOutsideTheLock: a journal that grew for hours is read before the write lock is taken, and not again after an error.
func TestAddOnceReadsOutsideTheLock(t *testing.T) {
	j := &sqldbtest.Journal{}
	db, o, _ := newOutbox(t, j)
	for i := range 3 * 4096 {
		if err := j.Append(t.Context(), journal.Entry{ID: o.NextID(), Kind: journal.KindEvent, Head: []byte{byte(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	ev := audit.Event{ID: o.NextID(), Type: audit.CARotated, Target: "a", Outcome: audit.Success}
	locked, free, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- db.Write(context.Background(), func(*sql.Tx) error {
			close(locked)
			<-free
			return nil
		})
	}()
	<-locked
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	var sought uint64
	go func() {
		var err error
		sought, err = o.AddOnce(ctx, ev, 0)
		result <- err
	}()
	for j.Reads() < 4 { // the fourth finds nothing more: with the lock held by somebody else
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-result; err == nil || sought != 3*4096 {
		t.Errorf("sought up to %d: %v", sought, err)
	}
	close(free)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	before := j.Reads()
	if _, err := o.AddOnce(t.Context(), ev, sought); err != nil || j.Reads() != before+2 {
		t.Errorf("%d reads: %v", j.Reads()-before, err)
	}
}
