package audit

import (
	"bytes"
	"os"
	"testing"
)

// seeds adds the bytes of each, and each cut and with one bit turned.
func seeds(f *testing.F, all ...[]byte) {
	f.Helper()
	f.Add([]byte{})
	for _, data := range all {
		if len(data) == 0 {
			f.Fatal("an empty seed: its encoder failed")
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
		turned := bytes.Clone(data)
		turned[len(turned)/3] ^= 4
		f.Add(turned)
	}
}

func mustEncode(f *testing.F) func(data []byte, err error) []byte {
	return func(data []byte, err error) []byte {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
}

func FuzzDecodeLeaf(f *testing.F) {
	must := mustEncode(f)
	w, _, err := NewWindow(testOrigin, 1, 9, 1, [][]byte{{1}, {2}})
	if err != nil {
		f.Fatal(err)
	}
	more := testEvent(2)
	more.Extra, w.Extra = Extra(additions), Extra(additions)
	seeds(f, must(EncodeEvent(testEvent(1))), must(EncodeWindow(w)), must(EncodeEvent(Event{ID: testID(1), Type: Refused, Outcome: Denied})),
		must(EncodeEvent(more)))
	f.Fuzz(func(t *testing.T, data []byte) {
		leaf, err := DecodeLeaf(data)
		if err != nil {
			return
		}
		var again []byte
		if leaf.Window != nil {
			again, err = EncodeWindow(*leaf.Window)
		} else {
			again, err = EncodeEvent(*leaf.Event)
		}
		if err != nil || !bytes.Equal(again, data) || leaf.ID() == (EventID{}) {
			t.Errorf("%x decodes to %+v and encodes to %x, %v", data, leaf, again, err)
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	must := mustEncode(f)
	seeds(f, must(EncodeEvent(testEvent(1))), must(EncodeEvent(Event{ID: testID(1), Type: Refused, Outcome: Denied})))
	f.Fuzz(func(t *testing.T, data []byte) {
		ev, err := DecodeEvent(data)
		if err != nil {
			return
		}
		if again, err := EncodeEvent(ev); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x decodes to %+v and encodes to %x, %v", data, ev, again, err)
		}
	})
}

func FuzzDecodeRow(f *testing.F) {
	more := testRow(2)
	more.Extra = Extra(additions)
	seeds(f, mustEncode(f)(EncodeRow(testRow(1))), mustEncode(f)(EncodeRow(more)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if !compareRow(t, data) {
			return
		}
		r, err := DecodeRow(data)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := EncodeRow(r); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x decodes to %+v and encodes to %x, %v", data, r, again, err)
		}
	})
}

// FuzzWindowFiles reads both files of a window; what is read must be what was there.
func FuzzWindowFiles(f *testing.F) {
	must := mustEncode(f)
	detail := append(must(EncodeRow(testRow(1))), must(EncodeRow(testRow(2)))...)
	seeds(f, detail, bytes.Repeat([]byte{7}, 96))
	f.Fuzz(func(t *testing.T, data []byte) {
		if rows, err := parseDetail(data); err == nil && !bytes.Equal(bytes.Join(rows, nil), data) {
			t.Errorf("detail %x is read as %x", data, rows)
		}
		if hashes, err := parseRowHashes(data); err == nil && !bytes.Equal(AppendRowHashes(nil, hashes), data) {
			t.Errorf("row hashes %x are read as %x", data, hashes)
		}
	})
}

func FuzzEntryBundle(f *testing.F) {
	seeds(f, []byte{0, 1, 'a', 0, 0, 0, 2, 'b', 'c'}, bytes.Repeat([]byte{0}, 2*257))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseBundle(data)
		size := 0
		for _, e := range entries {
			size += 2 + len(e)
		}
		if err == nil && (size != len(data) || len(entries) > tileWidth) {
			t.Errorf("%d bytes are read as %d entries of %d", len(data), len(entries), size)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		f.Fatal(err)
	}
	signed := between(page, "```checkpoint\n", "```")
	vkey := string(bytes.TrimSpace(between(page, "```vkey\n", "```")))
	seeds(f, signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		cp, err := OpenCheckpoint(data, vkey)
		if err != nil {
			return
		}
		if unverified, err := UnverifiedCheckpoint(data); err != nil || unverified != cp || cp.Size != 3 {
			t.Errorf("%q opens as %+v, and unverified as %+v, %v", data, cp, unverified, err)
		}
	})
}

func FuzzCheckBundle(f *testing.F) {
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		f.Fatal(err)
	}
	vkey := string(bytes.TrimSpace(between(page, "```vkey\n", "```")))
	seeds(f, between(page, "```json bundle\n", "```"))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := CheckBundle(data, vkey)
		if err != nil {
			return
		}
		if v.Index != 1 || v.Window == nil || (v.Row != nil && *v.Row != testRow(3)) {
			t.Errorf("%s proves %+v", data, v)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add("0000000000000001-0000000000000002.rows")
	f.Add("0000000000000001-0000000000000002.detail")
	f.Add("00000007000000000000000000000001")
	f.Fuzz(func(t *testing.T, s string) {
		if first, last, suffix, err := ParseWindowFile(s); err == nil && WindowFile(first, last, suffix)[len("windows/0000000000/000/"):] != s {
			t.Errorf("%q is read as %d-%d%s", s, first, last, suffix)
		}
		if id, err := ParseEventID(s); err == nil && len(id.String()) != len(s) {
			t.Errorf("%q is read as %s", s, id)
		}
	})
}

func between(page []byte, open, end string) []byte {
	_, rest, _ := bytes.Cut(page, []byte(open))
	found, _, _ := bytes.Cut(rest, []byte(end))
	return found
}
