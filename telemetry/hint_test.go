package telemetry

import (
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

func TestHintIsBounded(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{
		-time.Second: time.Millisecond, 0: time.Millisecond, 30 * time.Second: 30 * time.Second, MaxHint: MaxHint, 9 * time.Hour: MaxHint,
	} {
		data, err := EncodeHint(Hint{given})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeHint(data); err != nil || got.After != want {
			t.Errorf("%s came out as %s, %v", given, got.After, err)
		}
	}
	// What a later or a hostile server sends.
	for name, c := range map[string]struct {
		body any
		want time.Duration // 0: refused
	}{
		"a month":       {map[int]any{1: uint32(1<<32 - 1)}, MaxHint},
		"a further key": {map[int]any{1: 1000, 2: "x", 9: []int{1}}, time.Second},
		"beyond 32 bit": {map[int]any{1: uint64(1) << 40}, 0},
		"negative":      {map[int]any{1: -1}, 0},
		"none":          {map[int]any{}, 0},
		"zero":          {map[int]any{1: 0}, 0},
		"text":          {map[int]any{1: "1000"}, 0},
		"another type":  {"retry later", 0},
		"long":          {map[int]any{1: 1000, 2: make([]byte, 2000)}, 0},
	} {
		data, err := cbor.Marshal(c.body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeHint(data); got.After != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %s, %v", name, got.After, err)
		}
	}
}

func FuzzDecodeHint(f *testing.F) {
	for _, h := range []Hint{{time.Millisecond}, {30 * time.Second}, {MaxHint}} {
		data, err := EncodeHint(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{0xa1, 0x01, 0x1a, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, err := DecodeHint(data); err == nil && (h.After <= 0 || h.After > MaxHint) {
			t.Errorf("%x is a hint of %s", data, h.After)
		}
	})
}
