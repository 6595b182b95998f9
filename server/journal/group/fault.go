package group

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// tellInterval is how often a fault that lasts is told: a fleet that knocks at a full disk must not fill the log of the process, too.
const tellInterval = 30 * time.Second

// Fault remembers whether the last commit failed. The zero value is healthy.
type Fault struct {
	mu       sync.Mutex
	broken   error
	failures uint64
	told     time.Time
}

// Failed notes a failure. tell: it is worth a line in the log.
func (f *Fault) Failed(err error) (tell bool, failures uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.failures++
	tell = f.broken == nil || f.broken.Error() != err.Error() && now.Sub(f.told) >= time.Second || now.Sub(f.told) >= tellInterval
	if tell {
		f.told = now
	}
	f.broken = err
	return tell, f.failures
}

// Mended ends a fault; was: there was one.
func (f *Fault) Mended() (was bool, failures uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was = f.broken != nil
	f.broken = nil
	return was, f.failures
}

// Err is the last commit's error; nil when it was good.
func (f *Fault) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

// Failures since the start.
func (f *Fault) Failures() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failures
}

// Mark is a number that grows, and that can be waited for.
type Mark struct {
	mu     sync.Mutex
	at     uint64
	moved  chan struct{} // closed and replaced when at grows or the mark ends
	closed error
}

// NewMark begins at a number.
func NewMark(at uint64) *Mark { return &Mark{at: at, moved: make(chan struct{})} }

// At is the number now.
func (m *Mark) At() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at
}

// Reach moves the mark forward.
func (m *Mark) Reach(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at > m.at {
		m.at = at
		m.wake()
	}
}

// Back sets the mark back: what it counted is gone.
func (m *Mark) Back(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.at = min(m.at, at)
}

func (m *Mark) wake() {
	close(m.moved)
	m.moved = make(chan struct{})
}

// Close ends all waiting with this error.
func (m *Mark) Close(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = err
	m.wake()
}

// Wait returns once the mark is beyond after; or with the error of ctx, or that of Close.
func (m *Mark) Wait(ctx context.Context, after uint64) error {
	for {
		m.mu.Lock()
		at, moved, closed := m.at, m.moved, m.closed
		m.mu.Unlock()
		if at > after {
			return nil
		}
		if closed != nil {
			return fmt.Errorf("journal: %w", closed)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
