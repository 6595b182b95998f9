package buffer

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// deviceBytes is what the whole-disk device under dir has written so far, from /proc/diskstats; -1 when it cannot be told.
func deviceBytes() int64 {
	raw, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return -1
	}
	total := int64(-1)
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 10 || strings.HasPrefix(f[2], "loop") || strings.HasPrefix(f[2], "ram") || strings.HasPrefix(f[2], "dm-") {
			continue
		}
		// A partition's writes are in its disk's line too.
		if last := f[2][len(f[2])-1]; last >= '0' && last <= '9' && !strings.HasPrefix(f[2], "nvme") && !strings.HasPrefix(f[2], "mmcblk") {
			continue
		}
		n, err := strconv.ParseInt(f[9], 10, 64)
		if err != nil {
			continue
		}
		total = max(total, 0) + n*512
	}
	return total
}

// BenchmarkAppend writes one batch a commit. "written/kept" is device bytes per byte of frame; other programs on the same disk are
// in it. "disk/kept" is file bytes per byte of frame.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{200, 20_000, 200_000} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			c := Config{Dir: filepath.Join(b.TempDir(), "buffer"), Lanes: testLanes, Cap: 1 << 40, Verify: verifyFrame}
			if err := Create(c); err != nil {
				b.Fatal(err)
			}
			buf, err := open(c)
			if err != nil {
				b.Fatal(err)
			}
			frame := frameOf(ID{}, size-32)
			before, number := deviceBytes(), uint64(0)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				it := Item{ID: ID{Epoch: epochOf(1), Lane: 1, Number: number}, Frame: frame, Sealing: epochOf(2), Record: make([]byte, 1300)}
				it.Seen = []Seen{{Digest: sha256.Sum256(numberKey(number)), Mask: 2}}
				number++
				if err := buf.Append([]Item{it}); err != nil {
					b.Fatal(err)
				}
			}
			kept := float64(number) * float64(size)
			if after := deviceBytes(); before >= 0 {
				b.ReportMetric(float64(after-before)/kept, "written/kept")
				b.ReportMetric(float64(after-before)/float64(number), "written/commit")
			}
			if err := buf.Close(); err != nil {
				b.Fatal(err)
			}
			var disk int64
			for _, l := range buf.Stats().Lanes {
				disk += l.Bytes
			}
			b.ReportMetric(float64(disk)/kept, "disk/kept")
		})
	}
}

// BenchmarkDrain takes and acknowledges batches of 20 KB from a fresh backlog.
func BenchmarkDrain(b *testing.B) { benchDrain(b, 0) }

// BenchmarkDrainNewest does so from a lane that is given out from both ends.
func BenchmarkDrainNewest(b *testing.B) { benchDrain(b, 2) }

func benchDrain(b *testing.B, first int) {
	const size = 20_000
	c := Config{Dir: filepath.Join(b.TempDir(), "buffer"), Lanes: testLanes, First: first, Cap: 1 << 40, Verify: verifyFrame}
	if err := Create(c); err != nil {
		b.Fatal(err)
	}
	buf := mustOpen(b, c)
	frame := frameOf(ID{}, size-32) // one for all: making them would take longer than draining them
	for n := 0; n < b.N; n += 100 {
		var items []Item
		for i := range 100 {
			number := uint64(n + i)
			items = append(items, Item{
				ID: ID{Epoch: epochOf(1), Lane: 1, Number: number}, Frame: frame, Sealing: epochOf(2), Record: make([]byte, 1300),
				Seen: []Seen{{Digest: sha256.Sum256(numberKey(number)), Mask: 2}},
			})
		}
		if err := buf.Append(items); err != nil {
			b.Fatal(err)
		}
	}
	if err := buf.Close(); err != nil {
		b.Fatal(err)
	}
	buf = mustOpen(b, c)
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		got, err := buf.Take(64)
		if err != nil || len(got) == 0 {
			b.Fatal(err)
		}
		for _, g := range got {
			buf.Ack(g.ID)
		}
		n += len(got)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "batches/s")
}

// BenchmarkKnown is a miss, which every new message is, and a hit, over as many segments as are in a gigabyte and in eight, each of 1000
// messages. Goal: a miss takes 0.5 ms at most, so that 100 messages a second with two questions each leave a slow board its time.
func BenchmarkKnown(b *testing.B) {
	for _, segments := range []int{256, 2048} {
		b.Run(fmt.Sprint(segments), func(b *testing.B) { benchKnown(b, segments) })
	}
}

func benchKnown(b *testing.B, segments int) {
	c := Config{Dir: filepath.Join(b.TempDir(), "buffer"), Lanes: testLanes, Cap: 1 << 40, SegmentSize: minSegment, Verify: verifyFrame}
	if err := Create(c); err != nil {
		b.Fatal(err)
	}
	buf := mustOpen(b, c)
	number := uint64(0)
	for len(buf.lanes[1].segs) <= segments {
		var items []Item
		for range 250 {
			it := itemOf(1, 1, number, 100)
			for i := range byte(3) {
				it.Seen = append(it.Seen, Seen{Digest: sha256.Sum256(append(numberKey(number), 'b', i)), Mask: 2})
			}
			items = append(items, it)
			number++
		}
		if err := buf.Append(items); err != nil {
			b.Fatal(err)
		}
	}
	hit := sha256.Sum256(itemOf(1, 1, number/2, 100).Frame)
	b.Run("miss", func(b *testing.B) {
		n := uint64(0)
		for b.Loop() {
			n++
			buf.Known(sha256.Sum256(numberKey(n)))
		}
	})
	b.Run("hit", func(b *testing.B) {
		for b.Loop() {
			if _, known := buf.Known(hit); !known {
				b.Fatal("not known")
			}
		}
	})
}
