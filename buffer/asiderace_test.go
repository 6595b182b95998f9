package buffer

import (
	"sync/atomic"
	"testing"

	"wardlink/buffer/segment"
)

// TestSetAsideDuringACommit: a segment is found damaged while a batch is committed to it. The batch's Append says that it is not kept, or the
// account names it.
func TestSetAsideDuringACommit(t *testing.T) {
	_, b := fresh(t)
	for round := range 20 {
		began, done := make(chan struct{}), make(chan struct{})
		var kept atomic.Uint64
		go func() {
			defer close(done)
			for n := range uint64(8) {
				if n == 2 {
					close(began)
				}
				if b.Append([]Item{itemOf(round, 1, n, 2000)}) == nil {
					kept.Add(1)
				}
			}
		}()
		<-began
		b.mu.Lock()
		l := b.lanes[1]
		for _, s := range l.segs {
			if s.writing {
				b.aside(s, segment.ErrDamaged)
				break
			}
		}
		b.mu.Unlock()
		<-done
		named := uint64(0)
		for _, a := range b.Accounts() {
			if a.Epoch == epochOf(round) && a.Lane == 1 {
				named += size(a.Held) + size(a.Lost)
			}
		}
		if named < kept.Load() {
			t.Fatalf("round %d: %d batches were acknowledged to their sources, %d are held or lost", round, kept.Load(), named)
		}
	}
}
