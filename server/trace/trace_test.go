package trace

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/telemetry"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// well is a source all of whose stations let data pass: a message a second, the last report 20 s ago. The gateway's clock is an hour slow.
func well() Facts {
	const slow = -time.Hour
	gw := func(ago time.Duration) int64 { return now.Add(slow - ago).UnixMilli() }
	sec := time.Second
	return Facts{
		Now: now, Started: now.Add(-10 * time.Hour), Gateway: "gw-1", State: "active", Source: "bed-1",
		ReportAt: now.Add(-20 * sec),
		Report: &telemetry.Report{
			At: telemetry.Stamp{Wall: gw(20 * sec)}, Started: gw(9 * time.Hour),
			Sources: []telemetry.SourceReport{{
				ID: "bed-1", Connections: 1, Received: 1000, ReceivedAt: gw(21 * sec), Interval: 1000, Acknowledged: 1000, AcknowledgedAt: gw(21 * sec),
			}},
			Lanes: []telemetry.LaneReport{
				{Lane: telemetry.LaneVitals, Assigned: 1000, Sealed: 1000, SealedAt: gw(21 * sec), Published: 1000, LastOut: gw(21 * sec), Arrived: 1000, LastIn: gw(21 * sec)},
				{Lane: telemetry.LaneSelf, Assigned: 9},
			},
			Identity: telemetry.IdentityReport{State: telemetry.IdentityEnrolled, NotAfter: now.Add(10 * time.Hour).UnixMilli()},
			Uplink:   telemetry.UplinkReport{Connected: true}, Buffer: telemetry.BufferReport{Used: 8 << 20, Cap: 1 << 30},
		},
		Session: Session{Open: true, Since: now.Add(-8 * time.Hour), Opened: now.Add(-8 * time.Hour)},
		Lanes: [telemetry.LaneCount]Lane{telemetry.LaneVitals: {
			Journaled: 1020, JournaledAt: now.Add(-sec), Stored: 1020, StoredAt: now.Add(-sec),
		}},
		Passed: Passed{
			Heard: time.Duration(gw(21*sec)) * time.Millisecond, Usual: sec, Messages: 1020, MessageAt: now.Add(-sec), Identified: 1020, IdentifiedAt: now.Add(-sec),
			Readings: 9000, ReadingAt: now.Add(-sec),
		},
		Hospital: Hospital{Found: true},
	}
}

// silentFor makes the monitor silent, as all stations then see it.
func silentFor(f *Facts, d time.Duration) {
	at := f.Report.At.Wall - d.Milliseconds()
	s := &f.Report.Sources[0]
	s.ReceivedAt, s.AcknowledgedAt = at, at
	f.Passed.Heard = time.Duration(at) * time.Millisecond
	l := &f.Report.Lanes[0]
	l.SealedAt, l.LastOut, l.LastIn = at, at, at
	f.serverSince(20*time.Second + d)
}

// serverSince says how long ago the server had the last of the source.
func (f *Facts) serverSince(d time.Duration) {
	at := f.Now.Add(-d)
	v := &f.Lanes[telemetry.LaneVitals]
	v.JournaledAt, v.StoredAt = at, at
	f.Passed.MessageAt, f.Passed.IdentifiedAt, f.Passed.ReadingAt = at, at, at
}

// gone makes the gateway silent: no session, no report.
func (f *Facts) gone(d time.Duration) {
	f.Session = Session{Opened: f.Now.Add(-8 * time.Hour), Ended: f.Now.Add(-d), End: "lost"}
	f.ReportAt = f.ReportAt.Add(-d)
	f.Report.At.Wall -= d.Milliseconds()
	silentFor(f, time.Second)
	f.serverSince(d)
}

func TestTheFirstStationThatStoppedIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Facts)
		want   string // station
		why    string // part of the sentence
		mend   string // likewise
	}{
		"monitor is off":          {func(f *Facts) { f.Report.Sources[0].Connections = 0; silentFor(f, 2*time.Minute) }, Received, "silent", "cable"},
		"monitor sends nothing":   {func(f *Facts) { silentFor(f, 2*time.Minute) }, Received, "every 1000 ms", "HL7 export is on"},
		"rare monitor is off":     {func(f *Facts) { f.Report.Sources[0].Interval = 600_000; silentFor(f, time.Hour) }, Received, "every 10 min", "HL7 export"},
		"never a message":         {neverHeard, Received, "never sent", "export"},
		"turned away":             {func(f *Facts) { neverHeard(f); f.Report.Sources[0].Unwelcome = 3 }, Received, "allow list", "allow:"},
		"handshakes fail":         {func(f *Facts) { neverHeard(f); f.Report.Sources[0].Unproven = 3 }, Received, "TLS handshake", "certificate"},
		"no port":                 {func(f *Facts) { f.Report.Sources[0].Deaf = true }, Received, "port", "another program"},
		"taken out of the config": {func(f *Facts) { f.Report.Sources = nil }, Received, "not configured", "sources:"},
		"no source at all":        {func(f *Facts) { f.Source = ""; f.Report.Sources = nil; f.Passed = Passed{} }, Received, "no source", "agent.yaml"},
		"silent since before the boot": {func(f *Facts) {
			neverHeard(f)
			f.Passed.Heard = time.Duration(f.Report.At.Wall-3_600_000) * time.Millisecond
		}, Received, "silent", "cable"},

		"not HL7": {func(f *Facts) {
			silentFor(f, 5*time.Minute)
			f.Report.Sources[0].Refused, f.Report.Sources[0].RefusedAt = 9, f.Report.At.Wall-2000
		}, NotUnderstood, "refused", "MLLP"},
		"nothing understood":  {func(f *Facts) { notUnderstood(f); f.Passed.ReadingAt = f.Passed.ReadingAt.Add(-time.Hour) }, NotUnderstood, "no reading in them", "hl7 try"},
		"never anything read": {func(f *Facts) { notUnderstood(f); f.Passed.Readings, f.Passed.ReadingAt = 0, time.Time{} }, NotUnderstood, "no reading", "hl7 try"},

		"disk is full":           {func(f *Facts) { failing(f, "the disk is full") }, Sealed, "disk is full", "free space"},
		"disk is read-only":      {func(f *Facts) { failing(f, "the disk is read-only") }, Sealed, "read-only", "mount"},
		"cannot seal":            {func(f *Facts) { failing(f, "a batch could not be sealed or stored") }, Sealed, "no acknowledgement", "journalctl"},
		"buffer is full":         {func(f *Facts) { failing(f, full); f.Report.Uplink.Connected = false; f.Session = Session{} }, Buffered, "buffer is full", "connection"},
		"buffer is full, drains": {func(f *Facts) { failing(f, full) }, Buffered, "buffer is full", "drains"},

		"network cut":          {func(f *Facts) { f.gone(10 * time.Minute) }, Published, "not been connected for 10 min", "network"},
		"network cut just now": {func(f *Facts) { f.gone(5 * time.Second) }, Published, "not been connected", "network"},
		"server just started": {func(f *Facts) {
			f.gone(5 * time.Minute)
			f.Started = f.Now.Add(-10 * time.Second)
			f.Session = Session{}
		}, Published, "server was started 10 s ago", "network"},
		"never connected":      {func(f *Facts) { *f = Facts{Now: now, Gateway: "gw-1", State: "active", Hospital: f.Hospital} }, Published, "never connected", "kit"},
		"revoked":              {func(f *Facts) { f.gone(time.Minute); f.State, f.Reason = "revoked", "stolen" }, Published, "revoked: stolen", "if that was meant"},
		"outside its validity": {func(f *Facts) { f.gone(time.Minute); f.Window = "until 2026-01-01T00:00:00Z" }, Published, "validity (until 2026-01-01T00:00:00Z)", "gateway window"},
		"refused": {func(f *Facts) {
			f.gone(time.Hour)
			f.Session.Refused, f.Session.Why = f.Now.Add(-time.Minute), "lane is not allowed"
		}, Published, "lane is not allowed", "audit list"},
		"certificate ended":     {func(f *Facts) { f.gone(time.Hour); f.Report.Identity.NotAfter = f.Now.Add(-time.Hour).UnixMilli() }, Published, "certificate ended", "doctor"},
		"hands over nothing":    {func(f *Facts) { stuck(f); f.Report.Uplink.Fault = "a sealing record cannot be had" }, Published, "sealing record", "doctor"},
		"agent hangs":           {func(f *Facts) { f.ReportAt = f.Now.Add(-time.Hour) }, Published, "not reported for 60 min", "restart"},
		"monitor off, then cut": {func(f *Facts) { f.gone(time.Hour); silentFor(f, time.Hour); f.serverSince(2 * time.Hour) }, Received, "silent", "monitor"},

		"journal":             {func(f *Facts) { f.Journal = "no space left on device" }, Journaled, "no space", "disk"},
		"commit fails":        {func(f *Facts) { f.Session.Failed = f.Now }, Journaled, "could not journal", "log"},
		"no acknowledgement":  {unacknowledged, Journaled, "not acknowledged", "status"},
		"records are held up": {func(f *Facts) { f.Records.Held = "database is locked" }, Opened, "locked", "database"},
		"records stopped long ago, and reports with them": {func(f *Facts) {
			silentFor(f, 2*time.Minute)
			f.ReportAt = f.ReportAt.Add(-time.Hour)
			f.Report.At.Wall -= 3_600_000
			silentFor(f, 2*time.Minute)
			f.serverSince(time.Hour)
			f.Records.Held = "the disk is full"
			f.Lanes[telemetry.LaneVitals].JournaledAt, f.Lanes[telemetry.LaneSelf].JournaledAt = f.Now, f.Now
		}, Opened, "disk is full", "disk"},
		"records are behind": {func(f *Facts) { f.Records.Behind = time.Minute }, Opened, "60 s", "restart"},
		"dead batches":       {func(f *Facts) { v := &f.Lanes[1]; v.Dead, v.DeadAt, v.Reason = 3, f.Now, "its seal does not open" }, Opened, "its seal does not open", "reopen"},
		"pending for long": {func(f *Facts) {
			f.serverSince(10 * time.Minute)
			v := &f.Lanes[1]
			v.JournaledAt, v.Pending, v.PendingSince = f.Now, 4, f.Now.Add(-5*time.Minute)
		}, Opened, "sealing record", "audit"},
		"consumer stopped": {func(f *Facts) { f.serverSince(10 * time.Minute); f.Lanes[1].JournaledAt = f.Now }, Opened, "has not come", "log"},

		"no patient": {func(f *Facts) {
			p := &f.Passed
			p.Identified, p.IdentifiedAt, p.Anonymous, p.AnonymousAt = 0, time.Time{}, 9, p.MessageAt
		}, Associated, "no patient", "admit"},
		"no patient by now": {func(f *Facts) {
			p := &f.Passed
			p.IdentifiedAt, p.Anonymous, p.AnonymousAt = p.MessageAt.Add(-time.Hour), 9, p.MessageAt
		}, Associated, "PID-3", "admit"},
		"listener":          {func(f *Facts) { f.Hospital.Fault = "connection refused" }, Visible, "connection refused", "restart"},
		"search fails":      {func(f *Facts) { f.Hospital.Store = "database disk image is malformed" }, Visible, "search fails", "database"},
		"not found":         {func(f *Facts) { f.Hospital.Found = false }, Visible, "not found", "log"},
		"no readings":       {func(f *Facts) { f.Passed.Readings, f.Passed.ReadingAt = 0, time.Time{} }, Visible, "no reading", "ORU"},
		"old agent, silent": {func(f *Facts) { f.Report = nil; f.serverSince(time.Hour) }, Received, "nothing has come", "monitor"},
	} {
		f := well()
		c.change(&f)
		tr := Judge(f)
		if tr.Stopped != c.want || !strings.Contains(tr.Why, c.why) || !strings.Contains(tr.Mend, c.mend) {
			t.Errorf("%s: %q stopped: %q; mend: %q; expected %q, %q, %q", name, tr.Stopped, tr.Why, tr.Mend, c.want, c.why, c.mend)
		}
		sane(t, name, tr)
	}
}

func neverHeard(f *Facts) {
	s := &f.Report.Sources[0]
	s.Received, s.ReceivedAt, s.Acknowledged, s.AcknowledgedAt, s.Connections = 0, 0, 0, 0, 0
	f.Passed = Passed{}
}

func notUnderstood(f *Facts) {
	s := &f.Report.Sources[0]
	s.NotUnderstood, s.NotUnderstoodAt = s.Received, s.ReceivedAt
}

func failing(f *Facts, class string) {
	l := &f.Report.Lanes[0]
	l.Failed, l.FailedAt = 3, f.Report.At.Wall-500
	s := &f.Report.Sources[0]
	s.Failed, s.FailedAt = 3, f.Report.At.Wall-500
	f.Report.Buffer.Fault, f.Report.Buffer.FaultAt = class, l.FailedAt
}

func stuck(f *Facts) {
	silentFor(f, 10*time.Minute)
	s, l := &f.Report.Sources[0], &f.Report.Lanes[0]
	s.ReceivedAt, s.AcknowledgedAt, l.SealedAt = f.Report.At.Wall-1000, f.Report.At.Wall-1000, f.Report.At.Wall-1000
	l.Waiting, l.Oldest = 500, f.Report.At.Wall-600_000
}

func unacknowledged(f *Facts) {
	stuck(f)
	f.Report.Lanes[0].LastOut, f.Report.Uplink.InFlight = f.Report.At.Wall-2000, 64
	f.Report.Lanes[0].Oldest = f.Report.At.Wall - 30_000
}

// sane: nine stations in their order, and a judgement that goes with them.
func sane(t *testing.T, name string, tr Trace) {
	t.Helper()
	var names []string
	first := ""
	for _, s := range tr.Stations {
		names = append(names, s.Name)
		if s.State == Stopped && first == "" {
			first = s.Name
		}
	}
	if want := []string{Received, NotUnderstood, Sealed, Buffered, Published, Journaled, Opened, Associated, Visible}; !slices.Equal(names, want) {
		t.Errorf("%s: stations %v", name, names)
	}
	if first != tr.Stopped || tr.Why == "" || (tr.Stopped != "") != (tr.Mend != "") {
		t.Errorf("%s: first stopped %q, verdict %+v", name, first, tr)
	}
}

func TestAllIsWell(t *testing.T) {
	for name, change := range map[string]func(*Facts){
		"well":                    func(*Facts) {},
		"report came a while ago": func(f *Facts) { f.Now = f.Now.Add(45 * time.Second); f.serverSince(time.Second) },
		"rare messages":           func(f *Facts) { f.Report.Sources[0].Interval = 600_000; silentFor(f, 15*time.Minute) },
		"by its bed alone": func(f *Facts) {
			p := &f.Passed
			p.Identified, p.IdentifiedAt, p.Bedded, p.BeddedAt = 0, time.Time{}, 9, p.MessageAt
		},
		"some without patient": func(f *Facts) { f.Passed.Anonymous, f.Passed.AnonymousAt = 5, f.Now.Add(-time.Hour) },
		"some not understood": func(f *Facts) {
			f.Report.Sources[0].NotUnderstood, f.Report.Sources[0].NotUnderstoodAt = 5, f.Report.At.Wall-2000
		},
		"a failure that passed": func(f *Facts) {
			failing(f, "the disk fails")
			f.Report.Lanes[0].FailedAt -= 600_000
			f.Report.Sources[0].FailedAt -= 600_000
		},
		"dead ones of the past":         func(f *Facts) { f.Lanes[1].Dead, f.Lanes[1].DeadAt = 2, f.Now.Add(-time.Hour) },
		"a parked one":                  func(f *Facts) { f.Report.Lanes[0].Waiting, f.Report.Lanes[0].Parked = 1, 1 },
		"a loss":                        func(f *Facts) { f.Lost = 2 },
		"a gap":                         func(f *Facts) { f.Missing = 2 },
		"the agent restarted, and came": func(f *Facts) { f.Report.Sources[0].Interval = 0 },
		"an agent that does not report": func(f *Facts) { f.Report = nil },
		"a refusal of the past":         func(f *Facts) { f.Session.Refused = f.Now.Add(-9 * time.Hour) },
		"the server restarted":          func(f *Facts) { f.Started = f.Now.Add(-time.Minute); f.Session.Opened = f.Started },
	} {
		f := well()
		change(&f)
		tr := Judge(f)
		if tr.Stopped != "" {
			t.Errorf("%s: %q stopped: %s", name, tr.Stopped, tr.Why)
		}
		sane(t, name, tr)
	}
}

// TestNeverAllWellWhileNothingArrives: whatever the facts say, when the newest reading is old the judgement is not that all is well.
func TestNeverAllWellWhileNothingArrives(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		f := well()
		r := f.Report
		s, l := &r.Sources[0], &r.Lanes[0]
		old := func(at *int64) {
			if rnd.IntN(3) == 0 {
				*at -= rnd.Int64N(3_600_000)
			}
			if rnd.IntN(12) == 0 {
				*at = 0
			}
		}
		for _, at := range []*int64{&s.ReceivedAt, &s.AcknowledgedAt, &l.SealedAt, &l.LastOut, &l.LastIn} {
			old(at)
		}
		if rnd.IntN(4) == 0 {
			l.FailedAt, s.NotUnderstoodAt, l.Oldest = l.SealedAt-int64(rnd.IntN(3)), s.ReceivedAt, l.SealedAt
			s.NotUnderstood, l.Waiting = uint64(rnd.IntN(2)), uint64(rnd.IntN(3))
		}
		for _, at := range []*time.Time{&f.Passed.MessageAt, &f.Passed.IdentifiedAt, &f.Lanes[1].JournaledAt, &f.Lanes[1].StoredAt, &f.ReportAt} {
			if rnd.IntN(3) == 0 {
				*at = at.Add(-time.Duration(rnd.Int64N(int64(time.Hour))))
			}
		}
		f.Session.Open = rnd.IntN(4) > 0
		if rnd.IntN(6) == 0 {
			f.Report = nil
		}
		f.Passed.ReadingAt = now.Add(-time.Hour)
		tr := Judge(f)
		if tr.Stopped == "" {
			t.Fatalf("all well, with the newest reading of an hour ago: %+v\n%+v", f, r)
		}
		sane(t, "random", tr)
	}
}

func TestSpoken(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 125 * time.Minute: "2 h 5 min",
		50 * time.Hour: "2 d 2 h",
	} {
		if got := Spoken(d); got != want {
			t.Errorf("%v: %q, expected %q", d, got, want)
		}
	}
	if s := fmt.Sprint(Spoken(119 * time.Minute)); s != "119 min" {
		t.Error(s)
	}
}

// A station that stopped says why and what mends it, also when it is not the first.
func TestEachStationSays(t *testing.T) {
	f := well()
	f.gone(time.Hour)
	silentFor(&f, time.Hour)
	f.serverSince(2 * time.Hour)
	f.State, f.Reason = "revoked", "stolen"
	got := Judge(f)
	if got.Stopped != Received {
		t.Fatalf("stopped at %q", got.Stopped)
	}
	for _, s := range got.Stations {
		if (s.State == Stopped) != (s.Why != "" && s.Mend != "") {
			t.Errorf("%+v", s)
		}
		if s.Name == Published && s.Why != "the gateway is revoked: stolen" {
			t.Errorf("%+v", s)
		}
	}
}
