package telemetry

import (
	"errors"
	"fmt"
	"strings"
)

// wireWaveforms is the waveforms of one channel of one context: a table like wireSeries, whose keys 1 to 18 it shares where it has
// them. Its rows are chunks; each chunk's samples are tokens (AppendSamples).
type wireWaveforms struct {
	MDC      uint32 `cbor:"1,keyasint,omitempty"`
	CodeID   string `cbor:"2,keyasint,omitempty"`
	CodeName string `cbor:"3,keyasint,omitempty"`
	CodeSys  string `cbor:"4,keyasint,omitempty"`
	UnitSent string `cbor:"5,keyasint,omitempty"`
	UCUM     string `cbor:"6,keyasint,omitempty"`
	Type     string `cbor:"7,keyasint,omitempty"`
	SubID    string `cbor:"8,keyasint,omitempty"`
	Device   string `cbor:"10,keyasint,omitempty"`

	Rows    uint32   `cbor:"11,keyasint,omitempty"` // absent: 1
	Message []int64  `cbor:"12,keyasint,omitempty"` // delta; row of Messages
	Index   []uint32 `cbor:"13,keyasint,omitempty"`
	Time    []int64  `cbor:"14,keyasint,omitempty"` // delta; row of Times
	Flags   []string `cbor:"16,keyasint,omitempty"`
	Status  []string `cbor:"17,keyasint,omitempty"`
	Marks   []byte   `cbor:"18,keyasint,omitempty"`

	Label   string   `cbor:"19,keyasint,omitempty"`
	Period  string   `cbor:"20,keyasint"`
	Factor  string   `cbor:"21,keyasint,omitempty"`
	Origin  string   `cbor:"22,keyasint,omitempty"`
	Lower   string   `cbor:"23,keyasint,omitempty"`
	Upper   string   `cbor:"24,keyasint,omitempty"`
	Samples [][]byte `cbor:"25,keyasint"` // one for each row

	Bed string `cbor:"26,keyasint,omitempty"` // version 3
}

func (s *wireWaveforms) rows() uint32 { return max(s.Rows, 1) }

// waveKey is what the rows of one wireWaveforms share.
type waveKey struct {
	context                              uint32
	code                                 Code
	unit                                 Unit
	kind, subID, device, bed, label      string
	period, factor, origin, lower, upper string
}

// waveTables gathers waveforms as tables does observations, and shares its times.
type waveTables struct {
	series  map[waveKey]int
	columns []columns
}

func (t *tables) waveform(message int64, context uint32, w *Waveform) {
	key := waveKey{
		context: context, code: w.Code, unit: w.Unit, kind: w.Type, subID: w.SubID, device: w.Device, bed: w.Bed, label: w.Label,
		period: w.Period, factor: w.Factor, origin: w.Origin, lower: w.Lower, upper: w.Upper,
	}
	i, ok := t.waves.series[key]
	if !ok {
		if t.waves.series == nil {
			t.waves.series = make(map[waveKey]int)
		}
		i = len(t.waves.columns)
		t.waves.series[key] = i
		t.waves.columns = append(t.waves.columns, columns{})
		t.wire.Waveforms = append(t.wire.Waveforms, wireWaveforms{
			MDC: w.Code.MDC, CodeID: text(w.Code.ID), CodeName: text(w.Code.Name), CodeSys: text(w.Code.Sys),
			UnitSent: text(w.Unit.Sent), UCUM: text(w.Unit.UCUM), Type: text(w.Type), SubID: text(w.SubID), Device: text(w.Device),
			Label: text(w.Label), Period: w.Period, Factor: w.Factor, Origin: w.Origin, Lower: w.Lower, Upper: w.Upper, Bed: text(w.Bed),
		})
	}
	c, s := &t.waves.columns[i], &t.wire.Waveforms[i]
	time := t.time(w.Time, w.At)
	c.message = append(c.message, message-c.lastMessage)
	c.time = append(c.time, time-c.lastTime)
	c.lastMessage, c.lastTime = message, time
	c.index = append(c.index, w.Index)
	c.flags = append(c.flags, text(w.Flags))
	c.status = append(c.status, text(w.Status))
	c.marks = append(c.marks, byte(w.Marks))
	s.Samples = append(s.Samples, AppendSamples(make([]byte, 0, len(w.Samples)+len(w.Samples)/8), w.Samples))
}

// finishWaveforms collapses the columns.
func (t *tables) finishWaveforms() {
	for i := range t.waves.columns {
		c, s := &t.waves.columns[i], &t.wire.Waveforms[i]
		if len(c.index) > 1 {
			s.Rows = uint32(len(c.index))
		}
		s.Message, s.Time = omitZero(c.message), omitZero(c.time)
		s.Index, s.Flags, s.Status, s.Marks = collapse(c.index), collapse(c.flags), collapse(c.status), collapse(c.marks)
	}
}

// waveforms gives the messages their waveforms. Every count is checked before anything is made from it.
func (w *wireBatch) waveforms(messages []Message) error {
	rows, err := w.waveRows()
	if err != nil || rows == 0 {
		return err
	}
	refs, err := w.waveRefs(len(messages), rows)
	if err != nil {
		return err
	}
	at, all := w.at(), make([]Waveform, len(refs))
	for i, r := range refs {
		s, row := &w.Waveforms[r.series], int(r.row)
		samples, err := ParseSamples(s.Samples[row], MaxSamples)
		if err != nil {
			return fmt.Errorf("waveforms %d: row %d: %w", r.series, row, err)
		}
		all[i] = Waveform{
			Index: r.index, Type: s.Type, Code: Code{MDC: s.MDC, ID: s.CodeID, Name: s.CodeName, Sys: s.CodeSys}, Label: s.Label,
			Unit: Unit{Sent: s.UnitSent, UCUM: s.UCUM}, SubID: s.SubID, Flags: cell(s.Flags, row), Status: cell(s.Status, row),
			Time: w.Times.Texts[r.time], At: at[r.time], Device: s.Device, Bed: s.Bed, Marks: Marks(cell(s.Marks, row)),
			Period: s.Period, Factor: s.Factor, Origin: s.Origin, Lower: s.Lower, Upper: s.Upper, Samples: samples,
		}
	}
	for from := 0; from < len(refs); {
		to := from + 1
		for to < len(refs) && refs[to].message == refs[from].message {
			to++
		}
		messages[refs[from].message].Waveforms = all[from:to:to]
		from = to
	}
	return nil
}

// waveRows checks the columns' lengths and gives the number of waveforms.
func (w *wireBatch) waveRows() (rows int, err error) {
	samples := 0
	for i := range w.Waveforms {
		s := &w.Waveforms[i]
		if s.rows() > MaxRows {
			return 0, fmt.Errorf("waveforms %d: %d rows, at most %d", i, s.rows(), MaxRows)
		}
		n := int(s.rows())
		if rows += n; rows > MaxRows {
			return 0, fmt.Errorf("more than %d waveforms", MaxRows)
		}
		if len(s.Samples) != n {
			return 0, fmt.Errorf("waveforms %d: samples: %d cells for %d rows", i, len(s.Samples), n)
		}
		for _, tokens := range s.Samples {
			if samples += countSamples(tokens); samples > MaxSamples {
				return 0, fmt.Errorf("more than %d samples", MaxSamples)
			}
		}
		err := errors.Join(
			deltaLength("messages", len(s.Message), n),
			columnLength("indexes", len(s.Index), n),
			deltaLength("times", len(s.Time), n),
			columnLength("flags", len(s.Flags), n),
			columnLength("status", len(s.Status), n),
			columnLength("marks", len(s.Marks), n),
		)
		if err != nil {
			return 0, fmt.Errorf("waveforms %d: %w", i, err)
		}
	}
	return rows, nil
}

// waveRefs lists every waveform, ordered by message and index.
func (w *wireBatch) waveRefs(messages, rows int) (refs []ref, err error) {
	refs = make([]ref, 0, rows)
	for i := range w.Waveforms {
		s := &w.Waveforms[i]
		if refs, err = w.appendRefs(refs, i, int(s.rows()), s.Message, s.Time, s.Index, messages); err != nil {
			return nil, fmt.Errorf("waveforms %d: %w", i, err)
		}
	}
	sortRefs(refs)
	return refs, nil
}

// checkWaveforms holds message i's waveforms to the format: an index names one thing of a message, and what is said to be a number is
// one, so that a reader may write it out as it stands.
func (m *Message) checkWaveforms(i int) error {
	next := 0 // the first observation whose index is not below the waveform's
	for j := range m.Waveforms {
		w := &m.Waveforms[j]
		if j > 0 && w.Index <= m.Waveforms[j-1].Index {
			return fmt.Errorf("message %d: waveform %d has index %d after %d; expected ascending and unique", i, j, w.Index, m.Waveforms[j-1].Index)
		}
		for next < len(m.Observations) && m.Observations[next].Index < w.Index {
			next++
		}
		if next < len(m.Observations) && m.Observations[next].Index == w.Index {
			return fmt.Errorf("message %d: index %d is an observation's and a waveform's", i, w.Index)
		}
		if !isDecimal(w.Period) || strings.Trim(w.Period, "0.") == "" || w.Period[0] == '-' {
			return fmt.Errorf("message %d: waveform %d: period is not a decimal above 0", i, j)
		}
		for _, d := range []string{w.Period, w.Factor, w.Origin, w.Lower, w.Upper} {
			if d != "" && !isDecimal(d) || len(d) > MaxDecimal {
				return fmt.Errorf("message %d: waveform %d: expected decimals of at most %d bytes", i, j, MaxDecimal)
			}
		}
	}
	return nil
}

// waveforms adds up the waveforms' texts.
func (s *sum) waveforms(m *Message) {
	for i := range m.Waveforms {
		w := &m.Waveforms[i]
		s.add(w.Type, w.Code.ID, w.Code.Name, w.Code.Sys, w.Label, w.Unit.Sent, w.Unit.UCUM, w.SubID, w.Flags, w.Status, w.Time, w.Device, w.Bed,
			w.Period, w.Factor, w.Origin, w.Lower, w.Upper)
	}
}
