package audit

import (
	"bytes"
	"testing"
)

// FuzzDecodePack: what is accepted is bounded, in order, and comes back the same.
func FuzzDecodePack(f *testing.F) {
	for _, windows := range [][]Packed{
		{{First: 1, Last: 9, Data: []byte("rows")}},
		{{First: 1, Last: 1, Data: bytes.Repeat([]byte{7}, 5000)}, {First: 2, Last: 2}, {First: 4000, Last: 9000, Data: []byte("x")}},
	} {
		data, err := EncodePack(windows)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)-1])
		f.Add(append(data, 0))
	}
	f.Add([]byte(packMagic + "\xff\xff\xff\xff"))
	f.Add([]byte(packMagic + "\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		windows, err := DecodePack(data, 1)
		if err != nil {
			return
		}
		total := 0
		for i, w := range windows {
			total += len(w.Data)
			if w.Last < w.First || w.First >= 4096 || i > 0 && w.First <= windows[i-1].Last {
				t.Fatalf("window %d to %d", w.First, w.Last)
			}
		}
		if total > maxPackRaw {
			t.Fatalf("%d bytes", total)
		}
		again, err := EncodePack(windows)
		if err != nil {
			t.Fatal(err)
		}
		same, err := DecodePack(again, 1)
		if err != nil || len(same) != len(windows) {
			t.Fatal(err)
		}
	})
}

func TestPackNames(t *testing.T) {
	name := PackFile(0x12345678_9abcdef0, DetailSuffix)
	if name != "windows/123456789a/bcd.detail.pack" {
		t.Error(name)
	}
	if first, suffix, ok := parsePackFile("123456789a", "bcd.detail.pack"); !ok || first != 0x12345678_9abcd000 || suffix != DetailSuffix {
		t.Errorf("%x %s %v", first, suffix, ok)
	}
	for _, bad := range []string{"bcd.pack", "bcd.other.pack", "bc.rows.pack", "bcde.rows.pack", "BCD.rows.pack", "-cd.rows.pack", "bcd.rows"} {
		if _, _, ok := parsePackFile("123456789a", bad); ok {
			t.Error(bad)
		}
	}
}
