package telemetry

import (
	"math"
	"strings"
	"testing"
)

func TestRefusal(t *testing.T) {
	for _, r := range []Refusal{
		{Reason: "x"},
		{Epoch: Epoch{1, 2}, Lane: LaneSelf, Number: math.MaxInt64, Reason: strings.Repeat("é", MaxReason/2)},
	} {
		data, err := EncodeRefusal(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeRefusal(data); err != nil || got != r {
			t.Errorf("%+v: %+v, %v", r, got, err)
		}
	}
	for _, r := range []Refusal{{Lane: LaneCount, Reason: "x"}, {Number: math.MaxInt64 + 1, Reason: "x"}} {
		if _, err := EncodeRefusal(r); err == nil {
			t.Errorf("%+v encoded", r)
		}
	}
}

func TestRefusalReasonIsPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "refused",
		"a\nlevel=ERROR b\x1b[2J\u2028\xff": "a?level=ERROR b?[2J??",
		"x" + strings.Repeat("é", 150):      "x" + strings.Repeat("é", 99),
	} {
		data, err := EncodeRefusal(Refusal{Reason: in})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeRefusal(data); err != nil || got.Reason != want {
			t.Errorf("%q: %q, %v; expected %q", in, got.Reason, err, want)
		}
	}
}

func TestDecodeRefusalIsStrict(t *testing.T) {
	epoch := make([]byte, 16)
	for name, v := range map[string]any{
		"short epoch":        wireRefusal{Epoch: epoch[:15], Reason: "x"},
		"unknown lane":       wireRefusal{Epoch: epoch, Lane: 4, Reason: "x"},
		"number":             wireRefusal{Epoch: epoch, Number: math.MaxUint64, Reason: "x"},
		"no reason":          wireRefusal{Epoch: epoch},
		"control characters": wireRefusal{Epoch: epoch, Reason: "a\nb"},
		"long reason":        wireRefusal{Epoch: epoch, Reason: strings.Repeat("x", MaxReason+1)},
		"missing key":        map[int]any{1: epoch, 2: 0, 4: "x"},
		"further key":        map[int]any{1: epoch, 2: 0, 3: 0, 4: "x", 5: 0},
		"null":               map[int]any{1: epoch, 2: nil, 3: 0, 4: "x"},
		"float":              map[int]any{1: epoch, 2: 0.0, 3: 0, 4: "x"},
		"array":              []any{epoch, 0, 0, "x"},
	} {
		data, err := encoding.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeRefusal(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := DecodeRefusal(make([]byte, MaxDocument+1)); err == nil {
		t.Error("an over-long document was accepted")
	}
}
