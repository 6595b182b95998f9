package codes

import (
	"encoding/csv"
	"math"
	"regexp"
	"strings"
	"testing"
)

// TestTable holds the rules of codes.csv that its readers rely on.
func TestTable(t *testing.T) {
	rows, err := csv.NewReader(strings.NewReader(codesCSV)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 50 {
		t.Fatalf("%d rows; the table of the first codes has more", len(rows))
	}
	loinc := regexp.MustCompile(`^[0-9]{4,5}-[0-9]$`)
	profiles := map[string]bool{"": true, "heartrate": true, "resprate": true, "oxygensat": true, "bp": true, "bodytemp": true,
		"bodyweight": true, "bodyheight": true}
	seen := map[string]bool{}
	for _, items := range load().items {
		for _, it := range items {
			if key := it.Ref + " " + it.UCUM; seen[key] {
				t.Errorf("%s stands twice", key)
			} else {
				seen[key] = true
			}
			if it.MDC>>16 != partitionPhysio {
				t.Errorf("%s: %d is not in partition 2", it.Ref, it.MDC)
			}
			if !strings.HasPrefix(it.Ref, "MDC_") || it.Name == "" {
				t.Errorf("%d: ref %q, name %q", it.MDC, it.Ref, it.Name)
			}
			for _, l := range it.LOINC {
				if !loinc.MatchString(l) || !luhn(l) {
					t.Errorf("%s: %q is not a LOINC code", it.Ref, l)
				}
			}
			if p := strings.TrimPrefix(it.Profile, profileBase); !profiles[p] {
				t.Errorf("%s: profile %q", it.Ref, it.Profile)
			}
			if (it.Profile != "") != (it.Category == "vital-signs") {
				t.Errorf("%s: profile %q with category %q", it.Ref, it.Profile, it.Category)
			}
			if u, ok := UnitOf(it.UCUM); !ok || u != it.UCUM {
				t.Errorf("%s: unit %q reads as %q", it.Ref, it.UCUM, u)
			}
			if math.IsNaN(it.Low) != math.IsNaN(it.High) || it.Low >= it.High {
				t.Errorf("%s: range %v to %v", it.Ref, it.Low, it.High)
			}
		}
	}
	if len(seen) != len(rows)-1 {
		t.Errorf("%d rows became %d items", len(rows)-1, len(seen))
	}
}

// luhn checks a LOINC code's last digit (mod 10, as the LOINC Users' Guide gives it).
func luhn(code string) bool {
	digits, check, _ := strings.Cut(code, "-")
	sum := 0
	for i := range len(digits) {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 0 {
			d *= 2
		}
		sum += d/10 + d%10
	}
	return (10-sum%10)%10 == int(check[0]-'0')
}

func TestByMDC(t *testing.T) {
	for _, c := range []struct {
		mdc         uint32
		ref, loinc  string
		ucum, profl string
	}{
		{147842, "MDC_ECG_HEART_RATE", "8867-4", "/min", "heartrate"},
		{150456, "MDC_PULS_OXIM_SAT_O2", "2708-6 59408-5", "%", "oxygensat"},
		{150033, "MDC_PRESS_BLD_ART_SYS", "8480-6", "mm[Hg]", "bp"},
		{150037, "MDC_PRESS_BLD_ART_ABP_SYS", "8480-6", "mm[Hg]", "bp"},
		{150038, "MDC_PRESS_BLD_ART_ABP_DIA", "8462-4", "mm[Hg]", "bp"},
		{150039, "MDC_PRESS_BLD_ART_ABP_MEAN", "8478-0", "mm[Hg]", "bp"},
		{188420, "MDC_TEMP_RECT", "8310-5", "Cel", "bodytemp"},
	} {
		it, ok := ByMDC(c.mdc)
		if !ok || it.Ref != c.ref || it.UCUM != c.ucum || it.Profile != profileBase+c.profl ||
			!strings.HasPrefix(strings.Join(it.LOINC, " "), c.loinc) {
			t.Errorf("%d: %+v, %v", c.mdc, it, ok)
		}
		if mdc, ok := ByRef(c.ref); !ok || mdc != c.mdc {
			t.Errorf("%s: %d, %v", c.ref, mdc, ok)
		}
	}
	if _, ok := ByMDC(150999); ok {
		t.Error("an unknown code has an item")
	}
}

func TestForGlucose(t *testing.T) {
	mg, _ := For(160184, "mg/dL")
	mmol, _ := For(160184, "mmol/L")
	usual, _ := For(160184, "")
	if mg.LOINC[0] != "41653-7" || mmol.LOINC[0] != "14743-9" || usual.LOINC[0] != "41653-7" {
		t.Errorf("%v %v %v", mg.LOINC, mmol.LOINC, usual.LOINC)
	}
	if _, ok := For(1, "%"); ok {
		t.Error("an unknown code has an item")
	}
}

func TestNormalise(t *testing.T) {
	for _, c := range []struct {
		id  uint64
		mdc uint32
		ok  bool
	}{
		{147842, 147842, true},
		{16770, 147842, true},
		{29140, 160212, true},
		{12345, 0, false},
		{188420 & 0xffff, 188420, true},
		{150999, 150999, true},
		{67108865, 67108865, true}, // a vendor's partition, 1024
		{0, 0, false},
		{1 << 40, 0, false},
	} {
		if mdc, ok := Normalise(c.id); mdc != c.mdc || ok != c.ok {
			t.Errorf("%d: %d, %v", c.id, mdc, ok)
		}
	}
}

func TestUnitOf(t *testing.T) {
	for sent, want := range map[string]string{
		"264864^MDC_DIM_BEAT_PER_MIN^MDC": "/min",
		"2720":                            "/min",
		"{beat}/min^{beat}/min^UCUM":      "/min",
		"bpm":                             "/min",
		"^MDC_DIM_RESP_PER_MIN":           "/min",
		"mmHg":                            "mm[Hg]",
		"MM HG":                           "mm[Hg]",
		"999^mm[Hg]^L":                    "mm[Hg]",
		"266560^MDC_DIM_FAHR^MDC":         "[degF]",
		"268192":                          "Cel",
		"°C":                              "Cel",
		"1":                               "1",
		"%":                               "%",
		"ML":                              "mL",
		"":                                "",
		"^^":                              "",
		"furlong":                         "",
		"Ms":                              "",
		"4294967295":                      "",
		"18446744073709551616":            "",
	} {
		if ucum, ok := UnitOf(sent); ucum != want || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", sent, ucum, ok, want)
		}
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		mdc   uint32
		value float64
		ucum  string
		want  Verdict
	}{
		{147842, 0, "/min", Plausible}, // asystole
		{147842, 350, "/min", Plausible},
		{147842, 351, "/min", Implausible},
		{147842, -1, "/min", Implausible},
		{147842, 80, "mm[Hg]", WrongUnit},
		{147842, 80, "", WrongUnit},
		{150364, 98.6, "[degF]", Plausible},
		{150364, 113, "[degF]", Plausible}, // exactly 45 Cel
		{150364, 114, "[degF]", Implausible},
		{150364, 37, "[degF]", Implausible},
		{150021, 16, "kPa", Plausible},
		{150456, 0.98, "1", Plausible},
		{151868, 0.5, "L", Plausible},
		{151868, 500, "L", Implausible},
		{160184, 100, "mmol/L", Implausible},
		{160184, 100, "mg/dL", Plausible},
		{131841, 2, "mm", Plausible},
		{150452, 1e9, "1", Plausible}, // no range
		{147842, math.NaN(), "/min", Implausible},
	} {
		it, ok := For(c.mdc, c.ucum)
		if !ok {
			t.Fatalf("%d is unknown", c.mdc)
		}
		if v := it.Judge(c.value, c.ucum); v != c.want {
			t.Errorf("%d %v %s: %v, want %v", c.mdc, c.value, c.ucum, v, c.want)
		}
	}
}

// TestFaultyTables shows that each rule of the parser refuses.
func TestFaultyTables(t *testing.T) {
	const unitsHead = "ucum,mdc,ref,base,scale,offset,names\n"
	const codesHead = "mdc,ref,name,loinc,ucum,low,high,profile,category\n"
	for name, c := range map[string][2]string{
		"two conversions":    {codesHead, unitsHead + "%,,,%,1,0,\n%,,,%,2,0,\n"},
		"two units of a mdc": {codesHead, unitsHead + "%,262688,,%,1,0,\n1,262688,,%,100,0,\n"},
		"foreign partition":  {codesHead, unitsHead + "%,147842,,%,1,0,\n"},
		"name of two units":  {codesHead, unitsHead + "%,,,%,1,0,x\n1,,,%,100,0,X\n"},
		"unknown unit":       {codesHead + "147842,MDC_A,a,,/min,0,1,,\n", unitsHead},
		"ref of two codes":   {codesHead + "147842,MDC_A,a,,%,0,1,,\n147843,MDC_A,a,,%,0,1,,\n", unitsHead + "%,,,%,1,0,\n"},
		"half a range":       {codesHead + "147842,MDC_A,a,,%,0,,,\n", unitsHead + "%,,,%,1,0,\n"},
	} {
		if _, err := parse(c[0], c[1]); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzUnitOf(f *testing.F) {
	for _, s := range []string{"264864^MDC_DIM_BEAT_PER_MIN^MDC", "mm Hg", "^^", "0004-0aa0", "1", "18446744073709551616"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ucum, ok := UnitOf(s); ok {
			if again, ok := UnitOf(ucum); !ok || again != ucum {
				t.Errorf("%q is %q, which is %q", s, ucum, again)
			}
		}
	})
}
