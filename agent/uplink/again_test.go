package uplink

import (
	"slices"
	"sync"
	"testing"

	"wardlink/audit"
	"wardlink/buffer"
	"wardlink/telemetry"
)

// lostAndFound gives out what the hospital asks for again, from its beginning at each question.
type lostAndFound struct {
	mu      sync.Mutex
	batches []buffer.Batch
	at      int
}

func (l *lostAndFound) next(max int) ([]buffer.Batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.batches[l.at:min(l.at+max, len(l.batches))])
	l.at += len(out)
	return out, nil
}

func (l *lostAndFound) ask(batches ...buffer.Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches, l.at = batches, 0
}

// TestWhatTheHospitalLostIsBroughtAgain: strictBuffer fails the test if it hears of a batch that it did not give out.
func TestWhatTheHospitalLostIsBroughtAgain(t *testing.T) {
	h := newHospital(t)
	h.start()
	a := newAgent(t, h)
	var lost lostAndFound
	a.cfg.Again = lost.next
	p := a.ward.period()
	former := a.ward.batches(p, telemetry.LaneVitals, 200, 300)
	a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 50, 300)...)
	lost.ask(former...)
	a.start()
	eventually(t, "both are there", func() bool { return a.buf.count(acked) == 50 && a.Status().Again == 200 })
	for _, b := range former {
		if n := h.journal.commits(b.ID); n != 1 {
			t.Fatalf("%v was committed %d times", b.ID, n)
		}
	}
	if s := a.Status(); s.Published != 50 || s.Acknowledged != 50 || s.Parked != 0 || s.Connects != 1 {
		t.Errorf("what was brought again counts as new: %+v", s)
	}

	// While a commit hangs no more than a few are in flight, and an alarm is right behind them.
	h.journal.set(func() { h.journal.held = true })
	lost.ask(a.ward.batches(p, telemetry.LaneVitals, 100, 300)...)
	a.buf.signal()
	eventually(t, "some are under way", func() bool { return h.journal.publishes() == bringAtOnce })
	a.buf.add(a.ward.batches(p, telemetry.LaneAlarm, 1, 300)...)
	eventually(t, "the alarm is under way behind them", func() bool { return h.journal.publishes() == bringAtOnce+1 })
	// A kill takes them away; nothing of theirs is given back to the buffer.
	h.kill()
	h.start()
	lost.ask()
	eventually(t, "the alarm has come", func() bool { return a.buf.count(acked) == 51 })
}

// TestWhatIsRefusedAgainIsNotBroughtAThirdTime: each refusal ends a connection.
func TestWhatIsRefusedAgainIsNotBroughtAThirdTime(t *testing.T) {
	h := newHospital(t)
	h.lanes = 1 << telemetry.LaneVitals
	h.start()
	a := newAgent(t, h)
	p := a.ward.period()
	var lost lostAndFound
	a.cfg.Again = lost.next
	batches := a.ward.batches(p, telemetry.LaneWaveform, 1, 50)
	batches = append(batches, a.ward.batches(p, telemetry.LaneVitals, 20, 50)...)
	lost.ask(batches...)
	a.start()
	for round := range 3 {
		eventually(t, "a connection", func() bool { return a.Status().Connected })
		lost.ask(batches...)
		a.buf.add(a.ward.batches(p, telemetry.LaneVitals, 1, 50)...)
		eventually(t, "what is new arrives", func() bool { return a.buf.count(acked) == round+1 })
	}
	eventually(t, "the rest has come", func() bool { return h.journal.commits(batches[20].ID) > 0 })
	if n := len(h.journal.events(audit.Refused)); n != 1 {
		t.Errorf("%d refusals; want one", n)
	}
	if s := a.Status(); s.Parked != 0 {
		t.Errorf("%d are parked, which the buffer knows nothing of", s.Parked)
	}
}
