package trial

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func w01(id, code, samples string) string {
	return "MSH|^~\\&|MON|W|||20260102030405||ORU^W01^ORU_W01|" + id + "|P|2.6\rPID|||P-" + id + "^^^HOSP\r" +
		"OBX|1|CD|" + code + "|1.1|1&MCL1^^0.001&266418&MDC_DIM_MILLI_VOLT&MDC^1&-10&0^360^-2048&2047\r" +
		"OBX|2|NA|" + code + "|1.1|" + samples + "||||||F\r"
}

const leadII = "131330^MDC_ECG_ELEC_POTL_II^MDC"

func TestWaveformFields(t *testing.T) {
	r := mustRead(t, w01("1", leadII, "12^13^^-5"))
	m := r.Messages[0]
	if r.Waveforms != 1 || r.Observations != 0 || r.Understood != 1 || m.Lane != "waveform" || len(m.Waveforms) != 1 || m.Encoded == 0 {
		t.Fatalf("%+v", r)
	}
	out, err := json.Marshal(m.Waveforms[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"period_ms":"2.777777777778"`, `"factor":"0.001"`, `"origin":"0.01"`, `"lower":"-2.038"`, `"samples":[12,13,null,-5]`, `"missing":1`,
		`"ref":"MDC_ECG_ELEC_POTL_II"`, `"label":"MCL1"`, `"category":"procedure"`, `"marks":[]`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is not in %s", want, out)
		}
	}
	var b strings.Builder
	if err := r.Print(&b, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"lane        waveform", "OBX[1]  ECG lead II (MCL1): 4 samples in 11.111 ms, 1 missing", "period      2.777777777778 ms (360 Hz)",
		"scale       value = 0.01 + sample * 0.001 mV", "channel     from -2.038 to 2.057", "samples     12 13 - -5", "with 0 observations and 1 waveform: 1 understood",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}

// What is noticed of a waveform shows with --odd, though its message is whole; the others stay out.
func TestOddWaveforms(t *testing.T) {
	r := mustRead(t, w01("1", leadII, strings.Repeat("7^", 40)+"7")+w01("2", "1^Nasal\x1b[2J^99X", "1^2")+w01("3", leadII, "1^x"))
	var b strings.Builder
	if err := r.Print(&b, true); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	if strings.Contains(out, "message 1 of 3") || !strings.Contains(out, "message 2 of 3") || !strings.Contains(out, "message 3 of 3") ||
		!strings.Contains(out, "code is not known") || !strings.Contains(out, "array is not one row of numbers") || strings.Contains(out, "\x1b") {
		t.Errorf("%s", out)
	}
	b.Reset()
	if err := r.Print(&b, false); err != nil || !strings.Contains(b.String(), fmt.Sprintf("samples     %s... 29 more", strings.Repeat("7 ", 12))) {
		t.Errorf("%v\n%s", err, b.String())
	}
}
