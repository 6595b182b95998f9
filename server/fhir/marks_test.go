package fhir_test

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/server/records"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// What the reader of messages found odd about a reading shows in FHIR: no such reading claims a profile, and one in a unit that does
// not fit claims no LOINC code. From OBX to resource, since the marks of one are the input of the other.
func TestOddReadingsShow(t *testing.T) {
	const good, loinc = "http://hl7.org/fhir/StructureDefinition/heartrate", "http://loinc.org"
	for name, c := range map[string]struct {
		value, unit, time                                string
		profile, system, mark, status, shown, unreadable string
	}{
		"zone HL7 lacks":  {"80", "bpm", "20260528202640Z", good, loinc, "", "final", "80", "unknown"},
		"nothing odd":     {"80", "bpm", "20260528202640+0000", good, loinc, "", "final", "80", ""},
		"asystole":        {"0", "bpm", "20260528202640+0000", good, loinc, "", "final", "0", ""},
		"implausible":     {"900", "bpm", "20260528202640+0000", "", loinc, "implausible", "preliminary", "900", ""},
		"foreign unit":    {"80", "mmHg", "20260528202640+0000", "", "urn:iso:std:iso:11073:10101", "unit-misfit", "preliminary", "80", ""},
		"unknown unit":    {"80", "furlong", "20260528202640+0000", "", "urn:iso:std:iso:11073:10101", "unit-unknown", "final", "80", ""},
		"no unit":         {"80", "", "20260528202640+0000", "", "urn:iso:std:iso:11073:10101", "unit-unknown", "final", "80", ""},
		"time unreadable": {"80", "bpm", "yesterday", "", loinc, "", "final", "80", "unknown"},
		"no reading":      {"", "", "20260528202640+0000", good, loinc, "", "final", "", ""},
		"sentinel":        {"-32768", "bpm", "20260528202640+0000", good, loinc, "", "final", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if c.unreadable != "" {
				c.profile = ""
			}
			raw := "MSH|^~\\&|M|I|W|W|20260528202640+0000||ORU^R01^ORU_R01|9|P|2.6\rPID|||p1^^^H&2.25.77&ISO\r" +
				fmt.Sprintf("OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1|%s|%s|||||R|||%s\r", c.value, c.unit, c.time)
			m, err := hl7.Understand([]byte(raw), hl7.Options{Source: "bed-1"})
			if err != nil {
				t.Fatal(err)
			}
			m.Received.Wall = start + 70
			f := setup(t, m)
			b := f.get(search("p1", "&code=urn:iso:std:iso:11073:10101%7C147842"))
			o := at(b, "entry", 0, "resource")
			got := []string{
				text(o, "meta", "profile", 0), text(o, "code", "coding", 0, "system"), text(o, "interpretation", 0, "coding", 0, "code"), text(o, "status"),
				text(o, "valueQuantity", "value"), text(o, "_effectiveDateTime", "extension", 0, "valueCode"),
			}
			if want := []string{c.profile, c.system, c.mark, c.status, c.shown, c.unreadable}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			if (at(o, "effectiveDateTime") == nil) != (c.unreadable != "") {
				t.Errorf("effectiveDateTime %q", text(o, "effectiveDateTime"))
			}
			if (at(o, "dataAbsentReason") != nil) != (c.shown == "") {
				t.Error("a value or a reason for its absence, and only one of them")
			}
			if c.mark != "" && text(o, "interpretation", 0, "text") == "" {
				t.Error("the mark has no text for humans")
			}
			// A search by LOINC finds what has that code and nothing else.
			found := at(f.get(search("p1", "&code=8867-4")), "entry") != nil
			if found != (c.system == loinc) {
				t.Errorf("found by LOINC: %v", found)
			}
		})
	}
}

// What a gateway in quarantine sent is never final, whatever its monitor says, and shows why; what its status says otherwise stays.
func TestQuarantinedReadingsAreNotFinal(t *testing.T) {
	cases := []struct{ sent, want string }{{"R", "preliminary"}, {"F", "preliminary"}, {"C", "preliminary"}, {"", "preliminary"}, {"P", "preliminary"},
		{"X", "cancelled"}, {"D", "entered-in-error"}}
	f := setup(t)
	f.verdict = audit.AcceptedQuarantined
	var messages []telemetry.Message
	for i, c := range cases {
		messages = append(messages, reading("p1", i, "60", func(_ *telemetry.Message, o *telemetry.Observation) { o.Status = c.sent }))
	}
	f.fill(messages)
	b := f.get(search("p1", ""))
	for i, c := range cases { // the newest is first
		o := at(b, "entry", len(cases)-1-i, "resource")
		if got := text(o, "status"); got != c.want {
			t.Errorf("OBX-11 %q: status %q; expected %s", c.sent, got, c.want)
		}
		if text(o, "interpretation", 0, "coding", 0, "code") != "quarantined" || text(o, "meta", "security", 0, "code") != "UNCERTREL" || at(o, "meta", "profile") != nil {
			t.Errorf("OBX-11 %q: %v", c.sent, o)
		}
	}
}

// Rows that name a device are no readings; an attribute of a device that has a value is one.
func TestDevicePartsAreNoObservations(t *testing.T) {
	device := func(value string, marks telemetry.Marks) func(*telemetry.Message, *telemetry.Observation) {
		return func(_ *telemetry.Message, o *telemetry.Observation) {
			o.Code = telemetry.Code{MDC: 69965, ID: "69965", Name: "MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS", Sys: "MDC"}
			o.Type, o.Value, o.Unit, o.Marks = "ST", value, telemetry.Unit{}, marks
		}
	}
	f := setup(t, reading("p1", 0, "60"), reading("p1", 1, "", device("", telemetry.MarkNoReading)), reading("p1", 2, "on", device("on", 0)))
	b := f.get(search("p1", ""))
	entries, _ := at(b, "entry").([]any)
	if len(entries) != 2 || text(entries[0], "resource", "valueString") != "on" || text(entries[1], "resource", "valueQuantity", "value") != "60" {
		t.Errorf("%v", b)
	}
	// Nor by id: the part's message differs from its neighbour's by one second and its key alone.
	for _, id := range f.messageKeys() {
		w := f.do("GET", "/fhir/Observation/"+id+"-0", f.cert)
		if part := strings.Contains(w.Body.String(), "69965") && !strings.Contains(w.Body.String(), "valueString"); part {
			t.Errorf("a device's part is an Observation: %s", w.Body)
		}
	}
}

func (f *fixture) messageKeys() (keys []string) {
	f.t.Helper()
	rows, err := f.db.Query(f.t.Context(), "SELECT key FROM messages")
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var key []byte
		if err := rows.Scan(&key); err != nil {
			f.t.Fatal(err)
		}
		keys = append(keys, hex.EncodeToString(key))
	}
	if err := rows.Err(); err != nil || len(keys) != 3 {
		f.t.Fatal(keys, err)
	}
	return keys
}

// Only ids of patients that are stored go into the log as they are given: anything else may be a name, whatever it looks like.
func TestWhatIsNoPseudonymIsNotLogged(t *testing.T) {
	f := setup(t, reading("p1", 0, "60"))
	const typed = "MRN-1234567.DOE-JOHN.1970-01-01x" // as long as a pseudonym
	const hex = "0123456789abcdef0123456789abcdef"   // and even of its form
	id := records.PatientID(pseudonym, system, "p1")
	for target, want := range map[string]string{
		"/fhir/Observation?patient=" + typed: records.PatientID(pseudonym, "", typed),
		"/fhir/Observation?patient=" + hex:   records.PatientID(pseudonym, "", hex),
		"/fhir/Observation?patient=" + id:    id,
		"/fhir/Patient/" + typed:             records.PatientID(pseudonym, "", typed),
		"/fhir/Patient/DOE%20JOHN":           records.PatientID(pseudonym, "", "DOE JOHN"),
		"/fhir/Patient/" + id:                id,
	} {
		if w := f.do("GET", target, f.cert); w.Code != http.StatusOK && w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", target, w.Code)
		}
		evs := f.journal.Events(t)
		if ev := evs[len(evs)-1]; ev.Detail["patient"] != want || strings.Contains(fmt.Sprint(ev), "DOE") {
			t.Errorf("%s: %+v", target, ev)
		}
	}
}
