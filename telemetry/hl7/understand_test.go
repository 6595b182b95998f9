package hl7

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"wardlink/telemetry"
)

func understood(t testing.TB, raw []byte) telemetry.Message {
	t.Helper()
	m, err := Understand(raw, Options{Source: "bed-1", Zone: time.FixedZone("ward", 2*3600)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func at(s string) int64 {
	v, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return v.UnixMilli()
}

func TestPCD01(t *testing.T) {
	raw := seed(t, "pcd-01.hl7")
	got := understood(t, raw)
	obrTime, obrAt := "20260102030400+0100", at("2026-01-02T03:04:00+01:00")
	want := telemetry.Message{
		Source: "bed-1", Digest: sha256.Sum256(raw), Type: "ORU^R01^ORU_R01", ControlID: "MSGID1234", Sender: "ACME_Gateway",
		Processing: "T", SentAt: "20260102030405.678+0100",
		Patient: telemetry.Patient{ID: "789567", Authority: "Imaginary Hospital", Location: "HO Surgery^OR^1"},
		Raw:     raw,
		Problems: []telemetry.Problem{
			{Where: "OBX[5]-3", Reason: "code is not known"},
		},
		Observations: []telemetry.Observation{
			{Index: 0, Code: telemetry.Code{MDC: 69965, ID: "69965", Name: "MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS", Sys: "MDC"},
				SubID: "1.0.0.0", Status: "X", Time: obrTime, At: obrAt, Device: "ACDE48234567ABCD^^ACDE48234567ABCD^EUI-64",
				Marks: telemetry.MarkNoReading},
			{Index: 1, Type: "NM", Code: telemetry.Code{MDC: 150456, ID: "150456", Name: "MDC_PULS_OXIM_SAT_O2", Sys: "MDC"},
				Value: "98.60", Unit: telemetry.Unit{Sent: "{%}^%^UCUM", UCUM: "%"}, SubID: "1.3.1.150456", Limits: "90^100",
				Status: "R", Time: "20260102030405.1+0100", At: at("2026-01-02T03:04:05.1+01:00")},
			{Index: 2, Type: "NM", Code: telemetry.Code{MDC: 149530, ID: "149530", Name: "MDC_PULS_OXIM_PULS_RATE", Sys: "MDC"},
				Value: "0", Unit: telemetry.Unit{Sent: "{beat}/min^{beat}/min^UCUM", UCUM: "/min"}, SubID: "1.3.1.149530",
				Flags: "QUES~PL", Status: "R", Time: "20260102030405+0100", At: at("2026-01-02T03:04:05+01:00")},
			{Index: 3, Type: "NM", Code: telemetry.Code{MDC: 150021, ID: "150021", Name: "MDC_PRESS_BLD_NONINV_SYS", Sys: "MDC"},
				Value: "400", Unit: telemetry.Unit{Sent: "266016^MDC_DIM_MMHG^MDC", UCUM: "mm[Hg]"}, SubID: "1.1.9.150021",
				Status: "R", Time: "20260102030405+0100", At: at("2026-01-02T03:04:05+01:00"), Marks: telemetry.MarkImplausible},
			{Index: 4, Type: "NM", Code: telemetry.Code{MDC: 150022, ID: "150022", Name: "MDC_PRESS_BLD_NONINV_DIA", Sys: "MDC"},
				Unit: telemetry.Unit{Sent: "266016^MDC_DIM_MMHG^MDC", UCUM: "mm[Hg]"}, SubID: "1.1.9.150022",
				Status: "X", Time: obrTime, At: obrAt, Marks: telemetry.MarkNoReading},
			{Index: 5, Type: "ST", Code: telemetry.Code{MDC: 150999, ID: "150999", Name: "MDC_VENDOR_TEXT", Sys: "MDC"},
				Value: "A & B\r", SubID: "1.1.9.1", Status: "F", Time: obrTime, At: obrAt, Marks: telemetry.MarkUnknownCode},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// row is what most tests ask of an observation.
func row(o telemetry.Observation) string {
	return fmt.Sprintf("%d %s %s marks %d", o.Code.MDC, o.Value, o.Unit.UCUM, o.Marks)
}

func TestVendors(t *testing.T) {
	for name, want := range map[string]struct {
		rows     []string
		problems []string
		patient  telemetry.Patient
		first    int64 // time of the first numeric row, Unix milliseconds
	}{
		"ge-b40.hl7": {
			rows: []string{"69965   marks 1", "69798   marks 1", "147842 68 /min marks 0", "151716 1 mm[Hg] marks 0",
				"150344 36.80 Cel marks 0"},
			patient: telemetry.Patient{ID: "3499999", Authority: "PID", Location: "ICU^^443EC"},
			first:   at("2026-03-09T14:39:00+02:00"), // no zone in the message: the source's
		},
		"philips-mdil.hl7": {
			rows: []string{"150368 37.2 Cel marks 0", "150456 97 % marks 0", "147842 61 /min marks 0", "150037 118 mm[Hg] marks 0",
				"192711 36.6 Cel marks 4"},
			problems: []string{"OBX[4]-3 code is not known"},
			patient:  telemetry.Patient{ID: "000038", Location: "ICU1^^Bed 4"},
			first:    at("2026-01-16T16:17:01+02:00"),
		},
		"mindray-egateway.hl7": {
			rows:     []string{"147842 66 /min marks 0", "151578 -100 /min marks 1", "150344 98.1 [degF] marks 0", "0 0 /min marks 4"},
			problems: []string{"OBX[3]-3 code is not known"},
			patient:  telemetry.Patient{ID: "P-100&x", Authority: "HOSP^1.2.3^ISO", Location: "ICU^^12", Visit: "V-77"},
			first:    at("2026-09-12T12:00:00.123+05:30"),
		},
		"alarm-r40.hl7": {
			rows:     []string{"196616 196680^MDC_EVT_LEAD_OFF^MDC  marks 4", "68481 start  marks 0"},
			problems: []string{"MSH-9 alarm is kept as sent", "OBX[0]-3 code is not known"},
			patient:  telemetry.Patient{ID: "P-1"},
			first:    at("2026-01-24T12:47:38+08:00"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			raw := seed(t, name)
			m := understood(t, raw)
			var rows, problems []string
			var when int64
			for _, o := range m.Observations {
				rows = append(rows, row(o))
				if when == 0 && o.Type != "" {
					when = o.At
				}
			}
			for _, p := range m.Problems {
				problems = append(problems, p.Where+" "+p.Reason)
			}
			if d := cmp.Diff(want.rows, rows); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(want.problems, problems); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(want.patient, m.Patient); d != "" {
				t.Error(d)
			}
			if when != want.first {
				t.Errorf("time %d, want %d", when, want.first)
			}
			if kept := m.Raw != nil; kept != (problems != nil) || kept && !bytes.Equal(m.Raw, raw) {
				t.Errorf("raw kept: %v, with problems %v", kept, problems)
			}
		})
	}
	if LaneOf(understood(t, seed(t, "alarm-r40.hl7"))) != telemetry.LaneAlarm || LaneOf(understood(t, seed(t, "ge-b40.hl7"))) != telemetry.LaneVitals {
		t.Error("lanes")
	}
}

// oru is a message with the given segments after a plain MSH.
func oru(segments ...string) []byte {
	return []byte("MSH|^~\\&|A|B|C|D|20260101120000+0000||ORU^R01|1|P|2.6\r" + strings.Join(segments, "\r") + "\r")
}

func TestNonORU(t *testing.T) {
	for _, kind := range []string{"ADT^A01", "ACK", "", "ORUX^R01"} {
		raw := []byte("MSH|^~\\&|A|B|C|D|20260101||" + kind + "|1|P|2.6\rPID|||77\rOBX|1|NM|147842^^MDC||80|bpm\r")
		m := understood(t, raw)
		if len(m.Observations) != 0 || !bytes.Equal(m.Raw, raw) || len(m.Problems) != 1 || m.Problems[0].Where != "MSH-9" || m.ControlID != "1" {
			t.Errorf("%s: %+v", kind, m)
		}
	}
}

func TestNoMSH(t *testing.T) {
	for _, raw := range []string{"", "MSH", "MSH|", "MSH||", "MSHA^~\\&|", "MSH|^^\\&|", "MSH|^~\\&#$|", "OBX|1", "GET / HTTP/1.1\r\n"} {
		if _, err := Understand([]byte(raw), Options{}); !errors.Is(err, ErrNoMSH) {
			t.Errorf("%q: %v", raw, err)
		}
	}
	if _, err := Understand(make([]byte, telemetry.MaxMessage+1), Options{}); !errors.Is(err, ErrTooLong) {
		t.Error(err)
	}
}

// Line ends, byte order mark and delimiters differ; what is understood does not.
func TestDialects(t *testing.T) {
	plain := string(oru("PID|||1^^^HOSP&1.2&ISO", "OBR|1||||||20260101120000", "OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC||80|bpm||A~B", "OBX|2|ST|147842^^MDC||a\\F\\b\\S\\c"))
	want := understood(t, []byte(plain))
	for name, raw := range map[string]string{
		"LF":                strings.ReplaceAll(plain, "\r", "\n"),
		"CRLF":              strings.ReplaceAll(plain, "\r", "\r\n"),
		"no last line end":  strings.TrimSuffix(plain, "\r"),
		"LF, then CR":       strings.ReplaceAll(strings.TrimSuffix(plain, "\r"), "\r", "\n") + "\r",
		"blank lines":       strings.ReplaceAll(plain, "\r", "\r\r"),
		"byte order mark":   "\ufeff" + plain,
		"leading line ends": "\r\n" + plain,
		"own delimiters":    strings.NewReplacer("|", "$", "^", "%", "~", "*", "\\", "!", "&", "@").Replace(plain),
	} {
		got := understood(t, []byte(raw))
		got.Digest = want.Digest
		if name == "own delimiters" { // there, the escaped delimiters are that message's own
			if v := got.Observations[1].Value; v != "a$b%c" {
				t.Errorf("%q", v)
			}
			got.Observations[1].Value = want.Observations[1].Value
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if want.Raw != nil || len(want.Observations) != 2 || want.Observations[1].Value != "a|b^c" {
		t.Errorf("%+v", want)
	}
}

func TestCharsets(t *testing.T) {
	for _, c := range []struct{ declared, sent, want, problem string }{
		{"8859/1", "\xe9", "é", ""},
		{"UNICODE UTF-8", "é", "é", ""},
		{"UNICODE", "é", "é", ""},
		{"", "é", "é", ""},
		{"", "\xe9", "é", "MSH-18"},
		{"ASCII", "\xe9", "é", "MSH-18"},
		{"UNICODE UTF-8", "\xe9", "\ufffd", "MSH-18"},
		{"GB 18030-2000", "\xb0\xa1", "\ufffd\ufffd", "MSH-18"},
		{"8859/1~UNICODE", "\xe9", "é", ""},
	} {
		raw := []byte("MSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6||||||" + c.declared + "\rOBX|1|ST|147842^" + c.sent + "^MDC||" + c.sent + "\r")
		m := understood(t, raw)
		if m.Observations[0].Value != c.want || m.Observations[0].Code.Name != c.want {
			t.Errorf("%+v: %q", c, m.Observations[0].Value)
		}
		if (len(m.Problems) > 0) != (c.problem != "") || len(m.Problems) > 0 && m.Problems[0].Where != c.problem {
			t.Errorf("%+v: %v", c, m.Problems)
		}
	}
}

// Two patients never become one because their identifiers were not read: what cannot be read for certain names nobody.
func TestUnreadableIdentifiersNameNobody(t *testing.T) {
	for name, c := range map[string]struct{ declared, one, other, want string }{
		"Latin-1 that says UTF-8":      {"UNICODE UTF-8", "\xc41^^^H", "\xd61^^^H", ""},
		"a set that is not read":       {"ISO IR87", "\xc41^^^H", "\xd61^^^H", ""},
		"two bytes, one a delimiter":   {"GB 18030-2000", "\xc4^1^^^H", "\xc4^2^^^H", ""},
		"the same, nothing declared":   {"", "\xc4^1^^^H", "\xc4^2^^^H", ""},
		"the same, in the authority":   {"UNICODE UTF-8", "1^^^\xc4", "1^^^\xd6", ""},
		"a shift to two bytes":         {"ISO IR87", "\x1b$B0^\x1b(B^^^H", "\x1b$B0^1\x1b(B^^^H", ""},
		"replaced before it came here": {"UNICODE UTF-8", "\ufffd1^^^H", "\ufffd1^^^H", ""},
		"UTF-8":                        {"UNICODE UTF-8", "Ä1^^^H", "Ö1^^^H", "Ä1 Ö1"},
		"Latin-1":                      {"8859/1", "\xc4^^^H", "\xd6^^^H", "Ä Ö"},
		"Latin-1, nothing declared":    {"", "\xc41^^^H", "\xd61^^^H", "Ä1 Ö1"},
		"only the name is not read":    {"GB 18030-2000", "1^^^H||\xc4^", "2^^^H||\xc4^", "1 2"},
	} {
		t.Run(name, func(t *testing.T) {
			var ids []string
			for _, pid := range []string{c.one, c.other} {
				raw := []byte("MSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6||||||" + c.declared + "\rPID|||" + pid + "\rPV1||I|ICU^1\rOBX|1|NM|147842^^MDC||80|bpm\r")
				m := understood(t, raw)
				ids = append(ids, m.Patient.ID)
				if len(m.Observations) != 1 || m.Patient.Location != "ICU^1" {
					t.Errorf("%+v", m)
				}
				told := slices.ContainsFunc(m.Problems, func(p telemetry.Problem) bool { return p.Where == "PID-3" })
				if told != (c.want == "") || (c.want == "" && (!bytes.Equal(m.Raw, raw) || m.Patient.Authority != "")) {
					t.Errorf("problems %v, %d bytes of raw", m.Problems, len(m.Raw))
				}
			}
			if got := strings.TrimSpace(strings.Join(ids, " ")); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	// Two in one message need not be the same: the second's readings stay in Raw.
	m := understood(t, []byte("MSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6||||||UTF-8\rPID|||\xc4\rOBX|1|NM|147842^^MDC||80|bpm\rPID|||\xd6\rOBX|1|NM|147842^^MDC||81|bpm\r"))
	if len(m.Observations) != 1 || m.Patient.ID != "" {
		t.Errorf("%+v", m)
	}
	// A byte order mark is none of the text, whatever the set.
	if _, err := Understand([]byte("\ufeffMSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6||||||8859/1\rOBX|1|ST|147842^^MDC||\xe9\r"), Options{}); err != nil {
		t.Error(err)
	}
}

// What belongs to a second patient must never be filed under the first.
func TestSecondPatient(t *testing.T) {
	obx := "OBX|1|NM|147842^^MDC||80|bpm"
	for name, c := range map[string]struct {
		segments []string
		indexes  string
		id       string
	}{
		"same again":            {[]string{"PID|||1", obx, "PID|||1", obx}, "[0 1]", "1"},
		"another":               {[]string{"PID|||1", "PV1||I|A", obx, "PID|||2", "PV1||I|B", obx}, "[0]", "1"},
		"another, then back":    {[]string{"PID|||1", "PV1||I|A", obx, "PID|||2", obx, "PID|||1", obx}, "[0 2]", "1"},
		"same id, other issuer": {[]string{"PID|||1^^^X", obx, "PID|||1^^^Y", obx}, "[0]", "1"},
		"nameless first":        {[]string{"PID|||", obx, "PID|||2", obx}, "[0]", ""},
		"PID comes late":        {[]string{obx, "PID|||2", obx}, "[0]", ""},
	} {
		m := understood(t, oru(c.segments...))
		var indexes []uint32
		for _, o := range m.Observations {
			indexes = append(indexes, o.Index)
		}
		if fmt.Sprint(indexes) != c.indexes || m.Patient.ID != c.id || m.Patient.Location == "B" {
			t.Errorf("%s: indexes %v, patient %+v", name, indexes, m.Patient)
		}
		if (m.Raw != nil) != (name != "same again") {
			t.Errorf("%s: raw kept: %v", name, m.Raw != nil)
		}
	}
}

func TestUnreadSegments(t *testing.T) {
	m := understood(t, oru("PID|||1", "NTE|1||note", "ZZZ|x", "OBX|1|NM|147842^^MDC||80|bpm", "split\ntext"))
	want := []telemetry.Problem{{Where: "segment[2]", Reason: "segment is not read"}, {Where: "segment[3]", Reason: "segment is not read"},
		{Where: "segment[5]", Reason: "segment is not read"}, {Where: "segment[6]", Reason: "segment is not read"}}
	if d := cmp.Diff(want, m.Problems); d != "" || m.Raw == nil {
		t.Error(d)
	}
}

// What a hostile 64 KiB can be made into stays within what a batch may hold.
func TestWorstCases(t *testing.T) {
	msh := "MSH|^~\\&|A|B|C|D|20260101120000||ORU^R01|1|P|2.6||||||8859/1\r"
	fill := func(head, one string) []byte {
		return []byte(head + strings.Repeat(one, (telemetry.MaxMessage-len(head))/len(one)))
	}
	for name, raw := range map[string][]byte{
		"many OBX":            fill(msh+"OBR|1||||||"+strings.Repeat("9", 40)+"\r", "OBX\r"),
		"long time, many OBX": fill(msh+"OBR|1||||||"+strings.Repeat("9", 30000)+"\r", "OBX|\r"),
		"many segments":       fill(msh, "Z\r"),
		"text that grows":     fill(msh+"OBX|1|ST|147842^^MDC||", "\xe9"),
		"many arrays":         fill(msh+"OBX|1|CD|1^a^MDC|1|1&"+strings.Repeat("l", 300)+"^^1&"+strings.Repeat("u", 300)+"^^1000\r"+"OBR\r", "OBX|||\r"+"OBX||NA||1|1\r"),
		"many attributes":     fill(msh, "OBX||NA|\rOBX|||^MDC_ATTR_X\r"),
		"one sub id":          fill(msh, "OBX||NA||1.1|1\rOBX||NM|0^MDC_ATTR_SAMP_RATE|1.1.1|9\r"),
		"many definitions":    fill(msh, "OBX||CD|||^^1.00000000001&a^.0000001&5.00000001^9\r"),
		"one long row":        fill(msh+"OBX|1|CD|1^a^MDC|1|^^1&mV^^1000\rOBX|1|NA||1|", "^"),
		"one long MSH":        fill("MSH|^~\\&|", "|"),
		"long control id":     fill("MSH|^~\\&|||||||ORU^R01|", "x"),
	} {
		m := understood(t, raw)
		if len(m.Observations) > MaxObservations || len(m.Problems) > maxProblems || m.Raw == nil {
			t.Errorf("%s: %d observations, %d problems", name, len(m.Observations), len(m.Problems))
		}
		if size := check(t, m); size > 512<<10 {
			t.Errorf("%s: %d bytes of text", name, size)
		}
		if _, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{m}}); err != nil {
			t.Errorf("%s: no batch can carry the message: %v", name, err)
		}
	}
}

// check holds what telemetry's encoder and every reader may rely on, and counts the text of a message.
func check(t *testing.T, m telemetry.Message) (size int) {
	t.Helper()
	texts := []string{m.Type, m.ControlID, m.Sender, m.Processing, m.SentAt, m.Patient.ID, m.Patient.Authority, m.Patient.Location, m.Patient.Visit}
	for i, o := range m.Observations {
		texts = append(texts, o.Type, o.Code.ID, o.Code.Name, o.Code.Sys, o.Value, o.Unit.Sent, o.Unit.UCUM, o.SubID, o.Limits,
			o.Flags, o.Status, o.Time, o.Device)
		if i > 0 && o.Index <= m.Observations[i-1].Index {
			t.Errorf("index %d follows %d", o.Index, m.Observations[i-1].Index)
		}
		if (o.Marks&telemetry.MarkTimeUnread != 0) && o.At != 0 {
			t.Errorf("an unread time is %d", o.At)
		}
		if len(m.Problems) == 0 && o.Marks&(telemetry.MarkUnknownCode|telemetry.MarkUnknownUnit|telemetry.MarkTimeUnread) != 0 {
			t.Errorf("marks %d without a problem", o.Marks)
		}
	}
	for i, w := range m.Waveforms {
		texts = append(texts, w.Type, w.Code.ID, w.Code.Name, w.Code.Sys, w.Label, w.Unit.Sent, w.Unit.UCUM, w.SubID, w.Flags, w.Status, w.Time, w.Device,
			w.Period, w.Factor, w.Origin, w.Lower, w.Upper)
		if i > 0 && w.Index <= m.Waveforms[i-1].Index {
			t.Errorf("index %d follows %d", w.Index, m.Waveforms[i-1].Index)
		}
		if len(m.Problems) == 0 && w.Marks&telemetry.MarkTimeUnread != 0 {
			t.Errorf("marks %d without a problem", w.Marks)
		}
	}
	if _, err := telemetry.Encode(telemetry.Batch{Messages: []telemetry.Message{m}}); err != nil && !errors.Is(err, telemetry.ErrTooLarge) {
		t.Errorf("does not encode: %v", err)
	}
	for _, p := range m.Problems {
		texts = append(texts, p.Where, p.Reason)
	}
	for _, s := range texts {
		if !utf8.ValidString(s) || len(s) > telemetry.MaxText {
			t.Errorf("text of %d bytes, UTF-8: %v", len(s), utf8.ValidString(s))
		}
		size += len(s)
	}
	return size
}

// Problems are stored where values must not be: they name places and reasons, all of them ours.
func TestProblemsHoldNoValues(t *testing.T) {
	const canary = "CANARY"
	m := understood(t, oru("PID|||"+canary, "PID|||"+canary+"2", "PID|||"+canary, canary+"|"+canary,
		"OBX|"+canary+"|"+canary+"|"+canary+"^"+canary+"^MDC|"+canary+"|"+canary+"|"+canary+"|"+canary+"|"+canary+"|||"+canary+"|||"+canary))
	if len(m.Problems) < 5 {
		t.Fatalf("%v", m.Problems)
	}
	for _, p := range m.Problems {
		if strings.Contains(p.Where+p.Reason, canary) {
			t.Errorf("%+v", p)
		}
	}
}

func FuzzUnderstand(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	for _, s := range odd {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Understand(raw, Options{Source: "bed-1"})
		if err != nil {
			if !errors.Is(err, ErrNoMSH) && !errors.Is(err, ErrTooLong) {
				t.Error(err)
			}
			return
		}
		check(t, m)
		if (m.Raw != nil) != (len(m.Problems) > 0) || m.Raw != nil && !bytes.Equal(m.Raw, raw) {
			t.Errorf("raw kept: %v with %d problems", m.Raw != nil, len(m.Problems))
		}
	})
}

func BenchmarkUnderstand(b *testing.B) {
	segments := []string{"PID|||789567^^^HOSP^PI||Doe^John", "PV1||I|ICU^^12", "OBR|1|||182777000^monitoring of patient^SCT|||20260102030400+0100"}
	for i := range 10 {
		segments = append(segments, fmt.Sprintf("OBX|%d|NM|147842^MDC_ECG_HEART_RATE^MDC|1.7.4.147842|%d|264864^MDC_DIM_BEAT_PER_MIN^MDC|50^120||||R|||20260102030405.678+0100||||ACDE48234567ABCD^^ACDE48234567ABCD^EUI-64", i+1, 60+i))
	}
	raw := oru(segments...)
	if m := understood(b, raw); len(m.Observations) != 10 || m.Problems != nil {
		b.Fatalf("%+v", m)
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Understand(raw, Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
