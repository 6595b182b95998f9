package fhir_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/server/records"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// w01 is a second of one channel as a monitor sends it; the second after it begins n seconds after start.
func w01(t testing.TB, n int, cd, samples, tail string) telemetry.Message {
	t.Helper()
	sent := fmt.Sprintf("20260528%02d%02d%02d.000+0200", 22, 26+(40+n)/60, (40+n)%60)
	raw := "MSH|^~\\&|M|I|W|W|" + sent + "||ORU^W01^ORU_W01|W" + fmt.Sprint(n) + "|T|2.6\rPID|||p1^^^HOSP&2.25.77&ISO\r" +
		"OBX|1|CD|131330&CHN^MDC_ECG_ELEC_POTL_II^MDC|1.4.1.1|" + cd + "||||||F|||" + sent + "\r" +
		"OBX|2|NA|131330&WAV^MDC_ECG_ELEC_POTL_II^MDC|1.4.1.1|" + samples + tail
	if tail == "" {
		raw += "||||||F|||" + sent + "||||0011223344556677"
	}
	m, err := hl7.Understand([]byte(raw+"\r"), hl7.Options{Source: "bed-1"})
	if err != nil || len(m.Waveforms) != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	m.Received.Wall = start + int64(n)*1000 + 70
	return m
}

const leadII = "1&II^II&^0.001&266418&MDC_DIM_MILLI_VOLT&MDC^1&0&0^500^-2048&2047"

// From OBX to resource, sample for sample.
func TestWaveformAsSent(t *testing.T) {
	f := setup(t, w01(t, 0, leadII, "12^13^^-5^-2048", ""))
	b := f.get(search("p1", "&code=urn:iso:std:iso:11073:10101%7C131330"))
	o := at(b, "entry", 0, "resource")
	id := records.PatientID(pseudonym, system, "p1")
	for _, c := range []struct {
		want string
		path []any
	}{
		{"12 13 E -5 -2048", []any{"valueSampledData", "data"}},
		{"2", []any{"valueSampledData", "period"}},
		{"0.001", []any{"valueSampledData", "factor"}},
		{"0", []any{"valueSampledData", "origin", "value"}},
		{"mV", []any{"valueSampledData", "origin", "unit"}},
		{"mV", []any{"valueSampledData", "origin", "code"}},
		{"http://unitsofmeasure.org", []any{"valueSampledData", "origin", "system"}},
		{"-2.048", []any{"valueSampledData", "lowerLimit"}},
		{"2.047", []any{"valueSampledData", "upperLimit"}},
		{"1", []any{"valueSampledData", "dimensions"}},
		{"2026-05-28T22:26:40.000+02:00", []any{"effectivePeriod", "start"}},
		{"2026-05-28T22:26:40.010+02:00", []any{"effectivePeriod", "end"}},
		{"", []any{"effectiveDateTime"}},
		{"", []any{"_effectiveDateTime"}},
		{"final", []any{"status"}},
		{"procedure", []any{"category", 0, "coding", 0, "code"}},
		{"", []any{"category", 1}},
		{"ECG lead II", []any{"code", "text"}},
		{"2026-05-28T20:26:40.500Z", []any{"issued"}},
		{"Patient/" + id, []any{"subject", "reference"}},
		{"p1", []any{"subject", "identifier", "value"}},
		{"0011223344556677", []any{"device", "display"}},
		{"HTEST", []any{"meta", "security", 0, "code"}},
		{"gw-1", []any{"extension", 0, "valueReference", "display"}},
		{"", []any{"meta", "profile"}},
		{"", []any{"dataAbsentReason"}},
		{"", []any{"valueQuantity"}},
		{"", []any{"valueString"}},
		{"", []any{"interpretation"}},
	} {
		if got := text(o, c.path...); got != c.want {
			t.Errorf("%v: %q, expected %q", c.path, got, c.want)
		}
	}
	codings, _ := at(o, "code", "coding").([]any)
	if last := codings[len(codings)-1]; text(last, "system") != "urn:iso:std:iso:11073:10101" || text(last, "code") != "131330" {
		t.Errorf("MDC coding: %v", last)
	}
	if one := f.get("/fhir/Observation/" + text(o, "id")); fmt.Sprint(one) != fmt.Sprint(o) {
		t.Errorf("read: %v", one)
	}
	// Both reads are in the journal, with the patient's pseudonym and no value.
	evs := f.journal.Events(t)
	for i, interaction := range []string{"search", "read"} {
		ev := evs[i]
		if ev.Type != audit.RecordsRead || ev.Count != 1 || ev.Detail["interaction"] != interaction || ev.Detail["patient"] != id || len(evs) != 2 {
			t.Errorf("%+v", ev)
		}
	}
}

func TestWaveformForms(t *testing.T) {
	for name, c := range map[string]struct {
		cd, samples, tail string
		path              []any
		want              string
	}{
		"calibrated origin":      {"1&II^II&^0.05&266418&MDC_DIM_MILLI_VOLT&MDC^1.02&-1600.5&0^125^-2048&2047", "1", "", []any{"valueSampledData", "origin", "value"}, "81.6255"},
		"calibrated factor":      {"1&II^II&^0.05&266418&MDC_DIM_MILLI_VOLT&MDC^1.02&-1600.5&0^125^-2048&2047", "1", "", []any{"valueSampledData", "factor"}, "0.051"},
		"period that goes on":    {"^^1&mV^^360", "1^2", "", []any{"valueSampledData", "period"}, "2.777777777778"},
		"a second at 360 Hz":     {"^^1&mV^^360", strings.Repeat("7^", 359) + "7", "", []any{"effectivePeriod", "end"}, "2026-05-28T22:26:41.000+02:00"},
		"end is rounded":         {"^^1&mV^^360", "1^2", "", []any{"effectivePeriod", "end"}, "2026-05-28T22:26:40.006+02:00"},
		"no limits":              {"^^1&mV^^360", "1^2", "", []any{"valueSampledData", "lowerLimit"}, ""},
		"the channel's name":     {"1&MCL1^^1&mV^^360", "1", "", []any{"code", "text"}, "ECG lead II (MCL1)"},
		"all are missing":        {leadII, "^^", "", []any{"valueSampledData", "data"}, "E E E"},
		"none":                   {leadII, "", "", []any{"dataAbsentReason", "coding", 0, "code"}, "unknown"},
		"none has no value":      {leadII, "", "", []any{"valueSampledData"}, ""},
		"cannot be obtained":     {leadII, "1^2", "||||||X", []any{"valueSampledData"}, ""},
		"status of that":         {leadII, "1^2", "||||||X", []any{"status"}, "cancelled"},
		"flags":                  {leadII, "1^2", "|||TEST|||F", []any{"status"}, "preliminary"},
		"time unreadable":        {leadII, "1^2", "||||||F|||yesterday", []any{"_effectiveDateTime", "extension", 0, "valueCode"}, "unknown"},
		"no period then":         {leadII, "1^2", "||||||F|||yesterday", []any{"effectivePeriod"}, ""},
		"unit that does not fit": {"^^1&266016&MDC_DIM_MMHG&MDC^^500", "1", "", []any{"interpretation", 0, "coding", 0, "code"}, "unit-misfit"},
		"unknown unit":           {"^^1&furlong^^500", "1", "", []any{"interpretation", 0, "coding", 0, "code"}, "unit-unknown"},
		"unknown unit's name":    {"^^1&furlong^^500", "1", "", []any{"valueSampledData", "origin", "unit"}, "furlong"},
		"a period of ages":       {"^^1&mV^^0.00000000000000001", "1^2", "", []any{"effectiveDateTime"}, "2026-05-28T22:26:40.000+02:00"},
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, w01(t, 0, c.cd, c.samples, c.tail))
			o := at(f.get(search("p1", "")), "entry", 0, "resource")
			if got := text(o, c.path...); got != c.want {
				t.Errorf("%v: %q, expected %q; all of it: %v", c.path, got, c.want, o)
			}
			if (at(o, "valueSampledData") == nil) == (at(o, "dataAbsentReason") == nil) {
				t.Error("a value or a reason for its absence, and only one of them")
			}
		})
	}
}

// No waveform claims the profile of a vital sign, whatever its code says, nor one that has no samples.
func TestWaveformClaimsNoProfile(t *testing.T) {
	f := setup(t, reading("p1", 0, "", func(m *telemetry.Message, o *telemetry.Observation) {
		m.Waveforms = []telemetry.Waveform{{
			Index: 1, Type: "NA", Code: o.Code, Unit: o.Unit, Period: "1000", Time: o.Time, At: o.At + 1, Status: "F", Marks: telemetry.MarkNoReading,
		}}
	}))
	o := at(f.get(search("p1", "&_count=1")), "entry", 0, "resource")
	if at(o, "effectivePeriod") == nil || at(o, "meta", "profile") != nil || text(o, "category", 0, "coding", 0, "code") != "procedure" {
		t.Errorf("%v", o)
	}
}

// Readings and waveforms of a patient are one list: each once, in order, whatever ends a page.
func TestWaveformsAndReadingsInPages(t *testing.T) {
	var ms []telemetry.Message
	var want []string
	for n := range 30 {
		ms = append(ms, reading("p1", n, fmt.Sprint(n)), w01(t, n, leadII, fmt.Sprintf("%d^2^3", n), ""), w01(t, n+1000, leadII, "9", ""))
		ms[len(ms)-1].Patient.ID = "p2"
	}
	for n := 29; n >= 0; n-- {
		want = append(want, fmt.Sprint(n, " 2 3"), fmt.Sprint(n))
	}
	f := setup(t, ms...)
	for _, count := range []int{1, 7, 60, 1000} {
		var got []string
		target := search("p1", fmt.Sprintf("&_count=%d", count))
		for target != "" {
			b := f.get(target)
			entries, _ := at(b, "entry").([]any)
			for _, e := range entries {
				got = append(got, text(e, "resource", "valueSampledData", "data")+text(e, "resource", "valueQuantity", "value"))
			}
			target = ""
			if text(b, "link", 1, "relation") == "next" {
				target = "/fhir" + strings.TrimPrefix(text(b, "link", 1, "url"), base)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %q", count, got)
		}
	}
	for more, n := range map[string]int{
		"&code=131330": 30, "&code=8867-4": 30, "&code=131330,8867-4": 60,
		"&code=131330&date=ge2026-05-28T22:26:50%2B02:00&date=lt2026-05-28T22:26:55%2B02:00": 5,
	} {
		entries, _ := at(f.get(search("p1", more+"&_count=1000")), "entry").([]any)
		if len(entries) != n {
			t.Errorf("%s: %d found, expected %d", more, len(entries), n)
		}
	}
}

// A page is bounded by what it weighs, not by its count alone, and goes on where it ended.
func TestPagesOfWaveformsAreBounded(t *testing.T) {
	const chunks = 900 // of 1,000 samples, 7 KB each as text
	row := strings.Repeat("-20470^", 999) + "-20470"
	var ms []telemetry.Message
	for n := range chunks {
		ms = append(ms, w01(t, n, leadII, row, ""))
	}
	f := setup(t, ms...)
	found, pages := 0, 0
	target := search("p1", "&_count=1000")
	for target != "" {
		w := f.do("GET", target, f.cert)
		if w.Code != http.StatusOK || w.Body.Len() > 5<<20 {
			t.Fatalf("%d, %d bytes", w.Code, w.Body.Len())
		}
		b := decode(t, w.Body.Bytes())
		entries, _ := at(b, "entry").([]any)
		found, pages = found+len(entries), pages+1
		target = ""
		if text(b, "link", 1, "relation") == "next" {
			u, err := url.Parse(text(b, "link", 1, "url"))
			if err != nil {
				t.Fatal(err)
			}
			target = "/fhir/Observation?" + u.RawQuery
		}
	}
	if found != chunks || pages != 2 {
		t.Errorf("%d chunks in %d pages", found, pages)
	}
}
