package bedside

import (
	"bytes"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Each format, from bytes written by hand after signal(5): three samples of two signals, the last sample of the second missing.
func TestFormats(t *testing.T) {
	for format, tc := range map[int]struct {
		data []byte
		want string
	}{
		16:  {[]byte{1, 0, 2, 0, 0xff, 0xff, 0, 1, 0xff, 0x7f, 0, 0x80}, "II=1,-1,32767 V=2,256,"},
		61:  {[]byte{0, 1, 0, 2, 0xff, 0xff, 1, 0, 0x7f, 0xff, 0x80, 0}, "II=1,-1,32767 V=2,256,"},
		160: {[]byte{1, 0x80, 2, 0x80, 0xff, 0x7f, 0, 0x81, 0xff, 0xff, 0, 0}, "II=1,-1,32767 V=2,256,"},
		80:  {[]byte{129, 130, 127, 138, 255, 0}, "II=1,-1,127 V=2,10,"},
		212: {[]byte{1, 0, 2, 0xff, 0x1f, 0, 0xff, 0x87, 0}, "II=1,-1,2047 V=2,256,"},
		24: {[]byte{1, 0, 0, 2, 0, 0, 0xff, 0xff, 0xff, 0, 0, 1, 0xff, 0xff, 0x7f, 0, 0, 0x80},
			"II=1,-1,8388607 V=2,65536,"},
		32: {[]byte{1, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0x80},
			"II=1,-1,2147483647 V=2,16777216,"},
	} {
		record := files{"x.dat": tc.data, "x.hea": two(format, 0, 0)}
		_, err := open("x", record.read)
		if err == nil || !strings.Contains(err.Error(), "checksum of x.dat is ") {
			t.Errorf("format %d: %v", format, err)
			continue
		}
		// The checksum is the sum of the samples as the table has them, not what the reader makes of the bytes.
		record["x.hea"] = two(format, sumOf(tc.want, "II="), sumOf(tc.want, "V=")+missingOf(format))
		r, err := open("x", record.read)
		if err != nil {
			t.Errorf("format %d: %v", format, err)
			continue
		}
		var got []string
		for row := range r.Replay(time.UnixMilli(0)) {
			for _, w := range row.Waves {
				line := w.Signal.Name + "="
				for i, s := range w.Samples {
					if i > 0 {
						line += ","
					}
					line += arrayText(s, w.Min)
				}
				got = append(got, line)
			}
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("format %d: %q, want %q", format, got, tc.want)
		}
	}
}

func two(format, sum1, sum2 int) []byte {
	return fmt.Appendf(nil, "x 2 100 3\nx.dat %d 200 12 0 0 %d 0 II\nx.dat %d 200 12 0 0 %d 0 V\n", format, uint16(sum1), format, uint16(sum2))
}

// sumOf adds up the numbers that follow a name.
func sumOf(text, name string) (sum int) {
	_, rest, _ := strings.Cut(text, name)
	list, _, _ := strings.Cut(rest, " ")
	for f := range strings.SplitSeq(list, ",") {
		var n int
		fmt.Sscan(f, &n)
		sum += n
	}
	return sum
}

// missingOf is the number that stands for a missing sample (signal(5)).
func missingOf(format int) int {
	return map[int]int{16: -32768, 61: -32768, 160: -32768, 80: -128, 212: -2048, 24: -8388608, 32: math.MinInt32}[format]
}

// A lone last sample of format 212 takes two bytes, and in some files a third that means nothing.
func TestLoneSampleOf212(t *testing.T) {
	for _, data := range [][]byte{{1, 0, 2, 3, 0}, {1, 0, 2, 3, 0, 0}} {
		r := files{"x.hea": []byte("x 1 4 3\nx.dat 212 200 12 0 0 6 0 II\n"), "x.dat": data}.open(t)
		if got := flatten(r.Replay(time.UnixMilli(500))); len(got) != 1 || !strings.HasSuffix(got[0], "=1,2,3") {
			t.Errorf("%d bytes: %q", len(data), got)
		}
	}
}

// Signals of several rates in one file: each frame has four samples of the first, two of the second and one reading. All of them lie in
// time where they were sampled, and the second's skew of one frame lets it begin, and end, a frame earlier.
func TestFramesAndSkew(t *testing.T) {
	header := "x 3 1 2\n" +
		"x.dat 16x4 200/mV 16 0 1 0 0 I\n" +
		"x.dat 16x2:1 12.84(-1605)/mmHg 16 0 1 0 0 ABP\n" +
		"x.dat 16 1/bpm 16 0 1 0 0 HR\n"
	samples := []int16{1, 2, 3, 4, 50, 51, 70, 5, 6, 7, 8, 52, 53, 71}
	header = strings.Replace(header, " 1 0 0 I", " 1 36 0 I", 1)
	header = strings.Replace(header, " 1 0 0 ABP", " 1 206 0 ABP", 1)
	header = strings.Replace(header, " 1 0 0 HR", " 1 141 0 HR", 1)
	r := files{"x.hea": []byte(header), "x.dat": bytes16(samples...)}.open(t)
	want := []string{
		"1970-01-01T00:00:00.000Z 150036@0/2=50,51",
		"1970-01-01T00:00:01.000Z 147842=70",
		"1970-01-01T00:00:01.000Z 131329@0/4=1,2,3,4 150036@0/2=52,53",
		"1970-01-01T00:00:02.000Z 147842=71",
		"1970-01-01T00:00:02.000Z 131329@0/4=5,6,7,8",
	}
	if got := flatten(r.Replay(time.UnixMilli(2750))); !slices.Equal(got, want) || r.Rows() != len(want) {
		t.Errorf("%q", got)
	}
	if r.Length() != 2750*time.Millisecond {
		t.Errorf("length %s", r.Length())
	}
}

// A rate whose period is no number of milliseconds: chunks are as long as a second has samples, and begin on the nearest millisecond.
func TestOddRates(t *testing.T) {
	samples := make([]int16, 150)
	r := files{"x.hea": []byte("x 1 62.4725\nx.dat 16 200 16 0 0 0 0 II\n"), "x.dat": bytes16(samples...)}.open(t)
	var got []string
	n := 0
	for row := range r.Replay(time.UnixMilli(10_000)) {
		for _, w := range row.Waves {
			got = append(got, fmt.Sprintf("%d at %d", len(w.Samples), w.At.UnixMilli()))
			n += len(w.Samples)
			if w.Frequency != "62.4725" {
				t.Error(w.Frequency)
			}
		}
	}
	if want := []string{"63 at 7615", "62 at 8623", "25 at 9616"}; !slices.Equal(got, want) || n != 150 {
		t.Errorf("%q", got)
	}
}

func TestSegmentsOfAFixedLayout(t *testing.T) {
	record := files{
		"x.hea": []byte("x/3 2 2 6\na 2\n~ 2\na 2\n"), // one segment may come twice
		"a.hea": []byte("a 2 2 2\na.dat 16 200 16 0 0 3 0 II\na.dat 16 10/mmHg 16 0 0 7 0 ABP\n"),
		"a.dat": bytes16(1, 3, 2, 4),
	}
	want := []string{
		"1970-01-01T00:00:00.000Z 131330@0/2=1,2 150036@0/2=3,4",
		"1970-01-01T00:00:02.000Z 131330@0/2=1,2 150036@0/2=3,4",
	}
	if got := flatten(record.open(t).Replay(time.UnixMilli(2500))); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for name, edit := range map[string]struct{ file, old, new, want string }{
		"one part short":      {"x.hea", "a 2\n~ 2\na 2\n", "a 2\n~ 2\n", "2 of 3 lines"},
		"one part more":       {"x.hea", "~ 2", "~ 2\n~ 2", "more lines"},
		"not the sum":         {"x.hea", "2 6", "2 7", "have 6 samples"},
		"a part elsewhere":    {"x.hea", "a 2", "../a 2", "folder"},
		"a part that is not":  {"x.hea", "a 2", "b 2", "b.hea"},
		"another length":      {"x.hea", "a 2", "a 3", "says 2 samples"},
		"another rate":        {"a.hea", "a 2 2 2", "a 2 4 2", "rate"},
		"an empty part":       {"x.hea", "~ 2", "~ 0", "only the first"},
		"a record in a part":  {"a.hea", "a 2", "a/1 2", "segments of its own"},
		"damaged":             {"a.hea", " 3 0 II", " 4 0 II", "checksum"},
		"an empty gap first":  {"x.hea", "a 2\n~ 2", "~ 0\na 2", "expected a layout"},
		"many parts":          {"x.hea", "x/3", "x/30000", "segments"},
		"a line of two words": {"x.hea", "a 2", "a 2 2", "segment line"},
	} {
		broken := files{}
		for n, data := range record {
			broken[n] = data
		}
		broken[edit.file] = bytes.Replace(record[edit.file], []byte(edit.old), []byte(edit.new), 1)
		if name == "a record in a part" {
			broken["a.hea"] = []byte("a/1 2 2 2\nb 2\n")
		}
		if _, err := open("x", broken.read); err == nil || !strings.Contains(err.Error(), edit.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	record["x.hea"] = []byte("x/2 2 2 4\na 2\nb 2\n")
	record["b.hea"] = []byte("b 1 2 2\nb.dat 16 200 16 0 0 3 0 II\n")
	record["b.dat"] = bytes16(1, 2)
	if _, err := open("x", record.read); err == nil || !strings.Contains(err.Error(), "no layout segment") {
		t.Errorf("a signal less without a layout: %v", err)
	}
}

// Signals come, go, change places, calibration and format; in the middle nothing is recorded. The layout has only their order.
func TestSegmentsOfAVariableLayout(t *testing.T) {
	r := files{
		"x.hea":        []byte("x/5 3 2 6\nx_layout 0\na 2\n~ 1\nb 2\nc 1\n"),
		"x_layout.hea": []byte("x_layout 3 2 0\n~ 0 200 16 0 0 0 0 ABP\n~ 0 200 16 0 0 0 0 II\n~ 0 200 16 0 0 0 0 PLETH\n"),
		"a.hea":        []byte("a 2 2 2\na.dat 16 100 16 0 0 3 0 II\na.dat 16 10/mmHg 16 0 0 7 0 ABP\n"),
		"a.dat":        bytes16(1, 3, 2, 4),
		"b.hea":        []byte("b 2 2\nb.dat 80 10/mmHg 8 0 0 11 0 ABP\nb.dat 80 250 8 0 0 15 0 II\n"),
		"b.dat":        {128 + 5, 128 + 7, 128 + 6, 128 + 8},
		"c.hea":        []byte("c 1 2 1\nc.dat 16 250 16 0 0 9 0 II\n"),
		"c.dat":        bytes16(9),
	}.open(t)
	want := []string{
		"1970-01-01T00:00:00.000Z 150036@0/2=3,4 131330@0/2=1,2",
		"1970-01-01T00:00:01.500Z 150036@0/2=5 131330@0/2=7",
		"1970-01-01T00:00:02.000Z 150036@0/2=6 131330@0/2=8 131330@500/2=9",
	}
	if got := flatten(r.Replay(time.UnixMilli(2500))); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	var steps []string
	for row := range r.Replay(time.UnixMilli(2500)) {
		for _, w := range row.Waves {
			if w.Signal.MDC == 131330 {
				steps = append(steps, fmt.Sprintf("%s from %d", w.Sensitivity, w.Min))
			}
		}
	}
	if want := []string{"0.01 from -32768", "0.004 from -128", "0.004 from -128", "0.004 from -32768"}; !slices.Equal(steps, want) {
		t.Errorf("%q", steps)
	}
}

// A second that does not fit one message goes in several, each within what a receiver takes; an array too long for one is cut.
func TestMessagesStayWithinBounds(t *testing.T) {
	const signals, many, frames = 40, 10_000, 2
	header := fmt.Sprintf("x %d 1 %d\n", signals, frames)
	total := 0
	for i := range signals {
		n := 2
		if i == 20 {
			n = many
		}
		total += n
		name := strings.Repeat(fmt.Sprintf("&%02d", i), 40) // each & takes three bytes in a message
		header += fmt.Sprintf("x.dat 16x%d 200 16 0 0 %d 0 %s\n", n, uint16(-30001*frames*n&0xffff), name)
	}
	samples := slices.Repeat([]int16{-30001}, frames*total)
	r := files{"x.hea": []byte(header), "x.dat": bytes16(samples...)}.open(t)
	w := testWriter(time.UTC)
	a := &Account{}
	for row := range r.Replay(time.UnixMilli(0)) {
		if _, message := w.message(row, time.UnixMilli(0)); len(message) > 64<<10 {
			t.Errorf("a message of %d bytes", len(message))
		}
		a.send(row)
	}
	if got := a.Totals(); got.Sent != frames*total || got.Messages != frames*3 {
		t.Errorf("%+v", got)
	}
	next := map[Code]time.Time{}
	for wave := range a.Waves() {
		if at, ok := next[wave.Code()]; ok && wave.At.Sub(at).Abs() > time.Millisecond {
			t.Errorf("%v goes on at %s, not %s", wave.Code(), wave.At, at)
		}
		next[wave.Code()] = wave.At.Add(wave.Span())
	}
}

// A lone missing sample at a boundary is no array. Two of them are one.
func TestMissingSamples(t *testing.T) {
	r := files{"x.hea": []byte("x 1 2\nx.dat 16 200 16 0 0 1 0 II\n"), "x.dat": bytes16(math.MinInt16, math.MinInt16, 1, math.MinInt16, math.MinInt16)}.open(t)
	want := []string{"1970-01-01T00:00:00.000Z 131330@0/2=,", "1970-01-01T00:00:01.000Z 131330@0/2=1,"}
	if got := flatten(r.Replay(time.UnixMilli(2000))); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// A code is believed in a unit of what it measures only; and no code is given on half a name.
func TestWaveCodes(t *testing.T) {
	for _, tc := range []struct {
		name, unit string
		mdc        uint32
	}{
		{"II", "mV", 131330}, {"ii", "uV", 131330}, {"II", "mmHg", 0}, {"AVR", "mV", 131390}, {"v1", "V", 131331}, {"V", "mV", 0}, {"MCL1", "mV", 0},
		{"ABP", "mmHg", 150036}, {"ABP", "mV", 0}, {"PAP", "mmHg", 150044}, {"PLETH", "NU", 150452}, {"RESP", "mV", 151552}, {"RESP (sum)", "l", 0},
	} {
		if got := waveOf(tc.name, tc.unit, 3); got.MDC != tc.mdc || got.Path != "1.9.1.3" || got.Unit.Label != tc.unit {
			t.Errorf("%s in %s is %+v", tc.name, tc.unit, got)
		}
	}
	if unitOf("µV") != microvolt || unitOf("μV") != microvolt {
		t.Error("microvolts are not known")
	}
	for label, want := range map[string]string{"mV": "266418^MDC_DIM_MILLI_VOLT^MDC", "cmH2O": "cm[H2O]^cmH2O^UCUM", "ml": "mL^ml^UCUM", "fur&long": `fur\T\long^fur\T\long^99WARDSIM`} {
		if got := unitOf(label).code("^"); got != want {
			t.Errorf("%s is sent as %s", label, got)
		}
	}
}

func TestSpeed(t *testing.T) {
	for speed, want := range map[float64]time.Duration{0: 0, 1: 4 * time.Second, 8: 500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{script: []func(*served){acknowledge}}
			cfg := testConfig(rows(5)) // a second apart, long ago
			cfg.Dial, cfg.Speed = r.dial, speed
			m, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			if err := m.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took != want {
				t.Errorf("speed %g took %s, want %s", speed, took, want)
			}
			synctest.Wait()
		})
	}
}

// A second of a waveform is not sent before it has passed.
func TestLiveWaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := &receiver{script: []func(*served){acknowledge}}
		cfg := testConfig(func(yield func(Row) bool) {
			row := waveRow(start.UnixMilli())
			row.Waves[0].Samples = make([]int32, 500)
			yield(row)
		})
		cfg.Dial = r.dial
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("sent after %s", took)
		}
		if got := m.Account().Totals(); got.Acknowledged != 501 || got.MessagesAcknowledged != 1 {
			t.Errorf("%+v", got)
		}
		synctest.Wait()
	})
}

// Real waveforms: ten minutes of an ECG at 500 Hz beside a pressure and a skewed respiration at 125 Hz, five minutes around an alarm, and two
// segments of seven signals. Each sample is proven by its checksum; that numbers and times are right was counted with another program.
func TestRealWaveforms(t *testing.T) {
	end := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for record, want := range map[string]struct {
		rows, samples int
		missing       int
		arrays        map[int]string // by index, its code, frequency, number of samples, first ones, and time before the end in ms
	}{
		"03700181": {601, 450000, 0, map[int]string{
			0:    "RESP 125 4 -304,-279,-255 600030",
			1:    "MCL1 500 500 67,67,67 599998",
			3:    "RESP 125 125 -208,-186,-164 599998",
			1798: "MCL1 500 500 396,418,440 998",
		}},
		"v102s": {300, 300000, 23, map[int]string{0: "II 250 250 -26,-18,13 299996", 3: "RESP 250 250 339,462,477 299996"}},
		"041s":  {16, 32000, 1, map[int]string{0: "III 500 500 168,168,166 15998"}},
	} {
		r, err := OpenRecording(filepath.Join(recordings(t), record))
		if err != nil {
			t.Fatal(err)
		}
		a := &Account{}
		for row := range r.Replay(end) {
			a.send(row)
		}
		got := a.Totals()
		if r.Rows() != want.rows || got.Messages != want.rows || got.Sent+got.NoReadings != want.samples || got.NoReadings != want.missing {
			t.Errorf("%s: %d rows, %+v", record, r.Rows(), got)
		}
		i := 0
		for w := range a.Waves() {
			if s, ok := want.arrays[i]; ok {
				if got := fmt.Sprintf("%s %s %d %d,%d,%d %d", w.Signal.Name, w.Frequency, len(w.Samples), w.Samples[0], w.Samples[1], w.Samples[2],
					end.Sub(w.At).Milliseconds()); got != s {
					t.Errorf("%s: array %d is %s, want %s", record, i, got, s)
				}
			}
			i++
		}
	}
}

// The memory of an account is what it points to, which all monitors of a recording share, and little beside.
func BenchmarkWaves(b *testing.B) {
	samples := make([]int16, 500*600)
	record := files{"x.hea": []byte("x 1 500\nx.dat 16 200 16 0 0 0 0 II\n"), "x.dat": bytes16(samples...)}
	r, err := open("x", record.read)
	if err != nil {
		b.Fatal(err)
	}
	w := testWriter(time.UTC)
	b.ReportAllocs()
	for b.Loop() {
		a := &Account{}
		for row := range r.Replay(time.UnixMilli(0)) {
			a.acknowledge(a.send(row))
			w.message(row, time.UnixMilli(0))
		}
	}
}
