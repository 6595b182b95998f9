package e2e

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// timelessOf delivers a reading of which the device says no time.
func (b *box) timelessOf(control, value string) (before, after time.Time) {
	b.t.Helper()
	before = time.Now()
	answer := b.exchange("MSH|^~\\&|MON|ICU|WL|WL|||ORU^R01^ORU_R01|" + control + "|T|2.6|||AL|NE\r" +
		"PID|||CANARY7^^^HOSP&1.2.3&ISO\rOBR|1|||X\r" +
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|" + value + "|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r")
	if !strings.Contains(answer, "MSA|CA|"+control) {
		b.t.Fatalf("acknowledgement %q", answer)
	}
	return before, time.Now()
}

// repairedBetween waits until the time of arrival of a value's reading is repaired, and holds it against when it was sent.
func (w *ward) repairedBetween(value string, before, after time.Time) (at time.Time) {
	w.Helper()
	w.await("the repaired time of "+value, func(context.Context) (bool, error) {
		arrived := w.find(value).arrived()
		if arrived == "" {
			return false, nil
		}
		var err error
		at, err = time.Parse(time.RFC3339, arrived)
		return true, err
	})
	// Within what the answer to the question for the time took to travel.
	if at.Before(before.Add(-2*time.Second)) || at.After(after.Add(2*time.Second)) {
		w.Errorf("%s is repaired to %v; expected %v to %v", value, at, before, after)
	}
	return at
}

// TestClocksThatAreWrong: a gateway that boots ten years ahead, and one whose clock is set back by a day in the middle of an outage. Both
// deliver everything, in its order, and every time is repaired.
func TestClocksThatAreWrong(t *testing.T) {
	t.Parallel()
	h := initHospital(t)
	w := wardOf(t, h)
	ahead, back := w.box, h.newBox("back", h.kit())
	for _, b := range []*box{ahead, back} {
		b.reportsOften()
	}

	// Ten years ahead, from the first boot on.
	ahead.boot(func() time.Time { return time.Now().AddDate(10, 0, 0) })
	before, after := ahead.timelessOf("A1", "101")
	w.register()
	ahead.awaitIdle()
	c := ahead.clock()
	if !c.Trusted || c.Offset == nil || time.Duration(-*c.Offset)*time.Millisecond < 3650*24*time.Hour || time.Until(c.Now).Abs() > 5*time.Second || time.Until(c.Floor) > time.Minute {
		t.Errorf("%+v; expected the hospital's time, and a floor that the wall clock has not raised", c)
	}
	w.awaitObservations(1)
	w.repairedBetween("101", before, after)

	// Set back by a day while the network is gone.
	var shift atomic.Int64
	back.boot(func() time.Time { return time.Now().Add(time.Duration(shift.Load())) })
	back.enter("icu-8")
	back.awaitIdle()
	h.proc.Stop()
	firstBefore, firstAfter := back.timelessOf("B1", "110")
	back.await("a look at the clock", func(context.Context) (bool, error) { return back.clock().Boot != "", nil })
	shift.Store(int64(-24 * time.Hour))
	back.await("that the step is noticed", func(context.Context) (bool, error) { return back.clock().Steps == 1, nil })
	if c := back.clock(); c.LastStep > -86_399_000 || c.LastStep < -86_401_000 || !c.Trusted || time.Until(c.Now).Abs() > 5*time.Second {
		t.Errorf("%+v; expected one step by a day, and a time that has not moved", c)
	}
	secondBefore, secondAfter := back.timelessOf("B2", "111")
	h.run()
	back.awaitIdle()
	w.awaitObservations(3)
	first, second := w.repairedBetween("110", firstBefore, firstAfter), w.repairedBetween("111", secondBefore, secondAfter)
	if !first.Before(second) {
		t.Errorf("arrived at %v and then at %v", first, second)
	}
	if out := string(back.must("wardlink-agent", "clock", "--config", back.config())); !strings.Contains(out, "the wall clock was set 1 times since the start, the last time by -24h0m0s") {
		t.Errorf("the step is not shown:\n%s", out)
	}
	for _, gateway := range []string{"icu-7", "icu-8"} {
		h.balanced(t, gateway)
	}
	var out string
	h.await("the event of the step", func(context.Context) (bool, error) {
		out = string(h.must("wardlink", "audit", "list", "--json", "--dir", h.server(), "--type", "gateway.clock_step"))
		return strings.Contains(out, "gateway.clock_step"), nil
	})
	if strings.Count(out, "gateway.clock_step") != 1 || !strings.Contains(out, `"-86`) || !strings.Contains(out, "gateway/icu-8") {
		t.Errorf("events of the step:\n%s", out)
	}
}
