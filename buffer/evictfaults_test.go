package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wardlink/internal/syscalltest"
)

// childEvict appends to a buffer that is full, until two evictions are behind it; what became durable it says on a line.
func childEvict(dir string) {
	c := fullConfig(dir)
	r := &reports{epoch: 2, size: 500}
	c.Report = r.report
	b, err := open(c)
	if err != nil {
		fmt.Println("does not open:", err)
		os.Exit(0) // a fault at the start; what it leaves is looked at
	}
	r.b = b
	before := b.Stats().Lanes[1].Evicted
	fmt.Println("armed")
	for n := range uint64(60) {
		it := itemOf(2, 1, n, 9000)
		if err := b.Append([]Item{it}); err == nil {
			fmt.Println("+", n)
		}
		if b.Stats().Lanes[1].Evicted > before {
			return // without Close
		}
	}
}

func fullConfig(dir string) Config {
	c := testConfig(dir)
	c.Evict, c.Cap = []string{"vitals", "alarm"}, 6*minSegment+overhead
	return c
}

// TestFaultsOfAnEviction kills a real process at each call by which it changes a file from a full buffer to the end of an eviction, and has
// each of them fail with EIO and ENOSPC: Check finds nothing, and every batch that was said to be durable is given out, or is named as lost.
func TestFaultsOfAnEviction(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "base")
	c := fullConfig(base)
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b, err := open(c)
	if err != nil {
		t.Fatal(err)
	}
	durable := uint64(0)
	for ; b.Stats().Lanes[1].Evicted == 0; durable++ {
		mustAppend(t, b, itemOf(1, 1, durable, 9000))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	all := evictUnder(t, base, durable, -1, syscalltest.Pass)
	if len(all) < 20 {
		t.Fatalf("only %d calls: %v", len(all), all)
	}
	faults := []syscalltest.Verdict{syscalltest.Kill, syscalltest.Verdict(syscall.EIO), syscalltest.Verdict(syscall.ENOSPC)}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	cases := 0
	first := slices.IndexFunc(all, func(call string) bool { return strings.HasPrefix(call, "ftruncate") }) // the full segment is finished
	for at := range all {
		for i, f := range faults {
			// In short: killed at each call from there on, and every fourth fails either way.
			if !wholeFaults && (at < first || i > 0 && at%4 != i) {
				continue
			}
			cases++
			slots <- struct{}{}
			wg.Go(func() { evictUnder(t, base, durable, at, f); <-slots })
		}
	}
	wg.Wait()
	if !t.Failed() {
		told(t, fmt.Sprintf("a call, of %d", len(all)), cases, nil)
	}
}

// evictUnder runs childEvict on a copy of base, gives the n-th call a verdict, and looks at what is left. It gives the calls.
func evictUnder(t *testing.T, base string, durable uint64, at int, v syscalltest.Verdict) (calls []string) {
	dir := copyDir(t, base)
	log := filepath.Join(filepath.Dir(dir), "log")
	var mu sync.Mutex
	var seen []string
	p := syscalltest.Start(t, syscalltest.Watch{Decide: func(c *syscalltest.Call) syscalltest.Verdict {
		if !strings.HasPrefix(c.Path, dir) {
			return syscalltest.Pass
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, c.Name+" "+filepath.Base(c.Path))
		if len(seen)-1 == at {
			return v
		}
		return syscalltest.Pass
	}}, log, "/usr/bin/env", "BUFFER_CHILD=evict", "BUFFER_DIR="+dir, os.Args[0])
	for end := time.Now().Add(time.Minute); !p.Ended(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Error("the child hangs")
			return calls
		}
	}
	p.Kill()
	mu.Lock()
	calls = slices.Clone(seen)
	mu.Unlock()
	said, err := os.ReadFile(log)
	if err != nil {
		t.Error(err)
		return calls
	}
	if at < 0 && !bytes.Contains(said, []byte("+ ")) {
		t.Errorf("the child did nothing: %s", said)
	}
	name := fmt.Sprintf("%d as the %d. call", v, at)
	if at >= 0 && at < len(calls) {
		name = fmt.Sprintf("%d at %s (%d)", v, calls[at], at)
	}
	accounted(t, name, dir, durable, string(said))
	return calls
}

// accounted judges what a case left in dir: Check finds nothing, each of the durable batches, and each that the child said is durable, is given
// out or named as lost, and none is both; and the buffer goes on.
func accounted(t *testing.T, name, dir string, durable uint64, said string) {
	report, err := check(dir)
	if err != nil || len(report.Findings) > 0 {
		t.Errorf("%s: %v %+v", name, err, report.Findings)
	}
	b, err := open(fullConfig(dir))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer b.Close()
	known := map[ID]bool{}
	lost := 0
	for _, a := range b.Accounts() {
		for _, r := range a.Lost {
			for n := r.First; n <= r.Last; n++ {
				known[ID{a.Epoch, a.Lane, n}] = true
				lost++
			}
		}
	}
	for {
		got, err := b.Take(100)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(got) == 0 {
			break
		}
		for _, g := range got {
			if known[g.ID] {
				t.Errorf("%s: %s is given out and called lost", name, g.ID)
			}
			known[g.ID] = true
		}
	}
	missing := 0
	for n := range durable {
		if !known[ID{epochOf(1), 1, n}] {
			missing++
		}
	}
	for line := range strings.Lines(said) {
		var n uint64
		if _, err := fmt.Sscanf(line, "+ %d", &n); err != nil {
			continue
		}
		if durable++; !known[ID{epochOf(2), 1, n}] {
			missing++
		}
	}
	if missing > 0 || lost == 0 || len(b.Stats().Damaged) > 0 {
		t.Errorf("%s: %d of %d durable batches are neither given out nor named as lost; %d are lost; set aside %v\n%s",
			name, missing, durable, lost, b.Stats().Damaged, said)
	}
	if err := b.Append([]Item{itemOf(3, 1, 0, 9000)}); err != nil && !errors.Is(err, ErrFull) {
		t.Errorf("%s: afterwards: %v", name, err)
	}
}
