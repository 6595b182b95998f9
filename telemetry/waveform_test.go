package telemetry

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// waveform is a random waveform of a channel that a random reading names.
func (r random) waveform(o Observation) Waveform {
	decimal := func() string { return []string{"", "0", "-0.25", "0.001", "12345678901234567890.5"}[r.IntN(5)] }
	w := Waveform{
		Type: o.Type, Code: o.Code, Unit: o.Unit, SubID: o.SubID, Device: o.Device, Bed: o.Bed, Time: o.Time, At: o.At, Flags: r.text(), Status: o.Status,
		Marks: Marks(r.Uint32()), Label: r.text(), Period: []string{"2", "8", "2.777777777778"}[r.IntN(3)], Factor: decimal(), Origin: decimal(),
		Lower: decimal(), Upper: decimal(),
	}
	for range r.IntN(40) {
		w.Samples = append(w.Samples, []int32{0, 1, int32(r.IntN(4096)) - 2048, MissingSample, math.MaxInt32, -math.MaxInt32}[r.IntN(6)])
	}
	return w
}

// ecg is a signal of the shape that a monitor's has: a slow drift, noise of a few steps and a steep complex once a second.
func ecg(seed uint64, channels, seconds, rate int) Batch {
	r := rand.New(rand.NewPCG(seed, 7))
	b := Batch{Boot: [16]byte{1, 2, 3}}
	for s := range seconds {
		at := 1795357800000 + int64(s)*1000
		sent := fmt.Sprintf("202611221430%02d.000+0000", s%60)
		m := Message{
			Source: "icu-bed-12", Digest: [32]byte{byte(s), byte(s >> 8), byte(r.Uint32()), byte(r.Uint32()), 9, 8, 7}, Type: "ORU^W01^ORU_W01",
			Received: Stamp{Wall: at + 1000, Mono: at - 1795271400000}, ControlID: fmt.Sprintf("W%08d", s), Sender: "MONITOR", Processing: "P", SentAt: sent,
			Patient: Patient{ID: "MRN-004711", Authority: "HOSP^1.2.3.4^ISO", Location: "ICU^12^A"},
		}
		for c := range channels {
			w := Waveform{
				Index: uint32(2*c + 1), Type: "NA", Code: Code{MDC: 131329 + uint32(c), ID: fmt.Sprint(131329 + c), Name: "MDC_ECG_ELEC_POTL_I", Sys: "MDC"},
				Label: fmt.Sprint("lead ", c), Unit: Unit{Sent: "266418^MDC_DIM_MILLI_VOLT^MDC", UCUM: "mV"}, SubID: fmt.Sprintf("1.4.1.%d", c),
				Status: "F", Time: sent, At: at, Period: "2", Factor: "0.001", Origin: "0", Lower: "-2.048", Upper: "2.047",
			}
			for i := range rate {
				phase := float64(i) / float64(rate)
				v := 40*math.Sin(2*math.Pi*phase/5) + 900*math.Exp(-math.Pow((phase-0.3)*60, 2)) - 200*math.Exp(-math.Pow((phase-0.33)*60, 2)) +
					120*math.Exp(-math.Pow((phase-0.55)*18, 2)) + 4*r.NormFloat64()
				w.Samples = append(w.Samples, int32(math.Round(v)))
			}
			m.Waveforms = append(m.Waveforms, w)
		}
		b.Messages = append(b.Messages, m)
	}
	return b
}

func TestSampleTokens(t *testing.T) {
	for want, samples := range map[string][]int32{
		"":                                nil,
		"00":                              {MissingSample},
		"01":                              {0},
		"02 03":                           {-1, 0},
		"19 03 00 24 c801":                {12, 13, MissingSample, -5, -105},
		"7f 7e 01":                        {63, 0, 0},
		"8001 8101":                       {-64, 0},
		"ffffffff0f fcffffff1f 00":        {math.MaxInt32, -math.MaxInt32, MissingSample},
		"feffffff0f fdffffff1f 00":        {-math.MaxInt32, math.MaxInt32, MissingSample},
		"00 00 0b 00 01":                  {MissingSample, MissingSample, 5, MissingSample, 5},
		strings.Repeat("01", 3) + " 8080": nil,
	} {
		got := AppendSamples(nil, samples)
		text := strings.ReplaceAll(want, " ", "")
		if strings.HasSuffix(text, "8080") { // an unfinished token
			if _, err := ParseSamples(unhex(t, text), 10); err == nil {
				t.Error("an unfinished token was read")
			}
			continue
		}
		if fmt.Sprintf("%x", got) != text {
			t.Errorf("%v: tokens %x; expected %s", samples, got, text)
		}
		back, err := ParseSamples(got, len(samples))
		if err != nil || !cmp.Equal(back, samples) {
			t.Errorf("%x reads as %v, %v", got, back, err)
		}
		if len(samples) > 0 {
			if _, err := ParseSamples(got, len(samples)-1); err == nil {
				t.Errorf("%x: more samples than are allowed were read", got)
			}
		}
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var b []byte
	if _, err := fmt.Sscanf(s, "%x", &b); err != nil {
		t.Fatal(err)
	}
	return b
}

// One list of samples has one form: nothing else is read.
func TestSampleTokensAreCanonical(t *testing.T) {
	for name, tokens := range map[string]string{
		"padded":             "8100",
		"padded missing":     "8000",
		"cut":                "80",
		"beyond 64 bits":     "ffffffffffffffffff02",
		"a jump of 2^33":     "8180808040",
		"above 32 bits":      "ffffffff0f03",
		"the missing sample": "8080808010",
		"below it":           "828080801003",
	} {
		if got, err := ParseSamples(unhex(t, tokens), 100); err == nil {
			t.Errorf("%s: read as %v", name, got)
		}
	}
}

func FuzzParseSamples(f *testing.F) {
	f.Add([]byte{0x19, 3, 0, 0x24, 0xc8, 1})
	f.Add(AppendSamples(nil, []int32{math.MaxInt32, MissingSample, -math.MaxInt32}))
	f.Add([]byte{0x81, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		samples, err := ParseSamples(data, 1000)
		if err == nil && (!bytes.Equal(AppendSamples(nil, samples), data) || len(samples) > 1000) {
			t.Errorf("%x reads as %v", data, samples)
		}
	})
}

func TestVersionFollowsTheContents(t *testing.T) {
	plain, waves := vitals(1, 1), ecg(1, 1, 1, 10)
	if v := newWireBatch(&plain).Version; v != 1 {
		t.Errorf("a batch without waveforms is of version %d; readers of version 1 could not read it", v)
	}
	if v := newWireBatch(&waves).Version; v != 2 {
		t.Errorf("a batch of waveforms is of version %d", v)
	}
	for name, set := range map[string]func(m *Message){
		"message":     func(m *Message) { m.Bed = "ICU-7" },
		"observation": func(m *Message) { m.Observations[0].Bed = "ICU-7" },
		"waveform":    func(m *Message) { m.Waveforms[0].Bed = "ICU-7" },
	} {
		b := ecg(1, 1, 1, 10)
		b.Messages[0].Observations = []Observation{{Index: 99}}
		set(&b.Messages[0])
		if v := newWireBatch(&b).Version; v != 3 {
			t.Errorf("a batch with a %s's bed is of version %d", name, v)
		}
	}
	w := newWireBatch(&plain)
	w.Version = 2
	if _, err := Decode(packed(t, *w)); err != nil {
		t.Errorf("version 2 without its keys: %v", err)
	}
}

func TestDecodeRefusesWaveforms(t *testing.T) {
	valid := func() wireBatch {
		b := ecg(1, 2, 3, 5)
		b.Messages[0].Observations = []Observation{{Index: 0}}
		return *newWireBatch(&b)
	}
	tests := map[string]func(w *wireBatch){
		"version 1":            func(w *wireBatch) { w.Version = 1 },
		"message out of range": func(w *wireBatch) { w.Waveforms[1].Message = []int64{0, 1, 2} },
		"message negative":     func(w *wireBatch) { w.Waveforms[1].Message = []int64{-1, 1, 2} },
		"time out of range":    func(w *wireBatch) { w.Waveforms[1].Time = []int64{0, 9, 2} },
		"no times":             func(w *wireBatch) { w.Times, w.Series = nil, nil },
		"rows huge":            func(w *wireBatch) { w.Waveforms[1].Rows = math.MaxUint32 },
		"rows in sum": func(w *wireBatch) {
			w.Waveforms = append(w.Waveforms, wireWaveforms{Rows: MaxRows, Period: "2", Samples: make([][]byte, MaxRows)})
		},
		"rows without samples":      func(w *wireBatch) { w.Waveforms[0].Rows = 4 },
		"samples without rows":      func(w *wireBatch) { w.Waveforms[0].Samples = w.Waveforms[0].Samples[:2] },
		"samples beyond the rows":   func(w *wireBatch) { w.Waveforms[0].Samples = append(w.Waveforms[0].Samples, []byte{1}) },
		"samples of one cell":       func(w *wireBatch) { w.Waveforms[0].Samples = w.Waveforms[0].Samples[:1] },
		"no samples":                func(w *wireBatch) { w.Waveforms[0].Samples = nil },
		"samples cut":               func(w *wireBatch) { w.Waveforms[0].Samples[0] = []byte{0x80} },
		"more samples":              func(w *wireBatch) { w.Waveforms[0].Samples[0] = make([]byte, MaxSamples) },
		"indexes short":             func(w *wireBatch) { w.Waveforms[0].Index = []uint32{1, 1} },
		"index twice":               func(w *wireBatch) { w.Waveforms[1].Index = []uint32{1} },
		"index of an observation":   func(w *wireBatch) { w.Series[0].Index = []uint32{1} },
		"flags long":                func(w *wireBatch) { w.Waveforms[0].Flags = make([]string, 4) },
		"status short":              func(w *wireBatch) { w.Waveforms[0].Status = make([]string, 2) },
		"marks short":               func(w *wireBatch) { w.Waveforms[0].Marks = make([]byte, 2) },
		"no period":                 func(w *wireBatch) { w.Waveforms[0].Period = "" },
		"period 0":                  func(w *wireBatch) { w.Waveforms[0].Period = "0.00" },
		"period negative":           func(w *wireBatch) { w.Waveforms[0].Period = "-2" },
		"factor not a number":       func(w *wireBatch) { w.Waveforms[0].Factor = "1e3" },
		"origin not JSON's":         func(w *wireBatch) { w.Waveforms[0].Origin = "+1" },
		"origin with leading zeros": func(w *wireBatch) { w.Waveforms[0].Origin = "01" },
		"lower a bare point":        func(w *wireBatch) { w.Waveforms[0].Lower = "1." },
		"upper too long":            func(w *wireBatch) { w.Waveforms[0].Upper = strings.Repeat("1", MaxDecimal+1) },
		"label too long":            func(w *wireBatch) { w.Waveforms[0].Label = strings.Repeat("x", MaxText+1) },
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

// Samples are bounded before anything is made from them.
func TestSamplesAreBoundedFirst(t *testing.T) {
	w := wireBatch{Waveforms: []wireWaveforms{{Rows: 2, Samples: [][]byte{make([]byte, MaxSamples), {0}}}}}
	if _, err := w.waveRows(); err == nil {
		t.Error("a sample more than a batch may have was accepted")
	}
}

func TestEncodeLimitsOfSamples(t *testing.T) {
	w := Waveform{Period: "2", Samples: make([]int32, MaxSamples)}
	b := Batch{Messages: []Message{{Waveforms: []Waveform{w}}}}
	if got, err := Decode(mustEncode(t, b)); err != nil || len(got.Messages[0].Waveforms[0].Samples) != MaxSamples {
		t.Errorf("as many samples as are allowed: %v", err)
	}
	b.Messages = append(b.Messages, Message{Waveforms: []Waveform{{Period: "2", Samples: make([]int32, 1)}}})
	if _, err := Encode(b); err == nil || !strings.Contains(err.Error(), ErrTooLarge.Error()) {
		t.Errorf("one sample more: %v", err)
	}
}

// What one message can hold always fits: 64 KiB of text are at most 32,768 samples that differ as much as samples can.
func TestWidestMessageFits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	samples := make([]int32, 0, MaxMessage/2)
	for size := 0; size < MaxMessage; {
		s := r.Int32() * int32(1-2*r.IntN(2))
		samples, size = append(samples, s), size+len(fmt.Sprint(s))+1
	}
	m := Message{Waveforms: []Waveform{{Period: "2", Samples: samples}}, Raw: make([]byte, MaxMessage)}
	if _, err := Encode(Batch{Messages: []Message{m}}); err != nil {
		t.Errorf("%d samples: %v", len(samples), err)
	}
}

func BenchmarkEncodeWaveforms(b *testing.B) {
	for _, s := range []struct{ channels, seconds, rate int }{{1, 1, 500}, {8, 1, 500}, {8, 1, 125}, {8, 10, 500}} {
		b.Run(fmt.Sprintf("%dch-%ds-%dHz", s.channels, s.seconds, s.rate), func(b *testing.B) {
			batch := ecg(3, s.channels, s.seconds, s.rate)
			size := len(mustEncode(b, batch))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Encode(batch); err != nil {
					b.Fatal(err)
				}
			}
			samples := s.channels * s.seconds * s.rate
			b.ReportMetric(float64(samples)*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
			b.ReportMetric(float64(size)/float64(samples), "bytes/sample")
		})
	}
}
