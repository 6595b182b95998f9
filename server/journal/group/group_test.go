package group

import (
	"context"
	"errors"
	"testing"
	"time"
)

type item int

func (i item) Size() int { return int(i) }

var errClosed = errors.New("closed")

// TestQueueIsBoundedAndCutsGroups: a group has at most so many bytes and entries, but for a single entry that is larger; a submitter waits for
// room, and is let go when the queue ends.
func TestQueueIsBoundedAndCutsGroups(t *testing.T) {
	q := NewQueue[item](100, errClosed)
	none := func(uint64, error) {}
	for _, size := range []item{40, 30, 20, 5, 5} {
		if err := q.Submit(size, none); err != nil {
			t.Fatal(err)
		}
	}
	waits := make(chan error, 2)
	for _, size := range []item{500, 10} { // the first is larger than the queue and fits when nothing else waits
		go func() { waits <- q.Submit(size, none) }()
		select {
		case err := <-waits:
			t.Fatalf("%d more bytes were queued beside %d: %v", size, q.Bytes(), err)
		case <-time.After(30 * time.Millisecond):
		}
	}
	if g, last := q.Take(75, 10); len(g.Entries) != 2 || last || g.Empty() {
		t.Fatalf("%d entries, %v", len(g.Entries), last)
	}
	if err := <-waits; err != nil { // the small one
		t.Fatal(err)
	}
	if g, _ := q.Take(1000, 3); len(g.Entries) != 3 {
		t.Fatalf("%d entries", len(g.Entries))
	}
	if g, _ := q.Take(1000, 100); len(g.Entries) != 1 || q.Bytes() != 0 && q.Bytes() != 500 {
		t.Fatalf("%d entries, %d bytes", len(g.Entries), q.Bytes())
	}
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	if g, _ := q.Take(100, 100); len(g.Entries) != 1 || g.Entries[0].Entry != 500 {
		t.Fatalf("%+v", g.Entries)
	}
	if err := errors.Join(q.Submit(60, none), q.Submit(30, none)); err != nil {
		t.Fatal(err)
	}
	go func() { waits <- q.Submit(60, none) }()
	time.Sleep(10 * time.Millisecond)
	q.Close()
	if err := <-waits; !errors.Is(err, errClosed) {
		t.Fatalf("a submitter that waited: %v", err)
	}
	if g, last := q.Take(1000, 100); len(g.Entries) != 2 || !last {
		t.Fatalf("after the end: %d entries, %v", len(g.Entries), last)
	}
}

// TestTellRunsInOrder and gives numbers or the one error.
func TestTellRunsInOrder(t *testing.T) {
	broken := errors.New("broken")
	for _, failure := range []error{nil, broken} {
		var told []uint64
		g := Group[item]{Err: failure}
		for i := range uint64(3) {
			g.Entries = append(g.Entries, Pending[item]{Seq: i + 7, Done: func(seq uint64, err error) {
				if !errors.Is(err, failure) {
					t.Error(err)
				}
				told = append(told, seq)
			}})
		}
		g.Tell()
		if len(told) != 3 || failure == nil && (told[0] != 7 || told[2] != 9) || failure != nil && told[2] != 0 {
			t.Errorf("%v: %v", failure, told)
		}
	}
}

func TestMark(t *testing.T) {
	m := NewMark(5)
	waited := make(chan error, 1)
	go func() { waited <- m.Wait(context.Background(), 6) }()
	m.Reach(6)
	m.Reach(4)
	if m.At() != 6 {
		t.Fatalf("at %d", m.At())
	}
	m.Reach(9)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	m.Back(2)
	go func() { waited <- m.Wait(context.Background(), 2) }()
	m.Close(errClosed)
	if err := <-waited; !errors.Is(err, errClosed) || m.At() != 2 {
		t.Fatalf("%v at %d", err, m.At())
	}
}

// TestFaultIsToldOnceInAWhile: the first of a row, another error after a second, the same one seldom.
func TestFaultIsToldOnceInAWhile(t *testing.T) {
	var f Fault
	if tell, n := f.Failed(errClosed); !tell || n != 1 || f.Err() == nil {
		t.Fatal(tell, n)
	}
	if tell, n := f.Failed(errors.New("another")); tell || n != 2 {
		t.Fatal(tell, n)
	}
	f.told = time.Now().Add(-2 * time.Second)
	if tell, _ := f.Failed(errors.New("a third")); !tell {
		t.Fatal("another error is not told")
	}
	if was, n := f.Mended(); !was || n != 3 || f.Err() != nil || f.Failures() != 3 {
		t.Fatal(was, n)
	}
	if was, _ := f.Mended(); was {
		t.Fatal("mended twice")
	}
}
