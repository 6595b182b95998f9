package audit

import (
	"bytes"
	"testing"
)

// decodeRowByLibrary is what readRow stands for: the library decodes, and encodes the same bytes again.
func decodeRowByLibrary(data []byte) (Row, error) {
	known, extra, ok := splitRow(data)
	if !ok {
		known, extra = data, ""
	}
	var r Row
	if err := decodeStrict(known, MaxRow, &r); err != nil {
		return Row{}, err
	}
	r.Extra = extra
	return r, r.check()
}

// compareRow fails unless DecodeRow and the library say the same of data. It reports whether it is a row.
func compareRow(t *testing.T, data []byte) bool {
	t.Helper()
	got, err := DecodeRow(data)
	want, refused := decodeRowByLibrary(data)
	if (err == nil) != (refused == nil) || err == nil && got != want {
		t.Errorf("%x\nis read as %+v, %v\nthe library reads %+v, %v", data, got, err, want, refused)
	}
	return err == nil
}

// TestRowIsReadAsTheLibraryReadsIt: of rows, whole, cut off, with more behind them, with each bit turned, and with an element
// in another type or in a longer form.
func TestRowIsReadAsTheLibraryReadsIt(t *testing.T) {
	row, more := testRow(1), testRow(300)
	more.Extra, more.Lane, more.Received = Extra(additions), 255, 1<<62
	rows, taken := [][]byte{}, 0
	for _, r := range []Row{row, more} {
		data, err := EncodeRow(r)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, data)
	}
	try := func(data []byte) {
		if compareRow(t, data) {
			taken++
		}
	}
	for _, data := range rows {
		try(data)
		for i := range data {
			try(data[:i])
			other := bytes.Clone(data)
			for bit := range 8 {
				other[i] = data[i] ^ 1<<bit
				try(other)
			}
			for _, form := range [][]byte{{0xf6}, {0xf5}, {0x9f}, {0xc0, data[i]}, {data[i]>>5<<5 | 24, data[i] & 31}, {data[i]>>5<<5 | 25, 0, data[i] & 31}, {}} {
				try(bytes.Join([][]byte{data[:i], form, data[i+1:]}, nil))
			}
		}
		try(append(bytes.Clone(data), 0))
		try(bytes.Replace(data, []byte{0x18, 255}, []byte{0x19, 1, 0}, 1)) // lane 256
	}
	if taken < 500 { // what changes an id, a hash or a text is a row all the same
		t.Errorf("only %d of them are rows: the comparison compares refusals alone", taken)
	}
}

// BenchmarkDecodeRow is a row of the size that the endpoint writes.
func BenchmarkDecodeRow(b *testing.B) {
	data, err := EncodeRow(testRow(1))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("by hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeRow(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeRowByLibrary(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
