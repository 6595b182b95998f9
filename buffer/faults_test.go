package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/buffer/segment"
)

// wholeFaults makes the tests of faults run every case ('make faults'), not a sample.
var wholeFaults = os.Getenv("WARDLINK_FAULTS") == "all"

// some chooses of n cases: all of them, or always' ones and as many at random.
func some(t *testing.T, n, sample int, always ...int) []int {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	all := rand.New(rand.NewPCG(seed, 0)).Perm(n)
	if wholeFaults {
		return all
	}
	t.Logf("seed %d, of %d cases", seed, n)
	return append(always, all[:min(sample, n)]...)
}

// TestPageFaults hurts each page of a finished segment and of one that a crash left, in each way, one process for a case, as TestDamage does
// in one for all: what ends a process is told from what follows from it, and no case leans on what a former one left in memory.
func TestPageFaults(t *testing.T) {
	t.Parallel()
	base := damageBase(t)
	cases, err := damageCases(base)
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 300 {
		t.Fatalf("only %d cases", len(cases))
	}
	chosen := some(t, len(cases), 20)
	failed := inPairs(chosen, func(i int) error {
		out, err := runChild(itself(t, "damage-one", base, strconv.Itoa(i)))
		if err != nil {
			return fmt.Errorf("case %d, %s of %s: %w\n%s", i, cases[i].name, filepath.Base(cases[i].victim), err, out)
		}
		return nil
	})
	told(t, "a page", len(chosen), failed)
}

// runChild runs one to its end and gives all that it says.
func runChild(cmd *exec.Cmd) ([]byte, error) {
	cmd.Stderr = nil
	return cmd.CombinedOutput()
}

// inPairs runs fn for each of the cases, two at a time.
func inPairs(cases []int, fn func(int) error) (failed []error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	queue := make(chan int)
	for range 2 {
		wg.Go(func() {
			for i := range queue {
				if err := fn(i); err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, i := range cases {
		queue <- i
	}
	close(queue)
	wg.Wait()
	return failed
}

// told reports a test's cases, in a line also for whoever asked for the faults.
func told(t *testing.T, what string, cases int, failed []error) {
	t.Helper()
	for _, err := range failed[:min(5, len(failed))] {
		t.Error(err)
	}
	line := fmt.Sprintf("%s: %s: %d cases, %d passed", t.Name(), what, cases, cases-len(failed))
	t.Log(line)
	if os.Getenv("WARDLINK_FAULTS") != "" {
		fmt.Fprintln(os.Stderr, line)
	}
}

// damageCase is one hurt of one file.
type damageCase struct {
	victim string
	raw    []byte
	hurt
}

// damageCases are the same for every process.
func damageCases(base string) (all []damageCase, err error) {
	rng := rand.New(rand.NewPCG(1, 2))
	files, err := filepath.Glob(filepath.Join(base, "vitals-*.seg"))
	if err != nil || len(files) != 4 {
		return nil, fmt.Errorf("segments %v, %w", files, err)
	}
	for _, victim := range []string{files[1], files[3]} { // a finished one, and one that a crash left
		raw, err := os.ReadFile(victim)
		if err != nil {
			return nil, err
		}
		used := len(raw)
		if info, err := segment.Inspect(victim); err == nil {
			used = int(info.Used)
		}
		for _, h := range hurts(rng, used) {
			all = append(all, damageCase{victim, raw, h})
		}
	}
	return all, nil
}

func childDamageOne(base, arg string) {
	cases, err := damageCases(base)
	i, aerr := strconv.Atoi(arg)
	if err := errors.Join(err, aerr); err != nil {
		childDie(err)
	}
	own, err := os.MkdirTemp("", "wl-damage")
	if err != nil {
		childDie(err)
	}
	dir := filepath.Join(own, "b")
	err = os.CopyFS(dir, os.DirFS(base))
	if err == nil {
		c := cases[i]
		err = oneDamage(dir, filepath.Join(dir, filepath.Base(c.victim)), c.do(bytes.Clone(c.raw)), c.raw, drained(dir))
	}
	if err := errors.Join(err, os.RemoveAll(own)); err != nil {
		childDie(err)
	}
}

// TestTornFaults: the last commit of a segment as a power cut leaves it, torn at every byte: within its pages, within its meta page, and with
// the file ending there. Everything that was durable before comes out, the torn batch comes out whole or not at all, the process lives.
func TestTornFaults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before, after, pages := tornCommit(t, filepath.Join(dir, "buffer"))
	put := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("before", before)
	put("after", after)
	total := len(pages) * segment.PageSize
	// A case is (byte, way); the cuts of the file come behind those of the commit. A sample has the first and the last byte of each page.
	var edges []int
	for i := range pages {
		for _, at := range []int{0, 1, 40, segment.PageSize - 1} {
			edges = append(edges, i*segment.PageSize+at, total+i*segment.PageSize+at)
		}
	}
	chosen := some(t, 2*total, 60, edges...)
	// A few processes for all of them: here no damage is expected that ends one.
	const at = 500
	var groups []int
	for i := 0; i < len(chosen); i += at {
		groups = append(groups, i)
	}
	failed := inPairs(groups, func(i int) error {
		var list strings.Builder
		for _, c := range chosen[i:min(i+at, len(chosen))] {
			fmt.Fprintf(&list, "%d ", c)
		}
		out, err := runChild(itself(t, "torn", dir, list.String()))
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out[max(0, len(out)-1000):])
		}
		return nil
	})
	told(t, fmt.Sprintf("a commit of %d pages, torn at each byte, and the file cut there", len(pages)), len(chosen), failed)
	if wholeFaults && len(chosen) != 2*total {
		t.Errorf("%d of %d bytes", len(chosen), 2*total)
	}
}

// tornCommit leaves a buffer in dir whose vitals segment took one more commit, and gives the file before and after it, and the pages that the
// commit wrote, in the order of bbolt's writing: the meta page last.
func tornCommit(t *testing.T, dir string) (before, after []byte, pages []int) {
	t.Helper()
	c := testConfig(dir)
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b, err := open(c)
	if err != nil {
		t.Fatal(err)
	}
	read := func() []byte {
		data, err := os.ReadFile(b.lanes[1].current.path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if err := b.Append([]Item{itemOf(1, 0, 0, 100)}); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(6) {
		if err := b.Append([]Item{itemOf(1, 1, n, 900)}); err != nil {
			t.Fatal(err)
		}
	}
	before = read()
	if err := b.Append([]Item{itemOf(1, 1, 6, 5000)}); err != nil {
		t.Fatal(err)
	}
	after = read()
	copyOf := copyDir(t, dir)
	if err := errors.Join(b.Close(), os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(copyOf))); err != nil {
		t.Fatal(err)
	}
	pages = written(before, after)
	if n := len(pages); n < 4 || pages[n-1] >= 2 || pages[n-2] < 2 {
		t.Fatalf("the commit wrote pages %v; expected one meta page, the last", pages)
	}
	return before, after, pages
}

// written are the pages in which a file differs before and after a commit, in the order of bbolt's writing: the meta page (0 or 1) last.
func written(before, after []byte) (pages []int) {
	var meta []int
	for i := range len(after) / segment.PageSize {
		switch at := i * segment.PageSize; {
		case bytes.Equal(before[at:at+segment.PageSize], after[at:at+segment.PageSize]):
		case i < 2:
			meta = append(meta, i)
		default:
			pages = append(pages, i)
		}
	}
	return append(pages, meta...)
}

func childTorn(dir, list string) {
	before, err := os.ReadFile(filepath.Join(dir, "before"))
	after, aerr := os.ReadFile(filepath.Join(dir, "after"))
	if err := errors.Join(err, aerr); err != nil {
		childDie(err)
	}
	pages := written(before, after)
	own, err := os.MkdirTemp("", "wl-torn")
	if err != nil {
		childDie(err)
	}
	defer os.RemoveAll(own)
	for i, field := range strings.Fields(list) {
		n, err := strconv.Atoi(field)
		if err != nil {
			childDie(err)
		}
		if err := oneTorn(filepath.Join(dir, "buffer"), filepath.Join(own, strconv.Itoa(i)), before, after, pages, n); err != nil {
			childDie(fmt.Errorf("case %d: %w", n, err))
		}
	}
}

// oneTorn builds one crash and judges it. n < len(pages) pages: the commit's first n bytes are on disk. Beyond: the commit is whole, and
// the file ends in it.
func oneTorn(base, dir string, before, after []byte, pages []int, n int) error {
	total := len(pages) * segment.PageSize
	page := func(k int) (from int) { return pages[k/segment.PageSize]*segment.PageSize + k%segment.PageSize }
	raw, cut := bytes.Clone(before), n >= total
	if cut {
		raw = bytes.Clone(after)[:page(n-total)]
	} else {
		for i, p := range pages {
			if have := min(n-i*segment.PageSize, segment.PageSize); have > 0 {
				copy(raw[p*segment.PageSize:], after[p*segment.PageSize:p*segment.PageSize+have])
			}
		}
	}
	if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	victim := filepath.Join(dir, fileName("vitals", 1))
	if err := os.WriteFile(victim, raw, 0o600); err != nil {
		return err
	}
	report, err := check(dir)
	if err != nil {
		return err
	}
	got, st, err := openAndDrain(dir, dir+"-open")
	defer os.RemoveAll(dir + "-open")
	if err != nil {
		return err
	}
	for id, frame := range got {
		if frame != string(itemOf(1, id.Lane, id.Number, len(frame)-32).Frame) {
			return fmt.Errorf("batch %s came out changed", id)
		}
	}
	if got[itemOf(1, 0, 0, 1).ID] == "" {
		return errors.New("the batch of the other lane did not come out")
	}
	missing := 7 + 1 - len(got)
	switch {
	case !cut && missing > 1:
		return fmt.Errorf("%d batches are missing; the torn one alone was not durable", missing)
	case !cut && len(report.Findings) > 0:
		return fmt.Errorf("a crash, and check finds %+v", report.Findings)
	case !cut && n >= total && missing > 0:
		return errors.New("the commit is whole and did not come out")
	case cut && missing > 0 && len(report.Findings) == 0 && len(report.Notes) < 2:
		return fmt.Errorf("%d batches are missing and check tells nothing", missing)
	case cut && missing > 0 && len(st.Damaged) == 0 && st.Lanes[1].Lost == 0:
		return fmt.Errorf("%d batches are missing and the buffer does not say so", missing)
	}
	return nil
}
