package telemetry

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// ref is where one observation stands in the wire form, and its key within the batch.
type ref struct {
	message, index uint32
	series, row    uint32
	time           uint32
}

// batch turns the tables back into messages. Every index and length is checked here; nothing of the wire form is trusted.
func (w *wireBatch) batch() (Batch, error) {
	var b Batch
	if w.Version < batchVersion || w.Version > batchLatest {
		return b, fmt.Errorf("version %d is unknown; expected %d to %d", w.Version, batchVersion, batchLatest)
	}
	if need := w.needs(); w.Version < need {
		return b, fmt.Errorf("a batch of version %d with keys of version %d", w.Version, need)
	}
	if len(w.Boot) != len(b.Boot) {
		return b, fmt.Errorf("boot id has %d bytes; expected %d", len(w.Boot), len(b.Boot))
	}
	copy(b.Boot[:], w.Boot)
	messages, err := w.messages()
	if err != nil {
		return b, err
	}
	refs, err := w.refs(len(messages))
	if err != nil {
		return b, err
	}
	w.observations(messages, refs)
	if err := w.waveforms(messages); err != nil {
		return b, err
	}
	if err := w.extras(messages); err != nil {
		return b, err
	}
	b.Messages = messages
	return b, nil
}

func (w *wireBatch) messages() ([]Message, error) {
	t := &w.Messages
	n := len(t.Digests) / 32
	if len(t.Digests)%32 != 0 || n == 0 || n > MaxMessages {
		return nil, fmt.Errorf("messages: %d bytes of digests; expected 32 for each of 1 to %d", len(t.Digests), MaxMessages)
	}
	err := errors.Join(
		columnLength("messages: contexts", len(t.Context), n),
		columnLength("messages: copies", len(t.Copy), n),
		deltaLength("messages: wall", len(t.Wall), n),
		deltaLength("messages: mono", len(t.Mono), n),
		columnLength("messages: control ids", len(t.ControlIDs), n),
		columnLength("messages: sent-at", len(t.SentAt), n),
	)
	if err != nil {
		return nil, err
	}
	messages := make([]Message, n)
	var now Stamp
	for i := range messages {
		context := cell(t.Context, i)
		if int64(context) >= int64(len(w.Contexts)) { // int has 32 bits on some gateways
			return nil, fmt.Errorf("message %d: context %d of %d", i, context, len(w.Contexts))
		}
		c := &w.Contexts[context]
		now.Wall += delta(t.Wall, i)
		now.Mono += delta(t.Mono, i)
		m := &messages[i]
		*m = Message{
			Source: c.Source, Copy: cell(t.Copy, i), Received: now, Type: c.Type, ControlID: cell(t.ControlIDs, i), Sender: c.Sender,
			Processing: c.Processing, SentAt: cell(t.SentAt, i),
			Patient: Patient{ID: c.Patient, Authority: c.Authority, Location: c.Location, Visit: c.Visit}, Bed: c.Bed,
		}
		copy(m.Digest[:], t.Digests[32*i:])
	}
	return messages, nil
}

// refs lists every observation, ordered by message and index. That no key comes twice is for check to see.
func (w *wireBatch) refs(messages int) ([]ref, error) {
	rows, err := w.rows()
	if err != nil {
		return nil, err
	}
	refs := make([]ref, 0, rows)
	for i := range w.Series {
		s := &w.Series[i]
		if refs, err = w.appendRefs(refs, i, int(s.rows()), s.Message, s.Time, s.Index, messages); err != nil {
			return nil, fmt.Errorf("series %d: %w", i, err)
		}
	}
	sortRefs(refs)
	return refs, nil
}

// appendRefs lists the rows of one series, given its columns.
func (w *wireBatch) appendRefs(refs []ref, series, rows int, message, time []int64, index []uint32, messages int) ([]ref, error) {
	times := 0
	if w.Times != nil {
		times = len(w.Times.Texts)
	}
	var m, t int64
	for row := range rows {
		m += delta(message, row)
		t += delta(time, row)
		if m < 0 || m >= int64(messages) {
			return nil, fmt.Errorf("row %d is of message %d of %d", row, m, messages)
		}
		if t < 0 || t >= int64(times) {
			return nil, fmt.Errorf("row %d has time %d of %d", row, t, times)
		}
		refs = append(refs, ref{message: uint32(m), index: cell(index, row), series: uint32(series), row: uint32(row), time: uint32(t)})
	}
	return refs, nil
}

// sortRefs orders by message and index.
func sortRefs(refs []ref) {
	slices.SortFunc(refs, func(a, b ref) int {
		return cmp.Or(cmp.Compare(a.message, b.message), cmp.Compare(a.index, b.index))
	})
}

// rows checks the columns' lengths and gives the number of observations, so that it is bounded before anything is built.
func (w *wireBatch) rows() (int, error) {
	if w.Times != nil {
		if err := deltaLength("times: at", len(w.Times.At), len(w.Times.Texts)); err != nil {
			return 0, err
		}
	}
	total := 0
	for i := range w.Series {
		s := &w.Series[i]
		if s.rows() > MaxRows {
			return 0, fmt.Errorf("series %d: %d rows, at most %d", i, s.rows(), MaxRows)
		}
		n := int(s.rows())
		if total += n; total > MaxRows {
			return 0, fmt.Errorf("more than %d observations", MaxRows)
		}
		err := errors.Join(
			deltaLength("messages", len(s.Message), n),
			columnLength("indexes", len(s.Index), n),
			deltaLength("times", len(s.Time), n),
			columnLength("values", len(s.Value), n),
			columnLength("flags", len(s.Flags), n),
			columnLength("status", len(s.Status), n),
			columnLength("marks", len(s.Marks), n),
		)
		if err != nil {
			return 0, fmt.Errorf("series %d: %w", i, err)
		}
	}
	return total, nil
}

func (s *wireSeries) rows() uint32 { return max(s.Rows, 1) }

// observations gives each message its observations out of one allocation.
func (w *wireBatch) observations(messages []Message, refs []ref) {
	at := w.at()
	all := make([]Observation, len(refs))
	for i, r := range refs {
		s, row := &w.Series[r.series], int(r.row)
		all[i] = Observation{
			Index: r.index, Type: s.Type, Code: Code{MDC: s.MDC, ID: s.CodeID, Name: s.CodeName, Sys: s.CodeSys},
			Value: cell(s.Value, row), Unit: Unit{Sent: s.UnitSent, UCUM: s.UCUM}, SubID: s.SubID, Limits: s.Limits,
			Flags: cell(s.Flags, row), Status: cell(s.Status, row), Time: w.Times.Texts[r.time], At: at[r.time], Device: s.Device, Bed: s.Bed,
			Marks: Marks(cell(s.Marks, row)),
		}
	}
	for from := 0; from < len(refs); {
		to := from + 1
		for to < len(refs) && refs[to].message == refs[from].message {
			to++
		}
		messages[refs[from].message].Observations = all[from:to:to]
		from = to
	}
}

// at undoes the deltas of the times.
func (w *wireBatch) at() []int64 {
	if w.Times == nil {
		return nil
	}
	at := make([]int64, len(w.Times.Texts))
	var now int64
	for i := range at {
		now += delta(w.Times.At, i)
		at[i] = now
	}
	return at
}

func (w *wireBatch) extras(messages []Message) error {
	for i := range w.Extras {
		e := &w.Extras[i]
		if int64(e.Message) >= int64(len(messages)) {
			return fmt.Errorf("extra %d is of message %d of %d", i, e.Message, len(messages))
		}
		if i > 0 && e.Message <= w.Extras[i-1].Message {
			return fmt.Errorf("extra %d is of message %d after %d; expected ascending", i, e.Message, w.Extras[i-1].Message)
		}
		m := &messages[e.Message]
		if len(e.Raw) > 0 {
			m.Raw = e.Raw
		}
		for _, p := range e.Problems {
			m.Problems = append(m.Problems, Problem(p))
		}
	}
	return nil
}

// cell is one cell of a column whose length was checked.
func cell[T any](column []T, row int) (v T) {
	switch len(column) {
	case 0:
		return v
	case 1:
		return column[0]
	}
	return column[row]
}

// delta is one cell of a delta column whose length was checked.
func delta(column []int64, row int) int64 {
	if len(column) == 0 {
		return 0
	}
	return column[row]
}

func columnLength(name string, cells, rows int) error {
	if cells > 1 && cells != rows {
		return fmt.Errorf("%s: %d cells for %d rows", name, cells, rows)
	}
	return nil
}

func deltaLength(name string, cells, rows int) error {
	if cells != 0 && cells != rows {
		return fmt.Errorf("%s: %d cells for %d rows", name, cells, rows)
	}
	return nil
}
