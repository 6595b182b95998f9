package hl7

import (
	"strconv"
	"strings"

	"wardlink/telemetry"
	"wardlink/telemetry/codes"
)

// obx takes one OBX segment, f[k] being OBX-k. Whatever is wrong with it stays within it.
func (u *understanding) obx(f []string) {
	// The index counts every OBX, also those that become no observation: with the message's key it names the reading for ever, and a
	// mapping mended later must find the same numbers.
	i := u.index
	u.index++
	if i >= MaxObservations || u.foreign {
		return
	}
	if !u.hold(i, f) {
		u.observation(i, f)
	}
}

// observation makes an observation of one OBX segment.
func (u *understanding) observation(i uint32, f []string) {
	o := u.head(i, f)
	if reason := u.code(&o, f[3]); reason != "" {
		u.problem(reason, "OBX[%d]-3", i)
	}
	u.value(&o, f[5])
	u.time(&o, f[14])
	u.msg.Observations = append(u.msg.Observations, o)
}

// head is what an OBX says beside its code, value and time.
func (u *understanding) head(i uint32, f []string) telemetry.Observation {
	d := u.d
	text := func(s string, k int) string { return u.fit(s, telemetry.MaxText, "OBX[%d]-%d", i, k) }
	return telemetry.Observation{
		Index:  i,
		Type:   text(d.scalar(f[2]), 2),
		SubID:  text(d.asSent(f[4]), 4),
		Unit:   telemetry.Unit{Sent: text(d.asSent(f[6]), 6)},
		Limits: text(d.asSent(f[7]), 7),
		Flags:  text(d.asSent(f[8]), 8),
		Status: text(d.scalar(f[11]), 11),
		Device: text(d.asSent(f[18]), 18),
	}
}

const codeUnknown = "code is not known"

// code reads OBX-3: identifier, text and system, and the same three again for an alternate code. A reason says what is wrong with it.
func (u *understanding) code(o *telemetry.Observation, field string) (reason string) {
	var c [6]string
	split(first(field, u.d.rep), u.d.comp, c[:])
	if u.d.suffix(field) != "" {
		c[0] = first(c[0], u.d.sub)
	}
	for k := range c {
		c[k] = u.fit(u.d.unescape(c[k]), telemetry.MaxText, "OBX[%d]-3", o.Index)
	}
	o.Code = telemetry.Code{ID: c[0], Name: c[1], Sys: c[2]}
	mdc, conflict := mdcOf(c[0], c[1], c[2])
	if mdc == 0 && !conflict {
		mdc, conflict = mdcOf(c[3], c[4], c[5])
	}
	o.Code.MDC = mdc
	if _, known := codes.ByMDC(mdc); known || codes.IsDevice(mdc) {
		return ""
	}
	o.Marks |= telemetry.MarkUnknownCode
	switch {
	case conflict:
		return "number and reference id name different measures"
	case field == "":
		return "code is missing"
	}
	return codeUnknown
}

// mdcOf is the full MDC code of one coded triple, 0 when it is none. conflict tells that its number and its reference id are both
// known and mean different measures: to believe either could file one vital sign as another.
func mdcOf(id, name, system string) (mdc uint32, conflict bool) {
	byName, named := codes.ByRef(name)
	var byNumber uint32
	switch {
	case isMDC(system):
		byNumber = mdcNumber(id)
	case system == "":
		// Without a system only a full code that the table knows is believed.
		if n := mdcNumber(id); len(id) > 5 {
			if _, known := codes.ByMDC(n); known {
				byNumber = n
			}
		}
	default:
		return 0, false
	}
	switch {
	case byNumber == 0: // Mindray's VS8 and others send the reference id alone
		return byName, false
	case named && !sameMeasure(byNumber, byName):
		return 0, true
	}
	return byNumber, false
}

// isMDC knows the names under which devices announce ISO/IEEE 11073-10101. Philips monitors write MDIL.
func isMDC(system string) bool {
	switch strings.ToUpper(system) {
	case "MDC", "MDIL", "ISO11073-10101", "ISO/IEEE 11073-10101", "IEEE 11073-10101", "11073-10101",
		"URN:ISO:STD:ISO:11073:10101", "URN:OID:2.16.840.1.113883.6.24", "2.16.840.1.113883.6.24":
		return true
	}
	return false
}

// mdcNumber reads a decimal code, with or without partition, or Philips' two halves in hex (0002-4182 is 147842).
func mdcNumber(id string) uint32 {
	if len(id) == 9 && id[4] == '-' {
		partition, err1 := strconv.ParseUint(id[:4], 16, 16)
		term, err2 := strconv.ParseUint(id[5:], 16, 16)
		if err1 != nil || err2 != nil {
			return 0
		}
		mdc, _ := codes.Normalise(partition<<16 | term)
		return mdc
	}
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return 0
	}
	mdc, _ := codes.Normalise(n)
	return mdc
}

// sameMeasure tells whether two codes are one vital sign to a reader: vendors mix the arterial line's codes (ART, ABP) and names.
func sameMeasure(a, b uint32) bool {
	if a == b {
		return true
	}
	x, known := codes.ByMDC(a)
	y, _ := codes.ByMDC(b)
	return known && len(x.LOINC) > 0 && len(y.LOINC) > 0 && x.LOINC[0] == y.LOINC[0]
}

// value reads OBX-5 and OBX-6 and judges them. Whether there is a reading comes first: a sentinel must never be filed as a value.
func (u *understanding) value(o *telemetry.Observation, field string) {
	i := o.Index
	// Without a type what looks like a number is judged as one; the problem noted below keeps the message as it came.
	number := o.Type == "NM" || o.Type == ""
	switch o.Type {
	case "NM":
		o.Value = strings.Trim(u.d.unescape(field), " ") // HL7 pads NM at will; spaces are no part of the number
	case "", "ST", "TX", "FT", "IS", "ID", "DT", "TM", "DTM", "TS", "SI":
		o.Value = u.d.unescape(field)
	case "CE", "CWE", "CNE":
		o.Value = u.d.asSent(field)
	default: // SN, NA and MA carry numbers in a structure of their own, ED whole documents
		o.Value = u.d.asSent(field)
		if u.unread != "" {
			u.problem(u.unread, "OBX[%d]-5", i)
		} else {
			u.problem("value type is not read", "OBX[%d]-2", i)
		}
	}
	o.Value = u.fit(o.Value, telemetry.MaxText, "OBX[%d]-5", i)
	o.Unit.UCUM = u.unit(o.Unit.Sent)

	// OBX-11 (HL7 table 0085): X, the result cannot be obtained; N, not asked for. A value beside them is an old one.
	if o.Status == "X" || o.Status == "N" || isNoReading(o.Value, number) {
		o.Marks |= telemetry.MarkNoReading
		return
	}
	if o.Type == "" {
		u.problem("value type is missing", "OBX[%d]-2", i)
	}
	if o.Unit.UCUM == "" && (o.Unit.Sent != "" || number) {
		o.Marks |= telemetry.MarkUnknownUnit
		u.problem(pick(o.Unit.Sent == "", "unit is missing", "unit is not known"), "OBX[%d]-6", i)
	}
	if !number {
		return
	}
	// strconv would also take hex, exponents and underscores, which NM has not.
	if !isDecimal(o.Value) {
		u.problem("value is not a number", "OBX[%d]-5", i)
		return
	}
	v, err := strconv.ParseFloat(o.Value, 64)
	item, known := codes.For(o.Code.MDC, o.Unit.UCUM)
	switch {
	case err != nil: // beyond float64
		o.Marks |= telemetry.MarkImplausible
	case isSentinel(v, item, known):
		o.Marks |= telemetry.MarkNoReading
	case known && o.Unit.UCUM != "":
		switch item.Judge(v, o.Unit.UCUM) {
		case codes.Implausible:
			o.Marks |= telemetry.MarkImplausible
		case codes.WrongUnit: // 80 mmHg of heart rate is no heart rate, however plausible 80 is
			o.Marks |= telemetry.MarkImplausible
			u.problem("unit does not belong to this code", "OBX[%d]-6", i)
		}
	}
}

// unit is the UCUM code of OBX-6, whose components are standard by now.
func (u *understanding) unit(sent string) string {
	if strings.IndexByte(sent, '\\') >= 0 {
		sent = standard.unescape(first(sent, '^'))
	}
	// Philips writes units like codes, in two halves of hex: 0004-0220 is 262688, percent.
	if id := first(sent, '^'); len(id) == 9 && id[4] == '-' {
		if n := mdcNumber(id); n != 0 {
			if ucum, ok := codes.UnitOf(strconv.FormatUint(uint64(n), 10)); ok {
				return ucum
			}
		}
	}
	ucum, _ := codes.UnitOf(sent)
	return ucum
}

// isNoReading tells the texts that devices send in place of a value: nothing, HL7's null, and marks without a letter or digit. In a
// number field words stand for nothing too.
func isNoReading(s string, number bool) bool {
	s = strings.TrimSpace(s)
	if s == "" || s == `""` || strings.Trim(s, "-*?._# ") == "" {
		return true
	}
	if !number {
		return false
	}
	switch strings.ToUpper(s) {
	case "NAN", "N/A", "NA", "NULL", "NONE", "INV", "INVALID", "INF", "-INF", "+INF", "OFF":
		return true
	}
	return false
}

// isSentinel tells the numbers that stand for no reading. The limits of integer types and IEEE 11073's NaN and NRes are never
// values; the vendors' own marks (-1, -100 and -10000 at Mindray and Comen, -999 and -99.9 elsewhere) are values wherever the measure
// allows them, such as a venous pressure of -1.
func isSentinel(v float64, item codes.Item, known bool) bool {
	switch v {
	case -32768, 8388607, 8388608, -8388608, 2147483647, -2147483648, 4294967295:
		return true
	case -1, -99, -99.9, -100, -999, -999.9, -1000, -9999, -10000, 32767, -32767, 65535:
		return known && item.Judge(v, item.UCUM) == codes.Implausible
	}
	return false
}

// isDecimal tells HL7's NM: an optional sign and digits with at most one point; no exponent.
func isDecimal(s string) bool {
	if s != "" && (s[0] == '-' || s[0] == '+') {
		s = s[1:]
	}
	digits, points := 0, 0
	for i := range len(s) {
		switch {
		case s[i] >= '0' && s[i] <= '9':
			digits++
		case s[i] == '.':
			points++
		default:
			return false
		}
	}
	return digits > 0 && points <= 1
}

// time takes OBX-14, else OBR-7, else MSH-7. A time that stands there and cannot be read is not replaced by another: it would be a
// guess.
func (u *understanding) time(o *telemetry.Observation, field string) {
	c := &u.sent
	switch {
	case field != "":
		if sent := u.d.asSent(field); sent != u.last.text {
			u.last = u.clock(u.fit(sent, maxTime, "OBX[%d]-14", o.Index))
		}
		c = &u.last
	case u.reported.text != "":
		c = &u.reported
	}
	u.timeOf(o, *c)
}

func (u *understanding) timeOf(o *telemetry.Observation, c clock) {
	o.Time, o.At = c.text, c.at
	if !c.ok {
		o.Marks |= telemetry.MarkTimeUnread
		u.problem(pick(c.text == "", "time is missing", "time cannot be read"), "OBX[%d]-14", o.Index)
	}
}

func pick(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}
