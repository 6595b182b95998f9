package client

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

// FuzzParseSalvage: whatever is uploaded, what is read of it is within the limits and encodes again to the same.
func FuzzParseSalvage(f *testing.F) {
	f.Add(SalvageUpload{Sealings: [][]byte{{1, 2}}, Frames: [][]byte{{3}, bytes.Repeat([]byte{4}, 300)}}.Encode())
	f.Add(SalvageUpload{}.Encode())
	f.Add([]byte(salvageMagic + "\x02\xff\xff\xff\xff"))
	f.Add([]byte(salvageMagic + "\x01\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := ParseSalvage(data)
		if err != nil {
			if len(u.Frames)+len(u.Sealings) > 0 {
				t.Error("an upload that is refused gives items")
			}
			return
		}
		total := 0
		for _, item := range append(u.Sealings, u.Frames...) {
			total += len(item)
		}
		if len(u.Frames) > MaxSalvageItems || len(u.Sealings) > MaxSalvageItems || total > len(data) {
			t.Fatalf("%d frames, %d records, %d bytes of %d", len(u.Frames), len(u.Sealings), total, len(data))
		}
		again, err := ParseSalvage(u.Encode())
		if err != nil || !reflect.DeepEqual(again, u) {
			t.Errorf("%v: %v; expected %v", err, again, u)
		}
	})
}

// TestParseSalvageRefuses what is cut off, too long, of another version, or followed by something.
func TestParseSalvageRefuses(t *testing.T) {
	whole := SalvageUpload{Sealings: [][]byte{{1, 2}}, Frames: [][]byte{{3, 4, 5}}}.Encode()
	for n := range whole {
		if _, err := ParseSalvage(whole[:n]); err == nil {
			t.Errorf("cut off after %d bytes of %d: no error", n, len(whole))
		}
	}
	many := SalvageUpload{}
	for range MaxSalvageItems + 1 {
		many.Frames = append(many.Frames, []byte{1})
	}
	for why, data := range map[string][]byte{
		"1 bytes follow its end": append(bytes.Clone(whole), 0),
		"different versions":     []byte("wardlink salvage 2\n\x00"),
		"kind 3":                 append([]byte(salvageMagic), 3, 0, 0, 0, 1, 1, 0),
		"expected 1 to 65536":    append([]byte(salvageMagic), 1, 0, 1, 0, 1),
		"expected 1 to 262144":   append([]byte(salvageMagic), 2, 0, 0, 0, 0),
		"more than 1024 items":   many.Encode(),
		"at most 4194304":        make([]byte, MaxSalvageBytes+1),
		"cut off":                append([]byte(salvageMagic), 2, 0, 0, 0, 9, 1),
	} {
		if _, err := ParseSalvage(data); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v; expected %q", err, why)
		}
	}
}
