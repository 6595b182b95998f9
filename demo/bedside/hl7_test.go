package bedside

import (
	"math"
	"strings"
	"testing"
	"time"
)

func testWriter(zone *time.Location) *writer {
	return &writer{patient: Patient{ID: "WL0001", Namespace: "WARDSIM", OID: "2.25.1234"}, ward: "ICU", bed: "BED-1",
		device: "0123456789ABCDEF", zone: zone, prefix: "ABC"}
}

var written = time.Date(2026, 1, 1, 0, 0, 0, 123e6, time.UTC)

// The whole message, byte for byte, as PCD-01 wants it.
func TestMessage(t *testing.T) {
	w := testWriter(time.UTC)
	id, got := w.message(Row{At: written.Add(-time.Second), Values: []Value{{heartRate, "72.0"}, {Signal: cuffSys}}}, written)
	want := strings.Join([]string{
		`MSH|^~\&|BEDSIDE^0123456789ABCDEF^EUI-64|WARDSIM|||20260101000000.123+0000||ORU^R01^ORU_R01|ABC-1|T|2.6|||AL|NE||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO`,
		`PID|||WL0001^^^WARDSIM&2.25.1234&ISO^MR||^^^^^^U`,
		`PV1||I|ICU^^BED-1`,
		`OBR|1||ABC-1^BEDSIDE^0123456789ABCDEF^EUI-64|182777000^monitoring of patient^SCT|||20251231235959.123+0000`,
		`OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.1|72.0|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R|||20251231235959.123+0000||||0123456789ABCDEF^^0123456789ABCDEF^EUI-64`,
		`OBX|2|NM|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|1.4.1.1||266016^MDC_DIM_MMHG^MDC||NAV|||X|||20251231235959.123+0000||||0123456789ABCDEF^^0123456789ABCDEF^EUI-64`,
		``}, "\r")
	if string(got) != want || id != "ABC-1" {
		t.Errorf("got\n%s\nwant\n%s", strings.ReplaceAll(string(got), "\r", "\n"), strings.ReplaceAll(want, "\r", "\n"))
	}
	if next, _ := w.message(Row{At: written}, written); next == id {
		t.Errorf("control id %s came twice", id)
	}
}

// A message of waveforms, byte for byte: two OBX for each array, missing samples empty, also at the ends.
func TestWaveMessage(t *testing.T) {
	w := testWriter(time.UTC)
	row := waveRow(written.UnixMilli() - 1000)
	row.Waves[1].Samples = []int32{-32768, 4, -32768}
	_, got := w.message(row, written)
	want := strings.Join([]string{
		`MSH|^~\&|BEDSIDE^0123456789ABCDEF^EUI-64|WARDSIM|||20260101000000.123+0000||ORU^W01^ORU_W01|ABC-1|T|2.6|||AL|NE||UNICODE UTF-8`,
		`PID|||WL0001^^^WARDSIM&2.25.1234&ISO^MR||^^^^^^U`,
		`PV1||I|ICU^^BED-1`,
		`OBR|1||ABC-1^BEDSIDE^0123456789ABCDEF^EUI-64|182777000^monitoring of patient^SCT|||20251231235959.123+0000`,
		`OBX|1|CD|131330&CHN^MDC_ECG_ELEC_POTL_II^MDC|1.9.1.1|1&II^II&^0.001&266418&MDC_DIM_MILLI_VOLT&MDC^1&0&0^500^-2048&2047||||||F|||20251231235959.123+0000`,
		`OBX|2|NA|131330&WAV^MDC_ECG_ELEC_POTL_II^MDC|1.9.1.1|12^13^^-5||||||F|||20251231235959.123+0000`,
		`OBX|3|CD|Nasal \T\ oral&CHN^Nasal \T\ oral^99WARDSIM|1.9.1.2|2&Nasal \T\ oral^Nasal \T\ oral&^0.0257201646&furlong&furlong&99WARDSIM^1&-7&0^62.5^-32768&32767||||||F|||20251231235959.131+0000`,
		`OBX|4|NA|Nasal \T\ oral&WAV^Nasal \T\ oral^99WARDSIM|1.9.1.2|^4^||||||F|||20251231235959.131+0000`,
		``}, "\r")
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", strings.ReplaceAll(string(got), "\r", "\n"), strings.ReplaceAll(want, "\r", "\n"))
	}
}

func TestTimesCarryTheirZone(t *testing.T) {
	w := testWriter(time.FixedZone("", -(3*3600 + 1800)))
	if got := w.time(written); got != "20251231203000.123-0330" {
		t.Error(got)
	}
}

func TestDelimitersAreHidden(t *testing.T) {
	w := testWriter(time.UTC)
	w.bed = `a|b^c&d~e\f`
	_, got := w.message(Row{At: written}, written)
	if want := `PV1||I|ICU^^a\F\b\S\c\T\d\R\e\E\f` + "\r"; !strings.Contains(string(got), want) {
		t.Errorf("%q is not in %q", want, got)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		alter func(*Config)
		want  string // the error must name it
	}{
		"no port":            {func(c *Config) { c.Address = "127.0.0.1" }, "host:port"},
		"plain to a network": {func(c *Config) { c.Address = "192.0.2.1:2575" }, "set TLS"},
		"plain to a name":    {func(c *Config) { c.Address = "localhost.example.org:2575" }, "set TLS"},
		"no source":          {func(c *Config) { c.Source = nil }, "Simulate"},
		"no device":          {func(c *Config) { c.Device = 0 }, "EUI-64"},
		"no patient":         {func(c *Config) { c.Patient.ID = "" }, "patient"},
		"no authority":       {func(c *Config) { c.Patient.OID = "" }, "authority"},
		"a segment in a bed": {func(c *Config) { c.Bed = "1\rOBX|1" }, "control character"},
		"negative timeout":   {func(c *Config) { c.AckTimeout = -1 }, "timeout"},
		"negative speed":     {func(c *Config) { c.Speed = -1 }, "speed"},
		"no number of speed": {func(c *Config) { c.Speed = math.NaN() }, "speed"},
	} {
		cfg := testConfig(rows(1))
		tc.alter(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, address := range []string{"localhost:1", "127.0.0.1:1", "[::1]:1"} {
		cfg := testConfig(rows(1))
		cfg.Address = address
		if _, err := New(cfg); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}
