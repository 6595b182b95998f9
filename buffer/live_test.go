package buffer

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
)

// liveLanes has the urgent lane first, as an agent has.
func liveBuffer(t testing.TB) (Config, *Buffer) {
	c := testConfig(filepath.Join(t.TempDir(), "buffer"))
	c.First = 1
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	return c, mustOpen(t, c)
}

func appendOne(t testing.TB, b *Buffer, epoch int, lane uint8, number uint64, size int) {
	t.Helper()
	if err := b.Append([]Item{itemOf(epoch, lane, number, size)}); err != nil {
		t.Fatal(err)
	}
}

func take(t testing.TB, b *Buffer, max int) []Batch {
	t.Helper()
	got, err := b.Take(max)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// names gives batches as lane:number.
func names(batches []Batch) (out []string) {
	for _, g := range batches {
		out = append(out, fmt.Sprintf("%d:%d", g.ID.Lane, g.ID.Number))
	}
	return out
}

// TestAlarmsComeFirstTheNewestAtOnce: over a backlog of alarms and of everything else, in several files and of two epochs.
func TestAlarmsComeFirstTheNewestAtOnce(t *testing.T) {
	c, b := liveBuffer(t)
	const old = 300
	for n := range uint64(old) {
		appendOne(t, b, 1, 0, n, 2000)
		appendOne(t, b, 1, 1, n, 2000)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	appendOne(t, b, 2, 0, 0, 10)
	b.Began()
	if len(b.lanes[0].segs) < 3 {
		t.Fatalf("%d files; the test wants several", len(b.lanes[0].segs))
	}
	got := take(t, b, 16)
	if n := slices.IndexFunc(got, func(g Batch) bool { return g.ID.Epoch == epochOf(2) }); n < 0 {
		t.Fatalf("the fresh alarm is not among the first 16: %v", names(got))
	}
	var oldest int
	for _, g := range got {
		if g.ID.Lane != 0 {
			t.Fatalf("%v came before alarms that wait", g.ID)
		}
		if g.ID.Number < 16/backlogShare && g.ID.Epoch == epochOf(1) {
			oldest++
		}
	}
	if oldest != 16/backlogShare {
		t.Errorf("%d of the oldest alarms are among %v; want %d", oldest, names(got), 16/backlogShare)
	}
	for n := len(got); n < old+1; {
		got := take(t, b, 16)
		for _, g := range got[:min(len(got), old+1-n)] {
			if g.ID.Lane != 0 {
				t.Fatalf("%v came before alarms that wait", g.ID)
			}
		}
		n += len(got)
	}
}

// TestLiveAndBacklogShare: while both wait, three quarters are live, the newest first; and never does either wait for the other's end.
func TestLiveAndBacklogShare(t *testing.T) {
	for _, most := range []int{1, 2, 3, 16, 64} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			_, b := liveBuffer(t)
			const backlog = 400
			for n := range uint64(backlog) {
				appendOne(t, b, 1, 1, n, 500)
			}
			b.Began()
			live := uint64(backlog)
			for range 200 {
				appendOne(t, b, 1, 1, live, 500)
				live++
			}
			first, next := 0, uint64(0)
			for got := 0; got < 64; {
				top := uint64(0)
				for _, g := range take(t, b, most) {
					got++
					if g.ID.Number < backlog-liveBefore {
						if g.ID.Number != next {
							t.Fatalf("backlog gives %d; want %d", g.ID.Number, next)
						}
						next++
						continue
					}
					first++
					top = max(top, g.ID.Number)
				}
				// What has come meanwhile is in the next Take.
				if got > most && top != 0 && top != live-1 {
					t.Fatalf("the newest given out is %d; want %d", top, live-1)
				}
				appendOne(t, b, 1, 1, live, 500)
				live++
			}
			if first < 64*(backlogShare-1)/backlogShare-1 || next < 64/backlogShare-1 {
				t.Errorf("of the first 64, %d are live and %d backlog", first, next)
			}
		})
	}
}

// TestNothingLiveLeavesAllToTheBacklog, in order, and what was appended before Began, but for the newest few, is backlog.
func TestNothingLiveLeavesAllToTheBacklog(t *testing.T) {
	_, b := liveBuffer(t)
	const n = 2 * liveBefore
	for i := range uint64(n) {
		appendOne(t, b, 1, 1, i, 10)
	}
	b.Began()
	var order []uint64
	for len(order) < n {
		for _, g := range take(t, b, backlogShare) {
			order = append(order, g.ID.Number)
		}
	}
	if want := []uint64{n - 3, n - 2, n - 1, 0, n - 6, n - 5, n - 4, 1}; !slices.Equal(order[:8], want) {
		t.Errorf("first come %v; want %v", order[:8], want)
	}
	rest := order[4*(liveBefore/3+1):]
	if !slices.IsSorted(rest) {
		t.Errorf("then %v; want the backlog in order", rest)
	}
}

// TestRunsAreBounded: connections that come and go and never empty a lane do not break its acknowledged numbers into ever more runs.
func TestRunsAreBounded(t *testing.T) {
	_, b := liveBuffer(t)
	number := uint64(0)
	for range 3 * maxRuns {
		for range 4 {
			appendOne(t, b, 1, 1, number, 10)
			number++
		}
		b.Began()
		for _, g := range take(t, b, 2) { // fewer than come
			b.Ack(g.ID)
		}
	}
	if n := len(b.lanes[1].acks[epochOf(1)].spans); n > maxRuns+2 {
		t.Errorf("%d runs; want %d at most", n, maxRuns)
	}
	if n := len(takeAll(t, b)); n != int(number)-6*maxRuns {
		t.Errorf("%d come out after all; want %d", n, int(number)-6*maxRuns)
	}
}

// TestNothingIsForgottenBetweenBothEnds: whatever is released, parked and acknowledged on the way, in whatever order, each batch is given out
// once at a time, and all in the end; numbers that were used up and hold nothing hold up nothing.
func TestNothingIsForgottenBetweenBothEnds(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, 4} {
		rng := rand.New(rand.NewPCG(seed, 0))
		_, b := liveBuffer(t)
		waits, out := map[ID]bool{}, map[ID]bool{}
		next := [3]uint64{}
		for range 400 {
			switch rng.IntN(5) {
			case 0, 1:
				lane := uint8(rng.IntN(3))
				next[lane] += uint64(rng.IntN(3))
				it := itemOf(1, lane, next[lane], rng.IntN(4000))
				next[lane]++
				if err := b.Append([]Item{it}); err != nil {
					t.Fatal(err)
				}
				waits[it.ID] = true
			case 2:
				for _, g := range take(t, b, 1+rng.IntN(20)) {
					if !waits[g.ID] || out[g.ID] {
						t.Fatalf("seed %d: %v was given out; waits %t, out %t", seed, g.ID, waits[g.ID], out[g.ID])
					}
					out[g.ID] = true
				}
			case 3:
				b.Began()
			default:
				for id := range out {
					switch rng.IntN(4) {
					case 0, 1:
						b.Ack(id)
						delete(waits, id)
					case 2:
						b.Release(id)
					default:
						b.Park(id, "so the seed says")
						delete(waits, id)
					}
					delete(out, id)
				}
			}
		}
		for id := range out {
			b.Release(id)
		}
		for _, g := range takeAll(t, b) {
			if !waits[g.ID] {
				t.Fatalf("seed %d: %v was given out at the end", seed, g.ID)
			}
			delete(waits, g.ID)
		}
		if len(waits) > 0 {
			t.Fatalf("seed %d: %d were forgotten", seed, len(waits))
		}
	}
}
