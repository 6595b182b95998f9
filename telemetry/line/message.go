package line

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/codes"
	"wardlink/telemetry/reading"
)

// The keys of a message and of what is in it, with the numbers that CBOR may use in their place. LINE.md and line.cddl have the same.
const (
	keyID = 1 + iota
	keyBed
	keyDevice
	keyTime
	keyPatient
	keyTest
	keyObservations
	keyAlarms
	keyWaveforms
	keyCode
	keySystem
	keyName
	keyValue
	keyUnit
	keySub
	keyLimits
	keyFlags
	keyStatus
	keyLabel
	keyPeriod
	keyFactor
	keyOrigin
	keyLower
	keyUpper
	keySamples
	keyAuthority
	keyVisit
	keyPriority
	keyState
	keyCount
)

// Names are the keys by their numbers; the first is no key.
var Names = [keyCount]string{
	"", "id", "bed", "device", "time", "patient", "test", "observations", "alarms", "waveforms", "code", "system", "name", "value", "unit", "sub",
	"limits", "flags", "status", "label", "period", "factor", "origin", "lower", "upper", "samples", "authority", "visit", "priority", "state",
}

// keyOf is a key's number; 0 of one that is not known.
func keyOf(name string) int { return max(0, slices.Index(Names[1:], name)+1) }

func set(keys ...int) (s uint64) {
	for _, k := range keys {
		s |= 1 << k
	}
	return s
}

// What each object may hold.
var (
	codeKeys     = set(keyCode, keySystem, keyName, keyTime, keyDevice, keySub)
	topKeys      = set(keyID, keyBed, keyDevice, keyTime, keyPatient, keyTest, keyObservations, keyAlarms, keyWaveforms)
	patientKeys  = set(keyID, keyAuthority, keyVisit)
	readingKeys  = codeKeys | set(keyValue, keyUnit, keyLimits, keyFlags, keyStatus)
	alarmKeys    = codeKeys | set(keyPriority, keyState)
	waveformKeys = codeKeys | set(keyUnit, keyFlags, keyStatus, keyLabel, keyPeriod, keyFactor, keyOrigin, keyLower, keyUpper, keySamples)
)

// fields is an object that was read: its texts and numbers, and where everything else in it begins.
type fields struct {
	kind        [keyCount]kind
	text        [keyCount]string
	at          [keyCount]int
	seen, twice uint64
}

func (f *fields) has(key int) bool { return f.seen&(1<<key) != 0 }

// understanding is one message half read.
type understanding struct {
	in       input
	zone     *time.Location
	msg      *telemetry.Message
	problems []telemetry.Problem

	device string // of readings that name none
	time   clock  // likewise
	index  uint32 // of the next reading
}

// clock is a time as sent and as read.
type clock struct {
	text   string
	at     int64
	unsure bool // its zone has that local time twice or never
	ok     bool
}

// problem notes what was not understood: a place and a constant, never a value.
func (u *understanding) problem(where, reason string) {
	switch n := len(u.problems); {
	case n < maxProblems:
		u.problems = append(u.problems, telemetry.Problem{Where: where, Reason: reason})
	case n == maxProblems:
		u.problems[n-1] = telemetry.Problem{Where: "message", Reason: "more problems than are listed"}
	}
}

// fields reads the object that comes next.
func (u *understanding) fields(known uint64, where string) *fields {
	f, in := &fields{}, &u.in
	in.each(func(key int) {
		bit := uint64(1) << key
		switch {
		case key == 0 || known&bit == 0:
			u.problem(where, "a key is not known")
			in.skip()
			return
		case f.seen&bit != 0:
			f.twice |= bit
			in.skip()
			return
		}
		f.seen |= bit
		f.at[key] = in.at
		switch f.kind[key] = in.peek(); f.kind[key] {
		case kindText:
			f.text[key] = in.string()
		case kindNumber:
			f.text[key] = in.number()
		default:
			in.skip()
		}
	})
	if f.twice != 0 {
		u.problem(where, "a key stands twice")
	}
	return f
}

// string is a text of f, as long as a message allows. null is none; what is no text is left to the message as it came.
func (u *understanding) string(f *fields, key int, where string) string {
	switch f.kind[key] {
	case kindNone, kindNull:
		return ""
	case kindText:
		return f.text[key]
	}
	u.problem(where+"."+Names[key], "is not text")
	return ""
}

// name is a text that says whose something is. One that is not certain is left empty, never cut: it would be another's.
func (u *understanding) name(f *fields, key int, where string) string {
	s := u.string(f, key, where)
	if s == "" || f.twice&(1<<key) == 0 && len(s) <= maxShared && isPrintable(s) {
		return s
	}
	u.problem(where+"."+Names[key], "is longer than 200 bytes, stands twice, or is not printable; it is left empty")
	return ""
}

// header reads what holds for the whole message.
func (u *understanding) header(f *fields) {
	m := u.msg
	m.Processing = "P"
	if f.has(keyTest) {
		// Whoever says "test" at all must not have his data taken for a patient's because of how he spells it.
		m.Processing = "T"
		u.in.at = f.at[keyTest]
		switch u.word() {
		case "true":
		case "false":
			m.Processing = "P"
		default:
			u.problem("test", "is neither true nor false; it counts as true")
		}
	}
	u.device = u.name(f, keyDevice, "message")
	u.time = u.clock(f, "message")
	m.SentAt = u.time.text
	m.Patient.Location = u.name(f, keyBed, "message")
	switch f.kind[keyPatient] {
	case kindNone, kindNull:
	case kindObject:
		u.in.at = f.at[keyPatient]
		p := u.fields(patientKeys, "patient")
		m.Patient.ID, m.Patient.Authority, m.Patient.Visit = u.name(p, keyID, "patient"), u.name(p, keyAuthority, "patient"), u.name(p, keyVisit, "patient")
		// An identifier belongs to nobody without its authority, where one was meant; and nothing is filed under one of two.
		if f.twice&(1<<keyPatient) != 0 || m.Patient.Authority == "" && p.has(keyAuthority) && p.kind[keyAuthority] != kindNull && p.text[keyAuthority] != "" {
			m.Patient.ID, m.Patient.Authority, m.Patient.Visit = "", "", ""
		}
	default:
		u.problem("patient", "is not an object")
	}
}

// word reads true or false at the present place.
func (u *understanding) word() string {
	in := &u.in
	switch {
	case in.peek() != kindOther:
		return ""
	case !in.cbor:
		return in.token()
	case in.text[in.at] == 0xf5:
		return "true"
	case in.text[in.at] == 0xf4:
		return "false"
	}
	return ""
}

// clock reads a time.
func (u *understanding) clock(f *fields, where string) clock {
	if !f.has(keyTime) || f.kind[keyTime] == kindNull {
		return u.time
	}
	text := u.string(f, keyTime, where)
	if len(text) > maxShared {
		text = strings.ToValidUTF8(text[:maxShared], "")
	}
	spelled, leap := text, time.Duration(0)
	if i := strings.Index(text, ":60"); i == 16 {
		spelled, leap = text[:i]+":59"+text[i+3:], time.Second // as in HL7: a leap second is the next minute's first
	}
	// A T and a zone are the standard's; a blank and none are what is written where people do not read it.
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05Z07:00"} {
		if t, err := time.Parse(layout, spelled); err == nil {
			return clock{text: text, at: t.Add(leap).UnixMilli(), ok: true}
		}
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05"} {
		if t, err := time.Parse(layout, spelled); err == nil {
			t = t.Add(leap)
			east, unsure := reading.OffsetOf(t.Unix(), u.zone)
			return clock{text: text, at: t.UnixMilli() - east*1000, unsure: unsure, ok: true}
		}
	}
	u.problem(where+".time", "cannot be read; expected RFC 3339, as in 2026-11-22T14:30:00.250+01:00")
	return clock{text: text}
}

// sections reads the three lists, in the order in which they stand: a reading's index is its place among all of them.
func (u *understanding) sections(f *fields) {
	order := []int{keyObservations, keyAlarms, keyWaveforms}
	slices.SortFunc(order, func(a, b int) int { return f.at[a] - f.at[b] })
	none := true
	for _, key := range order {
		if !f.has(key) {
			continue
		}
		none = false
		if key == keyAlarms {
			u.problem(Names[key], "alarms are kept as sent")
		}
		if f.kind[key] != kindArray {
			u.problem(Names[key], "is not a list")
			continue
		}
		u.in.at = f.at[key]
		n := -1
		u.in.each(func(int) {
			n++
			u.element(key, n)
		})
	}
	if none {
		u.problem("message", "neither observations nor alarms nor waveforms")
	}
	if u.index > MaxReadings {
		u.problem("message", "more readings than are read")
	}
}

// element reads one reading of a list.
func (u *understanding) element(key, n int) {
	i := u.index
	u.index++
	where := Names[key] + "[" + strconv.Itoa(n) + "]"
	switch {
	case i >= MaxReadings:
		u.in.skip()
		return
	case u.in.peek() != kindObject:
		u.problem(where, "is not an object")
		u.in.skip()
		return
	}
	known := readingKeys
	switch key {
	case keyAlarms:
		known = alarmKeys
	case keyWaveforms:
		known = waveformKeys
	}
	f := u.fields(known, where)
	end := u.in.at
	switch {
	case f.twice != 0: // nobody knows which is meant: such a reading travels as it came, and as nothing else
	case key == keyObservations:
		u.observation(f, i, where)
	case key == keyAlarms:
		u.alarm(f, i, where)
	default:
		u.waveform(f, i, where)
	}
	u.in.at = end
}

// head is what observations, alarms and waveforms have in common. quiet leaves out that a code is not known: the reading says it itself,
// and is whole.
func (u *understanding) head(f *fields, i uint32, where string, quiet bool) telemetry.Observation {
	o := telemetry.Observation{
		Index: i, SubID: u.string(f, keySub, where), Flags: u.string(f, keyFlags, where), Status: u.string(f, keyStatus, where),
		Limits: u.string(f, keyLimits, where), Unit: telemetry.Unit{Sent: u.string(f, keyUnit, where)}, Device: u.device,
		Code: telemetry.Code{Name: u.string(f, keyName, where), Sys: u.string(f, keySystem, where)},
	}
	if f.has(keyDevice) {
		o.Device = u.name(f, keyDevice, where)
	}
	if reason := u.code(&o, f); reason != "" {
		o.Marks |= telemetry.MarkUnknownCode
		if reason != codeUnknown || !quiet {
			u.problem(where+".code", reason)
		}
	}
	c := u.clock(f, where)
	if o.Time, o.At = c.text, c.at; !c.ok {
		o.Marks |= telemetry.MarkTimeUnread // no problem: a device need not have a clock
	}
	if c.unsure {
		o.Marks |= telemetry.MarkTimeUnsure
	}
	o.Unit.UCUM, _ = codes.UnitOf(o.Unit.Sent)
	return o
}

const codeUnknown = "is not known"

// code reads what was measured: the number or the reference id of ISO/IEEE 11073-10101, or another system's code.
func (u *understanding) code(o *telemetry.Observation, f *fields) (reason string) {
	s := f.text[keyCode]
	switch f.kind[keyCode] {
	case kindText, kindNumber:
	case kindNone, kindNull:
		return "is missing"
	default:
		return "is neither text nor a number"
	}
	switch o.Code.Sys {
	case "":
		o.Code.Sys = "MDC"
	case "LOINC", "http://loinc.org":
		o.Code.Sys = "LN" // HL7 table 0396, by which the hospital's side knows it
	}
	o.Code.ID = s
	ref := o.Code.Name
	if strings.HasPrefix(s, "MDC_") && o.Code.Sys == "MDC" {
		ref = s
		if o.Code.Name == "" {
			o.Code.Name = s
		}
	}
	mdc, conflict := reading.MDC(s, ref, o.Code.Sys)
	o.Code.MDC = mdc
	if _, known := codes.ByMDC(mdc); known || codes.IsDevice(mdc) {
		return ""
	}
	if conflict {
		return "number and reference id name different measures"
	}
	return codeUnknown
}

// observation reads one value.
func (u *understanding) observation(f *fields, i uint32, where string) {
	o := u.head(f, i, where, false)
	o.Type, o.Value = "NM", f.text[keyValue]
	switch f.kind[keyValue] {
	case kindNumber:
		if o.Value == "" {
			u.problem(where+".value", reading.NoNumber)
		}
	case kindText:
		// Some writers put decimals into quotes, so that no float on their way can round them.
		if o.Value = strings.Trim(o.Value, " "); !reading.IsDecimal(o.Value) {
			o.Type = "ST"
		}
	case kindNone, kindNull:
	case kindOther:
		u.in.at = f.at[keyValue]
		if o.Type, o.Value = "ST", u.word(); o.Value == "" {
			u.problem(where+".value", "is neither a number nor text")
		}
	default:
		u.problem(where+".value", "is neither a number nor text")
	}
	number := o.Type == "NM"
	switch {
	case o.Status == "X" || o.Status == "N" || reading.None(o.Value, number):
		o.Marks |= telemetry.MarkNoReading
	case o.Unit.UCUM == "" && (o.Unit.Sent != "" || number):
		o.Marks |= telemetry.MarkUnknownUnit
		reason := "is not known"
		if o.Unit.Sent == "" {
			reason = "is missing"
		}
		u.problem(where+".unit", reason)
	}
	if number && o.Marks&telemetry.MarkNoReading == 0 {
		switch reading.Judge(&o) {
		case reading.NoNumber:
			u.problem(where+".value", reading.NoNumber)
		case reading.Misfit:
			u.problem(where+".unit", reading.Misfit)
		}
	}
	u.msg.Observations = append(u.msg.Observations, o)
}

// alarm reads what an alarm says of itself. Its priority becomes what HL7 writes for it (IHE PCD-04, OBX-8), its state the value; the
// message travels beside it as it came, since that is no form for what alarms can say.
func (u *understanding) alarm(f *fields, i uint32, where string) {
	o := u.head(f, i, where, true)
	o.Type, o.Value = "ST", u.string(f, keyState, where)
	if reading.None(o.Value, false) {
		o.Marks |= telemetry.MarkNoReading
	}
	switch p := u.string(f, keyPriority, where); p {
	case "high":
		o.Flags = "PH"
	case "medium":
		o.Flags = "PM"
	case "low":
		o.Flags = "PL"
	case "information":
		o.Flags = "PN"
	case "":
	default:
		u.problem(where+".priority", "is none of high, medium, low, information")
	}
	u.msg.Observations = append(u.msg.Observations, o)
}
