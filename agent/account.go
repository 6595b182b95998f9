package agent

import (
	"errors"
	"syscall"
	"time"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// laneAccount is what became of one lane's numbers in this epoch.
type laneAccount struct {
	assigned uint64 // numbers below are used up
	sealed   uint64 // batches that are on disk
	sealedAt time.Time
	failed   uint64 // batches that are not
	failedAt time.Time
	void     telemetry.Spans // their numbers
}

// fault is why the last batch could not be kept: a constant text, for reports that leave the gateway.
type fault struct {
	class string
	at    time.Time
}

// spend notes that every number used since before came to nothing, for all that the sources are told. Should such a batch turn up on
// disk all the same it is sent, and counts.
func (in *intake) spend(before [telemetry.LaneCount]uint64, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	now := time.Now()
	in.fault = fault{faultClass(err), now}
	for lane := range in.lanes {
		if telemetry.Lane(lane) != telemetry.LaneSelf {
			in.lanes[lane].spend(before[lane], in.next[lane], now)
		}
	}
}

func (a *laneAccount) spend(from, to uint64, now time.Time) {
	if from >= to {
		return
	}
	a.assigned = max(a.assigned, to)
	a.failed += to - from
	a.failedAt = now
	a.void = telemetry.NewSpans(append(a.void.Runs, telemetry.Span{First: from, Last: to - 1}), a.void.Upper)
}

// kept notes that batches are on disk.
func (in *intake) kept(items []buffer.Item) {
	in.mu.Lock()
	defer in.mu.Unlock()
	now := time.Now()
	for _, it := range items {
		a := &in.lanes[it.ID.Lane]
		a.assigned = max(a.assigned, it.ID.Number+1)
		a.sealed++
		a.sealedAt = now
		in.hour.Add(now, uint64(len(it.Frame)))
	}
	if len(items) > 0 {
		in.use(items[0].Sealing)
	}
}

// use notes that a batch of a sealing period is on disk: the period's record is to be signed, if this is its first. Under mu.
func (in *intake) use(period [16]byte) {
	if period != in.signing {
		in.signing = period
		in.sign()
	}
}

// sign has the sealing records signed that are not.
func (in *intake) sign() {
	select {
	case in.begun <- struct{}{}:
	default:
	}
}

// accounts is a snapshot. Its sets are not changed any more.
func (in *intake) accounts() ([telemetry.LaneCount]laneAccount, fault) {
	in.mu.Lock()
	defer in.mu.Unlock()
	lanes := in.lanes
	for i := range lanes {
		lanes[i].void.Runs = append([]telemetry.Span(nil), lanes[i].void.Runs...)
	}
	return lanes, in.fault
}

// lastHour is how many bytes of frames became durable within the last hour.
func (in *intake) lastHour(now time.Time) uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.hour.Within(now)
}

// faultClass says what keeps batches from being kept.
func faultClass(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "the disk is full"
	case errors.Is(err, buffer.ErrFull):
		return "the buffer is full"
	case errors.Is(err, syscall.EROFS):
		return "the disk is read-only"
	case errors.Is(err, syscall.EIO):
		return "the disk fails"
	case errors.Is(err, buffer.ErrClosed), errors.Is(err, buffer.ErrInvalid):
		return "the buffer does not take it"
	}
	return "a batch could not be sealed or stored"
}
