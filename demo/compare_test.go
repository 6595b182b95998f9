package demo

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wardlink/demo/bedside"
)

// base is where the hand-written servers of these tests pretend to be.
const base = "https://hospital.test:8443"

// account makes a written account of the given reading lines readable again: the tests choose every byte of it.
func account(t *testing.T, readings ...string) *bedside.Account {
	t.Helper()
	return fullAccount(t, readings, nil)
}

// fullAccount is account with arrays.
func fullAccount(t testing.TB, readings, waves []string) *bedside.Account {
	t.Helper()
	head := fmt.Sprintf(`{"patient":{"id":"WL0001","namespace":"WARDSIM","oid":"2.25.1234"},"messages":1,"messages_acknowledged":1,"readings":%d,"waves":%d}`,
		len(readings), len(waves))
	a, err := bedside.ReadAccount(strings.NewReader(head + "\n" + strings.Join(append(readings, waves...), "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Readings of the account. 1767225600123 is 2026-01-01T00:00:00.123Z.
const (
	sentHR      = `{"mdc":147842,"unit":"/min","value":"72.0","time":1767225600123,"acknowledged":true}`
	sentHRLost  = `{"mdc":147842,"unit":"/min","value":"72.0","time":1767225600123,"acknowledged":false}`
	sentHROther = `{"mdc":147842,"unit":"/min","value":"73.0","time":1767225600123,"acknowledged":true}`
	sentSpO2    = `{"mdc":150456,"unit":"%","value":"97.10","time":1767225600123,"acknowledged":true}`
	sentNone    = `{"mdc":150021,"unit":"mm[Hg]","time":1767225600123,"acknowledged":true}`
	sentLocal   = `{"local":"Urine","unit_text":"furlong","value":"7.25","time":1767225600123,"acknowledged":true}`
)

// stored is an Observation as a server writes it. Each test alters the text of a good one.
func stored(mdc, outcome string) string {
	return `{"resourceType":"Observation","id":"o-` + mdc + `","meta":{"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ActReason","code":"HTEST"}]},` +
		`"status":"final","code":{"coding":[{"system":"http://loinc.org","code":"8867-4"},{"system":"urn:iso:std:iso:11073:10101","code":"` + mdc + `"}]},` +
		`"effectiveDateTime":"2026-01-01T01:00:00.123+01:00",` + outcome + `}`
}

var (
	hr   = stored("147842", `"valueQuantity":{"value":72.0,"unit":"/min","system":"http://unitsofmeasure.org","code":"/min"}`)
	hr73 = strings.Replace(hr, "72.0", "73.0", 1)
	spo2 = stored("150456", `"valueQuantity":{"value":97.10,"unit":"%","system":"http://unitsofmeasure.org","code":"%"}`)
	own  = strings.NewReplacer("urn:iso:std:iso:11073:10101", "urn:wardlink:code-system:99WARDSIM", `"code":"Hz"`, "").Replace(
		stored("Urine", `"valueQuantity":{"value":7.25,"unit":"furlong"}`))
	none = stored("150021", `"dataAbsentReason":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/data-absent-reason","code":"error"}]}`)
)

func searchset(next string, entries ...string) string {
	links := `{"relation":"self","url":"https://hospital.test:8443/x"}`
	if next != "" {
		links += fmt.Sprintf(`,{"relation":"next","url":%q}`, next)
	}
	for i, e := range entries {
		entries[i] = `{"search":{"mode":"match"},"resource":` + e + `}`
	}
	return `{"resourceType":"Bundle","type":"searchset","link":[` + links + `],"entry":[` + strings.Join(entries, ",") + `]}`
}

// one serves a single page.
func one(body string) Fetch {
	return func(context.Context, string) ([]byte, error) { return []byte(body), nil }
}

func TestCompare(t *testing.T) {
	good := Comparison{Sent: 2, Acknowledged: 2, Stored: 2, NoReadings: NoReadings{1, 1, 1, 0}}
	pair := Comparison{Sent: 2, Acknowledged: 2, Stored: 2}
	all := []string{sentHR, sentSpO2, sentNone}
	with := func(c Comparison, f func(*Comparison)) Comparison { f(&c); return c }
	altered := func(old, new string) []string { return []string{strings.Replace(hr, old, new, 1), spo2, none} }
	heldAt := func(i int, status string) []string {
		out := []string{hr, spo2, none}
		out[i] = strings.Replace(out[i], `"HTEST"}]},`, `"HTEST"},{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"UNCERTREL"}]},`, 1)
		out[i] = strings.Replace(out[i], `"status":"final"`, `"status":"`+status+`"`, 1)
		return out
	}
	held := func(status string) []string { return heldAt(0, status) }
	mismatch := with(good, func(c *Comparison) { c.Stored, c.Mismatched = 1, 1 })
	unread := with(good, func(c *Comparison) { c.Stored, c.Missing, c.Unexpected = 1, 1, 1 })

	for name, tc := range map[string]struct {
		sent, stored []string
		want         Comparison
	}{
		"all as sent":           {all, []string{none, spo2, hr}, good},
		"missing":               {all, []string{spo2, none}, with(good, func(c *Comparison) { c.Stored, c.Missing = 1, 1 })},
		"missing no reading":    {all, []string{spo2, hr}, with(good, func(c *Comparison) { c.NoReadings.Stored, c.NoReadings.Missing = 0, 1 })},
		"duplicate":             {all, []string{hr, spo2, none, hr}, with(good, func(c *Comparison) { c.Duplicates = 1 })},
		"duplicate no reading":  {all, []string{none, hr, spo2, none}, with(good, func(c *Comparison) { c.Duplicates = 1 })},
		"other value":           {all, altered("72.0", "73.0"), mismatch},
		"a decimal less":        {all, altered("72.0", "72"), mismatch},
		"a decimal more":        {all, altered("72.0", "72.00"), mismatch},
		"number in quotes":      {all, altered("72.0", `"72.0"`), mismatch},
		"other unit":            {all, altered(`"code":"/min"`, `"code":"Hz"`), mismatch},
		"other unit system":     {all, altered("unitsofmeasure.org", "example.org"), mismatch},
		"value for no reading":  {[]string{sentNone}, []string{strings.ReplaceAll(hr, "147842", "150021")}, Comparison{NoReadings: NoReadings{1, 1, 0, 0}, Mismatched: 1}},
		"no reading for value":  {[]string{sentHR}, []string{strings.ReplaceAll(none, "150021", "147842")}, Comparison{Sent: 1, Acknowledged: 1, Mismatched: 1}},
		"other time":            {all, altered("00.123", "00.124"), unread},
		"hour off":              {all, altered("+01:00", "Z"), unread},
		"other code":            {all, altered(`"code":"147842"`, `"code":"147843"`), unread},
		"no code":               {all, altered("11073", "11074"), unread},
		"time unreadable":       {all, altered("2026-01-01T", "2026-01-01 "), unread},
		"time too fine":         {all, altered("00.123", "00.1234"), unread},
		"neither value nor why": {all, altered("valueQuantity", "valueInteger"), unread},
		"empty quantity":        {all, altered(`"value":72.0,`, ""), unread},
		"value and why not":     {all, altered(`"valueQuantity"`, `"dataAbsentReason":{"coding":[{"code":"error"}]},"valueQuantity"`), unread},
		"other resource":        {all, altered(`"resourceType":"Observation"`, `"resourceType":"Patient"`), unread},
		"garbage":               {all, []string{"7", spo2, none}, unread},
		"held, not final":       {all, held("preliminary"), with(good, func(c *Comparison) { c.Quarantined = 1 })},
		"held, no reading":      {all, heldAt(2, "cancelled"), good},
		"held, a value gone":    {all, held("cancelled"), with(good, func(c *Comparison) { c.Mismatched = 1 })},
		"held, none and final":  {all, heldAt(2, "final"), with(good, func(c *Comparison) { c.Mismatched = 1 })},
		"held, and final":       {all, held("final"), with(good, func(c *Comparison) { c.Mismatched = 1 })},
		"not marked":            {all, altered("HTEST", "TREAT"), with(good, func(c *Comparison) { c.Unmarked = 1 })},
		"no code, no unit":      {[]string{sentLocal}, []string{own}, Comparison{Sent: 1, Acknowledged: 1, Stored: 1}},
		"its unit coded":        {[]string{sentLocal}, []string{strings.Replace(own, `"furlong"`, `"furlong","system":"http://unitsofmeasure.org","code":"furlong"`, 1)}, Comparison{Sent: 1, Acknowledged: 1, Mismatched: 1}},
		"its unit another":      {[]string{sentLocal}, []string{strings.Replace(own, `"furlong"`, `"mile"`, 1)}, Comparison{Sent: 1, Acknowledged: 1, Mismatched: 1}},
		"its code another":      {[]string{sentLocal}, []string{strings.Replace(own, `"code":"Urine"`, `"code":"urine"`, 1)}, Comparison{Sent: 1, Acknowledged: 1, Missing: 1, Unexpected: 1}},
		"its code MDC's":        {[]string{sentLocal}, []string{stored("7", `"valueQuantity":{"value":7.25,"unit":"furlong"}`)}, Comparison{Sent: 1, Acknowledged: 1, Missing: 1, Unexpected: 1}},
		"never sent":            {[]string{sentHR}, []string{hr, spo2}, Comparison{Sent: 1, Acknowledged: 1, Stored: 1, Unexpected: 1}},

		"not acknowledged, absent":  {[]string{sentHRLost}, nil, Comparison{Sent: 1}},
		"not acknowledged, there":   {[]string{sentHRLost}, []string{hr}, Comparison{Sent: 1, Stored: 1}},
		"not acknowledged, doubled": {[]string{sentHRLost}, []string{hr, hr}, Comparison{Sent: 1, Stored: 1, Duplicates: 1}},
		"not acknowledged, altered": {[]string{sentHRLost}, []string{hr73}, Comparison{Sent: 1, Mismatched: 1}},

		"one instant, two values":        {[]string{sentHR, sentHROther}, []string{hr73, hr}, pair},
		"one instant, same twice":        {[]string{sentHR, sentHR}, []string{hr, hr}, pair},
		"one instant, once of twice":     {[]string{sentHR, sentHR}, []string{hr}, with(pair, func(c *Comparison) { c.Stored, c.Missing = 1, 1 })},
		"one instant, one doubled":       {[]string{sentHR, sentHROther}, []string{hr, hr}, with(pair, func(c *Comparison) { c.Stored, c.Missing, c.Duplicates = 1, 1, 1 })},
		"one instant, a third":           {[]string{sentHR}, []string{hr73, hr}, Comparison{Sent: 1, Acknowledged: 1, Stored: 1, Mismatched: 1}},
		"one instant, acknowledged wins": {[]string{sentHRLost, sentHR}, []string{hr}, Comparison{Sent: 2, Acknowledged: 1, Stored: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Compare(t.Context(), base, account(t, tc.sent...), one(searchset("", append([]string(nil), tc.stored...)...)))
			if err != nil {
				t.Fatal(err)
			}
			examples := got.Examples
			got.Examples = nil
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s\n%s", diff, examples)
			}
			failures := got.Missing + got.Duplicates + got.Mismatched + got.Unexpected + got.Unmarked + got.NoReadings.Missing
			if got.OK() != (failures == 0) || len(examples) != failures {
				t.Errorf("%d failures: OK is %t, examples %q", failures, got.OK(), examples)
			}
		})
	}
}

func TestCompareFollowsPages(t *testing.T) {
	const second = base + "/fhir/Observation?page=2"
	var asked []string
	fetch := func(_ context.Context, link string) ([]byte, error) {
		asked = append(asked, link)
		switch len(asked) {
		case 1:
			return []byte(searchset(second, hr)), nil
		case 2:
			return []byte(searchset("Observation?page=3", spo2)), nil // relative links are links
		}
		return []byte(searchset("", none)), nil
	}
	got, err := Compare(t.Context(), base, account(t, sentHR, sentSpO2, sentNone), fetch)
	if err != nil || !got.OK() || got.Stored != 2 || got.NoReadings.Stored != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if len(asked) != 3 || asked[1] != second || asked[2] != base+"/fhir/Observation?page=3" {
		t.Fatalf("asked for %q", asked)
	}
	first, err := url.Parse(asked[0])
	if err != nil || first.Path != "/fhir/Observation" || first.Query().Get("patient.identifier") != "urn:oid:2.25.1234|WL0001" ||
		first.Query().Get("_count") != "1000" {
		t.Fatalf("first page is %s, %v", asked[0], err)
	}
}

func TestCompareRefusesHalfAnAnswer(t *testing.T) {
	for name, fetch := range map[string]Fetch{
		"fetch fails":   func(context.Context, string) ([]byte, error) { return nil, io.ErrUnexpectedEOF },
		"not JSON":      one(`<html>`),
		"cut off":       one(searchset("", hr)[:100]),
		"not a bundle":  one(`{"resourceType":"OperationOutcome"}`),
		"endless pages": one(searchset(base+"/fhir/Observation?page=2", hr)),
		"bad next link": one(searchset("http://[", hr)),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Compare(t.Context(), base, account(t, sentHR), fetch); err == nil {
				t.Errorf("no error; %+v", got)
			}
		})
	}
}

func TestComparePassesOverWhatDidNotMatch(t *testing.T) {
	body := strings.Replace(searchset("", hr, `{"resourceType":"OperationOutcome"}`), `"match"},"resource":{"resourceType":"Op`, `"outcome"},"resource":{"resourceType":"Op`, 1)
	got, err := Compare(t.Context(), base, account(t, sentHR), one(body))
	if err != nil || !got.OK() || got.Stored != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestComparisonAdd(t *testing.T) {
	sum := Comparison{Sent: 1, Examples: []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"}}
	sum.Add(Comparison{Sent: 10, Acknowledged: 9, Stored: 8, NoReadings: NoReadings{4, 3, 2, 1}, Missing: 7, Duplicates: 6, Mismatched: 5,
		Unexpected: 4, Unmarked: 3, Examples: []string{"10", "11"}})
	want := Comparison{Sent: 11, Acknowledged: 9, Stored: 8, NoReadings: NoReadings{4, 3, 2, 1}, Missing: 7, Duplicates: 6, Mismatched: 5,
		Unexpected: 4, Unmarked: 3, Examples: []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}}
	if diff := cmp.Diff(want, sum); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzPage(f *testing.F) {
	f.Add([]byte(searchset("", hr, spo2, none)))
	f.Add([]byte(searchset("https://hospital.test/next", hr, hr)))
	f.Add([]byte(searchset("", wave("II", 0), wave("II", 1), wave("MCL1", 0))))
	f.Add([]byte(`{"resourceType":"Bundle","entry":[{"resource":null},{"resource":{"valueQuantity":null}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		m := newMatcher(&bedside.Account{})
		if _, err := m.page(body); err != nil {
			return
		}
		// Against an empty account nothing may count as found.
		if got := m.finish(); got.Stored != 0 || got.NoReadings.Stored != 0 || got.Missing != 0 || got.Mismatched != 0 {
			t.Errorf("%+v", got)
		}
		// Against a full one nothing may count as found more often than sent, and all that was acknowledged is found, altered or missing.
		m = newMatcher(fullAccount(t, []string{sentHR, sentNone}, sentWaves()))
		if _, err := m.page(body); err != nil {
			t.Fatal(err)
		}
		got := m.finish()
		if got.Stored > got.Sent || got.NoReadings.Stored > got.NoReadings.Sent || got.Stored+got.Missing+got.Mismatched < got.Acknowledged {
			t.Errorf("%+v", got)
		}
	})
}
