package telemetry

import (
	"bytes"
	"compress/flate"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func deflatedAt(t testing.TB, level int, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, level)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// inflatesAsLibrary holds inflateAll to the library: what it takes, the library takes, and inflates to the same. It tells whether it took data.
func inflatesAsLibrary(t *testing.T, data []byte) bool {
	t.Helper()
	got, ok := inflateAll(nil, data)
	if !ok {
		return false
	}
	want, err := inflateStream(data, new(bytes.Buffer))
	if err != nil {
		t.Fatalf("%x: inflated, but by the library: %v", data, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%x: inflated to %d other bytes than the library's %d", data, len(got), len(want))
	}
	return true
}

// plains are what streams are made of: batches, and what leads to each kind of block, of code and of copy.
func plains(t testing.TB) map[string][]byte {
	random := make([]byte, 70_000)
	noise := rand.NewChaCha8([32]byte{1})
	if _, err := noise.Read(random); err != nil {
		t.Fatal(err)
	}
	skewed := make([]byte, 200_000) // symbols whose codes are long
	r := rand.New(noise)
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 6)
	}
	out := map[string][]byte{
		"nothing": nil, "a byte": {7}, "zeros": make([]byte, 100_000), "noise": random, "skewed": skewed, "text": []byte(strings.Repeat("heart rate 78 ", 9)),
		"a distance of 32768": slices.Concat(random[:32768], random[:300]), "all that fits": bytes.Repeat(random[:4096], MaxPlain/4096),
	}
	for i, data := range encodings(t)[:12] {
		out[fmt.Sprintf("batch %d", i)] = data
	}
	return out
}

func TestInflateAll(t *testing.T) {
	for name, plain := range plains(t) {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, flate.BestSpeed, 6, flate.BestCompression} {
			data := deflatedAt(t, level, plain)
			if !inflatesAsLibrary(t, data) {
				t.Errorf("%s, level %d: left to the library", name, level)
			}
			if _, ok := inflateAll(nil, append(data, 0)); ok {
				t.Errorf("%s, level %d: a byte follows the stream, and it is not noticed", name, level)
			}
			if _, ok := inflateAll(nil, data[:len(data)-1]); ok {
				t.Errorf("%s, level %d: the stream is cut, and it is not noticed", name, level)
			}
		}
	}
	if _, ok := inflateAll(nil, deflatedAt(t, flate.BestSpeed, make([]byte, MaxPlain+1))); ok {
		t.Error("more than MaxPlain bytes are taken")
	}
}

// TestInflateDamage changes bits of streams, most of them in the tables of codes.
func TestInflateDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	taken, all := 0, 0
	for _, plain := range plains(t) {
		if len(plain) > 2000 {
			plain = plain[:2000]
		}
		for _, level := range []int{flate.HuffmanOnly, flate.BestSpeed, flate.BestCompression} {
			data := deflatedAt(t, level, plain)
			for range 100 {
				changed := slices.Clone(data)
				for range 1 + r.IntN(2) {
					changed[r.IntN(min(len(data), 1+r.IntN(len(data))))] ^= 1 << r.IntN(8)
				}
				all++
				if inflatesAsLibrary(t, changed) {
					taken++
				}
			}
		}
	}
	t.Logf("of %d damaged streams %d inflate", all, taken)
	if taken == 0 || taken == all {
		t.Error("expected some that inflate, and some that do not")
	}
}

func FuzzInflate(f *testing.F) {
	for _, plain := range plains(f) {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, flate.BestSpeed} {
			f.Add(deflatedAt(f, level, plain[:min(len(plain), 2000)]))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) { inflatesAsLibrary(t, data) })
}
