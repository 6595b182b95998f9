package bedside

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"sync"
)

// Account is a monitor's own list of every reading that it sent. It is safe for concurrent use.
type Account struct {
	patient Patient

	mu       sync.Mutex
	readings []Reading
	totals   Totals
}

// Reading is one sent reading.
type Reading struct {
	MDC          uint32 `json:"mdc"`
	Unit         string `json:"unit"`            // the UCUM code that the hospital should read
	Value        string `json:"value,omitempty"` // decimal text as sent; "" was sent as "no reading"
	Time         int64  `json:"time"`            // Unix milliseconds
	Acknowledged bool   `json:"acknowledged"`    // its message's acknowledgement (CA or AA) came
}

// None tells whether it was sent as "no reading".
func (r Reading) None() bool { return r.Value == "" }

// Totals count an account's readings; those sent as "no reading" are counted apart.
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
func (a *Account) Readings() iter.Seq[Reading] {
	return func(yield func(Reading) bool) {
		for i := 0; ; i++ {
			r, ok := a.at(i)
			if !ok || !yield(r) {
				return
			}
		}
	}
}

func (a *Account) at(i int) (Reading, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i >= len(a.readings) {
		return Reading{}, false
	}
	return a.readings[i], true
}

// entry names one message's readings within the account.
type entry struct{ from, to int }

// send enters a row whose bytes are about to leave. Until it is acknowledged the receiver may have it or not.
func (a *Account) send(row Row) entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := entry{from: len(a.readings)}
	for _, v := range row.Values {
		a.add(Reading{MDC: v.Signal.MDC, Unit: v.Signal.Unit.UCUM, Value: v.Text, Time: row.At.UnixMilli()})
	}
	e.to = len(a.readings)
	a.totals.Messages++
	return e
}

func (a *Account) acknowledge(e entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := e.from; i < e.to; i++ {
		a.readings[i].Acknowledged = true
		a.countAcknowledged(a.readings[i])
	}
	a.totals.MessagesAcknowledged++
}

func (a *Account) add(r Reading) {
	a.readings = append(a.readings, r)
	if r.None() {
		a.totals.NoReadings++
	} else {
		a.totals.Sent++
	}
}

func (a *Account) countAcknowledged(r Reading) {
	if r.None() {
		a.totals.NoReadingsAcknowledged++
	} else {
		a.totals.Acknowledged++
	}
}

// accountHead is the first line of a written account. Readings is the number of lines that follow: an account that lost its
// end must not pass for a shorter one.
type accountHead struct {
	Patient              Patient `json:"patient"`
	Messages             int     `json:"messages"`
	MessagesAcknowledged int     `json:"messages_acknowledged"`
	Readings             int     `json:"readings"`
}

// Write writes the account as JSON lines, a head and then one line for each reading, for ReadAccount in another process.
func (a *Account) Write(w io.Writer) error {
	a.mu.Lock()
	head := accountHead{a.patient, a.totals.Messages, a.totals.MessagesAcknowledged, len(a.readings)}
	a.mu.Unlock()

	buf := bufio.NewWriter(w)
	enc := json.NewEncoder(buf)
	if err := enc.Encode(head); err != nil {
		return fmt.Errorf("write account: %w", err)
	}
	// Readings are only ever added, so the first head.Readings of them are there even while the monitor goes on.
	for i := range head.Readings {
		r, _ := a.at(i)
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("write account: %w", err)
		}
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("write account: %w", err)
	}
	return nil
}

// Limits of a written account, in bytes.
const (
	maxAccountLine = 4096
	maxAccountText = 256 // one text field
)

// ReadAccount reads what Write wrote. It refuses an account that is not whole.
func ReadAccount(r io.Reader) (*Account, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxAccountLine)
	var head accountHead
	a := &Account{}
	for n := 0; lines.Scan(); n++ {
		var reading Reading
		var into any = &reading
		if n == 0 {
			into = &head
		}
		if err := strictJSON(lines.Bytes(), into); err != nil {
			return nil, fmt.Errorf("read account: line %d: %w", n+1, err)
		}
		if n == 0 {
			continue
		}
		if len(reading.Value) > maxAccountText || len(reading.Unit) > maxAccountText {
			return nil, fmt.Errorf("read account: line %d: value or unit is longer than %d bytes", n+1, maxAccountText)
		}
		a.add(reading)
		if reading.Acknowledged {
			a.countAcknowledged(reading)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read account: %w", err)
	}
	p := head.Patient
	if len(p.ID)+len(p.Namespace)+len(p.OID) > maxAccountText {
		return nil, fmt.Errorf("read account: the patient's names are longer than %d bytes", maxAccountText)
	}
	if p.ID == "" || head.Readings != len(a.readings) {
		return nil, fmt.Errorf("read account: it is not whole: %d of %d readings; did the monitor end before it wrote all?",
			len(a.readings), head.Readings)
	}
	a.patient = p
	a.totals.Messages, a.totals.MessagesAcknowledged = head.Messages, head.MessagesAcknowledged
	return a, nil
}

// strictJSON refuses fields that it does not know: a misspelt "acknowledged" would turn a loss into something permitted.
func strictJSON(line []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}
