package hl7

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"

	"wardlink/telemetry"
	"wardlink/telemetry/codes"
)

// Waveforms come in two forms, both as an OBX of type NA, a row of numbers.
//
// HL7 v2 chapter 7 (ORU^W01, or within ORU^R01): an OBX of type CD under the same sub id (OBX-4) defines the channel, and holds for
// every NA of that sub id behind it; OBX-3.1 has a suffix in its second subcomponent, CHN, WAV, TIM or ANO. The numbers are the
// converter's.
//
// IHE PCD's waveform content module (ORU^R01): the numbers are values in OBX-6's unit, and OBX of the same OBR whose sub ids are the
// array's with one part more say how it was sampled: MDC_ATTR_SAMP_RATE, MDC_ATTR_DATA_RANGE. Some monitors send the converter's
// numbers without a unit, and MDC_ATTR_NU_MSMT_RES, the unit's value of one step; and MDC_EVT_INOP, the number that stands for none.
// These codes were never the same number twice, so they are known by their reference ids.
//
// The limit is the message's: telemetry.MaxMessage holds a second of eight channels at 500 Hz in twelve bits more than twice. A device that
// sends more at once is refused (AR), and sends shorter pieces.
//
// What is read in part is not made a waveform: a scale or a mark that is guessed wrongly shows a patient's signal as another.

// held is an OBX whose meaning other segments decide.
type held struct {
	index uint32
	f     [20]string // OBX-k
	sub   string     // OBX-4

	channel *channel // of an array: as CD defined it, if it did
	defined bool

	taken  bool   // it is part of a waveform
	reason string // of an array, why it is none
}

// channel says how an array was sampled. Its numbers are decimals as telemetry.Waveform has them.
type channel struct {
	label string
	unit  string // as sent; "" is OBX-6's

	factor                       decimal
	period, origin, lower, upper string
	missing                      int64 // the number that stands for none; noSentinel when there is no such

	index uint32 // of its CD
	used  bool   // an array was read by it
}

const noSentinel = math.MinInt64

// maxShared is how long a text may be that each array of a channel repeats.
const maxShared = 100

// suffixes of OBX-3.1's second subcomponent (HL7 v2, 7.14.2).
func isSuffix(s string) bool { return s == "CHN" || s == "WAV" || s == "TIM" || s == "ANO" }

// suffix is the category of a waveform's OBX, "" for every other.
func (d delims) suffix(obx3 string) string {
	if d.sub == 0 {
		return ""
	}
	if _, s, _ := strings.Cut(first(first(obx3, d.rep), d.comp), string(d.sub)); isSuffix(s) {
		return s
	}
	return ""
}

// isAttribute tells the OBX that describe another one, by OBX-3.2.
func isAttribute(name string) bool {
	return strings.HasPrefix(name, "MDC_ATTR_") || name == "MDC_EVT_INOP"
}

// hold keeps what a waveform may be made of until all that belongs to it was read. It tells whether it did.
func (u *understanding) hold(i uint32, f []string) bool {
	var name [2]string
	kind := u.d.scalar(f[2])
	sub := u.fit(u.d.asSent(f[4]), telemetry.MaxText, "OBX[%d]-4", i)
	switch suffix := u.d.suffix(f[3]); {
	case kind == "CD":
		u.defineChannel(i, sub, f)
		return true
	case suffix == "TIM" && (kind == "TS" || kind == "DTM"):
		if u.starts == nil {
			u.starts = make(map[string]clock)
		}
		u.starts[sub] = u.clock(u.fit(u.d.asSent(f[5]), maxTime, "OBX[%d]-5", i))
		return true
	case kind == "NA":
	default:
		split(first(f[3], u.d.rep), u.d.comp, name[:])
		if !isAttribute(name[1]) {
			return false
		}
	}
	h := held{index: i, f: [20]string(f), sub: sub}
	if kind == "NA" {
		// A definition holds for what stands behind it, and until the next one.
		if h.channel, h.defined = u.channels[sub]; h.channel != nil {
			h.channel.used = true
		}
	}
	u.held = append(u.held, h)
	return true
}

// release decides about what was held: at the end of an OBR's segments, since attributes may stand behind their array.
func (u *understanding) release() {
	// What is of earlier OBRs is in its order, and a message can have thousands of them.
	begin := u.begin
	defer func() { u.begin = len(u.msg.Observations) }()
	if len(u.held) == 0 {
		return
	}
	attributes := u.attributes()
	for i := range u.held {
		h := &u.held[i]
		if u.d.scalar(h.f[2]) != "NA" {
			continue
		}
		c, of, reason := u.channelOf(h, attributes[h.sub])
		if c != nil {
			reason = u.waveform(h, c)
		}
		if h.reason = reason; reason != "" {
			continue
		}
		h.taken = true
		for _, a := range of {
			a.taken = true
		}
	}
	for i := range u.held {
		if h := &u.held[i]; !h.taken {
			u.unread = h.reason
			u.observation(h.index, h.f[:])
			u.unread = ""
		}
	}
	u.held = u.held[:0]
	own := u.msg.Observations[begin:]
	sort.Slice(own, func(i, k int) bool { return own[i].Index < own[k].Index })
}

// attributes lists what is held and describes something, by the sub id of that: its own with one part less, or its very own.
func (u *understanding) attributes() map[string][]*held {
	of := make(map[string][]*held)
	for i := range u.held {
		h := &u.held[i]
		if u.d.scalar(h.f[2]) == "NA" {
			continue
		}
		of[h.sub] = append(of[h.sub], h)
		if dot := strings.LastIndexByte(h.sub, '.'); dot >= 0 {
			of[h.sub[:dot]] = append(of[h.sub[:dot]], h)
		}
	}
	return of
}

// defineChannel reads a CD: name, sources, sensitivity and unit, calibration, frequency, range (HL7 v2, 2A.3.5).
func (u *understanding) defineChannel(i uint32, sub string, f []string) {
	var cd [6]string
	split(first(f[5], u.d.rep), u.d.comp, cd[:])
	c, reason := u.d.channel(cd[:])
	if reason != "" {
		u.problem(reason, "OBX[%d]-5", i)
	}
	if c != nil {
		c.index = i
		c.label = u.fit(c.label, maxShared, "OBX[%d]-5", i)
		c.unit = u.fit(c.unit, maxShared, "OBX[%d]-5", i)
		if c.unit == "" {
			c.unit = u.fit(u.d.asSent(f[6]), maxShared, "OBX[%d]-6", i)
		}
	}
	if u.channels == nil {
		u.channels = make(map[string]*channel)
	}
	u.unused(u.channels[sub])
	u.channels[sub] = c // also nil: what came before no longer holds
}

// unused keeps a definition that no array of its message was read by: later messages may rest on it.
func (u *understanding) unused(c *channel) {
	if c != nil && !c.used {
		u.problem("channel definition without samples", "OBX[%d]-5", c.index)
	}
}

// endWaveforms decides about all that is still held.
func (u *understanding) endWaveforms() {
	u.release()
	channels := slices.Collect(maps.Values(u.channels))
	sort.Slice(channels, func(i, k int) bool { return byIndex(channels[i], channels[k]) < 0 })
	for _, c := range channels {
		u.unused(c)
	}
}

func byIndex(a, b *channel) int {
	switch {
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Compare(a.index, b.index)
}

// channel makes a channel of a CD's components. A channel that is nil cannot be used; reason says what is not read of it.
func (d delims) channel(cd []string) (c *channel, reason string) {
	sub := func(component string, parts []string) {
		split(component, d.sub, parts)
		for i := range parts {
			parts[i] = null(d.unescape(parts[i]))
		}
	}
	var name, source, limits [2]string
	var unit [4]string
	var calibration [3]string
	sub(cd[0], name[:])
	sub(cd[1], source[:])
	sub(cd[2], unit[:])
	sub(cd[3], calibration[:])
	sub(cd[5], limits[:])

	sensitivity, ok := parseDecimal(unit[0])
	if !ok || sensitivity.sign() == 0 {
		return nil, "channel's sensitivity is not a number"
	}
	correction, ok1 := orDecimal(calibration[0], 1)
	baseline, ok2 := orDecimal(calibration[1], 0)
	skew, ok3 := orDecimal(calibration[2], 0)
	if !ok1 || !ok2 || !ok3 || correction.sign() == 0 {
		return nil, "channel's calibration is not numbers"
	}
	frequency, _ := orDecimal(null(d.unescape(cd[4])), 0)
	c = &channel{missing: noSentinel, label: name[1], factor: sensitivity.mul(correction)}
	if c.label == "" {
		c.label = source[0]
	}
	if frequency.unscaled == nil {
		return nil, "channel's sampling frequency is not a number"
	}
	if c.period, ok = frequency.period(); !ok {
		return nil, "channel's sampling frequency is not a number"
	}
	origin, ok1 := c.factor.mul(baseline.neg()).String()
	if !ok1 {
		return nil, "channel's scale has too many digits"
	}
	c.origin = origin
	c.unit = strings.TrimRight(strings.Join(unit[1:], "^"), "^")
	if skew.sign() != 0 {
		reason = "channel's time skew is not applied" // the standard gives it in seconds, devices in milliseconds too
	}
	if limits[0] == "" && limits[1] == "" {
		return c, reason
	}
	low, ok1 := parseDecimal(limits[0])
	high, ok2 := parseDecimal(limits[1])
	if !ok1 || !ok2 {
		return c, "channel's range is not numbers"
	}
	c.lower, ok1 = low.sub(baseline).mul(c.factor).String()
	c.upper, ok2 = high.sub(baseline).mul(c.factor).String()
	if c.factor.sign() < 0 {
		c.lower, c.upper = c.upper, c.lower
	}
	if !ok1 || !ok2 {
		c.lower, c.upper, reason = "", "", "channel's range has too many digits"
	}
	return c, reason
}

// channelOf finds how an array was sampled: by the CD of its sub id, or by its attributes. When nothing, or not all of it, is known the
// channel is nil, and reason says so. taken are the attributes that the channel says all of.
func (u *understanding) channelOf(h *held, attributes []*held) (c *channel, taken []*held, reason string) {
	if h.defined {
		return h.channel, nil, pick(h.channel == nil, "array's channel definition is not read", "")
	}
	c = &channel{missing: noSentinel, origin: "0"}
	c.factor, _ = orDecimal("", 1)
	seen := make(map[string]bool, 4)
	for _, a := range attributes {
		var name [2]string
		split(first(a.f[3], u.d.rep), u.d.comp, name[:])
		if seen[name[1]] || !u.attribute(c, h, a, name[1]) {
			return nil, nil, "attribute of an array is not read"
		}
		seen[name[1]] = true
		if name[1] != "MDC_ATTR_DATA_RANGE" || c.lower != "" {
			taken = append(taken, a)
		}
	}
	if c.period == "" {
		return nil, nil, "array has neither channel definition nor sampling rate"
	}
	return c, taken, ""
}

// attribute takes what attribute a says of array h. False means that it is not known what it says.
func (u *understanding) attribute(c *channel, h, a *held, name string) (ok bool) {
	value, number := parseDecimal(u.d.unescape(a.f[5]))
	switch name {
	case "MDC_ATTR_SAMP_RATE":
		if ucum := u.unit(u.d.asSent(a.f[6])); number && (ucum == "Hz" || ucum == "/s" || a.f[6] == "") {
			c.period, ok = value.period()
		}
	case "MDC_ATTR_DATA_RANGE":
		u.limits(c, h, a)
		ok = true // a range that is not taken changes nothing of the samples
	case "MDC_ATTR_NU_MSMT_RES":
		// With a unit on both, the numbers are values to some monitors and steps to others.
		if ok = number && (value.isOne() || value.sign() != 0 && h.f[6] == ""); ok && h.f[6] == "" {
			c.factor = value
			c.unit = u.fit(u.d.asSent(a.f[6]), maxShared, "OBX[%d]-6", a.index)
		}
	case "MDC_EVT_INOP":
		// Others send a flag here, and a flag is no sample.
		if number && value.scale == 0 && value.unscaled.IsInt64() && isExtreme(value.unscaled.Int64()) {
			c.missing, ok = value.unscaled.Int64(), true
		}
	}
	return ok
}

// limits takes a MDC_ATTR_DATA_RANGE that is in the array's own unit.
func (u *understanding) limits(c *channel, h, a *held) {
	var parts [2]string
	split(first(a.f[5], u.d.rep), u.d.comp, parts[:])
	low, ok1 := parseDecimal(u.d.unescape(parts[0]))
	high, ok2 := parseDecimal(u.d.unescape(parts[1]))
	own := h.f[6] != "" && (a.f[6] == "" || u.unit(u.d.asSent(a.f[6])) == u.unit(u.d.asSent(h.f[6])))
	if !ok1 || !ok2 || !own {
		return
	}
	lower, ok1 := low.String()
	upper, ok2 := high.String()
	if ok1 && ok2 {
		c.lower, c.upper = lower, upper
	}
}

// waveform makes a waveform of an array and its channel. A reason says that the array is not what a waveform can hold.
func (u *understanding) waveform(h *held, c *channel) (reason string) {
	samples, scale, ok := u.d.samples(h.f[5], c.missing)
	if !ok {
		return "array is not one row of numbers that fit 32 bits"
	}
	factor, ok := decimal{c.factor.unscaled, c.factor.scale + scale}.String()
	if !ok {
		return "array's scale has too many digits"
	}
	o := u.head(h.index, h.f[:])
	// A code or a unit that is not known is a mark and no problem: a waveform carries all that a mapping mended later would need, and
	// the message beside it, once a second, would be ten times its size.
	if reason := u.code(&o, h.f[3]); reason != "" && reason != codeUnknown {
		u.problem(reason, "OBX[%d]-3", h.index)
	}
	if c.unit != "" {
		o.Unit.Sent = c.unit
	}
	if o.Unit.UCUM = u.unit(o.Unit.Sent); o.Unit.UCUM == "" {
		o.Marks |= telemetry.MarkUnknownUnit
		if o.Unit.Sent == "" {
			u.problem("unit is missing", "OBX[%d]-6", h.index)
		}
	}
	if o.Status == "X" || o.Status == "N" || len(samples) == 0 {
		o.Marks |= telemetry.MarkNoReading
	}
	if start, known := u.starts[h.sub]; known && h.f[14] == "" {
		u.timeOf(&o, start)
	} else {
		u.time(&o, h.f[14])
	}
	u.msg.Waveforms = append(u.msg.Waveforms, telemetry.Waveform{
		Index: o.Index, Type: o.Type, Code: o.Code, Label: c.label, Unit: o.Unit, SubID: o.SubID, Flags: o.Flags, Status: o.Status,
		Time: o.Time, At: o.At, Device: o.Device, Marks: o.Marks,
		Period: c.period, Factor: factor, Origin: c.origin, Lower: c.lower, Upper: c.upper, Samples: samples,
	})
	return ""
}

// isWaveform tells a message that brings waveforms and nothing that was measured besides.
func isWaveform(m *telemetry.Message) bool {
	if len(m.Waveforms) == 0 && !isReport(m.Type, "W01") {
		return false
	}
	for i := range m.Observations {
		if !accompanies(&m.Observations[i]) {
			return false
		}
	}
	return true
}

// accompanies tells what stands beside waveforms and is no reading of its own: the parts of the device that they are of, arrays that
// were not understood, and attributes.
func accompanies(o *telemetry.Observation) bool {
	switch {
	case codes.IsDevice(o.Code.MDC) && o.Marks&telemetry.MarkNoReading != 0:
		return true
	case o.Type == "NA", o.Type == "MA":
		return true
	}
	return isAttribute(o.Code.Name)
}
