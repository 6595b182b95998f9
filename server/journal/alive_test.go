package journal

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestAliveGoesTheWayOfACommit: idle, ill and busy journals live; one whose results nobody takes does not.
func TestAliveGoesTheWayOfACommit(t *testing.T) {
	_, j := fresh(t)
	if err := j.Alive(t.Context()); err != nil {
		t.Fatalf("idle: %v", err)
	}
	hold := make(chan struct{})
	if err := j.Submit(entryOf(j, "held", 10), func(uint64, error) { <-hold }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := j.Alive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with a done that does not end: %v", err)
	}
	close(hold)
	if err := j.Alive(t.Context()); err != nil {
		t.Fatalf("after it ended: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Alive(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("closed: %v", err)
	}
}
