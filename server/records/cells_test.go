package records

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"

	"wardlink/telemetry"
)

func sampleCells() []byte {
	var w cellWriter
	w.add(0, 0, 1, "72", "", false)
	w.add(1, telemetry.MarkNoReading, 300, "", "", true)
	w.add(math.MaxUint32, math.MaxUint8, math.MaxInt64, strings.Repeat("x", 300)+"\x00\xff", "20261127", true)
	return w.data
}

func TestCellsComeBack(t *testing.T) {
	var got []cell
	if err := parseCells(sampleCells(), func(i int, c *cell) bool {
		if i != len(got) {
			t.Errorf("place %d of %d", i, len(got))
		}
		got = append(got, *c)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].index != 0 || string(got[0].value) != "72" || got[0].own || got[1].index != 1 || got[1].form != 300 || !got[1].own || len(got[1].time) != 0 ||
		got[2].index != math.MaxUint32 || got[2].marks != math.MaxUint8 || got[2].form != math.MaxInt64 || len(got[2].value) != 302 || string(got[2].time) != "20261127" {
		t.Errorf("%+v", got)
	}
	series := []int64{1, 127, 128, math.MaxInt64}
	if back, err := parseSeries(appendSeries(nil, series)); err != nil || !slices.Equal(back, series) {
		t.Errorf("%v %v", back, err)
	}
}

func TestDamagedCellsAreRefused(t *testing.T) {
	whole := sampleCells()
	long := cellWriter{}
	for i := range maxCells + 1 {
		long.add(uint32(i), 0, 1, "1", "", false)
	}
	for name, data := range map[string][]byte{
		"none": {}, "another version": append([]byte{2}, whole[1:]...), "cut": whole[:len(whole)-1], "cut in a number": whole[:2],
		"index beyond 32 bits": append(slices.Clone(whole), 0, 0, 1, 0), "too many": long.data,
		"value beyond the row": {1, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 'x'},
	} {
		if err := parseCells(data, func(int, *cell) bool { return true }); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := parseSeries(bytes.Repeat([]byte{1}, maxCells+1)); err == nil {
		t.Error("a layout of too many series is taken")
	}
	if _, err := parseSeries([]byte{0x80}); err == nil {
		t.Error("a layout that is cut is taken")
	}
}

func FuzzCells(f *testing.F) {
	f.Add(sampleCells())
	f.Add([]byte{1})
	f.Add([]byte{1, 0, 0, 1, 2, '7', '2', 0, 1, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again cellWriter
		last := int64(-1)
		err := parseCells(data, func(i int, c *cell) bool {
			if int64(c.index) <= last || i >= maxCells || len(c.value)+len(c.time) > len(data) {
				t.Fatalf("%d after %d at %d", c.index, last, i)
			}
			last = int64(c.index)
			again.add(c.index, c.marks, c.form, string(c.value), string(c.time), c.own)
			return true
		})
		if err == nil && again.n > 0 && len(again.data) > len(data) {
			t.Fatalf("%x became %x", data, again.data)
		}
	})
}
