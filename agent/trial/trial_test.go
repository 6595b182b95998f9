package trial

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// oru is one message in original mode, its lines ending in CR.
func oru(id string, obx ...string) string {
	return "MSH|^~\\&|MON|W|||20260102030405||ORU^R01|" + id + "|P|2.6\rPID|||P-" + id + "^^^HOSP\r" + strings.Join(obx, "\r") + "\r"
}

const heartRate = "OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC||80|bpm|||||F"

func mustRead(t *testing.T, data string) Report {
	t.Helper()
	r, err := Read([]byte(data), time.UTC, now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ids(r Report) (out []string) {
	for _, m := range r.Messages {
		out = append(out, m.ControlID)
	}
	return out
}

func framed(msgs ...string) string {
	var b bytes.Buffer
	for _, m := range msgs {
		if err := hl7.WriteFrame(&b, []byte(m)); err != nil {
			panic(err)
		}
	}
	return b.String()
}

// However a file holds its messages, the same are found.
func TestForms(t *testing.T) {
	a, b := oru("1", heartRate), oru("2", heartRate, heartRate)
	lf := func(s string) string { return strings.ReplaceAll(s, "\r", "\n") }
	crlf := func(s string) string { return strings.ReplaceAll(s, "\r", "\r\n") }
	for name, file := range map[string]string{
		"cr": a + b, "lf": lf(a + b), "crlf": crlf(a + b), "framed": framed(a, b), "framed, line ends between": framed(a) + "\n\n" + framed(b),
		"framed lf": framed(lf(a), lf(b)), "no last line end": strings.TrimRight(a+b, "\r"), "blank lines": "\n\n" + lf(a) + "\n\n" + lf(b) + "\n",
		"byte order mark": "\ufeff" + crlf(a+b), "batch": lf("FHS|^~\\&|X\rBHS|^~\\&|X\r" + a + b + "BTS|2\rFTS|1\r"),
	} {
		r := mustRead(t, file)
		if !slices.Equal(ids(r), []string{"1", "2"}) || r.Understood != 2 || r.InPart+r.Refused != 0 || r.Observations != 3 {
			t.Errorf("%s: %q, %+v", name, ids(r), r)
			continue
		}
		for _, m := range r.Messages {
			if m.Framed != strings.HasPrefix(name, "framed") || m.Answer.Code != "AA" {
				t.Errorf("%s: framed %v, answered %q", name, m.Framed, m.Answer.Code)
			}
			if got := file[m.Offset : m.Offset+m.Bytes]; !strings.Contains(got, "|ORU^R01|"+m.ControlID+"|") {
				t.Errorf("%s: offset %d and %d bytes name %q", name, m.Offset, m.Bytes, got)
			}
		}
	}
}

// What a device would have to mend is told apart from what we do not understand, and never hides the next message.
func TestRefused(t *testing.T) {
	good := oru("9", heartRate)
	long := oru("5", "OBX|1|ST|1||"+strings.Repeat("x", telemetry.MaxMessage))
	for name, c := range map[string]struct {
		file, refused, answer string
		messages              int
	}{
		"no header":            {"PID|||1\rOBX|1\r" + good, "no usable MSH", "AR", 2},
		"not HL7":              {"a,b,c\n1,2,3\n", "no usable MSH", "AR", 1},
		"too long":             {long + good, "too long", "AR", 2},
		"framed too long":      {framed(long, good), "too long", "AR", 2},
		"bytes between frames": {framed(good) + "garbage" + framed(good), "not framed", "AR", 3},
		"a frame within":       {"\x0b" + good + framed(good), "not framed", "AR", 2},
		"cut off":              {framed(good) + framed(good)[:60], "ends within", "", 2},
		"no end at all":        {framed(long)[:65600], "too long", "AR", 1},
	} {
		r := mustRead(t, c.file)
		i := slices.IndexFunc(r.Messages, func(m Message) bool { return m.Refused != "" })
		if len(r.Messages) != c.messages || i < 0 || r.Refused != 1 || r.Understood != c.messages-1 {
			t.Errorf("%s: %+v", name, r)
			continue
		}
		if m := r.Messages[i]; !strings.Contains(m.Refused, c.refused) || m.Answer.Code != c.answer {
			t.Errorf("%s: refused %q, answered %q", name, m.Refused, m.Answer.Code)
		}
	}
	for name, file := range map[string]string{"empty": "", "blank": " \r\n\r\n", "UTF-16": "\xff\xfeM\x00S\x00H\x00"} {
		if r, err := Read([]byte(file), time.UTC, now); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// One real message of the profile, field by field.
func TestFields(t *testing.T) {
	raw, err := os.ReadFile("../../telemetry/hl7/testdata/messages/pcd-01.hl7")
	if err != nil {
		t.Fatal(err)
	}
	r := mustRead(t, string(raw))
	m := r.Messages[0]
	if m.Lane != "vitals" || m.Type != "ORU^R01^ORU_R01" || m.ControlID != "MSGID1234" || m.Sender != "ACME_Gateway" || m.Processing != "T" ||
		m.Patient != (Patient{ID: "789567", Authority: "Imaginary Hospital", Location: "HO Surgery^OR^1"}) || m.Answer.Code != "CA" || m.Encoded == 0 {
		t.Errorf("%+v", m)
	}
	at := time.Date(2026, 1, 2, 2, 4, 5, 100e6, time.UTC)
	want := Observation{
		Index: 1, Type: "NM", Value: "98.60", Status: "R", Limits: "90^100", SubID: "1.3.1.150456", Marks: []string{}, Judgement: "plausible",
		Code: Code{Sent: "150456^MDC_PULS_OXIM_SAT_O2^MDC", MDC: 150456, Ref: "MDC_PULS_OXIM_SAT_O2", Name: "Oxygen saturation"},
		Unit: Unit{Sent: "{%}^%^UCUM", UCUM: "%"}, Time: Time{Sent: "20260102030405.1+0100", Read: &at}, Range: &Range{0, 100, "%"},
		FHIR: FHIR{Text: "Oxygen saturation", LOINC: []string{"2708-6", "59408-5"}, Category: "vital-signs",
			Profile: "http://hl7.org/fhir/StructureDefinition/oxygensat"},
	}
	if !reflect.DeepEqual(m.Observations[1], want) {
		t.Errorf("%+v\nwant\n%+v", m.Observations[1], want)
	}
	if o := m.Observations[3]; o.Judgement != "implausible" || o.FHIR.Profile != "" || !slices.Equal(o.Marks, []string{"implausible"}) {
		t.Errorf("400 mmHg: %+v", o)
	}
	if o := m.Observations[4]; o.Judgement != "no reading" {
		t.Errorf("status X: %+v", o)
	}
	if p := m.Problems; len(p) != 1 || p[0].Where != "OBX[5]-3" || len(p[0].Segments) != 1 || !strings.HasPrefix(p[0].Segments[0], "OBX|6|ST|150999") {
		t.Errorf("%+v", p)
	}
}

// Each problem comes with the segment that it names.
func TestProblemShowsItsSegment(t *testing.T) {
	first, second := "OBX|1|NM|147842^^MDC||80|furlong|||||F", "OBX|2|NM|1^UNHEARD^99X||abc|bpm||||||||yesterday"
	for where, c := range map[string]struct {
		message string
		want    []string
	}{
		"OBX[0]-6":   {oru("1", first, second), []string{first}},
		"OBX[1]-3":   {oru("1", first, second), []string{second}},
		"OBX[1]-14":  {oru("1", first, second), []string{second}},
		"segment[3]": {oru("1", first, "ZZZ|1", second), []string{"ZZZ|1"}},
		"PID":        {oru("1", heartRate, "PID|||other", heartRate), []string{"PID|||P-1^^^HOSP", "PID|||other"}},
		"MSH-9":      {"MSH|^~\\&|A|B|||x||ADT^A01|9|P|2.3\r", []string{"MSH|^~\\&|A|B|||x||ADT^A01|9|P|2.3"}},
		"OBX":        {"MSH|^~\\&|A|B|||x||ORU^R01|9|P|2.3\r", nil},
	} {
		m := mustRead(t, c.message).Messages[0]
		i := slices.IndexFunc(m.Problems, func(p Problem) bool { return p.Where == where })
		if i < 0 || !slices.Equal(m.Problems[i].Segments, c.want) {
			t.Errorf("%s: %+v", where, m.Problems)
		}
	}
}

// A unit that is not one of its measure loses its LOINC code, as in FHIR; so does an unknown one.
func TestNaming(t *testing.T) {
	for unit, want := range map[string]int{"bpm": 2, "mmHg": 0, "furlong": 0, "": 0} {
		o := mustRead(t, oru("1", "OBX|1|NM|147842^^MDC||80|"+unit+"|||||F")).Messages[0].Observations[0]
		if len(o.FHIR.LOINC) != want || (o.FHIR.Profile != "") != (want > 0) {
			t.Errorf("%q: %+v", unit, o.FHIR)
		}
	}
	anonymous := "MSH|^~\\&|MON|W|||20260102030405||ORU^R01|1|P|2.6\r" + heartRate
	if f := mustRead(t, anonymous).Messages[0].Observations[0].FHIR; f.Profile != "" {
		t.Errorf("no patient: %+v", f)
	}
}

func TestZone(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Read([]byte(oru("1", heartRate)), zone, now)
	if err != nil {
		t.Fatal(err)
	}
	if at := r.Messages[0].Observations[0].Time.Read; !at.Equal(time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC)) {
		t.Error(at)
	}
}

// No control character of a message reaches the terminal, in whatever field it stands.
func TestPrintIsSafe(t *testing.T) {
	evil := "\x1b[2J\x9b31m\u202e"
	file := "MSH|^~\\&|M" + evil + "|W|||2026" + evil + "||ORU^R01|" + evil + "|P" + evil + "|2.6\rPID|||" + evil + "^^^" + evil + "\rPV1||I|" + evil + "\r" +
		"OBX|1|ST" + evil + "|1^" + evil + "^X|" + evil + "|" + evil + "|" + evil + "|" + evil + "|" + evil + "|||" + evil + "|||" + evil + "\r" + evil + "|x\r"
	r := mustRead(t, file)
	for _, odd := range []bool{false, true} {
		var out bytes.Buffer
		if err := r.Print(&out, odd); err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(out.Bytes(), func(c rune) bool {
			return c != '\n' && (c < ' ' || c >= 0x7f && c < 0xa0 || c == 0x202e || c == 0xfffd)
		}); i >= 0 {
			t.Errorf("odd %v: %q", odd, out.Bytes()[max(0, i-20):min(out.Len(), i+20)])
		}
	}
}

// An observation of which something was not understood is odd, also when it carries no mark.
func TestPrintOddValue(t *testing.T) {
	var out bytes.Buffer
	if err := mustRead(t, oru("loud", heartRate, strings.Replace(strings.Replace(heartRate, "OBX|1|", "OBX|2|", 1), "||80|", "||abc|", 1))).Print(&out, true); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "OBX[1]  Heart rate (ECG): abc") || strings.Contains(s, "OBX[0]") {
		t.Error(s)
	}
}

func TestPrintOdd(t *testing.T) {
	r := mustRead(t, oru("quiet", heartRate)+oru("loud", heartRate, "OBX|2|NM|1^UNHEARD^99X||3|bpm"))
	var out bytes.Buffer
	if err := r.Print(&out, true); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "loud") || strings.Contains(s, "OBX[0]") ||
		!strings.Contains(s, "OBX[1]-3: code is not known\n      OBX|2|NM|1^UNHEARD^99X||3|bpm\n") || !strings.Contains(s, "1 understood, 1 in part") {
		t.Error(s)
	}
}

// FuzzRead: any file gives a report or an error, every message has its place in the file, and the report prints and is JSON.
func FuzzRead(f *testing.F) {
	paths, err := filepath.Glob("../../telemetry/hl7/testdata/messages/*.hl7")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	var all []string
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		all = append(all, string(b))
	}
	f.Add([]byte(framed(all...)))
	f.Add([]byte("BHS|x\n" + strings.Join(all, "\n") + "BTS|1"))
	f.Add([]byte("\x0bMSH|\x0b\x1c\r\x0b\x1c"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Read(data, nil, now)
		if err != nil {
			return
		}
		if r.Understood+r.InPart+r.Refused != len(r.Messages) || len(r.Messages) == 0 {
			t.Errorf("%+v", r)
		}
		for _, m := range r.Messages {
			if m.Offset < 0 || m.Bytes < 0 || m.Offset+m.Bytes > len(data) {
				t.Errorf("%d bytes at %d of %d", m.Bytes, m.Offset, len(data))
			}
		}
		var out bytes.Buffer
		if err := r.Print(&out, false); err != nil {
			t.Error(err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}
