package telemetry

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// tables gathers a batch's rows into tables. Contexts, times and series stand in the order of their first use, which makes the
// encoding a function of the batch alone.
type tables struct {
	wire     *wireBatch
	contexts map[wireContext]uint32
	times    map[deviceTime]int64
	series   map[seriesKey]int
	columns  []columns // one for each of wire.Series
	waves    waveTables
}

type deviceTime struct {
	text string
	at   int64
}

// seriesKey includes the context, so that the values of one patient stand together; they compress better, and nothing of it is
// written, since a row's message already names its context.
type seriesKey struct {
	context uint32
	code    Code
	unit    Unit
	kind    string
	subID   string
	limits  string
	device  string
	bed     string
}

// columns are the cells of one series before they are collapsed. The last values of the delta columns are kept beside them.
type columns struct {
	message, time []int64
	index         []uint32
	value         []string
	flags, status []string
	marks         []byte

	lastMessage, lastTime int64
}

func newWireBatch(b *Batch) *wireBatch {
	n := len(b.Messages)
	t := tables{
		wire:     &wireBatch{Version: batchVersion, Boot: b.Boot[:]},
		contexts: make(map[wireContext]uint32),
		times:    make(map[deviceTime]int64),
		series:   make(map[seriesKey]int),
	}
	w := &wireMessages{
		Digests: make([]byte, 0, 32*n), Context: make([]uint32, 0, n), Copy: make([]uint32, 0, n), Wall: make([]int64, 0, n),
		Mono: make([]int64, 0, n), ControlIDs: make([]string, 0, n), SentAt: make([]string, 0, n),
	}
	var last Stamp
	for i := range b.Messages {
		m := &b.Messages[i]
		context := t.context(m)
		w.Digests = append(w.Digests, m.Digest[:]...)
		w.Context = append(w.Context, context)
		w.Copy = append(w.Copy, m.Copy)
		w.Wall = append(w.Wall, m.Received.Wall-last.Wall)
		w.Mono = append(w.Mono, m.Received.Mono-last.Mono)
		w.ControlIDs = append(w.ControlIDs, text(m.ControlID))
		w.SentAt = append(w.SentAt, text(m.SentAt))
		last = m.Received
		for j := range m.Observations {
			t.observation(int64(i), context, &m.Observations[j])
		}
		for j := range m.Waveforms {
			t.waveform(int64(i), context, &m.Waveforms[j])
		}
		t.extra(uint32(i), m)
	}
	t.wire.Messages = wireMessages{
		Digests: w.Digests, Context: collapse(w.Context), Copy: collapse(w.Copy), Wall: omitZero(w.Wall), Mono: omitZero(w.Mono),
		ControlIDs: collapse(w.ControlIDs), SentAt: collapse(w.SentAt),
	}
	t.finish()
	t.finishWaveforms()
	t.wire.Version = t.wire.needs()
	return t.wire
}

func (t *tables) context(m *Message) uint32 {
	c := wireContext{
		Source: text(m.Source), Type: text(m.Type), Sender: text(m.Sender), Processing: text(m.Processing),
		Patient: text(m.Patient.ID), Authority: text(m.Patient.Authority), Location: text(m.Patient.Location),
		Visit: text(m.Patient.Visit), Bed: text(m.Bed),
	}
	i, ok := t.contexts[c]
	if !ok {
		i = uint32(len(t.wire.Contexts))
		t.contexts[c] = i
		t.wire.Contexts = append(t.wire.Contexts, c)
	}
	return i
}

func (t *tables) observation(message int64, context uint32, o *Observation) {
	key := seriesKey{context: context, code: o.Code, unit: o.Unit, kind: o.Type, subID: o.SubID, limits: o.Limits, device: o.Device, bed: o.Bed}
	i, ok := t.series[key]
	if !ok {
		i = len(t.columns)
		t.series[key] = i
		t.columns = append(t.columns, columns{})
		t.wire.Series = append(t.wire.Series, wireSeries{
			MDC: o.Code.MDC, CodeID: text(o.Code.ID), CodeName: text(o.Code.Name), CodeSys: text(o.Code.Sys),
			UnitSent: text(o.Unit.Sent), UCUM: text(o.Unit.UCUM), Type: text(o.Type), SubID: text(o.SubID), Limits: text(o.Limits),
			Device: text(o.Device), Bed: text(o.Bed),
		})
	}
	c := &t.columns[i]
	time := t.time(o.Time, o.At)
	c.message = append(c.message, message-c.lastMessage)
	c.time = append(c.time, time-c.lastTime)
	c.lastMessage, c.lastTime = message, time
	c.index = append(c.index, o.Index)
	c.value = append(c.value, text(o.Value))
	c.flags = append(c.flags, text(o.Flags))
	c.status = append(c.status, text(o.Status))
	c.marks = append(c.marks, byte(o.Marks))
}

func (t *tables) time(sent string, at int64) int64 {
	key := deviceTime{text: sent, at: at}
	i, ok := t.times[key]
	if !ok {
		if t.wire.Times == nil {
			t.wire.Times = &wireTimes{}
		}
		i = int64(len(t.wire.Times.Texts))
		t.times[key] = i
		t.wire.Times.Texts = append(t.wire.Times.Texts, text(sent))
		t.wire.Times.At = append(t.wire.Times.At, at)
	}
	return i
}

func (t *tables) extra(message uint32, m *Message) {
	if len(m.Raw) == 0 && len(m.Problems) == 0 {
		return
	}
	e := wireExtra{Message: message, Raw: m.Raw}
	for _, p := range m.Problems {
		e.Problems = append(e.Problems, wireProblem{Where: text(p.Where), Reason: text(p.Reason)})
	}
	t.wire.Extras = append(t.wire.Extras, e)
}

// finish collapses the columns and turns the times into deltas.
func (t *tables) finish() {
	for i := range t.columns {
		c, s := &t.columns[i], &t.wire.Series[i]
		if len(c.index) > 1 {
			s.Rows = uint32(len(c.index))
		}
		s.Message, s.Time = omitZero(c.message), omitZero(c.time)
		s.Index, s.Value, s.Flags, s.Status = collapse(c.index), collapse(c.value), collapse(c.flags), collapse(c.status)
		s.Marks = collapse(c.marks)
	}
	if times := t.wire.Times; times != nil {
		for i := len(times.At) - 1; i > 0; i-- {
			times.At[i] -= times.At[i-1]
		}
		times.At = omitZero(times.At)
	}
}

// collapse shortens a column to what it must say: nothing when all cells are zero, one cell when all are the same.
func collapse[T comparable](column []T) []T {
	for _, cell := range column {
		if cell != column[0] {
			return column
		}
	}
	return omitZero(column[:1])
}

// omitZero drops a column of zeros.
func omitZero[T comparable](column []T) []T {
	var zero T
	if slices.ContainsFunc(column, func(cell T) bool { return cell != zero }) {
		return column
	}
	return nil
}

// text makes a string one that CBOR can carry, never a longer one. Strings that are UTF-8 already, nearly all, are not copied.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "?")
}
