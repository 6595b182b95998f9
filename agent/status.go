package agent

import (
	"os"
	"time"

	"wardlink/agent/source"
	"wardlink/agent/uplink"
	"wardlink/buffer"
	"wardlink/internal/build"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// Status is what a running agent says of itself: no patient, no value, no key.
type Status struct {
	Gateway   string                  `json:"gateway"`  // "" until enrolled
	Identity  string                  `json:"identity"` // "enrolled", "waiting for approval", "revoked by the hospital: ...", "suspended by ...", or what is in the way
	Waiting   string                  `json:"waiting,omitempty"`
	Former    string                  `json:"former,omitempty"`  // while it waits: the gateway whose disk this is, if it was with another board
	Revoked   bool                    `json:"revoked"`           // the hospital has cut this gateway off; what is taken in is kept
	CutOff    string                  `json:"cut_off,omitempty"` // how: "revoked", "suspended", "decommissioned", "replaced", "kept out" (outside of its validity)
	NotBefore *time.Time              `json:"not_before,omitempty"`
	NotAfter  *time.Time              `json:"not_after,omitempty"`
	Leaving   string                  `json:"leaving,omitempty"` // why the hospital has this gateway drain before it is wiped
	Wiped     string                  `json:"wiped,omitempty"`   // of a decommissioned gateway: "no" (not yet), "yes", "told" (and the hospital knows)
	Kit       string                  `json:"kit"`
	KitBeside []Finding               `json:"kit_refused,omitempty"` // a kit that lay there at the start and is not followed
	Short     string                  `json:"fingerprint,omitempty"` // of a TPM that is not enrolled yet
	Epoch     string                  `json:"epoch"`
	Started   time.Time               `json:"started"`
	ConfigSet uint64                  `json:"config_version"`
	Settings  ConfigStatus            `json:"configuration"` // the hospital's
	Reload    ReloadStatus            `json:"reload"`        // the last time that the box's configuration was read again
	Sources   map[string]source.Stats `json:"sources"`
	Intake    Counts                  `json:"intake"`
	Buffer    buffer.Stats            `json:"buffer"`
	Uplink    uplink.Status           `json:"uplink"`

	Version     string      `json:"version"` // the agent's
	PID         int         `json:"pid"`
	State       string      `json:"state"` // the state directory
	TrustDomain string      `json:"trust_domain"`
	Queues      []Queue     `json:"queues"`    // what waits in each lane, by urgency
	LastHour    uint64      `json:"last_hour"` // bytes of batches that became durable within the last hour
	Disk        Disk        `json:"disk"`      // under the state directory
	Clock       KernelClock `json:"clock"`
	Time        ClockFacts  `json:"time"` // what is known of the time

	Log    LogStatus    `json:"log"`    // the hospital's transparency log, as this gateway was shown it
	Resend ResendStatus `json:"resend"` // what a restored hospital asked for again
}

// Queue is what waits in a lane for the hospital's acknowledgement.
type Queue struct {
	Lane    string     `json:"lane"`
	Waiting uint64     `json:"waiting"`          // batches, parked ones not counted
	Parked  uint64     `json:"parked"`           // batches that the server refused; they are kept
	Bytes   uint64     `json:"bytes"`            // of both, about
	Oldest  *time.Time `json:"oldest,omitempty"` // when the oldest that waits was sealed, by this gateway's clock
}

// waitingInAll are the batches that wait in all lanes, and their bytes with those of parked ones.
func (s Status) waitingInAll() (batches, bytes uint64) {
	for _, q := range s.Queues {
		batches, bytes = batches+q.Waiting, bytes+q.Bytes
	}
	return batches, bytes
}

// Fill is the share of the buffer that holds what has not been acknowledged: at 1 the oldest is deleted for what is new. What was delivered lies in
// the buffer too, until its room is needed.
func (s Status) Fill() float64 {
	_, bytes := s.waitingInAll()
	if s.Buffer.Cap <= 0 {
		return 0
	}
	return min(1, float64(bytes)/float64(s.Buffer.Cap))
}

// Room is how long the buffer lasts without a connection, at the rate of the last hour. ok is false while there is no rate yet.
func (s Status) Room(now time.Time) (room time.Duration, ok bool) {
	up := min(now.Sub(s.Started), time.Hour)
	if up < 2*time.Minute || s.LastHour == 0 {
		return 0, false
	}
	_, bytes := s.waitingInAll()
	// The disk may be smaller than the cap; delivered batches make room on both.
	left := float64(min(s.Buffer.Cap, s.Buffer.Disk+int64(s.Disk.Free))) - float64(bytes)
	hours := max(left, 0) / float64(s.LastHour) * up.Hours()
	return time.Duration(min(hours, 24*365) * float64(time.Hour)), true
}

// lastEvicted is when a batch was deleted undelivered last; zero when none was.
func (s Status) lastEvicted() (last time.Time) {
	for _, l := range s.Buffer.Lanes {
		if l.EvictedAt.After(last) {
			last = l.EvictedAt
		}
	}
	return last
}

// LastAcknowledged is when the hospital's last PUBACK came; zero when none has since the agent's start.
func (s Status) LastAcknowledged() (last time.Time) {
	for _, l := range s.Uplink.Lanes {
		if l.AckedAt.After(last) {
			last = l.AckedAt
		}
	}
	return last
}

func (a *Agent) status() Status {
	s := Status{
		Time:     a.time.facts(),
		Identity: "enrolled", Kit: a.kit.ShortFingerprint(), Epoch: a.intake.epoch.String(), Started: a.started,
		ConfigSet: a.config.inForce().Version, Settings: a.configStatus(), Sources: a.feeds.stats(), Intake: a.intake.counters(),
		Buffer: a.buf.Stats(), Uplink: a.link.Status(), Resend: a.resend.state(), Log: a.logs.status(),
	}
	for id, st := range s.Sources {
		st.Ahead = a.devices.ahead(id)
		s.Sources[id] = st
	}
	s.KitBeside = a.held.Examine()
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Leaving, s.Reload = a.leaving, a.reloaded
	if a.identity == nil {
		s.Short = a.fingerprint
	}
	if a.identity != nil {
		s.Gateway, s.NotBefore, s.NotAfter = a.identity.Gateway, &a.identity.NotBefore, &a.identity.NotAfter
	}
	switch {
	case a.cutOff != nil && !(s.Uplink.Connected && s.Gateway != ""): // who is let in has been resumed, and has not asked for a certificate since
		s.Identity, s.CutOff, s.Revoked = a.cutOff.Error(), a.cutOff.What, true
	case a.identity != nil:
	case a.waiting != "":
		s.Identity, s.Waiting, s.Former = "waiting for approval", a.waiting, a.former
	case a.tpmState != "":
		s.Identity = a.tpmState
	default:
		s.Identity = "enrolling"
	}
	return s
}

// describe is status with what has to be looked up on disk.
func (a *Agent) describe() Status {
	if a.buried() != nil {
		return a.restStatus()
	}
	s := a.status()
	now := time.Now()
	s.Version, s.PID, s.State, s.TrustDomain = build.Version, os.Getpid(), a.cfg.State, a.kit.TrustDomain
	s.LastHour, s.Clock = a.intake.lastHour(now), ReadKernelClock()
	s.Disk, _ = DiskAt(a.cfg.State) // zero says that nobody knows
	for lane := range telemetry.Lane(telemetry.LaneCount) {
		q := Queue{Lane: lane.String()}
		if h, err := seal.CheckFrame(a.buf.Oldest(uint8(lane))); err == nil {
			at := time.UnixMilli(h.Wall)
			q.Oldest = &at
		}
		s.Queues = append(s.Queues, q)
	}
	for _, h := range a.buf.Accounts() {
		q := &s.Queues[h.Lane]
		q.Waiting, q.Parked, q.Bytes = q.Waiting+h.Waiting-min(h.Parked, h.Waiting), q.Parked+h.Parked, q.Bytes+h.Bytes
	}
	for i := range s.Queues {
		if s.Queues[i].Waiting == 0 {
			s.Queues[i].Oldest = nil // the oldest of all is a parked one
		}
	}
	return s
}
