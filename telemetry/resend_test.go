package telemetry

import (
	"math"
	"reflect"
	"testing"
)

func TestResendRoundTrip(t *testing.T) {
	for _, r := range []Resend{
		{},
		{Generation: [16]byte{1}, Held: []Held{{Epoch: Epoch{1}, Lane: LaneVitals, Runs: []Span{{0, 0}, {2, 99}, {101, math.MaxInt64}}}, {Epoch: Epoch{1}, Lane: LaneAlarm}}},
	} {
		data, err := EncodeResend(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeResend(data); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v, %v; want %+v", got, err, r)
		}
	}
}

func TestResendFitsADocument(t *testing.T) {
	var r Resend
	for i := range 3000 {
		r.Held = append(r.Held, Held{Epoch: Epoch{byte(i), byte(i >> 8)}, Lane: LaneVitals, Runs: []Span{{math.MaxInt64 - 9, math.MaxInt64}}})
	}
	data, err := EncodeResend(r)
	if err != nil || len(data) > MaxDocument {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	got, err := DecodeResend(data)
	if err != nil || len(got.Held) < 1000 || got.Held[0].Epoch != r.Held[0].Epoch {
		t.Fatalf("%d of them, %v", len(got.Held), err)
	}
}

func TestDecodeResendIsStrict(t *testing.T) {
	id := make([]byte, 16)
	held := func(runs ...uint64) wireResend {
		return wireResend{Generation: id, Held: []wireHeld{{Epoch: id, Lane: 1, Runs: runs}}}
	}
	for name, v := range map[string]any{
		"short generation": wireResend{Generation: id[:3], Held: []wireHeld{}},
		"no list":          map[int]any{1: id},
		"null list":        map[int]any{1: id, 2: nil},
		"further key":      map[int]any{1: id, 2: []any{}, 3: 0},
		"short epoch":      wireResend{Generation: id, Held: []wireHeld{{Epoch: id[:1], Runs: []uint64{}}}},
		"unknown lane":     wireResend{Generation: id, Held: []wireHeld{{Epoch: id, Lane: LaneCount, Runs: []uint64{}}}},
		"twice":            wireResend{Generation: id, Held: []wireHeld{{Epoch: id, Runs: []uint64{}}, {Epoch: id, Runs: []uint64{}}}},
		"half a run":       held(1),
		"backwards":        held(5, 4),
		"runs that touch":  held(1, 2, 3, 4),
		"descending":       held(7, 8, 1, 2),
		"too great":        held(1, math.MaxUint64),
	} {
		data, err := encoding.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeResend(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := DecodeResend(make([]byte, MaxDocument+1)); err == nil {
		t.Error("an over-long document was accepted")
	}
}

func FuzzDecodeResend(f *testing.F) {
	for _, r := range []Resend{{}, {Held: []Held{{Epoch: Epoch{1}, Lane: LaneVitals, Runs: []Span{{0, 5}, {7, 9}}}}}} {
		data, err := EncodeResend(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeResend(data)
		if err != nil {
			return
		}
		if again, err := EncodeResend(r); err != nil || string(again) != string(data) {
			t.Fatalf("%+v encodes differently, %v", r, err)
		}
	})
}
