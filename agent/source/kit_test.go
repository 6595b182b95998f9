package source

import (
	"context"
	"testing"
	"time"
)

// patience bounds every wait of these tests; a wait that is meant to end in nothing takes silence.
const (
	patience = 10 * time.Second
	silence  = 100 * time.Millisecond
)

// serve runs a source. Its end is part of every test: Run must return nil, in time, and leave no connection.
func serve(t *testing.T, s Source) context.CancelFunc {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
		if n := s.Stats().Connections; n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	return cancel
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatal(what)
		}
		wait(context.Background(), time.Millisecond)
	}
}

func take(context.Context, Delivery) error { return nil }
