package fhir_test

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

func spo2(_ *telemetry.Message, o *telemetry.Observation) {
	o.Code, o.Unit = telemetry.Code{MDC: 150456, ID: "150456", Name: "MDC_PULS_OXIM_SAT_O2", Sys: "MDC"}, telemetry.Unit{Sent: "%", UCUM: "%"}
}

// scopes is a hospital with two patients whose gateway moves from ICU 2 to ICU 4 after a tenth of a second, before the last message.
func scopes(t *testing.T) *fixture {
	t.Helper()
	messages := []telemetry.Message{reading("p1", 0, "60"), reading("p1", 1, "97", spo2), reading("p2", 2, "70"), reading("", 3, "80"), w01(t, 4, leadII, "1^2^3", ""), reading("p1", 5, "62")}
	for i := range messages {
		messages[i].Received.Wall = start + int64(i)*20
	}
	f := setup(t, messages...)
	f.cfg.Wards = &history{wards: registry.Wards{{Name: "ICU 2"}, {Name: "ICU 4", Since: time.UnixMilli(start + 90)}}}
	f.restart()
	return f
}

// values are the readings of a bundle, sorted; "waves" for samples, and "limited" for the word that it is.
func values(b map[string]any) (out []string) {
	for i := 0; at(b, "entry", i) != nil; i++ {
		switch one := at(b, "entry", i, "resource"); {
		case text(b, "entry", i, "search", "mode") == "outcome" && text(one, "issue", 0, "code") == "suppressed":
			out = append(out, "limited")
		case text(one, "valueSampledData", "data") != "":
			out = append(out, "waves")
		default:
			out = append(out, text(one, "valueQuantity", "value"))
		}
	}
	slices.Sort(out)
	return out
}

// TestScopesNarrowAndRefuse: what each account sees of each request; each refusal and each hidden resource is an event of its account.
func TestScopesNarrowAndRefuse(t *testing.T) {
	f := scopes(t)
	p1, p2 := records.PatientID(pseudonym, system, "p1"), records.PatientID(pseudonym, system, "p2")
	all := f.get(search("p1", ""))
	ids := map[string]string{}
	for i := 0; at(all, "entry", i) != nil; i++ {
		o := at(all, "entry", i, "resource")
		ids[text(o, "valueQuantity", "value")] = text(o, "id")
	}
	accounts := map[string]*x509.Certificate{}
	for i, c := range []struct {
		name  string
		scope registry.Scope
	}{
		{"new", registry.Scope{}},
		{"everything", registry.Scope{All: true}},
		{"icu-2", registry.Scope{Wards: []string{"ICU 2"}, Operations: registry.Operations()}},
		{"icu-4", registry.Scope{Wards: []string{"ICU 4"}}},
		{"icu-2-readings", registry.Scope{Wards: []string{"ICU 2"}}},
		{"rates", registry.Scope{Codes: []string{"loinc|8867-4"}}},
		{"of-p2", registry.Scope{Subjects: []string{p2}}},
		{"reader", registry.Scope{All: true, Operations: []registry.Operation{registry.Read}}},
	} {
		accounts[c.name] = f.scoped(c.name, int64(100+i), c.scope)
	}
	of := func(p string) string { return search(p, "") }
	for _, c := range []struct{ account, target, want string }{ // a status, or values
		{"new", of("p1"), "403 no scope"},
		{"new", "/fhir/Patient/" + p1, "403 no scope"},
		{"everything", of("p1"), "60 62 97 waves"},
		{"everything", "/fhir/Observation?patient:missing=true", "80"},
		{"icu-2", of("p1"), "60 97 limited waves"},
		{"icu-2", "/fhir/Observation/" + ids["60"], "200"},
		{"icu-2", "/fhir/Observation/" + ids["62"], "404 scope"},
		{"icu-2", "/fhir/Observation?patient:missing=true", "80 limited"},
		{"icu-2-readings", of("p1"), "60 97 limited"},
		{"icu-4", of("p1"), "62 limited"},
		{"icu-4", of("p2"), "limited"},
		{"icu-4", "/fhir/Patient/" + p1, "200"},
		{"icu-4", "/fhir/Patient/" + p2, "404 scope"},
		{"icu-4", "/fhir/Patient?identifier=" + url.QueryEscape(system+"|p2"), "limited"},
		{"icu-4", "/fhir/Observation/" + ids["60"], "404 scope"},
		{"rates", of("p1"), "60 62 limited"},
		{"rates", search("p1", "&code=147842"), "60 62 limited"},
		{"rates", search("p1", "&code=http://loinc.org%7C8867-4,59408-5"), "60 62 limited"},
		{"rates", search("p1", "&code=59408-5"), "403 code"},
		{"rates", search("p1", "&code=urn:iso:std:iso:11073:10101%7C150456"), "403 code"},
		{"rates", "/fhir/Observation/" + ids["97"], "404 scope"},
		{"of-p2", of("p2"), "70 limited"},
		{"of-p2", of("p1"), "403 patient"},
		{"of-p2", of("nobody"), "403 patient"}, // as p1 is: who is in the hospital stays untold
		{"of-p2", search("p1", "&code=1"), "403 patient"},
		{"of-p2", "/fhir/Observation?patient=" + p1 + "," + p2, "70 limited"},
		{"of-p2", "/fhir/Observation?patient:missing=true", "403 patient"},
		{"of-p2", "/fhir/Patient?identifier=" + url.QueryEscape(system+"|p1"), "403 identifier"},
		{"of-p2", "/fhir/Patient?identifier=" + url.QueryEscape(system+"|p2"), "limited "}, // and the patient, who has no value
		{"of-p2", "/fhir/Observation/" + ids["60"], "404 scope"},
		{"reader", "/fhir/Observation/" + ids["60"], "200"},
		{"reader", of("p1"), "403 may not search"},
		{"reader", "/fhir/metadata", "200"},
	} {
		w := f.do("GET", c.target, accounts[c.account])
		body := decode(t, w.Body.Bytes())
		status, says, _ := strings.Cut(c.want, " ")
		evs := f.journal.Events(t)
		ev := evs[len(evs)-1]
		if ev.Actor.ID != "spiffe://ward.example/access/"+c.account {
			t.Errorf("%s, %s: the event is %+v", c.account, c.target, ev)
		}
		if fmt.Sprint(w.Code) == status {
			if w.Code != 200 && (!strings.Contains(text(body, "issue", 0, "diagnostics"), says) || ev.Outcome != audit.Denied || ev.Reason == "") {
				t.Errorf("%s, %s: %s; event %+v; expected %q and a refusal in the log", c.account, c.target, w.Body, ev, says)
			}
			continue
		}
		if got := strings.TrimSpace(strings.Join(values(body), " ")); w.Code != 200 || got != strings.TrimSpace(c.want) {
			t.Errorf("%s, %s: %d %q; expected %q\n%s", c.account, c.target, w.Code, got, c.want, w.Body)
		}
	}
}

// TestPagesOfANarrowedSearch: following next links gives each reading in the scope once, although most of what is looked at is not in it;
// and a link is its account's alone.
func TestPagesOfANarrowedSearch(t *testing.T) {
	var messages []telemetry.Message
	for i := range 700 {
		messages = append(messages, reading("p1", i, fmt.Sprint(i)))
		messages[i].Received.Wall = start - 1000 + int64(i)
	}
	f := setup(t, messages...)
	moment := func(n int64) time.Time { return time.UnixMilli(start - 1000 + n) }
	f.cfg.Wards = &history{wards: registry.Wards{{Name: "ICU 4"}, {Name: "ICU 2", Since: moment(50)}, {Name: "ICU 4", Since: moment(55)}}}
	f.restart()
	cert, other := f.scoped("icu-2", 100, registry.Scope{Wards: []string{"ICU 2"}}), f.scoped("icu-2-too", 101, registry.Scope{Wards: []string{"ICU 2"}})
	var got []string
	target := search("p1", "&_count=2")
	for pages := 0; target != ""; pages++ {
		if pages > 10 {
			t.Fatal("no end of pages")
		}
		b := decode(t, f.do("GET", target, cert).Body.Bytes())
		got = append(got, slices.DeleteFunc(values(b), func(v string) bool { return v == "limited" })...)
		target = strings.TrimPrefix(text(b, "link", 1, "url"), strings.TrimSuffix(base, "/fhir"))
		if target != "" {
			if w := f.do("GET", target, other); w.Code != 403 || !strings.Contains(w.Body.String(), "_cursor") {
				t.Errorf("another account's link: %d %s", w.Code, w.Body)
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"50", "51", "52", "53", "54"}) {
		t.Errorf("pages held %q", got)
	}
}

// TestWhoIsCutOffReadsNothingMore: from one request to the next, on whatever connection; and a registry that cannot be asked lets nobody in.
func TestWhoIsCutOffReadsNothingMore(t *testing.T) {
	f := setup(t, reading("p1", 0, "60"))
	f.get(search("p1", ""))
	who := audit.Actor{ID: "test"}
	for _, step := range []struct {
		to   registry.State
		code int
	}{{registry.Suspended, 403}, {registry.Active, 200}, {registry.Revoked, 403}} {
		if _, _, err := f.reg.SetState(t.Context(), who, "", spiffe.Access, "ehr", step.to, "because"); err != nil {
			t.Fatal(err)
		}
		if w := f.do("GET", search("p1", ""), f.cert); w.Code != step.code || step.code != 200 && (!strings.Contains(w.Body.String(), "because") || w.Header().Get("Connection") != "close") {
			t.Errorf("%s: %d %s", step.to, w.Code, w.Body)
		}
	}
	if err := f.reg.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i, err := f.reg.IdentityOf(t.Context(), spiffe.Access, "ehr"); err != nil || i.Used.IsZero() || i.UsedFor != "search Observation" {
		t.Errorf("last use: %+v, %v", i, err)
	}
}

// TestAWardHearsNothingOfOtherWards: a patient of whom there is more in another ward than a page looks at is answered like one that nobody knows.
func TestAWardHearsNothingOfOtherWards(t *testing.T) {
	messages := make([]telemetry.Message, 5100)
	for i := range messages {
		messages[i] = reading("p1", i, "60")
		messages[i].Received.Wall = start + int64(i)
	}
	f := setup(t, messages...)
	f.cfg.Wards = &history{wards: registry.Wards{{Name: "ICU 4"}}}
	f.restart()
	cert := f.scoped("icu-2", 100, registry.Scope{Wards: []string{"ICU 2"}})
	answer := func(patient string) string {
		got := f.do("GET", "/fhir/Observation?patient.identifier="+url.QueryEscape(system+"|"+patient), cert)
		return strings.ReplaceAll(got.Body.String(), patient, "WHO")
	}
	if known, unknown := answer("p1"), answer("p9"); known != unknown {
		t.Errorf("a patient of another ward: %s\nnobody: %s", known, unknown)
	}
}

// TestManyPatientsShareWhatIsLookedAt: whether a patient was in a ward costs a request no more for many patients than for one, but for the newest 200 of each.
func TestManyPatientsShareWhatIsLookedAt(t *testing.T) {
	const others = 30
	var messages []telemetry.Message
	take := func(patient string, wall int64) {
		m := reading(patient, len(messages), "60")
		m.Received.Wall = wall
		messages = append(messages, m)
	}
	take("p0", start) // in ICU 2, before all of his others
	ids := []string{system + "|p0"}
	for i := range others {
		take(fmt.Sprint("q", i), start)
		ids = append(ids, fmt.Sprint(system, "|q", i))
	}
	for range 250 {
		take("p0", start+100)
	}
	f := setup(t, messages...)
	f.cfg.Wards = &history{wards: registry.Wards{{Name: "ICU 2"}, {Name: "ICU 4", Since: time.UnixMilli(start + 90)}}}
	f.restart()
	ward := f.scoped("of-icu-2", 77, registry.Scope{Wards: []string{"ICU 2"}})
	for n, want := range map[int]int{1: 1, 19: 19, len(ids): others} {
		got := f.do("GET", "/fhir/Patient?identifier="+url.QueryEscape(strings.Join(ids[:n], ",")), ward)
		if total := at(decode(t, got.Body.Bytes()), "total"); fmt.Sprint(total) != fmt.Sprint(want) {
			t.Errorf("%d patients: %v are seen, expected %d (%d)", n, total, want, got.Code)
		}
	}
}
