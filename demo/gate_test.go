package demo

import (
	"testing"
	"testing/synctest"

	"wardlink/demo/bedside"
)

func rowsOf(n int) bedside.Source {
	return func(yield func(bedside.Row) bool) {
		for range n {
			if !yield(bedside.Row{}) {
				return
			}
		}
	}
}

// TestGateLetsOutWindows: each window its share, the rest at the end, and nothing is lost or doubled by it.
func TestGateLetsOutWindows(t *testing.T) {
	for _, rows := range []int{1, 3, 100, 101} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate(4)
			n := 0
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for range g.source(rowsOf(rows), rows, pace, false) {
					n++
				}
			}()
			for opened := range 4 {
				synctest.Wait()
				if most := (rows*opened + 3) / 4; n > most {
					t.Errorf("%d of %d rows are out with %d windows of 4 open", n, rows, opened)
				}
				g.next()
			}
			g.finish()
			<-ended
			if n != rows {
				t.Errorf("%d rows came of %d", n, rows)
			}
		})
	}
}

// TestEndlessSourceEndsWithTheGate: patients stream as long as they are needed.
func TestEndlessSourceEndsWithTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1)
		g.next()
		n := 0
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for range g.source(rowsOf(1_000_000), 1_000_000, pace, true) {
				if n++; n == 10 {
					g.finish()
				}
			}
		}()
		<-ended
		if n != 10 {
			t.Errorf("%d rows", n)
		}
	})
}
