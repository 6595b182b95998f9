package hl7

import (
	"math"
	"strings"

	"wardlink/telemetry"
	"wardlink/telemetry/reading"
)

// maxScale is how many digits behind the point a sample may have: ten would not leave 32 bits a single unit.
const maxScale = 9

// samples reads a row of numbers, each as an integer of scale digits behind the point, the fewest that hold all of them. An empty
// component, or one that is the number missing, is a sample that is missing. A table of several rows is not read: the last number of one
// and the first of the next are no number.
func (d delims) samples(field string, missing int64) (samples []int32, scale int, ok bool) {
	if null(field) == "" {
		return nil, 0, true
	}
	for rest, more := field, strings.IndexByte(field, '.') >= 0; more; {
		var s string
		s, rest, more = d.next(rest)
		_, fraction, _ := strings.Cut(s, ".")
		scale = max(scale, len(strings.TrimRight(fraction, "0")))
	}
	if scale > maxScale {
		return nil, 0, false
	}
	n := 1
	if d.comp != 0 {
		n += strings.Count(field, string(d.comp))
	}
	samples = make([]int32, 0, n)
	for rest, more := field, true; more; {
		var s string
		s, rest, more = d.next(rest)
		v, present, ok := sample(s, scale, missing)
		switch {
		case !ok:
			return nil, 0, false
		case !present:
			v = telemetry.MissingSample
		}
		samples = append(samples, int32(v))
	}
	return samples, scale, true
}

// next cuts off a row's first component.
func (d delims) next(row string) (s, rest string, more bool) {
	if d.comp == 0 {
		return row, "", false
	}
	i := strings.IndexByte(row, d.comp)
	if i < 0 {
		return row, "", false
	}
	return row[:i], row[i+1:], true
}

// sample reads one number as an integer of scale digits behind the point. ok is false for what is no number or does not fit.
func sample(s string, scale int, missing int64) (v int64, present, ok bool) {
	if s = strings.Trim(s, " "); s == "" || s == `""` {
		return 0, false, true
	}
	if len(s) > maxNumber || !reading.IsDecimal(s) {
		return 0, false, false
	}
	negative := s[0] == '-'
	if negative || s[0] == '+' {
		s = s[1:]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	fraction = strings.TrimRight(fraction, "0")
	for _, digits := range []string{whole, fraction} {
		for i := range len(digits) {
			if v = v*10 + int64(digits[i]-'0'); v > math.MaxInt32+1 {
				break
			}
		}
	}
	for range scale - len(fraction) {
		if v > math.MaxInt32+1 {
			break
		}
		v *= 10
	}
	if negative {
		v = -v
	}
	if fraction == "" && missing != noSentinel {
		if n, fits := parseWhole(whole, negative); fits && n == missing {
			return 0, false, true
		}
	}
	return v, true, v <= math.MaxInt32 && v >= -math.MaxInt32
}

// parseWhole is a whole number of at most maxNumber digits as far as 64 bits hold it.
func parseWhole(digits string, negative bool) (n int64, ok bool) {
	for i := range len(digits) {
		if n > math.MaxInt64/10-1 {
			return 0, false
		}
		n = n*10 + int64(digits[i]-'0')
	}
	if negative {
		n = -n
	}
	return n, true
}

// isExtreme tells the ends of integer types, which are marks and never samples.
func isExtreme(v int64) bool {
	switch v {
	case 32767, -32767, -32768, 65535, 8388607, -8388608, 2147483647, -2147483648, 4294967295:
		return true
	}
	return false
}
