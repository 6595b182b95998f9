package records_test

import (
	"slices"
	"testing"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// reportClock publishes the gateway's account of its clock, at mono of the boot that sealBatch names.
func (g *gateway) reportClock(mono, wall int64, c telemetry.ClockReport) {
	g.f.t.Helper()
	plain, err := telemetry.Encode(telemetry.Batch{Boot: [16]byte{1}, Report: &telemetry.Report{
		Agent: "test", At: telemetry.Stamp{Wall: wall, Mono: mono}, Clock: c,
	}})
	if err != nil {
		g.f.t.Fatal(err)
	}
	frame, err := g.period.Seal(seal.Header{Lane: telemetry.LaneSelf, Number: g.next, Wall: wall, Mono: mono}, plain)
	if err != nil {
		g.f.t.Fatal(err)
	}
	g.next++
	g.publish(g.name, frame)
}

// unread is a message of a device that says no time, as a gateway in 1970 has it.
func unread(n int, mono int64, value string) telemetry.Message {
	m := message("p1", n, value)
	m.Received = telemetry.Stamp{Wall: mono + 60_000, Mono: mono} // a wall clock that began at one minute past 1970 began
	m.Observations[0].Time, m.Observations[0].At, m.Observations[0].Marks = "", 0, telemetry.MarkTimeUnread
	return m
}

func (f *fixture) one(value string) records.Observation {
	f.t.Helper()
	s := f.store()
	page, err := s.Search(f.ctx, records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", "p1")}, Limit: 100})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, o := range page.Observations {
		if o.Value == value {
			again, err := s.Observation(f.ctx, o.ID)
			if err != nil || (again.Arrived == nil) != (o.Arrived == nil) || again.At != o.At {
				f.t.Errorf("read as %+v, %v; found as %+v", again, err, o)
			}
			return o
		}
	}
	f.t.Fatalf("no reading of %s among %+v", value, page.Observations)
	return records.Observation{}
}

// TestTimesOfABootAreRepaired: a gateway that booted in 1970 had a message before it knew the time, and one after. Once it reports the
// offset both stand where they belong, before a restart of the server and after, what the gateway's clock showed stays, and a reading
// with a time of its own is left alone.
func TestTimesOfABootAreRepaired(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	now := f.clock.Now().UnixMilli()
	g.publish("gw-1", g.sealBatch(unread(1, 10_000, "71"), message("p1", 2, "72")))
	// The report that knows nothing, and one that claims a time that the hospital has not reached, change nothing.
	g.reportClock(20_000, 80_000, telemetry.ClockReport{Known: true})
	g.reportClock(20_000, 80_000, telemetry.ClockReport{Known: true, Trusted: true, Offset: now + 3_600_000})
	f.until("first batch", func(s records.Stats) bool { return s.Batches == 3 })
	if o := f.one("71"); o.At != 70_000 || o.Arrived != nil {
		t.Errorf("before anything is known: at %d, arrived %+v; expected the gateway's own time", o.At, o.Arrived)
	}
	// At 30 s after the boot the hospital's clock showed now.
	g.reportClock(30_000, 90_000, telemetry.ClockReport{Known: true, Trusted: true, Offset: now - 90_000, Uncertainty: 40})
	g.publish("gw-1", g.sealBatch(unread(3, 50_000, "73")))
	f.until("repaired", func(s records.Stats) bool {
		var waiting int
		if err := f.db.QueryRow(f.ctx, "SELECT COUNT(*) FROM times_waiting").Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		return s.Batches == 5 && waiting == 0
	})
	for value, want := range map[string]int64{"71": now - 20_000, "73": now + 20_000} {
		o := f.one(value)
		if o.At != want || o.Arrived == nil || o.Arrived.At != want || o.Arrived.Uncertainty != 42 { // 40, and 20 s of drift
			t.Errorf("%s: at %d, arrived %+v; expected %d", value, o.At, o.Arrived, want)
		}
		if o.Received.Wall != o.Received.Mono+60_000 {
			t.Errorf("%s: the gateway's own time became %+v", value, o.Received)
		}
	}
	if o := f.one("72"); o.At != start+2000 || o.Arrived != nil {
		t.Errorf("a reading with a time of its own: at %d, arrived %+v", o.At, o.Arrived)
	}
	if got := f.values("p1", 1); len(got) != 3 || got[0] != "73" || got[1] != "71" {
		t.Errorf("found in the order %q", got)
	}
	// Two days on: the boot clock was a second slow, which a later report says. What is nearer to it goes by it.
	day := int64(24 * 3600 * 1000)
	f.clock.add(49 * 3600e9)
	g.reportClock(2*day+30_000, 2*day+90_000, telemetry.ClockReport{Known: true, Trusted: true, Offset: now + 1000 - 90_000, Uncertainty: 40})
	g.publish("gw-1", g.sealBatch(unread(4, 2*day+30_000, "74")))
	f.until("later", func(s records.Stats) bool { return s.Batches == 7 })
	if o := f.one("74"); o.At != now+2*day+1000 {
		t.Errorf("at %d; expected %d", o.At, now+2*day+1000)
	}
	if o := f.one("71"); o.Arrived == nil || o.Arrived.At != now-20_000 {
		t.Errorf("a later report moved an earlier time: %+v", o.Arrived)
	}
	if err := f.db.Check(f.ctx); err != nil {
		t.Error(err)
	}
}

// TestAStepOfAGatewaysClockIsAnEvent: one for each time that its wall clock was set within a boot, and what drift makes is none. A gateway
// that lies cannot fill the log.
func TestAStepOfAGatewaysClockIsAnEvent(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	wall := f.clock.Now().UnixMilli()
	for _, r := range [][2]int64{
		{10_000, 0}, {70_000, 60_000}, {3_670_000, 3_658_900}, // an hour at 300 ppm
		{3_730_000, 3_718_900 - 86_400_000}, {3_790_000, 3_778_900 - 86_400_000}, {3_800_000, 3_788_900}, {3_800_000 + 60_000, 3_848_900 + 2_000},
	} {
		g.reportClock(r[0], wall+r[1], telemetry.ClockReport{Known: true})
	}
	steps := func() (out []string) {
		f.settled()
		entries, err := f.journal.Read(1, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Kind != journal.KindEvent {
				continue
			}
			ev, err := audit.DecodeEvent(e.Head)
			if err != nil {
				t.Fatal(err)
			}
			if ev.Type == audit.GatewayClockStep {
				out = append(out, ev.Target+" "+ev.Detail["by_ms"])
			}
		}
		return out
	}
	want := []string{"gw-1 -86400000", "gw-1 86400000", "gw-1 2000"}
	if got := steps(); !slices.Equal(got, want) {
		t.Errorf("%q; expected %q", got, want)
	}
	for i := range int64(40) {
		g.reportClock(4_000_000+i, wall+i%2*3_600_000, telemetry.ClockReport{Known: true})
	}
	if got := steps(); len(got) != len(want)+24 { // the server was started again, and counts anew
		t.Errorf("%d further events in a day; expected 24", len(got)-len(want))
	}
}
