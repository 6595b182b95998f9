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

// SharedTx is a transaction that writes share, under the time that it has.
type SharedTx struct {
	ctx context.Context
	tx  *sql.Tx
}

// Exec is (*sql.Tx).Exec, for as long as the transaction has time.
func (t *SharedTx) Exec(query string, args ...any) (sql.Result, error) {
	return t.tx.ExecContext(t.ctx, query, args...)
}

// Query is (*sql.Tx).Query, in the same way.
func (t *SharedTx) Query(query string, args ...any) (*sql.Rows, error) {
	return t.tx.QueryContext(t.ctx, query, args...)
}

// QueryRow is (*sql.Tx).QueryRow, in the same way.
func (t *SharedTx) QueryRow(query string, args ...any) *sql.Row {
	return t.tx.QueryRowContext(t.ctx, query, args...)
}

// joined is one write. Its err is its caller's from the close of done on.
type joined struct {
	fn       func(tx *SharedTx) error
	since    time.Time
	err      error
	panicked any
	done     chan struct{}
}

// WriteTogether is Write for short writes that many ask for at once: those that arrive while a transaction is on its way share the next, so that they are
// durable by one flush of the disk. Each is whole or not at all by itself: what fn returns undoes what it wrote, and nothing of the others. nil means that it is
// durable, as with Write; when the commit fails, all that share it hear of it.
//
// A write that has waited for more than 5 s when its turn comes is not made and told so, and a transaction has togetherTime. fn's statements have the transaction's context and none of the
// caller's: a statement of SQLite's that is cut off undoes the whole transaction. So ctx ends the waiting for the turn alone. A service that has a place
// (Singleton) writes by itself.
func (d *DB) WriteTogether(ctx context.Context, fn func(tx *SharedTx) error) error {
	if _, ok := ctx.Value(fence{d}).(Place); ok {
		return d.Write(ctx, func(tx *sql.Tx) error { return fn(&SharedTx{ctx, tx}) })
	}
	w := &joined{fn: fn, since: time.Now(), done: make(chan struct{})}
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

// next takes what goes into the next transaction, and what has waited for too long; nobody carries any more when there is neither.
func (t *together) next() (group, late []*joined) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.waiting) > 0 && len(group) < maxTogether {
		if w := t.waiting[0]; time.Since(w.since) > turnTime {
			late = append(late, w)
		} else {
			group = append(group, w)
		}
		t.waiting = slices.Delete(t.waiting, 0, 1)
	}
	t.busy = len(group)+len(late) > 0
	return group, late
}

// carry writes what waits until nothing does.
func (d *DB) carry() {
	for {
		group, late := d.together.next()
		if len(group)+len(late) == 0 {
			return
		}
		for _, w := range late {
			w.err = busy(d.path, errTurn)
			close(w.done)
		}
		if len(group) == 0 {
			continue
		}
		err := d.writeGroup(group)
		for _, w := range group {
			if w.err == nil {
				w.err = err
			}
			w.err = explain(d.path, w.err)
			close(w.done)
		}
	}
}

// writeGroup commits a group's writes in one transaction.
func (d *DB) writeGroup(group []*joined) error {
	ctx, cancel := context.WithTimeout(context.Background(), togetherTime)
	defer cancel()
	return d.Write(ctx, func(tx *sql.Tx) error {
		shared := &SharedTx{ctx, tx}
		if len(group) == 1 {
			group[0].run(shared)
			return group[0].err
		}
		for _, w := range group {
			if err := w.within(shared); err != nil {
				return err
			}
		}
		return nil
	})
}

// within runs one write of several. Its own error is in w.err and ends nothing; what it returns ends the group, and says nothing of w: the others
// hear it.
func (w *joined) within(tx *SharedTx) error {
	if _, err := tx.Exec("SAVEPOINT joined"); err != nil {
		return err
	}
	if w.run(tx); w.err != nil {
		if _, err := tx.Exec("ROLLBACK TO SAVEPOINT joined"); err != nil {
			// The engine has undone everything, as SQLite does on a full disk, or the time is over.
			return fmt.Errorf("all writes that shared a transaction are undone: %w", err)
		}
	}
	_, err := tx.Exec("RELEASE SAVEPOINT joined")
	return err
}

// run runs fn, whose panic is its caller's.
func (w *joined) run(tx *SharedTx) {
	defer func() {
		if w.panicked = recover(); w.panicked != nil {
			w.err = errors.New("panic")
		}
	}()
	w.err = w.fn(tx)
}
