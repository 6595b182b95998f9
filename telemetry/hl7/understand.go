// Package hl7 reads and answers HL7 v2 messages as bedside monitors send them: MLLP frames (Reader, WriteFrame), ORU^R01 after IHE
// PCD-01 as a telemetry.Message (Understand), and acknowledgements in original and enhanced mode (Ack).
//
// Nothing is refused for its content. What is not understood is marked where it stands, named in Problems without its value, and the
// whole message travels on as it came, so that a mapping can be mended later.
package hl7

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"wardlink/telemetry"
)

// Limits within one message. Together with telemetry.MaxMessage they keep what is understood of any message below
// telemetry.MaxPlain: a short OBX must not be able to copy a long text of its OBR some thousand times.
const (
	// MaxObservations is how many OBX segments of one message become observations. In 64 KiB it leaves 16 bytes to each.
	MaxObservations = 4096
	maxProblems     = 64
	maxTime         = 40 // bytes of a time as sent; a DTM has at most 24
)

// Options say what the message itself cannot.
type Options struct {
	Source string         // source id from the agent's configuration
	Zone   *time.Location // of times that name none; nil is UTC
}

// Understand reads one message, its frame taken off. It fills everything but Copy and Received. The error is ErrNoMSH, or
// ErrTooLong for a message beyond telemetry.MaxMessage, which no batch could carry; there is no other.
//
// The strings of the result share the message's memory.
func Understand(raw []byte, o Options) (telemetry.Message, error) {
	if len(raw) > telemetry.MaxMessage {
		return telemetry.Message{}, fmt.Errorf("%d bytes: %w", len(raw), ErrTooLong)
	}
	text := string(raw)
	d, msh, rest, err := header(text)
	if err != nil {
		return telemetry.Message{}, err
	}
	u := &understanding{d: d, zone: o.Zone}
	if u.zone == nil {
		u.zone = time.UTC
	}
	m := &u.msg
	m.Source, m.Digest = o.Source, sha256.Sum256(raw)

	var f [18]string // f[k-1] is MSH-k
	split(msh, d.field, f[:])
	if !isASCII(text) {
		// From MSH on: a byte order mark read in another set would be letters before it.
		declared := charsetOf(first(f[17], d.rep))
		readable, reason := toUTF8(text[strings.Index(text, "MSH"):], declared)
		if reason != "" {
			u.guessed = true
			u.problem(reason, "MSH-18")
		}
		if d, msh, rest, err = header(readable); err != nil {
			return telemetry.Message{}, err
		}
		split(msh, d.field, f[:])
	}
	u.header(f[:])

	if first(m.Type, '^') != "ORU" {
		u.problem("message is not an observation report (ORU)", "MSH-9")
	} else {
		if LaneOf(*m) == telemetry.LaneAlarm {
			u.problem("alarm is kept as sent", "MSH-9")
		}
		u.segments(rest)
	}
	if len(m.Problems) > 0 {
		m.Raw = append([]byte(nil), raw...)
	}
	return *m, nil
}

// LaneOf is the lane in which a message travels: ORU^R40 (IHE PCD-04) reports alarms; what holds waveforms and no other reading goes
// where it can hold up none.
func LaneOf(m telemetry.Message) telemetry.Lane {
	switch {
	case isReport(m.Type, "R40"):
		return telemetry.LaneAlarm
	case isWaveform(&m):
		return telemetry.LaneWaveform
	}
	return telemetry.LaneVitals
}

// isReport tells an observation report (ORU) of a trigger event by its MSH-9.
func isReport(msh9, event string) bool {
	rest, ok := strings.CutPrefix(msh9, "ORU^"+event)
	return ok && (rest == "" || rest[0] == '^')
}

// understanding is one message half read.
type understanding struct {
	d    delims
	zone *time.Location
	msg  telemetry.Message

	guessed   bool   // the text is not, or not surely, what the device meant: another character set than it says, or one not read
	index     uint32 // of the next OBX
	sent      clock  // MSH-7
	reported  clock  // OBR-7 of the last OBR
	last      clock  // the last OBX-14: most messages repeat one time in every OBX
	patients  bool   // a PID was read
	foreign   bool   // the segments at hand belong to another patient than Message.Patient
	truncated bool   // problems beyond maxProblems are not listed

	channels map[string]*channel // by sub id, as CD defined them; nil for one that cannot be read
	starts   map[string]clock    // by sub id, of a waveform's first sample, as TIM gave them
	held     []held              // of the OBR at hand
	begin    int                 // of its observations
	unread   string              // why the array at hand is no waveform
}

// clock is a time as sent and as read.
type clock struct {
	text   string
	at     int64
	ok     bool
	unsure bool
}

// problem notes what was not understood. where is a format for args; both name places, never values.
func (u *understanding) problem(reason, where string, args ...any) {
	switch n := len(u.msg.Problems); {
	case n < maxProblems:
		u.msg.Problems = append(u.msg.Problems, telemetry.Problem{Where: fmt.Sprintf(where, args...), Reason: reason})
	case !u.truncated:
		u.truncated = true
		u.msg.Problems[n-1] = telemetry.Problem{Where: "message", Reason: "more problems than are listed"}
	}
}

// scalar is the first component of a field's first repetition, its escapes resolved.
func (d delims) scalar(field string) string {
	return d.unescape(first(first(field, d.rep), d.comp))
}

// null maps HL7's explicit null, two quotes, to nothing.
func null(s string) string {
	if s == `""` {
		return ""
	}
	return s
}

// fit cuts what telemetry.MaxText does not allow, which only happens to a text that grew on its way to UTF-8.
func (u *understanding) fit(s string, max int, where string, args ...any) string {
	if len(s) <= max {
		return s
	}
	u.problem("text is too long and cut", where, args...)
	return strings.ToValidUTF8(s[:max], "")
}

func (u *understanding) header(f []string) {
	m, d := &u.msg, u.d
	m.SentAt = u.fit(d.asSent(f[6]), maxTime, "MSH-7")
	m.Type = u.fit(d.asSent(f[8]), telemetry.MaxText, "MSH-9")
	m.Sender = u.fit(null(d.scalar(f[2])), telemetry.MaxText, "MSH-3")
	m.ControlID = u.fit(null(d.unescape(f[9])), telemetry.MaxText, "MSH-10")
	m.Processing = u.fit(d.scalar(f[10]), telemetry.MaxText, "MSH-11")
	if m.ControlID == "" {
		u.problem("control id is missing", "MSH-10")
	}
	// A zone in MSH-7 holds for all times of the message that name none (HL7 v2, MSH-7).
	if _, offset, zoned, ok := cutZone(strings.TrimSpace(first(m.SentAt, '^'))); ok && zoned {
		u.zone = time.FixedZone("", offset)
	}
	u.sent = u.clock(m.SentAt)
}

// clock reads a time field that is written in the standard delimiters; its second component, if any, is HL7 v2.3's precision.
func (u *understanding) clock(field string) clock {
	at, unsure, ok := parseTime(first(field, '^'), u.zone)
	return clock{text: field, at: at, ok: ok, unsure: unsure}
}

func (u *understanding) segments(rest string) {
	if n := min(strings.Count(rest, "OBX"), MaxObservations); n > 0 {
		u.msg.Observations = make([]telemetry.Observation, 0, n)
	}
	// Fields beyond the last of interest, OBX-18 and PV1-19, are not taken; strings of former segments are overwritten by split.
	var f [20]string
	for n := 1; rest != ""; n++ {
		var segment string
		segment, rest = nextSegment(rest)
		name := first(segment, u.d.field)
		switch name {
		case "OBX":
			split(segment, u.d.field, f[:])
			u.obx(f[:])
		case "OBR":
			u.release()
			split(segment, u.d.field, f[:8])
			if u.reported = u.clock(u.fit(u.d.asSent(f[7]), maxTime, "segment[%d]-7", n)); u.reported.text != "" {
				clear(u.starts) // it says itself when its samples began
			}
		case "PID":
			u.release()
			split(segment, u.d.field, f[:4])
			u.pid(f[3], segment)
		case "PV1":
			split(segment, u.d.field, f[:])
			u.pv1(f[:])
		case "EVN", "PD1", "NK1", "PV2", "ORC", "SFT", "UAC", "TQ1", "TQ2":
			// Orders and demographics: not taken, by design.
		default:
			if strings.TrimSpace(segment) != "" {
				u.problem("segment is not read", "segment[%d]", n)
			}
		}
	}
	u.endWaveforms()
	if len(u.msg.Observations) == 0 {
		u.msg.Observations = nil
	}
	if u.index > MaxObservations {
		u.problem("more OBX segments than are read", "OBX[%d]", MaxObservations)
	}
	if u.index == 0 {
		u.problem("message has no OBX segment", "OBX")
	}
}

// pid takes PID-3. A message may report on several patients; a telemetry.Message has one. What belongs to any other is not made an
// observation, since it would be filed under the first: it travels in Raw.
//
// An identifier that cannot be read for certain is left empty, never filed as far as it can be read: two patients whose identifiers
// differ only in what is not read would become one.
func (u *understanding) pid(pid3, segment string) {
	d := u.d
	var cx [4]string
	certain := u.certain(segment)
	if certain {
		split(first(pid3, d.rep), d.comp, cx[:])
	} else {
		u.problem("identifier cannot be read in this character set; the patient is left empty", "PID-3")
	}
	id := u.fit(null(d.unescape(cx[0])), telemetry.MaxText, "PID-3.1")
	// PID-3.4 is itself made of parts, which a field of its own would separate by components.
	authority := cx[3]
	if d.sub != 0 {
		authority = strings.ReplaceAll(authority, string(d.sub), "^")
	}
	authority = u.fit(null(delims{'|', '^', d.rep, d.esc, 0}.asSent(authority)), telemetry.MaxText, "PID-3.4")
	if !u.patients && len(u.msg.Observations) == 0 && len(u.msg.Waveforms) == 0 {
		u.patients = true
		u.msg.Patient.ID, u.msg.Patient.Authority = id, authority
		return
	}
	// Two that cannot be read need not be the same.
	u.foreign = !certain || !u.patients || id != u.msg.Patient.ID || authority != u.msg.Patient.Authority
	if u.foreign {
		u.problem("a second patient in one message; its observations are kept as sent", "PID")
	}
}

// certain tells whether a PID segment is what was sent up to its third field, that field's place included. An escape character
// begins characters of ISO 2022, whose bytes look like ASCII. In other two-byte sets what looks like a delimiter behind another
// character than ASCII may be that character's second half. A replacement character that the device itself sent was another
// character once.
func (u *understanding) certain(segment string) bool {
	end, fields := 0, 0
	for end < len(segment) && fields < 4 {
		if segment[end] == u.d.field {
			fields++
		}
		end++
	}
	head := segment[:end]
	if strings.ContainsAny(head, "\x0e\x1b\ufffd") {
		return false
	}
	for i := 1; u.guessed && i < len(head); i++ {
		if head[i-1] < utf8.RuneSelf {
			continue
		}
		switch head[i] {
		case u.d.field, u.d.comp, u.d.rep, u.d.esc, u.d.sub:
			return false
		}
	}
	return true
}

func (u *understanding) pv1(f []string) {
	if u.foreign {
		return
	}
	p := &u.msg.Patient
	p.Location = u.fit(null(u.d.asSent(f[3])), telemetry.MaxText, "PV1-3")
	p.Visit = u.fit(null(u.d.scalar(f[19])), telemetry.MaxText, "PV1-19")
}
