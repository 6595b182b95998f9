package agent

import (
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/enroll"
	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

const (
	// keepInterval is how often the trusted time is kept for the next start, which then knows that it is later. A write an hour wears nothing.
	keepInterval = time.Hour
	// maxRoundTrip bounds how old a signed time may be when it is taken: whoever sits in between can hold it back so long and no longer.
	maxRoundTrip = 10 * time.Second
)

// timekeeper knows of the time what can be known. It holds three values apart:
//
//   - the wall clock: left alone, stamped into every message as it is, believed in nothing;
//   - the floor: the latest instant that is known to be past, from the build, the kit's roots, the gateway's own certificate and the last
//     trusted time of earlier boots. It only moves forward, and never by the wall clock;
//   - the anchor: a time that the hospital signed in this boot, with the reading of the boot clock at that moment. It alone makes the
//     time trusted, and with it the offset (the hospital's time minus the wall clock's), which moves both ways when the wall clock is set.
//
// That the kernel calls its clock synchronised makes nothing trusted: NTP is not authenticated, and whoever answers it in the hospital's
// network could make an expired certificate valid again, or every certificate expired. The hospital's own word is one request away at
// every connection, so nothing is gained by believing less.
type timekeeper struct {
	clock
	log *slog.Logger

	mu        sync.Mutex
	file      *durable.AB
	floor     time.Time
	floorFrom string
	anchor    *anchor
	kept      time.Time // what the file holds
	trouble   string    // why the time could not be had at the last try
	challenge enroll.ClockChallenge
	steps     wallSteps
}

// anchor is one signed time.
type anchor struct {
	server      time.Time     // the hospital's clock, at
	mono        time.Duration // this reading of the boot clock,
	uncertainty time.Duration // give or take
	from        string        // the server that carried it
}

// ClockFacts is what the agent knows of the time.
type ClockFacts struct {
	Wall         time.Time  `json:"wall"`                        // the system's clock as it is
	Now          time.Time  `json:"now"`                         // the best that is known: the hospital's time, or the later of wall clock and floor
	Trusted      bool       `json:"trusted"`                     // the hospital told the time in this boot
	Offset       *int64     `json:"offset_ms,omitempty"`         // the hospital's time minus the wall clock's
	Uncertainty  int64      `json:"uncertainty_ms,omitempty"`    // of the offset, when it was learnt
	Floor        time.Time  `json:"floor"`                       // no present is earlier
	FloorFrom    string     `json:"floor_from"`                  //
	Learnt       *time.Time `json:"learnt_at,omitempty"`         // when the hospital told the time last, by its clock; in this boot
	LearntFrom   string     `json:"learnt_from,omitempty"`       // the server that carried it, host:port; signed it is by the hospital's config key
	Since        int64      `json:"since_ms,omitempty"`          // how long ago that was
	Synchronised bool       `json:"kernel_synchronised"`         // the kernel calls its clock synchronised (NTP); shown, not trusted
	Boot         string     `json:"boot_id"`                     //
	Trouble      string     `json:"trouble,omitempty"`           // why the time could not be had at the last try
	Ahead        bool       `json:"floor_is_ahead,omitempty"`    // the trusted time is before the floor: somewhere a clock was wrong
	Behind       bool       `json:"wall_before_floor,omitempty"` // the wall clock shows what cannot be: no RTC, or an empty battery
	Kept         *time.Time `json:"kept,omitempty"`              // the trusted time that the next boot begins with as its floor
	Challenge    string     `json:"challenge"`                   // for 'wardlink clock token', should the floor be wrong; of one token, and of this start
	Steps        uint64     `json:"steps,omitempty"`             // how often the wall clock was set, since the agent's start
	LastStep     int64      `json:"last_step_ms,omitempty"`      // by how much, the last time; negative: back
	LastStepAgo  int64      `json:"last_step_ago_ms,omitempty"`  // how long ago
}

// openTimekeeper reads the time that earlier boots kept at path (an A/B pair). A pair that is lost costs the floor that it held, no start.
func openTimekeeper(path string, c clock, log *slog.Logger) (*timekeeper, error) {
	k := &timekeeper{clock: c, log: log, floorFrom: "nothing", challenge: enroll.NewClockChallenge()}
	file, data, aside, lost, err := durable.OpenABOrAside(path, 8)
	if err != nil {
		return nil, fmt.Errorf("trusted time: %w", err)
	}
	if lost != nil {
		log.Error("the time that was kept is lost; the hospital tells it at the next connection", "set_aside", aside, "error", lost)
	}
	k.file = file
	if len(data) == 8 {
		k.kept = time.UnixMilli(int64(binary.BigEndian.Uint64(data)))
		k.raise(k.kept, "the last trusted time")
	}
	return k, nil
}

// raise moves the floor forward; an earlier instant changes nothing.
func (k *timekeeper) raise(t time.Time, from string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t.After(k.floor) {
		k.floor, k.floorFrom = t.Round(0), from
	}
}

// learn takes a time that the hospital signed between two readings of the boot clock. Whoever calls it has verified the signature.
func (k *timekeeper) learn(server time.Time, sent, received time.Duration, from string) error {
	trip := received - sent
	if trip < 0 || trip > maxRoundTrip {
		return fmt.Errorf("the signed time was %s under way; at most %s", trip, maxRoundTrip)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	first := k.anchor == nil
	k.anchor = &anchor{server: server, mono: sent + trip/2, uncertainty: trip / 2, from: from}
	k.trouble = ""
	now := k.present()
	if first {
		k.log.Info("the time is trusted", "now", now.UTC().Format(time.RFC3339), "offset_ms", now.Sub(k.now()).Milliseconds())
	}
	if now.Before(k.floor) {
		// The floor stays: that the hospital's clock went back does not make the past future again. Trust follows the hospital.
		k.log.Warn("the hospital's time is before what was known to be past", "now", now.UTC().Format(time.RFC3339), "floor", k.floor.UTC().Format(time.RFC3339))
	}
	k.keep(now)
	return nil
}

// keep stores the trusted time for the next start, at most once in a while. Under mu.
func (k *timekeeper) keep(now time.Time) {
	if now.Sub(k.kept) < keepInterval {
		return
	}
	if err := k.file.Store(binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))); err != nil {
		k.log.Warn("the trusted time is not kept; the next start knows less", "error", err)
		return
	}
	k.kept = now
	if now.After(k.floor) {
		k.floor, k.floorFrom = now.Round(0), "the last trusted time"
	}
}

// present is the trusted time. Under mu, with an anchor.
func (k *timekeeper) present() time.Time {
	return k.anchor.server.Add(k.mono() - k.anchor.mono).Round(0)
}

// moment is what certificates are judged by.
func (k *timekeeper) moment() spiffe.Moment {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.anchor == nil {
		return spiffe.Moment{Time: k.floor, Floor: true}
	}
	now := k.present()
	k.keep(now)
	return spiffe.Moment{Time: now}
}

// best is the time as well as it is known, for what may be wrong: when to renew, what to show.
func (k *timekeeper) best() time.Time {
	if m := k.moment(); !m.Floor {
		return m.Time
	}
	wall := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if wall.Before(k.floor) {
		return k.floor
	}
	return wall.Round(0)
}

// offset is the hospital's time minus the wall clock's, false while it is not known.
func (k *timekeeper) offset() (d, uncertainty time.Duration, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.anchor == nil {
		return 0, 0, false
	}
	return k.present().Sub(k.now().Round(0)), k.anchor.uncertainty, true
}

func (k *timekeeper) failed(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.trouble = err.Error()
}

// facts is everything that is known.
func (k *timekeeper) facts() ClockFacts {
	now := k.best()
	offset, uncertainty, known := k.offset()
	k.mu.Lock()
	defer k.mu.Unlock()
	f := ClockFacts{
		Wall: k.now().UTC().Round(0), Now: now.UTC(), Trusted: known, Floor: k.floor.UTC(), FloorFrom: k.floorFrom, Synchronised: synchronised(),
		Boot: hex.EncodeToString(k.boot[:]), Trouble: k.trouble, Behind: k.now().Before(k.floor), Challenge: k.challenge.String(),
		Steps: k.steps.count, LastStep: k.steps.last.Milliseconds(),
	}
	if !k.kept.IsZero() {
		kept := k.kept.UTC()
		f.Kept = &kept
	}
	if k.steps.count > 0 {
		f.LastStepAgo = (k.mono() - k.steps.at).Milliseconds()
	}
	if known {
		f.LearntFrom = k.anchor.from
		ms, learnt := offset.Milliseconds(), k.anchor.server.UTC()
		f.Offset, f.Uncertainty, f.Learnt = &ms, uncertainty.Milliseconds(), &learnt
		f.Since = (k.mono() - k.anchor.mono).Milliseconds()
		f.Ahead = now.Before(k.floor)
	}
	return f
}

// synchronised is whether the kernel calls its clock synchronised (adjtimex(2)); reading it needs no privilege.
func synchronised() bool {
	state, err := unix.Adjtimex(&unix.Timex{})
	return err == nil && state != unix.TIME_ERROR
}

// stepOfNote is how far the wall clock may be from where it should stand a moment later: NTP slews by 0.5 ms a second, and steps from
// 128 ms on.
const stepOfNote = time.Second

// wallSteps is how often the wall clock was set within this run.
type wallSteps struct {
	count  uint64
	last   time.Duration // by how much
	at     time.Duration // boot clock
	wall   time.Time     // at the last look,
	mono   time.Duration // which was at this reading of the boot clock
	looked bool
}

// look notices that the wall clock was set since the last look. Nothing is decided by it: people and the hospital are told.
func (k *timekeeper) look() {
	before := k.mono()
	wall := k.now().Round(0)
	mono := k.mono()
	if mono-before > stepOfNote/4 { // this goroutine was stopped between the two
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &k.steps
	step := wall.Sub(s.wall) - (mono - s.mono)
	if s.looked && step.Abs() >= stepOfNote {
		s.count, s.last, s.at = s.count+1, step, mono
		k.log.Warn("the wall clock was set; the order of data does not go by it, and its times are repaired by the hospital", "by_ms", step.Milliseconds())
	}
	s.wall, s.mono, s.looked = wall, mono, true
}

// reset sets the floor back to what a token of the hospital's says, and forgets the time that was trusted, so that it is asked for anew.
// What is known besides (build, kit) is for the caller to raise again.
//
// Crash argument: the token's time is on disk before the floor moves; before that nothing has happened, and the challenge holds. A start
// after it begins with another challenge, so no token counts twice.
func (k *timekeeper) reset(token string, key ed25519.PublicKey, gateway string) (time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, err := enroll.VerifyClockToken(token, key, gateway, k.challenge)
	if err != nil {
		return at, err
	}
	if err := k.file.Store(binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli()))); err != nil {
		return at, fmt.Errorf("the floor cannot be kept, so it is not set back: %w", err)
	}
	k.log.Warn("the floor is set back by a token of the hospital's", "from", k.floor.UTC().Format(time.RFC3339), "to", at.Format(time.RFC3339), "challenge", k.challenge.String())
	k.kept, k.floor, k.floorFrom, k.anchor, k.challenge = at, at, "a token of the hospital's", nil, enroll.NewClockChallenge()
	return at, nil
}

var errNoTime = errors.New("the hospital did not tell the time")

// clockReport is the timekeeper's part of a report made at an instant; At.Wall plus the offset is then the hospital's time at At.Mono.
func (a *Agent) clockReport(at *telemetry.Stamp) telemetry.ClockReport {
	c := telemetry.ClockReport{Known: true, Floor: millis(a.time.floorNow())}
	server, uncertainty, known := a.time.at(time.Duration(at.Mono) * time.Millisecond)
	if known {
		c.Trusted, c.Offset, c.Uncertainty = true, server.UnixMilli()-at.Wall, uint64(uncertainty.Milliseconds())
	}
	return c
}

func (k *timekeeper) floorNow() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.floor
}

// at is the hospital's time at a reading of this boot's clock, false while no time is trusted.
func (k *timekeeper) at(mono time.Duration) (t time.Time, uncertainty time.Duration, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.anchor == nil {
		return time.Time{}, 0, false
	}
	return k.anchor.server.Add(mono - k.anchor.mono), k.anchor.uncertainty, true
}
