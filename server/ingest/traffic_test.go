package ingest

import (
	"testing"

	"wardlink/audit"
	"wardlink/telemetry"
)

// TestTrafficIsWhatPassed: batches that are durable, by lane, and nothing that is not; how sessions ended; what was refused, and why.
func TestTrafficIsWhatPassed(t *testing.T) {
	b := newBench(t, Limits{}, "gw-1")
	if tr := b.srv.Traffic("gw-1"); tr != (Traffic{}) {
		t.Errorf("before anything: %+v", tr)
	}
	c := b.connect("gw-1")
	p := newPeriod(t)
	c.send(publishPacket(0x32, telemetry.KeyTopic("gw-1"), 1, p.signed))
	for n := range uint64(3) {
		c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneVitals), uint16(2+n), p.frame(telemetry.LaneVitals, n, 100)))
	}
	for n := range uint16(4) {
		c.expectPuback(1 + n)
	}
	tr := b.srv.Traffic("gw-1")
	if tr.Journaled != [telemetry.LaneCount]uint64{telemetry.LaneVitals: 3} || tr.JournaledAt[telemetry.LaneVitals].IsZero() ||
		!tr.JournaledAt[telemetry.LaneAlarm].IsZero() || tr.Opened.IsZero() || !tr.Ended.IsZero() || !tr.Failed.IsZero() {
		t.Errorf("%+v", tr)
	}
	// A frame whose lane is not its topic's is refused, and ends the session.
	c.send(publishPacket(0x32, telemetry.UpTopic("gw-1", telemetry.LaneAlarm), 9, p.frame(telemetry.LaneVitals, 3, 100)))
	eventually(t, "the end is journaled", func() bool { return len(b.journal.events(audit.SessionClosed)) == 1 })
	eventually(t, "the end is known", func() bool { return !b.srv.Traffic("gw-1").Ended.IsZero() })
	if tr = b.srv.Traffic("gw-1"); tr.Reason != endRefused || tr.Why != reasonFrameLane || tr.Refused.IsZero() || tr.Journaled[telemetry.LaneVitals] != 3 {
		t.Errorf("%+v", tr)
	}
	if other := b.srv.Traffic("gw-2"); other != (Traffic{}) {
		t.Errorf("another gateway's: %+v", other)
	}
}
