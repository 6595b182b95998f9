package ca

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"wardlink/audit"
)

// TestHangingUpKeepsNoRefusalOutOfTheLog: the one who is refused must not decide whether that is recorded.
func TestHangingUpKeepsNoRefusalOutOfTheLog(t *testing.T) {
	var got []audit.Event
	c := &CA{cfg: Config{
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Events: func(ctx context.Context, ev audit.Event) error {
			if err := ctx.Err(); err != nil { // as the journal's Append does
				return err
			}
			got = append(got, ev)
			return nil
		},
	}}
	ctx, hangUp := context.WithCancel(context.Background())
	hangUp()
	c.denied(ctx, audit.Event{Target: "ABCD", Reason: "gateway is not active"})
	if len(got) != 1 || got[0].Type != audit.Refused || got[0].Outcome != audit.Denied {
		t.Errorf("journaled: %+v", got)
	}
}

// TestLongPlacesOfOneSource: who takes long places and sends nothing has some of them, and the others find theirs.
func TestLongPlacesOfOneSource(t *testing.T) {
	l := newLongs()
	one, other := source("192.0.2.7:1"), source("192.0.2.8:1")
	for i := range maxLongOfOne + 3 {
		if got := l.mine(one); got != (i < maxLongOfOne) {
			t.Errorf("place %d of one source: %t", i+1, got)
		}
	}
	if !l.mine(other) {
		t.Error("another source has none")
	}
	for range maxLongOfOne {
		l.leave(one)
	}
	l.leave(other)
	if len(l.of) != 0 || !l.mine(one) {
		t.Errorf("%v is kept of those that have left", l.of)
	}
}
