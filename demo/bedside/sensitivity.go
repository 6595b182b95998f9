package bedside

import (
	"math/big"
	"strings"
)

// A sensitivity, the value of one step of the converter, is a decimal. Where the gain's inverse is one of at most exactDigits significant
// digits, that is it. Any other is rounded to roundedDigits: what the monitor then says is the sensitivity, and a signal of 24 bits ends less
// than a tenth of a step beside what its gain would give.
const (
	exactDigits   = 12
	roundedDigits = 9
)

// sensitivity is scale / 10^digits units for each step of the converter.
type sensitivity struct {
	scale  *big.Int
	digits int // decimals
}

func sensitivityOf(gain *big.Rat) sensitivity {
	step := new(big.Rat).Inv(gain)
	s := sensitivity{}
	ten := big.NewRat(10, 1)
	// A gain has at most maxDecimal digits between 1e-6 and 1e9: an inverse of up to exactDigits digits has no more than 21 decimals.
	exact := new(big.Rat).Set(step)
	for ; !exact.IsInt() && s.digits <= 21; s.digits++ {
		exact.Mul(exact, ten)
	}
	if exact.IsInt() && len(strings.TrimRight(exact.Num().String(), "0")) <= exactDigits {
		s.scale = new(big.Int).Set(exact.Num())
		return s
	}
	s.digits = 0
	low := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(roundedDigits-1), nil))
	for ; step.Cmp(low) < 0; s.digits++ {
		step.Mul(step, ten)
	}
	s.scale, _ = new(big.Int).SetString(step.FloatString(0), 10)
	return s
}

// String is the sensitivity as decimal text.
func (s sensitivity) String() string { return decimalText(s.scale, s.digits) }

// value is what a sample stands for, as exact decimal text: (sample - baseline) sensitivities.
func (s sensitivity) value(sample int32, baseline int64) string {
	steps := big.NewInt(int64(sample) - baseline)
	return decimalText(steps.Mul(steps, s.scale), s.digits)
}

// decimalText writes scaled / 10^digits: no value ever shows 36.300000000000004.
func decimalText(scaled *big.Int, digits int) string {
	text := scaled.String()
	if digits == 0 {
		return text
	}
	sign := ""
	if text[0] == '-' {
		sign, text = "-", text[1:]
	}
	if missing := digits + 1 - len(text); missing > 0 {
		text = strings.Repeat("0", missing) + text
	}
	point := len(text) - digits
	return sign + text[:point] + "." + text[point:]
}

// frequencyText writes a product of decimals, such as a sampling frequency, exactly and without idle zeros.
func frequencyText(f *big.Rat) string {
	digits, _ := f.FloatPrec()
	return f.FloatString(digits)
}
