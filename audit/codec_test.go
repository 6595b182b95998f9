package audit

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
)

func TestEventRoundTrip(t *testing.T) {
	for _, ev := range []Event{
		testEvent(1),
		{ID: testID(2), Type: Refused, Outcome: Denied},
		{
			ID: testID(3), Type: RecordsRead, Time: 1, Actor: Actor{ID: "spiffe://ward.example/access/ehr"}, Session: testID(9), Target: "Observation",
			Outcome: Success, Reason: "ü", Count: 7, Detail: map[string]string{"b": "", "a": "x", "aa": "y"},
		},
	} {
		data, err := EncodeEvent(ev)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeEvent(data)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(ev, got); d != "" {
			t.Error(d)
		}
		if data[0]>>5 != 5 || !bytes.Equal(data[1:3], []byte{1, 0x50}) || !bytes.Equal(data[3:19], ev.ID[:]) {
			t.Errorf("the event id is not first: %x", data[:24])
		}
	}
}

func TestRowRoundTrip(t *testing.T) {
	want := testRow(3)
	data, err := EncodeRow(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRow(data)
	if err != nil || got != want {
		t.Errorf("%+v, %v; expected %+v", got, err, want)
	}
}

// TestGreatestEvent: whatever is valid fits a leaf.
func TestGreatestEvent(t *testing.T) {
	ev := Event{
		ID: testID(1), Type: Type(strings.Repeat("t", maxShort)), Time: 1 << 62, Outcome: Success, Session: testID(1), Count: 1 << 63,
		Actor: Actor{strings.Repeat("a", maxActor), strings.Repeat("0", maxShort)},
		Peer:  strings.Repeat("p", maxName), Target: strings.Repeat("t", maxText), Reason: strings.Repeat("r", maxText), Detail: map[string]string{},
	}
	for i := range maxDetail {
		ev.Detail[string(rune('A'+i))+strings.Repeat("k", maxShort-1)] = strings.Repeat("v", maxText)
	}
	data, err := EncodeEvent(ev)
	if err != nil || len(data) > 38<<10 {
		t.Fatalf("%d bytes, %v; expected at most 38 KB", len(data), err)
	}
	if leaf, err := DecodeLeaf(data); err != nil || leaf.Event == nil {
		t.Errorf("leaf: %v", err)
	}
	r := testRow(1)
	r.Gateway, r.Peer = strings.Repeat("g", maxName), strings.Repeat("p", maxName)
	r.Serial, r.Verdict = strings.Repeat("0", maxShort), strings.Repeat("v", maxShort)
	r.Lane, r.Number, r.Received = 255, 1<<63, 1<<62
	if data, err := EncodeRow(r); err != nil || len(data) > MaxRow {
		t.Errorf("greatest row: %d bytes, %v", len(data), err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(ev *Event){
		"no id":           func(ev *Event) { ev.ID = EventID{} },
		"no type":         func(ev *Event) { ev.Type = "" },
		"window":          func(ev *Event) { ev.Type = "window" },
		"no outcome":      func(ev *Event) { ev.Outcome = "" },
		"time":            func(ev *Event) { ev.Time = -1 },
		"long reason":     func(ev *Event) { ev.Reason = strings.Repeat("x", maxText+1) },
		"no UTF-8":        func(ev *Event) { ev.Target = "\xff" },
		"long key":        func(ev *Event) { ev.Detail = map[string]string{strings.Repeat("x", maxShort+1): ""} },
		"too many detail": func(ev *Event) { ev.Detail = map[string]string{}; fill(ev.Detail, maxDetail+1) },
	} {
		ev := testEvent(1)
		change(&ev)
		if _, err := EncodeEvent(ev); err == nil {
			t.Errorf("event: %s was encoded", name)
		}
	}
	for name, change := range map[string]func(r *Row){
		"no id":        func(r *Row) { r.ID = EventID{} },
		"no gateway":   func(r *Row) { r.Gateway = "" },
		"no verdict":   func(r *Row) { r.Verdict = "" },
		"long gateway": func(r *Row) { r.Gateway = strings.Repeat("g", maxName+1) },
		"time":         func(r *Row) { r.Received = -1 },
	} {
		r := testRow(1)
		change(&r)
		if _, err := EncodeRow(r); err == nil {
			t.Errorf("row: %s was encoded", name)
		}
	}
}

func fill(m map[string]string, n int) {
	for i := range n {
		m[strings.Repeat("k", i+1)] = "v"
	}
}

// TestDecodeStrict: other encodings of the same event are not the event.
func TestDecodeStrict(t *testing.T) {
	good, err := EncodeEvent(Event{ID: testID(2), Type: Refused, Outcome: Denied})
	if err != nil {
		t.Fatal(err)
	}
	id := append([]byte{1, 0x50}, good[3:19]...)
	rest := good[19:]
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, data := range map[string][]byte{
		"empty":          {},
		"not a map":      {0x01},
		"trailing byte":  join(good, []byte{0}),
		"cut":            good[:len(good)-1],
		"long map head":  join([]byte{0xb8, good[0] & 31}, good[1:]),
		"indefinite":     join([]byte{0xbf}, good[1:], []byte{0xff}),
		"unknown key":    join([]byte{good[0] + 1}, good[1:], []byte{0x18, 31, 0}),
		"unknown text":   join([]byte{good[0] + 1}, good[1:], []byte{0x61, 'x', 0}),
		"key twice":      join([]byte{good[0] + 1}, id, id, rest),
		"short id":       join([]byte{good[0]}, []byte{1, 0x4f}, good[4:19], rest),
		"long id":        join([]byte{good[0]}, []byte{1, 0x51, 9}, good[3:19], rest),
		"tag":            join([]byte{0xc0}, good),
		"over the limit": bytes.Repeat([]byte{0}, MaxLeaf+1),
	} {
		if _, err := DecodeEvent(data); err == nil {
			t.Errorf("%s: decoded", name)
		}
		if _, err := DecodeLeaf(data); err == nil {
			t.Errorf("%s: decoded as leaf", name)
		}
	}
}

func TestWindowLeaf(t *testing.T) {
	w, hashes, err := NewWindow(testOrigin, 3, 9, 5, [][]byte{{1}, {2}, {3}})
	if err != nil || len(hashes) != 3 {
		t.Fatal(err)
	}
	data, err := EncodeWindow(w)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := DecodeLeaf(data)
	if err != nil || leaf.Event != nil || *leaf.Window != w || leaf.ID() != w.ID || leaf.Time() != 5 {
		t.Errorf("%+v, %v", leaf, err)
	}
	for name, change := range map[string]func(w *Window){
		"no rows":        func(w *Window) { w.Count = 0 },
		"too many":       func(w *Window) { w.Last, w.Count = 1<<40, MaxWindowRows+1 },
		"more than span": func(w *Window) { w.Count = 8 },
		"backward":       func(w *Window) { w.Last = 2 },
		"from zero":      func(w *Window) { w.First = 0 },
		"type":           func(w *Window) { w.Type = "windows" },
		"id":             func(w *Window) { w.ID = EventID{} },
	} {
		bad := w
		change(&bad)
		if _, err := EncodeWindow(bad); err == nil {
			t.Errorf("%s: encoded", name)
		}
		data, err := encMode.Marshal(bad)
		if err != nil {
			t.Fatal(err)
		}
		if leaf, err := DecodeLeaf(data); err == nil {
			t.Errorf("%s: decoded as %+v", name, leaf)
		}
	}
	ids := map[EventID]bool{}
	for _, id := range []EventID{WindowID("a", 1, 2), WindowID("b", 1, 2), WindowID("a", 1, 3), WindowID("a", 2, 2)} {
		ids[id] = true
	}
	if len(ids) != 4 {
		t.Error("window ids do not follow from origin, first and last")
	}
}

// TestTree compares our trees and proofs with tlog's, which has its own way to build them.
func TestTree(t *testing.T) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	var leaves []tlog.Hash
	for n := range int64(70) {
		if n > 0 {
			want, err := tlog.TreeHash(n, reader)
			if err != nil || treeRoot(leaves) != want {
				t.Fatalf("root of %d leaves: %v", n, err)
			}
			for i := range leaves {
				proof := treeProof(leaves, i)
				if err := tlog.CheckRecord(proof, n, want, int64(i), leaves[i]); err != nil {
					t.Fatalf("proof of leaf %d of %d: %v", i, n, err)
				}
			}
		}
		data := []byte{byte(n)}
		more, err := tlog.StoredHashes(n, data, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored, leaves = append(stored, more...), append(leaves, tlog.RecordHash(data))
	}
}

func TestWindowFileNames(t *testing.T) {
	for _, n := range []uint64{1, 4095, 4096, 1 << 24, 1<<64 - 2} {
		name := WindowFile(n, n+1, RowsSuffix)
		first, last, suffix, err := ParseWindowFile(name[strings.LastIndex(name, "/")+1:])
		if err != nil || first != n || last != n+1 || suffix != RowsSuffix {
			t.Errorf("%s: %d-%d%s, %v", name, first, last, suffix, err)
		}
	}
	for _, bad := range []string{"", ".rows", "1-2.rows", "0000000000000001-0000000000000002.row", "000000000000000A-000000000000000b.rows", "+000000000000001-0000000000000002.rows"} {
		if _, _, _, err := ParseWindowFile(bad); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

// TestRowIsWhatTheLibraryWrites: rows are encoded by hand, and every verifier reads what the library wrote.
func TestRowIsWhatTheLibraryWrites(t *testing.T) {
	texts := []string{"g", strings.Repeat("x", 23), strings.Repeat("y", 24), "räume", strings.Repeat("z", 64)}
	numbers := []uint64{0, 1, 23, 24, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1<<64 - 1}
	for i, n := range numbers {
		for j, text := range texts {
			r := Row{
				ID: EventID{1, byte(i)}, Session: EventID{15: byte(j)}, Gateway: text, Epoch: [16]byte{byte(n)}, Lane: uint8(n), Number: n,
				Frame: [32]byte{31: byte(n)}, Received: int64(n >> 1), Serial: texts[(j+1)%len(texts)], Peer: texts[(j+2)%len(texts)], Verdict: texts[(j+3)%len(texts)],
			}
			want, err := encMode.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := EncodeRow(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%x, %v; the library writes %x", got, err, want)
			}
			if back, err := DecodeRow(got); err != nil || back.Number != n || back.Received != r.Received {
				t.Fatalf("%+v, %v", back, err)
			}
		}
	}
}
