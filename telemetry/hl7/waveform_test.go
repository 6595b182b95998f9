package hl7

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wardlink/telemetry"
)

func TestW01(t *testing.T) {
	got := understood(t, seed(t, "w01.hl7"))
	start, startAt := "20260102030404.000+0000", at("2026-01-02T03:04:04Z")
	want := []telemetry.Waveform{{
		Index: 1, Type: "NA", Code: telemetry.Code{MDC: 131330, ID: "131330", Name: "MDC_ECG_ELEC_POTL_II", Sys: "MDC"}, Label: "II",
		Unit: telemetry.Unit{Sent: "266418^MDC_DIM_MILLI_VOLT^MDC", UCUM: "mV"}, SubID: "1.4.1.1", Status: "F", Time: start, At: startAt,
		Period: "2", Factor: "0.001", Origin: "0", Lower: "-2.048", Upper: "2.047",
		Samples: []int32{12, 13, telemetry.MissingSample, -5, -105, 0},
	}, {
		Index: 3, Type: "NA", Code: telemetry.Code{MDC: 150036, ID: "150036", Name: "MDC_PRESS_BLD_ART_ABP", Sys: "MDC"}, Label: "ABP",
		Unit: telemetry.Unit{Sent: "266016^MDC_DIM_MMHG^MDC", UCUM: "mm[Hg]"}, SubID: "1.4.1.2", Status: "F", Time: start, At: startAt,
		// factor 0.05 * 1.02; origin 1600.5 * 0.051; limits (-2048 + 1600.5) and (2047 + 1600.5) times 0.051
		Period: "8", Factor: "0.051", Origin: "81.6255", Lower: "-22.8225", Upper: "186.0225",
		Samples: []int32{telemetry.MissingSample, -943, -940},
	}}
	if d := cmp.Diff(want, got.Waveforms); d != "" {
		t.Error(d)
	}
	if got.Observations != nil || got.Problems != nil || got.Raw != nil {
		t.Errorf("observations %v, problems %v, raw %v", got.Observations, got.Problems, got.Raw != nil)
	}
	if lane := LaneOf(got); lane != telemetry.LaneWaveform {
		t.Errorf("lane %v", lane)
	}
}

func TestWaveformContentModule(t *testing.T) {
	got := understood(t, seed(t, "wcm.hl7"))
	want := []string{
		"1 131330 mV @20260102030404.000+0100 6.666666666667 ms 0.00000001 0 [-5 10] [104980000 105400000 - -104003906]",
		"4 151780 1 @20260102030405.000+0100 2 ms 1 0 [ ] [10 - -3]",
		"8 131329 mV @20260102030405.000+0100 2 ms 0.001221 0 [ ] [80 88 92]",
	}
	if d := cmp.Diff(want, waves(got)); d != "" {
		t.Error(d)
	}
	if len(got.Observations) != 1 || got.Observations[0].Index != 0 || got.Problems != nil {
		t.Errorf("observations %v, problems %v", got.Observations, got.Problems)
	}
	// The device that the waveforms are of is no reading that would have to be first.
	if lane := LaneOf(got); lane != telemetry.LaneWaveform {
		t.Errorf("lane %v", lane)
	}
}

// waves is what most tests ask of a message's waveforms.
func waves(m telemetry.Message) (out []string) {
	for _, w := range m.Waveforms {
		samples := make([]string, len(w.Samples))
		for i, s := range w.Samples {
			if samples[i] = fmt.Sprint(s); s == telemetry.MissingSample {
				samples[i] = "-"
			}
		}
		out = append(out, fmt.Sprintf("%d %d %s @%s %s ms %s %s [%s %s] %v",
			w.Index, w.Code.MDC, w.Unit.UCUM, w.Time, w.Period, w.Factor, w.Origin, w.Lower, w.Upper, samples))
	}
	return out
}

const (
	leadII = "131330^MDC_ECG_ELEC_POTL_II^MDC"
	cd     = "OBX|1|CD|131330&CHN^MDC_ECG_ELEC_POTL_II^MDC|1.1|1&II^II&^0.001&266418&MDC_DIM_MILLI_VOLT&MDC^1&0&0^500^-2048&2047"
	na     = "OBX|2|NA|131330&WAV^MDC_ECG_ELEC_POTL_II^MDC|1.1|"
	good   = "1 131330 mV @20260102030405 2 ms 0.001 0 [-2.048 2.047] [1 2]"
)

// What is read, and how; want is one line for each waveform.
func TestWaveformForms(t *testing.T) {
	define := func(components string) string { return "OBX|1|CD|" + leadII + "|1.1|" + components }
	for name, c := range map[string]struct {
		segments []string
		want     string
	}{
		"plain":                     {[]string{cd, na + "1^2"}, good},
		"definition in another OBR": {[]string{cd, "OBR|2||||||20260102030406", na + "1^2"}, strings.Replace(good, "05 2", "06 2", 1)},
		"no suffixes":               {[]string{strings.ReplaceAll(cd, "&CHN", ""), strings.Replace(na, "&WAV", "", 1) + "1^2"}, good},
		"blanks and signs":          {[]string{cd, na + " +1 ^ 2"}, good},
		"null is missing":           {[]string{cd, na + `1^""^`}, strings.Replace(good, "[1 2]", "[1 - -]", 1)},
		"ends of 32 bits":           {[]string{cd, na + "2147483647^-2147483647"}, strings.Replace(good, "[1 2]", "[2147483647 -2147483647]", 1)},
		"whole decimals":            {[]string{cd, na + "1.0^2.000000000000"}, good},
		"decimals":                  {[]string{cd, na + "1.5^2"}, strings.Replace(strings.Replace(good, "0.001", "0.0001", 1), "[1 2]", "[15 20]", 1)},
		"empty":                     {[]string{cd, na}, strings.Replace(good, "[1 2]", "[]", 1)},
		"least definition":          {[]string{define("^^1&mV^^1000"), na + "7"}, "1 131330 mV @20260102030405 1 ms 1 0 [ ] [7]"},
		"negative sensitivity":      {[]string{define("^^-0.5&mV^^1000^-4&6"), na + "7"}, "1 131330 mV @20260102030405 1 ms -0.5 0 [-3 2] [7]"},
		"many digits":               {[]string{define("^^0.00033740911&mV^1.000001&-12.5^999.5"), na + "7"}, "1 131330 mV @20260102030405 1.000500250125 ms 0.00033740944740911 0.004217618092613875 [ ] [7]"},
		"unit of OBX-6":             {[]string{define("^^2^^1000"), "OBX|2|NA|" + leadII + "|1.1|7|uV"}, "1 131330 uV @20260102030405 1 ms 2 0 [ ] [7]"},
		"time of TIM":               {[]string{"OBX|0|TS|131330&TIM^^MDC|1.1|20260102030404.5", cd, na + "1^2"}, "2 131330 mV @20260102030404.5 2 ms 0.001 0 [-2.048 2.047] [1 2]"},
		"its own before TIM's":      {[]string{"OBX|0|TS|131330&TIM^^MDC|1.1|20260102030404.5", cd, na + "1^2|||||||||20260102030403"}, "2 131330 mV @20260102030403 2 ms 0.001 0 [-2.048 2.047] [1 2]"},
		"time of its own":           {[]string{cd, na + "1^2|||||||||20260102030403"}, strings.Replace(good, "05 2", "03 2", 1)},
		"defined twice":             {[]string{define("^^9&mV^^1"), na, cd, na + "1^2"}, "1 131330 mV @20260102030405 1000 ms 9 0 [ ] []\n3" + good[1:]},
		"other sub ids":             {[]string{cd, strings.Replace(strings.Replace(cd, "|1.1|", "|1.2|", 1), "0.001", "7", 1), na + "1^2", strings.Replace(na, "|1.1|", "|1.2|", 1)}, "2" + good[1:] + "\n3 131330 mV @20260102030405 2 ms 7 0 [-14336 14329] []"},
		"attributes before":         {[]string{"OBX|1|NM|0^MDC_ATTR_SAMP_RATE|1.1.9|500", "OBX|2|NA|" + leadII + "|1.1|1^2|mV"}, "1 131330 mV @20260102030405 2 ms 1 0 [ ] [1 2]"},
		"attribute of its sub id":   {[]string{"OBX|2|NA|" + leadII + "|1|1^2|mV", "OBX|1|NM|0^MDC_ATTR_SAMP_RATE|1|500"}, "0 131330 mV @20260102030405 2 ms 1 0 [ ] [1 2]"},
	} {
		t.Run(name, func(t *testing.T) {
			m := understood(t, oru(append([]string{"OBR|1||||||20260102030405"}, c.segments...)...))
			if d := cmp.Diff(c.want, strings.Join(waves(m), "\n")); d != "" {
				t.Error(d)
			}
			if m.Problems != nil || m.Observations != nil {
				t.Errorf("problems %v, observations %v", m.Problems, m.Observations)
			}
		})
	}
}

// What is not wholly understood stays an observation as it was sent, named, with the message beside it; and its neighbour is read.
func TestArraysThatAreNoWaveforms(t *testing.T) {
	define := func(components string) string { return "OBX|1|CD|" + leadII + "|9.9|" + components }
	bad := "OBX|2|NA|" + leadII + "|9.9|"
	rate := "OBX|3|NM|0^MDC_ATTR_SAMP_RATE^MDC|9.9.1|500|264640^MDC_DIM_HZ^MDC"
	for name, c := range map[string]struct {
		segments []string
		reason   string
	}{
		"words":                   {[]string{define("^^1&mV^^1000"), bad + "1^two"}, "array is not one row of numbers that fit 32 bits"},
		"a table":                 {[]string{define("^^1&mV^^1000"), bad + "1^2~3^4"}, "array is not one row of numbers that fit 32 bits"},
		"33 bits":                 {[]string{define("^^1&mV^^1000"), bad + "2147483648"}, "array is not one row of numbers that fit 32 bits"},
		"the least of 32 bits":    {[]string{define("^^1&mV^^1000"), bad + "-2147483648"}, "array is not one row of numbers that fit 32 bits"},
		"exponents":               {[]string{define("^^1&mV^^1000"), bad + "1e3"}, "array is not one row of numbers that fit 32 bits"},
		"too fine":                {[]string{define("^^1&mV^^1000"), bad + "0.0000000001"}, "array is not one row of numbers that fit 32 bits"},
		"too wide for its digits": {[]string{define("^^1&mV^^1000"), bad + "3.000000001"}, "array is not one row of numbers that fit 32 bits"},
		"long number":             {[]string{define("^^1&mV^^1000"), bad + strings.Repeat("0", 40)}, "array is not one row of numbers that fit 32 bits"},
		"no sensitivity":          {[]string{define("^^&mV^^1000"), bad + "1"}, "channel's sensitivity is not a number"},
		"sensitivity 0":           {[]string{define("^^0.0&mV^^1000"), bad + "1"}, "channel's sensitivity is not a number"},
		"no frequency":            {[]string{define("^^1&mV"), bad + "1"}, "channel's sampling frequency is not a number"},
		"frequency 0":             {[]string{define("^^1&mV^^0"), bad + "1"}, "channel's sampling frequency is not a number"},
		"frequency in words":      {[]string{define("^^1&mV^^fast"), bad + "1"}, "channel's sampling frequency is not a number"},
		"frequency beyond":        {[]string{define("^^1&mV^^99999999999999999999"), bad + "1"}, "channel's sampling frequency is not a number"},
		"correction 0":            {[]string{define("^^1&mV^0^1000"), bad + "1"}, "channel's calibration is not numbers"},
		"baseline in words":       {[]string{define("^^1&mV^1&x^1000"), bad + "1"}, "channel's calibration is not numbers"},
		"definition unread":       {[]string{define("^^1&mV^^0"), bad + "1"}, "array's channel definition is not read"},
		"no definition":           {[]string{bad + "1^2"}, "array has neither channel definition nor sampling rate"},
		"rate in another unit":    {[]string{bad + "1^2|mV", strings.Replace(rate, "264640^MDC_DIM_HZ", "264338^MDC_DIM_MILLI_SEC", 1)}, "attribute of an array is not read"},
		"rate twice":              {[]string{bad + "1^2|mV", rate, strings.Replace(rate, "500", "250", 1)}, "attribute of an array is not read"},
		"an attribute more":       {[]string{bad + "1^2|mV", rate, "OBX|4|NM|0^MDC_ATTR_SA_MSMT_RES^MDC|9.9.2|2.44"}, "attribute of an array is not read"},
		"values or steps":         {[]string{bad + "1^2|mV", rate, "OBX|4|NM|0^MDC_ATTR_NU_MSMT_RES^MDC|9.9.2|0.5|mV"}, "attribute of an array is not read"},
		"a flag":                  {[]string{bad + "1^2|mV", rate, "OBX|4|NM|196660^MDC_EVT_INOP^MDC|9.9.2|0"}, "attribute of an array is not read"},
		"another OBR's rate":      {[]string{bad + "1^2|mV", "OBR|2", rate}, "array has neither channel definition nor sampling rate"},
	} {
		t.Run(name, func(t *testing.T) {
			m := understood(t, oru(append(append([]string{cd}, c.segments...), na+"1^2")...))
			if len(m.Waveforms) != 1 || !slices.Equal(m.Waveforms[0].Samples, []int32{1, 2}) {
				t.Errorf("the neighbour became %v", waves(m))
			}
			kept := slices.IndexFunc(m.Observations, func(o telemetry.Observation) bool { return o.Type == "NA" })
			if kept < 0 || m.Raw == nil || !slices.ContainsFunc(m.Problems, func(p telemetry.Problem) bool { return p.Reason == c.reason }) {
				t.Errorf("observations %v, problems %v", m.Observations, m.Problems)
			}
			if !slices.IsSortedFunc(m.Observations, func(a, b telemetry.Observation) int { return int(a.Index) - int(b.Index) }) {
				t.Errorf("order: %v", m.Observations)
			}
			check(t, m)
		})
	}
}

// What is read but not wholly is a waveform and a problem.
func TestWaveformsWithProblems(t *testing.T) {
	define := func(components string) string { return "OBX|1|CD|" + leadII + "|1.1|" + components }
	for name, c := range map[string]struct {
		segments []string
		problem  string
		marks    telemetry.Marks
	}{
		"no code":     {[]string{cd, strings.Replace(na, "131330&WAV^MDC_ECG_ELEC_POTL_II^MDC", "", 1) + "1"}, "OBX[1]-3 code is missing", telemetry.MarkUnknownCode},
		"two codes":   {[]string{cd, strings.Replace(na, "131330", "150452", 1) + "1"}, "OBX[1]-3 number and reference id name different measures", telemetry.MarkUnknownCode},
		"no unit":     {[]string{define("^^1^^1000"), na + "1"}, "OBX[1]-6 unit is missing", telemetry.MarkUnknownUnit},
		"unread time": {[]string{cd, na + "1|||||||||yesterday"}, "OBX[1]-14 time cannot be read", telemetry.MarkTimeUnread},
		"skew":        {[]string{define("^^1&mV^1&0&0.25^1000"), na + "1"}, "OBX[0]-5 channel's time skew is not applied", 0},
		"unused":      {[]string{cd, na + "1", strings.Replace(cd, "|1.1|", "|1.2|", 1)}, "OBX[2]-5 channel definition without samples", 0},
		"redefined":   {[]string{strings.Replace(cd, "0.001", "5", 1), cd, na + "1"}, "OBX[0]-5 channel definition without samples", 0},
		"range":       {[]string{define("^^1&mV^^1000^low&high"), na + "1"}, "OBX[0]-5 channel's range is not numbers", 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := understood(t, oru(append([]string{"OBR|1||||||20260102030405"}, c.segments...)...))
			if len(m.Waveforms) != 1 || m.Waveforms[0].Marks != c.marks || len(m.Problems) != 1 || m.Raw == nil {
				t.Fatalf("%+v, problems %v", m.Waveforms, m.Problems)
			}
			if p := m.Problems[0]; p.Where+" "+p.Reason != c.problem {
				t.Errorf("problem %v", p)
			}
		})
	}
}

// A waveform of an unknown code or unit is whole, so that the message need not travel beside it.
func TestUnknownWaveformIsWhole(t *testing.T) {
	m := understood(t, oru("OBR|1||||||20260102030405", strings.Replace(cd, "266418&MDC_DIM_MILLI_VOLT&MDC", "NU&NU&99ACME", 1),
		"OBX|2|NA|Nasal \\T\\ oral&WAV^Nasal flow^99ACME|1.1|1^2"))
	want := telemetry.Code{ID: "Nasal & oral", Name: "Nasal flow", Sys: "99ACME"}
	if len(m.Waveforms) != 1 || m.Waveforms[0].Code != want || m.Waveforms[0].Unit != (telemetry.Unit{Sent: "NU^NU^99ACME"}) ||
		m.Waveforms[0].Marks != telemetry.MarkUnknownCode|telemetry.MarkUnknownUnit {
		t.Errorf("%+v", m.Waveforms)
	}
	if m.Problems != nil || m.Raw != nil || LaneOf(m) != telemetry.LaneWaveform {
		t.Errorf("problems %v, raw %v", m.Problems, m.Raw != nil)
	}
}

func TestWaveformWithoutReading(t *testing.T) {
	for name, segment := range map[string]string{"empty": na, "status X": na + "1^2||||||X"} {
		m := understood(t, oru("OBR|1||||||20260102030405", cd, segment))
		if len(m.Waveforms) != 1 || m.Waveforms[0].Marks != telemetry.MarkNoReading || m.Problems != nil {
			t.Errorf("%s: %+v, %v", name, m.Waveforms, m.Problems)
		}
	}
}

func TestWaveformWithDelimitersOfItsOwn(t *testing.T) {
	m := understood(t, []byte("MSH$%*!@$A$B$C$D$20260101120000$$ORU%W01$1$P$2.6\rOBX$1$CD$131330@CHN%%MDC$1$1@II%%0.5@266418@MDC_DIM_MILLI_VOLT@MDC%%250\r"+
		"OBX$2$NA$131330@WAV%%MDC$1$1%%3\r"))
	want := []string{"1 131330 mV @20260101120000 4 ms 0.5 0 [ ] [1 - 3]"}
	if d := cmp.Diff(want, waves(m)); d != "" || m.Problems != nil || m.Waveforms[0].Unit.Sent != "266418^MDC_DIM_MILLI_VOLT^MDC" {
		t.Error(d, m.Problems)
	}
}

// Another patient's waveforms in one message are not filed under the first.
func TestWaveformOfSecondPatient(t *testing.T) {
	m := understood(t, oru("PID|||A", cd, na+"1^2", "PID|||B", na+"3^4"))
	if d := cmp.Diff([]int32{1, 2}, m.Waveforms[0].Samples); d != "" || len(m.Waveforms) != 1 || m.Patient.ID != "A" || m.Raw == nil {
		t.Errorf("%v, %v", waves(m), m.Patient)
	}
}

// Nor are those that came before anybody was named.
func TestWaveformBeforeItsPatient(t *testing.T) {
	m := understood(t, oru(cd, na+"1^2", "PID|||B", na+"3^4"))
	if len(m.Waveforms) != 1 || m.Waveforms[0].Samples[0] != 1 || m.Patient.ID != "" || m.Raw == nil {
		t.Errorf("%v filed under %q", waves(m), m.Patient.ID)
	}
}

func TestLanes(t *testing.T) {
	const hr = "OBX|9|NM|147842^MDC_ECG_HEART_RATE^MDC|1|80|264864^MDC_DIM_BEAT_PER_MIN^MDC"
	part := "OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X"
	message := func(event string, segments ...string) []byte {
		return []byte("MSH|^~\\&|A|B|C|D|20260101120000||" + event + "|1|P|2.6\r" + strings.Join(segments, "\r") + "\r")
	}
	for name, c := range map[string]struct {
		raw  []byte
		want telemetry.Lane
	}{
		"waveforms":                   {message("ORU^W01^ORU_W01", cd, na+"1"), telemetry.LaneWaveform},
		"waveforms in R01":            {message("ORU^R01", part, cd, na+"1"), telemetry.LaneWaveform},
		"a reading besides":           {message("ORU^W01", cd, na+"1", hr), telemetry.LaneVitals},
		"a reading in R01":            {message("ORU^R01", cd, na+"1", hr), telemetry.LaneVitals},
		"an alarm's waveform":         {message("ORU^R40^ORU_R40", cd, na+"1"), telemetry.LaneAlarm},
		"readings":                    {message("ORU^R01", hr), telemetry.LaneVitals},
		"an array alone":              {message("ORU^R01", na+"1"), telemetry.LaneVitals},
		"broken waveforms":            {message("ORU^W01", na+"x"), telemetry.LaneWaveform},
		"a waveform and a broken one": {message("ORU^R01", cd, na+"1", "OBX|3|NA|"+leadII+"|7|x"), telemetry.LaneWaveform},
		"multiplexed":                 {message("ORU^W01", cd, "OBX|2|MA|"+leadII+"|7|1^2~3^4"), telemetry.LaneWaveform},
		"text":                        {message("ORU^W01", cd, na+"1", "OBX|3|ST|"+leadII+"|7|asystole"), telemetry.LaneVitals},
		"no report":                   {message("ADT^A01"), telemetry.LaneVitals},
	} {
		if got := LaneOf(understood(t, c.raw)); got != c.want {
			t.Errorf("%s: lane %v; expected %v", name, got, c.want)
		}
	}
}

func TestPeriod(t *testing.T) {
	for frequency, want := range map[string]string{
		"500": "2", "250": "4", "125": "8", "1000": "1", "62.5": "16", "0.5": "2000", "1024": "0.9765625", "65536": "0.0152587890625",
		"360": "2.777777777778", "240": "4.166666666667", "62.4725": "16.007043098964", "3": "333.333333333333", "7": "142.857142857143",
		"500.000": "2", "1e3": "", "0": "", "-1": "", "": "", "999999999999999": "0.000000000001", "99999999999999999": "",
	} {
		d, ok := parseDecimal(frequency)
		got := ""
		if ok {
			got, ok = d.period()
		}
		if !ok {
			got = ""
		}
		if got != want {
			t.Errorf("%s Hz: %s ms; expected %s", frequency, got, want)
		}
	}
}

// A second of eight channels at 500 Hz and twelve bits is one message.
func TestSecondOfEightChannelsFits(t *testing.T) {
	var b strings.Builder
	b.WriteString("MSH|^~\\&|BEDSIDE|ICU|WARDLINK|HOSP|20260102030405.000+0000||ORU^W01^ORU_W01|W00000001|T|2.5.1\rPID|||WAVE-1^^^HOSP^PI\r")
	for c := range 8 {
		fmt.Fprintf(&b, strings.ReplaceAll(cd+"||||||F|||20260102030404.000+0000\r", "1.1", "1.%d"), c)
		fmt.Fprintf(&b, "%s|1.%d|-2048%s||||||F|||20260102030404.000+0000\r", strings.TrimSuffix(na, "|1.1|"), c, strings.Repeat("^-2048", 499))
	}
	m := understood(t, []byte(b.String()))
	if len(m.Waveforms) != 8 || len(m.Waveforms[7].Samples) != 500 || m.Problems != nil {
		t.Errorf("%d waveforms, problems %v", len(m.Waveforms), m.Problems)
	}
	t.Logf("%d of %d bytes", b.Len(), telemetry.MaxMessage)
}

func BenchmarkUnderstandWaveforms(b *testing.B) {
	segments := []string{"PID|||789567^^^HOSP^PI"}
	for c := range 8 {
		sub := fmt.Sprintf("|1.%d|", c)
		segments = append(segments, strings.Replace(cd, "|1.1|", sub, 1), strings.Replace(na, "|1.1|", sub, 1)+strings.Repeat("12^-13^140^-2000^7^", 100)+"1")
	}
	raw := oru(segments...)
	if m := understood(b, raw); len(m.Waveforms) != 8 || m.Problems != nil {
		b.Fatalf("%d waveforms, %v", len(m.Waveforms), m.Problems)
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Understand(raw, Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*8*501/b.Elapsed().Seconds(), "samples/s")
}

// What cannot be a waveform is read when its OBR ends, and stands all the same where it was sent.
func TestObservationsStandInTheirOrder(t *testing.T) {
	row, rate := "OBX||NA|1^A^L|1|1^2", "OBX||NM|147842^MDC_ECG_HEART_RATE^MDC|1|70|264864^MDC_DIM_BEAT_PER_MIN^MDC"
	got := understood(t, oru("OBR", row, rate, row, "OBR", rate, row, "OBR", row, row, rate, "OBR", rate))
	for i, o := range got.Observations {
		if o.Index != uint32(i) {
			t.Fatalf("observation %d has index %d", i, o.Index)
		}
	}
	if len(got.Observations) != 9 {
		t.Errorf("%d observations", len(got.Observations))
	}
}

// A start of samples holds for those of its OBR. One that says when it was observed itself has no other's.
func TestTheStartOfAnotherObservationIsNotTaken(t *testing.T) {
	start := "OBX|2|TS|131330&TIM^MDC_ECG_ELEC_POTL_II^MDC|1.1|20260102030405"
	got := understood(t, oru("OBR|1|||||||", cd, start, na+"1^2", "OBR|2||||||20260102030410", na+"3^4"))
	if len(got.Waveforms) != 2 || got.Waveforms[0].Time != "20260102030405" || got.Waveforms[1].Time != "20260102030410" {
		t.Errorf("%q", waves(got))
	}
}
