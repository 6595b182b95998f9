package hl7

import (
	"strings"
	"testing"
)

func TestOneOBX(t *testing.T) {
	const hr, sys = "147842^MDC_ECG_HEART_RATE^MDC", "264864^MDC_DIM_BEAT_PER_MIN^MDC"
	for name, c := range map[string]struct {
		obx     string
		want    string
		problem string
	}{
		"plain":                   {"OBX|1|NM|" + hr + "||80|" + sys, "147842 80 /min marks 0", ""},
		"precision is kept":       {"OBX|1|NM|" + hr + "||080.50|" + sys, "147842 080.50 /min marks 0", ""},
		"padded number":           {"OBX|1|NM|" + hr + "|| +80 |" + sys, "147842 +80 /min marks 0", ""},
		"asystole is a value":     {"OBX|1|NM|" + hr + "||0|" + sys, "147842 0 /min marks 0", ""},
		"implausible is kept":     {"OBX|1|NM|" + hr + "||351|" + sys, "147842 351 /min marks 2", ""},
		"empty":                   {"OBX|1|NM|" + hr + "|||" + sys, "147842  /min marks 1", ""},
		"null":                    {`OBX|1|NM|` + hr + `||""|` + sys, `147842 "" /min marks 1`, ""},
		"dashes":                  {"OBX|1|NM|" + hr + "||---|" + sys, "147842 --- /min marks 1", ""},
		"question mark":           {"OBX|1|NM|" + hr + "||-?-|" + sys, "147842 -?- /min marks 1", ""},
		"NaN":                     {"OBX|1|NM|" + hr + "||NaN|" + sys, "147842 NaN /min marks 1", ""},
		"16 bit sentinel":         {"OBX|1|NM|" + hr + "||-32768|" + sys, "147842 -32768 /min marks 1", ""},
		"vendor sentinel":         {"OBX|1|NM|" + hr + "||-1|" + sys, "147842 -1 /min marks 1", ""},
		"-1 where it can be":      {"OBX|1|NM|150087^MDC_PRESS_BLD_VEN_CENT_MEAN^MDC||-1|mmHg", "150087 -1 mm[Hg] marks 0", ""},
		"-1 of an unknown code":   {"OBX|1|NM|150999^X^MDC||-1|mmHg", "150999 -1 mm[Hg] marks 4", "OBX[0]-3 code is not known"},
		"status X with a value":   {"OBX|1|NM|" + hr + "||80|" + sys + "|||||X", "147842 80 /min marks 1", ""},
		"no reading, odd unit":    {"OBX|1|NM|" + hr + "|||furlong|||||X", "147842   marks 1", ""},
		"not a number":            {"OBX|1|NM|" + hr + "||fast|" + sys, "147842 fast /min marks 0", "OBX[0]-5 value is not a number"},
		"decimal comma":           {"OBX|1|NM|" + hr + "||80,5|" + sys, "147842 80,5 /min marks 0", "OBX[0]-5 value is not a number"},
		"two numbers":             {"OBX|1|NM|" + hr + "||80~81|" + sys, "147842 80~81 /min marks 0", "OBX[0]-5 value is not a number"},
		"exponent":                {"OBX|1|NM|" + hr + "||8e1|" + sys, "147842 8e1 /min marks 0", "OBX[0]-5 value is not a number"},
		"hex":                     {"OBX|1|NM|" + hr + "||0x50|" + sys, "147842 0x50 /min marks 0", "OBX[0]-5 value is not a number"},
		"beyond all numbers":      {"OBX|1|NM|" + hr + "||" + strings.Repeat("9", 400) + "|" + sys, "147842 " + strings.Repeat("9", 400) + " /min marks 2", ""},
		"unknown unit":            {"OBX|1|NM|" + hr + "||80|furlong", "147842 80  marks 8", "OBX[0]-6 unit is not known"},
		"no unit":                 {"OBX|1|NM|" + hr + "||80", "147842 80  marks 8", "OBX[0]-6 unit is missing"},
		"foreign unit":            {"OBX|1|NM|" + hr + "||80|mmHg", "147842 80 mm[Hg] marks 2", "OBX[0]-6 unit does not belong to this code"},
		"fahrenheit":              {"OBX|1|NM|150364^^MDC||98.6|degF", "150364 98.6 [degF] marks 0", ""},
		"fahrenheit as celsius":   {"OBX|1|NM|150364^^MDC||98.6|Cel", "150364 98.6 Cel marks 2", ""},
		"bare term":               {"OBX|1|NM|16770^^MDC||80|2720", "147842 80 /min marks 0", ""},
		"halves in hex":           {"OBX|1|NM|0002-4182^HR^MDIL||80|0004-0aa0^bpm^MDIL", "147842 80 /min marks 0", ""},
		"reference id only":       {"OBX|1|NM|^MDC_ECG_HEART_RATE^MDC||80|^MDC_DIM_BEAT_PER_MIN", "147842 80 /min marks 0", ""},
		"alternate code":          {"OBX|1|NM|8867-4^Heart rate^LN^" + hr + "||80|bpm", "147842 80 /min marks 0", ""},
		"no system":               {"OBX|1|NM|147842||80|bpm", "147842 80 /min marks 0", ""},
		"no system, bare":         {"OBX|1|NM|16770||80|bpm", "0 80 /min marks 4", "OBX[0]-3 code is not known"},
		"other system":            {"OBX|1|NM|147842^X^99ACME||80|bpm", "0 80 /min marks 4", "OBX[0]-3 code is not known"},
		"number and name quarrel": {"OBX|1|NM|147842^MDC_PULS_OXIM_SAT_O2^MDC||80|bpm", "0 80 /min marks 4", "OBX[0]-3 number and reference id name different measures"},
		"same measure":            {"OBX|1|NM|150037^MDC_PRESS_BLD_ART_SYS^MDC||80|mmHg", "150037 80 mm[Hg] marks 0", ""},
		"no code":                 {"OBX|1|NM|||80|bpm", "0 80 /min marks 4", "OBX[0]-3 code is missing"},
		"no type":                 {"OBX|1||" + hr + "||80|" + sys, "147842 80 /min marks 0", "OBX[0]-2 value type is missing"},
		"array":                   {"OBX|1|NA|131329^^MDC||1^2^3|mV", "131329 1^2^3 mV marks 0", "OBX[0]-5 array has neither channel definition nor sampling rate"},
		"structured numeric":      {"OBX|1|SN|" + hr + "||>^80|" + sys, "147842 >^80 /min marks 0", "OBX[0]-2 value type is not read"},
		"nothing at all":          {"OBX", "0   marks 5", "OBX[0]-3 code is missing"},
		"text":                    {`OBX|1|ST|` + hr + `||a\F\b\X41\\Zx\\X4\`, `147842 a|bA\Zx\\X4\  marks 0`, ""},
		"open escape":             {`OBX|1|ST|` + hr + `||a\Fb`, `147842 a\Fb  marks 0`, ""},
		"unreadable time":         {"OBX|1|NM|" + hr + "||80|" + sys + "||||||||20261301000000", "147842 80 /min marks 16", "OBX[0]-14 time cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			// The neighbours must come through whatever stands between them.
			good := "OBX|9|NM|150456^^MDC||97|%"
			for _, raw := range [][]byte{oru(c.obx), oru(c.obx, good)} {
				m := understood(t, raw)
				if got := row(m.Observations[0]); got != c.want {
					t.Errorf("%q, want %q", got, c.want)
				}
				var problem string
				if len(m.Problems) > 0 {
					problem = m.Problems[0].Where + " " + m.Problems[0].Reason
				}
				if problem != c.problem || len(m.Problems) > 1 {
					t.Errorf("problems %v, want %q", m.Problems, c.problem)
				}
				if (m.Raw != nil) != (c.problem != "") {
					t.Errorf("raw kept: %v", m.Raw != nil)
				}
				if len(m.Observations) > 1 && row(m.Observations[1]) != "150456 97 % marks 0" {
					t.Errorf("the neighbour became %q", row(m.Observations[1]))
				}
			}
		})
	}
}
