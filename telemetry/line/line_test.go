package line

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"

	"wardlink/telemetry"
)

const vitals = `{"id":"m-1","bed":"ICU^12","device":"0003B1","time":"2026-11-22T14:30:00.25+01:00","patient":{"id":"4711","authority":"HOSP","visit":"V9"},` +
	`"observations":[{"code":"MDC_ECG_HEART_RATE","value":72,"unit":"/min"},{"code":150456,"value":97.0,"unit":"%","sub":"1.2","status":"F"}]}`

// sent is vitals's times in Unix milliseconds.
const sent = 1795354200250

func understand(t *testing.T, raw string) (telemetry.Message, telemetry.Lane) {
	t.Helper()
	m, _, err := Understand([]byte(raw), Options{Source: "pump"})
	if err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	lane, ours := LaneOf(&m)
	if !ours {
		t.Errorf("%s: not of a line socket", raw)
	}
	return m, lane
}

// one gives the observation of a message that has one.
func one(t *testing.T, fields string) (telemetry.Observation, []telemetry.Problem) {
	t.Helper()
	m, _ := understand(t, `{"id":1,"time":"2026-11-22T14:30:00Z","observations":[`+fields+`]}`)
	if len(m.Observations) != 1 {
		t.Fatalf("%s gives %d observations, problems %v", fields, len(m.Observations), m.Problems)
	}
	if (len(m.Problems) > 0) != (m.Raw != nil) {
		t.Errorf("%s: problems %v, raw %q", fields, m.Problems, m.Raw)
	}
	return m.Observations[0], m.Problems
}

func TestUnderstandsVitals(t *testing.T) {
	m, lane := understand(t, vitals)
	want := telemetry.Message{
		Source: "pump", Digest: m.Digest, Type: "LINE", ControlID: "m-1", Processing: "P", SentAt: "2026-11-22T14:30:00.25+01:00",
		Patient: telemetry.Patient{ID: "4711", Authority: "HOSP", Location: "ICU^12", Visit: "V9"},
		Observations: []telemetry.Observation{
			{Index: 0, Type: "NM", Code: telemetry.Code{MDC: 147842, ID: "MDC_ECG_HEART_RATE", Name: "MDC_ECG_HEART_RATE", Sys: "MDC"}, Value: "72",
				Unit: telemetry.Unit{Sent: "/min", UCUM: "/min"}, Time: "2026-11-22T14:30:00.25+01:00", At: sent, Device: "0003B1"},
			{Index: 1, Type: "NM", Code: telemetry.Code{MDC: 150456, ID: "150456", Sys: "MDC"}, Value: "97.0", SubID: "1.2", Status: "F",
				Unit: telemetry.Unit{Sent: "%", UCUM: "%"}, Time: "2026-11-22T14:30:00.25+01:00", At: sent, Device: "0003B1"},
		},
	}
	if d := cmp.Diff(want, m); d != "" {
		t.Error(d)
	}
	if lane != telemetry.LaneVitals {
		t.Errorf("lane %v", lane)
	}
	if _, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{m}}); err != nil {
		t.Error(err)
	}
}

// A number keeps every digit that was sent; only an exponent is written out.
func TestNumbersKeepTheirDigits(t *testing.T) {
	for sent, want := range map[string]string{
		"72": "72", "72.50": "72.50", "-0.10": "-0.10", "0": "0", "1e1": "10", "1.5E+2": "150", "1.25e1": "12.5", "-25e-3": "-0.025", "1e-07": "0.0000001",
		"0.1": "0.1", "98.60000000000000000001": "98.60000000000000000001", "9007199254740993": "9007199254740993", `"98.60"`: "98.60", `" 7 "`: "7",
		"1e400": "1e400",
	} {
		if o, _ := one(t, `{"code":"MDC_TEMP","unit":"Cel","value":`+sent+`}`); o.Value != want || o.Type != "NM" && sent != "1e400" {
			t.Errorf("%s: %q (%s), want %q", sent, o.Value, o.Type, want)
		}
	}
}

func TestMarksAndProblems(t *testing.T) {
	for _, c := range []struct {
		fields string
		marks  telemetry.Marks
		where  string // of the one problem, "" for none
	}{
		{`{"code":"MDC_ECG_HEART_RATE","value":0,"unit":"/min"}`, 0, ""},
		{`{"code":"MDC_ECG_HEART_RATE","value":999,"unit":"/min"}`, telemetry.MarkImplausible, ""},
		{`{"code":"MDC_ECG_HEART_RATE","value":null,"unit":"/min"}`, telemetry.MarkNoReading, ""},
		{`{"code":"MDC_ECG_HEART_RATE","unit":"/min"}`, telemetry.MarkNoReading, ""},
		{`{"code":"MDC_ECG_HEART_RATE","value":-999,"unit":"/min"}`, telemetry.MarkNoReading, ""},
		{`{"code":"MDC_ECG_HEART_RATE","value":72}`, telemetry.MarkUnknownUnit, "observations[0].unit"},
		{`{"code":"MDC_ECG_HEART_RATE","value":72,"unit":"furlong"}`, telemetry.MarkUnknownUnit, "observations[0].unit"},
		{`{"code":"MDC_ECG_HEART_RATE","value":72,"unit":"mm[Hg]"}`, telemetry.MarkImplausible, "observations[0].unit"},
		{`{"code":"MDC_NEVER_HEARD","value":1,"unit":"1"}`, telemetry.MarkUnknownCode, "observations[0].code"},
		{`{"code":"8867-4","system":"LOINC","value":72,"unit":"/min"}`, telemetry.MarkUnknownCode, "observations[0].code"},
		{`{"code":147842,"name":"MDC_TEMP","value":36,"unit":"Cel"}`, telemetry.MarkUnknownCode, "observations[0].code"},
		{`{"value":1,"unit":"1"}`, telemetry.MarkUnknownCode, "observations[0].code"},
		{`{"code":"MDC_TEMP","value":37,"unit":"Cel","time":"yesterday"}`, telemetry.MarkTimeUnread, "observations[0].time"},
		{`{"code":"MDC_TEMP","value":37,"unit":"Cel","time":null}`, 0, ""},
		{`{"code":"MDC_TEMP","value":37,"unit":"Cel","colour":"red"}`, 0, "observations[0]"},
		{`{"code":"MDC_TEMP","value":[37],"unit":"Cel"}`, telemetry.MarkNoReading, "observations[0].value"},
		{`{"code":"MDC_TEMP","value":37,"unit":"Cel","status":7}`, 0, "observations[0].status"},
	} {
		o, problems := one(t, c.fields)
		if o.Marks != c.marks || len(problems) > 1 || len(problems) == 1 && problems[0].Where != c.where || len(problems) == 0 && c.where != "" {
			t.Errorf("%s: marks %d, problems %v; want %d, %q", c.fields, o.Marks, problems, c.marks, c.where)
		}
	}
}

func TestTimes(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int64{
		"2026-11-22T14:30:00.25+01:00": sent, "2026-11-22T13:30:00.250Z": sent, "2026-11-22T14:30:00.25": sent, "2026-11-22 14:30:00.25": sent,
		"2016-12-31T23:59:60Z": 1483228800000, "1970-01-01T00:00:00Z": 0,
	} {
		m, _, err := Understand([]byte(`{"id":1,"time":"`+text+`","observations":[]}`), Options{Zone: berlin})
		if err != nil || len(m.Problems) > 0 {
			t.Fatalf("%s: %v %v", text, m.Problems, err)
		}
		m, _, _ = Understand([]byte(`{"id":1,"observations":[{"code":"MDC_TEMP","value":37,"unit":"Cel","time":"`+text+`"}]}`), Options{Zone: berlin})
		if o := m.Observations[0]; o.At != want || o.Marks != 0 || o.Time != text {
			t.Errorf("%s: at %d, marks %d", text, o.At, o.Marks)
		}
	}
	// When clocks are set: of a local time that the zone has twice the earlier, and marked; which of the two a device can say.
	for text, want := range map[string]struct {
		at    string
		marks telemetry.Marks
	}{
		"2026-03-29T02:30:00": {"2026-03-29T01:30:00Z", telemetry.MarkTimeUnsure}, "2026-03-29 03:00:00": {"2026-03-29T01:00:00Z", 0}, "2026-10-25T01:59:59": {"2026-10-24T23:59:59Z", 0},
		"2026-10-25 02:30:00": {"2026-10-25T00:30:00Z", telemetry.MarkTimeUnsure}, "2026-10-25T02:30:00+01:00": {"2026-10-25T01:30:00Z", 0},
	} {
		m, _, err := Understand([]byte(`{"id":1,"time":"`+text+`","observations":[{"code":"MDC_TEMP","value":37,"unit":"Cel"}]}`), Options{Zone: berlin})
		if err != nil || len(m.Problems) > 0 {
			t.Fatalf("%s: %v %v", text, m.Problems, err)
		}
		if o := m.Observations[0]; time.UnixMilli(o.At).UTC().Format(time.RFC3339) != want.at || o.Marks != want.marks || o.Time != text {
			t.Errorf("%s: at %s, marks %d", text, time.UnixMilli(o.At).UTC().Format(time.RFC3339), o.Marks)
		}
	}
	m, _ := understand(t, `{"id":1,"observations":[{"code":"MDC_TEMP","value":37,"unit":"Cel"}]}`)
	if o := m.Observations[0]; o.Marks != telemetry.MarkTimeUnread || m.Raw != nil {
		t.Errorf("without a clock: marks %d, raw %q", o.Marks, m.Raw)
	}
}

func TestAlarmsTravelAsTheyCameToo(t *testing.T) {
	raw := `{"alarms":[{"code":196652,"name":"Asystole","priority":"high","state":"start"}],"observations":[{"code":"MDC_ECG_HEART_RATE","value":0,"unit":"/min"}],"id":"a"}`
	m, lane := understand(t, raw)
	if lane != telemetry.LaneAlarm || string(m.Raw) != raw || len(m.Observations) != 2 {
		t.Fatalf("lane %v, raw %q, %d observations", lane, m.Raw, len(m.Observations))
	}
	if a := m.Observations[0]; a.Index != 0 || a.Flags != "PH" || a.Value != "start" || a.Type != "ST" || a.Code.Name != "Asystole" {
		t.Errorf("%+v", a)
	}
	if o := m.Observations[1]; o.Index != 1 || o.Value != "0" || o.Marks&telemetry.MarkNoReading != 0 {
		t.Errorf("%+v", o)
	}
}

func TestWaveforms(t *testing.T) {
	m, lane := understand(t, `{"id":9,"time":"2026-11-22T13:30:00Z","waveforms":[{"code":"MDC_ECG_ELEC_POTL_II","unit":"mV","label":"II","period":2,"factor":1e-3,"lower":-2.048,"upper":2.047,"samples":[12,13,null,-5]}]}`)
	if lane != telemetry.LaneWaveform || len(m.Problems) > 0 || len(m.Waveforms) != 1 {
		t.Fatalf("lane %v, problems %v, %d waveforms", lane, m.Problems, len(m.Waveforms))
	}
	w := m.Waveforms[0]
	if d := cmp.Diff([]int32{12, 13, telemetry.MissingSample, -5}, w.Samples); d != "" || w.Period != "2" || w.Factor != "0.001" || w.Origin != "0" || w.Lower != "-2.048" {
		t.Errorf("%+v %s", w, d)
	}
	for _, bad := range []string{
		`{"samples":[1]}`, `{"period":0,"samples":[1]}`, `{"period":-4,"samples":[1]}`, `{"period":4,"samples":[1.5]}`, `{"period":4,"samples":["1"]}`,
		`{"period":4}`, `{"period":4,"samples":[2147483648]}`, `{"period":4,"factor":0,"samples":[1]}`, `{"period":"x","samples":[1]}`,
		`{"period":4,"period":2,"samples":[1]}`, `{"period":4,"factor":1e99,"samples":[1]}`,
	} {
		if m, _ := understand(t, `{"id":9,"waveforms":[`+bad+`]}`); len(m.Waveforms) != 0 || m.Raw == nil {
			t.Errorf("%s: %+v, raw %q", bad, m.Waveforms, m.Raw)
		}
	}
}

// An identifier that is not certain is nobody's.
func TestPatientIsCertainOrEmpty(t *testing.T) {
	for _, p := range []string{
		`{"id":"47\ufffd1"}`, `{"id":"` + strings.Repeat("1", 201) + `"}`, `{"id":"1","id":"2"}`, `{"id":"1","authority":"A\u0000"}`, `{"id":4711}`, `"4711"`,
		"{\"id\":\"47\xff1\"}", `{"id":"1"},"patient":{"id":"2"}`,
	} {
		m, _ := understand(t, `{"id":1,"patient":`+p+`,"observations":[]}`)
		if m.Patient.ID != "" || m.Raw == nil {
			t.Errorf("%s: %+v", p, m.Patient)
		}
	}
}

func TestRefusesWhatHasNoFrameOrNoID(t *testing.T) {
	for raw, field := range map[string]string{
		`{"observations":[]}`: "id", `{"id":null}`: "id", `{"id":""}`: "id", `{"id":1.5}`: "id", `{"id":1e2}`: "", `{"id":true}`: "id", `{"id":"a","id":"a"}`: "id",
		`{"id":"a\n"}`: "id", `{"id":"` + strings.Repeat("x", 201) + `"}`: "id", `{"id":1234567890123456789}`: "id", `{"id":["a"]}`: "id",
		`[1]`: "message", `7`: "message", `{`: "message", `{"id":1}}`: "message", `{"id":1,}`: "message", `{id:1}`: "message", `GET / HTTP/1.1`: "message", ``: "message",
		`{"id":1,"x":` + strings.Repeat("[", 16) + strings.Repeat("]", 16) + `}`: "message",
		`{"id":1,"x":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `}`: "",
		strings.Repeat("x", telemetry.MaxMessage+1):                              "message",
		"\xa0": "id", "\xa1\x01": "message", "\xa1\x01\x07\x00": "message", "\x9f\xff": "message", "\xfa0000": "message", "\xc4\xa0": "message", "\xbf\x01\xff": "message", "\xa1\xc0\xff": "message", "\xa1\x01\xf8\x01": "message",
	} {
		_, _, err := Understand([]byte(raw), Options{})
		var r *RefusedError
		if field == "" && err != nil || field != "" && (!errors.As(err, &r) || r.Field != field) {
			t.Errorf("%.60q: %v, want field %q", raw, err, field)
		}
	}
}

// The same message in both forms, by names and by numbers, becomes the same.
func TestCBORIsTheSame(t *testing.T) {
	want, wantLane := understand(t, vitals)
	decoder := json.NewDecoder(strings.NewReader(vitals))
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	var numbered func(v any) any
	numbered = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			out := map[any]any{}
			for k, e := range v {
				if keyOf(k) == 0 {
					t.Fatalf("key %q", k)
				}
				out[keyOf(k)] = numbered(e)
			}
			return out
		case []any:
			for i := range v {
				v[i] = numbered(v[i])
			}
		}
		return v
	}
	byName, err := cbor.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	byNumber, err := cbor.Marshal(cbor.RawTag{Number: 55799, Content: must(cbor.Marshal(numbered(tree)))})
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range [][]byte{byName, byNumber} {
		m, lane := understand(t, string(raw))
		m.Digest = want.Digest
		want := want
		want.Observations = append([]telemetry.Observation(nil), want.Observations...)
		want.Observations[1].Value = "97" // a float has no digits behind its point
		if d := cmp.Diff(want, m); d != "" || lane != wantLane {
			t.Errorf("%x: lane %v %s", raw, lane, d)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestCBORNumbers(t *testing.T) {
	for number, want := range map[string]string{
		"18 48": "72", "20": "-1", "3b ffff ffff ffff ffff": "-18446744073709551616", "1b ffff ffff ffff ffff": "18446744073709551615", "f9 3e00": "1.5",
		"f9 0001": "0.000000059604645", "fa 42c50000": "98.5", "fa 3dcccccd": "0.1", "fb 4058a66666666666": "98.6", "c4 82 21 19 2684": "98.60", "c4 82 01 07": "70",
		"fb 7ff0 0000 0000 0000": "+Inf", "f9 7e00": "NaN", "c1 18 48": "72",
	} {
		text, err := hex.DecodeString(strings.ReplaceAll(number, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		raw := append([]byte("\xa2\x01\x01\x07\x81\xa2\x0a\x68MDC_TEMP\x0d"), text...)
		m, _ := understand(t, string(raw))
		if o := m.Observations[0]; o.Value != want {
			t.Errorf("%s: %q, want %q", number, o.Value, want)
		}
	}
}

func TestReaderTakesBothFormsInTurn(t *testing.T) {
	item := string(must(cbor.Marshal(map[string]any{"id": 7})))
	stream := "\n" + vitals + "\r\n\n" + item + item + "  {\"id\":1}\n" + strings.Repeat("x", 5000) + "\n" + "not json\n" + item + `{"id":2}`
	want := []string{vitals, item, item, `{"id":1}`, "", "not json", item, `{"id":2}`}
	for name, r := range map[string]io.Reader{"whole": strings.NewReader(stream), "by bytes": iotest.OneByteReader(strings.NewReader(stream))} {
		reader := NewReader(r, 4000)
		for i, w := range want {
			raw, whole, err := reader.Next()
			if w == "" {
				if !errors.Is(err, ErrTooLong) || !whole {
					t.Errorf("%s %d: %v", name, i, err)
				}
			} else if err != nil || string(raw) != w {
				t.Fatalf("%s %d: %q %v, want %q", name, i, raw, err, w)
			}
		}
		if _, _, err := reader.Next(); err != io.EOF {
			t.Errorf("%s: %v at the end", name, err)
		}
	}
}

func TestReaderTellsWhereNothingFollows(t *testing.T) {
	for stream, want := range map[string]error{
		`{"id":1,`: io.ErrUnexpectedEOF, "\xa1": io.ErrUnexpectedEOF, "\xa1\x01": io.ErrUnexpectedEOF, "\x81\x01": ErrFraming, "\xff": ErrFraming,
		"\xa1\x1c": ErrFraming, "\xbf\x01\xff": ErrFraming, "\xa1\x01" + strings.Repeat("\x81", MaxDepth): ErrFraming,
		"\xa1\x01\x7a\x00\x01\x00\x00" + strings.Repeat("x", 5000): ErrTooLong,
	} {
		if raw, whole, err := NewReader(strings.NewReader(stream), 4000).Next(); !errors.Is(err, want) || whole {
			t.Errorf("%.20q: %q %v %v, want %v", stream, raw, whole, err, want)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, id := range []ID{{}, {"a\"\\ü", false}, {"7", true}, {"7", false}, {"-7", true}, {"123456789012345678", true}, {"255", true}, {"65535", true}, {"65536", true}, {"-4294967296", true}, {"4294967296", true}, {strings.Repeat("x", 200), false}} {
		var want any
		if err := json.Unmarshal(quoteID(nil, id), &want); err != nil {
			t.Fatal(err)
		}
		for _, answer := range [][]byte{OK(id, false), Refusal(id, RefusedLong, false)} {
			var got map[string]any
			if err := json.Unmarshal(answer, &got); err != nil || !bytes.HasSuffix(answer, []byte("}\n")) || bytes.Count(answer, []byte("\n")) != 1 {
				t.Fatalf("%s: %v", answer, err)
			}
			if got["ok"] != want && got["id"] != want || got["error"] != nil && got["error"] != RefusedLong.Error() {
				t.Errorf("%s: %v", answer, got)
			}
		}
		for _, answer := range [][]byte{OK(id, true), Refusal(id, RefusedLong, true)} {
			var got map[string]any
			if err := cbor.Unmarshal(answer, &got); err != nil {
				t.Fatalf("%x: %v", answer, err)
			}
			v := got["ok"]
			if got["error"] != nil {
				v = got["id"]
			}
			if shortest, err := cbor.Marshal(map[string]any{"ok": v}); err != nil || got["error"] == nil && !bytes.Equal(answer, shortest) {
				t.Errorf("%x; its shortest form is %x, %v", answer, shortest, err)
			}
			if text := fmt.Sprint(v); id.Text != "" && text != id.Text || id.Text == "" && v != nil {
				t.Errorf("%x: %v", answer, got)
			}
		}
	}
}

func TestMoreReadingsThanAreRead(t *testing.T) {
	m, _ := understand(t, `{"id":1,"observations":[`+strings.Repeat(`{},`, MaxReadings)+`{}]}`)
	if len(m.Observations) != MaxReadings || m.Raw == nil || len(m.Problems) > maxProblems {
		t.Errorf("%d observations, %d problems", len(m.Observations), len(m.Problems))
	}
}

func FuzzUnderstand(f *testing.F) {
	f.Add([]byte(vitals))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, id, err := Understand(raw, Options{Source: "fuzz"})
		var r *RefusedError
		if err != nil {
			if !errors.As(err, &r) {
				t.Fatal(err)
			}
			return
		}
		if !json.Valid(OK(id, false)) || cbor.Wellformed(OK(id, true)) != nil {
			t.Fatalf("answer to %+v", id)
		}
		if !IsCBOR(raw) && !json.Valid(bytes.TrimPrefix(raw, bom[:])) || IsCBOR(raw) && cbor.Wellformed(raw) != nil {
			t.Fatal("taken though it is not well-formed")
		}
		for _, p := range m.Problems {
			if len(p.Where) > 60 {
				t.Fatalf("problem at %q", p.Where)
			}
		}
		encoded, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{m}})
		if errors.Is(err, telemetry.ErrTooLarge) {
			encoded, err = telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{telemetry.RawOnly(m, raw)}})
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := telemetry.Decode(encoded); err != nil {
			t.Fatal(err)
		}
	})
}

// Reader finds the same messages however the stream is cut, and gives none that Understand has not to judge.
func FuzzReader(f *testing.F) {
	f.Add([]byte("{\"id\":1}\n\xa1\x01\x07{}\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		read := func(r io.Reader) (out []string) {
			reader := NewReader(r, 200)
			for range 1000 {
				raw, whole, err := reader.Next()
				out = append(out, fmt.Sprintf("%q %v", raw, err))
				if err != nil && !whole {
					return out
				}
				if len(raw) > 200 {
					t.Fatal("over-long")
				}
			}
			return out
		}
		if d := cmp.Diff(read(bytes.NewReader(stream)), read(iotest.OneByteReader(bytes.NewReader(stream)))); d != "" {
			t.Fatal(d)
		}
	})
}

func BenchmarkUnderstand(b *testing.B) {
	raw := []byte(vitals)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Understand(raw, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
