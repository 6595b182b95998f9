package hl7

import (
	"strconv"
	"strings"

	"wardlink/telemetry"
	"wardlink/telemetry/codes"
	"wardlink/telemetry/reading"
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
	mdc, conflict := reading.MDC(c[0], c[1], c[2])
	if mdc == 0 && !conflict {
		mdc, conflict = reading.MDC(c[3], c[4], c[5])
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
	if o.Status == "X" || o.Status == "N" || reading.None(o.Value, number) {
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
	switch reading.Judge(o) {
	case reading.NoNumber:
		u.problem(reading.NoNumber, "OBX[%d]-5", i)
	case reading.Misfit:
		u.problem(reading.Misfit, "OBX[%d]-6", i)
	}
}

// unit is the UCUM code of OBX-6, whose components are standard by now.
func (u *understanding) unit(sent string) string {
	if strings.IndexByte(sent, '\\') >= 0 {
		sent = standard.unescape(first(sent, '^'))
	}
	// Philips writes units like codes, in two halves of hex: 0004-0220 is 262688, percent.
	if id := first(sent, '^'); len(id) == 9 && id[4] == '-' {
		if n := reading.Number(id); n != 0 {
			if ucum, ok := codes.UnitOf(strconv.FormatUint(uint64(n), 10)); ok {
				return ucum
			}
		}
	}
	ucum, _ := codes.UnitOf(sent)
	return ucum
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
	if c.unsure {
		o.Marks |= telemetry.MarkTimeUnsure
	}
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
