package bedside

import (
	"iter"
	"sync"
)

// Account is a monitor's own list of everything that it sent. It is safe for concurrent use.
type Account struct {
	patient Patient

	mu       sync.Mutex
	readings []Reading
	waves    []SentWave
	totals   Totals
}

// Code is what was measured: an MDC code, or where it is 0 a code of LocalSystem.
type Code struct {
	MDC   uint32 `json:"mdc,omitempty"`
	Local string `json:"local,omitempty"`
}

func codeOf(s Signal) Code {
	if s.MDC == 0 {
		return Code{Local: s.Name}
	}
	return Code{MDC: s.MDC}
}

// Measure is the unit that the hospital should read: a UCUM code, or for a unit that has none a text alone.
type Measure struct {
	Unit string `json:"unit,omitempty"`
	Text string `json:"unit_text,omitempty"`
}

func measureOf(u Unit) Measure {
	if u.UCUM == "" {
		return Measure{Text: u.Label}
	}
	return Measure{Unit: u.UCUM}
}

// Reading is one sent reading.
type Reading struct {
	Code
	Measure
	Value        string `json:"value,omitempty"` // decimal text as sent; "" was sent as "no reading"
	Time         int64  `json:"time"`            // Unix milliseconds
	Acknowledged bool   `json:"acknowledged"`    // its message's acknowledgement (CA or AA) came
}

// None tells whether it was sent as "no reading".
func (r Reading) None() bool { return r.Value == "" }

// SentWave is one sent array. Its samples share the recording's memory.
type SentWave struct {
	Wave
	Acknowledged bool
}

// Code is what was measured.
func (w SentWave) Code() Code { return codeOf(w.Signal) }

// Measure is the unit of a sample's value.
func (w SentWave) Measure() Measure { return measureOf(w.Signal.Unit) }

// Totals count an account's readings and samples together; those sent as "no reading", or as missing, are counted apart.
type Totals struct {
	Messages, MessagesAcknowledged     int
	Sent, Acknowledged                 int
	NoReadings, NoReadingsAcknowledged int
}

// Patient is the subject of every reading in the account.
func (a *Account) Patient() Patient { return a.patient }

// Totals counts what is in the account now.
func (a *Account) Totals() Totals {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.totals
}

// Readings goes through the readings in the order they were sent. It may be used while the monitor runs.
func (a *Account) Readings() iter.Seq[Reading] { return each(&a.mu, &a.readings) }

// Waves goes through the arrays in the order they were sent. It may be used while the monitor runs.
func (a *Account) Waves() iter.Seq[SentWave] { return each(&a.mu, &a.waves) }

// each goes through a list that is only ever added to.
func each[T any](mu *sync.Mutex, list *[]T) iter.Seq[T] {
	at := func(i int) (v T, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if ok = i < len(*list); ok {
			v = (*list)[i]
		}
		return v, ok
	}
	return func(yield func(T) bool) {
		for i := 0; ; i++ {
			v, ok := at(i)
			if !ok || !yield(v) {
				return
			}
		}
	}
}

// entry names one message's readings and arrays within the account.
type entry struct{ readings, waves [2]int }

// send enters a row whose bytes are about to leave. Until it is acknowledged the receiver may have it or not.
func (a *Account) send(row Row) entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := entry{readings: [2]int{len(a.readings)}, waves: [2]int{len(a.waves)}}
	for _, v := range row.Values {
		a.add(Reading{Code: codeOf(v.Signal), Measure: measureOf(v.Signal.Unit), Value: v.Text, Time: row.At.UnixMilli()})
	}
	for _, w := range row.Waves {
		a.addWave(SentWave{Wave: w})
	}
	e.readings[1], e.waves[1] = len(a.readings), len(a.waves)
	a.totals.Messages++
	return e
}

func (a *Account) acknowledge(e entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := e.readings[0]; i < e.readings[1]; i++ {
		a.readings[i].Acknowledged = true
		a.countAcknowledged(a.readings[i].count())
	}
	for i := e.waves[0]; i < e.waves[1]; i++ {
		a.waves[i].Acknowledged = true
		a.countAcknowledged(a.waves[i].count())
	}
	a.totals.MessagesAcknowledged++
}

func (a *Account) add(r Reading) {
	a.readings = append(a.readings, r)
	a.countSent(r.count())
}

func (a *Account) addWave(w SentWave) {
	a.waves = append(a.waves, w)
	a.countSent(w.count())
}

func (r Reading) count() (valid, none int) {
	if r.None() {
		return 0, 1
	}
	return 1, 0
}

func (w SentWave) count() (valid, none int) {
	for i := range w.Samples {
		if w.Missing(i) {
			none++
		}
	}
	return len(w.Samples) - none, none
}

func (a *Account) countSent(valid, none int) {
	a.totals.Sent += valid
	a.totals.NoReadings += none
}

func (a *Account) countAcknowledged(valid, none int) {
	a.totals.Acknowledged += valid
	a.totals.NoReadingsAcknowledged += none
}
