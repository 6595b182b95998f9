package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"wardlink/demo/bedside"
)

// The code systems by which the hospital's answer is read.
const (
	systemMDC       = "urn:iso:std:iso:11073:10101"
	systemLocal     = "urn:wardlink:code-system:" + bedside.LocalSystem // what the monitor names itself
	systemUCUM      = "http://unitsofmeasure.org"
	systemSecurity  = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
	systemIntegrity = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
	uncertain       = "UNCERTREL" // meta.security of what a gateway in quarantine sent
	testData        = "HTEST"     // meta.security of data that describes no patient's present state
)

// maxExamples bounds Comparison.Examples.
const maxExamples = 10

// Fetch gets one FHIR answer's body, and fails on every status but 200.
type Fetch func(ctx context.Context, url string) ([]byte, error)

// Comparison is what a monitor's account and the hospital's answer agree and disagree on. Readings are matched one to one:
// two sent readings of one code and instant want two stored ones. Each sample of a waveform counts as a reading does.
type Comparison struct {
	Sent         int // readings with a value, and samples, that the monitor sent
	Acknowledged int // those of them whose message was acknowledged
	Stored       int // those of them found with value, unit and time exactly as sent, acknowledged or not
	NoReadings   NoReadings

	Missing    int // acknowledged, but not there
	Duplicates int // there once more than sent
	Mismatched int // there at that code and time, but with another value, scale or unit
	Unexpected int // there, but no reading or sample of that code and time was sent; or not readable at all
	Unmarked   int // Observations that are there, but not marked as test data

	Quarantined int // Observations of a gateway in quarantine, none of them final

	Examples []string // what the first few disagreements are
}

// NoReadings counts what was sent as "no reading", and missing samples. They have no value that could be compared: what is compared is
// that the hospital has them at that code and time, a reading with a reason for its absence and no value, a sample as missing.
type NoReadings struct {
	Sent, Acknowledged, Stored, Missing int
}

// OK tells whether nothing is lost, doubled, altered or invented.
func (c *Comparison) OK() bool {
	return c.Missing == 0 && c.Duplicates == 0 && c.Mismatched == 0 && c.Unexpected == 0 && c.Unmarked == 0 &&
		c.NoReadings.Missing == 0
}

// Add adds another monitor's comparison to c.
func (c *Comparison) Add(o Comparison) {
	c.Sent += o.Sent
	c.Acknowledged += o.Acknowledged
	c.Stored += o.Stored
	c.NoReadings.Sent += o.NoReadings.Sent
	c.NoReadings.Acknowledged += o.NoReadings.Acknowledged
	c.NoReadings.Stored += o.NoReadings.Stored
	c.NoReadings.Missing += o.NoReadings.Missing
	c.Missing += o.Missing
	c.Duplicates += o.Duplicates
	c.Mismatched += o.Mismatched
	c.Unexpected += o.Unexpected
	c.Unmarked += o.Unmarked
	c.Quarantined += o.Quarantined
	c.Examples = append(c.Examples, o.Examples[:min(len(o.Examples), maxExamples-min(maxExamples, len(c.Examples)))]...)
}

// Compare holds a monitor's account against every Observation that the FHIR server at base gives for its patient. It reads
// the answer's raw JSON with its own few structs: nothing that the checked side computed with is trusted or shared. The
// account should have stopped growing.
func Compare(ctx context.Context, base string, account *bedside.Account, fetch Fetch) (Comparison, error) {
	m := newMatcher(account)
	patient := account.Patient()
	query := url.Values{
		"patient.identifier": {patient.System() + "|" + patient.ID},
		"_count":             {"1000"},
	}
	next := base + "/fhir/Observation?" + query.Encode()
	for seen := map[string]bool{}; next != ""; {
		// A server that pages in a circle would make this run for ever, or count its first page twice.
		if seen[next] {
			return Comparison{}, fmt.Errorf("compare: the next link of page %d leads back to a page already read", len(seen))
		}
		seen[next] = true
		body, err := fetch(ctx, next)
		if err != nil {
			return Comparison{}, fmt.Errorf("compare: page %d: %w", len(seen), err)
		}
		link, err := m.page(body)
		if err != nil {
			return Comparison{}, fmt.Errorf("compare: page %d: %w", len(seen), err)
		}
		if next, err = resolve(next, link); err != nil {
			return Comparison{}, fmt.Errorf("compare: page %d: next link: %w", len(seen), err)
		}
	}
	return m.finish(), nil
}

func resolve(page, link string) (string, error) {
	if link == "" {
		return "", nil
	}
	from, err := url.Parse(page)
	if err != nil {
		return "", err
	}
	to, err := from.Parse(link)
	if err != nil {
		return "", err
	}
	return to.String(), nil
}

// code is what was measured, in the hospital's terms.
type code struct{ system, value string }

func codeOf(c bedside.Code) code {
	if c.MDC == 0 {
		return code{systemLocal, c.Local}
	}
	return code{systemMDC, strconv.FormatUint(uint64(c.MDC), 10)}
}

// unitOf is a unit in the form in which two of them are compared: a UCUM code, or what is none.
func unitOf(m bedside.Measure) string {
	if m.Unit == "" {
		return bareUnit(m.Text)
	}
	return m.Unit
}

func bareUnit(text string) string { return fmt.Sprintf("%q without a code", text) }

// instant is where a reading belongs: a code at a time.
type instant struct {
	code code
	time int64 // Unix milliseconds
}

// measured is what is compared at an instant. The value is text: 37.10 is not 37.1.
type measured struct {
	value, unit string // both "" for no reading
}

func (m measured) none() bool { return m == measured{} }

// slot is one reading of the account, waiting for its Observation.
type slot struct {
	measured
	acknowledged, found bool
}

// matcher pairs stored Observations with the account's readings. What fits no open slot waits until all pages are read,
// since an Observation that fits may still come.
type matcher struct {
	slots  map[instant][]*slot
	misfit map[instant][]measured
	waves  map[code][]*stretch
	result Comparison
}

func newMatcher(account *bedside.Account) *matcher {
	m := &matcher{slots: map[instant][]*slot{}, misfit: map[instant][]measured{}}
	m.expectWaves(account)
	for r := range account.Readings() {
		s := &slot{measured: measured{r.Value, unitOf(r.Measure)}, acknowledged: r.Acknowledged}
		sent, acknowledged := &m.result.Sent, &m.result.Acknowledged
		if r.None() {
			s.measured = measured{}
			sent, acknowledged = &m.result.NoReadings.Sent, &m.result.NoReadings.Acknowledged
		}
		*sent++
		if r.Acknowledged {
			*acknowledged++
		}
		at := instant{codeOf(r.Code), r.Time}
		m.slots[at] = append(m.slots[at], s)
	}
	for _, slots := range m.slots {
		// Where equal readings were sent twice and one was not acknowledged, the acknowledged one is found first.
		slices.SortStableFunc(slots, func(a, b *slot) int { return rank(b.acknowledged) - rank(a.acknowledged) })
	}
	return m
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// page takes in one Bundle and gives its next link, "" on the last page.
func (m *matcher) page(body []byte) (next string, err error) {
	var b bundle
	if err := json.Unmarshal(body, &b); err != nil {
		return "", fmt.Errorf("not a FHIR answer: %w", err)
	}
	if b.ResourceType != "Bundle" {
		return "", fmt.Errorf("resourceType is %q; expected Bundle", b.ResourceType)
	}
	for _, e := range b.Entry {
		if e.Search.Mode != "" && e.Search.Mode != "match" {
			continue // an OperationOutcome or something included
		}
		m.observation(e.Resource)
	}
	for _, l := range b.Link {
		if l.Relation == "next" {
			return l.URL, nil
		}
	}
	return "", nil
}

func (m *matcher) observation(raw json.RawMessage) {
	var o observation
	if err := json.Unmarshal(raw, &o); err != nil {
		m.differ(&m.result.Unexpected, "an entry is not readable: %v", err)
		return
	}
	m.held(&o)
	if o.ValueSampledData != nil {
		m.wave(&o)
		return
	}
	at, got, err := o.read()
	if err != nil {
		m.differ(&m.result.Unexpected, "Observation/%s: %v", o.ID, err)
		return
	}
	// Whether it is marked is one question and whether it agrees another, so an unmarked one is compared as well.
	if !o.marked() {
		m.differ(&m.result.Unmarked, "%s: not marked as test data", at)
	}
	for _, s := range m.slots[at] {
		if !s.found && s.measured == got {
			s.found = true
			m.stored(got)
			return
		}
	}
	m.misfit[at] = append(m.misfit[at], got)
}

func (m *matcher) stored(got measured) {
	if got.none() {
		m.result.NoReadings.Stored++
	} else {
		m.result.Stored++
	}
}

// finish decides about the Observations that fitted nowhere and the readings that nothing fitted.
func (m *matcher) finish() Comparison {
	for at, all := range m.misfit {
		for _, got := range all {
			m.settle(at, got)
		}
	}
	for at, slots := range m.slots {
		for _, s := range slots {
			switch {
			case s.found || !s.acknowledged:
			case s.none():
				m.differ(&m.result.NoReadings.Missing, "%s: acknowledged as no reading, not stored", at)
			default:
				m.differ(&m.result.Missing, "%s: %s was acknowledged, not stored", at, s.measured)
			}
		}
	}
	m.missWaves()
	return m.result
}

func (m *matcher) settle(at instant, got measured) {
	slots := m.slots[at]
	switch {
	case len(slots) == 0:
		m.differ(&m.result.Unexpected, "%s: %s stored, nothing sent", at, got)
	case slices.ContainsFunc(slots, func(s *slot) bool { return s.measured == got }):
		m.differ(&m.result.Duplicates, "%s: %s stored more often than sent", at, got)
	default:
		// It stands in the place of a reading that was not found, if there is one; that one is altered, not missing as well.
		s := slots[0]
		if i := slices.IndexFunc(slots, func(s *slot) bool { return !s.found }); i >= 0 {
			s = slots[i]
			s.found = true
		}
		m.differ(&m.result.Mismatched, "%s: %s stored, %s sent", at, got, s.measured)
	}
}

// differ counts a disagreement and keeps it as an example if there are few so far.
func (m *matcher) differ(count *int, format string, args ...any) {
	m.differBy(1, count, format, args...)
}

// differBy counts several disagreements of which one example is enough.
func (m *matcher) differBy(n int, count *int, format string, args ...any) {
	if n == 0 {
		return
	}
	*count += n
	if len(m.result.Examples) < maxExamples {
		m.result.Examples = append(m.result.Examples, fmt.Sprintf(format, args...))
	}
}

func (c code) String() string {
	if c.system == systemMDC {
		return "MDC " + c.value
	}
	return strconv.Quote(c.value)
}

func (i instant) String() string {
	return fmt.Sprintf("%s at %s", i.code, time.UnixMilli(i.time).UTC().Format("2006-01-02T15:04:05.000Z"))
}

func (m measured) String() string {
	if m.none() {
		return "no reading"
	}
	return strconv.Quote(m.value + " " + m.unit)
}
