package bedside

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// files is a folder of a record, by name.
type files map[string][]byte

func (f files) read(name string, limit int64) ([]byte, error) {
	data, ok := f[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("%s is longer than its header allows", name)
	}
	return data, nil
}

// open opens record x, which must be there and whole.
func (f files) open(t *testing.T) *Recording {
	t.Helper()
	r, err := open("x", f.read)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// write makes a record of two columns in one file, by hand: HR (gain 10) and NBPSys (gain 1), three rows a minute apart.
func write(t *testing.T, header string, samples ...int16) (path string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.dat"), bytes16(samples...), 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "x")
	if err := os.WriteFile(path+".hea", []byte(header), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func bytes16(samples ...int16) (data []byte) {
	for _, s := range samples {
		data = binary.LittleEndian.AppendUint16(data, uint16(s))
	}
	return data
}

// The sums: 800 + 0 - 5 = 795; -32768 + 120 - 32768 = -65416, which is 120 modulo 65536.
const goodHeader = "# a comment\r\n" +
	"x 2 0.0166666666667/125 3 31:25.894 10/10/2896\r\n" +
	"x.dat 16 10/bpm 16 0 800 795 0 HR\r\n" +
	"x.dat 16 1/mmHg 16 0 -32768 120 0 NBPSys\r\n" +
	"# <age>: 60 <sex>: F\r\n"

var goodSamples = []int16{800, math.MinInt16, 0, 120, -5, math.MinInt16}

func TestReplay(t *testing.T) {
	path := write(t, goodHeader, goodSamples...)
	end := time.Date(2026, 1, 1, 12, 0, 0, 5e6, time.UTC)
	want := []string{
		"2026-01-01T11:58:00.005Z 147842=80.0 150021=",
		"2026-01-01T11:59:00.005Z 147842=0.0 150021=120",
		"2026-01-01T12:00:00.005Z 147842=-0.5 150021=",
	}
	for _, name := range []string{path, path + ".hea"} {
		r, err := OpenRecording(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := flatten(r.Replay(end)); !slices.Equal(got, want) || r.Rows() != 3 {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := r.Header.Start.Format(time.RFC3339Nano); got != "2896-10-10T00:31:25.894Z" {
			t.Errorf("start %s", got)
		}
		if got := r.Length().Round(time.Second); got != 2*time.Minute {
			t.Errorf("length %s", got)
		}
	}
}

// flatten writes a source's rows, one line for each.
func flatten(source Source) (lines []string) {
	const layout = "2006-01-02T15:04:05.000Z"
	code := func(s Signal) string {
		if s.MDC == 0 {
			return s.Name
		}
		return fmt.Sprint(s.MDC)
	}
	for row := range source {
		line := row.At.UTC().Format(layout)
		for _, v := range row.Values {
			line += fmt.Sprintf(" %s=%s", code(v.Signal), v.Text)
		}
		for _, w := range row.Waves {
			line += fmt.Sprintf(" %s@%d/%s=", code(w.Signal), w.At.Sub(row.At).Milliseconds(), w.Frequency)
			for i, s := range w.Samples {
				if i > 0 {
					line += ","
				}
				line += arrayText(s, w.Min)
			}
		}
		lines = append(lines, line)
	}
	return lines
}

func TestReplayStopsWhenAsked(t *testing.T) {
	r, err := OpenRecording(write(t, goodHeader, goodSamples...))
	if err != nil {
		t.Fatal(err)
	}
	for range r.Replay(time.Now()) {
		break
	}
}

func TestOpenRecordingRefuses(t *testing.T) {
	edit := func(old, new string) string {
		if !strings.Contains(goodHeader, old) {
			t.Fatalf("%q is not in the header", old)
		}
		return strings.Replace(goodHeader, old, new, 1)
	}
	flipped := slices.Clone(goodSamples)
	flipped[2] ^= 1
	for name, tc := range map[string]struct {
		header  string
		samples []int16
		want    string
	}{
		"one bit differs":     {goodHeader, flipped, "checksum"},
		"a sample short":      {goodHeader, goodSamples[:5], "expected 3 frames"},
		"a sample long":       {goodHeader, append(slices.Clone(goodSamples), 1), "longer"},
		"a row short":         {edit(" 3 31", " 4 31"), goodSamples, "expected 4 frames"},
		"unsupported format":  {strings.ReplaceAll(goodHeader, "dat 16", "dat 310"), goodSamples, "310 is not supported"},
		"formats differ":      {edit("dat 16", "dat 80"), goodSamples, "differ"},
		"samples of no frame": {edit("dat 16", "dat 16x0"), goodSamples, "samples per frame"},
		"too many a frame":    {edit("dat 16", "dat 16x99999"), goodSamples, "samples per frame"},
		"negative skew":       {edit("dat 16", "dat 16:-1"), goodSamples, "skew"},
		"file elsewhere":      {edit("x.dat", "../x.dat"), goodSamples, "folder"},
		"file missing":        {strings.ReplaceAll(goodHeader, "x.dat", "y.dat"), goodSamples, "y.dat"},
		"a layout's file":     {strings.ReplaceAll(goodHeader, "x.dat 16", "~ 0"), goodSamples, "not supported"},
		"no gain":             {edit("10/bpm", "x/bpm"), goodSamples, "gain"},
		"huge gain":           {edit("10/bpm", "1e999999999/bpm"), goodSamples, "gain"},
		"half a baseline":     {edit("10/bpm", "10(5/bpm"), goodSamples, "baseline"},
		"segments":            {edit("x 2", "x/2 2"), goodSamples, "segment line"},
		"no signals":          {edit("x 2", "x 0"), goodSamples, "number of signals"},
		"signals missing":     {edit("x 2", "x 3"), goodSamples, "2 of 3"},
		"signals too many":    {edit("x 2", "x 1"), goodSamples, "more lines"},
		"samples too many":    {edit(" 3 31", " 99999999999 31"), goodSamples, "number of samples"},
		"more than is held":   {edit(" 3 31", " 99999999 31"), goodSamples, "replay a part"},
		"rate zero":           {edit("0.0166666666667", "0"), goodSamples, "rate"},
		"rate no number":      {edit("0.0166666666667", "NaN"), goodSamples, "rate"},
		"no such time":        {edit("31:25.894", "61:25.894"), goodSamples, "base time"},
		"no such date":        {edit("10/10/2896", "31/02/2896"), goodSamples, "base date"},
		"no checksum":         {edit(" 795 0 HR", ""), goodSamples, "checksum"},
		"a name with a tab":   {edit("0 HR", "0 H\x01R"), goodSamples, "control character"},
		"a name too long":     {edit("0 HR", "0 "+strings.Repeat("H", 200)), goodSamples, "longer than 128"},
		"empty":               {"", goodSamples, "0 of 0"},
		"centuries":           {strings.Replace(edit("dat 16", "dat 16:99999999"), "0.0166666666667", "0.00001", 1), goodSamples, "century"},
	} {
		if _, err := OpenRecording(write(t, tc.header, tc.samples...)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenRecording(filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("a record that is not there was opened")
	}
}

// What the monitor has no verified code for goes by its name: nothing of a recording is left out, and nothing gets another's code.
func TestUnknownSignalsGoByName(t *testing.T) {
	for header, want := range map[string]string{
		strings.Replace(goodHeader, "HR", "XYZ", 1):                             "XYZ=80.0 150021=",
		strings.Replace(goodHeader, "bpm", "Hz", 1):                             "HR=80.0 150021=",
		strings.Replace(goodHeader, "HR", "nbp SYS", 1):                         "nbp SYS=80.0 150021=",
		strings.NewReplacer("HR", "nbp SYS", "bpm", "mmHg").Replace(goodHeader): "150021=80.0 NBPSys=",
		strings.Replace(goodHeader, " 0 HR", "", 1):                             "record x, signal 0=80.0 150021=",
		strings.NewReplacer("HR", "NBPSys", "bpm", "mmHg").Replace(goodHeader):  "150021=80.0 NBPSys#2=",
		strings.Replace(goodHeader, "10/bpm", "0", 1):                           "HR=4.000 150021=",
	} {
		r, err := OpenRecording(write(t, header, goodSamples...))
		if err != nil {
			t.Errorf("%s: %v", want, err)
		} else if got := flatten(r.Replay(time.UnixMilli(0))); !strings.HasSuffix(got[0], want) {
			t.Errorf("%q, want %q", got[0], want)
		}
	}
}

func TestColumnsInFilesOfTheirOwn(t *testing.T) {
	r := files{
		"x.hea": []byte("x 2 1 2\na.dat 16+4 1/bpm 16 0 1 3 0 HR\nx.dat 61 1/bpm 16 0 3 7 0 PULSE\n"),
		"a.dat": {'h', 'e', 'a', 'd', 1, 0, 2, 0},
		"x.dat": {0, 3, 0, 4},
	}.open(t)
	want := []string{"1970-01-01T00:00:00.000Z 147842=1 149530=3", "1970-01-01T00:00:01.000Z 147842=2 149530=4"}
	if got := flatten(r.Replay(time.UnixMilli(1000))); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestValuesAreExact(t *testing.T) {
	for _, tc := range []struct {
		gain   string
		sample int32
		want   string
	}{
		{"10/bpm", 363, "36.3"},
		{"10/bpm", 360, "36.0"},
		{"10/bpm", -3, "-0.3"},
		{"10/bpm", 0, "0.0"},
		{"1/mmHg", 120, "120"},
		{"1.0/mmHg", -7, "-7"},
		{"100/degC", 3705, "37.05"},
		{"200/mV", 1, "0.005"},
		{"8/x", 3, "0.375"},
		{"0.5/x", 3, "6"},
		{"0.001/x", 3, "3000"},
		{"1e1/x", 3, "0.3"},
		{"1000000000/x", 32767, "0.000032767"},
		{"10(100)/bpm", 101, "0.1"},
		{"10(-2147483648)/bpm", 32767, "214751641.5"},
		{"0", 1, "0.005"}, // the guide's default
		{"12.84(-1605)/mmHg", -1604, "0.0778816199"},
		{"2963.77/mV", 1, "0.000337408098"},
		{"38880/NU", 1, "0.0000257201646"},
		{"3/x", 2, "0.666666666"}, // twice what the monitor says a step is
		{"0.000003/x", 1, "333333.333"},
		{"1024/x", 1, "0.0009765625"},
		{"1048576/x", 1, "0.000000953674316"}, // its 14 digits are more than are said
	} {
		var c Column
		if err := c.parseGain(tc.gain); err != nil {
			t.Errorf("%s: %v", tc.gain, err)
		} else if got := sensitivityOf(c.Gain).value(tc.sample, c.Baseline); got != tc.want {
			t.Errorf("%s: sample %d is %s, want %s", tc.gain, tc.sample, got, tc.want)
		}
	}
}

// recordings is the folder of real recordings. They are not in this repository; where they are absent the synthetic records
// of these tests are what is tested. WARDLINK_RECORDINGS says that they are there.
func recordings(t *testing.T) string {
	dir := os.Getenv("WARDLINK_RECORDINGS")
	if dir != "" {
		return dir
	}
	dir = filepath.Join("..", "..", "..", "shared", "data", "physionet")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no real recordings here; name their folder in WARDLINK_RECORDINGS")
	}
	return dir
}

// 32 hours of one intensive care patient, a row a minute. The figures were counted with another program.
func TestRealRecording(t *testing.T) {
	r, err := OpenRecording(filepath.Join(recordings(t), "s00001-2896-10-10-00-31n"))
	if err != nil {
		t.Fatal(err)
	}
	source := r.Replay(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC))
	lines := flatten(source)
	if len(lines) != 1936 || r.Rows() != 1936 {
		t.Fatalf("%d rows of %d", len(lines), r.Rows())
	}
	for n, want := range map[int]string{
		0:    "2025-12-31T03:45:00.000Z 147842=0.0 150037=0.0 150038=0.0 150039=0.0 149530=0.0 151562=23.0 150456=0.0 150021= 150022= 150023=",
		1000: "2025-12-31T20:25:00.000Z 147842=59.7 150037=0.0 150038=0.0 150039=0.0 149530=58.1 151562=18.5 150456=96.5 150021= 150022= 150023=",
	} {
		if lines[n] != want {
			t.Errorf("row %d is %s", n, lines[n])
		}
	}
	if !strings.HasPrefix(lines[1935], "2026-01-01T12:00:00.000Z ") {
		t.Errorf("the last row is %s", lines[1935])
	}
	if got := totalsOf(source); got.Sent != 19360-5352 || got.NoReadings != 5352 || got.Messages != 1936 {
		t.Errorf("%+v", got)
	}
}

func totalsOf(source Source) Totals {
	a := &Account{}
	for row := range source {
		a.send(row)
	}
	return a.Totals()
}

func FuzzRecording(f *testing.F) {
	f.Add([]byte(goodHeader), []byte{0x20, 3, 0, 0x80, 0, 0, 120, 0, 0xfb, 0xff, 0, 0x80})
	f.Add([]byte("x 1 1/125(7) 0\nx 16+2 12.5(-3)/% 16 0 1 1 0 SpO2\n"), []byte{0, 0, 1, 0})
	f.Add([]byte("x 1\nx 212 200 12 0 0 0 0 ECG lead II\n"), []byte{1, 2, 3})
	f.Add([]byte("x 2 125\nx 212x4 2963.77/mV 12 0 0 273 0 MCL1\nx 212:4 0 0 0 0 3 0 RESP\n"), []byte{1, 0, 4, 2, 0, 2, 8, 1})
	f.Add([]byte("x 3 250 1\nx 24x2 1/µV 0 0 0 1 0 II\nx 24 1/uV 0 0 0 2 0 II\nx 24 1 0 0 0 3 0 II\n"), []byte{1, 0, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0})
	f.Add([]byte("x/2 1 125 2000 8:26:04 26/10/1994\n~ 1000\n~ 1000\n"), []byte{})
	f.Fuzz(func(t *testing.T, header, data []byte) {
		h, err := ParseHeader(header)
		if err != nil {
			return
		}
		for _, c := range h.Columns {
			s := sensitivityOf(c.Gain)
			said, ok := new(big.Rat).SetString(s.String())
			if !ok {
				t.Fatalf("gain %s: sensitivity %q", c.Gain, s)
			}
			// What is said is the gain's inverse within half of its last digit.
			off := new(big.Rat).Sub(new(big.Rat).Mul(said, c.Gain), big.NewRat(1, 1))
			if off.Abs(off).Cmp(big.NewRat(1, 200_000_000)) > 0 {
				t.Errorf("gain %s: sensitivity %s", c.Gain, s)
			}
			v, ok := new(big.Rat).SetString(s.value(math.MinInt16, c.Baseline))
			if !ok || v.Cmp(said.Mul(said, big.NewRat(math.MinInt16-c.Baseline, 1))) != 0 {
				t.Errorf("gain %s, baseline %d: value %s", c.Gain, c.Baseline, v)
			}
		}
		r, err := open("x", func(name string, limit int64) ([]byte, error) {
			if name == "x.hea" {
				return header, nil
			}
			if int64(len(data)) > limit {
				return nil, os.ErrInvalid
			}
			return data, nil
		})
		if err != nil {
			return
		}
		// Every sample is played once and in order, whatever its rate; a lone missing one need not be.
		a, held := &Account{}, 0
		for _, track := range r.tracks {
			for _, run := range track.runs {
				held += len(run.samples)
			}
		}
		for row := range r.Replay(time.UnixMilli(0)) {
			a.send(row)
		}
		last := map[Code]time.Time{}
		lone := 0
		for w := range a.Waves() {
			if at := last[w.Code()]; w.At.Before(at) {
				t.Errorf("%v goes back from %s to %s", w.Code(), at, w.At)
			}
			last[w.Code()] = w.At
		}
		for _, track := range r.tracks {
			for _, run := range track.runs {
				for _, s := range run.samples {
					if s == run.format.min {
						lone++
					}
				}
			}
		}
		got := a.Totals()
		if played := got.Sent + got.NoReadings; played > held || played < held-lone || got.Messages != r.Rows() {
			t.Errorf("%d of %d samples in %d of %d rows", played, held, got.Messages, r.Rows())
		}
	})
}
