// Package trace says where one source's data stopped: nine stations from the monitor to the hospital's search, the first that stopped,
// and the mend. It judges facts that others have gathered; it reads no clock, no database and no network.
//
// What the gateway itself does (received to published) is known by its agent's reports, which are as old as they say: a gateway that
// is silent is judged by its last one, and its stations then say how long ago that was.
package trace

import (
	"cmp"
	"fmt"
	"time"

	"wardlink/telemetry"
)

// Facts are what is known about one source of one gateway. Zero instants mean never.
type Facts struct {
	Now     time.Time
	Started time.Time // of the server: what it counts in memory begins here

	Gateway string
	Ward    string // in which it stands now
	State   string // of the gateway in the registry: "active", "revoked", ...
	Reason  string // why it is not active, as the operator gave it
	Window  string // the validity that it is outside of now; "" while it is inside
	Source  string // "" while the gateway has named none

	Report   *telemetry.Report // the gateway's newest; nil when it never reported
	ReportAt time.Time         // when the server received it

	Session Session
	Lanes   [telemetry.LaneCount]Lane
	Passed  Passed

	Journal  string // why the journal cannot be written; "" when it can
	Records  Records
	Hospital Hospital
	Silence  time.Duration // how long a source may say nothing at the least; 0: a minute

	Missing uint64 // batches that the gateway assigned, and that nobody accounts for
	Lost    uint64 // batches of telemetry that the gateway reported, within the last day, as evicted or damaged before the hospital had them
}

// Session is the gateway's connection.
type Session struct {
	Open    bool
	Since   time.Time // of the open one
	Peer    string
	Opened  time.Time // the last that was admitted since the server started
	Ended   time.Time // the last end
	End     string    // reason of that end
	Refused time.Time
	Why     string    // reason of that refusal
	Failed  time.Time // a publish of it could not be journaled
}

// Lane counts the batches of one lane at the server.
type Lane struct {
	Journaled, Stored, Pending, Dead            uint64
	JournaledAt, StoredAt, PendingSince, DeadAt time.Time
	Reason                                      string // of the newest dead one
}

// Passed counts the messages of the source at the server; instants are those of receipt by the server.
type Passed struct {
	Heard time.Duration // by the gateway's clock since 1970: the last message that any report told of
	Usual time.Duration // from message to message; 0: not known

	// Identified messages name a patient; Bedded ones do not, but are of a bed that is known; Anonymous ones neither.
	Messages, Identified, Bedded, Anonymous, Readings         uint64
	MessageAt, IdentifiedAt, BeddedAt, AnonymousAt, ReadingAt time.Time
}

// Records is the service that opens batches.
type Records struct {
	Held   string        // why nothing is opened; "" while all goes well
	Behind time.Duration // age of the oldest batch that it has not looked at
}

// Hospital is the side that the hospital asks.
type Hospital struct {
	Fault string // why its listener does not answer; "" when it does
	Store string // why the search fails; "" when it works
	Found bool   // the source's newest reading is found by the hospital's search
}

// Station is one station.
type Station struct {
	Name  string
	State State
	At    time.Time // the last time that something passed; zero: never
	Count uint64
	Note  string
	Why   string // what is wrong with it and Mend what mends it, both "" unless it stopped: more than one station may have
	Mend  string
	// As is how old the knowledge is, for stations that the gateway itself tells of; 0 for those of the server.
	As time.Duration
}

// State of a station.
type State string

// States.
const (
	OK      State = "ok"
	Doubt   State = "doubt"   // it works, and there is something to look at
	Stopped State = "stopped" //
	Waits   State = "waits"   // nothing is wrong with it; what comes before it has stopped
	Unknown State = "unknown" // nobody can say now: what was last known is shown
)

// The stations, in the order of a sample's way.
const (
	Received      = "received"
	NotUnderstood = "not understood"
	Sealed        = "sealed"
	Buffered      = "buffered"
	Published     = "published"
	Journaled     = "journaled"
	Opened        = "opened"
	Associated    = "associated"
	Visible       = "visible"
)

// Trace is the judgement.
type Trace struct {
	Gateway  string
	Ward     string // in which the gateway stands
	Source   string
	Stations []Station
	Stopped  string // name of the first station that stopped; "" when none has
	Why      string // one sentence
	Mend     string // one sentence; "" when nothing is to be mended
}

const (
	// Silence is how long a source may say nothing: five times its usual interval, and not less than a minute.
	Silence = time.Minute
	usuals  = 5
	// A report of a connected gateway may be three times as old as its agent's interval, and three minutes in any case.
	reportAge  = 3 * time.Minute
	reportLate = 3
	// behind is how far records may be behind, and how long a batch may wait for its turn.
	behind = 30 * time.Second
	// lag is how much later a station may have seen the last of what passed the one before it.
	lag = 90 * time.Second
)

// Judge judges. It is the only place that decides whether a station has stopped.
func Judge(f Facts) Trace {
	j := judge{Facts: f, limit: max(cmp.Or(f.Silence, Silence), usuals*f.usual())}
	j.clock()
	for _, at := range []func(){
		j.received, j.notUnderstood, j.sealed, j.buffered, j.published, j.journaled, j.opened, j.associated, j.visible,
	} {
		at()
	}
	j.lagging()
	j.settle()
	return Trace{Gateway: f.Gateway, Ward: f.Ward, Source: f.Source, Stations: j.stations, Stopped: j.stopped, Why: j.why, Mend: j.mend}
}

func (f *Facts) usual() time.Duration {
	if s := f.source(); s != nil && s.Interval > 0 {
		return time.Duration(min(s.Interval, uint64(24*time.Hour/time.Millisecond))) * time.Millisecond
	}
	return min(f.Passed.Usual, 24*time.Hour)
}

// source is what the report says of the source; nil when it does not name it.
func (f *Facts) source() *telemetry.SourceReport {
	if f.Report == nil {
		return nil
	}
	for i := range f.Report.Sources {
		if f.Report.Sources[i].ID == f.Source {
			return &f.Report.Sources[i]
		}
	}
	return nil
}

// judge is a judgement in the making.
type judge struct {
	Facts
	limit  time.Duration // after which the source counts as silent
	offset time.Duration // to be added to the gateway's instants
	fresh  bool          // the report tells of the present

	stations           []Station
	stopped, why, mend string
	faults             map[string][2]string // why and mend, by station
}

// clock works out how the gateway's clock stands to ours. A report that was made while the gateway was connected arrived at once, so the
// difference is the clocks'; one that waited in the buffer tells nothing.
func (j *judge) clock() {
	j.faults = map[string][2]string{}
	r := j.Report
	if r == nil {
		return
	}
	j.fresh = j.Now.Sub(j.ReportAt) <= j.overdue()
	switch {
	case r.Clock.Known && r.Clock.Trusted:
		j.offset = time.Duration(r.Clock.Offset) * time.Millisecond
	case r.Uplink.Connected:
		j.offset = j.ReportAt.Sub(time.UnixMilli(r.At.Wall))
	}
}

// overdue is how old a report may be.
func (j *judge) overdue() time.Duration {
	every := time.Duration(min(j.Report.Every, uint64(time.Hour/time.Millisecond))) * time.Millisecond
	return max(reportAge, reportLate*every)
}

// blocked tells whether records has stopped: then what gateways have reported since is journaled and not known.
func (j *judge) blocked() bool {
	return j.Records.Held != "" || j.Records.Behind > min(behind, j.limit)
}

func (j *judge) lastJournaled() (at time.Time) {
	for lane, l := range j.Lanes {
		if telemetry.Lane(lane) != telemetry.LaneSelf {
			at = later(at, l.JournaledAt)
		}
	}
	return at
}

// at is an instant of the gateway by our clock.
func (j *judge) at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).Add(j.offset)
}

// made is when the report was made, by our clock.
func (j *judge) made() time.Time { return j.at(j.Report.At.Wall) }

func (j *judge) add(s Station) { j.stations = append(j.stations, s) }

// stop marks a station as stopped, with its sentence and its mend.
func (j *judge) stop(s *Station, why, mend string) {
	s.State = Stopped
	j.faults[s.Name] = [2]string{why, mend}
}

// gateway begins a station that the gateway tells of.
func (j *judge) gateway(name string) Station {
	s := Station{Name: name, State: OK}
	if j.Report == nil {
		s.State = Unknown
		return s
	}
	s.As = max(0, j.Now.Sub(j.ReportAt))
	if !j.fresh {
		s.State = Unknown
	}
	return s
}

// settle finds the first station that stopped. Behind it nothing can pass: those that are not at fault themselves wait.
func (j *judge) settle() {
	for i := range j.stations {
		s := &j.stations[i]
		if s.State == Stopped {
			s.Why, s.Mend = j.faults[s.Name][0], j.faults[s.Name][1]
		}
		switch {
		case j.stopped == "" && s.State == Stopped:
			j.stopped, j.why, j.mend = s.Name, s.Why, s.Mend
		case j.stopped != "" && s.State == OK:
			s.State = Waits
		}
	}
	if j.stopped != "" {
		return
	}
	last := j.Passed.ReadingAt
	j.why = "data arrives; its newest reading came " + ago(j.Now, last) + " ago"
	for _, s := range j.stations {
		if s.State == Doubt && s.Note != "" {
			j.why += "; " + s.Name + ": " + s.Note
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// ago is a duration as a person says it.
func ago(now, then time.Time) string { return Spoken(now.Sub(then)) }

// Spoken is a duration as tools show it: 45 s, 12 min, 3 h 5 min, 2 d 4 h.
func Spoken(d time.Duration) string {
	d = max(d, 0)
	switch minutes := int(d / time.Minute); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", minutes)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", minutes/60, minutes%60)
	default:
		return fmt.Sprintf("%d d %d h", minutes/60/24, minutes/60%24)
	}
}
