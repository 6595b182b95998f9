package fhir_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

func TestObservationAsSent(t *testing.T) {
	f := setup(t, reading("p1", 0, "98.60"))
	b := f.get(search("p1", ""))
	if text(b, "resourceType") != "Bundle" || text(b, "type") != "searchset" || text(b, "link", 0, "relation") != "self" || at(b, "link", 1) != nil {
		t.Errorf("%v", b)
	}
	o := at(b, "entry", 0, "resource")
	id := records.PatientID(pseudonym, system, "p1")
	for _, c := range []struct {
		want string
		path []any
	}{
		{"98.60", []any{"valueQuantity", "value"}},
		{"/min", []any{"valueQuantity", "code"}},
		{"http://unitsofmeasure.org", []any{"valueQuantity", "system"}},
		{"final", []any{"status"}},
		{"http://loinc.org", []any{"code", "coding", 0, "system"}},
		{"8867-4", []any{"code", "coding", 0, "code"}},
		{"vital-signs", []any{"category", 0, "coding", 0, "code"}},
		{"2026-05-28T22:26:40.000+02:00", []any{"effectiveDateTime"}},
		{"2026-05-28T20:26:40.500Z", []any{"issued"}},
		{"Patient/" + id, []any{"subject", "reference"}},
		{system, []any{"subject", "identifier", "system"}},
		{"p1", []any{"subject", "identifier", "value"}},
		{"0011223344556677", []any{"device", "display"}},
		{"http://hl7.org/fhir/StructureDefinition/heartrate", []any{"meta", "profile", 0}},
		{"gw-1", []any{"extension", 0, "valueReference", "display"}},
		{"", []any{"dataAbsentReason"}},
		{"", []any{"meta", "security"}},
	} {
		if got := text(o, c.path...); got != c.want {
			t.Errorf("%v: %q, expected %q", c.path, got, c.want)
		}
	}
	codings, _ := at(o, "code", "coding").([]any)
	if last := codings[len(codings)-1]; text(last, "system") != "urn:iso:std:iso:11073:10101" || text(last, "code") != "147842" {
		t.Errorf("MDC coding: %v", last)
	}
	one := f.get("/fhir/Observation/" + text(o, "id"))
	if fmt.Sprint(one) != fmt.Sprint(o) || text(b, "entry", 0, "fullUrl") != base+"/Observation/"+text(o, "id") {
		t.Errorf("read: %v", one)
	}
	p := f.get("/fhir/Patient/" + id)
	if text(p, "id") != id || text(p, "identifier", 0, "value") != "p1" {
		t.Errorf("%v", p)
	}
	ps := f.get("/fhir/Patient?identifier=" + system + "%7Cp1")
	if text(ps, "total") != "1" || text(ps, "entry", 0, "resource", "id") != id {
		t.Errorf("%v", ps)
	}
}

func TestValuesAndStates(t *testing.T) {
	type obs = telemetry.Observation
	type msg = telemetry.Message
	for name, c := range map[string]struct {
		value  string
		change func(*msg, *obs)
		want   map[string]string
	}{
		"zero is asystole":    {"0", nil, map[string]string{"value": "0", "status": "final"}},
		"trailing zeros":      {"98.600", nil, map[string]string{"value": "98.600"}},
		"plus and zeros":      {"+007.50", nil, map[string]string{"value": "7.50"}},
		"bare points":         {"-.5", nil, map[string]string{"value": "-0.5"}},
		"plus":                {"+80", nil, map[string]string{"value": "80"}},
		"leading zero":        {"080.50", nil, map[string]string{"value": "80.50"}},
		"no digit before":     {".5", nil, map[string]string{"value": "0.5"}},
		"no digit behind":     {"5.", nil, map[string]string{"value": "5"}},
		"many zeros":          {"0000000000000000000000000080", nil, map[string]string{"value": "80"}},
		"too many digits":     {"1234567890123456789012", nil, map[string]string{"value": "", "string": "1234567890123456789012"}},
		"no reading":          {"", func(_ *msg, o *obs) { o.Marks = telemetry.MarkNoReading }, map[string]string{"absent": "unknown", "value": "", "status": "final"}},
		"sentinel":            {"-32768", func(_ *msg, o *obs) { o.Marks = telemetry.MarkNoReading }, map[string]string{"absent": "unknown", "value": ""}},
		"text":                {"sinus <rhythm>", func(_ *msg, o *obs) { o.Type = "ST" }, map[string]string{"string": "sinus <rhythm>", "value": ""}},
		"number typed text":   {"12", func(_ *msg, o *obs) { o.Type = "ST" }, map[string]string{"string": "12"}},
		"no number":           {"---", nil, map[string]string{"string": "---", "value": ""}},
		"NaN":                 {"NaN", nil, map[string]string{"string": "NaN", "value": ""}},
		"exponent":            {"1e400", nil, map[string]string{"string": "1e400", "value": ""}},
		"unknown unit":        {"5", func(_ *msg, o *obs) { o.Unit = telemetry.Unit{Sent: "1^bananas^X"} }, map[string]string{"value": "5", "unit": "bananas", "code": "", "profile": ""}},
		"preliminary":         {"5", func(_ *msg, o *obs) { o.Status = "P" }, map[string]string{"status": "preliminary"}},
		"corrected":           {"5", func(_ *msg, o *obs) { o.Status = "C" }, map[string]string{"status": "corrected"}},
		"cancelled":           {"", func(_ *msg, o *obs) { o.Status = "X" }, map[string]string{"status": "cancelled", "absent": "unknown"}},
		"in error":            {"5", func(_ *msg, o *obs) { o.Status = "W" }, map[string]string{"status": "entered-in-error"}},
		"odd state":           {"5", func(_ *msg, o *obs) { o.Status = "?" }, map[string]string{"status": "unknown"}},
		"flag TEST":           {"5", func(_ *msg, o *obs) { o.Flags = "PN~TEST" }, map[string]string{"status": "preliminary", "security": "HTEST", "value": "5"}},
		"flag DEMO corrected": {"5", func(_ *msg, o *obs) { o.Flags, o.Status = "DEMO", "C" }, map[string]string{"status": "preliminary", "security": "HTEST"}},
		"flag INV":            {"5", func(_ *msg, o *obs) { o.Flags = "INV" }, map[string]string{"status": "cancelled", "value": "5"}},
		"flag H":              {"5", func(_ *msg, o *obs) { o.Flags = "H" }, map[string]string{"status": "final", "flag": "H"}},
		"test data":           {"5", func(m *msg, _ *obs) { m.Processing = "T" }, map[string]string{"status": "final", "security": "HTEST", "value": "5"}},
		"debugging":           {"5", func(m *msg, _ *obs) { m.Processing = "D" }, map[string]string{"security": "HTEST"}},
		"unknown code": {"5", func(_ *msg, o *obs) { o.Code = telemetry.Code{ID: "X1", Name: "Thing", Sys: "99ABC"} },
			map[string]string{"coding": "urn:wardlink:code-system:99ABC", "text": "Thing", "profile": ""}},
		"time without zone": {"5", func(_ *msg, o *obs) { o.Time = "20260528202640" }, map[string]string{"time": "2026-05-28T20:26:40.000Z"}},
		"time unread":       {"5", func(_ *msg, o *obs) { o.Time, o.At, o.Marks = "+9999", 0, telemetry.MarkTimeUnread }, map[string]string{"time": "", "no time": "unknown", "profile": "", "value": "5", "issued": "2026-05-28T20:26:40.500Z"}},
		"time of year 292M": {"5", func(_ *msg, o *obs) { o.At = 1<<63 - 1 }, map[string]string{"time": "", "no time": "unknown", "profile": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			change := c.change
			if change == nil {
				change = func(*msg, *obs) {}
			}
			f := setup(t, reading("p1", 0, c.value, change))
			o := at(f.get(search("p1", "")), "entry", 0, "resource")
			paths := map[string][]any{
				"value": {"valueQuantity", "value"}, "unit": {"valueQuantity", "unit"}, "code": {"valueQuantity", "code"}, "string": {"valueString"},
				"status": {"status"}, "absent": {"dataAbsentReason", "coding", 0, "code"}, "security": {"meta", "security", 0, "code"},
				"profile": {"meta", "profile", 0}, "coding": {"code", "coding", 0, "system"}, "text": {"code", "text"}, "time": {"effectiveDateTime"},
				"flag": {"interpretation", 0, "coding", 0, "code"}, "issued": {"issued"},
				"no time": {"_effectiveDateTime", "extension", 0, "valueCode"},
			}
			for what, want := range c.want {
				if got := text(o, paths[what]...); got != want {
					t.Errorf("%s: %q, expected %q", what, got, want)
				}
			}
			if at(o, "dataAbsentReason") != nil && (at(o, "valueQuantity") != nil || at(o, "valueString") != nil) {
				t.Error("a value and a reason for its absence (obs-6)")
			}
		})
	}
}

func TestSearchPagesByLinksOnly(t *testing.T) {
	var ms []telemetry.Message
	for n := range 25 {
		ms = append(ms, reading("p1", n/2, fmt.Sprint(n))) // two readings of each second
	}
	f := setup(t, append(ms, reading("p2", 3, "999"))...)
	var got []string
	target, pages := search("p1", "&_count=10&code=8867-4"), 0
	for target != "" {
		b := f.get(target)
		pages++
		for _, e := range at(b, "entry").([]any) {
			got = append(got, text(e, "resource", "valueQuantity", "value"))
		}
		target = ""
		for _, l := range at(b, "link").([]any) {
			if text(l, "relation") == "next" {
				next := text(l, "url")
				if strings.Contains(next, "p1") {
					t.Errorf("the link names the patient: %s", next)
				}
				target = strings.TrimPrefix(next, strings.TrimSuffix(base, "/fhir"))
			}
		}
	}
	if len(got) != 25 || pages != 3 || got[0] != "24" || got[24] != "0" {
		t.Errorf("%d pages, %q", pages, got)
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != 25 {
		t.Error("a reading came twice")
	}
}

func TestSearchParameters(t *testing.T) {
	glucose := func(ucum string) func(*telemetry.Message, *telemetry.Observation) {
		return func(_ *telemetry.Message, o *telemetry.Observation) {
			o.Code, o.Unit.UCUM = telemetry.Code{MDC: 160184, ID: "160184", Sys: "MDC"}, ucum
		}
	}
	f := setup(t,
		reading("p1", 0, "60"), reading("p1", 10, "61"), reading("p1", 20, "62"),
		reading("p1", 5, "97", func(_ *telemetry.Message, o *telemetry.Observation) {
			o.Code, o.Unit = telemetry.Code{MDC: 150456, ID: "150456", Sys: "MDC"}, telemetry.Unit{Sent: "262688^MDC_DIM_PERCENT^MDC", UCUM: "%"}
		}),
		reading("p1", 6, "100", glucose("mg/dL")), reading("p1", 7, "5", glucose("mmol/L")),
		reading("", 3, "1"), reading("a,b|c", 4, "2"),
		reading("p1", 8, "77", func(m *telemetry.Message, _ *telemetry.Observation) { m.Patient.Authority = "OTHER" }),
	)
	id := records.PatientID(pseudonym, system, "p1")
	const mdc = "urn:iso:std:iso:11073:10101%7C"
	for query, want := range map[string]string{
		"patient=" + id:         "62 61 5 100 97 60",
		"patient=Patient/" + id: "62 61 5 100 97 60",
		"patient=" + base + "/Patient/" + id + "&_count=1":                "62",
		"patient=" + id + "&code=" + mdc + "147842":                       "62 61 60",
		"patient=" + id + "&code=http://loinc.org%7C8867-4":               "62 61 60",
		"patient=" + id + "&code=59408-5":                                 "97",
		"patient=" + id + "&code=8867-4,2708-6":                           "62 61 97 60",
		"patient=" + id + "&code=" + mdc:                                  "62 61 5 100 97 60",
		"patient=" + id + "&code=http://loinc.org%7C147842":               "",
		"patient=" + id + "&code=14743-9":                                 "5",
		"patient=" + id + "&code=41653-7":                                 "100",
		"patient=" + id + "&code=8867-4&date=2026-05-28":                  "62 61 60",
		"patient=" + id + "&code=8867-4&date=ge2026-05-28T20:26:50Z":      "62 61",
		"patient=" + id + "&code=8867-4&date=gt2026-05-28T20:26:50Z":      "62",
		"patient=" + id + "&code=8867-4&date=lt2026-05-28T20:26:50Z":      "60",
		"patient=" + id + "&code=8867-4&date=le2026-05-28T20:26:50Z":      "61 60",
		"patient=" + id + "&code=8867-4&date=2026-05-28T20:26:50.000Z":    "61",
		"patient=" + id + "&code=8867-4&date=eq2026-05-28T22:26:50+02:00": "61",
		"patient=" + id + "&date=gt2026-05-28":                            "",
		"patient=" + id + "&date=ge2026&date=lt2026-05-28T20:26:41Z":      "60",
		"patient.identifier=p1":                                           "62 61 77 5 100 97 60",
		"patient.identifier=urn:wardlink:authority:OTHER%7Cp1":            "77",
		"patient.identifier=p1&patient=" + id + "&code=8867-4":            "62 61 60",
		"patient.identifier=a%5C,b%5C%7Cc":                                "2",
		"patient.identifier=nobody":                                       "",
		"patient:missing=true":                                            "1",
		"patient=" + id + "&_count=100000&_format=json&code=59408-5":      "97",
	} {
		b := f.get("/fhir/Observation?" + query)
		var got []string
		entries, _ := at(b, "entry").([]any)
		for _, e := range entries {
			got = append(got, text(e, "resource", "valueQuantity", "value"))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, expected %q", query, got, want)
		}
	}
	ps := f.get("/fhir/Patient?identifier=p1")
	if text(ps, "total") != "2" {
		t.Errorf("two hospitals' p1: %v", ps)
	}
}

func TestErrorsAreOperationOutcomes(t *testing.T) {
	f := setup(t, reading("p1", 0, "60"))
	gateway := f.issue("gateway", "gw-1", 9)
	// Even one that the registry of service accounts knew would be no service account.
	f.enter("gw-1", registry.Scope{All: true}, "9", gateway)
	unknown := f.certificate("access", "ehr", 10)
	swapped := f.certificate("access", "ehr", 11)
	f.enter("ehr", registry.Scope{}, "b", f.cert)
	expired := f.certificate("access", "ehr", 12)
	ended := *expired
	ended.NotAfter = time.Now().Add(-time.Second)
	f.enter("ehr", registry.Scope{}, "c", &ended)
	stranger := f.issue("access", "ehr", 13)
	stranger.URIs[0].Host = "other.example"
	const all = "/fhir/Observation?patient=x"
	for _, c := range []struct {
		method, target string
		cert           *x509.Certificate
		status         int
		says           string
	}{
		{"GET", "/fhir/Observation?patient=x&pateint=y", f.cert, 400, "pateint"},
		{"GET", "/fhir/Observation", f.cert, 400, "patient.identifier"},
		{"GET", "/fhir/Observation?code=8867-4", f.cert, 400, "patient"},
		{"GET", all + "&patient=y", f.cert, 400, "twice"},
		{"GET", all + "&_count=0", f.cert, 400, "_count"},
		{"GET", all + "&date=yesterday", f.cert, 400, "date"},
		{"GET", all + "&date=sa2026", f.cert, 400, "prefix"},
		{"GET", all + "&code=", f.cert, 400, "code"},
		{"GET", all + "&code=a%7Cb%7Cc", f.cert, 400, "code"},
		{"GET", all + "&_cursor=zz", f.cert, 400, "next link"},
		{"GET", all + "&_format=xml", f.cert, 400, "json"},
		{"GET", all + "&a=%zz", f.cert, 400, "encoded"},
		{"GET", "/fhir/Observation?patient=a%20b", f.cert, 400, "patient.identifier"},
		{"GET", "/fhir/Observation?patient.identifier=" + system + "%7C", f.cert, 400, "value"},
		{"GET", "/fhir/Observation?patient.identifier=", f.cert, 400, "empty"},
		{"GET", all + strings.Repeat("&code=1", 40), f.cert, 400, "32"},
		{"GET", all + "&code=" + strings.Repeat("1", 9000), f.cert, 414, "8192"},
		{"GET", "/fhir/Patient", f.cert, 400, "identifier"},
		{"GET", "/fhir/Patient/x", f.cert, 404, "no resource"},
		{"GET", "/fhir/Observation/00000000000000000000000000000000-0", f.cert, 404, "no resource"},
		{"GET", "/fhir/Observation/x?_pretty=true", f.cert, 400, "_pretty"},
		{"GET", "/fhir/Medication", f.cert, 404, "/fhir/Observation"},
		{"GET", "/fhir/Observation/a/b", f.cert, 404, "/fhir/Observation"},
		{"GET", "/", f.cert, 404, "/fhir/metadata"},
		{"POST", "/fhir/Observation", f.cert, 405, "GET"},
		{"DELETE", "/fhir/Patient/x", f.cert, 405, "GET"},
		{"GET", all, nil, 401, "wardlink access issue"},
		{"GET", all, stranger, 401, "trust domain"},
		{"GET", all, gateway, 403, "not a service account"},
		{"GET", all, unknown, 403, "registry"},
		{"GET", all, swapped, 403, "issued"},
		{"GET", all, expired, 403, "expired"},
	} {
		before := f.journal.Len()
		w := f.do(c.method, c.target, c.cert)
		o := decode(t, w.Body.Bytes())
		if w.Code != c.status || text(o, "resourceType") != "OperationOutcome" || !strings.Contains(text(o, "issue", 0, "diagnostics"), c.says) {
			t.Errorf("%s %.60s: %d %s, expected %d that says %q", c.method, c.target, w.Code, w.Body, c.status, c.says)
		}
		if f.journal.Len() != before+1 {
			t.Errorf("%s %.60s: %d events, expected one", c.method, c.target, f.journal.Len()-before)
		}
		want := audit.Failed
		if c.status == 401 || c.status == 403 {
			want = audit.Denied
		}
		if evs := f.journal.Events(t); evs[len(evs)-1].Outcome != want || evs[len(evs)-1].Reason == "" {
			t.Errorf("%s %.60s: event %+v", c.method, c.target, evs[len(evs)-1])
		}
		if c.status == 405 && w.Header().Get("Allow") != "GET, HEAD" {
			t.Error("405 without Allow")
		}
	}
	accept := func(v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set("Accept", v) } }
	if w := f.do("GET", "/fhir/metadata", f.cert, accept("application/fhir+xml")); w.Code != 406 {
		t.Errorf("XML: %d", w.Code)
	}
	if w := f.do("GET", "/fhir/metadata", f.cert, accept("text/html, application/*;q=0.8")); w.Code != 200 {
		t.Errorf("a browser: %d", w.Code)
	}
}

func TestEveryReadIsJournaledFirst(t *testing.T) {
	f := setup(t, reading("secret-mrn", 0, "60"), reading("secret-mrn", 1, "61"))
	f.get(search("secret-mrn", "&code=8867-4&_count=10"))
	f.get("/fhir/metadata")
	f.do("GET", search("secret-mrn", "&secret-mrn=1"), f.cert)
	f.do("GET", "/fhir/Patient/secret-mrn", f.cert)
	f.do("GET", "/fhir/Observation?patient=secret-mrn", f.cert)
	f.do("GET", "/fhir/Observation?patient.identifier=secret-nobody", f.cert)
	evs := f.journal.Events(t)
	ev := evs[0]
	id := records.PatientID(pseudonym, system, "secret-mrn")
	if ev.Type != audit.RecordsRead || ev.Outcome != audit.Success || ev.Count != 2 || ev.Target != "Observation" ||
		ev.Actor != (audit.Actor{ID: "spiffe://ward.example/access/ehr", Serial: "7"}) || ev.Peer != "192.0.2.1:40000" ||
		ev.Detail["patient"] != id || ev.Detail["query"] != "_count code patient.identifier" || ev.Detail["interaction"] != "search" {
		t.Errorf("%+v", ev)
	}
	if len(evs) != 6 || evs[1].Target != "metadata" || evs[2].Detail["query"] != "? patient.identifier" {
		t.Errorf("%+v", evs)
	}
	if evs[5].Detail["patient"] != records.PatientID(pseudonym, "", "secret-nobody") {
		t.Errorf("a search for somebody who is not there: %+v", evs[5])
	}
	if all := fmt.Sprintf("%+v", evs) + f.log.String(); strings.Contains(all, "secret") {
		t.Error("an identifier is in an event or the log")
	}
}

func TestNoJournalNoData(t *testing.T) {
	f := setup(t, reading("p1", 0, "61.5"))
	f.journal.Fail(func(journal.Entry) (error, bool) { return errors.New("disk full"), false })
	for _, target := range []string{search("p1", ""), "/fhir/metadata", "/fhir/Patient/" + records.PatientID(pseudonym, system, "p1")} {
		w := f.do("GET", target, f.cert)
		if w.Code != 503 || bytes.Contains(w.Body.Bytes(), []byte("61.5")) || bytes.Contains(w.Body.Bytes(), []byte("p1")) {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
	if w := f.do("GET", search("p1", ""), f.issue("gateway", "gw-1", 3)); w.Code != 503 {
		t.Errorf("a denial that cannot be journaled: %d", w.Code)
	}
}

// watched fails the test when anything is written before the journal has the event.
type watched struct {
	http.ResponseWriter
	write func()
}

func (w watched) WriteHeader(code int) { w.write(); w.ResponseWriter.WriteHeader(code) }

func TestNothingIsWrittenBeforeTheEvent(t *testing.T) {
	f := setup(t, reading("p1", 0, "60"))
	r := f.request("GET", search("p1", ""), f.cert)
	out := httptest.NewRecorder()
	f.ServeHTTP(watched{out, func() {
		if f.journal.Len() != 1 {
			t.Error("the answer was written before its event")
		}
	}}, r)
	if out.Code != 200 {
		t.Fatal(out.Code)
	}
}

type refusals []string

func (r *refusals) Add(peer net.Addr, reason string) { *r = append(*r, peer.String()+" "+reason) }

func TestUnprovenPeersAreAggregated(t *testing.T) {
	f := setup(t)
	var got refusals
	f.cfg.Refusals = &got
	f.restart()
	if w := f.do("GET", "/fhir/metadata", nil); w.Code != 401 {
		t.Fatal(w.Code)
	}
	if len(got) != 1 || !strings.HasPrefix(got[0], "192.0.2.1:40000 fhir: ") || f.journal.Len() != 0 {
		t.Errorf("%q, %d events", got, f.journal.Len())
	}
	// A chain that nobody verified is no identity.
	w := f.do("GET", "/fhir/metadata", f.cert, func(r *http.Request) { r.TLS.VerifiedChains = nil })
	if w.Code != 401 || w.Header().Get("Connection") != "close" {
		t.Errorf("unverified chain: %d %v", w.Code, w.Header())
	}
	if w := f.do("GET", "/fhir/metadata", f.cert, func(r *http.Request) { r.TLS = nil }); w.Code != 401 {
		t.Errorf("no TLS: %d", w.Code)
	}
}

func TestCapabilities(t *testing.T) {
	f := setup(t)
	c := f.get("/fhir/metadata")
	if text(c, "resourceType") != "CapabilityStatement" || text(c, "fhirVersion") != "4.0.1" || text(c, "rest", 0, "resource", 0, "type") != "Observation" {
		t.Errorf("%v", c)
	}
	w := f.do("HEAD", "/fhir/metadata", f.cert)
	if w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("HEAD: %d, %d bytes", w.Code, w.Body.Len())
	}
}
