package translog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/audit"
)

const (
	watchInterval = 50 * time.Millisecond // how often an awaited checkpoint is looked for
	retryFirst    = 100 * time.Millisecond
	retryMost     = 5 * time.Second
)

// Stats is the log's state for metrics.
type Stats struct {
	Size       uint64 // leaves in the tree
	Published  uint64 // leaves under the signed checkpoint
	JournalSeq uint64 // last journal entry that is in the tree
	Signed     uint64 // last journal entry that a signed checkpoint covers
	// Lag is how long the oldest act of the latest pass took, or has been waiting so far, from its own time to a signed checkpoint.
	// Entries that no pass has read yet are not known here; they wait Interval longer at most.
	Lag time.Duration
	// Failing is the error of the last pass, nil when it was good. What it did not log waits in the journal.
	Failing error
}

// Stats reports the state now.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state
	for _, p := range l.pending {
		if !p.oldest.IsZero() {
			s.Lag = max(s.Lag, l.cfg.Now().Sub(p.oldest))
			break
		}
	}
	return s
}

// WaitFor returns nil once a signed checkpoint covers the journal's entries up to seq, or an error when ctx or the writer ends first.
func (l *Log) WaitFor(ctx context.Context, seq uint64) error {
	for {
		l.mu.Lock()
		signed, changed := l.state.Signed, l.changed
		l.mu.Unlock()
		if signed >= seq {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for journal entry %d in the log, now at %d: %w", seq, signed, ctx.Err())
		case <-l.ended:
			return fmt.Errorf("wait for journal entry %d in the log: %w", seq, ErrClosed)
		}
	}
}

// Run drains the journal until ctx ends; then it drains what the journal holds, waits for the checkpoint over it, and gives the log
// back, for at most Config.Drain. It returns nil after a complete drain, ErrUnsound as soon as going on would spoil the log; other
// failures of a pass are logged and repeated. Run may be called once.
func (l *Log) Run(ctx context.Context) error {
	defer l.Close()
	// work outlives ctx by Drain: a pass is never broken off in its middle by a shutdown.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	context.AfterFunc(ctx, func() {
		if sleep(work, l.cfg.Drain) {
			cancel()
		}
	})
	watching, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	group.Go(func() error { return l.watch(watching) })
	group.Go(func() error { return l.packing(watching) })
	defer func() {
		stopWatch()
		_ = group.Wait() // watch ends with its context and has no error of its own
	}()
	if err := l.loop(ctx, work); err != nil {
		return err
	}
	return l.finish(work)
}

// loop passes about twice a second while there is something to log. It returns nil when ctx has ended.
func (l *Log) loop(ctx, work context.Context) error {
	retry := retryFirst
	for {
		// A pass that failed is repeated whether or not there is more: the journal that it waits for may have come back shorter.
		if !l.stale {
			if err := l.cfg.Journal.Wait(ctx, l.at.Seq); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("log: wait for the journal: %w", err)
			}
		}
		began := time.Now()
		more, err := l.turn(work)
		pause := l.cfg.Interval - time.Since(began)
		l.mu.Lock()
		l.state.Failing = err
		l.mu.Unlock()
		switch {
		case errors.Is(err, ErrUnsound):
			return err
		case err != nil:
			l.cfg.Log.Warn("log pass failed; trying again", "error", err, "after", retry)
			pause, retry = retry, min(2*retry, retryMost)
		case more:
			pause, retry = 0, retryFirst
		default:
			retry = retryFirst
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// finish logs what the journal holds and waits for the last checkpoint.
func (l *Log) finish(work context.Context) error {
	for {
		before := l.at.Seq
		_, err := l.turn(work)
		if err != nil {
			return fmt.Errorf("drain the journal to the log: %w; the next start goes on at entry %d", err, l.at.Seq+1)
		}
		if l.at.Seq == before {
			break
		}
	}
	if err := l.WaitFor(work, l.at.Seq); err != nil {
		return fmt.Errorf("last checkpoint: %w", err)
	}
	if err := l.shutdown(work); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// announce tells the watcher that a pass is in the tree.
func (l *Log) announce(p pass) {
	l.mu.Lock()
	l.state.Size, l.state.JournalSeq = p.size, p.seq
	l.pending = append(l.pending, pass{seq: p.seq, size: p.size, oldest: p.oldest})
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// watch looks for the checkpoint that covers what is pending.
func (l *Log) watch(ctx context.Context) error {
	for {
		if l.see() {
			if !sleep(ctx, watchInterval) {
				return nil
			}
			continue
		}
		select {
		case <-l.kick:
		case <-ctx.Done():
			return nil
		}
	}
}

// see reads the checkpoint and reports whether passes are still waiting for theirs.
func (l *Log) see() (waiting bool) {
	signed, err := os.ReadFile(filepath.Join(l.cfg.Dir, audit.CheckpointFile))
	if err != nil {
		l.cfg.Log.Error("checkpoint cannot be read", "error", err)
		return true
	}
	cp, err := audit.UnverifiedCheckpoint(signed)
	if err != nil {
		l.cfg.Log.Error("checkpoint cannot be read", "error", err)
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Published = cp.Size
	n := 0
	for ; n < len(l.pending) && l.pending[n].size <= cp.Size; n++ {
		p := l.pending[n]
		l.state.Signed = p.seq
		l.state.Lag = 0
		if !p.oldest.IsZero() {
			l.state.Lag = l.cfg.Now().Sub(p.oldest)
		}
	}
	if n > 0 {
		l.pending = append(l.pending[:0], l.pending[n:]...)
		close(l.changed)
		l.changed = make(chan struct{})
	}
	return len(l.pending) > 0
}

// sleep waits d and reports whether ctx is still good.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
