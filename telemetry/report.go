package telemetry

import (
	"errors"
	"fmt"
	"math"
	"unicode"
	"unicode/utf8"
)

// Report is an agent's account of itself, the one content of a batch on LaneSelf: what came in, where it stands, which numbers are
// used up and hold nothing. It says where data stopped without saying any of it: no patient, no value, no control id. Counts are since
// the start of the agent unless said otherwise; instants are Unix milliseconds by the gateway's own clock, 0 for "never".
//
// The epoch that it speaks of is its frame's. Of two reports of one epoch the one with the greater number is the newer.
type Report struct {
	Agent   string // the agent's version
	At      Stamp  // when it was made
	Started int64  // when the agent was started
	Config  uint64 // version of the gateway's own configuration that is in force; 0 for none
	Every   uint64 // milliseconds after which the next report follows at the latest

	Sources  []SourceReport // ascending by ID
	Lanes    []LaneReport   // ascending by lane, this epoch's first
	Identity IdentityReport
	Uplink   UplinkReport
	Buffer   BufferReport
	Clock    ClockReport
	Settings ConfigReport
}

// SourceReport is what one source has brought.
type SourceReport struct {
	ID              string
	Connections     uint64 // open now
	Received        uint64 // whole messages
	ReceivedAt      int64
	Interval        uint64 // usual milliseconds from message to message; 0 while fewer than a handful have come
	Acknowledged    uint64
	NotUnderstood   uint64 // messages that travel on with their bytes as they came
	NotUnderstoodAt int64
	Refused         uint64 // no frame, no MSH, over-long
	RefusedAt       int64
	Failed          uint64 // not acknowledged because they could not be stored
	FailedAt        int64
	Unwelcome       uint64 // connections closed: not on the allow list, or too many
	UnwelcomeAt     int64
	Deaf            bool // its port cannot be opened at present
	AcknowledgedAt  int64

	Bed        string // that all of it is bound to; "" for none
	Conflicts  uint64 // messages of devices that claim another bed than their connection's
	ConflictAt int64
	Slowed     uint64 // messages after which the configured limits had the next one wait
	SlowedAt   int64
	Unproven   uint64 // TLS handshakes that failed
	UnprovenAt int64
	Expired    uint64 // of them for a device's certificate that had ended or not begun
	Shared     bool   // some devices on its port have source ids of their own, and count there
}

// LaneReport is one lane of this epoch or, while the buffer still holds something of it, of a former one.
type LaneReport struct {
	Epoch Epoch // zero: this epoch
	Lane  Lane

	Assigned uint64 // numbers below are used up. Of a former epoch: 1 more than the greatest still known
	Sealed   uint64 // batches that are, or were, in the buffer
	SealedAt int64
	Failed   uint64 // batches whose commit failed
	FailedAt int64

	Waiting   uint64 // batches that the hospital has not acknowledged, parked ones included
	Bytes     uint64 // of them, about
	Oldest    int64  // when the oldest of them was sealed
	Parked    uint64
	Published uint64 // batches handed to the network
	LastOut   int64
	Arrived   uint64 // batches that the hospital acknowledged
	LastIn    int64

	Held Spans // numbers that wait
	Void Spans // numbers used up by failed commits, or by reports that a newer one took the place of: nothing came of them
	Lost Spans // numbers whose batches were deleted undelivered at a full buffer, or damaged on disk
}

// IdentityReport is how far the gateway's enrolment is.
type IdentityReport struct {
	State    IdentityState
	NotAfter int64  // end of the certificate
	Fault    string // what holds it up: a short constant text
}

// IdentityState is a step of enrolment. The values are part of the wire format.
type IdentityState uint8

// The steps.
const (
	IdentityNone     IdentityState = 0 // not enrolled yet, or the TPM cannot be opened
	IdentityWaiting  IdentityState = 1 // an operator is to approve the gateway
	IdentityEnrolled IdentityState = 2
)

// UplinkReport is the connection to the hospital.
type UplinkReport struct {
	Connected bool
	Since     int64  // since when Connected is what it is
	Connects  uint64 // sessions admitted
	InFlight  uint64 // publishes without PUBACK
	Fault     string // class of the last error: a short constant text
	FaultAt   int64
}

// BufferReport is the buffer as a whole, in bytes.
type BufferReport struct {
	Used     uint64
	Cap      uint64
	DiskFree uint64
	Damaged  uint64 // files set aside
	Unread   uint64 // files that the disk cannot read at present
	Fault    string // class of the last failed commit: a short constant text
	FaultAt  int64
}

// ClockReport is what the agent makes of its clock. All zero: it does not say.
type ClockReport struct {
	Known       bool
	Trusted     bool
	Offset      int64  // hospital's time minus ours, milliseconds; at the instant of the report. Counts where Trusted
	Floor       int64  // no present instant is earlier
	Uncertainty uint64 // of Offset, milliseconds
}

// ConfigReport is what became of the hospital's signed configuration. All zero: the agent does not say.
type ConfigReport struct {
	Site    string       // whose document is in force beside the gateway's own; "" for none
	Version uint64       // of that document
	Steps   []ConfigStep // the latest ones, in the order in which they happened; at most MaxConfigSteps
}

// ConfigStep is one step of one version. A version takes each step once at most: prepared, applied, then confirmed or reverted; or
// prepared and reverted.
type ConfigStep struct {
	Site    string // the document's site; "" for the gateway's own
	Version uint64
	Step    ConfigState
	At      int64
	Reason  string // of reverted: a short constant text
}

// ConfigState is a step of a configuration. The values are part of the wire format.
type ConfigState uint8

// The steps.
const (
	ConfigPrepared  ConfigState = 1 // stored durably beside the one in force
	ConfigApplied   ConfigState = 2 // in use, on trial
	ConfigConfirmed ConfigState = 3 // the hospital acknowledged a report that was sent under it: in force
	ConfigReverted  ConfigState = 4 // taken back; not tried again
)

// String is the step as events and people call it.
func (s ConfigState) String() string {
	switch s {
	case ConfigPrepared:
		return "prepared"
	case ConfigApplied:
		return "applied"
	case ConfigConfirmed:
		return "confirmed"
	case ConfigReverted:
		return "reverted"
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// Span is a run of batch numbers, both ends included.
type Span struct{ First, Last uint64 }

// Spans is a set of numbers: ascending, no two runs touch. When it would have more than MaxSpans runs the closest are joined, and it
// is an upper bound: it then names numbers that do not belong to it.
type Spans struct {
	Runs  []Span
	Upper bool
}

// Limits of a report.
const (
	MaxSources    = 256 // of one report
	MaxLanes      = 64  // lanes of this and of former epochs
	MaxSpans      = 32  // runs of one set
	MaxReportText = 200 // bytes of one text

	MaxConfigSteps = 16
)

// maxInstant is the end of the year 9999 in Unix milliseconds.
const maxInstant = 253402300799999

// NewSpans makes a set of runs, which must be ascending; those that touch or overlap are joined, and the closest beyond MaxSpans.
func NewSpans(runs []Span, upper bool) Spans {
	s := Spans{Upper: upper}
	for _, r := range runs {
		if n := len(s.Runs); n > 0 && r.First <= s.Runs[n-1].Last+1 {
			s.Runs[n-1].Last = max(s.Runs[n-1].Last, r.Last)
			continue
		}
		s.Runs = append(s.Runs, r)
	}
	for len(s.Runs) > MaxSpans {
		closest := 1
		for i := 2; i < len(s.Runs); i++ {
			if s.Runs[i].First-s.Runs[i-1].Last < s.Runs[closest].First-s.Runs[closest-1].Last {
				closest = i
			}
		}
		s.Runs[closest-1].Last = s.Runs[closest].Last
		s.Runs = append(s.Runs[:closest], s.Runs[closest+1:]...)
		s.Upper = true
	}
	return s
}

// Count is how many numbers the set names.
func (s Spans) Count() (n uint64) {
	for _, r := range s.Runs {
		n += r.Last - r.First + 1
	}
	return n
}

// check holds a report to its limits; Encode and Decode share it.
func (r *Report) check() error {
	if len(r.Sources) > MaxSources || len(r.Lanes) > MaxLanes {
		return fmt.Errorf("report: %d sources and %d lanes; at most %d and %d", len(r.Sources), len(r.Lanes), MaxSources, MaxLanes)
	}
	if err := errors.Join(
		reportText("agent", r.Agent), reportText("identity fault", r.Identity.Fault), reportText("uplink fault", r.Uplink.Fault),
		reportText("buffer fault", r.Buffer.Fault),
		instants("report", r.At.Wall, r.Started, r.Identity.NotAfter, r.Uplink.Since, r.Uplink.FaultAt, r.Buffer.FaultAt, r.Clock.Floor),
		counts("report", r.Config, r.Every, r.Uplink.Connects, r.Uplink.InFlight, r.Buffer.Used, r.Buffer.Cap, r.Buffer.DiskFree, r.Buffer.Damaged,
			r.Buffer.Unread, r.Clock.Uncertainty),
	); err != nil {
		return err
	}
	if r.At.Mono < 0 || r.Identity.State > IdentityEnrolled {
		return errors.New("report: a field is out of range")
	}
	if err := r.Settings.check(); err != nil {
		return err
	}
	if !r.Clock.Known && r.Clock != (ClockReport{}) {
		return errors.New("report: a clock that is not known says something")
	}
	for i := range r.Sources {
		if err := r.Sources[i].check(); err != nil {
			return err
		}
		if i > 0 && r.Sources[i-1].ID >= r.Sources[i].ID {
			return errors.New("report: sources are not ascending")
		}
	}
	seen := make(map[BatchID]bool, len(r.Lanes))
	for i := range r.Lanes {
		l := &r.Lanes[i]
		if err := l.check(); err != nil {
			return err
		}
		key := BatchID{Epoch: l.Epoch, Lane: l.Lane}
		if seen[key] {
			return errors.New("report: a lane comes twice")
		}
		seen[key] = true
	}
	return nil
}

func (c *ConfigReport) check() error {
	if len(c.Steps) > MaxConfigSteps {
		return fmt.Errorf("report: %d steps of configurations; at most %d", len(c.Steps), MaxConfigSteps)
	}
	if (c.Site == "") != (c.Version == 0) {
		return errors.New("report: a site's configuration is a site and a version")
	}
	if err := errors.Join(reportText("site", c.Site), counts("configuration", c.Version)); err != nil {
		return err
	}
	for i := range c.Steps {
		s := &c.Steps[i]
		if s.Version == 0 || s.Step < ConfigPrepared || s.Step > ConfigReverted {
			return errors.New("report: a step of a configuration is out of range")
		}
		if err := errors.Join(reportText("site", s.Site), reportText("reason", s.Reason), counts("configuration", s.Version), instants("configuration", s.At)); err != nil {
			return err
		}
	}
	return nil
}

func (s *SourceReport) check() error {
	if s.ID == "" {
		return errors.New("report: a source without id")
	}
	return errors.Join(
		reportText("source id", s.ID), reportText("bed", s.Bed),
		instants("source", s.ConflictAt, s.SlowedAt, s.UnprovenAt, s.ReceivedAt, s.AcknowledgedAt, s.NotUnderstoodAt, s.RefusedAt, s.FailedAt, s.UnwelcomeAt),
		counts("source", s.Conflicts, s.Slowed, s.Unproven, s.Expired, s.Connections, s.Received, s.Interval, s.Acknowledged, s.NotUnderstood, s.Refused, s.Failed, s.Unwelcome),
	)
}

func (l *LaneReport) check() error {
	if l.Lane >= LaneCount {
		return fmt.Errorf("report: lane %d; expected below %d", uint8(l.Lane), LaneCount)
	}
	return errors.Join(
		instants("lane", l.SealedAt, l.FailedAt, l.Oldest, l.LastOut, l.LastIn),
		counts("lane", l.Assigned, l.Sealed, l.Failed, l.Waiting, l.Bytes, l.Parked, l.Published, l.Arrived),
		l.Held.check(), l.Void.check(), l.Lost.check(),
	)
}

func (s *Spans) check() error {
	if len(s.Runs) > MaxSpans {
		return fmt.Errorf("report: %d runs of numbers, at most %d", len(s.Runs), MaxSpans)
	}
	if s.Upper && len(s.Runs) == 0 {
		return errors.New("report: an upper bound without numbers")
	}
	for i, r := range s.Runs {
		if r.First > r.Last || r.Last > math.MaxInt64 || i > 0 && r.First <= s.Runs[i-1].Last+1 {
			return errors.New("report: runs of numbers are not ascending, or touch")
		}
	}
	return nil
}

// reportText keeps control characters out of what operators' terminals and logs will show.
func reportText(what, s string) error {
	if len(s) > MaxReportText || !utf8.ValidString(s) {
		return fmt.Errorf("report: %s is not UTF-8 of at most %d bytes", what, MaxReportText)
	}
	for _, c := range s {
		if !unicode.IsPrint(c) {
			return fmt.Errorf("report: %s holds what cannot be printed", what)
		}
	}
	return nil
}

func instants(what string, at ...int64) error {
	for _, t := range at {
		if t < 0 || t > maxInstant {
			return fmt.Errorf("report: %s: an instant is not of the years 1970 to 9999", what)
		}
	}
	return nil
}

func counts(what string, n ...uint64) error {
	for _, c := range n {
		if c > math.MaxInt64 {
			return fmt.Errorf("report: %s: a count is above 2^63-1", what)
		}
	}
	return nil
}
