package fhir

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/server/records"
)

// Limits of a request. They are said in the errors that they cause.
const (
	maxURL       = 8 << 10 // bytes of the request's target
	maxParams    = 32
	maxValues    = 64 // comma-separated values of one parameter
	defaultCount = 100
	maxCount     = 1000
	maxPatients  = 64      // patients that one search walks along
	pageRoom     = 4 << 20 // bytes of a page, about: samples can fill it before the count does
)

// paramError is a request that the client has to mend. Its text names parameters and what is expected of them, never a value: a
// value may be a patient's identifier, and errors end up in the client's logs.
type paramError struct{ text string }

func (e *paramError) Error() string { return e.text }

func badParam(format string, args ...any) error { return &paramError{fmt.Sprintf(format, args...)} }

// token is one alternative of a token parameter: system nil is any system, code "" any code.
type token struct {
	system *string
	code   string
}

// search is a parsed Observation search.
type search struct {
	patients    []string // ids as given; nil when the parameter is absent
	identifiers []token  // of patient.identifier
	noPatient   bool     // patient:missing=true
	codes       []token
	from, to    *int64 // Unix milliseconds, from <= at < to; nil is no bound
	count       int
	after       *records.Position
	proof       string // that after was given to who shows it
}

var (
	observationParams = []string{"patient", "patient.identifier", "patient:missing", "code", "date", "_count", "_cursor", "_format"}
	patientParams     = []string{"identifier", "_format"}
	idRE              = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`)
)

// parseQuery reads the query string and refuses parameters that are unknown, which FHIR lets a server do and which keeps a typing
// error from widening a search.
func parseQuery(raw string, known []string) (url.Values, error) {
	if strings.Count(raw, "&") >= maxParams {
		return nil, badParam("more than %d parameters", maxParams)
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, badParam("the query string is not properly encoded")
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, name) {
			return nil, badParam("parameter %.40q is unknown; this server knows %s", name, strings.Join(known, ", "))
		}
		if len(values[name]) > 1 && name != "date" {
			return nil, badParam("parameter %s is given twice; separate alternatives by commas", name)
		}
	}
	if values.Has("_format") && !jsonFormat(values.Get("_format")) {
		return nil, badParam("_format: this server gives application/fhir+json")
	}
	return values, nil
}

func jsonFormat(f string) bool {
	f, _, _ = strings.Cut(strings.ReplaceAll(f, " ", "+"), ";")
	switch strings.TrimSpace(f) {
	case "json", "application/fhir+json", "application/json":
		return true
	}
	return false
}

// parseSearch reads the query of an Observation search. base is the server's own URL, which a patient reference may begin with;
// zone is that of dates without one.
func parseSearch(raw, base string, zone *time.Location) (search, error) {
	s := search{count: defaultCount}
	values, err := parseQuery(raw, observationParams)
	if err != nil {
		return s, err
	}
	if values.Has("patient") {
		if s.patients, err = parsePatients(values.Get("patient"), base); err != nil {
			return s, err
		}
	}
	if values.Has("patient.identifier") {
		if s.identifiers, err = parseTokens("patient.identifier", values.Get("patient.identifier"), false); err != nil {
			return s, err
		}
	}
	if values.Has("patient:missing") {
		if s.noPatient = values.Get("patient:missing") == "true"; !s.noPatient || s.patients != nil || s.identifiers != nil {
			return s, badParam("patient:missing: expected true, and neither patient nor patient.identifier beside it")
		}
	}
	if s.patients == nil && s.identifiers == nil && !s.noPatient {
		return s, badParam("name whose observations: patient=<id>, patient.identifier=<system>|<value>, or patient:missing=true")
	}
	if values.Has("code") {
		if s.codes, err = parseTokens("code", values.Get("code"), true); err != nil {
			return s, err
		}
	}
	if err := s.parseDates(values["date"], zone); err != nil {
		return s, err
	}
	if values.Has("_count") {
		n, err := strconv.Atoi(values.Get("_count"))
		if err != nil || n < 1 {
			return s, badParam("_count: expected a number from 1 to %d", maxCount)
		}
		s.count = min(n, maxCount)
	}
	if values.Has("_cursor") {
		at, proof, _ := cutLast(values.Get("_cursor"), ".")
		p, err := records.ParsePosition(at)
		if err != nil {
			return s, badParam("_cursor: follow the next link of a former page as it was given")
		}
		s.after, s.proof = &p, proof
	}
	return s, nil
}

func parsePatients(value, base string) ([]string, error) {
	parts, err := alternatives("patient", value)
	if err != nil {
		return nil, err
	}
	for i, p := range parts {
		p = strings.TrimPrefix(strings.TrimPrefix(p, base+"/"), "Patient/")
		if !idRE.MatchString(p) {
			return nil, badParam("patient: expected an id or Patient/id; for an identifier use patient.identifier=<system>|<value>")
		}
		parts[i] = p
	}
	return parts, nil
}

// parseTokens reads system|code, |code (no system) and code (any system); system| (any code) only where anyCode allows it.
func parseTokens(name, value string, anyCode bool) ([]token, error) {
	parts, err := alternatives(name, value)
	if err != nil {
		return nil, err
	}
	tokens := make([]token, len(parts))
	for i, part := range parts {
		fields := split(part, '|')
		switch {
		case len(fields) == 1:
			tokens[i] = token{code: unescape(fields[0])}
		case len(fields) == 2 && (fields[1] != "" || (anyCode && fields[0] != "")):
			system := unescape(fields[0])
			tokens[i] = token{system: &system, code: unescape(fields[1])}
		default:
			return nil, badParam("%s: expected <system>|<value> or <value>", name)
		}
	}
	return tokens, nil
}

// alternatives splits at commas; empty alternatives are refused, so that an empty value never means "all".
func alternatives(name, value string) ([]string, error) {
	parts := split(value, ',')
	if len(parts) > maxValues {
		return nil, badParam("%s: more than %d values", name, maxValues)
	}
	if slices.Contains(parts, "") {
		return nil, badParam("%s: a value is empty", name)
	}
	return parts, nil
}

// split splits at separators that no backslash escapes (FHIR R4, search, "escaping search parameters"), leaving the escapes.
func split(s string, separator byte) []string {
	var parts []string
	begin := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case separator:
			parts = append(parts, s[begin:i])
			begin = i + 1
		}
	}
	return append(parts, s[begin:])
}

var unescaper = strings.NewReplacer(`\\`, `\`, `\,`, `,`, `\|`, `|`, `\$`, `$`)

func unescape(s string) string { return unescaper.Replace(s) }

// parseDates narrows from and to by each date; all must hold.
func (s *search) parseDates(dates []string, zone *time.Location) error {
	for _, d := range dates {
		prefix := "eq"
		if len(d) >= 2 && d[0] >= 'a' {
			prefix, d = d[:2], d[2:]
		}
		low, high, err := parseDate(d, zone)
		if err != nil {
			return err
		}
		var from, to *int64
		switch prefix {
		case "eq":
			from, to = &low, &high
		case "ge":
			from = &low
		case "gt":
			from = &high
		case "le":
			to = &high
		case "lt":
			to = &low
		default:
			return badParam("date: prefix is unknown; expected eq, ge, gt, le or lt")
		}
		if from != nil && (s.from == nil || *from > *s.from) {
			s.from = from
		}
		if to != nil && (s.to == nil || *to < *s.to) {
			s.to = to
		}
	}
	return nil
}

// dateLayouts are FHIR's partial dates with the span that each stands for.
var dateLayouts = []struct {
	layout string
	next   func(time.Time) time.Time
}{
	{"2006", func(t time.Time) time.Time { return t.AddDate(1, 0, 0) }},
	{"2006-01", func(t time.Time) time.Time { return t.AddDate(0, 1, 0) }},
	{"2006-01-02", func(t time.Time) time.Time { return t.AddDate(0, 0, 1) }},
	{"2006-01-02T15:04", func(t time.Time) time.Time { return t.Add(time.Minute) }},
	{"2006-01-02T15:04Z07:00", func(t time.Time) time.Time { return t.Add(time.Minute) }},
	{"2006-01-02T15:04:05", func(t time.Time) time.Time { return t.Add(time.Second) }},
	{"2006-01-02T15:04:05Z07:00", func(t time.Time) time.Time { return t.Add(time.Second) }},
	{"2006-01-02T15:04:05.000", func(t time.Time) time.Time { return t.Add(time.Millisecond) }},
	{"2006-01-02T15:04:05.000Z07:00", func(t time.Time) time.Time { return t.Add(time.Millisecond) }},
}

// parseDate gives the span that a date stands for: low <= at < high, Unix milliseconds.
func parseDate(d string, zone *time.Location) (low, high int64, err error) {
	d = strings.ReplaceAll(d, " ", "+") // a plus sign that the client did not encode
	for _, l := range dateLayouts {
		if t, err := time.ParseInLocation(l.layout, d, zone); err == nil && len(d) >= 4 && t.Year() >= 1 {
			return t.UnixMilli(), l.next(t).UnixMilli(), nil
		}
	}
	return 0, 0, badParam("date: expected a date such as ge2026-05-04T10:00:00Z, or a part of it from the left")
}

// cutLast cuts around the last separator.
func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// query gives the search again as a query string, for links. Patients are named by id, also when they were searched by
// identifier: a link is kept in more places than a request.
func (s *search) query(values url.Values, ids []string, cursor string) string {
	out := url.Values{"_count": {strconv.Itoa(s.count)}, "_cursor": {cursor}}
	for _, name := range []string{"code", "date", "patient:missing"} {
		if v, ok := values[name]; ok {
			out[name] = v
		}
	}
	if len(ids) > 0 {
		out["patient"] = []string{strings.Join(ids, ",")}
	}
	return out.Encode()
}

// matches tells whether one of the alternatives names one of the codings.
func matches(tokens []token, codings []coding) bool {
	for _, t := range tokens {
		for _, c := range codings {
			if (t.system == nil || *t.system == c.System) && (t.code == "" || t.code == c.Code) {
				return true
			}
		}
	}
	return false
}
