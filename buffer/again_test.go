package buffer

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestParkedIsOfferedAgain: once after each start and once a day, the one that was refused the longest ago first. What is acknowledged then has
// arrived; what is not stays parked, and after a few tries that came to nothing the lane has to wait.
func TestParkedIsOfferedAgain(t *testing.T) {
	c, b := fresh(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var seconds, clock atomic.Int64 // the wall clock, and what has elapsed
	seconds.Store(1_800_000_000)
	c.Now, c.Elapsed = func() time.Time { return time.Unix(seconds.Load(), 0) }, func() time.Duration { return time.Duration(clock.Load()) }
	b = mustOpen(t, c)
	for n := range uint64(8) {
		if err := b.Append([]Item{itemOf(1, 1, n, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	offered := func(want ...uint64) (got []Batch) {
		t.Helper()
		for _, n := range want {
			g, ok, err := b.TakeParked()
			if err != nil || !ok || g.ID.Number != n || string(g.Frame) != string(itemOf(1, 1, n, 100).Frame) {
				t.Fatalf("number %d was to be offered, and %v, %s %v", n, ok, g.ID, err)
			}
			got = append(got, g)
		}
		return got
	}
	none := func() {
		t.Helper()
		if g, ok, err := b.TakeParked(); ok || err != nil {
			t.Fatalf("%s is offered, %v", g.ID, err)
		}
	}
	out := takeAll(t, b)
	none() // the first round, of nothing
	for _, n := range []int{5, 1, 2, 3, 4} {
		seconds.Add(1)
		b.Park(out[n].ID, "refused")
	}
	b.Ack(out[0].ID, out[6].ID, out[7].ID)
	none()
	if next := b.Stats().NextParked; !next.Equal(c.Now().Add(roundEvery)) {
		t.Errorf("the next round at %s", next)
	}

	clock.Store(int64(roundEvery))
	got := offered(5)
	if len(takeAll(t, b)) != 0 {
		t.Error("Take gives parked batches out")
	}
	second, ok, _ := b.TakeParked() // one that is out is no obstacle to the next
	if !ok || second.ID.Number != 1 {
		t.Fatal(second.ID, ok)
	}
	b.Ack(got[0].ID)
	seconds.Add(1)
	b.Park(second.ID, "refused again")
	b.Release(offered(2)[0].ID) // the connection ended: once more in this round, after the others
	if st := b.Stats(); st.Lanes[1].Parked != 4 || st.Lanes[1].Waiting != 4 || !st.NextParked.IsZero() {
		t.Errorf("%+v", st)
	}
	if len(takeAll(t, b)) != 0 {
		t.Error("what was given back is not parked any more")
	}
	b.Park(offered(3)[0].ID, "refused again") // the third that came to nothing
	none()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if r := mustCheck(t, c.Dir); r.Lanes[1].Parked != 4 || r.Lanes[1].Acked != 4 {
		t.Fatalf("%+v", r.Lanes[1])
	}

	b = mustOpen(t, c)
	b.Rest(1 << 1)
	none() // the lane rests, and its turn is over
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	for _, g := range offered(2, 4, 1, 3) {
		b.Ack(g.ID)
	}
	none()
	if st := b.Stats().Lanes[1]; st.Parked != 0 || st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
}

// TestParkedThatIsDamaged: a batch that does not verify when it is offered again is lost, and counted once.
func TestParkedThatIsDamaged(t *testing.T) {
	_, b := fresh(t)
	if err := b.Append([]Item{itemOf(1, 1, 0, 100), itemOf(1, 1, 1, 100)}); err != nil {
		t.Fatal(err)
	}
	b.Park(takeAll(t, b)[0].ID, "refused")
	verify := b.c.Verify
	b.c.Verify = func([]byte) error { return ErrInvalid }
	if g, ok, err := b.TakeParked(); ok || err != nil {
		t.Errorf("%s, %v", g.ID, err)
	}
	b.c.Verify = verify
	if got := account(b, 1, 1); got != "next 2 waiting 1 parked 0 held [{1 1}] false lost [{0 0}] false" {
		t.Error(got)
	}
}
