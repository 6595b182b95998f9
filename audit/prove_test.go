package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func encoded(t *testing.T, b Bundle) []byte {
	t.Helper()
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func prove(t *testing.T, m *maker, q Query) Bundle {
	t.Helper()
	b, err := Prove(m.dir, m.vkey, q)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestProve proves every act of logs whose trees have different shapes.
func TestProve(t *testing.T) {
	for _, leaves := range []int{1, 2, 7, 257} {
		m := newMaker(t)
		for i := range leaves {
			if i%100 < 3 {
				m.window(1 + i%7)
			} else {
				m.event()
			}
		}
		m.publish()
		for it, err := range List(m.dir, Filter{Publishes: true}) {
			if err != nil {
				t.Fatal(err)
			}
			q := Query{Gateway: "gw-1", Lane: 1}
			if it.Row != nil {
				q.Number = it.Row.Number
			} else {
				q = Query{Event: it.Event.ID}
			}
			if leaves > 200 && it.Row == nil && it.Index%50 != 0 {
				continue // 257 searches from the start take their time
			}
			v, err := CheckBundle(encoded(t, prove(t, m, q)), m.vkey)
			if err != nil {
				t.Fatal(err)
			}
			if v.Origin != testOrigin || v.Size != uint64(leaves) || v.Index != it.Index || v.Root != m.root(m.leaves) {
				t.Errorf("verdict %+v", v)
			}
			switch {
			case it.Row != nil:
				if v.Row == nil || *v.Row != *it.Row || v.RowIndex != it.RowIndex || v.Window == nil || v.Event != nil {
					t.Errorf("verdict %+v for row %+v", v, it.Row)
				}
			case v.Event == nil || v.Event.ID != it.Event.ID || v.Row != nil:
				t.Errorf("verdict %+v for event %+v", v, it.Event)
			}
		}
	}
}

func TestProveByID(t *testing.T) {
	m := newMaker(t)
	m.event()
	w := m.window(3)
	m.publish()
	if v, err := CheckBundle(encoded(t, prove(t, m, Query{Event: w.ID})), m.vkey); err != nil || v.Window == nil || *v.Window != w || v.Row != nil {
		t.Errorf("window by its id: %+v, %v", v, err)
	}
	if v, err := CheckBundle(encoded(t, prove(t, m, Query{Event: testID(3)})), m.vkey); err != nil || v.Row == nil || v.Row.ID != testID(3) {
		t.Errorf("publish by its id: %+v, %v", v, err)
	}
}

func TestProveEpochs(t *testing.T) {
	m := newMaker(t)
	m.window(3, func(i int, r *Row) { r.Number = 5; r.Epoch = [16]byte{byte(i)} })
	m.window(2, func(_ int, r *Row) { r.Number = 6 }) // the same publish twice
	m.window(1, func(_ int, r *Row) { r.Gateway = "gw-2" })
	m.publish()
	_, err := Prove(m.dir, m.vkey, Query{Gateway: "gw-1", Lane: 1, Number: 5})
	for i := range 3 {
		epoch := [16]byte{byte(i)}
		if err == nil || !strings.Contains(err.Error(), hex.EncodeToString(epoch[:])) {
			t.Errorf("several epochs: %v; expected it to list %x", err, epoch)
		}
		b := prove(t, m, Query{Gateway: "gw-1", Lane: 1, Number: 5, Epoch: &epoch})
		if v, err := CheckBundle(encoded(t, b), m.vkey); err != nil || v.Row.Epoch != epoch {
			t.Errorf("epoch %x: %+v, %v", epoch, v, err)
		}
	}
	if b := prove(t, m, Query{Gateway: "gw-1", Lane: 1, Number: 6}); b.Row.Index != 0 {
		t.Errorf("a publish that came twice is proven by row %d; expected the first", b.Row.Index)
	}
	for _, q := range []Query{
		{Gateway: "gw-1", Lane: 1, Number: 7}, {Gateway: "gw-1", Lane: 0, Number: 6}, {Gateway: "gw-3", Lane: 1, Number: 6},
		{Gateway: "gw-1", Lane: 1, Number: 6, Epoch: &[16]byte{7}}, {Event: testID(999)},
	} {
		if _, err := Prove(m.dir, m.vkey, q); !errors.Is(err, ErrNotLogged) {
			t.Errorf("%s: %v; expected ErrNotLogged", q, err)
		}
	}
}

// TestProveDamaged: no bundle comes of a log that does not hold together.
func TestProveDamaged(t *testing.T) {
	for _, name := range []string{"tile/0/000.p/9", "tile/entries/000.p/9", WindowFile(1, 3, RowsSuffix), WindowFile(1, 3, DetailSuffix)} {
		m := newMaker(t)
		m.window(3)
		for range 8 {
			m.event()
		}
		m.publish()
		data, err := openDir(m.dir).read(name, 1<<20)
		m.must(err)
		data[40] ^= 1
		m.put(name, data)
		if _, err := Prove(m.dir, m.vkey, Query{Gateway: "gw-1", Lane: 1, Number: 2}); err == nil {
			t.Errorf("%s damaged: a proof was made", name)
		}
	}
}

// TestCheckBundleFlips changes every byte of every field that counts, and the shape around them; none may pass.
func TestCheckBundleFlips(t *testing.T) {
	m := newMaker(t)
	for range 3 {
		m.event()
	}
	m.window(5)
	m.event()
	m.publish()
	good := prove(t, m, Query{Gateway: "gw-1", Lane: 1, Number: 6})
	if _, err := CheckBundle(encoded(t, good), m.vkey); err != nil {
		t.Fatal(err)
	}
	reject := func(what string, b Bundle) {
		t.Helper()
		if _, err := CheckBundle(encoded(t, b), m.vkey); err == nil {
			t.Errorf("%s: the bundle still passes", what)
		}
	}
	flips := func(what string, field []byte, rebuild func([]byte) Bundle) {
		t.Helper()
		if len(field) == 0 {
			t.Errorf("%s is empty", what)
		}
		for i := range field {
			for _, bit := range []byte{0x01, 0x80} {
				changed := bytes.Clone(field)
				changed[i] ^= bit
				reject(what, rebuild(changed))
			}
		}
		reject(what+" cut", rebuild(field[:len(field)-1]))
		reject(what+" longer", rebuild(append(bytes.Clone(field), 0)))
		reject(what+" gone", rebuild(nil))
	}
	with := func(change func(b *Bundle)) Bundle {
		b := good
		row := *good.Row
		b.Row = &row
		change(&b)
		return b
	}
	flips("checkpoint", []byte(good.Checkpoint), func(v []byte) Bundle { return with(func(b *Bundle) { b.Checkpoint = string(v) }) })
	flips("leaf", good.Leaf, func(v []byte) Bundle { return with(func(b *Bundle) { b.Leaf = v }) })
	flips("row", good.Row.Row, func(v []byte) Bundle { return with(func(b *Bundle) { b.Row.Row = v }) })
	replace := func(proof [][]byte, i int, v []byte) [][]byte {
		out := append([][]byte{}, proof...)
		out[i] = v
		return out
	}
	for i, h := range good.Proof {
		flips("proof", h, func(v []byte) Bundle { return with(func(b *Bundle) { b.Proof = replace(b.Proof, i, v) }) })
	}
	for i, h := range good.Row.Proof {
		flips("row proof", h, func(v []byte) Bundle { return with(func(b *Bundle) { b.Row.Proof = replace(b.Row.Proof, i, v) }) })
	}
	for bit := range 64 {
		reject("index", with(func(b *Bundle) { b.Index ^= 1 << bit }))
		reject("row index", with(func(b *Bundle) { b.Row.Index ^= 1 << bit }))
	}
	reject("proof longer", with(func(b *Bundle) { b.Proof = append(b.Proof[:len(b.Proof):len(b.Proof)], make([]byte, 32)) }))
	reject("proof shorter", with(func(b *Bundle) { b.Proof = b.Proof[1:] }))
	reject("no row proof", with(func(b *Bundle) { b.Row.Proof = nil }))
	reject("version", with(func(b *Bundle) { b.Version = 2 }))
	reject("row of an event", with(func(b *Bundle) {
		ev := prove(t, m, Query{Event: testID(1)})
		b.Leaf, b.Proof, b.Index = ev.Leaf, ev.Proof, ev.Index
	}))
	other := newMaker(t)
	if _, err := CheckBundle(encoded(t, good), other.vkey); err == nil {
		t.Error("another key of the same name: the bundle passes")
	}
	if _, err := CheckBundle(encoded(t, with(func(b *Bundle) { b.Summary = map[string]string{"gateway": "lie"} })), m.vkey); err == nil {
		t.Error("a summary that lies to its reader passes")
	}
	if _, err := CheckBundle(encoded(t, with(func(b *Bundle) { b.Summary = nil })), m.vkey); err != nil {
		t.Errorf("without a summary: %v", err)
	}
}

func TestParseBundleRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"not JSON":      "{",
		"unknown field": `{"wardlink_proof":1,"extra":1}`,
		"two objects":   `{"wardlink_proof":1}{"wardlink_proof":1}`,
		"long":          `{"wardlink_proof":1,"checkpoint":"` + strings.Repeat("a", MaxBundle) + `"}`,
	} {
		if _, err := ParseBundle([]byte(data)); err == nil {
			t.Errorf("%s was parsed", name)
		}
	}
}

// TestParseBundleKeys: each key once and in its own letters, at every level. Programs differ in which of two they take.
func TestParseBundleKeys(t *testing.T) {
	m := newMaker(t)
	m.window(3)
	m.publish()
	good := string(encoded(t, prove(t, m, Query{Gateway: "gw-1", Lane: 1, Number: 2})))
	if _, err := ParseBundle([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ former, latter string }{
		{`"leaf":`, `"leaf": "", "leaf":`},
		{`"leaf":`, `"LEAF": "", "leaf":`},
		{`"leaf":`, `"Leaf":`},
		{`"checkpoint":`, `"chec\u212Apoint":`}, // the Kelvin sign folds to k
		{`"checkpoint":`, `"checkpoint": "x", "checkpoint":`},
		{`"row": {`, `"row": null, "row": {`},
		{`"row": {`, `"row": {"Index": 0, `},
		{`"row": {`, `"row": {"index": 0, `},
		{`"summary": {`, `"summary": {"act": "x", `},
		{`"summary": {`, `"summary": {}, "summary": {`},
	} {
		changed := strings.Replace(good, c.former, c.latter, 1)
		if changed == good {
			t.Errorf("%s is not in the bundle", c.former)
		}
		if _, err := ParseBundle([]byte(changed)); err == nil {
			t.Errorf("%s was parsed", c.latter)
		}
	}
	if _, err := CheckBundle([]byte(strings.Replace(good, `"summary": {`, `"summary": {"Act": "", `, 1)), m.vkey); err == nil {
		t.Error("a summary of something that is not proven passes")
	}
}

// TestCheckpointBase64: the unused last bits of a signature's base64 are not room for a change.
func TestCheckpointBase64(t *testing.T) {
	m := newMaker(t)
	m.event()
	signed := strings.TrimSuffix(string(m.publish()), "\n")
	last := signed[len(signed)-2] // before one "="
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	changed := signed[:len(signed)-2] + string(alphabet[strings.IndexByte(alphabet, last)^1]) + "=\n"
	if _, err := base64.StdEncoding.DecodeString(changed[strings.LastIndexByte(changed, ' ')+1 : len(changed)-1]); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCheckpoint([]byte(changed), m.vkey); err == nil {
		t.Error("a checkpoint with other bytes passes")
	}
}
