package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/demo/bedside"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// TestRecordingIsUnderstood: what the independent monitor makes of a recording, the product understands to the last sample. The record is a
// synthetic one of everything that is unpleasant in real ones; the demonstration takes real ones all the way.
func TestRecordingIsUnderstood(t *testing.T) {
	t.Parallel()
	rec, err := bedside.OpenRecording(writeRecord(t))
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Truncate(time.Millisecond)
	account, messages := capture(t, rec.Replay(end))
	if len(messages) != rec.Rows() || len(messages) < 40 {
		t.Fatalf("%d messages of %d rows", len(messages), rec.Rows())
	}
	var got, want []string
	for _, raw := range messages {
		m, err := hl7.Understand(raw, hl7.Options{Source: "bed-1"})
		if err != nil {
			t.Fatal(err)
		}
		if lane := hl7.LaneOf(m); (lane == telemetry.LaneWaveform) != (len(m.Waveforms) > 0) || len(m.Waveforms) > 0 && len(m.Observations) > 0 {
			t.Errorf("a message of %d readings and %d waveforms on lane %s", len(m.Observations), len(m.Waveforms), lane)
		}
		for _, o := range m.Observations {
			value := o.Value
			if o.Marks&telemetry.MarkNoReading != 0 {
				value = "none"
			}
			got = append(got, fmt.Sprint(o.At, " ", nameOf(o.Code), " ", value, " ", o.Unit.UCUM))
		}
		for _, w := range m.Waveforms {
			got = append(got, fmt.Sprint(w.At, " ", nameOf(w.Code), " ", plain(w.Factor), " ", plain(w.Origin), " ", w.Unit.UCUM, " ", near(w.Period), " ", w.Samples))
		}
	}
	for r := range account.Readings() {
		want = append(want, fmt.Sprint(r.Time, " ", sentName(r.Code), " ", pick(r.None(), "none", r.Value), " ", r.Unit))
	}
	for w := range account.Waves() {
		samples := slices.Clone(w.Samples)
		for i := range samples {
			if w.Missing(i) {
				samples[i] = telemetry.MissingSample
			}
		}
		origin := new(big.Rat).Mul(rat(w.Sensitivity), big.NewRat(-w.Baseline, 1)).FloatString(30)
		period := new(big.Rat).Quo(big.NewRat(1000, 1), rat(w.Frequency)).FloatString(30)
		want = append(want, fmt.Sprint(w.At.UnixMilli(), " ", sentName(w.Code()), " ", plain(w.Sensitivity), " ", plain(origin), " ", w.Measure().Unit, " ",
			near(period), " ", samples))
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(got) != len(want) {
		t.Errorf("%d readings and arrays understood, %d sent", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("understood %.300s\nsent       %.300s", got[i], want[i])
		}
	}
	if totals := account.Totals(); totals.Acknowledged != totals.Sent || totals.Sent < 20_000 || totals.NoReadings < 1000 {
		t.Errorf("%+v", totals)
	}
}

func nameOf(c telemetry.Code) string {
	if c.MDC != 0 {
		return strconv.FormatUint(uint64(c.MDC), 10)
	}
	return strings.ToLower(c.Sys) + "/" + c.ID
}

func sentName(c bedside.Code) string {
	if c.MDC != 0 {
		return strconv.FormatUint(uint64(c.MDC), 10)
	}
	return strings.ToLower(bedside.LocalSystem) + "/" + c.Local
}

func pick(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}

func rat(s string) *big.Rat {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		panic(s)
	}
	return r
}

// plain is a decimal in one spelling; "" is 0.
func plain(s string) string {
	if s == "" {
		return "0"
	}
	return rat(s).RatString()
}

// near is a decimal to ten digits: a period need not be one that ends.
func near(s string) string { return rat(s).FloatString(10) }

// capture runs a monitor against a listener that acknowledges everything, and gives its account and what came.
func capture(t *testing.T, source bedside.Source) (*bedside.Account, [][]byte) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var messages [][]byte
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for r := hl7.NewReader(conn, telemetry.MaxMessage); ; {
			raw, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			messages = append(messages, slices.Clone(raw))
			if err := hl7.WriteFrame(conn, hl7.Ack(raw, hl7.Accept, "", time.Now())); err != nil {
				t.Error(err)
				return
			}
		}
	})
	m, err := bedside.New(bedside.Config{Address: ln.Addr().String(), Device: 1, Source: source, Ward: "icu", Bed: "1",
		Patient: bedside.Patient{ID: "WL0001", Namespace: "WARDSIM", OID: "2.25.1234"}})
	if err != nil {
		t.Fatal(err)
	}
	err = m.Run(t.Context())
	ln.Close()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return m.Account(), messages
}

// signal is one signal of a synthetic segment: perFrame samples each second.
type signal struct {
	name     string
	perFrame int
	gain     string
	sample   func(i int) int32
}

// writeRecord writes record x: readings beside waveforms of several rates, a skew, a name full of HL7's delimiters, two signals of one name, one
// that never has a sample, a gap, a change of format and calibration, and a layout that mentions hardly half of it.
func writeRecord(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	noise := func(lowest, highest int64) func(int) int32 {
		return func(int) int32 { return int32(lowest + random.Int64N(highest-lowest+1)) }
	}
	segment := func(name string, frames, format int, encode func([]byte, int32) []byte, signals ...signal) {
		head := fmt.Sprintf("%s %d 1 %d\n", name, len(signals), frames)
		all := make([][]int32, len(signals))
		for i, s := range signals {
			var sum int32
			for n := range frames * s.perFrame {
				all[i] = append(all[i], s.sample(n))
				sum += all[i][n]
			}
			kind := fmt.Sprintf("%dx%d", format, s.perFrame)
			if s.name == "PAP" {
				kind += ":2"
			}
			head += fmt.Sprintf("%s.dat %s %s 16 0 0 %d 0 %s\n", name, kind, s.gain, uint16(sum), s.name)
		}
		var data []byte
		for frame := range frames {
			for i, s := range signals {
				for _, v := range all[i][frame*s.perFrame:][:s.perFrame] {
					data = encode(data, v)
				}
			}
		}
		write(name+".hea", []byte(head))
		write(name+".dat", data)
	}
	little := func(data []byte, v int32) []byte { return binary.LittleEndian.AppendUint16(data, uint16(v)) }
	const missing = math.MinInt16
	for _, part := range []struct {
		name   string
		frames int
	}{{"a", 20}, {"b", 21}} {
		segment(part.name, part.frames, 16, little,
			signal{"HR", 1, "1/bpm", func(i int) int32 { return []int32{60, 0, missing}[i%3] }},
			signal{"II", 360, "200(1024)", func(i int) int32 {
				if i%1000 < 5 || i%360 > 357 {
					return missing
				}
				return int32(1024 + 300*math.Sin(float64(i)/20))
			}},
			signal{`Resp & |flow^ \x~`, 7, "3/l", noise(-500, 500)},
			signal{"PLETH", 125, "1250/NU", func(int) int32 { return missing }},
			signal{"PAP", 50, "12.84(-1605)/mmHg", noise(-1605, 400)},
			signal{"II", 250, "2281/uV", noise(math.MinInt16+1, math.MaxInt16)},
			signal{"urine out", 1, "10/ml", noise(0, 900)})
	}
	segment("c", 9, 24, func(data []byte, v int32) []byte { return append(data, byte(v), byte(v>>8), byte(v>>16)) },
		signal{"II", 360, "1234567/mV", noise(-1<<23, 1<<23-1)})
	write("x_layout.hea", []byte("x_layout 2 1 0\n~ 0 200 16 0 0 0 0 HR\n~ 0x360 200 16 0 0 0 0 II\n"))
	write("x.hea", []byte("x/5 6 1 65\nx_layout 0\na 20\n~ 15\nb 21\nc 9\n"))
	return filepath.Join(dir, "x")
}
