// Package group is the part of a group commit that does not depend on where the group goes: a bounded queue that many submit to, the
// cutting of groups, the telling of results in order, and the state of a fault that lasts.
package group

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Entry is what is queued. Size is in bytes; it must not change.
type Entry interface{ Size() int }

// Pending is an entry that waits, or that was committed under Seq.
type Pending[E Entry] struct {
	Entry E
	Seq   uint64
	Done  func(seq uint64, err error)
}

// Group is what one commit took. Err is why it was not made durable.
type Group[E Entry] struct {
	Entries []Pending[E]
	Err     error
	asked   []chan struct{} // by Alive; to be closed
}

// Empty: there is nothing to commit and nobody to answer.
func (g Group[E]) Empty() bool { return len(g.Entries)+len(g.asked) == 0 }

// Tell runs each entry's Done, in order.
func (g Group[E]) Tell() {
	for _, p := range g.Entries {
		if g.Err != nil {
			p.Done(0, g.Err)
		} else {
			p.Done(p.Seq, nil)
		}
	}
	for _, round := range g.asked {
		close(round)
	}
}

// Queue is safe for many submitters and one taker.
type Queue[E Entry] struct {
	limit  int   // bytes that wait at most; one entry always fits
	closed error // what is said after Close

	mu      sync.Mutex
	room    sync.Cond // the queue got shorter, or ended
	entries []Pending[E]
	bytes   int
	former  int // entries of the last group: as many are likely to come
	asked   []chan struct{}
	ended   bool
	more    chan struct{}
}

// NewQueue makes a queue of at most limit bytes, whose users are told closed after Close.
func NewQueue[E Entry](limit int, closed error) *Queue[E] {
	q := &Queue[E]{limit: limit, closed: closed, more: make(chan struct{}, 1)}
	q.room.L = &q.mu
	return q
}

// Submit queues an entry; it blocks while the queue is full. On an error Done never runs.
func (q *Queue[E]) Submit(e E, done func(seq uint64, err error)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.ended && q.bytes > 0 && q.bytes+e.Size() > q.limit {
		q.room.Wait()
	}
	if q.ended {
		return fmt.Errorf("journal: %w", q.closed)
	}
	if q.entries == nil {
		q.entries = make([]Pending[E], 0, q.former+q.former/4)
	}
	q.entries = append(q.entries, Pending[E]{Entry: e, Done: done})
	q.bytes += e.Size()
	q.wake()
	return nil
}

func (q *Queue[E]) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// More gives a value when there may be something to take, or when the queue ended.
func (q *Queue[E]) More() <-chan struct{} { return q.more }

// Take gives the next group, of at most so many bytes, but for a single entry, and entries; last is true when there will be no more.
func (q *Queue[E]) Take(bytes, entries int) (g Group[E], last bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.entries) && n < entries && (n == 0 || size+q.entries[n].Entry.Size() <= bytes) {
		size += q.entries[n].Entry.Size()
		n++
	}
	g.Entries = q.entries[:n:n]
	q.entries = q.entries[n:]
	if len(q.entries) == 0 {
		q.entries = nil // lets the array go once its entries are done
	}
	if n > 0 {
		q.former = n
	}
	q.bytes -= size
	q.room.Broadcast()
	g.asked, q.asked = q.asked, nil
	return g, q.ended
}

// Alive returns once taker and teller have come round, whatever became of commits; or with the error of ctx, or that of a closed queue.
func (q *Queue[E]) Alive(ctx context.Context) error {
	round := make(chan struct{})
	q.mu.Lock()
	if q.ended {
		q.mu.Unlock()
		return fmt.Errorf("journal: %w", q.closed)
	}
	q.asked = append(q.asked, round)
	q.wake()
	q.mu.Unlock()
	select {
	case <-round:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("journal: a commit does not end: %w", ctx.Err())
	}
}

// Bytes are those that wait.
func (q *Queue[E]) Bytes() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}

// Close ends submitting; what was submitted can still be taken.
func (q *Queue[E]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.room.Broadcast()
	q.wake()
}

// Append submits entries and waits until all are durable. When ctx ends first its error is returned and the entries may become durable all
// the same.
func Append[E Entry](ctx context.Context, submit func(e E, done func(seq uint64, err error)) error, entries []E) error {
	results := make(chan error, len(entries)) // roomy: done must not block
	for i, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := submit(e, func(_ uint64, err error) { results <- err }); err != nil {
			return errors.Join(err, wait(ctx, results, i))
		}
	}
	return wait(ctx, results, len(entries))
}

func wait(ctx context.Context, results <-chan error, n int) error {
	var errs []error
	for range n {
		select {
		case err := <-results:
			errs = append(errs, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}
