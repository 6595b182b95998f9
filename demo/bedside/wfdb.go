package bedside

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Limits of a recording. They hold before anything is allocated by a number that a header gives.
const (
	maxHeader  = 64 << 10 // bytes
	maxSignals = 64
	maxSamples = 10_000_000 // of one signal
	maxDigits  = 9          // decimals of a value
	maxScale   = 1e9        // between a sample step and a value's last decimal
)

// Header is a WFDB record header (header(5) of the WFDB Applications Guide), as far as numerics records need it.
type Header struct {
	Name    string
	Rate    float64   // rows a second
	Samples int       // rows; 0 when the header does not say
	Start   time.Time // by the recorder's clock, which de-identified records shift by centuries; zero when the header has none
	Columns []Column
}

// Column is one signal of a record.
type Column struct {
	File     string // in the header's folder
	Format   int
	Offset   int64    // bytes of File before its first sample
	Gain     *big.Rat // samples per unit
	Baseline int64    // the sample that stands for 0
	Unit     string
	Checksum uint16 // sum of all samples modulo 65536
	Name     string
}

// ParseHeader reads a .hea file. Multi-segment records, several samples a frame, skewed signals, signals without calibration
// and signals without checksum are refused: they are not numerics, or their decoding could not be proven.
func ParseHeader(data []byte) (Header, error) {
	if len(data) > maxHeader {
		return Header{}, fmt.Errorf("wfdb header: longer than %d bytes", maxHeader)
	}
	var h Header
	want, have := -1, 0
	// The first line that is no comment is the record's, the next ones are its signals'. What follows can only be comments.
	for n, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		var err error
		switch {
		case want < 0:
			h, want, err = parseRecordLine(line)
		case have < want:
			var c Column
			c, err = parseColumn(line)
			h.Columns = append(h.Columns, c)
			have++
		default:
			err = errors.New("more signals than the record line says")
		}
		if err != nil {
			return Header{}, fmt.Errorf("wfdb header: line %d: %w", n+1, err)
		}
	}
	if want < 0 || have < want {
		return Header{}, fmt.Errorf("wfdb header: %d of %d signals; is the file whole?", have, max(want, 0))
	}
	return h, nil
}

// parseRecordLine reads "name signals [rate[/counter] [samples [time [date]]]]".
func parseRecordLine(line string) (h Header, columns int, err error) {
	f := strings.Fields(line)
	if len(f) < 2 {
		return h, 0, errors.New("expected a record's name and its number of signals")
	}
	h.Name = f[0]
	if strings.Contains(h.Name, "/") {
		return h, 0, errors.New("multi-segment records are not supported; replay one segment")
	}
	if columns, err = number(f[1], 1, maxSignals); err != nil {
		return h, 0, fmt.Errorf("number of signals: %w", err)
	}
	h.Rate = 250 // the format's default
	if len(f) > 2 {
		rate, _, _ := strings.Cut(f[2], "/")
		h.Rate, err = strconv.ParseFloat(rate, 64)
		if err != nil || !(h.Rate >= 1e-5 && h.Rate <= 1e6) {
			return h, 0, fmt.Errorf("rate %.20q: expected rows a second", rate)
		}
	}
	if len(f) > 3 {
		if h.Samples, err = number(f[3], 0, maxSamples); err != nil {
			return h, 0, fmt.Errorf("number of samples: %w", err)
		}
	}
	if len(f) > 4 {
		h.Start, err = parseStart(f[4], f[5:])
	}
	return h, columns, err
}

// parseStart reads a base time, [[HH:]MM:]SS[.mmm], and the base date DD/MM/YYYY that may follow it.
func parseStart(clock string, rest []string) (time.Time, error) {
	parts := strings.Split(clock, ":")
	if len(parts) > 3 {
		return time.Time{}, fmt.Errorf("base time %.20q: expected HH:MM:SS", clock)
	}
	var seconds float64
	for i, p := range parts {
		v, err := strconv.ParseFloat(p, 64)
		if err != nil || !(v >= 0 && v < 60) || i < len(parts)-1 && v != math.Trunc(v) {
			return time.Time{}, fmt.Errorf("base time %.20q: expected HH:MM:SS", clock)
		}
		seconds = seconds*60 + v
	}
	if len(rest) == 0 {
		return time.Time{}, nil
	}
	date, err := time.Parse("2/1/2006", rest[0])
	if err != nil {
		return time.Time{}, fmt.Errorf("base date %.20q: expected DD/MM/YYYY", rest[0])
	}
	return date.Add(time.Duration(math.Round(seconds*1000)) * time.Millisecond), nil
}

// parseColumn reads "file format gain[(baseline)][/unit] resolution zero first checksum block name".
func parseColumn(line string) (Column, error) {
	f := strings.Fields(line)
	if len(f) < 9 {
		return Column{}, fmt.Errorf("a signal line has %d fields; expected 9, with checksum and name", len(f))
	}
	c := Column{File: f[0], Name: strings.Join(f[8:], " ")}
	// A header is outside bytes: it must not make us open what lies elsewhere.
	if filepath.Base(c.File) != c.File || c.File == "." || c.File == ".." || c.File == "-" || strings.ContainsAny(c.File, `\`+"\x00") {
		return Column{}, fmt.Errorf("file %.40q: expected a file in the header's folder", c.File)
	}
	format, offset, shifted := strings.Cut(f[1], "+")
	if strings.ContainsAny(format, "x:") {
		return Column{}, fmt.Errorf("format %.20q: several samples a frame, or a skew, are not supported", f[1])
	}
	var err error
	if c.Format, err = number(format, 1, 999); err != nil {
		return Column{}, fmt.Errorf("format: %w", err)
	}
	if shifted {
		bytes, err := number(offset, 0, math.MaxInt32)
		if err != nil {
			return Column{}, fmt.Errorf("byte offset: %w", err)
		}
		c.Offset = int64(bytes)
	}
	zero, err := number(f[4], math.MinInt32, math.MaxInt32)
	if err != nil {
		return Column{}, fmt.Errorf("zero of the converter: %w", err)
	}
	c.Baseline = int64(zero) // unless the gain names another
	if err := c.parseGain(f[2]); err != nil {
		return Column{}, err
	}
	sum, err := number(f[6], math.MinInt16, math.MaxUint16) // written with sign or without
	if err != nil {
		return Column{}, fmt.Errorf("checksum: %w", err)
	}
	c.Checksum = uint16(sum)
	return c, nil
}

// parseGain reads "gain[(baseline)][/unit]".
func (c *Column) parseGain(text string) error {
	gain, unit, _ := strings.Cut(text, "/")
	c.Unit = unit
	gain, rest, based := strings.Cut(gain, "(")
	if based {
		digits, closed := strings.CutSuffix(rest, ")")
		base, err := number(digits, math.MinInt32, math.MaxInt32)
		if err != nil || !closed {
			return fmt.Errorf("baseline in %.40q: expected gain(baseline)/unit", text)
		}
		c.Baseline = int64(base)
	}
	// The range is checked by a float first: big.Rat would build the number that a huge exponent names.
	rough, err := strconv.ParseFloat(gain, 64)
	if err != nil || len(gain) > 24 || !(rough >= 1e-6 && rough <= 1e9) {
		return fmt.Errorf("gain %.40q: expected samples per unit; an uncalibrated signal has no values", gain)
	}
	var ok bool
	if c.Gain, ok = new(big.Rat).SetString(gain); !ok {
		return fmt.Errorf("gain %.40q is not a decimal", gain)
	}
	return nil
}

// decimals writes a column's samples as exact decimal text, by integers alone: no gain of 10 ever shows 36.300000000000004.
type decimals struct {
	baseline int64
	scale    int64 // (sample - baseline) * scale is the value in units of its last decimal
	digits   int   // decimals of a value
}

// decimals fails for a gain whose inverse, the value of one sample step, is not a decimal.
func (c *Column) decimals() (decimals, error) {
	d := decimals{baseline: c.Baseline}
	step, ten := new(big.Rat).Inv(c.Gain), big.NewRat(10, 1)
	for ; !step.IsInt(); d.digits++ {
		if d.digits == maxDigits {
			return d, fmt.Errorf("signal %q: gain %s gives no decimals of at most %d digits", c.Name, c.Gain.RatString(), maxDigits)
		}
		step.Mul(step, ten)
	}
	if !step.Num().IsInt64() || step.Num().Int64() > maxScale {
		return d, fmt.Errorf("signal %q: gain %s is too fine for this reader", c.Name, c.Gain.RatString())
	}
	d.scale = step.Num().Int64()
	return d, nil
}

func (d decimals) text(sample int16) string {
	// At most 2^31 + 2^15 by maxScale, which an int64 holds.
	scaled := (int64(sample) - d.baseline) * d.scale
	if d.digits == 0 {
		return strconv.FormatInt(scaled, 10)
	}
	sign := ""
	if scaled < 0 {
		sign, scaled = "-", -scaled
	}
	text := fmt.Sprintf("%0*d", d.digits+1, scaled)
	point := len(text) - d.digits
	return sign + text[:point] + "." + text[point:]
}

func number(text string, low, high int64) (int, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%.20q: expected a number from %d to %d", text, low, high)
	}
	return int(n), nil
}
