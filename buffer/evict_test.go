package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"wardlink/buffer/segment"
	"wardlink/internal/durable"
)

// evicting is a buffer of which vitals go before alarms, and nothing of lane self, with room for so many segments.
func evicting(t testing.TB, segments int64) Config {
	t.Helper()
	c := testConfig(filepath.Join(t.TempDir(), "buffer"))
	c.Evict = []string{"vitals", "alarm"}
	c.Cap = segments*minSegment + overhead
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	return c
}

// ledger is one lane's account over all epochs.
func ledger(b *Buffer, lane uint8) (held, lost, evicted uint64, upper bool) {
	for _, a := range b.Accounts() {
		if a.Lane == lane {
			held, lost, evicted, upper = held+size(a.Held), lost+size(a.Lost), evicted+a.Evicted, upper || a.LostUpper || a.HeldUpper
		}
	}
	return held, lost, evicted, upper
}

// reports appends reports as an agent does: each is durable, and the former one withdrawn.
type reports struct {
	b           *Buffer
	epoch, size int
	made        uint64
	unsent      ID
}

// report is a Config.Report.
func (r *reports) report() error {
	it := itemOf(r.epoch, 2, r.made, r.size)
	r.made++
	if err := r.b.Append([]Item{it}); err != nil {
		return err
	}
	r.b.Withdraw(r.unsent)
	r.unsent = it.ID
	return nil
}

func mustAppend(t testing.TB, b *Buffer, items ...Item) {
	t.Helper()
	if err := b.Append(items); err != nil {
		t.Fatal(err)
	}
}

// TestAFullBufferGoesOn: the oldest of the least urgent goes, what went is named exactly, and a restart names it still.
func TestAFullBufferGoesOn(t *testing.T) {
	c := evicting(t, 6)
	b := mustOpen(t, c)
	mustAppend(t, b, itemOf(1, 0, 0, 9000))
	const batches = 200
	for n := range uint64(batches) {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
		if d := realDisk(t, c.Dir); d > c.Cap || b.Stats().Disk > c.Cap {
			t.Fatalf("%d bytes on disk, %d by own account, cap %d", d, b.Stats().Disk, c.Cap)
		}
	}
	want := func(when string) {
		t.Helper()
		held, lost, evicted, upper := ledger(b, 1)
		if lost == 0 || held+lost != batches || evicted != lost || upper {
			t.Fatalf("%s: %d held and %d lost (%d evicted, upper bound %t) of %d", when, held, lost, evicted, upper, batches)
		}
		if held, lost, _, _ := ledger(b, 0); held != 1 || lost != 0 {
			t.Fatalf("%s: the alarm is not held", when)
		}
		if st := b.Stats().Lanes[1]; st.Evicted != lost || st.EvictedAt.IsZero() || st.EvictedSince.After(st.EvictedAt) {
			t.Fatalf("%s: %+v", when, st)
		}
	}
	want("when full")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	want("after the restart")
	got := takeAll(t, b)
	_, lost, _, _ := ledger(b, 1)
	if len(got) != 1+batches-int(lost) || got[1].ID.Number != lost {
		t.Fatalf("took %d, the first vitals %s; %d are lost", len(got), got[1].ID, lost)
	}

	// The lane itself is the last that pays for an alarm, and it does.
	for n := uint64(1); n < batches; n++ {
		mustAppend(t, b, itemOf(1, 0, n, 9000))
	}
	if held, _, _, _ := ledger(b, 1); held != 0 {
		t.Fatalf("alarms were stored, and %d vitals are still held", held)
	}
	held, lost, _, _ := ledger(b, 0)
	if held+lost != batches || lost == 0 {
		t.Fatalf("alarms: %d held and %d lost of %d", held, lost, batches)
	}
	// Vitals do not cost alarms, and have room all the same.
	for n := range uint64(batches) {
		mustAppend(t, b, itemOf(2, 1, n, 9000))
	}
	if h, l, _, _ := ledger(b, 0); h != held || l != lost {
		t.Fatalf("vitals cost alarms: held %d, then %d", held, h)
	}
}

// TestSelfIsNeverEvicted, and there is room for it however full the rest is.
func TestSelfIsNeverEvicted(t *testing.T) {
	c := evicting(t, 5)
	b := mustOpen(t, c)
	r := &reports{b: b, epoch: 1, size: 3000}
	b.c.Report = r.report
	for n := range uint64(600) {
		mustAppend(t, b, itemOf(1, 1, n, 9000), itemOf(1, 0, n, 9000))
		if n%3 == 0 {
			if err := r.report(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if st := b.Stats(); st.Lanes[2].Waiting != 1 || st.Lanes[2].Evicted != 0 || !b.stocked {
		t.Fatalf("%+v, reserve %t", st.Lanes[2], b.stocked)
	}
	if r.made < 210 {
		t.Fatalf("%d reports; nobody told of evictions", r.made)
	}
	if err := b.Append([]Item{itemOf(1, 2, r.made, 10), itemOf(1, 1, 9999, 10)}); !errors.Is(err, ErrInvalid) {
		t.Fatalf("a report beside vitals: %v", err)
	}
}

// TestEvictionsCrashOrder stops at each step of an eviction: the file is there and its batches flow, or the loss is durable and told.
func TestEvictionsCrashOrder(t *testing.T) {
	failDisk(t)
	c := evicting(t, 5)
	b := mustOpen(t, c)
	n := uint64(0)
	for ; b.Stats().Lanes[1].Evicted == 0; n++ {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
	}
	look := func(when string, back bool) {
		t.Helper()
		dir := copyDir(t, c.Dir)
		crash := mustOpen(t, testConfigOf(Config{Lanes: c.Lanes, Evict: c.Evict, Cap: c.Cap, SegmentSize: c.SegmentSize, Verify: c.Verify}, dir))
		held, lost, evicted, upper := ledger(crash, 1)
		if held+lost < n || evicted != lost || upper {
			t.Errorf("crash %s: %d held and %d lost of %d", when, held, lost, n)
		}
		if got := uint64(len(takeAll(t, crash))); got != held {
			t.Errorf("crash %s: %d are held and %d given out", when, held, got)
		}
		_, now, _, _ := ledger(b, 1)
		if back != (lost < now) {
			t.Errorf("crash %s: %d lost, %d by the account of the one that crashed; the file is there: %t", when, lost, now, back)
		}
	}
	steps := ""
	b.c.Report = func() error {
		steps += "report "
		look("before the report", true)
		return errors.New("no report is stored")
	}
	disk.remove = func(path string) error {
		steps += "remove "
		b.mu.Unlock() // look reads accounts
		defer b.mu.Lock()
		look("before the file is deleted", true)
		err := os.Remove(path)
		look("when the file is deleted", false)
		return err
	}
	for before := b.Stats().Lanes[1].Evicted; b.Stats().Lanes[1].Evicted == before; n++ {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
	}
	look("afterwards", false)
	if steps != "report remove " {
		t.Errorf("steps: %s", steps)
	}
}

// TestNoLossWithoutItsNote: while the state cannot be written, or the file not be deleted, nothing is lost and intake stops.
func TestNoLossWithoutItsNote(t *testing.T) {
	for name, broken := range map[string]func(b *Buffer) (mend func()){
		"the state cannot be written": func(b *Buffer) func() {
			former := b.state
			dir := filepath.Join(b.c.Dir, "not there")
			b.state = newAB(t, filepath.Join(dir, "state"))
			return func() { b.state = former }
		},
		"the file cannot be deleted": func(*Buffer) func() {
			disk.remove = func(string) error { return syscall.EROFS }
			return func() { disk.remove = os.Remove }
		},
	} {
		t.Run(name, func(t *testing.T) {
			failDisk(t)
			b := mustOpen(t, evicting(t, 5))
			b.mu.Lock()
			mend := broken(b)
			b.mu.Unlock()
			n, stored := uint64(0), uint64(0)
			for ; n < 200; n++ {
				if err := b.Append([]Item{itemOf(1, 1, n, 9000)}); err == nil {
					stored++
				} else if !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
			}
			held, lost, _, _ := ledger(b, 1)
			if stored == n || held != stored || lost != 0 || b.Stats().Lanes[1].Evicted != 0 {
				t.Fatalf("%d stored, %d held, %d lost", stored, held, lost)
			}
			b.mu.Lock()
			mend()
			b.mu.Unlock()
			mustAppend(t, b, itemOf(1, 1, n, 9000))
			if got := uint64(len(takeAll(t, b))); got+b.Stats().Lanes[1].Evicted != stored+1 {
				t.Fatalf("%d given out, %d evicted, of %d", got, b.Stats().Lanes[1].Evicted, stored+1)
			}
		})
	}
}

// TestWhatIsOnItsWayGoesLast, and an acknowledgement that comes after it went takes it out of the loss.
func TestWhatIsOnItsWayGoesLast(t *testing.T) {
	b := mustOpen(t, evicting(t, 7))
	n := uint64(0)
	for ; len(b.lanes[1].segs) < 3; n++ {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
	}
	out, err := b.Take(2)
	if err != nil || len(out) != 2 {
		t.Fatal(err)
	}
	second := b.lanes[1].segs[1].first
	for ; b.Stats().Lanes[1].Evicted == 0; n++ {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
	}
	if text := account(b, 1, 1); !strings.Contains(text, fmt.Sprintf("lost [{%d ", second)) {
		t.Fatalf("%s; the first file has batches on their way, the second begins at %d", text, second)
	}
	b.Park(out[1].ID, "refused")
	// Its turn comes when nothing else is left in the lane.
	for a := uint64(0); b.lanes[1].find(out[0].ID) != nil; a++ {
		mustAppend(t, b, itemOf(1, 0, a, 9000))
	}
	before := b.Stats().Lanes[1].Evicted
	if b.Stats().Lanes[1].Parked != 0 {
		t.Error("a parked batch is counted in a file that is gone")
	}
	b.Ack(out[0].ID)
	if now := b.Stats().Lanes[1].Evicted; now != before-1 {
		t.Errorf("%d evicted, then %d: one of them had arrived", before, now)
	}
	if text := account(b, 1, 1); !strings.Contains(text, "lost [{1 ") {
		t.Error(text)
	}
}

// TestToldLossesAreForgotten once nothing else is left of their epoch, and not before.
func TestToldLossesAreForgotten(t *testing.T) {
	c := evicting(t, 5)
	b := mustOpen(t, c)
	n := uint64(0)
	fill := func() {
		for had := b.Stats().Lanes[1].Evicted; b.Stats().Lanes[1].Evicted == had; n++ {
			mustAppend(t, b, itemOf(1, 1, n, 9000))
		}
	}
	tell := func() (ids []LossID) {
		for _, a := range b.Accounts() {
			if len(a.Lost) > 0 {
				ids = append(ids, a.LossID)
			}
		}
		return ids
	}
	fill()
	old := tell()
	fill()
	b.Told(old)
	if a := b.Accounts()[0]; a.Told {
		t.Error("a loss that grew since counts as told")
	}
	b.Told(append(tell(), LossID{Lane: 77}))
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if a := b.Accounts()[0]; !a.Told || len(a.Lost) == 0 {
		t.Errorf("%+v; its epoch is still written", a)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	for _, g := range takeAll(t, b) {
		b.Ack(g.ID)
	}
	b.mu.Lock()
	for b.dropOldest() {
	}
	b.mu.Unlock()
	if a := b.Accounts(); len(a) != 1 || len(a[0].Lost) == 0 {
		t.Errorf("%+v; a loss that nobody was told of since the start is gone", a)
	}
	b.Told(tell())
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, lost, _, _ := ledger(b, 1); lost != 0 {
		t.Errorf("told, nothing left, and %d are still lost", lost)
	}
}

// TestLossesFindRoom: however many runs and epochs there are, the state keeps its size, and what does not fit becomes an upper bound.
func TestLossesFindRoom(t *testing.T) {
	var all []lossOf
	for n := range mostLosses {
		e := lossOf{epoch: epochOf(n), lane: 1}
		for i := range uint64(200) {
			e.numbers.spans = append(e.numbers.spans, span{i * 10, i*10 + i%3})
		}
		e.evicted = e.numbers.size()
		all = append(all, e)
	}
	for _, n := range []int{1, 50, mostLosses} {
		raw := state{lanes: make([]laneState, 3), losses: all[:n], parked: map[ID]parked{}}.encode()
		back, err := parseState(raw)
		if err != nil || len(back.losses) != n {
			t.Fatalf("%d of %d losses came back: %v", len(back.losses), n, err)
		}
		for _, e := range back.losses {
			if !e.upper || !e.numbers.has(0) || !e.numbers.has(1991) || e.evicted != all[0].evicted {
				t.Fatalf("%d losses: %+v", n, e)
			}
		}
		if n == 1 && len(back.losses[0].numbers.spans) != maxLossRuns {
			t.Fatalf("%d runs", len(back.losses[0].numbers.spans))
		}
		if len(raw) > maxLosses+1000 {
			t.Fatalf("%d losses take %d bytes", n, len(raw))
		}
	}
}

// TestStateOfVersion1IsRead, with everything that it says.
func TestStateOfVersion1IsRead(t *testing.T) {
	want := state{lanes: []laneState{{nextSeq: 7, batches: 8, bytes: 9}}, parked: map[ID]parked{{Lane: 0, Number: 3}: {at: 1, reason: "refused"}}}
	raw := want.encode()
	v1 := append([]byte{1, 1}, raw[2:2+24]...)
	v1 = append(v1, raw[2+48+4:]...) // no episode, no losses
	got, err := parseState(v1)
	if err != nil || len(got.lanes) != 1 || got.lanes[0] != want.lanes[0] || got.parked[ID{Number: 3}].reason != "refused" {
		t.Fatalf("%+v, %v", got, err)
	}
}

// TestDamageIsDurable: what a damaged file took with it is known after a crash.
func TestDamageIsDurable(t *testing.T) {
	c, b, batches := threeFiles(t)
	b.mu.Lock()
	s := b.lanes[1].segs[1]
	b.aside(s, segment.ErrDamaged)
	b.mu.Unlock()
	crash := mustOpen(t, testConfigOf(c, copyDir(t, c.Dir)))
	held, lost, evicted, upper := ledger(crash, 1)
	if lost != s.count || held+lost != uint64(batches) || evicted != 0 || upper {
		t.Fatalf("%d held, %d lost (%d evicted, %t) of %d; the file had %d", held, lost, evicted, upper, batches, s.count)
	}
}

// TestAnUnreadableFileIsCountedFromItsNeighbours, each of them in turn, whether its own header can still be found or not.
func TestAnUnreadableFileIsCountedFromItsNeighbours(t *testing.T) {
	c, b, batches := threeFiles(t)
	for n := uint64(batches); len(b.lanes[1].segs) < 5; n++ {
		mustAppend(t, b, itemOf(1, 1, n, 9000))
		batches++
	}
	for _, g := range takeAll(t, b)[:2] { // of the first
		b.Ack(g.ID)
	}
	type file struct{ first, last, waiting uint64 }
	var files []file
	for _, s := range b.lanes[1].segs {
		files = append(files, file{s.first, s.last, s.waiting})
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		for _, header := range []bool{true, false} {
			t.Run(fmt.Sprintf("file %d header %t", i, header), func(t *testing.T) {
				dir := copyDir(t, c.Dir)
				path := filepath.Join(dir, fileName("vitals", uint64(i+1)))
				raw, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				clear(raw[len(raw)-200:]) // the summary
				clear(raw[:2*segment.PageSize])
				if !header {
					clear(raw)
				}
				if err := os.WriteFile(path, raw, 0o600); err != nil {
					t.Fatal(err)
				}
				for range 2 { // and once more after a restart
					b, err := open(testConfigOf(c, dir))
					if err != nil {
						t.Fatal(err)
					}
					held, lost, _, upper := ledger(b, 1)
					last := i == len(files)-1
					switch {
					case last && (!upper || lost != uint64(minSegment/minBatch) || held != uint64(batches)-2-f.waiting):
						t.Errorf("of the last file: %d held, %d lost, upper bound %t", held, lost, upper)
					case !last && (upper || lost != f.waiting || held+lost != uint64(batches)-2):
						t.Errorf("%d held, %d lost, upper bound %t; the file had %d that waited", held, lost, upper, f.waiting)
					}
					if text := account(b, 1, 1); !strings.Contains(text, fmt.Sprintf("lost [{%d ", f.last+1-f.waiting)) {
						t.Errorf("%s; the file's numbers were %d to %d", text, f.first, f.last)
					}
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// newAB is a pair whose directory is not there.
func newAB(t testing.TB, path string) *durable.AB {
	t.Helper()
	ab, _, err := durable.OpenAB(path, maxState)
	if err != nil {
		t.Fatal(err)
	}
	return ab
}
