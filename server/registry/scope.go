package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"wardlink/telemetry/codes"
)

// Operation is what a service account does over FHIR.
type Operation string

// The operations. Each is granted by name, so that one that a later release adds is nobody's until somebody gives it.
const (
	Read      Operation = "read"      // one resource by its id
	Search    Operation = "search"    // several, by parameters
	Waveforms Operation = "waveforms" // samples, beside readings: for both of the above
)

// Operations are all of them.
func Operations() []Operation { return []Operation{Read, Search, Waveforms} }

// Coding is a code and the URI of the system that it is of.
type Coding struct{ System, Code string }

// The systems that a scope may name in short.
const (
	SystemLOINC = "http://loinc.org"
	SystemMDC   = "urn:iso:std:iso:11073:10101"
)

// Scope is what a service account may see: the least that its work needs (45 CFR 164.502(b)). A reading is in it if it is in each list that
// is not empty. The zero Scope holds nothing, and no list at all never means everything: that is All.
type Scope struct {
	All        bool        `json:"all,omitempty"`        // readings of every ward, code and patient; excludes the three lists
	Operations []Operation `json:"operations,omitempty"` // what may be done with it; none is nothing
	Wards      []string    `json:"wards,omitempty"`      // in which a reading was taken in
	Codes      []string    `json:"codes,omitempty"`      // system|code, the system a URI
	Subjects   []string    `json:"subjects,omitempty"`   // pseudonyms of patients (records.PatientID): no identifier is kept here
}

// maxScope bounds each list of a scope.
const maxScope = 64

// maxCode bounds a code with its system, in bytes.
const maxCode = 200

var subjectRE = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`)

// ParseScope reads the JSON of a scope, strictly: an unknown member is an error, since what it was to narrow would be wide open.
func ParseScope(text string) (s Scope, err error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return Scope{}, fmt.Errorf("scope: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Scope{}, errors.New("scope: something follows it")
	}
	return s.Checked()
}

// Checked gives the scope in its one spelling: lists sorted, each value once, systems by their URIs. Its error says what is wrong and how to
// mend it. A scope that names what but no operation gets read and search;
// all without an operation is all of them.
func (s Scope) Checked() (Scope, error) {
	for name, n := range map[string]int{"operations": len(s.Operations), "wards": len(s.Wards), "codes": len(s.Codes), "subjects": len(s.Subjects)} {
		if n > maxScope {
			return Scope{}, fmt.Errorf("scope: %d %s; at most %d", n, name, maxScope)
		}
	}
	named := len(s.Wards)+len(s.Codes)+len(s.Subjects) > 0
	switch {
	case s.All && named:
		return Scope{}, errors.New("scope: everything, and a list beside it; name wards, codes or subjects, or say that it is all")
	case !s.All && !named && len(s.Operations) > 0:
		return Scope{}, errors.New("scope: operations, but on nothing; name wards, codes or subjects, or say that it is all")
	case s.All && len(s.Operations) == 0:
		s.Operations = Operations()
	case named && len(s.Operations) == 0:
		s.Operations = []Operation{Read, Search}
	}
	for _, o := range s.Operations {
		if !slices.Contains(Operations(), o) {
			return Scope{}, fmt.Errorf("scope: operation %.40q is unknown; expected some of %s", o, joined(Operations()))
		}
	}
	for _, w := range s.Wards {
		if strings.TrimSpace(w) != w || w == "" || !oneLine(w, maxLabel) {
			return Scope{}, fmt.Errorf("scope: ward %.40q: expected 1 to %d bytes of printable UTF-8, as the registry has it", w, maxLabel)
		}
	}
	out := Scope{All: s.All, Operations: sorted(s.Operations), Wards: sorted(s.Wards), Subjects: sorted(s.Subjects)}
	for _, c := range s.Codes {
		coding, err := ParseCoding(c)
		if err != nil {
			return Scope{}, fmt.Errorf("scope: %w", err)
		}
		out.Codes = append(out.Codes, coding.System+"|"+coding.Code)
	}
	out.Codes = sorted(out.Codes)
	for _, p := range s.Subjects {
		if !subjectRE.MatchString(p) {
			return Scope{}, errors.New("scope: a subject is no patient's id; expected what FHIR shows behind Patient/") // which one it is stays untold: it may be an identifier
		}
	}
	return out, nil
}

// ParseCoding reads system|code, the system a URI, "loinc" or "mdc".
func ParseCoding(text string) (Coding, error) {
	system, code, ok := strings.Cut(text, "|")
	switch strings.ToLower(system) {
	case "loinc":
		system = SystemLOINC
	case "mdc":
		system = SystemMDC
	}
	if !ok || code == "" || !strings.Contains(system, ":") || strings.Contains(code, "|") || !oneLine(text, maxCode) || strings.ContainsAny(text, " \t") {
		return Coding{}, fmt.Errorf("code %.60q: expected loinc|8867-4, mdc|147842 or <system's URI>|<code>", text)
	}
	if system == SystemMDC {
		if n, err := strconv.ParseUint(code, 10, 32); err != nil || strconv.FormatUint(n, 10) != code {
			return Coding{}, fmt.Errorf("code %.60q: an MDC code is a number, such as mdc|147842 for MDC_ECG_HEART_RATE", text)
		}
	}
	return Coding{system, code}, nil
}

func sorted[T ~string](in []T) []T { return slices.Compact(slices.Sorted(slices.Values(in))) }

func joined[T ~string](in []T) string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = string(s)
	}
	return strings.Join(out, ", ")
}

// Empty says whether nothing is in the scope.
func (s Scope) Empty() bool { return len(s.Operations) == 0 }

// May says whether an operation is granted.
func (s Scope) May(o Operation) bool { return slices.Contains(s.Operations, o) }

// HoldsWard says whether readings that were taken in there are in the scope; "" is of a gateway that stood nowhere.
func (s Scope) HoldsWard(ward string) bool {
	return s.All || !s.Empty() && (len(s.Wards) == 0 || slices.Contains(s.Wards, ward))
}

// HoldsSubject says whether readings of the patient with that pseudonym are; "" is of a device that knew no patient.
func (s Scope) HoldsSubject(id string) bool {
	return s.All || !s.Empty() && (len(s.Subjects) == 0 || slices.Contains(s.Subjects, id))
}

// HoldsCode says whether readings with one of the codings are: a reading has several, which mean the same.
func (s Scope) HoldsCode(codings ...Coding) bool {
	return s.All || !s.Empty() && (len(s.Codes) == 0 || slices.ContainsFunc(codings, func(c Coding) bool {
		return slices.Contains(s.Codes, c.System+"|"+c.Code)
	}))
}

// Reaches says whether readings that a request names by a coding can be in the scope: that coding is in it, or another one of the same
// measure. Of a request whose every code reaches nothing it is known without a look that it asks for what is not granted.
func (s Scope) Reaches(c Coding) bool {
	if s.HoldsCode(c) {
		return true
	}
	for _, granted := range s.Codes {
		system, code, _ := strings.Cut(granted, "|")
		if sameMeasure(c, Coding{system, code}) || sameMeasure(Coding{system, code}, c) {
			return true
		}
	}
	return false
}

// sameMeasure says whether an MDC code has that LOINC code, in some unit.
func sameMeasure(mdc, loinc Coding) bool {
	if mdc.System != SystemMDC || loinc.System != SystemLOINC {
		return false
	}
	n, err := strconv.ParseUint(mdc.Code, 10, 32)
	return err == nil && slices.Contains(codes.LOINCOf(uint32(n)), loinc.Code)
}

// String is the scope in one line for people: "nothing", "all: read, search", "wards ICU 3; codes ...: read". Subjects are counted: who
// they are is not for a list.
func (s Scope) String() string {
	if s.Empty() {
		return "nothing"
	}
	var parts []string
	if s.All {
		parts = append(parts, "all")
	}
	if len(s.Wards) > 0 {
		parts = append(parts, "wards "+joined(s.Wards))
	}
	if len(s.Codes) > 0 {
		short := strings.NewReplacer(SystemLOINC+"|", "loinc|", SystemMDC+"|", "mdc|")
		parts = append(parts, "codes "+short.Replace(joined(s.Codes)))
	}
	if n := len(s.Subjects); n == 1 {
		parts = append(parts, "1 patient")
	} else if n > 1 {
		parts = append(parts, strconv.Itoa(n)+" patients")
	}
	return strings.Join(parts, "; ") + ": " + joined(s.Operations)
}

// Limit says in one line what of its readings a service account does not see; "" when it sees all of them.
func (s Scope) Limit() string {
	if s.All && s.May(Waveforms) {
		return ""
	}
	return s.String()
}

// text is the scope as the database keeps it.
func (s Scope) text() (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}
