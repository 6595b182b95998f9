// Package reading judges what a device says it has measured, whatever the format it says it in: which code is meant, whether there is a
// reading at all, whether it can be true, and when a local time was. Nothing is refused or dropped by it; marks and problems are all that it gives.
package reading

import (
	"strconv"
	"strings"

	"wardlink/telemetry"
	"wardlink/telemetry/codes"
)

// What Judge says of a number, as the reasons of problems.
const (
	NoNumber = "value is not a number"
	Misfit   = "unit does not belong to this code"
)

// Judge marks an observation whose value is to be a number and is not None: a sentinel, or out of what is plausible. The reason is that of
// a problem with it, NoNumber or Misfit, or "".
func Judge(o *telemetry.Observation) (reason string) {
	// strconv would also take hex, exponents and underscores, which NM has not.
	if !IsDecimal(o.Value) {
		return NoNumber
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
			return Misfit
		}
	}
	return ""
}

// MDC is the full MDC code of one coded triple, 0 when it is none. conflict tells that its number and its reference id are both
// known and mean different measures: to believe either could file one vital sign as another.
func MDC(id, name, system string) (mdc uint32, conflict bool) {
	byName, named := codes.ByRef(name)
	var byNumber uint32
	switch {
	case isMDC(system):
		byNumber = Number(id)
	case system == "":
		// Without a system only a full code that the table knows is believed.
		if n := Number(id); len(id) > 5 {
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

// Number reads a decimal MDC code, with or without partition, or Philips' two halves in hex (0002-4182 is 147842).
func Number(id string) uint32 {
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

// None tells the texts that devices send in place of a value: nothing, HL7's null, and marks without a letter or digit. In a
// number field words stand for nothing too.
func None(s string, number bool) bool {
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

// IsDecimal tells HL7's NM: an optional sign and digits with at most one point; no exponent.
func IsDecimal(s string) bool {
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
