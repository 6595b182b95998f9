package telemetry

import (
	"bytes"
	"math"
	"unicode/utf8"
)

// readBatch reads the CBOR of a batch of messages into w, which must be zero. What stands as Encode writes it, which is nearly every batch, is
// read by wireReader; anything else is the library's to judge, from the beginning. So a batch is refused, and an error worded, by the library
// alone, and to be held against it there is only this: what wireReader takes, the library takes, and reads the same (FuzzReadBatch).
//
// Texts of w share one copy of data of at most shareText bytes, which lives as long as any of them: who keeps one for longer than the batch clones
// it. Columns of bytes but Raw alias data itself.
func readBatch(data []byte, w *wireBatch) error {
	r := wireReader{data: data}
	if len(data) <= shareText {
		r.text = string(data)
	}
	if r.batch(w); !r.odd && r.at == len(data) {
		return nil
	}
	*w = wireBatch{}
	return unmarshal(data, w)
}

// shareText bounds what a batch keeps in memory beside what it says: a frame of two kilobytes can inflate to a megabyte that no message names, and who
// opens batches has a thousand of them at a time. Batches of some twenty messages are below it.
const shareText = 32 << 10

// wireReader reads a batch of messages in one pass. The library checks first that the whole is well-formed, and then finds the place of each
// value by reflection, which for the smallest batches was most of what it cost to open them.
//
// It takes maps of ascending unsigned keys and of the types of wire.cddl, and holds the library's limits (newDecoding): a count is compared with
// the bytes that are left before anything is made of it. At anything else it is odd, and at the end of the data, so that every read after it is
// odd as well and every loop ends.
type wireReader struct {
	data []byte
	text string // the same bytes, or "": texts are copied one by one
	at   int
	odd  bool

	// Columns are cut from these, since most of them are of one cell.
	texts   room[string]
	numbers room[int64]
	indexes room[uint32]
}

// room hands out slices of one allocation.
type room[T any] struct{ free []T }

// roomCells are made at once, unless a column has more.
const roomCells = 64

func (r *room[T]) take(n int) []T {
	if n > len(r.free) || r.free == nil {
		r.free = make([]T, max(n, roomCells))
	}
	column := r.free[:n:n]
	r.free = r.free[n:]
	return column
}

func (r *wireReader) giveUp() {
	r.odd, r.at = true, len(r.data)
}

// The major types of CBOR.
const (
	majorUnsigned = 0
	majorNegative = 1
	majorBytes    = 2
	majorText     = 3
	majorArray    = 4
	majorMap      = 5
)

// head reads the head of an item of that major type, and gives its argument.
func (r *wireReader) head(major byte) uint64 {
	if r.at >= len(r.data) || r.data[r.at]>>5 != major {
		r.giveUp()
		return 0
	}
	short := r.data[r.at] & 31
	r.at++
	if short < 24 {
		return uint64(short)
	}
	size := 1 << (short - 24)
	if short > 27 || size > len(r.data)-r.at {
		r.giveUp()
		return 0
	}
	var argument uint64
	for _, b := range r.data[r.at : r.at+size] {
		argument = argument<<8 | uint64(b)
	}
	r.at += size
	return argument
}

func (r *wireReader) pairs() int {
	n := r.head(majorMap)
	if n > maxPairs {
		r.giveUp()
		return 0
	}
	return int(n)
}

// key reads a map's next key, which must be above the one before; the least is 1.
func (r *wireReader) key(before uint64) uint64 {
	key := r.head(majorUnsigned)
	if key <= before {
		r.giveUp()
		return 0
	}
	return key
}

// cells reads the head of an array.
func (r *wireReader) cells() int {
	n := r.head(majorArray)
	if n > MaxRows || n > uint64(len(r.data)-r.at) {
		r.giveUp()
		return 0
	}
	return int(n)
}

// rest moves over the next bytes and gives where they begin and end.
func (r *wireReader) rest(n uint64) (from, to int) {
	if n > uint64(len(r.data)-r.at) {
		r.giveUp()
		return 0, 0
	}
	from, to = r.at, r.at+int(n)
	r.at = to
	return from, to
}

func (r *wireReader) number() int64 {
	if r.at < len(r.data) && r.data[r.at]>>5 == majorNegative {
		return ^r.positive(r.head(majorNegative))
	}
	return r.positive(r.head(majorUnsigned))
}

func (r *wireReader) positive(v uint64) int64 {
	if v > math.MaxInt64 {
		r.giveUp()
		return 0
	}
	return int64(v)
}

func (r *wireReader) index() uint32 {
	v := r.head(majorUnsigned)
	if v > math.MaxUint32 {
		r.giveUp()
		return 0
	}
	return uint32(v)
}

func (r *wireReader) string() string {
	from, to := r.rest(r.head(majorText))
	if !utf8.Valid(r.data[from:to]) {
		r.giveUp()
		return ""
	}
	if r.text != "" {
		return r.text[from:to]
	}
	return string(r.data[from:to])
}

func (r *wireReader) bytes() []byte {
	from, to := r.rest(r.head(majorBytes))
	return r.data[from:to:to]
}

func (r *wireReader) stringColumn() []string {
	column := r.texts.take(r.cells())
	for i := range column {
		column[i] = r.string()
	}
	return column
}

func (r *wireReader) numberColumn() []int64 {
	column := r.numbers.take(r.cells())
	for i := range column {
		column[i] = r.number()
	}
	return column
}

func (r *wireReader) indexColumn() []uint32 {
	column := r.indexes.take(r.cells())
	for i := range column {
		column[i] = r.index()
	}
	return column
}

func (r *wireReader) bytesColumn() [][]byte {
	column := make([][]byte, r.cells())
	for i := range column {
		column[i] = r.bytes()
	}
	return column
}

// rows reads an array of tables.
func rows[T any](r *wireReader, row func(*wireReader, *T)) []T {
	out := make([]T, r.cells())
	for i := range out {
		row(r, &out[i])
	}
	return out
}

func (r *wireReader) batch(w *wireBatch) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			w.Version = r.head(majorUnsigned)
		case 2:
			w.Boot = r.bytes()
		case 3:
			w.Contexts = rows(r, (*wireReader).context)
		case 4:
			r.messages(&w.Messages)
		case 5:
			w.Times = &wireTimes{}
			r.times(w.Times)
		case 6:
			w.Series = rows(r, (*wireReader).series)
		case 7:
			w.Extras = rows(r, (*wireReader).extra)
		case 8:
			w.Waveforms = rows(r, (*wireReader).waveforms)
		default:
			r.giveUp()
			return
		}
	}
}

func (r *wireReader) context(c *wireContext) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			c.Source = r.string()
		case 2:
			c.Type = r.string()
		case 3:
			c.Sender = r.string()
		case 4:
			c.Processing = r.string()
		case 5:
			c.Patient = r.string()
		case 6:
			c.Authority = r.string()
		case 7:
			c.Location = r.string()
		case 8:
			c.Visit = r.string()
		case 9:
			c.Bed = r.string()
		default:
			r.giveUp()
			return
		}
	}
}

func (r *wireReader) messages(m *wireMessages) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			m.Digests = r.bytes()
		case 2:
			m.Context = r.indexColumn()
		case 3:
			m.Copy = r.indexColumn()
		case 4:
			m.Wall = r.numberColumn()
		case 5:
			m.Mono = r.numberColumn()
		case 6:
			m.ControlIDs = r.stringColumn()
		case 7:
			m.SentAt = r.stringColumn()
		default:
			r.giveUp()
			return
		}
	}
}

func (r *wireReader) times(t *wireTimes) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			t.Texts = r.stringColumn()
		case 2:
			t.At = r.numberColumn()
		default:
			r.giveUp()
			return
		}
	}
}

func (r *wireReader) series(s *wireSeries) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			s.MDC = r.index()
		case 2:
			s.CodeID = r.string()
		case 3:
			s.CodeName = r.string()
		case 4:
			s.CodeSys = r.string()
		case 5:
			s.UnitSent = r.string()
		case 6:
			s.UCUM = r.string()
		case 7:
			s.Type = r.string()
		case 8:
			s.SubID = r.string()
		case 9:
			s.Limits = r.string()
		case 10:
			s.Device = r.string()
		case 11:
			s.Rows = r.index()
		case 12:
			s.Message = r.numberColumn()
		case 13:
			s.Index = r.indexColumn()
		case 14:
			s.Time = r.numberColumn()
		case 15:
			s.Value = r.stringColumn()
		case 16:
			s.Flags = r.stringColumn()
		case 17:
			s.Status = r.stringColumn()
		case 18:
			s.Marks = r.bytes()
		case 26:
			s.Bed = r.string()
		default:
			r.giveUp()
			return
		}
	}
}

func (r *wireReader) waveforms(s *wireWaveforms) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			s.MDC = r.index()
		case 2:
			s.CodeID = r.string()
		case 3:
			s.CodeName = r.string()
		case 4:
			s.CodeSys = r.string()
		case 5:
			s.UnitSent = r.string()
		case 6:
			s.UCUM = r.string()
		case 7:
			s.Type = r.string()
		case 8:
			s.SubID = r.string()
		case 10:
			s.Device = r.string()
		case 11:
			s.Rows = r.index()
		case 12:
			s.Message = r.numberColumn()
		case 13:
			s.Index = r.indexColumn()
		case 14:
			s.Time = r.numberColumn()
		case 16:
			s.Flags = r.stringColumn()
		case 17:
			s.Status = r.stringColumn()
		case 18:
			s.Marks = r.bytes()
		case 19:
			s.Label = r.string()
		case 20:
			s.Period = r.string()
		case 21:
			s.Factor = r.string()
		case 22:
			s.Origin = r.string()
		case 23:
			s.Lower = r.string()
		case 24:
			s.Upper = r.string()
		case 25:
			s.Samples = r.bytesColumn()
		case 26:
			s.Bed = r.string()
		default:
			r.giveUp()
			return
		}
	}
}

func (r *wireReader) extra(e *wireExtra) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			e.Message = r.index()
		case 2:
			e.Raw = bytes.Clone(r.bytes())
		case 3:
			e.Problems = rows(r, (*wireReader).problem)
		default:
			r.giveUp()
			return
		}
	}
}

func (r *wireReader) problem(p *wireProblem) {
	for n, key := r.pairs(), uint64(0); n > 0; n-- {
		switch key = r.key(key); key {
		case 1:
			p.Where = r.string()
		case 2:
			p.Reason = r.string()
		default:
			r.giveUp()
			return
		}
	}
}
