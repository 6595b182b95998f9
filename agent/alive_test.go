package agent

import (
	"context"
	"errors"
	"sync"
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

// TestAPartThatHangsKeepsTheAgentFromBeingAlive: whoever holds one of its locks for ever leaves the watchdog without an answer, and so the
// manager starts the agent again.
func TestAPartThatHangsKeepsTheAgentFromBeingAlive(t *testing.T) {
	b := newBox(t, t.TempDir())
	b.start()
	b.until("it is not alive", func() bool { _, err := b.agent.alive(t.Context()); return err == nil })
	a := b.agent
	for part, lock := range map[string]sync.Locker{
		"identity": &a.mu, "sources": &a.feeds.mu, "intake": &a.intake.mu, "time": &a.time.mu, "devices' clocks": &a.devices.mu,
	} {
		answered := make(chan error, 1)
		lock.Lock()
		go func() {
			_, err := a.alive(t.Context())
			answered <- err
		}()
		select {
		case err := <-answered:
			t.Errorf("%s hangs, and it says that it is alive: %v", part, err)
		case <-time.After(200 * time.Millisecond):
		}
		lock.Unlock()
		select {
		case err := <-answered:
			if err != nil {
				t.Errorf("%s goes on, and it says %v", part, err)
			}
		case <-time.After(patience):
			t.Errorf("%s goes on, and it does not answer", part)
		}
	}
}
