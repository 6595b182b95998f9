package records

import (
	"encoding/binary"
	"errors"
	"math"

	"wardlink/telemetry"
)

// The cells of a row of readings, one for each series of its layout, in that order. Numbers are varints of encoding/binary:
//
//	version (one byte, 1), then for each reading: how far its index is beyond the next one after the former reading's (beyond 0 for the first);
//	its marks, shifted left by one, and 1 where a time follows; its form; the length of its value, and the value as sent; where it has one,
//	the length of its time, and the time as sent. Without one it is messages.time.
const cellsVersion = 1

// maxCells bounds the readings of one row, so that a search for one of them never reads many others.
const maxCells = 128

// cell is one reading of a row. Its texts alias the row's bytes.
type cell struct {
	index uint32
	marks telemetry.Marks
	own   bool // it has a time of its own
	form  int64
	value []byte
	time  []byte
}

// cellWriter makes the bytes of a row's cells. The zero value is a row without any.
type cellWriter struct {
	data []byte
	next uint64 // the least index that the next cell may have
	n    int
}

// add appends a cell, whose index must be above that of the one before.
func (w *cellWriter) add(index uint32, marks telemetry.Marks, form int64, value string, sent string, own bool) {
	if w.n == 0 {
		w.data = append(w.data[:0], cellsVersion)
	}
	head := uint64(marks) << 1
	if own {
		head |= 1
	}
	w.data = binary.AppendUvarint(w.data, uint64(index)-w.next)
	w.data = binary.AppendUvarint(w.data, head)
	w.data = binary.AppendUvarint(w.data, uint64(form))
	w.data = append(binary.AppendUvarint(w.data, uint64(len(value))), value...)
	if own {
		w.data = append(binary.AppendUvarint(w.data, uint64(len(sent))), sent...)
	}
	w.next, w.n = uint64(index)+1, w.n+1
}

var errCells = errors.New("a row of readings is damaged; restore the last backup")

// parseCells calls each for every cell of a row, with its place in the layout, until it returns false. It allocates nothing, and reads no
// further than it is asked to.
func parseCells(data []byte, each func(i int, c *cell) bool) error {
	if len(data) == 0 || data[0] != cellsVersion {
		return errCells
	}
	data = data[1:]
	ok := true
	number := func(most uint64) uint64 {
		v, n := binary.Uvarint(data)
		if n <= 0 || v > most {
			ok = false
			return 0
		}
		data = data[n:]
		return v
	}
	text := func() []byte {
		n := number(uint64(len(data)))
		if !ok || n > uint64(len(data)) {
			ok = false
			return nil
		}
		t := data[:n]
		data = data[n:]
		return t
	}
	next := uint64(0)
	for i := 0; len(data) > 0; i++ {
		if i == maxCells {
			return errCells
		}
		var c cell
		index := next + number(math.MaxUint32)
		head := number(math.MaxUint8<<1 | 1)
		c.form = int64(number(math.MaxInt64))
		c.value = text()
		if c.own = head&1 != 0; c.own && ok {
			c.time = text()
		}
		if !ok || index > math.MaxUint32 {
			return errCells
		}
		c.index, c.marks, next = uint32(index), telemetry.Marks(head>>1), index+1
		if !each(i, &c) {
			return nil
		}
	}
	return nil
}

// appendSeries appends the ids of a layout's series.
func appendSeries(b []byte, series []int64) []byte {
	for _, id := range series {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return b
}

// parseSeries reads what appendSeries wrote.
func parseSeries(b []byte) ([]int64, error) {
	out := make([]int64, 0, min(len(b), maxCells))
	for len(b) > 0 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > math.MaxInt64 || len(out) == maxCells {
			return nil, errors.New("a layout of readings is damaged; restore the last backup")
		}
		out, b = append(out, int64(v)), b[n:]
	}
	return out, nil
}
