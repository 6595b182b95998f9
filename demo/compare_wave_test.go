package demo

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The arrays of these tests: two channels, three seconds each. II has four samples a second, of which the second of each array is missing;
// MCL1, which has no code but its name, three, so that its period is no decimal that ends.
const (
	waveStart = 1767225600000 // 2026-01-01T00:00:00Z
	seconds   = 3
)

var channels = map[string]struct {
	coding, measure, sensitivity, frequency string // as sent
	baseline                                int
	code, unit, factor, origin, period      string // as the hospital should have it
	samples                                 []string
}{
	"II": {`"mdc":131330`, `"unit":"mV"`, "0.0050", "4", 10,
		`{"system":"urn:iso:std:iso:11073:10101","code":"131330"}`, `"unit":"mV","system":"http://unitsofmeasure.org","code":"mV"`,
		"0.005", "-0.05", "250", []string{"-1", "E", "7", "12"}},
	"MCL1": {`"local":"MCL1"`, `"unit_text":"steps"`, "0.000337408098", "3", -1605,
		`{"system":"urn:wardlink:code-system:99WARDSIM","code":"MCL1"}`, `"unit":"steps"`,
		"0.000337408098", "0.54153999729", "333.333333333333", []string{"5", "6", "2047"}},
}

// waveSamples are a channel's samples in that second; no two seconds are alike.
func waveSamples(name string, second int) []string {
	samples := append([]string(nil), channels[name].samples...)
	samples[0] = strconv.Itoa(100 + second)
	return samples
}

func sentWave(name string, second int) string {
	c := channels[name]
	return fmt.Sprintf(`{%s,%s,"sensitivity":%q,"baseline":%d,"frequency":%q,"time":%d,"samples":%q,"acknowledged":true}`, c.coding, c.measure, c.sensitivity,
		c.baseline, c.frequency, waveStart+1000*second, strings.ReplaceAll(strings.Join(waveSamples(name, second), " "), "E", "-"))
}

func sentWaves() (lines []string) {
	for second := range seconds {
		lines = append(lines, sentWave("II", second), sentWave("MCL1", second))
	}
	return lines
}

// wave is the Observation of an array as a server writes it.
func wave(name string, second int) string {
	c := channels[name]
	return fmt.Sprintf(`{"resourceType":"Observation","id":"w-%s-%d","meta":{"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ActReason","code":"HTEST"}]},`+
		`"status":"final","code":{"coding":[%s]},"effectivePeriod":{"start":"2026-01-01T01:00:0%d.000+01:00","end":"2026-01-01T00:00:0%dZ"},`+
		`"valueSampledData":{"origin":{"value":%s,%s},"period":%s,"factor":%s,"lowerLimit":-10,"upperLimit":10,"dimensions":1,"data":%q}}`,
		name, second, c.code, second, second+1, c.origin, c.unit, c.period, c.factor, strings.Join(waveSamples(name, second), " "))
}

func TestCompareWaves(t *testing.T) {
	good := Comparison{Sent: 18, Acknowledged: 18, Stored: 18, NoReadings: NoReadings{3, 3, 3, 0}}
	with := func(f func(*Comparison)) Comparison { c := good; f(&c); return c }
	// What becomes of the second array of II, of three samples and a missing one, when something about all of it differs.
	allWrong := with(func(c *Comparison) { c.Stored, c.NoReadings.Stored, c.Mismatched = 15, 2, 4 })
	unread := with(func(c *Comparison) {
		c.Stored, c.NoReadings.Stored, c.Missing, c.NoReadings.Missing, c.Unexpected = 15, 2, 3, 1, 1
	})
	edit := func(old, new string) func([]string) []string {
		return func(all []string) []string {
			if !strings.Contains(all[2], old) {
				t.Fatalf("%s is not in %s", old, all[2])
			}
			all[2] = strings.Replace(all[2], old, new, 1)
			return all
		}
	}
	for name, tc := range map[string]struct {
		tamper func(all []string) []string // II, MCL1, II, MCL1, ...
		want   Comparison
	}{
		"all as sent":        {func(all []string) []string { return all }, good},
		"in another order":   {func(all []string) []string { return append(all[3:], all[:3]...) }, good},
		"an array lost":      {func(all []string) []string { return append(all[:2], all[3:]...) }, with(func(c *Comparison) { c.Stored, c.NoReadings.Stored, c.Missing, c.NoReadings.Missing = 15, 2, 3, 1 })},
		"an array twice":     {func(all []string) []string { return append(all, all[2]) }, with(func(c *Comparison) { c.Duplicates = 4 })},
		"all twice":          {func(all []string) []string { return append(all, all...) }, with(func(c *Comparison) { c.Duplicates = 21 })},
		"a sample altered":   {edit(`E 7 12"`, `E 8 12"`), with(func(c *Comparison) { c.Stored, c.Mismatched = 17, 1 })},
		"a sample a decimal": {edit(`E 7 12"`, `E 7.0 12"`), with(func(c *Comparison) { c.Stored, c.Mismatched = 17, 1 })},
		"a sample missing":   {edit(`E 7 12"`, `E E 12"`), with(func(c *Comparison) { c.Stored, c.Mismatched = 17, 1 })},
		"a missing invented": {edit(`E 7 12"`, `0 7 12"`), with(func(c *Comparison) { c.NoReadings.Stored, c.Mismatched = 2, 1 })},
		"samples swapped":    {edit(`E 7 12"`, `E 12 7"`), with(func(c *Comparison) { c.Stored, c.Mismatched = 16, 2 })},
		"the last cut off":   {edit(` 12"`, `"`), with(func(c *Comparison) { c.Stored, c.NoReadings.Stored, c.Missing, c.Mismatched = 15, 2, 1, 3 })},
		"one more":           {edit(` 12"`, ` 12 12"`), with(func(c *Comparison) { c.Stored, c.NoReadings.Stored, c.Mismatched = 15, 2, 5 })},
		"below detection":    {edit(`E 7 12"`, `L 7 12"`), with(func(c *Comparison) { c.NoReadings.Stored, c.Mismatched = 2, 1 })},
		// Shifted by one sample, three of four meet their neighbours and the last one that of the next array.
		"shifted by a sample": {func(all []string) []string { return shift(all, ":01.000", ":01.250", ":02Z", ":02.250Z") }, with(func(c *Comparison) { c.Stored, c.NoReadings.Stored, c.Missing, c.Mismatched = 15, 2, 1, 4 })},
		"shifted by half of one": {func(all []string) []string { return shift(all, ":01.000", ":01.125", ":02Z", ":02.125Z") }, with(func(c *Comparison) {
			c.Stored, c.NoReadings.Stored, c.Missing, c.NoReadings.Missing, c.Unexpected = 15, 2, 3, 1, 4
		})},
		"an hour off": {edit("+01:00", "+02:00"), with(func(c *Comparison) {
			c.Stored, c.NoReadings.Stored, c.Missing, c.NoReadings.Missing, c.Unexpected = 15, 2, 3, 1, 4
		})},
		"channels swapped": {func(all []string) []string {
			all[2] = strings.Replace(all[2], channels["II"].code, channels["MCL1"].code, 1)
			all[3] = strings.Replace(all[3], channels["MCL1"].code, channels["II"].code, 1)
			return all
		}, with(func(c *Comparison) { c.Stored, c.NoReadings.Stored, c.Mismatched, c.Missing = 12, 2, 7, 1 })},
		"channels' data swapped": {func(all []string) []string {
			a, b := strings.Join(waveSamples("II", 1), " "), strings.Join(waveSamples("MCL1", 1), " ")
			all[2], all[3] = strings.Replace(all[2], a, b, 1), strings.Replace(all[3], b, a, 1)
			return all
		}, with(func(c *Comparison) { c.Stored, c.NoReadings.Stored, c.Mismatched, c.Missing = 12, 2, 7, 1 })},
		"another factor":      {edit(`"factor":0.005`, `"factor":0.0050000001`), allWrong},
		"no factor":           {edit(`"factor":0.005,`, ``), allWrong},
		"factor with zeros":   {edit(`"factor":0.005`, `"factor":0.00500`), good},
		"factor in powers":    {edit(`"factor":0.005`, `"factor":5e-3`), good},
		"another origin":      {edit(`"value":-0.05`, `"value":0.05`), allWrong},
		"another unit":        {edit(`"code":"mV"`, `"code":"uV"`), allWrong},
		"another unit system": {edit("unitsofmeasure", "example"), allWrong},
		"another period":      {edit(`"period":250`, `"period":250.0000000001`), allWrong},
		"another end":         {edit(`00:00:02Z`, `00:00:02.001Z`), allWrong},
		"another code": {edit("131330", "131329"), with(func(c *Comparison) {
			c.Stored, c.NoReadings.Stored, c.Missing, c.NoReadings.Missing, c.Unexpected = 15, 2, 3, 1, 4
		})},
		"no code":              {edit("11073", "11074"), unread},
		"period no number":     {edit(`"period":250`, `"period":"250"`), unread},
		"a monstrous period":   {edit(`"period":250`, `"period":1e999999999`), unread},
		"origin no number":     {edit(`-0.05`, `null`), unread},
		"two dimensions":       {edit(`"dimensions":1`, `"dimensions":2`), unread},
		"no end":               {edit(`"end"`, `"ende"`), unread},
		"an instant as well":   {edit(`"status"`, `"effectiveDateTime":"2026-01-01T00:00:01Z","status"`), unread},
		"a reason for nothing": {edit(`"status"`, `"dataAbsentReason":{"coding":[{"code":"error"}]},"status"`), unread},
		"not marked":           {edit("HTEST", "TREAT"), with(func(c *Comparison) { c.Unmarked = 1 })},
		"no data": {edit(strings.Join(waveSamples("II", 1), " "), ""), with(func(c *Comparison) {
			c.Stored, c.NoReadings.Stored, c.Missing, c.NoReadings.Missing, c.Mismatched = 15, 2, 2, 1, 1
		})},
		"a rounded period": {func(all []string) []string {
			all[1] = strings.Replace(all[1], "333.333333333333", "333.333333", 1)
			return all
		}, good},
		"a coarse period": {func(all []string) []string {
			all[1] = strings.Replace(all[1], "333.333333333333", "333.333", 1)
			return all
		}, with(func(c *Comparison) { c.Stored, c.Mismatched = 15, 3 })},
		"cut anew": {recut, good},
	} {
		t.Run(name, func(t *testing.T) {
			var all []string
			for second := range seconds {
				all = append(all, wave("II", second), wave("MCL1", second))
			}
			got, err := Compare(t.Context(), base, fullAccount(t, nil, sentWaves()), one(searchset("", tc.tamper(all)...)))
			if err != nil {
				t.Fatal(err)
			}
			examples := got.Examples
			got.Examples = nil
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s\n%q", diff, examples)
			}
			if got.OK() != (len(examples) == 0) || got.OK() != (cmp.Diff(good, got) == "") {
				t.Errorf("OK is %t, examples %q", got.OK(), examples)
			}
		})
	}
}

func shift(all []string, pairs ...string) []string {
	all[2] = strings.NewReplacer(pairs...).Replace(all[2])
	return all
}

// recut makes one Observation of two arrays: how samples are cut into Observations is the hospital's affair.
func recut(all []string) []string {
	both := strings.Join(append(waveSamples("II", 0), waveSamples("II", 1)...), " ")
	all[0] = strings.Replace(all[0], strings.Join(waveSamples("II", 0), " "), both, 1)
	all[0] = strings.Replace(all[0], ":01Z", ":02Z", 1)
	return append(all[:2], all[3:]...)
}

// What was not acknowledged may be there or not, but not altered.
func TestCompareWavesNotAcknowledged(t *testing.T) {
	sent := fullAccount(t, nil, []string{strings.Replace(sentWave("II", 0), "true", "false", 1)})
	for name, tc := range map[string]struct {
		stored []string
		want   Comparison
	}{
		"absent":  {nil, Comparison{Sent: 3, NoReadings: NoReadings{Sent: 1}}},
		"there":   {[]string{wave("II", 0)}, Comparison{Sent: 3, Stored: 3, NoReadings: NoReadings{Sent: 1, Stored: 1}}},
		"altered": {[]string{strings.Replace(wave("II", 0), " 7 ", " 8 ", 1)}, Comparison{Sent: 3, Stored: 2, Mismatched: 1, NoReadings: NoReadings{Sent: 1, Stored: 1}}},
	} {
		got, err := Compare(t.Context(), base, sent, one(searchset("", tc.stored...)))
		got.Examples = nil
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v -want +got:\n%s", name, err, diff)
		}
	}
}

// Ten minutes at 500 Hz of several channels must not take a comparison long.
func BenchmarkCompareWaves(b *testing.B) {
	var lines, pages []string
	samples := strings.TrimSuffix(strings.Repeat("-512 ", 500), " ")
	for second := range 600 {
		lines = append(lines, fmt.Sprintf(`{"mdc":131330,"unit":"mV","sensitivity":"0.005","baseline":0,"frequency":"500","time":%d,"samples":%q,"acknowledged":true}`,
			waveStart+1000*second, samples))
		at := fmt.Sprintf("2026-01-01T00:%02d:%02d.000Z", second/60, second%60)
		end := fmt.Sprintf("2026-01-01T00:%02d:%02d.000Z", (second+1)/60, (second+1)%60)
		pages = append(pages, strings.NewReplacer("2026-01-01T01:00:00.000+01:00", at, "2026-01-01T00:00:01Z", end, `"period":250`, `"period":2`,
			`"value":-0.05`, `"value":0`, strings.Join(waveSamples("II", 0), " "), samples).Replace(wave("II", 0)))
	}
	sent, body := fullAccount(b, nil, lines), searchset("", pages...)
	b.ReportAllocs()
	for b.Loop() {
		got, err := Compare(b.Context(), base, sent, one(body))
		if err != nil || !got.OK() || got.Stored != 300_000 {
			b.Fatalf("%+v, %v", got, err)
		}
	}
}
