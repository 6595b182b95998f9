package telemetry

import (
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sameAsLibrary holds the reader to the library: what it takes, the library takes and reads the same. It tells whether it took data.
func sameAsLibrary(t *testing.T, data []byte) bool {
	t.Helper()
	var got, want wireBatch
	r := wireReader{data: data, text: string(data)}
	r.batch(&got)
	if r.odd || r.at != len(data) {
		return false
	}
	if err := unmarshal(data, &want); err != nil {
		t.Fatalf("%x: read, but by the library: %v", data, err)
	}
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("%x: the library and the reader:\n%s", data, cmp.Diff(want, got))
	}
	return true
}

// encodings are the CBOR of batches of every shape.
func encodings(t testing.TB) (out [][]byte) {
	batches := []Batch{vitals(2, 3), ecg(1, 2, 2, 20), vitals(1, 10)}
	for seed := range uint64(40) {
		batches = append(batches, newRandom(seed).batch())
	}
	for i := range batches {
		data, err := encoding.Marshal(newWireBatch(&batches[i]))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, data)
	}
	return out
}

// TestReaderTakesWhatEncodeWrites: else each batch would be read by the library, only slower.
func TestReaderTakesWhatEncodeWrites(t *testing.T) {
	for _, data := range encodings(t) {
		if !sameAsLibrary(t, data) {
			t.Errorf("%x is left to the library", data)
		}
	}
}

// TestReaderOfDamage changes each byte of a batch to what stands for something else in CBOR, and cuts the batch everywhere.
func TestReaderOfDamage(t *testing.T) {
	taken, all := 0, 0
	try := func(data []byte) {
		all++
		if sameAsLibrary(t, data) {
			taken++
		}
	}
	for _, data := range encodings(t)[:1] {
		for i := range data {
			try(data[:i])
			changed := slices.Clone(data)
			for _, b := range []byte{0x00, 0x01, 0x17, 0x18, 0x19, 0x1b, 0x1f, 0x20, 0x3b, 0x40, 0x5b, 0x60, 0x7b, 0x80, 0x9a, 0xa0, 0xb8, 0xc1, 0xe5, 0xf4, 0xf6, 0xfb, 0xff, data[i] + 1, data[i] - 1} {
				changed[i] = b
				try(changed)
			}
		}
	}
	t.Logf("of %d damaged batches %d read like others", all, taken)
	if taken == 0 || taken == all {
		t.Error("expected some that are read, and some that are not")
	}
}

// TestReaderLeavesToTheLibrary: what Encode never writes, and the library takes all the same, is not refused.
func TestReaderLeavesToTheLibrary(t *testing.T) {
	for name, data := range map[string][]byte{
		"no value":                 {0xa1, 0x01, 0xf6},
		"a simple value":           {0xa1, 0x01, 0xe3},
		"a key of text":            {0xa1, 0x61, '1', 0x03},
		"keys out of order":        {0xa2, 0x02, 0x41, 0x00, 0x01, 0x03},
		"numbers for bytes":        {0xa1, 0x02, 0x82, 0x07, 0x08},
		"no times":                 {0xa1, 0x05, 0xf6},
		"a row without any value":  {0xa1, 0x03, 0x81, 0xf6},
		"nothing":                  {0xf6},
		"an array without a value": {0xa1, 0x04, 0xa1, 0x02, 0x81, 0xf7},
	} {
		if sameAsLibrary(t, data) {
			t.Errorf("%s: read as if Encode had written it", name)
		}
		var w wireBatch
		if err := readBatch(data, &w); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadBatch(f *testing.F) {
	for _, data := range encodings(f)[:12] {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { sameAsLibrary(t, data) })
}
