package telemetry

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// exampleReport is the report of WIRE.md's example: a gateway that has just come back from an outage.
func exampleReport() Batch {
	return Batch{Boot: [16]byte([]byte("boot-id-89abcdef")), Report: &Report{
		Agent: "1.0.0", At: Stamp{Wall: 1795357860000, Mono: 86460000}, Started: 1795271400000, Config: 3, Every: 60000,
		Sources: []SourceReport{{
			ID: "icu-bed-12", Connections: 1, Received: 86400, ReceivedAt: 1795357859900, Interval: 1000, Acknowledged: 86398,
			NotUnderstood: 2, NotUnderstoodAt: 1795300000000, Failed: 1, FailedAt: 1795350000000,
		}},
		Lanes: []LaneReport{
			{Lane: LaneAlarm, Assigned: 12, Sealed: 12, SealedAt: 1795350100000, Published: 12, LastOut: 1795350100020, Arrived: 12, LastIn: 1795350100080},
			{
				Lane: LaneVitals, Assigned: 86398, Sealed: 86397, SealedAt: 1795357859920, Failed: 1, FailedAt: 1795350000000,
				Waiting: 41, Bytes: 24600, Oldest: 1795357818900, Parked: 1, Published: 86360, LastOut: 1795357859990, Arrived: 86356, LastIn: 1795357859980,
				Held: NewSpans([]Span{{500, 500}, {86358, 86397}}, false), Void: NewSpans([]Span{{79001, 79001}}, false),
			},
			{Lane: LaneSelf, Assigned: 1440, Sealed: 1440},
			{Epoch: Epoch([]byte("epoch-earlier-12")), Lane: LaneVitals, Assigned: 7200, Waiting: 100, Bytes: 60000, Oldest: 1795271000000, Held: NewSpans([]Span{{7100, 7199}}, false)},
		},
		Identity: IdentityReport{State: IdentityEnrolled, NotAfter: 1795440000000},
		Uplink:   UplinkReport{Connected: true, Since: 1795357857000, Connects: 4, InFlight: 4, Fault: "no answer", FaultAt: 1795357800000},
		Buffer:   BufferReport{Used: 16 << 20, Cap: 1 << 30, DiskFree: 20 << 30, Fault: "disk error", FaultAt: 1795350000000},
	}}
}

// configReport is a report of a gateway that took one configuration back and has another one on trial.
func configReport() Batch {
	return Batch{Boot: [16]byte([]byte("boot-id-89abcdef")), Report: &Report{
		Agent: "1.0.0", At: Stamp{Wall: 1795357860000, Mono: 86460000}, Started: 1795271400000, Config: 3,
		Identity: IdentityReport{State: IdentityEnrolled},
		Settings: ConfigReport{Site: "main", Version: 5, Steps: []ConfigStep{
			{Site: "main", Version: 6, Step: ConfigPrepared, At: 1795357700000},
			{Site: "main", Version: 6, Step: ConfigReverted, At: 1795357730000, Reason: "none of its servers answered"},
			{Version: 4, Step: ConfigPrepared, At: 1795357859000},
			{Version: 4, Step: ConfigApplied, At: 1795357859100},
		}},
	}}
}

// boundReport is the example's with a source that is bound to a bed and speaks TLS.
func boundReport() Batch {
	b := exampleReport()
	s := &b.Report.Sources[len(b.Report.Sources)-1]
	s.Bed, s.Conflicts, s.ConflictAt, s.Slowed, s.SlowedAt = "ICU-7", 2, 1795357850000, 3, 1795357850001
	s.Unproven, s.UnprovenAt, s.Expired, s.Shared = 4, 1795357850002, 1, true
	return b
}

// A report that says nothing of configurations is of version 2, which every server reads.
func TestReportVersions(t *testing.T) {
	with, without, bound := configReport(), exampleReport(), boundReport()
	for want, b := range map[byte]*Batch{reportVersion: &without, configVersion: &with, sourceVersion: &bound} {
		plain, err := encoding.Marshal(newWireReportBatch(b))
		if err != nil || plain[2] != want || !isReport(plain) {
			t.Errorf("%x, %v; expected version %d", plain[:4], err, want)
		}
	}
}

func TestReportRoundTrip(t *testing.T) {
	least := Batch{Report: &Report{}}
	full := exampleReport()
	full.Report.Clock = ClockReport{Known: true, Trusted: true, Offset: -12345, Floor: 1795000000000, Uncertainty: 17}
	for range MaxSources - 1 {
		s := full.Report.Sources[len(full.Report.Sources)-1]
		s.ID += "+"
		if len(s.ID) > MaxReportText {
			break
		}
		full.Report.Sources = append(full.Report.Sources, s)
	}
	for name, b := range map[string]Batch{"least": least, "example": exampleReport(), "full": full, "configuration": configReport(), "bound": boundReport()} {
		got, err := Decode(mustEncode(t, b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(b, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// WIRE.md shows this report.
func TestReportOfWire(t *testing.T) {
	page, err := os.ReadFile("WIRE.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```hex report-batch\n(.*?)```").FindSubmatch(page)
	if m == nil {
		t.Fatal("WIRE.md has no example of a report-batch")
	}
	b := exampleReport()
	want, err := encoding.Marshal(newWireReportBatch(&b))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(string(m[1])), ""); got != hex.EncodeToString(want) {
		t.Errorf("WIRE.md has %s; the report is %x", got, want)
	}
}

// A report goes each minute over a link that may be paid for by the megabyte.
func TestReportIsSmall(t *testing.T) {
	if n := len(mustEncode(t, exampleReport())); n > 400 {
		t.Errorf("a usual report has %d bytes before its seal", n)
	}
}

func TestReportLimits(t *testing.T) {
	for name, spoil := range map[string]func(*Batch){
		"with messages":            func(b *Batch) { b.Messages = vitals(1, 1).Messages },
		"too many sources":         func(b *Batch) { b.Report.Sources = make([]SourceReport, MaxSources+1) },
		"too many lanes":           func(b *Batch) { b.Report.Lanes = make([]LaneReport, MaxLanes+1) },
		"source without id":        func(b *Batch) { b.Report.Sources[0].ID = "" },
		"sources not ascending":    func(b *Batch) { b.Report.Sources = append(b.Report.Sources, b.Report.Sources[0]) },
		"lane twice":               func(b *Batch) { b.Report.Lanes = append(b.Report.Lanes, b.Report.Lanes[0]) },
		"unknown lane":             func(b *Batch) { b.Report.Lanes[0].Lane = LaneCount },
		"count beyond SQL":         func(b *Batch) { b.Report.Lanes[0].Assigned = math.MaxInt64 + 1 },
		"instant before 1970":      func(b *Batch) { b.Report.Sources[0].ReceivedAt = -1 },
		"instant after 9999":       func(b *Batch) { b.Report.At.Wall = maxInstant + 1 },
		"runs that touch":          func(b *Batch) { b.Report.Lanes[0].Void = Spans{Runs: []Span{{1, 2}, {3, 4}}} },
		"run backwards":            func(b *Batch) { b.Report.Lanes[0].Void = Spans{Runs: []Span{{2, 1}}} },
		"run beyond SQL":           func(b *Batch) { b.Report.Lanes[0].Void = Spans{Runs: []Span{{1, math.MaxInt64 + 1}}} },
		"upper bound of nothing":   func(b *Batch) { b.Report.Lanes[0].Void = Spans{Upper: true} },
		"too many runs":            func(b *Batch) { b.Report.Lanes[0].Void = Spans{Runs: make([]Span, MaxSpans+1)} },
		"a long text":              func(b *Batch) { b.Report.Uplink.Fault = strings.Repeat("x", MaxReportText+1) },
		"a text that steers":       func(b *Batch) { b.Report.Sources[0].ID = "bed\x1b[2J" },
		"a text that is not UTF-8": func(b *Batch) { b.Report.Agent = "\xff" },
		"unknown identity state":   func(b *Batch) { b.Report.Identity.State = 9 },
		"clock that is not known":  func(b *Batch) { b.Report.Clock.Trusted = true },
		"too many steps":           func(b *Batch) { b.Report.Settings.Steps = make([]ConfigStep, MaxConfigSteps+1) },
		"a step of no version":     func(b *Batch) { b.Report.Settings.Steps = []ConfigStep{{Step: ConfigApplied}} },
		"an unknown step":          func(b *Batch) { b.Report.Settings.Steps = []ConfigStep{{Version: 1, Step: 5}} },
		"a site without a version": func(b *Batch) { b.Report.Settings.Site = "main" },
		"a reason that steers": func(b *Batch) {
			b.Report.Settings.Steps = []ConfigStep{{Version: 1, Step: ConfigReverted, Reason: "\x1b[2J"}}
		},
	} {
		b := exampleReport()
		spoil(&b)
		if _, err := Encode(b); err == nil {
			t.Errorf("%s: encoded", name)
		}
		if b.Messages != nil || name == "upper bound of nothing" || name == "clock that is not known" {
			continue // the wire cannot say it
		}
		plain, err := encoding.Marshal(newWireReportBatch(&b))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(append([]byte{codecPlain}, plain...)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// Other bytes for the same report, a key that is not known, or a report of another version are refused as a whole.
func TestReportIsReadOnlyAsItIsWritten(t *testing.T) {
	b := exampleReport()
	plain, err := encoding.Marshal(newWireReportBatch(&b))
	if err != nil {
		t.Fatal(err)
	}
	if !isReport(plain) {
		t.Fatalf("a report begins with %x; which nobody takes for one", plain[:4])
	}
	// "connected: true" with its key once more, as an encoder that is not deterministic might write zero values out.
	long := bytes.Replace(plain, []byte{0x01, 0xf5, 0x02}, []byte{0x01, 0xf5, 0x18, 0x02}, 1)
	unknown := bytes.Replace(plain, []byte{0x08, 0xa2, 0x01, 0x02}, []byte{0x08, 0xa3, 0x00, 0x00, 0x01, 0x02}, 1)
	other := bytes.Clone(plain)
	other[2] = 3
	for name, data := range map[string][]byte{"long form": long, "unknown key": unknown, "other version": other} {
		if bytes.Equal(data, plain) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := Decode(append([]byte{codecPlain}, data...)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

func TestSpans(t *testing.T) {
	var many []Span
	for i := range uint64(100) {
		many = append(many, Span{i * 10, i*10 + i%3})
	}
	s := NewSpans(many, false)
	if len(s.Runs) != MaxSpans || !s.Upper {
		t.Fatalf("%d runs, upper bound %t", len(s.Runs), s.Upper)
	}
	if err := s.check(); err != nil {
		t.Error(err)
	}
	for _, r := range many {
		in := false
		for _, o := range s.Runs {
			in = in || o.First <= r.First && r.Last <= o.Last
		}
		if !in {
			t.Errorf("%v is lost", r)
		}
	}
	if s := NewSpans([]Span{{1, 2}, {3, 3}, {2, 9}, {11, 11}}, false); fmt.Sprint(s) != "{[{1 9} {11 11}] false}" || s.Count() != 10 {
		t.Errorf("%v", s)
	}
}
