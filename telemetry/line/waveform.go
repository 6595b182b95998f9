package line

import (
	"math"
	"strconv"
	"strings"

	"wardlink/telemetry"
	"wardlink/telemetry/reading"
)

// waveform reads a stretch of samples. What is read in part is not made a waveform: a scale that is guessed wrongly shows a patient's
// signal as another.
func (u *understanding) waveform(f *fields, i uint32, where string) {
	o := u.head(f, i, where, true)
	w := telemetry.Waveform{
		Index: i, Type: "NA", Code: o.Code, Label: u.string(f, keyLabel, where), Unit: o.Unit, SubID: o.SubID, Flags: o.Flags, Status: o.Status,
		Time: o.Time, At: o.At, Device: o.Device, Marks: o.Marks,
	}
	if o.Unit.UCUM == "" {
		w.Marks |= telemetry.MarkUnknownUnit
	}
	for _, d := range []struct {
		key      int
		to       *string
		fallback string
	}{
		{keyPeriod, &w.Period, ""}, {keyFactor, &w.Factor, "1"}, {keyOrigin, &w.Origin, "0"}, {keyLower, &w.Lower, ""}, {keyUpper, &w.Upper, ""},
	} {
		if *d.to = d.fallback; f.has(d.key) && f.kind[d.key] != kindNull {
			if *d.to = canonical(f.text[d.key]); *d.to == "" {
				u.problem(where+"."+Names[d.key], reading.NoNumber)
				return
			}
		}
	}
	if w.Period == "" || w.Period[0] == '-' || strings.Trim(w.Period, "0.") == "" {
		u.problem(where+".period", "is not a number of milliseconds above 0")
		return
	}
	if strings.Trim(w.Factor, "-0.") == "" {
		u.problem(where+".factor", "is 0")
		return
	}
	var ok bool
	if w.Samples, ok = u.samples(f); !ok {
		u.problem(where+".samples", "is not a list of whole numbers of 32 bits, and nulls")
		return
	}
	if len(w.Samples) == 0 || o.Status == "X" || o.Status == "N" {
		w.Marks |= telemetry.MarkNoReading
	}
	u.msg.Waveforms = append(u.msg.Waveforms, w)
}

// canonical is a decimal as a waveform has it: no plus sign, no zeros in front; "" of what is none.
func canonical(s string) string {
	if !reading.IsDecimal(s) || len(s) > telemetry.MaxDecimal {
		return ""
	}
	sign := ""
	if s[0] == '-' {
		sign = "-"
	}
	whole, fraction, point := strings.Cut(strings.TrimLeft(s, "+-"), ".")
	if whole = strings.TrimLeft(whole, "0"); whole == "" {
		whole = "0"
	}
	if point && fraction != "" {
		whole += "." + fraction
	}
	return sign + whole
}

func (u *understanding) samples(f *fields) (samples []int32, ok bool) {
	if f.kind[keySamples] != kindArray {
		return nil, false
	}
	u.in.at = f.at[keySamples]
	ok = true
	u.in.each(func(int) {
		switch {
		case !ok:
			u.in.skip()
		case u.in.peek() == kindNull:
			u.in.skip()
			samples = append(samples, telemetry.MissingSample)
		case u.in.peek() != kindNumber:
			u.in.skip()
			ok = false
		default:
			n, err := strconv.ParseInt(u.in.number(), 10, 64)
			if ok = err == nil && n >= -math.MaxInt32 && n <= math.MaxInt32; ok {
				samples = append(samples, int32(n))
			}
		}
	})
	return samples, ok
}
