package registry_test

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"wardlink/server/registry"
)

func contextEnded(f *fixture) (context.Context, context.CancelFunc) { return context.WithCancel(f.ctx) }

// TestScopes: what is strict about them, and their one spelling.
func TestScopes(t *testing.T) {
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprintf(`"w%d"`, i)
	}
	for text, want := range map[string]string{ // a spelling, or what the error says
		`{}`:           "nothing",
		`{"all":true}`: "all: read, search, waveforms",
		`{"all":true,"operations":["waveforms","read","read"]}`:              "all: read, waveforms",
		`{"wards":["ICU 3","ICU 2"]}`:                                        "wards ICU 2, ICU 3: read, search",
		`{"codes":["loinc|8867-4","MDC|147842","http://loinc.org|8867-4"]}`:  "codes loinc|8867-4, mdc|147842: read, search",
		`{"wards":["ICU 3"],"subjects":["0a0b","0c"],"operations":["read"]}`: "wards ICU 3; 2 patients: read",
		`{"all":true,"wards":["ICU 3"]}`:                                     "! a list beside it",
		`{"operations":["read"]}`:                                            "! on nothing",
		`{"all":true,"operations":["write"]}`:                                "! expected some of read, search, waveforms",
		`{"wards":[""]}`:                                                     "! ward",
		`{"wards":[" ICU 3"]}`:                                               "! ward",
		`{"wards":["a\nb"]}`:                                                 "! ward",
		`{"codes":["8867-4"]}`:                                               "! expected loinc|8867-4",
		`{"codes":["loinc|"]}`:                                               "! expected loinc|8867-4",
		`{"codes":["mdc|MDC_ECG_HEART_RATE"]}`:                               "! is a number",
		`{"codes":["mdc|0147842"]}`:                                          "! is a number",
		`{"subjects":["urn:oid:1.2|4711"]}`:                                  "! no patient's id",
		`{"ward":["ICU 3"]}`:                                                 "! unknown field",
		`{"wards":["ICU 3"]} {}`:                                             "! something follows",
		`{"wards":[` + strings.Join(many, ",") + `]}`:                        "! at most 64",
		``: "! scope",
	} {
		s, err := registry.ParseScope(text)
		if says, bad := strings.CutPrefix(want, "! "); bad {
			if err == nil || !strings.Contains(err.Error(), says) || !reflect.DeepEqual(s, registry.Scope{}) {
				t.Errorf("%.80s: %v, %v; expected an error with %q and no scope", text, s, err, says)
			}
		} else if err != nil || s.String() != want {
			t.Errorf("%s: %q, %v; expected %q", text, s, err, want)
		}
	}
	if _, err := registry.ParseScope(`{"subjects":["4711|secret"]}`); err == nil || strings.Contains(err.Error(), "4711") {
		t.Errorf("an error that names what may be a patient: %v", err)
	}
}

// TestWhatAScopeHolds: each list narrows by itself, none is no list, and nothing holds nothing.
func TestWhatAScopeHolds(t *testing.T) {
	parse := func(text string) registry.Scope {
		t.Helper()
		s, err := registry.ParseScope(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	rate, loinc, spo2 := registry.Coding{System: registry.SystemMDC, Code: "147842"}, registry.Coding{System: registry.SystemLOINC, Code: "8867-4"}, registry.Coding{System: registry.SystemMDC, Code: "150456"}
	type holds struct{ icu3, icu4, nowhere, ann, bob, nobody, rate, spo2, reachesRate, reachesLOINC, reachesSpO2, read, waveforms bool }
	for text, want := range map[string]holds{
		`{}`: {},
		`{"all":true,"operations":["read","waveforms"]}`:   {true, true, true, true, true, true, true, true, true, true, true, true, true},
		`{"wards":["ICU 3"]}`:                              {true, false, false, true, true, true, true, true, true, true, true, true, false},
		`{"subjects":["ann"]}`:                             {true, true, true, true, false, false, true, true, true, true, true, true, false},
		`{"codes":["mdc|147842"],"operations":["search"]}`: {true, true, true, true, true, true, true, false, true, true, false, false, false},
		`{"codes":["loinc|8867-4"]}`:                       {true, true, true, true, true, true, true, false, true, true, false, true, false},
	} {
		s := parse(text)
		got := holds{s.HoldsWard("ICU 3"), s.HoldsWard("ICU 4"), s.HoldsWard(""), s.HoldsSubject("ann"), s.HoldsSubject("bob"), s.HoldsSubject(""),
			s.HoldsCode(loinc, rate), s.HoldsCode(spo2), s.Reaches(rate), s.Reaches(loinc), s.Reaches(spo2), s.May(registry.Read), s.May(registry.Waveforms)}
		if got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", text, got, want)
		}
	}
}

func FuzzParseScope(f *testing.F) {
	for _, seed := range []string{`{}`, `{"all":true}`, `{"wards":["ICU 3"],"codes":["loinc|8867-4"],"subjects":["0a"],"operations":["read"]}`, `{"wards":null}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := registry.ParseScope(text)
		if err != nil {
			return
		}
		again, err := s.Checked()
		if err != nil || again.String() != s.String() || !s.Empty() && !s.All && len(s.Wards)+len(s.Codes)+len(s.Subjects) == 0 {
			t.Errorf("%q: %v, %v", text, s, err)
		}
	})
}
