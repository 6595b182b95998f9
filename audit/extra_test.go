package audit

import (
	"bytes"
	"testing"
)

// Additions that a newer program might make: a number, a text, a map whose encoding is not deterministic (a long 1), a list of lists.
var additions = []byte{
	0x18, 32, 7,
	0x18, 33, 0x62, 'h', 'i',
	0x19, 1, 0, 0xa1, 0x61, 'k', 0x18, 1,
	0x19, 1, 1, 0x82, 0x81, 0x81, 0, 0xf6,
}

// grown puts pairs behind a leaf's own.
func grown(t *testing.T, leaf []byte, n byte, pairs []byte) []byte {
	t.Helper()
	if leaf[0]>>5 != 5 || leaf[0]&31+n > 23 {
		t.Fatalf("a leaf of %d pairs", leaf[0]&31)
	}
	return append(append([]byte{leaf[0] + n}, leaf[1:]...), pairs...)
}

// TestNewerLeafVerifies builds a log by a program of the future: verifier, proof and listing of today take it, and keep what they do
// not know as it stands.
func TestNewerLeafVerifies(t *testing.T) {
	m := newMaker(t)
	m.event()
	w := m.window(3)
	m.leaves[0] = grown(t, m.leaves[0], 4, additions)
	m.leaves[1] = grown(t, m.leaves[1], 4, additions)
	m.publish()
	if r, err := Verify(m.dir, m.vkey); err != nil || r.Leaves != 2 || r.Rows != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	const shown = `32, 7, 33, "hi", 256, {"k": 1}, 257, [[[0]], null]`
	for it, err := range List(m.dir, Filter{}) {
		m.must(err)
		var extra Extra
		if it.Event != nil {
			extra = it.Event.Extra
			if again, err := EncodeEvent(*it.Event); err != nil || !bytes.Equal(again, m.leaves[0]) {
				t.Errorf("event encodes to %x, %v", again, err)
			}
		} else {
			extra = it.Window.Extra
			if again, err := EncodeWindow(*it.Window); err != nil || !bytes.Equal(again, m.leaves[1]) {
				t.Errorf("window encodes to %x, %v", again, err)
			}
		}
		if extra != Extra(additions) || extra.String() != shown {
			t.Errorf("additions: %s", extra)
		}
	}
	b := prove(t, m, Query{Gateway: "gw-1", Lane: 1, Number: 3})
	v, err := CheckBundle(encoded(t, b), m.vkey)
	if err != nil || v.Window.Extra != Extra(additions) || v.Window.ID != w.ID || *v.Row != testRow(3) {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestNewerRow: a row may have further elements.
func TestNewerRow(t *testing.T) {
	old, err := EncodeRow(testRow(3))
	if err != nil {
		t.Fatal(err)
	}
	data := append(append([]byte{old[0] + 2}, old[1:]...), 0x18, 1, 0xa1, 0x18, 32, 0xf5)
	got, err := DecodeRow(data)
	want := testRow(3)
	want.Extra = Extra(data[len(old):])
	if err != nil || got != want || got.Extra.String() != `1, {32: true}` {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, err := EncodeRow(got); err != nil || !bytes.Equal(again, data) {
		t.Errorf("encodes to %x, %v", again, err)
	}
	if rows, err := parseDetail(append(bytes.Clone(data), old...)); err != nil || len(rows) != 2 || !bytes.Equal(rows[0], data) {
		t.Errorf("detail: %x, %v", rows, err)
	}
	for name, bad := range map[string][]byte{
		"cut off":      data[:len(data)-1],
		"one too many": append(bytes.Clone(data), 0),
		"one missing":  append([]byte{old[0] - 1}, old[1:]...),
		"too many":     append(append([]byte{0x98, 24}, old[1:]...), make([]byte, 13)...),
	} {
		if _, err := DecodeRow(bad); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// TestExtraBounds: the known part stays strict, and additions have limits.
func TestExtraBounds(t *testing.T) {
	leaf, err := EncodeEvent(testEvent(1))
	if err != nil {
		t.Fatal(err)
	}
	var most []byte
	for key := byte(32); key < 32+16; key++ {
		most = append(most, 0x18, key, 0)
	}
	// 8 known and 16 more: the map's head grows by a byte.
	wide := append(append([]byte{0xb8, leaf[0]&31 + 16}, leaf[1:]...), most...)
	ev, err := DecodeEvent(wide)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := EncodeEvent(ev); err != nil || !bytes.Equal(again, wide) {
		t.Errorf("encodes to %x, %v", again, err)
	}
	over := append(append([]byte{0xb8, leaf[0]&31 + 17}, leaf[1:]...), append(bytes.Clone(most), 0x18, 99, 0)...)
	nested := append(append([]byte{0x18, 40}, bytes.Repeat([]byte{0x81}, 9)...), 0)
	for name, data := range map[string][]byte{
		"17 additions":    over,
		"key twice":       grown(t, leaf, 2, []byte{0x18, 32, 0, 0x18, 32, 0}),
		"keys descending": grown(t, leaf, 2, []byte{0x18, 33, 0, 0x18, 32, 0}),
		"long key":        grown(t, leaf, 1, []byte{0x19, 0, 32, 0}),
		"negative key":    grown(t, leaf, 1, []byte{0x38, 32, 0}),
		"text key":        grown(t, leaf, 2, []byte{0x18, 32, 0, 0x61, 'x', 0}),
		"no value":        grown(t, leaf, 1, []byte{0x18, 32}),
		"tag":             grown(t, leaf, 1, []byte{0x18, 32, 0xc0, 0}),
		"indefinite":      grown(t, leaf, 1, []byte{0x18, 32, 0x9f, 0xff}),
		"nested":          grown(t, leaf, 1, nested),
		"trailing":        grown(t, leaf, 1, []byte{0x18, 32, 0, 0}),
		"known part":      grown(t, append(bytes.Clone(leaf[:len(leaf)-1]), 0xff), 1, []byte{0x18, 32, 0}),
	} {
		if _, err := DecodeLeaf(data); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}
