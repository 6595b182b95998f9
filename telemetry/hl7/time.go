package hl7

import (
	"strings"
	"time"

	"wardlink/telemetry/reading"
)

// parseTime reads HL7's DTM, YYYYMMDDHHMM[SS[.F...]][+ZZZZ], into Unix milliseconds; digits past the millisecond are cut off. A
// time without zone is one of zone. Less than minutes is not a time: a day would put a reading at midnight. Mindray's gateways send
// milliseconds without the point (YYYYMMDDHHMMSSFFF), which is read too.
//
// unsure: the zone has that local time twice, of which the earlier is taken, or never, which is read as if the clocks had not been set yet.
func parseTime(s string, zone *time.Location) (ms int64, unsure, ok bool) {
	s, offset, zoned, ok := cutZone(strings.TrimSpace(s))
	if !ok {
		return 0, false, false
	}
	digits, fraction, point := strings.Cut(s, ".")
	switch {
	case len(digits) == 17 && !point:
		digits, fraction = digits[:14], digits[14:]
	case len(digits) == 14:
	case len(digits) == 12 && !point:
	default:
		return 0, false, false
	}
	// Read by hand: time.Parse would take what DTM has not, such as signs and blanks, and knows no optional seconds.
	var part [6]int // year, month, day, hour, minute, second
	at := 0
	for i, width := range []int{4, 2, 2, 2, 2, 2} {
		if at == len(digits) {
			break
		}
		if part[i], ok = number(digits[at : at+width]); !ok {
			return 0, false, false
		}
		at += width
	}
	if part[0] == 0 || part[1] < 1 || part[1] > 12 || part[2] < 1 || part[2] > daysIn(part[0], part[1]) ||
		part[3] > 23 || part[4] > 59 || part[5] > 60 { // 60: a leap second
		return 0, false, false
	}
	// Cut off, not rounded: rounding could carry into the next second, and Time keeps all digits.
	milli := 0
	for i := range len(fraction) {
		n, ok := number(fraction[i : i+1])
		if !ok {
			return 0, false, false
		}
		if i < 3 {
			milli += n * [...]int{100, 10, 1}[i]
		}
	}
	// As if it were UTC; the offset is taken off below, without a time.Location for each reading.
	local := time.Date(part[0], time.Month(part[1]), part[2], part[3], part[4], part[5], 0, time.UTC).Unix()
	east := int64(offset)
	if !zoned {
		east, unsure = reading.OffsetOf(local, zone)
	}
	return (local-east)*1000 + int64(milli), unsure, true
}

// cutZone takes the zone off a DTM: seconds east of UTC. ok is false for a zone that is none.
func cutZone(s string) (rest string, offset int, zoned, ok bool) {
	i := strings.IndexAny(s, "+-")
	if i < 0 {
		return s, 0, false, true
	}
	zone := s[i+1:]
	if len(zone) != 4 {
		return "", 0, false, false
	}
	hours, ok1 := number(zone[:2])
	minutes, ok2 := number(zone[2:])
	// The widest offsets in use are -1200 and +1400.
	if !ok1 || !ok2 || hours > 14 || minutes > 59 {
		return "", 0, false, false
	}
	offset = hours*3600 + minutes*60
	if s[i] == '-' {
		offset = -offset
	}
	return s[:i], offset, true, true
}

// number reads decimal digits only; its callers bound their count.
func number(s string) (n int, ok bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, true
}

// daysIn is the length of a month: day 0 of the next one is its last.
func daysIn(year, month int) int {
	return time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
}
