package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// maxTogether bounds how many writes share a transaction, and so how long the writes behind them wait.
	maxTogether = 64
	// togetherTime bounds how long such a transaction takes, its turn included.
	togetherTime = 15 * time.Second
)

// together are the writes that wait for the transaction that is on its way.
type together struct {
	mu      sync.Mutex
	waiting []*joined
	busy    bool // somebody carries waiting into the database
}

// joined is one write. Its err is its caller's from the close of done on.
type joined struct {
	fn       func(tx *sql.Tx) error
	err      error
	panicked any
	done     chan struct{}
}

// WriteTogether is Write for short writes that many ask for at once: those that arrive while a transaction is on its way share the next, so that they are
// durable by one flush of the disk. Each is whole or not at all by itself: what fn returns undoes what it wrote, and nothing of the others. nil means that it is
// durable, as with Write; when the commit fails, all that share it hear of it.
//
// fn's statements take no context: a write of SQLite's that is cut off undoes the whole transaction. ctx ends the waiting for the turn alone, so a caller waits
// for up to togetherTime. A service that has a place (Singleton) writes by itself.
func (d *DB) WriteTogether(ctx context.Context, fn func(tx *sql.Tx) error) error {
	if _, ok := ctx.Value(fence{d}).(Place); ok {
		return d.Write(ctx, fn)
	}
	w := &joined{fn: fn, done: make(chan struct{})}
	t := &d.together
	t.mu.Lock()
	t.waiting = append(t.waiting, w)
	carry := !t.busy
	t.busy = true
	t.mu.Unlock()
	if carry {
		go d.carry() // not in this call, whose ctx is not the others'
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		if t.leave(w) {
			return ctx.Err()
		}
		<-w.done // fn runs, and writes to what is the caller's
	}
	if w.panicked != nil {
		panic(w.panicked)
	}
	return w.err
}

// leave takes a write back that is not begun.
func (t *together) leave(w *joined) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, w)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	return i >= 0
}

// next takes what goes into the next transaction; nobody carries any more when there is nothing.
func (t *together) next() []*joined {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(len(t.waiting), maxTogether)
	group := slices.Clone(t.waiting[:n])
	t.waiting = slices.Delete(t.waiting, 0, n)
	t.busy = n > 0
	return group
}

// carry writes what waits until nothing does.
func (d *DB) carry() {
	for group := d.together.next(); len(group) > 0; group = d.together.next() {
		err := d.writeGroup(group)
		for _, w := range group {
			if w.err == nil {
				w.err = err
			}
			close(w.done)
		}
	}
}

// writeGroup commits a group's writes in one transaction.
func (d *DB) writeGroup(group []*joined) error {
	ctx, cancel := context.WithTimeout(context.Background(), togetherTime)
	defer cancel()
	return d.Write(ctx, func(tx *sql.Tx) error {
		for _, w := range group {
			if err := w.within(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// within runs one write of a group. Its own error is in w.err and ends nothing; what it returns ends the group.
func (w *joined) within(tx *sql.Tx) error {
	if _, err := tx.Exec("SAVEPOINT joined"); err != nil {
		return err
	}
	w.err = w.run(tx)
	if w.err != nil {
		if _, err := tx.Exec("ROLLBACK TO SAVEPOINT joined"); err != nil {
			// The engine has undone everything, as SQLite does on a full disk.
			return fmt.Errorf("%w, and all writes that shared its transaction are undone: %w", w.err, err)
		}
	}
	_, err := tx.Exec("RELEASE SAVEPOINT joined")
	return err
}

// run runs fn, whose panic is its caller's.
func (w *joined) run(tx *sql.Tx) (err error) {
	defer func() {
		if w.panicked = recover(); w.panicked != nil {
			err = errors.New("panic")
		}
	}()
	return w.fn(tx)
}
