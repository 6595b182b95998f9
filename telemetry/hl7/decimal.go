package hl7

import (
	"math/big"
	"strings"

	"wardlink/telemetry"
	"wardlink/telemetry/reading"
)

// decimal is an exact decimal number: unscaled / 10^scale. A waveform's scale and period are computed with it, never with a float.
type decimal struct {
	unscaled *big.Int
	scale    int
}

// maxNumber is how many bytes of a number are computed with; HL7's NM has at most 16 digits, and three of that length multiplied stay below
// telemetry.MaxDecimal.
const maxNumber = 32

// parseDecimal reads HL7's NM.
func parseDecimal(s string) (decimal, bool) {
	s = strings.Trim(s, " ")
	if len(s) > maxNumber || !reading.IsDecimal(s) {
		return decimal{}, false
	}
	whole, fraction, _ := strings.Cut(strings.TrimPrefix(s, "+"), ".")
	n, ok := new(big.Int).SetString(whole+fraction, 10)
	return decimal{n, len(fraction)}, ok
}

// orDecimal reads HL7's NM, and gives fallback for none.
func orDecimal(s string, fallback int64) (decimal, bool) {
	if null(s) == "" {
		return decimal{big.NewInt(fallback), 0}, true
	}
	return parseDecimal(s)
}

func pow10(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }

func (d decimal) mul(o decimal) decimal {
	return decimal{new(big.Int).Mul(d.unscaled, o.unscaled), d.scale + o.scale}
}

func (d decimal) sub(o decimal) decimal {
	scale := max(d.scale, o.scale)
	a := new(big.Int).Mul(d.unscaled, pow10(scale-d.scale))
	b := new(big.Int).Mul(o.unscaled, pow10(scale-o.scale))
	return decimal{a.Sub(a, b), scale}
}

func (d decimal) neg() decimal { return decimal{new(big.Int).Neg(d.unscaled), d.scale} }

func (d decimal) sign() int { return d.unscaled.Sign() }

func (d decimal) isOne() bool { return d.unscaled.Cmp(pow10(d.scale)) == 0 }

// String is the number in its shortest form, as JSON and FHIR write it. ok is false when it is longer than a batch carries.
func (d decimal) String() (s string, ok bool) {
	s = shortest(new(big.Rat).SetFrac(d.unscaled, pow10(d.scale)).FloatString(d.scale))
	return s, len(s) <= telemetry.MaxDecimal
}

// shortest takes the zeros off a decimal's end.
func shortest(s string) string {
	if strings.IndexByte(s, '.') < 0 {
		return s
	}
	s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	if s == "-0" {
		return "0"
	}
	return s
}

// Digits behind the point of a period: all where it ends within the precision that FHIR asks of every reader, else so many.
const (
	exactDigits   = 18
	roundedDigits = 12
)

// period is the time between two samples of a frequency in hertz, in milliseconds. ok is false for a frequency that is none.
func (d decimal) period() (ms string, ok bool) {
	if d.sign() <= 0 {
		return "", false
	}
	r := new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(1000), pow10(d.scale)), d.unscaled)
	digits := roundedDigits
	if n, exact := r.FloatPrec(); exact && n <= exactDigits {
		digits = n
	}
	ms = shortest(r.FloatString(digits))
	return ms, ms != "0" && len(ms) <= telemetry.MaxDecimal
}
