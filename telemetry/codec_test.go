package telemetry

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// random makes valid batches of every shape: few or many messages, columns that collapse and columns that do not, extremes.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 1))} }

func (r random) text() string {
	return []string{"", "", "98", "147842", "MDC_ECG_HEART_RATE", "ü°C", strings.Repeat("x", r.IntN(300)), "\x00\r|^~\\&"}[r.IntN(8)]
}

func (r random) number() int64 {
	return []int64{0, 1, -1, 1700000000000, math.MaxInt64, math.MinInt64, r.Int64()}[r.IntN(7)]
}

func (r random) batch() Batch {
	var b Batch
	for i := range b.Boot {
		b.Boot[i] = byte(r.Uint32())
	}
	pool := make([]Observation, 1+r.IntN(6))
	for i := range pool {
		pool[i] = Observation{
			Type: r.text(), Code: Code{MDC: r.Uint32(), ID: r.text(), Name: r.text(), Sys: r.text()}, SubID: r.text(),
			Unit: Unit{Sent: r.text(), UCUM: r.text()}, Limits: r.text(), Device: r.text(), Flags: r.text(), Status: r.text(),
			Time: r.text(), At: r.number(), Bed: []string{"", "", "ICU-8"}[r.IntN(3)],
		}
	}
	patients := []Patient{{}, {ID: r.text(), Authority: r.text(), Location: r.text(), Visit: r.text()}}
	for range 1 + r.IntN(12) {
		m := Message{
			Source: "bed-1", Copy: uint32(r.IntN(2)) * r.Uint32(), Received: Stamp{Wall: r.number(), Mono: r.number()},
			Type: "ORU^R01", ControlID: r.text(), Sender: r.text(), Processing: "T", SentAt: r.text(), Patient: patients[r.IntN(2)],
		}
		for i := range m.Digest {
			m.Digest[i] = byte(r.Uint32())
		}
		m.Bed = []string{"", "", "ICU-7", r.text()}[r.IntN(4)]
		index := uint32(r.IntN(3))
		for range r.IntN(9) {
			o := pool[r.IntN(len(pool))]
			o.Index = index
			if r.IntN(4) > 0 {
				o.Value, o.Marks = r.text(), Marks(r.Uint32())
			}
			if r.IntN(4) == 0 {
				o.Time, o.At, o.Flags, o.Status = r.text(), r.number(), r.text(), r.text()
			}
			m.Observations = append(m.Observations, o)
			index += 1 + uint32(r.IntN(2))*uint32(r.IntN(1000))
		}
		for range r.IntN(3) {
			w := r.waveform(pool[r.IntN(len(pool))])
			w.Index, index = index, index+1
			m.Waveforms = append(m.Waveforms, w)
		}
		if r.IntN(3) == 0 {
			m.Raw = []byte("MSH|^~\\&|\xff\xfe" + r.text())
			m.Problems = []Problem{{Where: "OBX[3]-6", Reason: "unit is not known"}, {Reason: r.text()}}
		}
		b.Messages = append(b.Messages, m)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	other := mustEncode(t, vitals(40, 20))
	for seed := range uint64(400) {
		b := newRandom(seed).batch()
		data, err := Encode(b)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		again, err := Encode(newRandom(seed).batch())
		if err != nil || !bytes.Equal(data, again) {
			t.Fatalf("seed %d: the same batch gave different bytes (%v)", seed, err)
		}
		got, err := Decode(data)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		// The pooled buffers are overwritten here: whatever still pointed into them would show.
		if _, err := Decode(other); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b, got); d != "" {
			t.Fatalf("seed %d: decode(encode(b)) is not b:\n%s", seed, d)
		}
	}
}

func mustEncode(t testing.TB, b Batch) []byte {
	t.Helper()
	data, err := Encode(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// vitals is a minute of a plain monitor's numerics, as the demo's monitor sends them.
func vitals(messages, readings int) Batch {
	r := rand.New(rand.NewPCG(7, 7))
	b := Batch{Boot: [16]byte{1, 2, 3}}
	for i := range messages {
		sent := fmt.Sprintf("202611221430%02d.000+0000", i%60)
		m := Message{
			Source: "icu-bed-12", Digest: [32]byte{byte(i), byte(i >> 8), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), 9, 8, 7},
			Received: Stamp{Wall: 1795357800000 + int64(i)*1000 + r.Int64N(9), Mono: 86400000 + int64(i)*1000}, Type: "ORU^R01^ORU_R01",
			ControlID: fmt.Sprintf("WL%08d", i), Sender: "MONITOR", Processing: "P", SentAt: sent,
			Patient: Patient{ID: "MRN-004711", Authority: "HOSP^1.2.3.4^ISO", Location: "ICU^12^A", Visit: "V-90210"},
		}
		for j := range readings {
			m.Observations = append(m.Observations, Observation{
				Index: uint32(j), Type: "NM", Code: Code{MDC: 147842 + uint32(j)*4, ID: fmt.Sprint(147842 + j*4), Name: names[j%len(names)], Sys: "MDC"},
				Value: fmt.Sprintf("%d.%d", 60+j+r.IntN(20), r.IntN(10)), Unit: Unit{Sent: "264864^MDC_DIM_BEAT_PER_MIN^MDC", UCUM: "{beat}/min"},
				SubID: fmt.Sprintf("1.1.1.%d", j), Limits: "50-120", Status: "F", Time: sent, At: 1795357800000 + int64(i)*1000,
				Device: "0003B1FFFE000001^^0003B1FFFE000001^EUI-64",
			})
		}
		b.Messages = append(b.Messages, m)
	}
	return b
}

var names = []string{"MDC_ECG_HEART_RATE", "MDC_PULS_OXIM_SAT_O2", "MDC_PRESS_BLD_ART_ABP_SYS", "MDC_PRESS_BLD_ART_ABP_DIA", "MDC_RESP_RATE", "MDC_TEMP_BLD"}

func TestEncodeKeepsEverythingUnlessItIsNotUTF8(t *testing.T) {
	b := vitals(1, 2)
	b.Messages[0].Observations[1].Value = "a\xff\xfeb"
	b.Messages[0].Patient.ID = "\xe9" + strings.Repeat("é", 10)
	got, err := Decode(mustEncode(t, b))
	if err != nil {
		t.Fatal(err)
	}
	b.Messages[0].Observations[1].Value = "a?b"
	b.Messages[0].Patient.ID = "?" + strings.Repeat("é", 10)
	if d := cmp.Diff(b, got); d != "" {
		t.Error(d)
	}
}

func TestEncodeLimits(t *testing.T) {
	many := func(n int) []Observation {
		os := make([]Observation, n)
		for i := range os {
			os[i].Index = uint32(i)
		}
		return os
	}
	noise := make([]byte, MaxMessage)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(noise)
	long := Observation{Device: strings.Repeat("d", MaxText)}
	expanded := make([]Observation, MaxExpanded/MaxText+1)
	for i := range expanded {
		expanded[i] = long
		expanded[i].Index = uint32(i)
	}
	tests := map[string]struct {
		batch    Batch
		tooLarge bool
	}{
		"no message":        {Batch{}, false},
		"messages":          {Batch{Messages: make([]Message, MaxMessages+1)}, true},
		"rows":              {Batch{Messages: []Message{{Observations: many(MaxRows)}, {Observations: many(1)}}}, true},
		"problems":          {Batch{Messages: []Message{{Problems: make([]Problem, MaxRows+1)}}}, true},
		"raw":               {Batch{Messages: []Message{{Raw: make([]byte, MaxMessage+1)}}}, true},
		"text":              {Batch{Messages: []Message{{SentAt: strings.Repeat("x", MaxText+1)}}}, true},
		"problem text":      {Batch{Messages: []Message{{Problems: []Problem{{Where: strings.Repeat("x", MaxText+1)}}}}}, true},
		"expanded text":     {Batch{Messages: []Message{{Observations: expanded}}}, true},
		"same index twice":  {Batch{Messages: []Message{{Observations: make([]Observation, 2)}}}, false},
		"descending index":  {Batch{Messages: []Message{{Observations: []Observation{{Index: 2}, {Index: 1}}}}}, false},
		"encoded too large": {Batch{Messages: []Message{{Raw: noise}, {Raw: noise}, {Raw: noise}, {Raw: noise}, {Raw: noise}}}, true},
		"plain too large":   {Batch{Messages: slicesOf(17, Message{Raw: make([]byte, MaxMessage)})}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Encode(test.batch)
			if err == nil || errors.Is(err, ErrTooLarge) != test.tooLarge {
				t.Errorf("error %v; too large expected: %v", err, test.tooLarge)
			}
		})
	}
	for name, b := range map[string]Batch{
		"rows at the limit": {Messages: []Message{{Observations: many(MaxRows)}}},
		"raw, of noise, worst texts": {Messages: []Message{RawOnly(Message{
			ControlID: string(noise[:MaxMessage/2]), SentAt: string(noise[MaxMessage/2:]), Observations: make([]Observation, 9),
		}, noise)}},
	} {
		data, err := Encode(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if _, err := Decode(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func slicesOf[T any](n int, v T) []T {
	s := make([]T, n)
	for i := range s {
		s[i] = v
	}
	return s
}

func valid() wireBatch {
	return *newWireBatch(new(vitals(3, 2)))
}

func TestDecodeRefuses(t *testing.T) {
	tests := map[string]func(w *wireBatch){
		"version":               func(w *wireBatch) { w.Version = batchLatest + 1 },
		"bed of version 1":      func(w *wireBatch) { w.Contexts[0].Bed = "ICU-7" },
		"device's bed of 2":     func(w *wireBatch) { w.Version, w.Series[1].Bed = 2, "ICU-7" },
		"version 0":             func(w *wireBatch) { w.Version = 0 },
		"boot":                  func(w *wireBatch) { w.Boot = w.Boot[:15] },
		"no messages":           func(w *wireBatch) { w.Messages.Digests, w.Series = nil, nil },
		"half a digest":         func(w *wireBatch) { w.Messages.Digests = w.Messages.Digests[:80] },
		"messages over limit":   func(w *wireBatch) { w.Messages = wireMessages{Digests: make([]byte, 32*(MaxMessages+1))} },
		"context out of range":  func(w *wireBatch) { w.Messages.Context = []uint32{0, 0, 1} },
		"context huge":          func(w *wireBatch) { w.Messages.Context = []uint32{math.MaxUint32} },
		"contexts short":        func(w *wireBatch) { w.Messages.Context = []uint32{0, 0} },
		"copies short":          func(w *wireBatch) { w.Messages.Copy = []uint32{0, 0} },
		"wall of one cell":      func(w *wireBatch) { w.Messages.Wall = []int64{5} },
		"mono long":             func(w *wireBatch) { w.Messages.Mono = make([]int64, 4) },
		"control ids long":      func(w *wireBatch) { w.Messages.ControlIDs = make([]string, 4) },
		"sent-at short":         func(w *wireBatch) { w.Messages.SentAt = make([]string, 2) },
		"at short":              func(w *wireBatch) { w.Times.At = w.Times.At[:1] },
		"no times":              func(w *wireBatch) { w.Times = nil },
		"time out of range":     func(w *wireBatch) { w.Series[1].Time = []int64{0, 1, 2} },
		"time negative":         func(w *wireBatch) { w.Series[1].Time = []int64{0, -1, 2} },
		"message out of range":  func(w *wireBatch) { w.Series[1].Message = []int64{0, 1, 2} },
		"message negative":      func(w *wireBatch) { w.Series[1].Message = []int64{-1, 1, 2} },
		"message overflow":      func(w *wireBatch) { w.Series[1].Message = []int64{1, math.MaxInt64, 2} },
		"messages of one cell":  func(w *wireBatch) { w.Series[1].Message = []int64{1} },
		"rows over limit":       func(w *wireBatch) { w.Series[1] = wireSeries{Rows: MaxRows + 1} },
		"rows huge":             func(w *wireBatch) { w.Series[1] = wireSeries{Rows: math.MaxUint32} },
		"rows in sum":           func(w *wireBatch) { w.Series = append(w.Series, wireSeries{Rows: MaxRows}) },
		"index twice in series": func(w *wireBatch) { w.Series[1].Message = nil },
		"index twice":           func(w *wireBatch) { w.Series[1].Index = nil },
		"indexes short":         func(w *wireBatch) { w.Series[1].Index = []uint32{1, 1} },
		"values short":          func(w *wireBatch) { w.Series[1].Value = w.Series[1].Value[:2] },
		"flags long":            func(w *wireBatch) { w.Series[1].Flags = make([]string, 4) },
		"status short":          func(w *wireBatch) { w.Series[1].Status = make([]string, 2) },
		"marks short":           func(w *wireBatch) { w.Series[1].Marks = make([]byte, 2) },
		"extra out of range":    func(w *wireBatch) { w.Extras = []wireExtra{{Message: 3}} },
		"extra twice":           func(w *wireBatch) { w.Extras = []wireExtra{{Message: 2}, {Message: 2}} },
		"raw too long":          func(w *wireBatch) { w.Extras = []wireExtra{{Raw: make([]byte, MaxMessage+1)}} },
		"text too long":         func(w *wireBatch) { w.Series[1].Device = strings.Repeat("x", MaxText+1) },
		"text times rows": func(w *wireBatch) {
			index := make([]uint32, 1000)
			for i := range index {
				index[i] = uint32(i) + 2
			}
			w.Series = append(w.Series, wireSeries{Device: strings.Repeat("x", MaxText), Rows: 1000, Index: index})
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			w := valid()
			change(&w)
			if _, err := Decode(packed(t, w)); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := Decode(packed(t, valid())); err != nil {
		t.Errorf("the unchanged batch: %v", err)
	}
}

func packed(t testing.TB, v any) []byte {
	t.Helper()
	plain, err := encoding.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	data, err := pack(plain)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecodeRefusesForeignCBOR(t *testing.T) {
	plain, err := encoding.Marshal(valid())
	if err != nil {
		t.Fatal(err)
	}
	b := valid()
	tests := map[string][]byte{
		"empty":          {},
		"codec only":     {codecPlain},
		"codec 2":        append([]byte{2}, plain...),
		"trailing byte":  append(append([]byte{codecPlain}, plain...), 0),
		"cut":            append([]byte{codecPlain}, plain[:len(plain)-1]...),
		"not a map":      {codecPlain, 0x80},
		"indefinite map": {codecPlain, 0xbf, 0xff},
		"tag":            append([]byte{codecPlain, 0xc1}, plain...),
		"duplicate key":  {codecPlain, 0xa2, 0x01, 0x01, 0x01, 0x01},
		"unknown key":    packed(t, map[int]any{1: 1, 2: b.Boot, 3: b.Contexts, 4: b.Messages, 5: b.Times, 6: b.Series, 31: []int{}}),
		"text key":       packed(t, map[any]any{1: 1, 2: b.Boot, 3: b.Contexts, 4: b.Messages, "6": b.Series}),
		"deep":           append([]byte{codecPlain, 0xa1, 0x03}, bytes.Repeat([]byte{0x81}, 5000)...),
		"huge array":     {codecPlain, 0xa1, 0x03, 0x9a, 0xff, 0xff, 0xff, 0xff},
		"huge string":    {codecPlain, 0xa1, 0x02, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"tag within":     replaced(t, plain, "\xa6\x01\x01", "\xa6\x01\xc1\x01"),
		"indefinite":     append(replaced(t, plain, "\xa6\x01", "\xbf\x01"), 0xff),
		"null":           replaced(t, plain, "\xa6\x01\x01", "\xa6\x01\xf6"),
		"after deflate":  append(deflated(t, plain), 0),
		"cut deflate":    deflated(t, plain)[:50],
		"over-long":      append([]byte{codecPlain}, make([]byte, MaxEncoded)...),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(data); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := Decode(append([]byte{codecPlain}, plain...)); err != nil {
		t.Errorf("the plain form: %v", err)
	}
}

// replaced is the plain form of an encoded batch with a part of its CBOR exchanged.
func replaced(t testing.TB, plain []byte, from, to string) []byte {
	t.Helper()
	if !bytes.HasPrefix(plain, []byte(from)) {
		t.Fatalf("the batch does not begin with %x", from)
	}
	return append([]byte{codecPlain}, to+string(plain[len(from):])...)
}

func TestInflateStopsAtTheLimit(t *testing.T) {
	for size, ok := range map[int]bool{MaxPlain: true, MaxPlain + 1: false, 100 << 20: false} {
		var buf bytes.Buffer
		out, err := unpack(deflated(t, make([]byte, size)), &buf)
		if (err == nil) != ok || ok && len(out) != size || buf.Len() > MaxPlain+1 {
			t.Errorf("%d bytes: %d bytes, %v, %d read", size, len(out), err, buf.Len())
		}
	}
}

// The tables are bounded before anything is made from them, not only in what comes out.
func TestTablesAreBoundedFirst(t *testing.T) {
	w := valid()
	w.Series = []wireSeries{{Rows: MaxRows}, {}}
	if _, err := w.rows(); err == nil {
		t.Error("a row more than a batch may have was accepted")
	}
	w.Messages = wireMessages{Digests: make([]byte, 32*(MaxMessages+1))}
	if _, err := w.messages(); err == nil {
		t.Error("a message more than a batch may have was accepted")
	}
}

// What WIRE.md promises of the writer: patients apart, in the order of their first use, columns as short as they can be.
func TestSeriesOfTwoPatients(t *testing.T) {
	b := vitals(4, 1)
	b.Messages[1].Patient.ID, b.Messages[3].Patient.ID = "another", "another"
	w := newWireBatch(&b)
	if len(w.Contexts) != 2 || len(w.Series) != 2 || w.Contexts[1].Patient != "another" {
		t.Fatalf("%d contexts, %d series", len(w.Contexts), len(w.Series))
	}
	if d := cmp.Diff([][]int64{{0, 2}, {1, 2}}, [][]int64{w.Series[0].Message, w.Series[1].Message}); d != "" {
		t.Error(d)
	}
	if s := w.Series[0]; len(s.Index) != 0 || len(s.Status) != 1 || s.Marks != nil || len(s.Value) != 2 {
		t.Errorf("columns are not collapsed: %+v", s)
	}
}

func deflated(t testing.TB, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	out.WriteByte(codecDeflate)
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(plain)
	w.Close()
	return out.Bytes()
}

func TestPackChoosesTheSmaller(t *testing.T) {
	noise := make([]byte, 1000)
	rand.NewChaCha8([32]byte{2}).Read(noise)
	for want, plain := range map[byte][]byte{codecPlain: noise, codecDeflate: make([]byte, 1000)} {
		got, err := pack(plain)
		if err != nil || got[0] != want || len(got) > len(plain)+1 {
			t.Errorf("codec %d of %d bytes (%v); expected codec %d", got[0], len(got), err, want)
		}
	}
}

// Errors end up in logs: neither a hostile sealer's bytes nor a value may be quoted in them.
func TestErrorsHoldNoValues(t *testing.T) {
	w := valid()
	w.Series[0].CodeName = "SECRET"
	w.Series[0].Value = []string{"SECRET", "x"}
	repeated := []byte("\x00\xa2\x66SECRET\x01\x66SECRET\x01")
	b := valid()
	for name, data := range map[string][]byte{
		"columns":  packed(t, w),
		"repeated": repeated,
		"type":     packed(t, map[int]any{1: "SECRET"}),
		"overflow": packed(t, map[int]any{1: 1, 2: b.Boot, 3: b.Contexts, 4: map[int]any{1: b.Messages.Digests, 2: []uint64{54321543215432}}}),
		"key":      packed(t, map[any]any{1: 1, "SECRET": 1}),
	} {
		_, err := Decode(data)
		if err == nil || strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "54321") {
			t.Errorf("%s: %v", name, err)
		}
	}
	batch := vitals(1, 2)
	batch.Messages[0].Observations[0].Value = "SECRET"
	batch.Messages[0].Observations[1].Index = 0
	if _, err := Encode(batch); err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("encode: %v", err)
	}
}
