package server

import (
	"strings"
	"testing"
	"time"
)

func TestPeriods(t *testing.T) {
	for text, want := range map[string]time.Duration{"72h": 72 * time.Hour, "90d": 90 * day, "1y": 365 * day, "100y": 100 * year} {
		p, err := ParsePeriod(text)
		if err != nil || time.Duration(p) != want || p.String() != text {
			t.Errorf("%s: %s %v", text, p, err)
		}
	}
	for _, text := range []string{"", "7", "d", "-1d", "0d", "1.5d", "101y", "7 d", "7D", "99999999999999999999h", "1w"} {
		if p, err := ParsePeriod(text); err == nil || !strings.Contains(err.Error(), "72h, 90d or 1y") {
			t.Errorf("%q: %s %v", text, p, err)
		}
	}
}

// What is below the safe minimum, mistyped or unknown is refused in words; what is left out has its default.
func TestRetentionSection(t *testing.T) {
	const head = "trust_domain: ward.example\nnames: [a]\n"
	for body, want := range map[string]string{
		"retention: {vitals: 6d}":        "retention.vitals: 6d; expected at least 7d",
		"retention: {batches: 71h}":      "retention.batches: 71h; expected at least 72h",
		"retention: {alarms: 29d}":       "retention.alarms",
		"retention: {waveforms: 1h}":     "retention.waveforms",
		"retention: {waveforms: 91d}":    "retention.waveforms: 91d; expected at most",
		"retention: {dead: 1d}":          "retention.dead",
		"retention: {vitals: forever}":   "expected a number of hours, days or years",
		"retention: {vitals: 90}":        "expected a number of hours, days or years",
		"retention: {vital: 90d}":        "vital",
		"retention: {pack_windows: 23h}": "retention.pack_windows",
		"retention: 90d":                 "[3:12]", // line and column
	} {
		if _, err := parseConfig([]byte(head + body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", body, err)
		}
	}
	c, err := parseConfig([]byte(head + "retention:\n  vitals: 2y\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultRetention()
	want.Vitals = Period(2 * year)
	if c.Retention != want {
		t.Errorf("%+v", c.Retention)
	}
}
