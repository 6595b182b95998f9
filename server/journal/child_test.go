package journal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
)

// The test binary runs itself as a child that must die.
func TestMain(m *testing.M) {
	if dir := os.Getenv("JOURNAL_DIR"); dir != "" {
		childWrite(dir)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func childDie(err error) {
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(3)
}

// childWrite submits from eight goroutines until it is killed, and prints "sequence id" from each callback; a consumer moves its
// cursor behind them and prints "cursor sequence" after each SetCursor. One write(2) a line.
func childWrite(dir string) {
	j, err := Open(testConfig(dir))
	if err != nil {
		childDie(err)
	}
	for g := range 8 {
		go func() {
			window := make(chan struct{}, 4)
			for i := 0; ; i++ {
				window <- struct{}{}
				e := entryOf(j, "from the child", (i*g*1013)%30_000)
				err := j.Submit(e, func(seq uint64, err error) {
					if err != nil {
						childDie(err)
					}
					fmt.Printf("%d %s\n", seq, e.ID)
					<-window
				})
				if err != nil {
					childDie(err)
				}
			}
		}()
	}
	for {
		at := j.Cursor("log")
		if err := j.Wait(context.Background(), at); err != nil {
			childDie(err)
		}
		got, err := j.Read(at+1, 50)
		if err != nil {
			childDie(err)
		}
		at = got[len(got)-1].Seq
		if err := j.SetCursor("log", at); err != nil {
			childDie(err)
		}
		fmt.Printf("cursor %d\n", at)
	}
}

// TestKill kills a writer with SIGKILL at random moments. Every entry whose callback ran must be there under its number, no number
// or id may stand for two entries, and no cursor that was set may go back.
func TestKill(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	durable, cursor := map[uint64]string{}, uint64(0)
	const rounds = 20
	for round := range rounds {
		killed(t, c.Dir, 1+rng.IntN(200), time.Duration(rng.IntN(8000))*time.Microsecond, func(line string) {
			var seq uint64
			var id string
			if _, err := fmt.Sscanf(line, "cursor %d", &seq); err == nil {
				cursor = seq
				return
			}
			if _, err := fmt.Sscanf(line, "%d %s", &seq, &id); err != nil {
				t.Fatalf("line %q", line)
			}
			if durable[seq] != "" {
				t.Fatalf("number %d was given to %s and %s", seq, durable[seq], id)
			}
			durable[seq] = id
		})
		if r := mustCheck(t, c.Dir); !r.OK() {
			t.Fatalf("round %d: %+v", round, r)
		}
		j, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		ids := map[audit.EventID]bool{}
		for i, e := range readAll(t, j, 1) {
			if e.Seq != uint64(i+1) || ids[e.ID] {
				t.Fatalf("round %d: entry %d at position %d, id %s seen before: %v", round, e.Seq, i+1, e.ID, ids[e.ID])
			}
			ids[e.ID] = true
			if want := durable[e.Seq]; want != "" && want != e.ID.String() {
				t.Fatalf("round %d: entry %d is %s; %s was acknowledged under that number", round, e.Seq, e.ID, want)
			}
		}
		if len(ids) < len(durable) {
			t.Fatalf("round %d: %d entries were durable, %d are there", round, len(durable), len(ids))
		}
		if got := j.Cursor("log"); got < cursor {
			t.Fatalf("round %d: the cursor was set to %d and is at %d", round, cursor, got)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d entries durable", len(durable))
}

// killed runs a child, kills it the delay after it printed so many lines, and gives every whole line it printed to fn.
func killed(t *testing.T, dir string, lines int, delay time.Duration, fn func(line string)) {
	t.Helper()
	// A child that hangs is killed with the test's own time still left to say so.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "JOURNAL_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		if lines--; lines == 0 {
			defer time.AfterFunc(delay, func() { _ = cmd.Process.Kill() }).Stop()
		}
		fn(strings.TrimSuffix(line, "\n"))
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the child ended by itself: %v", err)
	}
}

// TestIDsAcrossFastRestarts opens the journal several times within a second, and once with a clock that went back.
func TestIDsAcrossFastRestarts(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := testConfig(filepath.Join(t.TempDir(), "journal"))
	c.Now = func() time.Time { return now }
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	seen := map[audit.EventID]bool{}
	for range 4 {
		j, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					id := j.NextID()
					mu.Lock()
					if seen[id] {
						t.Errorf("id %s was given twice", id)
					}
					seen[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		now = now.Add(-time.Hour)
	}
}
