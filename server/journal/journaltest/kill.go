package journaltest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/child"
	"wardlink/server/journal"
)

const childEnv = "WARDLINK_JOURNAL_CHILD"

// Child must be called at the beginning of TestMain: a test binary that was started as a child opens the journal of that name, and writes
// until it is killed.
func Child(open func(place string) (journal.Store, error)) {
	place := os.Getenv(childEnv)
	if place == "" {
		return
	}
	j, err := open(place)
	if err == nil {
		err = Write(j, func(line string) { fmt.Println(line) })
	}
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(3)
}

// Write submits from eight goroutines until something fails, and gives "sequence id" from each callback; a consumer moves its cursor behind
// them and gives "cursor sequence" after each SetCursor. Each line is one call, in the order of callbacks.
func Write(j journal.Store, line func(string)) error {
	failed := make(chan error, 64)
	for g := range 8 {
		go func() {
			window := make(chan struct{}, 4)
			for i := 0; ; i++ {
				window <- struct{}{}
				e := EntryOf(j, "from the child", (i*g*1013)%30_000)
				err := j.Submit(e, func(seq uint64, err error) {
					if err != nil {
						select {
						case failed <- err:
						default:
						}
						return
					}
					line(fmt.Sprintf("%d %s", seq, e.ID))
					<-window
				})
				if err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	go func() {
		for {
			at, err := j.Resume("log")
			if err != nil {
				failed <- err
				return
			}
			if err := j.Wait(context.Background(), at); err != nil {
				failed <- err
				return
			}
			got, err := j.Read(at+1, 50)
			if err != nil {
				failed <- err
				return
			}
			if len(got) == 0 {
				failed <- fmt.Errorf("nothing to read behind %d", at)
				return
			}
			at = got[len(got)-1].Seq
			if err := j.SetCursor("log", at); err != nil {
				failed <- err
				return
			}
			line(fmt.Sprintf("cursor %d", at))
		}
	}()
	return <-failed
}

// Account is what writers were told.
type Account struct {
	Acknowledged map[uint64]string // number: event id
	Cursor       uint64
}

// Line takes a line of Write.
func (a *Account) Line(t testing.TB, line string) {
	var seq uint64
	var id string
	if _, err := fmt.Sscanf(line, "cursor %d", &seq); err == nil {
		a.Cursor = seq
		return
	}
	if _, err := fmt.Sscanf(line, "%d %s", &seq, &id); err != nil {
		t.Errorf("line %q", line)
		return
	}
	if a.Acknowledged == nil {
		a.Acknowledged = map[uint64]string{}
	}
	if former := a.Acknowledged[seq]; former != "" {
		t.Errorf("number %d was given to %s and %s", seq, former, id)
	}
	a.Acknowledged[seq] = id
}

// Verify fails the test unless every acknowledged entry is there under its number, numbers are dense from the first on, no id is there twice,
// and the cursor did not go back. It gives how many entries there are.
func (a *Account) Verify(t testing.TB, j journal.Store) int {
	t.Helper()
	seen, next := map[audit.EventID]bool{}, uint64(0)
	found := 0
	for _, e := range ReadAll(t, j, 1) {
		if next != 0 && e.Seq != next || seen[e.ID] {
			t.Fatalf("entry %d comes behind %d, its id %s was seen before: %v", e.Seq, next-1, e.ID, seen[e.ID])
		}
		next = e.Seq + 1
		seen[e.ID] = true
		if want := a.Acknowledged[e.Seq]; want != "" {
			if found++; want != e.ID.String() {
				t.Fatalf("entry %d is %s; %s was acknowledged under that number", e.Seq, e.ID, want)
			}
		}
	}
	if found != len(a.Acknowledged) {
		t.Fatalf("%d entries were acknowledged, %d of them are there", len(a.Acknowledged), found)
	}
	if got := j.Cursor("log"); got < a.Cursor {
		t.Fatalf("the cursor was set to %d and is at %d", a.Cursor, got)
	}
	return len(seen)
}

// kill kills a writer with SIGKILL at random moments.
func kill(t *testing.T, p Place) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var a Account
	const rounds = 12
	for round := range rounds {
		killed(t, p.Name, 1+rng.IntN(200), time.Duration(rng.IntN(8000))*time.Microsecond, func(line string) { a.Line(t, line) })
		if r := p.Check(t); !r.OK() {
			t.Fatalf("round %d: %+v", round, r)
		}
		j, err := p.Open()
		if err != nil {
			t.Fatal(err)
		}
		a.Verify(t, j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d entries acknowledged", len(a.Acknowledged))
}

// killed runs a child that writes to the journal at place, and kills it.
func killed(t *testing.T, place string, lines int, delay time.Duration, fn func(line string)) {
	t.Helper()
	// A child that hangs is killed with the test's own time still left to say so.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+place)
	cmd.Stderr = os.Stderr
	if err := child.Killed(cmd, lines, delay, fn); err != nil {
		t.Fatal(err)
	}
}
