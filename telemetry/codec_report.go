package telemetry

import (
	"bytes"
	"errors"
	"fmt"
)

// Versions of a batch that holds a report, its key 1. Readers of an earlier one refuse such a batch as a whole.
const (
	reportVersion = 2 // and not more where nothing is said that it cannot say
	configVersion = 3 // steps of configurations
	sourceVersion = 4 // beds, limits and TLS of sources
)

// isReport tells a report by how it begins: a map of three pairs, key 1, the version, key 2. Encoding is deterministic, so no other batch
// can begin so: those have at least four pairs.
func isReport(data []byte) bool {
	return len(data) >= 4 && data[0] == 0xa3 && data[1] == 0x01 && data[2] >= reportVersion && data[2] <= sourceVersion && data[3] == 0x02
}

// wireReportBatch is a batch that holds an agent's report and nothing else.
type wireReportBatch struct {
	Version uint64     `cbor:"1,keyasint"`
	Boot    []byte     `cbor:"2,keyasint"`
	Report  wireReport `cbor:"9,keyasint"`
}

type wireReport struct {
	Agent    string       `cbor:"1,keyasint"`
	Wall     int64        `cbor:"2,keyasint"`
	Mono     int64        `cbor:"3,keyasint"`
	Started  int64        `cbor:"4,keyasint"`
	Config   uint64       `cbor:"5,keyasint,omitempty"`
	Sources  []wireSource `cbor:"6,keyasint,omitempty"`
	Lanes    []wireLane   `cbor:"7,keyasint,omitempty"`
	Identity wireIdentity `cbor:"8,keyasint"`
	Uplink   wireUplink   `cbor:"9,keyasint"`
	Buffer   wireBuffer   `cbor:"10,keyasint"`
	Clock    *wireClock   `cbor:"11,keyasint,omitempty"`
	Every    uint64       `cbor:"12,keyasint,omitempty"`
	Settings *wireConfig  `cbor:"13,keyasint,omitempty"`
}

type wireConfig struct {
	Site    string     `cbor:"1,keyasint,omitempty"`
	Version uint64     `cbor:"2,keyasint,omitempty"`
	Steps   []wireStep `cbor:"3,keyasint,omitempty"`
}

type wireStep struct {
	Site    string `cbor:"1,keyasint,omitempty"`
	Version uint64 `cbor:"2,keyasint"`
	Step    uint8  `cbor:"3,keyasint"`
	At      int64  `cbor:"4,keyasint,omitempty"`
	Reason  string `cbor:"5,keyasint,omitempty"`
}

type wireSource struct {
	ID              string `cbor:"1,keyasint"`
	Connections     uint64 `cbor:"2,keyasint,omitempty"`
	Received        uint64 `cbor:"3,keyasint,omitempty"`
	ReceivedAt      int64  `cbor:"4,keyasint,omitempty"`
	Interval        uint64 `cbor:"5,keyasint,omitempty"`
	Acknowledged    uint64 `cbor:"6,keyasint,omitempty"`
	NotUnderstood   uint64 `cbor:"7,keyasint,omitempty"`
	NotUnderstoodAt int64  `cbor:"8,keyasint,omitempty"`
	Refused         uint64 `cbor:"9,keyasint,omitempty"`
	RefusedAt       int64  `cbor:"10,keyasint,omitempty"`
	Failed          uint64 `cbor:"11,keyasint,omitempty"`
	FailedAt        int64  `cbor:"12,keyasint,omitempty"`
	Unwelcome       uint64 `cbor:"13,keyasint,omitempty"`
	UnwelcomeAt     int64  `cbor:"14,keyasint,omitempty"`
	Deaf            bool   `cbor:"15,keyasint,omitempty"`
	AcknowledgedAt  int64  `cbor:"16,keyasint,omitempty"`

	Bed        string `cbor:"17,keyasint,omitempty"` // this one and the following: version 4
	Conflicts  uint64 `cbor:"18,keyasint,omitempty"`
	ConflictAt int64  `cbor:"19,keyasint,omitempty"`
	Slowed     uint64 `cbor:"20,keyasint,omitempty"`
	SlowedAt   int64  `cbor:"21,keyasint,omitempty"`
	Unproven   uint64 `cbor:"22,keyasint,omitempty"`
	UnprovenAt int64  `cbor:"23,keyasint,omitempty"`
	Expired    uint64 `cbor:"24,keyasint,omitempty"`
	Shared     bool   `cbor:"25,keyasint,omitempty"`
}

type wireLane struct {
	Epoch     []byte     `cbor:"1,keyasint,omitempty"`
	Lane      uint8      `cbor:"2,keyasint"`
	Assigned  uint64     `cbor:"3,keyasint,omitempty"`
	Sealed    uint64     `cbor:"4,keyasint,omitempty"`
	SealedAt  int64      `cbor:"5,keyasint,omitempty"`
	Failed    uint64     `cbor:"6,keyasint,omitempty"`
	FailedAt  int64      `cbor:"7,keyasint,omitempty"`
	Waiting   uint64     `cbor:"8,keyasint,omitempty"`
	Bytes     uint64     `cbor:"9,keyasint,omitempty"`
	Oldest    int64      `cbor:"10,keyasint,omitempty"`
	Parked    uint64     `cbor:"11,keyasint,omitempty"`
	Published uint64     `cbor:"12,keyasint,omitempty"`
	LastOut   int64      `cbor:"13,keyasint,omitempty"`
	Arrived   uint64     `cbor:"14,keyasint,omitempty"`
	LastIn    int64      `cbor:"15,keyasint,omitempty"`
	Held      *wireSpans `cbor:"16,keyasint,omitempty"`
	Void      *wireSpans `cbor:"17,keyasint,omitempty"`
	Lost      *wireSpans `cbor:"18,keyasint,omitempty"`
}

// wireSpans is a set of numbers: first, last, first, last, ascending.
type wireSpans struct {
	Runs  []uint64 `cbor:"1,keyasint"`
	Upper bool     `cbor:"2,keyasint,omitempty"`
}

type wireIdentity struct {
	State    uint8  `cbor:"1,keyasint"`
	NotAfter int64  `cbor:"2,keyasint,omitempty"`
	Fault    string `cbor:"3,keyasint,omitempty"`
}

type wireUplink struct {
	Connected bool   `cbor:"1,keyasint"`
	Since     int64  `cbor:"2,keyasint,omitempty"`
	Connects  uint64 `cbor:"3,keyasint,omitempty"`
	InFlight  uint64 `cbor:"4,keyasint,omitempty"`
	Fault     string `cbor:"5,keyasint,omitempty"`
	FaultAt   int64  `cbor:"6,keyasint,omitempty"`
}

type wireBuffer struct {
	Used     uint64 `cbor:"1,keyasint"`
	Cap      uint64 `cbor:"2,keyasint"`
	DiskFree uint64 `cbor:"3,keyasint,omitempty"`
	Damaged  uint64 `cbor:"4,keyasint,omitempty"`
	Unread   uint64 `cbor:"5,keyasint,omitempty"`
	Fault    string `cbor:"6,keyasint,omitempty"`
	FaultAt  int64  `cbor:"7,keyasint,omitempty"`
}

type wireClock struct {
	Trusted     bool   `cbor:"1,keyasint"`
	Offset      int64  `cbor:"2,keyasint,omitempty"`
	Floor       int64  `cbor:"3,keyasint,omitempty"`
	Uncertainty uint64 `cbor:"4,keyasint,omitempty"`
}

func newWireReportBatch(b *Batch) *wireReportBatch {
	r := b.Report
	w := wireReport{
		Agent: r.Agent, Wall: r.At.Wall, Mono: r.At.Mono, Started: r.Started, Config: r.Config, Every: r.Every,
		Identity: wireIdentity{uint8(r.Identity.State), r.Identity.NotAfter, r.Identity.Fault},
		Uplink:   wireUplink(r.Uplink), Buffer: wireBuffer(r.Buffer),
	}
	for _, s := range r.Sources {
		w.Sources = append(w.Sources, wireSource(s))
	}
	for i := range r.Lanes {
		l := &r.Lanes[i]
		wl := wireLane{
			Lane: uint8(l.Lane), Assigned: l.Assigned, Sealed: l.Sealed, SealedAt: l.SealedAt, Failed: l.Failed, FailedAt: l.FailedAt,
			Waiting: l.Waiting, Bytes: l.Bytes, Oldest: l.Oldest, Parked: l.Parked, Published: l.Published, LastOut: l.LastOut,
			Arrived: l.Arrived, LastIn: l.LastIn, Held: newWireSpans(l.Held), Void: newWireSpans(l.Void), Lost: newWireSpans(l.Lost),
		}
		if l.Epoch != (Epoch{}) {
			wl.Epoch = l.Epoch[:]
		}
		w.Lanes = append(w.Lanes, wl)
	}
	if c := r.Clock; c.Known {
		w.Clock = &wireClock{c.Trusted, c.Offset, c.Floor, c.Uncertainty}
	}
	version := uint64(reportVersion)
	if c := &r.Settings; c.Site != "" || c.Version > 0 || len(c.Steps) > 0 {
		version, w.Settings = configVersion, newWireConfig(c)
	}
	for i := range r.Sources {
		if s := &r.Sources[i]; s.Bed != "" || s.Shared || s.Conflicts|s.Slowed|s.Unproven|s.Expired != 0 || s.ConflictAt|s.SlowedAt|s.UnprovenAt != 0 {
			version = sourceVersion
		}
	}
	return &wireReportBatch{Version: version, Boot: b.Boot[:], Report: w}
}

func newWireConfig(c *ConfigReport) *wireConfig {
	w := &wireConfig{Site: c.Site, Version: c.Version}
	for _, s := range c.Steps {
		w.Steps = append(w.Steps, wireStep{s.Site, s.Version, uint8(s.Step), s.At, s.Reason})
	}
	return w
}

func (w *wireConfig) report() (c ConfigReport, err error) {
	if w == nil {
		return c, nil
	}
	if len(w.Steps) > MaxConfigSteps {
		return c, fmt.Errorf("report: %d steps of configurations; at most %d", len(w.Steps), MaxConfigSteps)
	}
	c = ConfigReport{Site: w.Site, Version: w.Version}
	for _, s := range w.Steps {
		c.Steps = append(c.Steps, ConfigStep{s.Site, s.Version, ConfigState(s.Step), s.At, s.Reason})
	}
	return c, nil
}

func newWireSpans(s Spans) *wireSpans {
	if len(s.Runs) == 0 {
		return nil
	}
	w := &wireSpans{Upper: s.Upper}
	for _, r := range s.Runs {
		w.Runs = append(w.Runs, r.First, r.Last)
	}
	return w
}

// decodeReport reads a batch that isReport. It accepts only the bytes that Encode makes.
func decodeReport(data []byte) (Batch, error) {
	var w wireReportBatch
	if err := unmarshal(data, &w); err != nil {
		return Batch{}, err
	}
	b, err := w.batch()
	if err != nil {
		return Batch{}, err
	}
	if err := b.check(); err != nil {
		return Batch{}, err
	}
	again, err := encoding.Marshal(newWireReportBatch(&b))
	if err != nil {
		return Batch{}, err
	}
	if !bytes.Equal(again, data) {
		return Batch{}, errors.New("report: not as Encode writes it")
	}
	return b, nil
}

func (w *wireReportBatch) batch() (b Batch, err error) {
	if len(w.Boot) != len(b.Boot) {
		return b, fmt.Errorf("boot id has %d bytes; expected %d", len(w.Boot), len(b.Boot))
	}
	copy(b.Boot[:], w.Boot)
	in := &w.Report
	r := &Report{
		Agent: in.Agent, At: Stamp{Wall: in.Wall, Mono: in.Mono}, Started: in.Started, Config: in.Config, Every: in.Every,
		Identity: IdentityReport{IdentityState(in.Identity.State), in.Identity.NotAfter, in.Identity.Fault},
		Uplink:   UplinkReport(in.Uplink), Buffer: BufferReport(in.Buffer),
	}
	if c := in.Clock; c != nil {
		r.Clock = ClockReport{Known: true, Trusted: c.Trusted, Offset: c.Offset, Floor: c.Floor, Uncertainty: c.Uncertainty}
	}
	if len(in.Sources) > MaxSources || len(in.Lanes) > MaxLanes {
		return b, fmt.Errorf("report: %d sources and %d lanes; at most %d and %d", len(in.Sources), len(in.Lanes), MaxSources, MaxLanes)
	}
	for _, s := range in.Sources {
		r.Sources = append(r.Sources, SourceReport(s))
	}
	for i := range in.Lanes {
		l, err := in.Lanes[i].lane()
		if err != nil {
			return b, err
		}
		r.Lanes = append(r.Lanes, l)
	}
	r.Settings, err = in.Settings.report()
	b.Report = r
	return b, err
}

func (w *wireLane) lane() (l LaneReport, err error) {
	l = LaneReport{
		Lane: Lane(w.Lane), Assigned: w.Assigned, Sealed: w.Sealed, SealedAt: w.SealedAt, Failed: w.Failed, FailedAt: w.FailedAt,
		Waiting: w.Waiting, Bytes: w.Bytes, Oldest: w.Oldest, Parked: w.Parked, Published: w.Published, LastOut: w.LastOut,
		Arrived: w.Arrived, LastIn: w.LastIn,
	}
	if len(w.Epoch) != 0 {
		if len(w.Epoch) != len(l.Epoch) {
			return l, fmt.Errorf("report: an epoch of %d bytes; expected %d", len(w.Epoch), len(l.Epoch))
		}
		l.Epoch = Epoch(w.Epoch)
	}
	for _, set := range []struct {
		in   *wireSpans
		into *Spans
	}{{w.Held, &l.Held}, {w.Void, &l.Void}, {w.Lost, &l.Lost}} {
		if *set.into, err = set.in.spans(); err != nil {
			return l, err
		}
	}
	return l, nil
}

func (w *wireSpans) spans() (s Spans, err error) {
	if w == nil {
		return s, nil
	}
	if len(w.Runs)%2 != 0 || len(w.Runs) == 0 || len(w.Runs) > 2*MaxSpans {
		return s, fmt.Errorf("report: %d ends of runs; expected pairs, 1 to %d", len(w.Runs), MaxSpans)
	}
	for i := 0; i < len(w.Runs); i += 2 {
		s.Runs = append(s.Runs, Span{w.Runs[i], w.Runs[i+1]})
	}
	s.Upper = w.Upper
	return s, nil
}
