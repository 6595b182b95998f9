package telemetry

import (
	"encoding/binary"
	"errors"
	"math"
)

// Waveform is one stretch of samples of one channel, in the terms of FHIR's SampledData: a sample's value is Origin + sample * Factor,
// in Unit. Samples are the integers that the device's converter gave; Period, Factor and Origin are exact decimals, never floats, so
// that nothing is rounded on the way.
type Waveform struct {
	Index  uint32 // position of the OBX that holds the samples, counted with those of the observations; with Message's key it is the waveform's key for ever
	Type   string // OBX-2: "NA"
	Code   Code
	Label  string // the channel's name as the device shows it (CD-1.2, else CD-2.1): "II", "MCL1"
	Unit   Unit
	SubID  string // OBX-4
	Flags  string // OBX-8 as sent, repetitions joined by "~"
	Status string // OBX-11
	Time   string // of the first sample, as sent
	At     int64  // Time in Unix milliseconds; 0 when unreadable
	Device string // OBX-18 as sent
	Bed    string // that Device is bound to; "": the message's
	Marks  Marks

	Period string // milliseconds between two samples, above 0
	Factor string // Unit per step of a sample; "" is 1
	Origin string // the value of sample 0, in Unit; "" is 0
	Lower  string // the least and the greatest value that the channel can give, in Unit; "" when the device does not say
	Upper  string

	Samples []int32 // MissingSample stands for none
}

// MissingSample is the sample that is missing. No converter's reading is: the least of 32 bits is a sentinel everywhere.
const MissingSample = math.MinInt32

// Limits of waveforms.
const (
	MaxSamples = 1 << 19 // samples of one batch; a message of MaxMessage bytes has at most 65,536
	MaxDecimal = 80      // bytes of Period, Factor, Origin, Lower and Upper
)

// Samples travel and are stored as tokens, one after the other: unsigned LEB128 in its shortest form. Token 0 is a missing sample; any
// other is 1 + the zigzag form of the difference to the last sample that was not missing, the first one to 0. Neighbours differ by
// little, so that a token is nearly always one byte (differences from -64 to 63 less one: -63 to 63).

// AppendSamples appends the tokens of samples to dst.
func AppendSamples(dst []byte, samples []int32) []byte {
	var last int64
	for _, s := range samples {
		if s == MissingSample {
			dst = append(dst, 0)
			continue
		}
		d := int64(s) - last
		last = int64(s)
		dst = binary.AppendUvarint(dst, 1+(uint64(d)<<1^uint64(d>>63)))
	}
	return dst
}

// errSamples never says which sample: errors end up in logs.
var errSamples = errors.New("samples: not tokens of 32 bit samples in their shortest form")

// ParseSamples reads what AppendSamples wrote, and nothing else: each list of samples has one form. max bounds the samples.
func ParseSamples(data []byte, max int) ([]int32, error) {
	n := countSamples(data)
	if n > max {
		return nil, errors.New("samples: more than are allowed")
	}
	if n == 0 && len(data) == 0 {
		return nil, nil
	}
	samples := make([]int32, 0, n)
	var last int64
	for len(data) > 0 {
		token, size := binary.Uvarint(data)
		if size <= 0 || size > 1 && data[size-1] == 0 {
			return nil, errSamples
		}
		data = data[size:]
		if token == 0 {
			samples = append(samples, MissingSample)
			continue
		}
		token--
		// Two samples of 32 bits are less than 2^32 apart.
		if token>>1 > math.MaxUint32 {
			return nil, errSamples
		}
		last += int64(token>>1) ^ -int64(token&1)
		if last <= MissingSample || last > math.MaxInt32 {
			return nil, errSamples
		}
		samples = append(samples, int32(last))
	}
	return samples, nil
}

// countSamples is the number of tokens: of the bytes that end one.
func countSamples(data []byte) (n int) {
	for _, b := range data {
		if b < 0x80 {
			n++
		}
	}
	return n
}

// isDecimal tells a decimal as JSON and FHIR write it: no exponent, no plus sign, no leading zeros.
func isDecimal(s string) bool {
	if len(s) > 0 && s[0] == '-' {
		s = s[1:]
	}
	whole := digits(s)
	if whole == 0 || whole > 1 && s[0] == '0' {
		return false
	}
	if s = s[whole:]; s == "" {
		return true
	}
	return s[0] == '.' && len(s) > 1 && digits(s[1:]) == len(s)-1
}

// digits counts the decimal digits at the begin of s.
func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}
