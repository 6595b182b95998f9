package agent

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"wardlink/telemetry"
)

const waveHead = "MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||ORU^W01^ORU_W01|"

// w01 is a second of channels, each with the samples given.
func w01(control string, channels ...string) []byte {
	var b strings.Builder
	b.WriteString(waveHead + control + "|T|2.6\rPID|||WL1^^^HOSP&1.2.3&ISO\rOBR|1|||X|||20261122120000+0000\r")
	for i, samples := range channels {
		fmt.Fprintf(&b, "OBX|%d|CD|131330&CHN^MDC_ECG_ELEC_POTL_II^MDC|1.4.1.%d|%d&II^II&^0.001&266418&MDC_DIM_MILLI_VOLT&MDC^1&0&0^500^-2048&2047\r", 2*i+1, i, i)
		fmt.Fprintf(&b, "OBX|%d|NA|131330&WAV^MDC_ECG_ELEC_POTL_II^MDC|1.4.1.%d|%s||||||F\r", 2*i+2, i, samples)
	}
	return []byte(b.String())
}

func TestWaveformsTakeTheirLane(t *testing.T) {
	s := newStation(t, filepath.Join(t.TempDir(), "buffer"), newKey(t))
	if err := s.accept(w01("W1", "1^2^^-3", "5")); err != nil {
		t.Fatal(err)
	}
	if err := s.accept(oru("C1", "72")); err != nil {
		t.Fatal(err)
	}
	if c := s.in.counters(); c.Waveforms != 2 || c.Observations != 1 || c.Batches != 2 || c.NotUnderstood != 0 {
		t.Errorf("%+v", c)
	}
	lanes := s.buf.Stats().Lanes
	if lanes[telemetry.LaneWaveform].Stored != 1 || lanes[telemetry.LaneVitals].Stored != 1 {
		t.Errorf("batches by lane: %+v", lanes)
	}
}

// One oversized array, one broken message and one that is noise, all at once and beside good ones: each good one is taken as it is,
// each other one as it came.
func TestPoisonBetweenGoodMessages(t *testing.T) {
	s := newStation(t, filepath.Join(t.TempDir(), "buffer"), newKey(t))
	r := rand.New(rand.NewPCG(1, 1))
	var wide strings.Builder // as many samples, as different, as a message can hold
	for wide.Len() < telemetry.MaxMessage-1000 {
		fmt.Fprintf(&wide, "%d^", r.Int32()*int32(1-2*r.IntN(2)))
	}
	var noise [40 << 10]byte
	for i := range noise {
		if noise[i] = byte(r.Uint32()); noise[i] == '\r' {
			noise[i] = 0
		}
	}
	poison := map[string][]byte{
		"wide":       w01("P1", wide.String()+"1"),
		"empties":    w01("P2", strings.Repeat("^", telemetry.MaxMessage-1000)),
		"words":      w01("P3", "1^two^3", "4"),
		"undefined":  []byte(waveHead + "P4|T|2.6\rOBX|1|NA|131330^^MDC|1|1^2^3\r"),
		"noise":      append([]byte(waveHead+"P5|T|2.6\rOBX|1|NA|131330^^MDC|1|"), noise[:]...),
		"noise wide": append(w01("P6", "1^2"), noise[:20<<10]...),
	}
	var wg sync.WaitGroup
	give := func(raw []byte) {
		wg.Go(func() {
			if err := s.accept(raw); err != nil {
				t.Errorf("not accepted: %v", err)
			}
		})
	}
	const good = 20
	for i := range good {
		give(w01(fmt.Sprint("W", i), fmt.Sprintf("%d^^%d", i, -i)))
		give(oru(fmt.Sprint("C", i), fmt.Sprint(60+i)))
	}
	for _, raw := range poison {
		for i := range 3 { // several of them do not fit one batch
			give([]byte(strings.Replace(string(raw), "ORU_W01|P", fmt.Sprintf("ORU_W01|%d-P", i), 1)))
		}
	}
	wg.Wait()
	waves, rates, broken := 0, 0, 0
	for _, m := range s.messages() {
		switch {
		case strings.HasPrefix(m.ControlID, "W"):
			var i int
			if _, err := fmt.Sscanf(m.ControlID, "W%d", &i); err != nil || len(m.Waveforms) != 1 || m.Raw != nil {
				t.Fatalf("%s: %d waveforms, raw %v", m.ControlID, len(m.Waveforms), m.Raw != nil)
			}
			if got := fmt.Sprint(m.Waveforms[0].Samples); got != fmt.Sprint([]int32{int32(i), telemetry.MissingSample, int32(-i)}) {
				t.Errorf("%s: %s", m.ControlID, got)
			}
			waves++
		case strings.HasPrefix(m.ControlID, "C"):
			if len(m.Observations) != 1 || m.Raw != nil {
				t.Errorf("%s: %+v", m.ControlID, m)
			}
			rates++
		default:
			if name := m.ControlID[strings.IndexByte(m.ControlID, '-')+1:]; name != "P1" && name != "P2" && m.Raw == nil {
				t.Errorf("%s is not kept as it came", m.ControlID)
			}
			broken++
		}
	}
	if waves != good || rates != good || broken != 3*len(poison) {
		t.Errorf("%d waveforms, %d readings, %d others; expected %d, %d, %d", waves, rates, broken, good, good, 3*len(poison))
	}
}
