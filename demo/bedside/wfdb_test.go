package bedside

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// write makes a record of two columns in one file, by hand: HR (gain 10) and NBPSys (gain 1), three rows a minute apart.
func write(t *testing.T, header string, samples ...int16) (path string) {
	t.Helper()
	dir := t.TempDir()
	var data []byte
	for _, s := range samples {
		data = binary.LittleEndian.AppendUint16(data, uint16(s))
	}
	if err := os.WriteFile(filepath.Join(dir, "x.dat"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "x")
	if err := os.WriteFile(path+".hea", []byte(header), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
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
		source, err := r.Replay(end)
		if err != nil {
			t.Fatal(err)
		}
		if got := flatten(source); !slices.Equal(got, want) || r.Rows() != 3 {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := r.Header.Start.Format(time.RFC3339Nano); got != "2896-10-10T00:31:25.894Z" {
			t.Errorf("start %s", got)
		}
	}
}

func flatten(source Source) (lines []string) {
	for row := range source {
		line := row.At.UTC().Format("2006-01-02T15:04:05.000Z")
		for _, v := range row.Values {
			line += fmt.Sprintf(" %d=%s", v.Signal.MDC, v.Text)
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
	source, err := r.Replay(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for range source {
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
		"one bit differs":  {goodHeader, flipped, "checksum"},
		"a sample short":   {goodHeader, goodSamples[:5], "expected 3 rows"},
		"a sample long":    {goodHeader, append(slices.Clone(goodSamples), 1), "longer"},
		"a row short":      {edit(" 3 31", " 4 31"), goodSamples, "expected 4 rows"},
		"format 212":       {strings.ReplaceAll(goodHeader, "dat 16", "dat 212"), goodSamples, "212 is not supported"},
		"formats differ":   {edit("dat 16", "dat 80"), goodSamples, "differ"},
		"frames":           {edit("dat 16", "dat 16x4"), goodSamples, "frame"},
		"skew":             {edit("dat 16", "dat 16:3"), goodSamples, "skew"},
		"file elsewhere":   {edit("x.dat", "../x.dat"), goodSamples, "folder"},
		"file missing":     {strings.ReplaceAll(goodHeader, "x.dat", "y.dat"), goodSamples, "y.dat"},
		"no gain":          {edit("10/bpm", "0/bpm"), goodSamples, "uncalibrated"},
		"huge gain":        {edit("10/bpm", "1e999999999/bpm"), goodSamples, "gain"},
		"segments":         {edit("x 2", "x/2 2"), goodSamples, "segment"},
		"no signals":       {edit("x 2", "x 0"), goodSamples, "number of signals"},
		"signals missing":  {edit("x 2", "x 3"), goodSamples, "2 of 3"},
		"signals too many": {edit("x 2", "x 1"), goodSamples, "more signals"},
		"samples too many": {edit(" 3 31", " 99999999999 31"), goodSamples, "number of samples"},
		"rate zero":        {edit("0.0166666666667", "0"), goodSamples, "rate"},
		"rate no number":   {edit("0.0166666666667", "NaN"), goodSamples, "rate"},
		"no such time":     {edit("31:25.894", "61:25.894"), goodSamples, "base time"},
		"no such date":     {edit("10/10/2896", "31/02/2896"), goodSamples, "base date"},
		"no checksum":      {edit(" 795 0 HR", ""), goodSamples, "checksum"},
		"empty":            {"", goodSamples, "0 of 0"},
	} {
		if _, err := OpenRecording(write(t, tc.header, tc.samples...)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenRecording(filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("a record that is not there was opened")
	}
}

func TestReplayRefuses(t *testing.T) {
	for name, header := range map[string]string{
		"gain beyond decimals": strings.Replace(goodHeader, "10/bpm", "3/bpm", 1),
		"gain too fine":        strings.Replace(goodHeader, "10/bpm", "0.00032768/bpm", 1),
		"unknown signal":       strings.Replace(goodHeader, "HR", "XYZ", 1),
		"other unit":           strings.Replace(goodHeader, "bpm", "Hz", 1),
		"a waveform":           strings.Replace(goodHeader, "0.0166666666667", "2000", 1),
	} {
		r, err := OpenRecording(write(t, header, goodSamples...))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Replay(time.Now()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestColumnsInFilesOfTheirOwn(t *testing.T) {
	path := write(t, "x 2 1 2\na.dat 16+4 1/bpm 16 0 1 3 0 HR\nx.dat 16 1/bpm 16 0 3 7 0 PULSE\n", 3, 4)
	data := []byte{'h', 'e', 'a', 'd', 1, 0, 2, 0}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "a.dat"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := OpenRecording(path)
	if err != nil {
		t.Fatal(err)
	}
	source, err := r.Replay(time.UnixMilli(1000))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"1970-01-01T00:00:00.000Z 147842=1 149530=3", "1970-01-01T00:00:01.000Z 147842=2 149530=4"}
	if got := flatten(source); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestValuesAreExact(t *testing.T) {
	for _, tc := range []struct {
		gain   string
		sample int16
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
	} {
		var c Column
		if err := c.parseGain(tc.gain); err != nil {
			t.Errorf("%s: %v", tc.gain, err)
		} else if d, err := c.decimals(); err != nil || d.text(tc.sample) != tc.want {
			t.Errorf("%s: sample %d is %s, want %s; %v", tc.gain, tc.sample, d.text(tc.sample), tc.want, err)
		}
	}
}

// recordings is the folder of real recordings. They are not in this repository; where they are absent the synthetic records
// above are what is tested. WARDLINK_RECORDINGS says that they are there.
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
	end := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	source, err := r.Replay(end)
	if err != nil {
		t.Fatal(err)
	}
	lines := flatten(source)
	if len(lines) != 1936 {
		t.Fatalf("%d rows", len(lines))
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
	a := &Account{}
	for row := range source {
		a.send(row)
	}
	if got := a.Totals(); got.Sent != 19360-5352 || got.NoReadings != 5352 {
		t.Errorf("%+v", got)
	}
}

func TestRealWaveformsAreRefused(t *testing.T) {
	for record, want := range map[string]string{"v102s": "212 is not supported", "03700181": "frame", "041s": "segment"} {
		if _, err := OpenRecording(filepath.Join(recordings(t), record)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", record, err)
		}
	}
}

func FuzzRecording(f *testing.F) {
	f.Add([]byte(goodHeader), []byte{0x20, 3, 0, 0x80, 0, 0, 120, 0, 0xfb, 0xff, 0, 0x80})
	f.Add([]byte("x 1 1/125(7) 0\nx 16+2 12.5(-3)/% 16 0 1 1 0 SpO2\n"), []byte{0, 0, 1, 0})
	f.Add([]byte("x 1\nx 212 200 12 0 0 0 0 ECG lead II\n"), []byte{1, 2, 3})
	f.Add([]byte("041s/2 7 125 2000 8:26:04 26/10/1994\n041s01 1000\n"), []byte{})
	f.Fuzz(func(t *testing.T, header, data []byte) {
		h, err := ParseHeader(header)
		if err != nil {
			return
		}
		for _, c := range h.Columns {
			d, err := c.decimals()
			if err != nil {
				continue
			}
			if v, ok := new(big.Rat).SetString(d.text(math.MinInt16)); !ok || v.Mul(v, c.Gain).Cmp(big.NewRat(math.MinInt16-c.Baseline, 1)) != 0 {
				t.Errorf("gain %s, baseline %d: value %s", c.Gain, c.Baseline, d.text(math.MinInt16))
			}
		}
		r, err := decode(h, func(_ string, limit int64) ([]byte, error) {
			if int64(len(data)) > limit {
				return nil, os.ErrInvalid
			}
			return data, nil
		})
		if err != nil {
			return
		}
		source, err := r.Replay(time.UnixMilli(0))
		if err != nil {
			return
		}
		if got := len(flatten(source)); got != r.Rows() {
			t.Errorf("%d of %d rows", got, r.Rows())
		}
	})
}
