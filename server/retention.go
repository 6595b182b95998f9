package server

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wardlink/server/records"
)

// Retention is how long each class of what the server holds is kept. Each value is a number and a unit: h, d (24 h) or y (365 d).
type Retention struct {
	Batches   Period `yaml:"batches"`      // journal files, and the bookkeeping of opened batches
	Waveforms Period `yaml:"waveforms"`    // chunks of samples
	Vitals    Period `yaml:"vitals"`       // readings
	Alarms    Period `yaml:"alarms"`       // readings that came as alarms
	Dead      Period `yaml:"dead"`         // batches that cannot be opened
	Pack      Period `yaml:"pack_windows"` // after it the access detail of the log is packed; it is not deleted
}

// Period is a time in hours, days or years.
type Period time.Duration

const (
	day  = 24 * time.Hour
	year = 365 * day
	// maxPeriod keeps times within what milliseconds and people reckon with.
	maxPeriod = 100 * year
)

// DefaultRetention is what a configuration without the section means.
func DefaultRetention() Retention {
	r := records.DefaultRetention()
	return Retention{
		Batches: Period(r.Batches), Waveforms: Period(r.Waveforms), Vitals: Period(r.Vitals), Alarms: Period(r.Alarms),
		Dead: Period(r.Dead), Pack: Period(30 * day),
	}
}

// ParsePeriod reads a number of hours, days or years, such as 72h, 90d or 1y.
func ParsePeriod(s string) (Period, error) {
	units := map[byte]time.Duration{'h': time.Hour, 'd': day, 'y': year}
	if s != "" {
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
		if unit := units[s[len(s)-1]]; err == nil && unit != 0 && n > 0 && n <= uint64(maxPeriod/unit) {
			return Period(time.Duration(n) * unit), nil
		}
	}
	return 0, fmt.Errorf("%.40q; expected a number of hours, days or years up to 100y, such as 72h, 90d or 1y", s)
}

// String writes it in the greatest unit that holds it whole; 72 h stay hours, as people say.
func (p Period) String() string {
	switch d := time.Duration(p); {
	case d >= year && d%year == 0:
		return strconv.FormatInt(int64(d/year), 10) + "y"
	case d > 72*time.Hour && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	default:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	}
}

// UnmarshalYAML implements the decoder's interface.
func (p *Period) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	parsed, err := ParsePeriod(strings.TrimSpace(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// MarshalJSON gives the text.
func (p Period) MarshalJSON() ([]byte, error) { return json.Marshal(p.String()) }

// Check says which value is below what is safe, and why that is.
func (r Retention) Check() error {
	for _, c := range []struct {
		key   string
		value Period
		least time.Duration
		why   string
	}{
		{"batches", r.Batches, 72 * time.Hour, "so long a gateway can be asked to send again, and a backup may be old"},
		{"waveforms", r.Waveforms, 24 * time.Hour, "the hospital must have had time to fetch them"},
		{"vitals", r.Vitals, 7 * day, "the hospital must have had time to fetch them"},
		{"alarms", r.Alarms, 30 * day, "an incident is often looked into weeks later"},
		{"dead", r.Dead, 30 * day, "whoever mends the cause needs time"},
		{"pack_windows", r.Pack, day, "the log's writer leaves recent windows alone"},
	} {
		if time.Duration(c.value) < c.least {
			return fmt.Errorf("retention.%s: %s; expected at least %s: %s", c.key, c.value, Period(c.least), c.why)
		}
	}
	if r.Waveforms > r.Vitals || r.Waveforms > r.Alarms {
		return fmt.Errorf("retention.waveforms: %s; expected at most vitals and alarms: a chunk of samples goes with its message at the latest", r.Waveforms)
	}
	return nil
}

// records is what the records make of it.
func (r Retention) records() *records.Retention {
	return &records.Retention{
		Batches: time.Duration(r.Batches), Waveforms: time.Duration(r.Waveforms), Vitals: time.Duration(r.Vitals), Alarms: time.Duration(r.Alarms),
		Dead: time.Duration(r.Dead),
	}
}

// retentionText is the section with a word for each key.
func retentionText(r Retention) string {
	var b strings.Builder
	b.WriteString("\n# How long each class is kept, from the server's receipt. Each disposal is an event in the log; the log itself is never deleted.\nretention:\n")
	for _, l := range []struct {
		key   string
		value Period
		what  string
	}{
		{"batches", r.Batches, "the journal's files, and the bookkeeping of opened batches"},
		{"waveforms", r.Waveforms, "samples"},
		{"vitals", r.Vitals, "readings"},
		{"alarms", r.Alarms, "alarms"},
		{"dead", r.Dead, "batches that cannot be opened"},
		{"pack_windows", r.Pack, "after it the log's access detail is packed, not deleted"},
	} {
		fmt.Fprintf(&b, "  %-14s %-5s # %s\n", l.key+":", l.value, l.what)
	}
	return b.String()
}
