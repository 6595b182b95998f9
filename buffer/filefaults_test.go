package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"wardlink/buffer/segment"
)

// TestMappedFaults cuts a file behind the mapping of a running buffer, at each page: reading there is SIGBUS. The process lives, the others
// flow, and the file is set aside and counted, since reading it plainly shows that it is too short.
func TestMappedFaults(t *testing.T) {
	t.Parallel()
	base := damageBase(t)
	info, err := segment.Inspect(filepath.Join(base, fileName("vitals", 2)))
	if err != nil {
		t.Fatal(err)
	}
	n := int(info.Used) / segment.PageSize
	chosen := some(t, n, 4, 0, 2, n-1)
	told(t, "a mapped file is cut at a page", len(chosen), inPairs(chosen, func(i int) error {
		out, err := runChild(itself(t, "mapped", base, strconv.Itoa(i)))
		if err != nil {
			return fmt.Errorf("cut at page %d: %w\n%s", i, err, out[max(0, len(out)-1500):])
		}
		return nil
	}))
}

func childMapped(base, arg string) {
	own, err := os.MkdirTemp("", "wl-mapped")
	if err != nil {
		childDie(err)
	}
	defer os.RemoveAll(own)
	page, err := strconv.Atoi(arg)
	if err != nil {
		childDie(err)
	}
	if err := oneMapped(base, filepath.Join(own, "b"), page); err != nil {
		childDie(err)
	}
}

func oneMapped(base, dir string, page int) error {
	want := drained(base)
	if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
		return err
	}
	c := testConfig(dir)
	b, err := open(c)
	if err != nil {
		return err
	}
	got := map[ID]string{}
	s := b.lanes[1].segs[1]
	b.mu.Lock()
	err = b.open(s) // checked and mapped, as it is in the middle of its draining
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.Truncate(s.path, int64(page*segment.PageSize)); err != nil {
		return err
	}
	for {
		batches, err := b.Take(7)
		if err != nil {
			return err
		}
		if len(batches) == 0 {
			break
		}
		for _, g := range batches {
			got[g.ID] = string(g.Frame)
			b.Known(itemOf(1, 1, s.first, 1).Seen[0].Digest)
			b.Ack(g.ID)
		}
	}
	lost := 0
	for id, frame := range want {
		switch {
		case got[id] == frame:
		case got[id] != "":
			return fmt.Errorf("batch %s came out changed", id)
		case !s.holds(id.Number) || id.Lane != 1:
			return fmt.Errorf("batch %s of another file did not come out", id)
		default:
			lost++
		}
	}
	st := b.Stats()
	if lost > 0 && (len(st.Damaged) != 1 || st.Lanes[1].Lost != uint64(lost)) {
		return fmt.Errorf("%d batches are missing; the buffer says %+v", lost, st)
	}
	if err := b.Close(); err != nil {
		return err
	}
	report, err := check(dir)
	if err != nil || lost > 0 && len(report.Damaged) == 0 {
		return fmt.Errorf("check: %+v, %w", report, err)
	}
	return nil
}

// TestFileFaults empties, cuts, zeroes and garbles every file of a buffer in turn. What was in the other files comes out, with or without
// its acknowledgements; or the buffer refuses to open, and then names the file and is what it was.
func TestFileFaults(t *testing.T) {
	// Not beside tests that start processes: between fork and exec a child holds every lock of ours.
	base := damageBase(t)
	c := testConfig(base)
	b, err := open(c) // which finishes what the crash left, and stores acknowledgements
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range takeAll(t, b)[:20] {
		b.Ack(g.ID)
	}
	if err := errors.Join(b.Flush(), b.Close()); err != nil {
		t.Fatal(err)
	}
	b, err = open(c)
	if err != nil {
		t.Fatal(err)
	}
	want := map[ID]string{}
	for _, g := range takeAll(t, b) {
		want[g.ID] = string(g.Frame)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) < 9 {
		t.Fatalf("%d files, %v", len(entries), err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	ways := map[string]func(raw []byte) []byte{
		"empty":     func(raw []byte) []byte { return nil },
		"cut":       func(raw []byte) []byte { return raw[:len(raw)/2] },
		"zero":      func(raw []byte) []byte { return make([]byte, len(raw)) },
		"noise":     func(raw []byte) []byte { out := make([]byte, len(raw)); fill(rng, out); return out },
		"first bit": func(raw []byte) []byte { out := bytes.Clone(raw); flip(out, 0); return out },
		"one byte":  func(raw []byte) []byte { return []byte{0xff} },
		"missing":   nil,
	}
	for _, e := range entries {
		for way, do := range ways {
			t.Run(e.Name()+" "+way, func(t *testing.T) { fileFault(t, copyDir(t, base), e.Name(), do, want) })
		}
	}
}

func fill(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

func flip(b []byte, at int) {
	if len(b) > at {
		b[at] ^= 1
	}
}

func fileFault(t *testing.T, dir, name string, do func([]byte) []byte, want map[ID]string) {
	path := filepath.Join(dir, name)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if do == nil {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, do(raw), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	report, checkErr := check(dir)
	b, err := open(testConfig(dir))
	if err != nil {
		if !strings.Contains(err.Error(), dir) || name != formatName {
			t.Fatalf("it refuses to open: %v", err)
		}
		if checkErr == nil {
			t.Error("check finds nothing wrong with a buffer that does not open")
		}
		// Mended by hand, it is what it was.
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err = open(testConfig(dir)); err != nil {
			t.Fatal(err)
		}
	} else if checkErr != nil && !errors.Is(checkErr, fs.ErrNotExist) {
		t.Errorf("check: %v", checkErr)
	}
	got := map[ID]string{}
	for _, g := range takeAll(t, b) {
		got[g.ID] = string(g.Frame)
	}
	missing := 0
	for id, frame := range want {
		if got[id] == frame {
			continue
		}
		if laneName, _, ok := parseFileName(name); got[id] != "" || !ok || laneName != testLanes[id.Lane] {
			t.Fatalf("%s of another file is missing or changed", id)
		}
		missing++
	}
	st := b.Stats()
	if missing > 0 && do != nil && len(st.Damaged) == 0 {
		t.Errorf("%d batches are missing, and nothing was set aside: %+v", missing, st)
	}
	if missing > 0 && do != nil && len(report.Findings) == 0 {
		t.Errorf("%d batches are missing, and check found nothing", missing)
	}
	if missing > len(want)/2 {
		t.Errorf("%d of %d batches are missing for one file", missing, len(want))
	}
	if err := b.Append([]Item{itemOf(9, 1, 0, 100)}); err != nil {
		t.Errorf("it takes nothing more: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
