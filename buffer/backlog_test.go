package buffer

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// TestMemoryDoesNotGrowWithTheBacklog: what a buffer holds in memory is a few hundred bytes for each file, whatever lies in the files and
// however many messages; eight times the backlog is not half a megabyte more, at rest, while it is drained, and after a start.
func TestMemoryDoesNotGrowWithTheBacklog(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	measure := func(mb int) (rest, drained, started int64) {
		c := Config{Dir: filepath.Join(t.TempDir(), fmt.Sprint(mb)), Lanes: testLanes, Cap: 256 << 20, SegmentSize: 1 << 20, Verify: verifyFrame}
		if err := Create(c); err != nil {
			t.Fatal(err)
		}
		before := heap()
		b, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		const size, messages = 2000, 100 // on disk 6 KB a batch
		frame := frameOf(ID{}, size-32)  // one for all: making them would take longer than keeping them
		number := uint64(0)
		for number*(size+messages*seenSize) < uint64(mb)<<20 {
			var items []Item
			for range 50 {
				it := itemOf(1, 1, number, 10)
				it.Frame = frame
				for i := range byte(messages - 1) {
					it.Seen = append(it.Seen, Seen{Digest: sha256.Sum256(append(numberKey(number), i)), Mask: 2})
				}
				items = append(items, it)
				number++
			}
			mustAppend(t, b, items...)
		}
		rest = heap() - before
		// Drained in part, with holes: what a bad connection leaves.
		for range number / 200 {
			got := take(t, b, 100)
			for i, g := range got {
				if i%10 > 0 {
					b.Ack(g.ID)
				}
			}
		}
		drained = heap() - before
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if b, err = open(c); err != nil {
			t.Fatal(err)
		}
		started = heap() - before
		if w := b.Stats().Lanes[1].Waiting; w < number/2 {
			t.Fatalf("%d of %d batches wait", w, number)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		return rest, drained, started
	}
	r8, d8, s8 := measure(8)
	r64, d64, s64 := measure(64)
	t.Logf("heap with 8 MB and 64 MB of backlog: %d and %d KB at rest, %d and %d while it is drained, %d and %d after a start", r8>>10, r64>>10, d8>>10, d64>>10, s8>>10, s64>>10)
	for name, grown := range map[string]int64{"at rest": r64 - r8, "while it is drained": d64 - d8, "after a start": s64 - s8} {
		if grown > 512<<10 {
			t.Errorf("%s: 56 MB more of backlog take %d KB of memory", name, grown>>10)
		}
	}
}

// TestARestartResendsTheLastSecond and nothing that was acknowledged before: nobody calls Flush, and the process ends without Close.
func TestARestartResendsTheLastSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(filepath.Join(t.TempDir(), "buffer"))
		if err := Create(c); err != nil {
			t.Fatal(err)
		}
		b, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		const batches = 400
		for n := range uint64(batches) {
			mustAppend(t, b, itemOf(1, 1, n, 300))
		}
		at := map[ID]time.Time{} // when each was acknowledged
		for len(at) < batches {
			for _, g := range take(t, b, 7) {
				b.Ack(g.ID)
				at[g.ID] = time.Now() // the bubble's clock
			}
			time.Sleep(73 * time.Millisecond)
			synctest.Wait()
			if len(at)%3 > 0 {
				continue
			}
			now := time.Now()
			crash, err := open(testConfigOf(c, copyDir(t, c.Dir)))
			if err != nil {
				t.Fatal(err)
			}
			again := 0
			for _, g := range takeAll(t, crash) {
				if when, acked := at[g.ID]; acked {
					again++
					if age := now.Sub(when); age > ackDelay {
						t.Fatalf("%s was acknowledged %s before the crash and is sent again", g.ID, age)
					}
				}
			}
			if again > 7*int(ackDelay/(73*time.Millisecond)+1) {
				t.Fatalf("%d batches are sent again", again)
			}
			if err := crash.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
