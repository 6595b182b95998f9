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
	"unicode"
	"unicode/utf8"
)

// Limits of a recording. They hold before anything is allocated by a number that a header gives.
const (
	maxHeader   = 1 << 20 // bytes; a record of many segments names each of them
	maxSignals  = 64
	maxSegments = 20_000
	maxFrames   = 100_000_000 // of a record
	maxSamples  = 64_000_000  // of a record, all signals together; four bytes each
	maxPerFrame = 10_000
	maxName     = 128 // bytes of a signal's name or unit
)

// The values that header(5) gives to what a header leaves out.
const (
	defaultRate = "250" // frames a second
	defaultGain = "200" // steps of the converter to a unit
	defaultUnit = "mV"
)

// gap is the name of a segment without samples, and the file of a layout's signals.
const gap = "~"

// Header is a WFDB record header (header(5) of the WFDB Applications Guide). A record has columns, or it has segments.
type Header struct {
	Name     string
	Rate     *big.Rat  // frames a second
	Frames   int       // 0 when the header does not say
	Start    time.Time // by the recorder's clock, which de-identified records shift by centuries; zero when the header has none
	Columns  []Column
	Segments []Segment
}

// Column is one signal of a record.
type Column struct {
	File     string // in the header's folder
	Format   int
	PerFrame int      // samples in each frame
	Skew     int      // frames of this signal that precede the record's first frame
	Offset   int64    // bytes of File before its first sample
	Gain     *big.Rat // steps of the converter to a unit
	Baseline int64    // the sample that stands for 0
	Unit     string
	Checksum uint16 // sum of all samples modulo 65536
	Name     string
}

// Segment is one part of a multi-segment record: a record of its own, or a gap.
type Segment struct {
	Name   string // in the header's folder; "~" is a gap
	Frames int    // 0 in the first place: this is no part but the layout of all parts
}

// ParseHeader reads a .hea file. What it leaves out has the guide's default, but for a signal's checksum: without it nothing could prove
// that its samples were decoded as they were recorded, and the header is refused.
func ParseHeader(data []byte) (Header, error) {
	if len(data) > maxHeader {
		return Header{}, fmt.Errorf("wfdb header: longer than %d bytes", maxHeader)
	}
	var h Header
	parts, have, segmented := -1, 0, false
	// The first line that is no comment is the record's, the next ones are its signals' or its segments'. What follows can only be
	// comments.
	for n, line := range strings.Split(utf8Text(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		var err error
		switch {
		case parts < 0:
			h, parts, segmented, err = parseRecordLine(line)
		case have == parts:
			err = errors.New("more lines than the record line says")
		case segmented:
			err = h.addSegment(line)
			have++
		default:
			err = h.addColumn(line)
			have++
		}
		if err != nil {
			return Header{}, fmt.Errorf("wfdb header: line %d: %w", n+1, err)
		}
	}
	if parts < 0 || have < parts {
		return Header{}, fmt.Errorf("wfdb header: %d of %d lines of signals or segments; is the file whole?", have, max(parts, 0))
	}
	return h, nil
}

// utf8Text is a header as text. Old headers write units such as the micro sign in ISO 8859-1, whose bytes are the first 256 code points.
func utf8Text(data []byte) string {
	if utf8.Valid(data) {
		return string(data)
	}
	text := make([]rune, len(data))
	for i, b := range data {
		text[i] = rune(b)
	}
	return string(text)
}

// parseRecordLine reads "name[/segments] signals [rate[/counter] [frames [time [date]]]]". parts is the number of lines that follow.
func parseRecordLine(line string) (h Header, parts int, segmented bool, err error) {
	f := strings.Fields(line)
	if len(f) < 2 {
		return h, 0, false, errors.New("expected a record's name and its number of signals")
	}
	name, segments, segmented := strings.Cut(f[0], "/")
	h.Name = name
	least := int64(1)
	if segmented {
		least = 0 // a record of gaps alone says so, and is refused where its samples are looked for
	}
	if parts, err = number(f[1], least, maxSignals); err != nil {
		return h, 0, false, fmt.Errorf("number of signals: %w", err)
	}
	if segmented {
		if parts, err = number(segments, 1, maxSegments); err != nil {
			return h, 0, false, fmt.Errorf("number of segments: %w", err)
		}
	}
	rate := defaultRate
	if len(f) > 2 {
		rate, _, _ = strings.Cut(f[2], "/")
	}
	var ok bool
	if h.Rate, ok = decimalBetween(rate, 1e-5, 1e6); !ok {
		return h, 0, false, fmt.Errorf("rate %.20q: expected frames a second", rate)
	}
	if len(f) > 3 {
		if h.Frames, err = number(f[3], 0, maxFrames); err != nil {
			return h, 0, false, fmt.Errorf("number of samples: %w", err)
		}
	}
	if len(f) > 4 {
		h.Start, err = parseStart(f[4], f[5:])
	}
	return h, parts, segmented, err
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

// addSegment reads "name frames".
func (h *Header) addSegment(line string) error {
	f := strings.Fields(line)
	if len(f) != 2 {
		return fmt.Errorf("a segment line has %d fields; expected a record's name and its number of samples", len(f))
	}
	s := Segment{Name: f[0]}
	if s.Name != gap && !inFolder(s.Name) {
		return fmt.Errorf("segment %.40q: expected a record in the header's folder", s.Name)
	}
	var err error
	if s.Frames, err = number(f[1], 0, maxFrames); err != nil {
		return fmt.Errorf("number of samples: %w", err)
	}
	if s.Frames == 0 && len(h.Segments) > 0 {
		return errors.New("only the first segment may be without samples, as the layout of the others")
	}
	h.Segments = append(h.Segments, s)
	return nil
}

// addColumn reads "file format[xPerFrame][:skew][+offset] [gain[(baseline)][/unit] [resolution [zero [first [checksum [block [name]]]]]]]".
func (h *Header) addColumn(line string) error {
	f := strings.Fields(line)
	c := Column{File: f[0], PerFrame: 1}
	if c.File != gap && !inFolder(c.File) {
		return fmt.Errorf("file %.40q: expected a file in the header's folder", c.File)
	}
	if len(f) < 7 {
		return fmt.Errorf("a signal line has %d fields; expected at least 7, the last its checksum, without which its samples cannot be proven",
			len(f))
	}
	if err := c.parseFormat(f[1]); err != nil {
		return err
	}
	zero, err := number(f[4], math.MinInt32, math.MaxInt32)
	if err != nil {
		return fmt.Errorf("zero of the converter: %w", err)
	}
	c.Baseline = int64(zero) // unless the gain names another
	if err := c.parseGain(f[2]); err != nil {
		return err
	}
	sum, err := number(f[6], math.MinInt16, math.MaxUint16) // written with sign or without
	if err != nil {
		return fmt.Errorf("checksum: %w", err)
	}
	c.Checksum = uint16(sum)
	c.Name = fmt.Sprintf("record %s, signal %d", h.Name, len(h.Columns))
	if len(f) > 8 {
		c.Name = strings.Join(f[8:], " ")
	}
	for _, text := range []string{c.Name, c.Unit} {
		if len(text) > maxName || strings.ContainsFunc(text, unicode.IsControl) {
			return fmt.Errorf("name or unit %.40q: longer than %d bytes, or with a control character", text, maxName)
		}
	}
	h.Columns = append(h.Columns, c)
	return nil
}

// inFolder tells a plain name. A header is outside bytes: it must not make us open what lies elsewhere.
func inFolder(name string) bool {
	return filepath.Base(name) == name && name != "." && name != ".." && name != "-" && !strings.ContainsAny(name, `\`+"\x00")
}

// parseFormat reads "format[xPerFrame][:skew][+offset]".
func (c *Column) parseFormat(text string) error {
	rest, offset, shifted := strings.Cut(text, "+")
	rest, skew, skewed := strings.Cut(rest, ":")
	format, perFrame, many := strings.Cut(rest, "x")
	var err error
	if c.Format, err = number(format, 0, 9999); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if many {
		if c.PerFrame, err = number(perFrame, 1, maxPerFrame); err != nil {
			return fmt.Errorf("samples per frame: %w", err)
		}
	}
	if skewed {
		if c.Skew, err = number(skew, 0, maxFrames); err != nil {
			return fmt.Errorf("skew: %w", err)
		}
	}
	if shifted {
		bytes, err := number(offset, 0, math.MaxInt32)
		if err != nil {
			return fmt.Errorf("byte offset: %w", err)
		}
		c.Offset = int64(bytes)
	}
	return nil
}

// parseGain reads "gain[(baseline)][/unit]". A gain of 0 says that nobody calibrated the signal; the guide then assumes its default.
func (c *Column) parseGain(text string) error {
	gain, unit, _ := strings.Cut(text, "/")
	if c.Unit = unit; unit == "" {
		c.Unit = defaultUnit
	}
	gain, rest, based := strings.Cut(gain, "(")
	if based {
		digits, closed := strings.CutSuffix(rest, ")")
		base, err := number(digits, math.MinInt32, math.MaxInt32)
		if err != nil || !closed {
			return fmt.Errorf("baseline in %.40q: expected gain(baseline)/unit", text)
		}
		c.Baseline = int64(base)
	}
	if rough, err := strconv.ParseFloat(gain, 64); err == nil && rough == 0 && len(gain) <= maxDecimal {
		gain = defaultGain
	}
	var ok bool
	if c.Gain, ok = decimalBetween(gain, 1e-6, 1e9); !ok {
		return fmt.Errorf("gain %.40q: expected steps of the converter to a unit", gain)
	}
	return nil
}

// maxDecimal bounds the text of a decimal in a header.
const maxDecimal = 24

// decimalBetween reads a decimal exactly. Its range is checked by a float first: big.Rat would build the number that a huge exponent names.
func decimalBetween(text string, low, high float64) (*big.Rat, bool) {
	rough, err := strconv.ParseFloat(text, 64)
	if err != nil || len(text) > maxDecimal || !(rough >= low && rough <= high) {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

func number(text string, low, high int64) (int, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%.20q: expected a number from %d to %d", text, low, high)
	}
	return int(n), nil
}
