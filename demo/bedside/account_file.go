package bedside

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// accountHead is the first line of a written account. Readings and Waves are the numbers of lines that follow, in that order: an account that
// lost its end must not pass for a shorter one.
type accountHead struct {
	Patient              Patient `json:"patient"`
	Messages             int     `json:"messages"`
	MessagesAcknowledged int     `json:"messages_acknowledged"`
	Readings             int     `json:"readings"`
	Waves                int     `json:"waves,omitempty"`
}

// waveLine is a sent array in a written account.
type waveLine struct {
	Code
	Measure
	Sensitivity  string `json:"sensitivity"`
	Baseline     int64  `json:"baseline"`
	Frequency    string `json:"frequency"`
	Time         int64  `json:"time"` // of the first sample, Unix milliseconds
	Samples      string `json:"samples"`
	Acknowledged bool   `json:"acknowledged"`
}

// missingText is a missing sample in a written account.
const missingText = "-"

func (w SentWave) line() waveLine {
	text := make([]string, len(w.Samples))
	for i, sample := range w.Samples {
		if text[i] = missingText; !w.Missing(i) {
			text[i] = strconv.Itoa(int(sample))
		}
	}
	return waveLine{w.Code(), w.Measure(), w.Sensitivity, w.Baseline, w.Frequency, w.At.UnixMilli(), strings.Join(text, " "), w.Acknowledged}
}

func (l waveLine) wave() (SentWave, error) {
	for _, text := range []string{l.Local, l.Unit, l.Text, l.Sensitivity, l.Frequency} {
		if len(text) > maxAccountText {
			return SentWave{}, fmt.Errorf("a text is longer than %d bytes", maxAccountText)
		}
	}
	unit := Unit{UCUM: l.Unit, Label: l.Text}
	c := &Channel{Signal: Signal{MDC: l.MDC, Name: l.Local, Unit: unit}, Sensitivity: l.Sensitivity, Baseline: l.Baseline, Frequency: l.Frequency,
		Min: math.MinInt32, Max: math.MaxInt32}
	if l.Samples == "" {
		return SentWave{}, errors.New("an array without samples")
	}
	fields := strings.Split(l.Samples, " ")
	w := SentWave{Wave{c, time.UnixMilli(l.Time), make([]int32, len(fields))}, l.Acknowledged}
	for i, f := range fields {
		if f == missingText {
			w.Samples[i] = c.Min
			continue
		}
		n, err := strconv.ParseInt(f, 10, 32)
		if err != nil || n == math.MinInt32 {
			return SentWave{}, fmt.Errorf("sample %d: %.20q is none", i, f)
		}
		w.Samples[i] = int32(n)
	}
	return w, nil
}

// Write writes the account as JSON lines, a head and then one line for each reading and each array, for ReadAccount in another process.
func (a *Account) Write(w io.Writer) error {
	a.mu.Lock()
	head := accountHead{a.patient, a.totals.Messages, a.totals.MessagesAcknowledged, len(a.readings), len(a.waves)}
	a.mu.Unlock()

	buf := bufio.NewWriter(w)
	enc := json.NewEncoder(buf)
	err := enc.Encode(head)
	// Both lists are only ever added to, so what the head counts is there even while the monitor goes on.
	n := 0
	for r := range a.Readings() {
		if n++; err != nil || n > head.Readings {
			break
		}
		err = enc.Encode(r)
	}
	n = 0
	for w := range a.Waves() {
		if n++; err != nil || n > head.Waves {
			break
		}
		err = enc.Encode(w.line())
	}
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		return fmt.Errorf("write account: %w", err)
	}
	return nil
}

// Limits of a written account, in bytes.
const (
	maxAccountLine = 512 << 10
	maxAccountText = 256 // one text field
)

// ReadAccount reads what Write wrote. It refuses an account that is not whole.
func ReadAccount(r io.Reader) (*Account, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxAccountLine)
	var head accountHead
	a := &Account{}
	for n := 0; lines.Scan(); n++ {
		var err error
		switch {
		case n == 0:
			err = strictJSON(lines.Bytes(), &head)
		case n <= head.Readings:
			err = a.readReading(lines.Bytes())
		default:
			err = a.readWave(lines.Bytes())
		}
		if err != nil {
			return nil, fmt.Errorf("read account: line %d: %w", n+1, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read account: %w", err)
	}
	p := head.Patient
	if len(p.ID)+len(p.Namespace)+len(p.OID) > maxAccountText {
		return nil, fmt.Errorf("read account: the patient's names are longer than %d bytes", maxAccountText)
	}
	if p.ID == "" || head.Readings != len(a.readings) || head.Waves != len(a.waves) {
		return nil, fmt.Errorf("read account: it is not whole: %d of %d readings, %d of %d arrays; did the monitor end before it wrote all?",
			len(a.readings), head.Readings, len(a.waves), head.Waves)
	}
	a.patient = p
	a.totals.Messages, a.totals.MessagesAcknowledged = head.Messages, head.MessagesAcknowledged
	return a, nil
}

func (a *Account) readReading(line []byte) error {
	var r Reading
	if err := strictJSON(line, &r); err != nil {
		return err
	}
	for _, text := range []string{r.Value, r.Local, r.Unit, r.Text} {
		if len(text) > maxAccountText {
			return fmt.Errorf("a text is longer than %d bytes", maxAccountText)
		}
	}
	a.add(r)
	if r.Acknowledged {
		a.countAcknowledged(r.count())
	}
	return nil
}

func (a *Account) readWave(line []byte) error {
	var l waveLine
	if err := strictJSON(line, &l); err != nil {
		return err
	}
	w, err := l.wave()
	if err != nil {
		return err
	}
	a.addWave(w)
	if w.Acknowledged {
		a.countAcknowledged(w.count())
	}
	return nil
}

// strictJSON refuses fields that it does not know: a misspelt "acknowledged" would turn a loss into something permitted.
func strictJSON(line []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}
