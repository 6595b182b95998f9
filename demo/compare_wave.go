package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"sort"
	"strconv"
	"strings"

	"wardlink/demo/bedside"
)

// stretch is one sent array, waiting for its samples. What was found of each is a bit in found.
type stretch struct {
	bedside.SentWave
	scale *scale
	start int64 // Unix milliseconds of the first sample
	found []uint8
}

const (
	foundRight uint8 = 1 << iota
	foundWrong
)

// scale says in exact numbers what a channel's samples mean.
type scale struct {
	factor, origin *big.Rat // a sample's value is origin + factor x sample
	period         *big.Rat // milliseconds from sample to sample
	endless        bool     // the period is no decimal that ends: whoever writes it must round it
	unit           string
}

// scaleOf derives a channel's scale from what the monitor sent: the sensitivity, which it corrects by 1, and the baseline. It is nil for a
// channel whose numbers are none.
func scaleOf(w bedside.SentWave) *scale {
	factor, ok1 := decimal(w.Sensitivity)
	frequency, ok2 := decimal(w.Frequency)
	if !ok1 || !ok2 || frequency.Sign() <= 0 {
		return nil
	}
	s := &scale{factor: factor, unit: unitOf(w.Measure())}
	s.origin = new(big.Rat).Mul(factor, big.NewRat(-w.Baseline, 1))
	s.period = new(big.Rat).Quo(big.NewRat(1000, 1), frequency)
	_, ends := s.period.FloatPrec()
	s.endless = !ends
	return s
}

// decimal reads a JSON number or a decimal text exactly. Its size is checked by a float first: big.Rat would build the number that a huge
// exponent names.
func decimal(text string) (*big.Rat, bool) {
	rough, err := strconv.ParseFloat(text, 64)
	if err != nil || len(text) > 100 || math.Abs(rough) > 1e30 || math.Abs(rough) < 1e-30 && strings.ContainsAny(text, "eE") {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

// expectWaves takes in the account's arrays.
func (m *matcher) expectWaves(account *bedside.Account) {
	m.waves = map[code][]*stretch{}
	scales := map[*bedside.Channel]*scale{}
	for w := range account.Waves() {
		if _, known := scales[w.Channel]; !known {
			scales[w.Channel] = scaleOf(w)
		}
		s := &stretch{SentWave: w, scale: scales[w.Channel], start: w.At.UnixMilli(), found: make([]uint8, len(w.Samples))}
		c := codeOf(w.Code())
		m.waves[c] = append(m.waves[c], s)
		for i := range w.Samples {
			sent, acknowledged := &m.result.Sent, &m.result.Acknowledged
			if w.Missing(i) {
				sent, acknowledged = &m.result.NoReadings.Sent, &m.result.NoReadings.Acknowledged
			}
			*sent++
			if w.Acknowledged {
				*acknowledged++
			}
		}
	}
	for _, all := range m.waves {
		slices.SortStableFunc(all, func(a, b *stretch) int { return int(min(1, max(-1, a.start-b.start))) })
	}
}

// sampledData is FHIR R4's SampledData. Its limits are not compared: a receiver may know them better than the converter's range.
type sampledData struct {
	Origin     quantity        `json:"origin"`
	Period     json.RawMessage `json:"period"`
	Factor     json.RawMessage `json:"factor"`
	Dimensions int             `json:"dimensions"`
	Data       string          `json:"data"`
}

// storedWave is the Observation of an array.
type storedWave struct {
	code                   code
	start, end             int64
	period, factor, origin *big.Rat
	unit                   string
	samples                []string
}

func (o *observation) readWave() (w storedWave, err error) {
	if w.code, err = o.code(); err != nil {
		return w, err
	}
	if o.ValueQuantity != nil || o.absent() || o.EffectiveDateTime != "" {
		return w, errors.New("it has samples, and another value, a reason for having none or a second time")
	}
	if w.start, err = milliseconds(o.EffectivePeriod.Start); err != nil {
		return w, fmt.Errorf("effectivePeriod.start: %w", err)
	}
	if w.end, err = milliseconds(o.EffectivePeriod.End); err != nil {
		return w, fmt.Errorf("effectivePeriod.end: %w", err)
	}
	d := o.ValueSampledData
	if d.Dimensions != 1 {
		return w, fmt.Errorf("it has %d dimensions; expected 1", d.Dimensions)
	}
	w.factor = big.NewRat(1, 1) // the default
	ok := true
	for _, f := range []struct {
		into **big.Rat
		text json.RawMessage
	}{{&w.period, d.Period}, {&w.origin, d.Origin.Value}, {&w.factor, d.Factor}} {
		if len(f.text) > 0 || *f.into == nil {
			*f.into, ok = decimal(string(f.text))
		}
		if !ok {
			return w, errors.New("period, origin or factor is not a number")
		}
	}
	w.unit = d.Origin.unit()
	w.samples = strings.Split(d.Data, " ")
	return w, nil
}

// wave compares the Observation of an array sample by sample: each is looked for in what was sent at its code and time.
func (m *matcher) wave(o *observation) {
	w, err := o.readWave()
	if err != nil {
		m.differ(&m.result.Unexpected, "Observation/%s: %v", o.ID, err)
		return
	}
	at := instant{w.code, w.start}
	if !o.marked() {
		m.differ(&m.result.Unmarked, "%s: not marked as test data", at)
	}
	var c counts
	c.unexpected = len(w.samples)
	for _, s := range m.near(w) {
		c.unexpected -= m.meet(s, w, &c)
	}
	m.differBy(c.wrong, &m.result.Mismatched, "%s: %d of %d samples are not as sent%s", at, c.wrong, len(w.samples), c.why)
	m.differBy(c.again, &m.result.Duplicates, "%s: %d of %d samples are stored more often than sent", at, c.again, len(w.samples))
	m.differBy(c.unexpected, &m.result.Unexpected, "%s: %d of %d samples are stored, nothing was sent", at, c.unexpected, len(w.samples))
}

// counts are one Observation's disagreements, in samples.
type counts struct {
	wrong, again, unexpected int
	why                      string // where more than the samples disagrees
}

// near are the sent arrays that an Observation may hold samples of.
func (m *matcher) near(w storedWave) []*stretch {
	all := m.waves[w.code]
	if len(all) == 0 || all[0].scale == nil {
		return nil
	}
	// An array lasts for about a second at most; two are sure to reach beyond whatever was rounded.
	const reach = 2000
	from := sort.Search(len(all), func(i int) bool { return all[i].start+all[i].length()+reach > w.start })
	to := from
	for ; to < len(all) && all[to].start < w.start+w.length(all[from])+reach; to++ {
	}
	return all[from:to]
}

// length is an array's, in whole milliseconds at most one too many.
func (s *stretch) length() int64 { return wholeMilliseconds(s.scale, len(s.Samples)) }

// length is what an Observation would last in a sent array's period. Its own is not believed.
func (w storedWave) length(s *stretch) int64 { return wholeMilliseconds(s.scale, len(w.samples)) }

func wholeMilliseconds(s *scale, samples int) int64 {
	if s == nil {
		return 0
	}
	ms, _ := new(big.Rat).Mul(s.period, big.NewRat(int64(samples), 1)).Float64()
	return int64(math.Ceil(ms))
}

// meet compares the samples of an Observation that lie on those of a sent array, and gives their number.
func (m *matcher) meet(s *stretch, w storedWave, c *counts) (met int) {
	if s.scale == nil {
		return 0
	}
	// The Observation's sample 0 is the array's sample offset, if they are on the same beat.
	offset := big.NewRat(w.start-s.start, 1)
	if offset.Quo(offset, s.scale.period); !offset.IsInt() || !offset.Num().IsInt64() {
		return 0
	}
	first := int(offset.Num().Int64())
	why := s.scale.differs(w)
	for i := max(0, -first); i < len(w.samples) && first+i < len(s.Samples); i++ {
		met++
		j := first + i
		want := "E"
		if !s.Missing(j) {
			want = strconv.Itoa(int(s.Samples[j]))
		}
		switch {
		case why != "" || w.samples[i] != want:
			c.wrong++
			c.why = why
			s.found[j] |= foundWrong
		case s.found[j]&foundRight != 0:
			c.again++
		default:
			s.found[j] |= foundRight
			if s.Missing(j) {
				m.result.NoReadings.Stored++
			} else {
				m.result.Stored++
			}
		}
	}
	return met
}

// differs says what an Observation's samples do not mean that they were sent with; "" when they mean the same.
func (s *scale) differs(w storedWave) string {
	switch {
	case w.factor.Cmp(s.factor) != 0:
		return fmt.Sprintf(": their factor is %s, sent was %s", exact(w.factor), exact(s.factor))
	case w.origin.Cmp(s.origin) != 0:
		return fmt.Sprintf(": their origin is %s, sent was %s", exact(w.origin), exact(s.origin))
	case w.unit != s.unit:
		return fmt.Sprintf(": their unit is %s, sent was %s", w.unit, s.unit)
	case !s.samePeriod(w.period):
		return fmt.Sprintf(": their period is %s ms, sent was %s", exact(w.period), exact(s.period))
	case !s.ends(w):
		return ": their effectivePeriod is not as long as they are"
	}
	return ""
}

// samePeriod compares exactly. A period that no decimal can be may be rounded, within a billionth.
func (s *scale) samePeriod(got *big.Rat) bool {
	if !s.endless {
		return got.Cmp(s.period) == 0
	}
	off := new(big.Rat).Sub(got, s.period)
	return off.Abs(off).Cmp(new(big.Rat).Mul(s.period, big.NewRat(1, 1_000_000_000))) <= 0
}

// ends tells whether an Observation ends one period after its last sample, to the millisecond.
func (s *scale) ends(w storedWave) bool {
	off := new(big.Rat).Mul(s.period, big.NewRat(int64(len(w.samples)), 1))
	off.Sub(off, big.NewRat(w.end-w.start, 1))
	return off.Abs(off).Cmp(big.NewRat(1, 1)) < 0
}

func exact(r *big.Rat) string {
	digits, _ := r.FloatPrec()
	return r.FloatString(min(18, digits))
}

// missWaves counts what was acknowledged and not found, or only found as something else, which is counted by then.
func (m *matcher) missWaves() {
	for c, all := range m.waves {
		for _, s := range all {
			var lost, lostNone int
			for i, found := range s.found {
				switch {
				case found != 0 || !s.Acknowledged:
				case s.Missing(i):
					lostNone++
				default:
					lost++
				}
			}
			at := instant{c, s.start}
			m.differBy(lost, &m.result.Missing, "%s: %d of %d samples were acknowledged, not stored", at, lost, len(s.found))
			m.differBy(lostNone, &m.result.NoReadings.Missing, "%s: %d of %d samples were acknowledged as missing, not stored", at, lostNone, len(s.found))
		}
	}
}
