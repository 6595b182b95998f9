package buffer

import (
	"slices"
	"testing"
)

// again walks over what is delivered, a few at a time.
func again(t *testing.T, d *Delivered) (ids []ID) {
	t.Helper()
	for {
		batches, err := d.Next(3)
		if err != nil {
			t.Fatal(err)
		}
		if len(batches) == 0 {
			return ids
		}
		for _, b := range batches {
			if len(ids) > 10_000 {
				t.Fatal("the walk does not end")
			}
			ids = append(ids, b.ID)
		}
	}
}

func TestDeliveredGivesOutOnceMoreWhatTheReceiverLacks(t *testing.T) {
	c, b := fresh(t)
	var all []ID
	for n := range uint64(60) {
		items := []Item{itemOf(1, 1, n, 30_000)}
		if n%10 == 0 {
			items = append(items, itemOf(1, 0, n/10, 100))
		}
		if err := b.Append(items); err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			all = append(all, it.ID)
		}
	}
	taken := takeAll(t, b)
	for _, batch := range taken {
		if batch.ID.Lane == 1 && batch.ID.Number >= 50 {
			b.Release(batch.ID) // ten wait
		} else {
			b.Ack(batch.ID)
		}
	}
	epoch := all[0].Epoch
	held := []Held{{Epoch: epoch, Lane: 1, Runs: []Run{{0, 9}, {12, 12}}}}
	want := func(from, to uint64) (ids []ID) {
		for n := range uint64(6) {
			ids = append(ids, ID{epoch, 0, n})
		}
		for n := from; n <= to; n++ {
			if n > 9 && n != 12 {
				ids = append(ids, ID{epoch, 1, n})
			}
		}
		return ids
	}
	d := b.Delivered(held)
	if got := again(t, d); !slices.Equal(got, want(10, 49)) {
		t.Fatalf("given out: %v", got)
	}
	if len(d.Gone()) > 0 {
		t.Fatalf("gone: %v", d.Gone())
	}
	// It leaves no trace: the same once more, nothing of it in Take, and what is told of it means nothing.
	for _, batch := range takeAll(t, b) {
		if batch.ID.Number < 50 || batch.ID.Lane != 1 {
			t.Fatalf("Take gives out %v", batch.ID)
		}
		b.Ack(batch.ID)
	}
	b.Park(ID{epoch, 1, 20}, "refused")
	b.Release(ID{epoch, 1, 21})
	d = b.Delivered(held)
	if got := again(t, d); !slices.Equal(got, want(10, 59)) {
		t.Fatalf("given out the second time: %v", got)
	}
	// What is acknowledged while it goes on is not of it.
	d = b.Delivered(held)
	if err := b.Append([]Item{itemOf(1, 1, 60, 100)}); err != nil {
		t.Fatal(err)
	}
	for _, batch := range takeAll(t, b) {
		b.Ack(batch.ID)
	}
	if got := again(t, d); !slices.Equal(got, want(10, 59)) {
		t.Fatalf("given out beside a delivery: %v", got)
	}
	// Files of former runs as well, and what was deleted for its space is named.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, c)
	d = b.Delivered(held)
	if got := again(t, d); !slices.Equal(got, want(10, 60)) {
		t.Fatalf("given out after a start: %v", got)
	}
	// The first file deleted may hold only what the receiver has: which one was delivered first depends on the clock.
	for lost := uint64(0); lost == 0; {
		b.mu.Lock()
		dropped := b.dropOldest()
		b.mu.Unlock()
		if !dropped {
			t.Fatal("nothing more could be deleted, and nothing is gone")
		}
		d = b.Delivered(held)
		given := again(t, d)
		for _, g := range d.Gone() {
			lost += size(g.Runs)
		}
		if total := len(want(10, 60)); len(given)+int(lost) != total {
			t.Fatalf("%d given out and %d gone of %d", len(given), lost, total)
		}
	}
}
