package buffer

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestALastFileOfZeros: nothing in it tells its epoch. What it held is lost all the same, at most so many, in the epoch of its predecessor or in
// that of the last start, whichever it was.
func TestALastFileOfZeros(t *testing.T) {
	for name, former := range map[string]int{"its lane's only file": 0, "a former epoch before it": 1} {
		t.Run(name, func(t *testing.T) {
			c := evicting(t, 9)
			for epoch := 2 - former; epoch <= 2; epoch++ {
				b := mustOpen(t, c)
				mustAppend(t, b, itemOf(epoch, 2, 0, 500))
				for n := range uint64(5) {
					mustAppend(t, b, itemOf(epoch, 1, n, 900))
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
			}
			files, err := filepath.Glob(filepath.Join(c.Dir, "vitals-*.seg"))
			if err != nil || len(files) != 1+former {
				t.Fatal(files, err)
			}
			last := slices.Max(files)
			raw, err := os.ReadFile(last)
			if err != nil {
				t.Fatal(err)
			}
			clear(raw)
			if err := os.WriteFile(last, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			b := mustOpen(t, c)
			for _, a := range b.Accounts() {
				if a.Lane != 1 || a.Epoch != epochOf(2) {
					continue
				}
				if len(a.Lost) == 1 && a.Lost[0].First == 0 && a.Lost[0].Last >= 4 && a.LostUpper && a.Damaged >= 5 {
					return
				}
				t.Fatalf("%+v", a)
			}
			t.Fatal("five batches were durable, nothing holds them, and nothing says that they are lost")
		})
	}
}

// TestWhatDoesNotVerifyIsNotKnown: a device that sends again what was lost on disk is not told that it is kept.
func TestWhatDoesNotVerifyIsNotKnown(t *testing.T) {
	c, b := fresh(t)
	items := []Item{itemOf(1, 1, 0, 500), itemOf(1, 1, 1, 500), itemOf(1, 1, 2, 500)}
	mustAppend(t, b, items...)
	b.c.Verify = func(frame []byte) error {
		if bytes.Equal(frame, items[1].Frame) {
			return errors.New("damaged")
		}
		return c.Verify(frame)
	}
	takeAll(t, b)
	for n, want := range []bool{true, false, true} {
		if _, known := b.Known(items[n].Seen[0].Digest); known != want {
			t.Errorf("batch %d is known: %t", n, known)
		}
	}
}

// TestRoomIsCountedOnce: a segment that another lane is about to make is in use, and no more lacking. Counted as both, it had an Append fail
// for want of room that there was.
func TestRoomIsCountedOnce(t *testing.T) {
	b := mustOpen(t, evicting(t, 5))
	alarms, vitals := b.lanes[0], b.lanes[1]
	before := b.lacking(vitals, false)
	if !b.reserve(alarms, false) {
		t.Fatal("an empty buffer has no room")
	}
	if now := b.lacking(vitals, false); now != before {
		t.Errorf("vitals lack %d bytes, then %d", before, now)
	}
	b.disk -= b.c.SegmentSize
	alarms.begun = false
}
