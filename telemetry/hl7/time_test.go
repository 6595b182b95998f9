package hl7

import (
	"testing"
	"time"

	"wardlink/telemetry"
)

func TestTimeSources(t *testing.T) {
	const obx = "OBX|1|NM|147842^^MDC||80|bpm||||||||"
	for name, c := range map[string]struct {
		msh7, obr7, obx14 string
		time              string
		at                int64
	}{
		"OBX-14":                     {"20260101120000", "20260101120001", "20260101120002", "20260101120002", at("2026-01-01T12:00:02+02:00")},
		"OBR-7":                      {"20260101120000", "20260101120001", "", "20260101120001", at("2026-01-01T12:00:01+02:00")},
		"MSH-7":                      {"20260101120000", "", "", "20260101120000", at("2026-01-01T12:00:00+02:00")},
		"zone of MSH-7 holds":        {"20260101120000-0500", "", "20260101120002", "20260101120002", at("2026-01-01T12:00:02-05:00")},
		"own zone wins":              {"20260101120000-0500", "", "20260101120002+0100", "20260101120002+0100", at("2026-01-01T12:00:02+01:00")},
		"unreadable is not replaced": {"20260101120000", "20260101120001", "yesterday", "yesterday", 0},
		"precision component":        {"20260101120000^S", "", "", "20260101120000^S", at("2026-01-01T12:00:00+02:00")},
		"none":                       {"", "", "", "", 0},
	} {
		raw := []byte("MSH|^~\\&|A|B|C|D|" + c.msh7 + "||ORU^R01|1|P|2.6\rOBR|1||||||" + c.obr7 + "\r" + obx + c.obx14 + "\r")
		o := understood(t, raw).Observations[0]
		if o.Time != c.time || o.At != c.at || (o.Marks&telemetry.MarkTimeUnread != 0) != (c.at == 0) {
			t.Errorf("%s: %q %d marks %d", name, o.Time, o.At, o.Marks)
		}
	}
}

func TestParseTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]string{
		"20260701120000":           "2026-07-01T12:00:00+02:00",
		"202607011200":             "2026-07-01T12:00:00+02:00",
		"20260701120000.1":         "2026-07-01T12:00:00.1+02:00",
		"20260701120000.1239-0330": "2026-07-01T12:00:00.123-03:30",
		"20260124131539000+0800":   "2026-01-24T13:15:39+08:00",
		"20261231235960+0000":      "2027-01-01T00:00:00Z",
		"19691231235959.5+0000":    "1969-12-31T23:59:59.5Z",
		"20240229000000+0000":      "2024-02-29T00:00:00Z",
		"20230229000000+0000":      "",
		"20260701":                 "",
		"2026070112":               "",
		"00000000000000":           "",
		"20261301000000":           "",
		"20260732000000":           "",
		"20260701240000":           "",
		"20260701126000":           "",
		"20260701120061":           "",
		"20260701120000.x":         "",
		"20260701120000+01":        "",
		"20260701120000+1500":      "",
		"20260701120000+0160":      "",
		"202607011200.5":           "",
		"2026-07-01T12:00:00":      "",
		"":                         "",
	} {
		ms, unsure, ok := parseTime(s, berlin)
		if unsure || ok != (want != "") || ok && ms != at(want) {
			t.Errorf("%q: %d, %v; want %s", s, ms, ok, want)
		}
	}
}

// TestTimesWhenClocksAreSet: a local time that its zone has twice or never is kept as it was sent, read in one way for ever, and marked. So
// do readings around it stay in their order but for that hour, and no leap second is refused.
func TestTimesWhenClocksAreSet(t *testing.T) {
	for _, c := range []struct {
		zone, sent, want string
		unsure           bool
	}{
		{"Europe/Berlin", "20260329015959", "2026-03-29T00:59:59Z", false},
		{"Europe/Berlin", "20260329020000", "2026-03-29T01:00:00Z", true}, // never
		{"Europe/Berlin", "20260329023000", "2026-03-29T01:30:00Z", true},
		{"Europe/Berlin", "20260329025959.999", "2026-03-29T01:59:59.999Z", true},
		{"Europe/Berlin", "20260329030000", "2026-03-29T01:00:00Z", false},
		{"Europe/Berlin", "20261025015959", "2026-10-24T23:59:59Z", false},
		{"Europe/Berlin", "20261025020000", "2026-10-25T00:00:00Z", true}, // twice
		{"Europe/Berlin", "20261025023000", "2026-10-25T00:30:00Z", true},
		{"Europe/Berlin", "20261025030000", "2026-10-25T02:00:00Z", false},
		{"Europe/Berlin", "20261025023000+0100", "2026-10-25T01:30:00Z", false}, // which of the two, the device says
		{"America/New_York", "20260308023000", "2026-03-08T07:30:00Z", true},
		{"America/New_York", "20261101013000", "2026-11-01T05:30:00Z", true},
		{"Australia/Lord_Howe", "20260405014500", "2026-04-04T14:45:00Z", true}, // by half an hour
		{"Pacific/Apia", "20111230120000", "2011-12-30T22:00:00Z", true},        // a day that never was
		{"UTC", "20260329023000", "2026-03-29T02:30:00Z", false},
		{"Europe/Berlin", "20161231235960", "2016-12-31T23:00:00Z", false}, // a second that was not at that place
		{"Europe/London", "20161231235960", "2017-01-01T00:00:00Z", false},
		{"UTC", "20261231235960.5", "2027-01-01T00:00:00.5Z", false},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		ms, unsure, ok := parseTime(c.sent, zone)
		if !ok || ms != at(c.want) || unsure != c.unsure {
			t.Errorf("%s in %s: %s, unsure %t, %t; expected %s, %t", c.sent, c.zone, time.UnixMilli(ms).UTC().Format(time.RFC3339Nano), unsure, ok, c.want, c.unsure)
		}
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	raw := []byte("MSH|^~\\&|A|B|C|D|20261025023000||ORU^R01|1|P|2.6\rOBR|1\rOBX|1|NM|147842^^MDC||80|bpm\r")
	m, err := Understand(raw, Options{Source: "bed-1", Zone: berlin})
	if err != nil || len(m.Observations) != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	if o := m.Observations[0]; o.Time != "20261025023000" || o.Marks&telemetry.MarkTimeUnsure == 0 || o.Marks&telemetry.MarkTimeUnread != 0 {
		t.Errorf("%+v; expected the device's words, and the mark", o)
	}
}
