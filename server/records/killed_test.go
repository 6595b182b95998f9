package records_test

import (
	"context"
	"fmt"
	"testing"

	"wardlink/server/records"
	"wardlink/telemetry"
)

// TestABatchThatKillsTheProcessDies: a batch has no row while it is opened for the first time, and is counted all the same. The process is killed by
// one of three batches as often as it opens it. Each life finds what the one before left in the database at the instant of its death; the
// batch is opened three times, dead then, and the others are stored, by one attempt more than they needed at most.
func TestABatchThatKillsTheProcessDies(t *testing.T) {
	t.Parallel()
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	for i, patient := range []string{"before", "killer", "after"} {
		g.publish("gw-1", g.sealBatch(message(patient, i, "70")))
	}
	opened := 0
	for life := 1; life <= 3; life++ {
		ctx, kill := context.WithCancel(f.ctx)
		var opening, attempts int64
		r := f.open()
		r.SetDecode(func(b []byte) (telemetry.Batch, error) {
			batch, err := telemetry.Decode(b)
			if len(batch.Messages) == 1 && batch.Messages[0].Patient.ID == "killer" {
				opened++
				opening, attempts = f.count("SELECT opening FROM records_totals"), f.count("SELECT COALESCE(MAX(attempts), 0) FROM batches WHERE number = 1")
				kill()
			}
			return batch, err
		})
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
		kill()
		if opened != life {
			t.Fatalf("life %d: opened %d times", life, opened)
		}
		if life == 1 && opening != int64(f.journal.Len()) || life > 1 && attempts != int64(life) {
			t.Fatalf("life %d: it was opened while the database said that entries up to %d may be open, and counted %d attempts", life, opening, attempts)
		}
		// Nobody puts back what a process that was killed had counted.
		f.exec(fmt.Sprintf("UPDATE records_totals SET opening = %d", opening), fmt.Sprintf("UPDATE batches SET attempts = %d WHERE number = 1", attempts))
	}
	f.until("dead", func(s records.Stats) bool { return s.Dead == 1 && s.Batches == 2 })
	if n := f.count("SELECT MAX(attempts) FROM batches WHERE state = 2"); n > 2 {
		t.Errorf("a batch beside it was tried %d times", n)
	}
	f.wantBalance("at the end", "gw-1", "3 = 3 (2 0 1) + 0 + 0 + 0 + 0, 0", false)
}

// TestAStopIsNoAttempt: what a stop interrupts is neither tried singly afterwards nor counted.
func TestAStopIsNoAttempt(t *testing.T) {
	t.Parallel()
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	ctx, stop := context.WithCancel(f.ctx)
	r := f.open()
	r.SetDecode(func(b []byte) (telemetry.Batch, error) { stop(); return telemetry.Decode(b) })
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if f.count("SELECT opening FROM records_totals") > f.count("SELECT seq FROM records_totals") || f.count("SELECT COUNT(*) FROM batches") != 0 {
		t.Error("a stop left something open")
	}
	f.until("stored", stored(1))
	if n := f.count("SELECT MAX(attempts) FROM batches"); n != 1 {
		t.Errorf("%d attempts", n)
	}
}

// A batch that the process which died was opening, and that came again meanwhile, is stored once and counted once.
func TestABatchSentAgainAfterACrashIsStoredOnce(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	frame := g.sealBatch(message("p1", 1, "70"))
	g.publish("gw-1", frame)
	f.exec(fmt.Sprintf("UPDATE records_totals SET opening = %d", f.journal.Len()))
	g.publish("gw-1", frame)
	f.until("stored", func(s records.Stats) bool { return s.Batches > 0 && s.Pending == 0 })
	if n := f.count("SELECT batches FROM records_totals"); n != 1 {
		t.Errorf("%d batches are counted, expected 1", n)
	}
}

// A journal that went back gives numbers again that the database has passed: what kills the process there is counted all the same.
func TestABatchThatKillsIsCountedBelowTheMark(t *testing.T) {
	f := setup(t)
	f.exec("UPDATE records_totals SET seq = 1000, opening = 1000")
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	g.publish("gw-1", g.sealBatch(message("p1", 2, "71")))
	r := f.open()
	most := int64(0)
	r.SetDecode(func(b []byte) (telemetry.Batch, error) {
		most = max(most, f.count("SELECT COALESCE(MAX(attempts), 0) FROM batches"))
		return telemetry.Decode(b)
	})
	f.run("opened", r, func() bool { return f.count("SELECT COUNT(*) FROM batches WHERE state = 2") == 2 })
	if most < 2 {
		t.Errorf("batches were opened with %d attempts counted", most)
	}
}
