package fhir

import (
	"strings"
	"testing"
	"time"
)

func FuzzParseSearch(f *testing.F) {
	for _, seed := range []string{
		"patient=abc", "patient=Patient/abc,https://ward.example/fhir/Patient/d&code=8867-4&_count=10",
		"patient.identifier=urn:oid:2.25.1%7C12%5C,3&date=ge2026-05-04T10:00:00.000%2B02:00&date=lt2027",
		"patient:missing=true&_cursor=a.b.0", "code=a|b|c&patient=x", "patient=x&date=eq0000", "patient=%00&%zz", "patient=x&_count=-1",
		`patient.identifier=\|&patient.identifier=\`, "date=2026-02-30&patient=x", "patient=x&date=ge9999-12-31T23:59:60Z", strings.Repeat("&", 99),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		s, err := parseSearch(raw, "https://ward.example/fhir", time.UTC)
		if err != nil {
			if _, ok := err.(*paramError); !ok {
				t.Errorf("%T", err)
			}
			return
		}
		if s.patients == nil && s.identifiers == nil && !s.noPatient {
			t.Error("a search over all patients")
		}
		if s.count < 1 || s.count > maxCount || len(s.patients) > maxValues || len(s.codes) > maxValues {
			t.Errorf("out of bounds: %+v", s)
		}
		for _, tok := range s.identifiers {
			if tok.code == "" {
				t.Error("an identifier without a value")
			}
		}
	})
}

func FuzzDecimal(f *testing.F) {
	for _, seed := range []string{"98.60", "-0", "+007.5", ".5", "5.", "-", "", "1e5", "0x1", "٣", "--1", "+.", "00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		n, ok := decimal(in)
		if !ok {
			return
		}
		if !decimalRE.MatchString(n.String()) {
			t.Errorf("%q became %q, which is no FHIR decimal", in, n)
		}
		digits := func(s string) string { return strings.TrimLeft(strings.Trim(s, "+-"), "0") }
		if got, want := digits(n.String()), strings.TrimSuffix(digits(in), "."); got != want && got != "."+want {
			t.Errorf("%q became %q", in, n)
		}
	})
}
