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
