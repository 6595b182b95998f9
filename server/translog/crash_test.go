package translog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/server/journal"
)

var errStep = errors.New("injected")

// steps of a pass, in their order. A failure at one is also the crash after the one before.
var steps = []string{"write .detail", "write .rows", "add", "mark", "cursor"}

// TestDeathAtEachStep leaves the writer at each step as a kill would, lets the journal grow, so that the next pass would cut its
// windows elsewhere, and starts again.
func TestDeathAtEachStep(t *testing.T) {
	for _, name := range steps {
		for _, more := range []int{0, 33} {
			t.Run(fmt.Sprintf("%s/%d more", name, more), func(t *testing.T) {
				t.Parallel()
				dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
				cfg := testConfig(t, dir, j)
				create(t, cfg)
				j.append(t, 40)
				if l := open(t, cfg); turn(t, l) != nil {
					t.Fatal("first pass failed")
				} else {
					l.Close()
				}
				last := j.append(t, 60)
				l := open(t, cfg)
				failAt(l, name)
				if err := turn(t, l); !errors.Is(err, errStep) {
					t.Fatalf("pass: %v; expected the injected failure", err)
				}
				l.Close()
				if more > 0 {
					last = j.append(t, more)
				}
				l, stop := start(t, cfg)
				waitFor(t, l, last)
				stop()
				if r := verify(t, dir, last); r.Pending != 0 || r.Strays != 0 {
					t.Errorf("files of the killed pass are left over: %+v", r)
				}
			})
		}
	}
}

// TestFailureAtEachStep is the same without a death: Run goes on by itself.
func TestFailureAtEachStep(t *testing.T) {
	for _, name := range append(steps, "set cursor") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
			cfg := testConfig(t, dir, j)
			create(t, cfg)
			j.append(t, 40)
			l := open(t, cfg)
			if name == "set cursor" {
				j.failSet = errStep
			} else {
				failAt(l, name)
			}
			last := runUntil(t, l, func() uint64 { return j.append(t, 20) })
			verify(t, dir, last)
		})
	}
}

// TestAddFails lets Tessera say no: before or after the leaves were applied, to all or to some.
func TestAddFails(t *testing.T) {
	always := func(int) bool { return true }
	for name, c := range map[string]struct{ fails, applied func(leaf int) bool }{
		"nothing applied":         {always, func(int) bool { return false }},
		"all applied":             {always, always},
		"the first applied":       {always, func(leaf int) bool { return leaf < 3 }},
		"the last applied":        {func(leaf int) bool { return leaf < 3 }, func(leaf int) bool { return leaf >= 3 }},
		"every other applied":     {always, func(leaf int) bool { return leaf%2 == 0 }},
		"all applied, one failed": {func(leaf int) bool { return leaf == 2 }, always},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
			cfg := testConfig(t, dir, j)
			create(t, cfg)
			j.append(t, 40)
			l := open(t, cfg)
			add, leaf := l.add, 0
			l.add = func(ctx context.Context, e *tessera.Entry) tessera.IndexFuture {
				n := leaf
				leaf++
				if n >= 10 {
					return add(ctx, e)
				}
				var future tessera.IndexFuture
				if c.applied(n) {
					future = add(ctx, e)
				}
				return func() (index tessera.Index, err error) {
					if future != nil {
						index, err = future()
					}
					if c.fails(n) {
						return tessera.Index{}, errStep
					}
					return index, err
				}
			}
			last := runUntil(t, l, func() uint64 { return j.append(t, 20) })
			verify(t, dir, last)
		})
	}
}

// TestLaterWindowWithoutFormer lets the second window of a pass reach the log and the first not: the repeat must make the first
// again, ending where the second begins.
func TestLaterWindowWithoutFormer(t *testing.T) {
	t.Parallel()
	dir, j := filepath.Join(t.TempDir(), "log"), newFakeJournal()
	cfg := testConfig(t, dir, j)
	create(t, cfg)
	j.append(t, 12_000)
	l := open(t, cfg)
	add, failed := l.add, false
	l.add = func(ctx context.Context, e *tessera.Entry) tessera.IndexFuture {
		leaf, err := audit.DecodeLeaf(e.Data())
		if err == nil && leaf.Window != nil && !failed {
			failed = true
			return func() (tessera.Index, error) { return tessera.Index{}, errStep }
		}
		return add(ctx, e)
	}
	last := runUntil(t, l, func() uint64 { return j.append(t, 20) })
	if r := verify(t, dir, last); !failed || r.Windows < 2 {
		t.Errorf("no window failed, or too few: %+v", r)
	}
}

func turn(t *testing.T, l *Log) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	_, err := l.turn(ctx)
	return err
}

// failAt makes the first step of that name fail.
func failAt(l *Log, name string) {
	failed := false
	l.step = func(step string) error {
		if step == name && !failed {
			failed = true
			return errStep
		}
		return nil
	}
}

// runUntil runs l until it has signed for the entries that grow adds, and ends it.
func runUntil(t *testing.T, l *Log, grow func() uint64) (last uint64) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	last = grow()
	waitFor(t, l, last)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	return last
}

// fileJournal is a journal that a killed process finds again: its entries follow from their positions, its length and cursor are
// in files. Bytes written before a SIGKILL are in the kernel, so nothing needs to be flushed.
type fileJournal struct {
	t      testing.TB
	dir    string
	length atomic.Uint64
}

func openFileJournal(t testing.TB, dir string) *fileJournal {
	j := &fileJournal{t: t, dir: dir}
	j.length.Store(j.load("length"))
	return j
}

func (j *fileJournal) load(name string) uint64 {
	data, err := os.ReadFile(filepath.Join(j.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil || len(data) != 8 {
		panic(fmt.Sprintf("%s: %d bytes, %v", name, len(data), err))
	}
	return binary.BigEndian.Uint64(data)
}

func (j *fileJournal) store(name string, n uint64) error {
	f, err := os.OpenFile(filepath.Join(j.dir, name), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(binary.BigEndian.AppendUint64(nil, n), 0)
	return err
}

// grow makes the journal longer until ctx ends.
func (j *fileJournal) grow(ctx context.Context) {
	for sleep(ctx, time.Millisecond) {
		n := j.length.Load() + 1 + rand.Uint64N(8)
		if err := j.store("length", n); err != nil {
			panic(err)
		}
		j.length.Store(n)
	}
}

func (j *fileJournal) ReadHeads(from uint64, max int) ([]journal.Entry, error) {
	var out []journal.Entry
	for seq := from; seq <= j.length.Load() && len(out) < max; seq++ {
		out = append(out, makeEntry(j.t, seq))
	}
	return out, nil
}

func (j *fileJournal) Wait(ctx context.Context, after uint64) error {
	for j.length.Load() <= after {
		if !sleep(ctx, time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

func (j *fileJournal) Cursor(string) uint64                 { return j.load("cursor") }
func (j *fileJournal) Resume(name string) (uint64, error)   { return j.Cursor(name), nil }
func (j *fileJournal) SetCursor(_ string, seq uint64) error { return j.store("cursor", seq) }

const childEnv, childKey = "WARDLINK_TRANSLOG_CHILD", "WARDLINK_TRANSLOG_KEY"

// TestChild is the process that TestKill kills; called by itself it does nothing.
func TestChild(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return
	}
	signer, err := note.NewSigner(os.Getenv(childKey))
	if err != nil {
		t.Fatal(err)
	}
	j := openFileJournal(t, dir)
	l, err := Open(Config{Dir: filepath.Join(dir, "log"), Origin: testOrigin, Signer: signer, Journal: j, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	go j.grow(context.Background())
	fmt.Println("running")
	t.Fatal(l.Run(context.Background()))
}

func treeSize(t *testing.T, dir string) int64 {
	t.Helper()
	tree, err := audit.Integrated(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree.N
}

// TestKill kills the writing process at ten arbitrary instants.
func TestKill(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := filepath.Join(base, "log")
	skey, _ := testKey()
	create(t, testConfig(t, dir, nil))
	for round := range 10 {
		child := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
		child.Env = append(os.Environ(), childEnv+"="+base, childKey+"="+skey)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		child.Stderr = os.Stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		seen := ""
		for buf := make([]byte, 4096); len(seen) < 4096; {
			n, err := out.Read(buf)
			seen += string(buf[:n])
			if err != nil {
				t.Fatalf("round %d: the child ended by itself: %s", round, seen)
			}
			if strings.Contains(seen, "running\n") {
				break
			}
		}
		// Two rounds of three wait until the child has logged something, so that a slow machine gets as far too.
		deadline, before := time.Now().Add(30*time.Second), treeSize(t, dir)
		for round%3 != 0 && treeSize(t, dir) == before && time.Now().Before(deadline) {
			sleep(context.Background(), 5*time.Millisecond)
		}
		sleep(context.Background(), time.Duration(rand.IntN(250))*time.Millisecond)
		if err := child.Process.Kill(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := child.Wait(); child.ProcessState.ExitCode() != -1 {
			t.Fatalf("round %d: the child was not killed, it ended: %v", round, err)
		}
	}
	j := openFileJournal(t, base)
	last := j.length.Load()
	l, stop := start(t, testConfig(t, dir, j))
	waitFor(t, l, last)
	stop()
	r := verify(t, dir, last)
	t.Logf("%d entries, %+v", last, r)
	if last < 100 || r.Windows < 6 {
		t.Errorf("too little happened between the kills: %d entries, %d windows", last, r.Windows)
	}
}
