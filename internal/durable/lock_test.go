package durable_test

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"wardlink/internal/durable"
)

// TestLock: a lock that is held is refused, and one that is given back a moment later is not: a child between fork and execve holds it no longer.
func TestLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	held, err := durable.Lock(path, syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Lock(path, syscall.LOCK_SH); !errors.Is(err, durable.ErrLocked) {
		t.Fatalf("a lock that is held: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = held.Close() })
	again, err := durable.Lock(path, syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}
