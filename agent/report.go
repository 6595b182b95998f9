package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/buffer"
	"wardlink/internal/build"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// When reports are made. A report is about 0.5 KB on the wire: 0.8 MB a day at one a minute, which a metered link can bear. Without a
// connection nobody would read more of them, and the disk would wear.
const (
	reportEvery  = time.Minute      // unless 'report_every' says otherwise
	reportUnwell = 10 * time.Second // while the connection stands and something is wrong
	reportLook   = time.Second      // how often it is looked whether something of note has changed
)

// silence is how long a source may say nothing, at the least, before that is told at once. The hospital's trace counts in the same way.
const silence = time.Minute

// backlogOfNote is how many batches may wait for a connection that stands before that counts as wrong.
const backlogOfNote = 256

// reporter sends the agent's account of itself on lane self (WIRE.md, "Report"). It seals and stores its batches beside the intake, so
// that telemetry never waits for it, and it alone uses that lane's numbers.
//
// At most one report is unsent: once a newer one is durable, the older is withdrawn, unless it is on its way. A crash in between
// sends both. A report that cannot be stored is given up; the next one says so.
type reporter struct {
	agent *Agent
	every atomic.Int64 // nanoseconds

	mu sync.Mutex // of what stands below without being atomic: run's, and that of an eviction

	next   atomic.Uint64   // number of the next report
	asked  atomic.Uint64   // how often a report was asked for
	proof  atomic.Uint64   // reports below this number: one of them, the newest that the hospital acknowledged
	void   telemetry.Spans // reports that were withdrawn, or could not be stored
	unsent buffer.ID
	any    bool // there is an unsent one, as far as is known
	made   time.Time
	seen   notable // what the last report said

	tellMu  sync.Mutex // last of all, and held for nothing else
	telling []telling  // losses in reports that are not acknowledged, oldest first
}

// telling is what a report says of losses.
type telling struct {
	number uint64
	losses []buffer.LossID
}

// maxTelling bounds what is remembered: one report waits, and one may be on its way. Of one that is forgotten the next tells again.
const maxTelling = 4

// notable is what a report does not wait a minute to say.
type notable struct {
	identity  telemetry.IdentityState
	fault     string // of the identity
	connected bool
	failures  uint64 // batches that could not be kept
	lost      uint64 // batches that were kept, and are gone
	damaged   int
	parked    uint64
	config    uint64
	firsts    int    // sources that have brought something
	trusted   bool   // the clock
	set       uint64 // how often the wall clock was
	deaf      int    // sources whose port cannot be opened
	silent    int    // sources that are silent for longer than is usual for them
	steps     int    // of configurations
	asked     uint64
}

// ask has a report made soon, and gives the number that it has at least.
func (r *reporter) ask() (number uint64) {
	number = r.next.Load()
	r.asked.Add(1)
	return number
}

// acknowledged tells whether the hospital has a report of this number or a later one.
func (r *reporter) acknowledged(number uint64) bool { return r.proof.Load() > number }

// arrived notes what the hospital has acknowledged.
func (r *reporter) arrived(ids []buffer.ID) {
	for _, id := range ids {
		if telemetry.Lane(id.Lane) != telemetry.LaneSelf || id.Epoch != r.agent.intake.epoch {
			continue
		}
		r.told(id.Number)
		if id.Number >= r.proof.Load() {
			r.proof.Store(id.Number + 1) // the uplink's goroutine alone comes here
		}
	}
}

// told notes that the hospital has a report of this epoch durably, and so what it said of losses.
func (r *reporter) told(number uint64) {
	r.tellMu.Lock()
	defer r.tellMu.Unlock()
	for i, t := range r.telling {
		if t.number == number {
			r.agent.buf.Told(t.losses)
			r.telling = append(r.telling[:i], r.telling[i+1:]...)
			return
		}
	}
}

// evicting is called by the buffer between the moment at which a loss is durable and the end of its file: the report that tells of it is
// stored first. It runs on the goroutine whose batch needs the room, and appends to a lane that never waits for that.
func (a *Agent) evicting() error {
	a.reports.mu.Lock()
	defer a.reports.mu.Unlock()
	return a.reports.send(time.Now())
}

// interval is how often a report is made while nothing changes.
func (r *reporter) interval() time.Duration {
	if set, _ := r.agent.config.settings(); set.ReportEvery > 0 {
		return time.Duration(set.ReportEvery) * time.Millisecond
	}
	return time.Duration(r.every.Load())
}

// run reports until ctx ends.
func (r *reporter) run(ctx context.Context) error {
	tick := time.NewTicker(reportLook)
	defer tick.Stop()
	for {
		now := time.Now()
		s := r.agent.status()
		r.mu.Lock()
		if r.due(s, now) {
			r.log(r.send(now))
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// last makes the epoch's last report, once the sources have stopped: it says what the epoch assigned. The next start sends it.
func (r *reporter) last() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log(r.send(time.Now()))
}

func (r *reporter) log(err error) {
	if err != nil {
		r.agent.log.Warn("the agent's report of itself is not stored; the next one follows", "error", err)
	}
}

// due tells whether it is time for a report. Under mu, as what it calls.
func (r *reporter) due(s Status, now time.Time) bool {
	age, every := now.Sub(r.made), r.interval()
	switch {
	case r.made.IsZero(), age >= every, age < 0, r.notable(s) != r.seen:
		return true
	}
	return age >= min(reportUnwell, every) && s.Uplink.Connected && r.unwell(s)
}

func (r *reporter) notable(s Status) notable {
	lanes, _ := r.agent.intake.accounts()
	n := notable{
		identity: identityState(s), fault: identityFault(s), connected: s.Uplink.Connected, damaged: len(s.Buffer.Damaged),
		parked: s.Uplink.Parked, config: s.ConfigSet, trusted: s.Time.Trusted, set: s.Time.Steps, asked: r.asked.Load(),
	}
	_, n.steps = r.agent.config.report()
	for _, l := range s.Buffer.Lanes {
		n.lost += l.Lost + l.Evicted
	}
	for lane, a := range lanes {
		if telemetry.Lane(lane) != telemetry.LaneSelf && a.failed > 0 {
			n.failures++ // the first of a lane; those after it, which may be many a second, are told in time
		}
	}
	for _, src := range s.Sources {
		if src.Received > 0 {
			n.firsts++
		}
		if !src.Listening {
			n.deaf++
		}
		if !src.LastReceived.IsZero() && time.Since(src.LastReceived) > max(silence, 5*src.Usual) {
			n.silent++
		}
	}
	return n
}

// unwell tells whether something is wrong that an operator may be watching.
func (r *reporter) unwell(s Status) bool {
	_, f := r.agent.intake.accounts()
	waiting := uint64(0)
	for _, l := range s.Buffer.Lanes {
		waiting += l.Waiting - min(l.Parked, l.Waiting)
	}
	return identityState(s) != telemetry.IdentityEnrolled || waiting > backlogOfNote || s.Buffer.Disk > s.Buffer.Cap/10*9 ||
		!f.at.IsZero() && time.Since(f.at) < reportEvery || len(s.Buffer.Unread) > 0
}

// send makes a report, durably, in the place of one that is still unsent. Under mu.
func (r *reporter) send(now time.Time) error {
	s := r.agent.status()
	r.made, r.seen = now, r.notable(s)
	number := r.next.Add(1) - 1 // used up whatever happens
	void := r.void
	if r.any {
		void = r.voided(r.unsent.Number)
	}
	id := buffer.ID{Epoch: r.agent.intake.epoch, Lane: uint8(telemetry.LaneSelf), Number: number}
	report, losses := r.agent.report(s, number+1, void)
	if err := r.store(id, report); err != nil {
		r.void = r.voided(number)
		return err
	}
	if len(losses) > 0 {
		r.tellMu.Lock()
		r.telling = append(r.telling[max(0, len(r.telling)-maxTelling+1):], telling{number, losses})
		r.tellMu.Unlock()
	}
	if r.any && r.agent.buf.Withdraw(r.unsent) {
		r.void = void
	}
	r.unsent, r.any = id, true
	return nil
}

func (r *reporter) voided(number uint64) telemetry.Spans {
	runs := append([]telemetry.Span(nil), r.void.Runs...)
	return telemetry.NewSpans(append(runs, telemetry.Span{First: number, Last: number}), r.void.Upper)
}

func (r *reporter) store(id buffer.ID, report *telemetry.Report) error {
	in := r.agent.intake
	plain, err := telemetry.Encode(telemetry.Batch{Boot: in.clock.boot, Report: report})
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	for tries := 0; ; tries++ {
		period, err := in.currentPeriod()
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
		frame, err := period.Seal(seal.Header{
			Lane: telemetry.LaneSelf, Number: id.Number, Wall: report.At.Wall, Mono: report.At.Mono,
		}, plain)
		if errors.Is(err, seal.ErrOver) && tries < 3 {
			continue // the intake began another period meanwhile
		}
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
		if err := r.agent.buf.Append([]buffer.Item{{ID: id, Frame: frame, Sealing: period.ID(), Record: period.Record()}}); err != nil {
			return err
		}
		in.mu.Lock()
		defer in.mu.Unlock()
		in.use(period.ID())
		return nil
	}
}

// report gathers what the agent knows of itself, and says which losses it names. assigned is how many reports this epoch has made, this one
// included.
func (a *Agent) report(s Status, assigned uint64, void telemetry.Spans) (*telemetry.Report, []buffer.LossID) {
	lanes, f := a.intake.accounts()
	r := &telemetry.Report{
		Every: uint64(a.reports.interval().Milliseconds()), Agent: build.Version, At: a.intake.clock.stamp(), Started: millis(s.Started), Config: s.ConfigSet,
		Identity: telemetry.IdentityReport{State: identityState(s), Fault: identityFault(s)},
		Uplink: telemetry.UplinkReport{
			Connected: s.Uplink.Connected, Since: millis(s.Uplink.Since), Connects: s.Uplink.Connects, InFlight: uint64(s.Uplink.InFlight),
			Fault: s.Uplink.Fault, FaultAt: millis(s.Uplink.LastErrorAt),
		},
		Buffer: telemetry.BufferReport{
			Used: uint64(s.Buffer.Disk), Cap: uint64(s.Buffer.Cap), DiskFree: diskFree(a.cfg.State),
			Damaged: uint64(len(s.Buffer.Damaged)), Unread: uint64(len(s.Buffer.Unread)), Fault: f.class, FaultAt: millis(f.at),
		},
	}
	if at := s.lastEvicted(); at.After(f.at) {
		r.Buffer.Fault, r.Buffer.FaultAt = evictingFault, millis(at)
	}
	r.Clock = a.clockReport(&r.At)
	r.Settings, _ = a.config.report()
	if s.NotAfter != nil {
		r.Identity.NotAfter = millis(*s.NotAfter)
	}
	r.Sources = sourceReports(s)
	self := &lanes[telemetry.LaneSelf]
	self.assigned, self.void = assigned, void
	var losses []buffer.LossID
	r.Lanes, losses = laneReports(a.intake.epoch, lanes, s, a.resend.lost(a.buf.Accounts()))
	a.oldest(r.Lanes)
	return r, losses
}

// evictingFault is a constant, as every fault in a report.
const evictingFault = "the buffer is full: the oldest is deleted for new batches"

// oldest says since when each lane has something waiting, in the account of the epoch that the batch is of.
func (a *Agent) oldest(lanes []telemetry.LaneReport) {
	for lane := range telemetry.Lane(telemetry.LaneCount) {
		h, err := seal.CheckFrame(a.buf.Oldest(uint8(lane)))
		if err != nil {
			continue
		}
		for i := range lanes {
			l := &lanes[i]
			if l.Lane == lane && l.Waiting > 0 && (l.Epoch == h.Epoch || l.Epoch == telemetry.Epoch{} && h.Epoch == a.intake.epoch) {
				l.Oldest = h.Wall
			}
		}
	}
}

// sourceReports are ascending by id, and as many as a report holds.
func sourceReports(s Status) (out []telemetry.SourceReport) {
	for _, id := range slices.Sorted(maps.Keys(s.Sources)) {
		if len(out) == telemetry.MaxSources {
			break
		}
		st := s.Sources[id]
		out = append(out, telemetry.SourceReport{
			ID: id, Connections: uint64(st.Connections), Received: st.Received, ReceivedAt: millis(st.LastReceived),
			Interval: uint64(max(0, st.Usual.Milliseconds())), Acknowledged: st.Acknowledged,
			NotUnderstood: st.NotUnderstood, NotUnderstoodAt: millis(st.LastNotUnderstood), Refused: st.Refused, RefusedAt: millis(st.LastRefused),
			Failed: st.Failed, FailedAt: millis(st.LastFailed), Unwelcome: st.NotAllowed + st.OverLimit, UnwelcomeAt: millis(st.LastUnwelcome),
			Deaf: !st.Listening, AcknowledgedAt: millis(st.LastAcknowledged),
			Bed: st.Bed, Shared: st.Shared,
		})
		r, port := &out[len(out)-1], st
		if st.Port != "" { // what is known of the port alone stands with each device on it
			port = s.Sources[st.Port]
		}
		r.Conflicts, r.ConflictAt, r.Slowed, r.SlowedAt = port.BedConflicts, millis(port.LastBedConflict), port.Slowed, millis(port.LastSlowed)
		if t := port.TLS; t != nil {
			r.Unproven, r.UnprovenAt, r.Expired = t.Refused, millis(t.LastRefused), t.Expired
		}
	}
	return out
}

// laneReports joins what the intake counted, what the network took and what the buffer holds: this epoch's lanes that were used, then
// what is left of former epochs, losses that the hospital does not know first. losses are those that are in it.
func laneReports(epoch telemetry.Epoch, lanes [telemetry.LaneCount]laneAccount, s Status, held []buffer.Account) (out []telemetry.LaneReport, losses []buffer.LossID) {
	for lane := range lanes {
		a, out1 := &lanes[lane], s.Uplink.Lanes[lane]
		l := telemetry.LaneReport{
			Lane: telemetry.Lane(lane), Assigned: a.assigned, Sealed: a.sealed, SealedAt: millis(a.sealedAt), Failed: a.failed, FailedAt: millis(a.failedAt),
			Published: out1.Published, LastOut: millis(out1.PublishedAt), Arrived: out1.Acknowledged, LastIn: millis(out1.AckedAt), Void: a.void,
		}
		if l.Assigned == 0 && l.Published == 0 {
			continue
		}
		out = append(out, l)
	}
	if untold := func(h *buffer.Account) bool { return len(h.Lost) > 0 && !h.Told }; len(held) > telemetry.MaxLanes {
		sort.SliceStable(held, func(i, k int) bool { return untold(&held[i]) && !untold(&held[k]) })
	}
	for _, h := range held {
		var l *telemetry.LaneReport
		if telemetry.Epoch(h.Epoch) == epoch {
			for i := range out {
				// A former epoch whose account came before has an entry of that lane, too.
				if out[i].Epoch == (telemetry.Epoch{}) && out[i].Lane == telemetry.Lane(h.Lane) {
					l = &out[i]
				}
			}
		} else if len(out) < telemetry.MaxLanes && (h.Waiting > 0 || len(h.Lost) > 0) {
			out = append(out, telemetry.LaneReport{Epoch: h.Epoch, Lane: telemetry.Lane(h.Lane), Assigned: h.Next})
			l = &out[len(out)-1]
		}
		if l == nil {
			continue
		}
		l.Waiting, l.Parked, l.Bytes = h.Waiting, h.Parked, h.Bytes
		l.Held, l.Lost = spans(h.Held, h.HeldUpper), spans(h.Lost, h.LostUpper)
		if h.LossID.Rev > 0 {
			losses = append(losses, h.LossID)
		}
	}
	return out, losses
}

func spans(runs []buffer.Run, upper bool) telemetry.Spans {
	var in []telemetry.Span
	for _, r := range runs {
		in = append(in, telemetry.Span{First: r.First, Last: r.Last})
	}
	return telemetry.NewSpans(in, upper && len(in) > 0)
}

func identityState(s Status) telemetry.IdentityState {
	switch {
	case s.Gateway != "":
		return telemetry.IdentityEnrolled
	case s.Waiting != "":
		return telemetry.IdentityWaiting
	}
	return telemetry.IdentityNone
}

// identityFault is constant: what holds an enrolment up can quote paths and addresses, and stays in the agent's own status.
func identityFault(s Status) string {
	if identityState(s) == telemetry.IdentityNone && s.Identity != "enrolling" {
		return "no identity; 'wardlink-agent status' on the gateway says why"
	}
	return ""
}

// millis is an instant as reports hold it: 0 for none.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return clampInstant(t.UnixMilli())
}

// clampInstant keeps a clock that is far out within what a report can say.
func clampInstant(ms int64) int64 { return min(max(ms, 0), maxInstant) }

// maxInstant is the end of the year 9999 in Unix milliseconds.
const maxInstant = 253402300799999

// diskFree is what an ordinary user can still write below dir, in bytes; 0 when nobody knows.
func diskFree(dir string) uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	return st.Bavail * uint64(st.Bsize)
}
