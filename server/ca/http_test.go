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

// TestPlacesOfOneSource: who takes places and sends nothing has some of them, and the others find theirs.
func TestPlacesOfOneSource(t *testing.T) {
	one, other := source("192.0.2.7:1"), source("192.0.2.8:1")
	for _, row := range []struct{ n, each, most, left int }{{maxLong, maxLongOfOne, maxLongOfOne, maxLongOfOne}, {64, 64, 48, 12}, {1, 1, 1, 0}} {
		p := newPlaces(row.n, row.each)
		for i := range row.most + 3 {
			if got := p.take(one); got != (i < row.most) {
				t.Errorf("%+v: place %d of one source: %t", row, i+1, got)
			}
		}
		others := 0
		for p.take(other) {
			others++
		}
		if others != row.left {
			t.Errorf("%+v: %d for another source", row, others)
		}
		for range row.most {
			p.leave(one)
		}
		for range others {
			p.leave(other)
		}
		if len(p.of) != 0 || p.free != row.n {
			t.Errorf("%+v: %v is kept of those that have left, %d are free", row, p.of, p.free)
		}
	}
}
