package buffer

import (
	"bytes"
	"crypto/sha256"
	"path/filepath"
	"slices"
	"testing"
)

// TestKnownAsksTheDisk: with far more segments than a group has columns, every message is known and no other, whatever becomes of the file
// of coarse filters: a disk that loses it, that does not take it, that sets all its bits. Bits that it clears make messages unknown.
func TestKnownAsksTheDisk(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "buffer"), Lanes: testLanes, Cap: 64 << 20, SegmentSize: minSegment, Verify: verifyFrame}
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, c)
	some, number := manySegments(t, b)
	ask := func(when string, waits func(i int) bool) {
		t.Helper()
		for i := 0; i < len(some); i += 5 {
			if _, known := b.Known(some[i].Digest); known != waits(i) {
				t.Fatalf("%s: message %d of %d is known: %t", when, i, len(some), known)
			}
		}
		walks := 0
		for n := range uint64(5000) {
			digest := sha256.Sum256(append(numberKey(n), "never seen"...))
			walks += len(b.sifted(&digest))
		}
		if walks > 100 { // of 400,000
			t.Errorf("%s: %d walks for messages that no segment holds", when, walks)
		}
	}
	all := func(int) bool { return true }
	groups := func() (n int) {
		var seen []*group
		for _, s := range b.lanes[1].segs {
			if s.group != nil && !slices.Contains(seen, s.group) {
				seen = append(seen, s.group)
			}
			if !s.writing && s.filter != nil {
				t.Errorf("%s: the filter is in memory", s.path)
			}
		}
		return len(seen)
	}
	ask("written", all)
	if n := groups(); n < 2 {
		t.Fatalf("%d groups", n)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	ask("after a start", all)
	if n := groups(); n < 2 {
		t.Fatalf("%d groups", n)
	}

	gone := dropSegments(t, b, some)
	rest := func(i int) bool { return !gone[i] }
	ask("70 segments dropped", rest)

	spoil(t, b, some, ask, rest)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	b = mustOpen(t, c)
	b.sieve.close()
	b.sieve.lacking = true
	for i := range uint64(40) {
		for first := len(b.lanes[2].segs); len(b.lanes[2].segs) <= first; number++ {
			it := itemOf(2, 2, number, 9000)
			if mustAppend(t, b, it); i > 30 {
				some = append(some, it.Seen[0])
			}
		}
	}
	ask("never written", rest)
}

// manySegments appends until vitals have 80 segments, and gives two messages of each batch: batch n's are 2n and 2n+1.
func manySegments(t *testing.T, b *Buffer) (some []Seen, number uint64) {
	t.Helper()
	for len(b.lanes[1].segs) < 80 {
		lane := uint8(1)
		if number%7 == 0 {
			lane = 0 // long files with few messages, between the others
		}
		it := itemOf(1, lane, number, 10)
		it.Frame = frameOf(it.ID, 4000)
		for i := range number % 500 {
			it.Seen = append(it.Seen, Seen{Digest: sha256.Sum256(append(numberKey(number), byte(i), byte(i>>8))), Mask: 1 << lane})
		}
		mustAppend(t, b, it)
		some = append(some, it.Seen[0], it.Seen[len(it.Seen)-1])
		number++
	}
	return some, number
}

// dropSegments has 70 segments of vitals delivered and deleted, and the room of their groups with them. It gives which of some are gone.
func dropSegments(t *testing.T, b *Buffer, some []Seen) map[int]bool {
	t.Helper()
	gone, before := map[int]bool{}, b.Stats().Disk
	files := int64(0)
	takeAll(t, b)
	for i, s := range some {
		for _, o := range b.lanes[1].segs[:70] {
			if n := uint64(i / 2); s.Mask == 2 && o.holds(n) {
				gone[i] = true
				b.Ack(ID{Epoch: epochOf(1), Lane: 1, Number: n})
			}
		}
	}
	for _, s := range b.lanes[1].segs[:70] {
		files += s.disk
	}
	b.mu.Lock()
	for range 70 {
		b.dropOldest()
	}
	b.mu.Unlock()
	if after := b.Stats().Disk; before-after <= files || len(b.lanes[1].segs) > 12 {
		t.Errorf("%d bytes and %d segments are left of %d; the files alone had %d", after, len(b.lanes[1].segs), before, files)
	}
	return gone
}

// spoil has the file of coarse filters lie in each way, and then fail, and asks each time.
func spoil(t *testing.T, b *Buffer, some []Seen, ask func(when string, waits func(i int) bool), rest func(i int) bool) {
	t.Helper()
	size, err := b.sieve.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.sieve.file.WriteAt(bytes.Repeat([]byte{0xff}, int(size.Size())), 0); err != nil {
		t.Fatal(err)
	}
	ask("all bits set", rest)
	if _, err := b.sieve.file.WriteAt(make([]byte, size.Size()), 0); err != nil {
		t.Fatal(err)
	}
	ask("all bits clear", func(i int) bool { // those that are in no group are known still
		for _, l := range b.lanes[:2] {
			for _, s := range l.segs {
				if l.index == some[i].lane() && s.holds(uint64(i/2)) {
					return s.group == nil
				}
			}
		}
		return false
	})
	if err := b.sieve.file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	ask("cut off", rest)
	if err := b.sieve.file.Close(); err != nil {
		t.Fatal(err)
	}
	ask("not readable", rest)
}

// lane is the one lane that the test gives a message.
func (s Seen) lane() uint8 { return s.Mask >> 1 }
