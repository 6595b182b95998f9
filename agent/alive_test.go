package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"wardlink/telemetry"
)

// TestAnswersOnlyWhileCommitsEnd: the watchdog's question goes to the goroutine that commits; one that is stuck in the buffer is
// silent, however well the rest of the process is.
func TestAnswersOnlyWhileCommitsEnd(t *testing.T) {
	s := newStation(t, t.TempDir(), newKey(t))
	if err := s.in.answers(t.Context()); err != nil {
		t.Fatalf("idle: %v", err)
	}
	stuck := make(chan error) // nobody takes the outcome: the commit does not end
	msg := telemetry.Message{}
	s.in.queue <- &waiting{msg: msg, lane: telemetry.LaneVitals, size: 1, bare: true, done: stuck}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := errors.Join(s.in.answers(ctx), s.in.answers(ctx)) // the first may come before the message was taken
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("stuck: %v", err)
	}
	<-stuck
	if err := s.in.answers(t.Context()); err != nil {
		t.Fatalf("free again: %v", err)
	}
}
