package agent

import (
	"crypto/sha256"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// TestAnIngestThatAsksWithoutEndGetsSoMuchADay: the document is not signed, and what answers it is bounded in bytes and in walks.
func TestAnIngestThatAsksWithoutEndGetsSoMuchADay(t *testing.T) {
	bc := buffer.Config{Dir: filepath.Join(t.TempDir(), "buffer"), Lanes: laneNames(), Order: laneOrder(), Cap: 64 << 20, Verify: func([]byte) error { return nil }}
	if err := buffer.Create(bc); err != nil {
		t.Fatal(err)
	}
	buf, err := buffer.Open(bc)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Close()
	const batches, size = 20, 1000
	for n := range uint64(batches) {
		frame := make([]byte, size)
		id := buffer.ID{Epoch: [16]byte{1}, Lane: uint8(telemetry.LaneVitals), Number: n}
		if err := buf.Append([]buffer.Item{{ID: id, Frame: frame, Sealing: [16]byte{2}, Record: []byte("record"), Seen: []buffer.Seen{{Digest: sha256.Sum256(frame), Mask: 2}}}}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := buf.Take(batches)
	if err != nil || len(all) != batches {
		t.Fatalf("%d, %v", len(all), err)
	}
	for _, b := range all {
		buf.Ack(b.ID)
	}
	now := time.Unix(1_800_000_000, 0)
	r := &resender{buf: buf, log: slog.New(slog.DiscardHandler), allowance: 45 * size, now: func() time.Time { return now }}
	body, err := telemetry.EncodeResend(telemetry.Resend{Held: []telemetry.Held{{Epoch: [16]byte{1}, Lane: telemetry.LaneVitals, Runs: []telemetry.Span{{First: 0, Last: 4}}}}})
	if err != nil {
		t.Fatal(err)
	}
	drain := func() (n int) {
		t.Helper()
		for {
			got, err := r.again(1)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 {
				return n
			}
			n += len(got)
		}
	}
	ask := func() {
		t.Helper()
		if err := r.ask(body); err != nil {
			t.Fatal(err)
		}
	}
	if n := drain(); n != 0 {
		t.Fatalf("%d batches that nobody asked for", n)
	}
	ask()
	if n := drain(); n != 15 {
		t.Fatalf("%d batches; want the 15 that are not held", n)
	}
	ask()
	if n := drain(); n != 0 {
		t.Fatalf("%d batches at once after the last", n)
	}
	total := 15
	for range 50 {
		now = now.Add(resendPause)
		ask()
		total += drain()
	}
	if total != 45 || !r.state().Limited {
		t.Fatalf("%d batches in a day, %+v; want 45, and that it is said", total, r.state())
	}
	now = now.Add(24 * time.Hour)
	ask()
	if n := drain(); n != 15 || r.state().Limited {
		t.Fatalf("%d batches on the next day, %+v", n, r.state())
	}
	if err := r.ask([]byte{1}); err == nil {
		t.Fatal("a document that cannot be read is taken")
	}
}
