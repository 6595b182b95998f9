package trial

import (
	"strings"
	"testing"
	"time"
)

func TestReadLines(t *testing.T) {
	heart := `{"id":%,"time":"2026-11-22T14:30:00Z","observations":[{"code":"MDC_ECG_HEART_RATE","value":72,"unit":"/min"}]}`
	a, b := strings.Replace(heart, "%", `"a"`, 1), strings.Replace(heart, "%", "7", 1)
	data := a + "\n\n  " + b + "\r\n" + a + "\n" + strings.Replace(a, "72", "73", 1) + "\nnonsense\n" + strings.Replace(b, "/min", "furlong", 1)[:10] + "\n" +
		strings.Repeat("x", 70000) + "\n\xa1\x01\x08" + strings.Replace(heart, "%", `9`, 1)
	r, err := ReadLines([]byte(data), time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range r.Messages {
		got = append(got, m.Form+" "+m.Answer.Code+" "+m.Lane)
		if m.Refused == "" && m.Form == "JSON" && !strings.HasPrefix(data[m.Offset:], `{"id"`) {
			t.Errorf("message at byte %d: %.10q", m.Offset, data[m.Offset:])
		}
	}
	want := "JSON ok vitals,JSON ok vitals,JSON ok vitals,JSON error ,JSON error ,JSON error ,JSON error ,CBOR ok vitals,JSON ok vitals"
	if s := strings.Join(got, ","); s != want {
		t.Errorf("%s\nwant %s", s, want)
	}
	if r.Understood != 4 || r.InPart != 1 || r.Refused != 4 || r.Observations != 4 {
		t.Errorf("%+v", r)
	}
	var out strings.Builder
	if err := r.Print(&out, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a line of JSON", "a map of CBOR", `{"ok":"a"}`, "LOINC 8867-4", `"id":"a"}`, "neither observations"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not shown: %s", want)
		}
	}
	if _, err := ReadLines([]byte(" \n"), time.UTC); err == nil {
		t.Error("an empty file is read")
	}
	if r, _ := ReadLines([]byte(`{"id":1`), time.UTC); r.Refused != 1 {
		t.Errorf("%+v", r)
	}
}
