package fhir

import (
	"context"
	"crypto/hmac"
	"errors"
	"net/http"
	"net/url"
	"slices"

	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

// failed turns an error into an answer: what the client has to mend is said to it, everything else only to the log.
func (s *Server) failed(err error) *answer {
	var p *paramError
	switch {
	case errors.As(err, &p):
		return refuse(http.StatusBadRequest, "invalid", "malformed request", p.text)
	case errors.Is(err, records.ErrNotFound):
		return refuse(http.StatusNotFound, "not-found", "not found", "there is no resource with this id, or none in the account's scope")
	case errors.Is(err, records.ErrTooBroad):
		return refuse(http.StatusBadRequest, "too-costly", "too costly", "too many kinds of readings match; name codes")
	}
	s.cfg.Log.Error("records cannot be read", "error", err)
	if sqldb.Environment(err) { // the machine's trouble passes, and then the same request is good
		return refuse(http.StatusServiceUnavailable, "transient", "records unavailable", "the records cannot be read now; try again later")
	}
	return refuse(http.StatusInternalServerError, "exception", "records unavailable", "the records cannot be read; see the server's log")
}

func (s *Server) read(r *http.Request, kind, id string, sc registry.Scope) *answer {
	if _, err := parseQuery(r.URL.RawQuery, []string{"_format"}); err != nil {
		return s.failed(err)
	}
	if kind == "Patient" {
		p, err := s.cfg.Store.Patient(r.Context(), id)
		if err != nil {
			a := s.failed(err)
			a.patients = s.pseudonymsOf(r.Context(), id)
			return a
		}
		switch seen, err := s.sees(r.Context(), sc, p.ID, 1); {
		case err != nil:
			return s.failed(err)
		case !seen:
			a := s.hidden()
			a.patients = []string{p.ID}
			return a
		}
		return &answer{status: http.StatusOK, body: toPatient(p), count: 1, patients: []string{p.ID}}
	}
	o, err := s.cfg.Store.Observation(r.Context(), id) // refuses ids that are none of ours
	if err != nil {
		return s.failed(err)
	}
	wards, err := s.wardsOf(r.Context(), []records.Observation{o})
	if err != nil {
		return s.failed(err)
	}
	if !holds(sc, &o, wards[0]) {
		a := s.hidden()
		a.patients = known(o.Patient)
		return a
	}
	return &answer{status: http.StatusOK, body: located(toObservation(&o), wards[0], o.Bed), count: 1, patients: known(o.Patient)}
}

// known is the pseudonym of a reading's patient, if it has one.
func known(p records.Patient) []string {
	if p.ID == "" {
		return nil
	}
	return []string{p.ID}
}

// pseudonymsOf turns ids as the client gave them into what may stand in the event for ever: those of stored patients as they are, any
// other as its keyed hash, since a client may put a real identifier there by mistake.
func (s *Server) pseudonymsOf(ctx context.Context, ids ...string) (out []string) {
	for _, id := range ids {
		if _, err := s.cfg.Store.Patient(ctx, id); err != nil {
			id = records.PatientID(s.cfg.Pseudonym, "", id)
		}
		out = append(out, id)
	}
	return out
}

func toPatient(p records.Patient) *patient {
	return &patient{ResourceType: "Patient", ID: p.ID, Identifier: []identifier{{System: p.System, Value: p.Value}}}
}

// resolve finds the patients with one of the identifiers. asked are the pseudonyms for the event, also of patients that are not
// there: that somebody looked for a patient is worth knowing, whatever was found.
func (s *Server) resolve(ctx context.Context, tokens []token) (found []records.Patient, asked []string, err error) {
	for _, t := range tokens {
		ps, err := s.cfg.Store.Patients(ctx, t.system, t.code, maxPatients)
		if err != nil {
			return nil, nil, err
		}
		if len(ps) == 0 {
			system := ""
			if t.system != nil {
				system = *t.system
			}
			asked = append(asked, records.PatientID(s.cfg.Pseudonym, system, t.code))
		}
		for _, p := range ps {
			asked = append(asked, p.ID)
			if !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
		if len(found) > maxPatients {
			return nil, nil, badParam("more than %d patients match; name the identifier's system", maxPatients)
		}
	}
	return found, asked, nil
}

func (s *Server) searchPatients(r *http.Request, base string, sc registry.Scope) *answer {
	values, err := parseQuery(r.URL.RawQuery, patientParams)
	if err != nil {
		return s.failed(err)
	}
	if !values.Has("identifier") {
		return s.failed(badParam("name the patient: identifier=<system>|<value>"))
	}
	tokens, err := parseTokens("identifier", values.Get("identifier"), false)
	if err != nil {
		return s.failed(err)
	}
	found, asked, err := s.resolve(r.Context(), tokens)
	if err != nil {
		return s.failed(err)
	}
	if len(sc.Subjects) > 0 && !slices.ContainsFunc(found, func(p records.Patient) bool { return sc.HoldsSubject(p.ID) }) {
		return beyond("identifier", asked)
	}
	visible := found[:0]
	for _, p := range found {
		seen, err := s.sees(r.Context(), sc, p.ID, len(found))
		if err != nil {
			return s.failed(err)
		}
		if seen {
			visible = append(visible, p)
		}
	}
	found = visible
	total := len(found)
	b := bundle{ResourceType: "Bundle", Type: "searchset", Total: &total, Link: []link{{"self", base + "/Patient?" + values.Encode()}}}
	for _, p := range found {
		b.Entry = append(b.Entry, entry{base + "/Patient/" + p.ID, toPatient(p), &entryMatch{"match"}})
	}
	limited(&b, sc)
	return &answer{status: http.StatusOK, body: b, count: uint64(total), patients: asked}
}

func (s *Server) searchObservations(r *http.Request, base string, account registry.Identity) *answer {
	sc := account.Scope
	q, err := parseSearch(r.URL.RawQuery, base, s.cfg.Zone)
	if err != nil {
		return s.failed(err)
	}
	ids, asked, err := s.askedFor(r.Context(), &q)
	if err != nil {
		return s.failed(err)
	}
	if len(sc.Subjects) > 0 {
		if ids = slices.DeleteFunc(ids, func(id string) bool { return !sc.HoldsSubject(id) }); len(ids) == 0 {
			return beyond("patient", asked)
		}
	}
	if q.codes != nil && !reaches(sc, q.codes) {
		return beyond("code", asked)
	}
	if q.after != nil && !hmac.Equal([]byte(q.proof), []byte(s.proof(account, *q.after))) {
		return refuse(http.StatusForbidden, "forbidden", "a page of another account", "_cursor: it was not given to this account; begin the search anew")
	}
	if ids, err = s.seen(r.Context(), sc, ids); err != nil {
		return s.failed(err)
	}
	page, err := s.look(r.Context(), records.Query{
		Patients: ids, NoPatient: q.noPatient, From: q.from, To: q.to, After: q.after, Limit: q.count, Room: pageRoom,
		Match: func(one records.Series) bool {
			return holdsSeries(sc, one) && (q.codes == nil || matches(q.codes, codingsOf(one.Code, one.UCUM, one.UnitUnknown)))
		},
	}, sc, maxLooked)
	if err != nil {
		a := s.failed(err)
		a.patients = asked
		return a
	}
	values, _ := url.ParseQuery(r.URL.RawQuery) // parsed before
	b := bundle{ResourceType: "Bundle", Type: "searchset", Link: []link{{"self", base + "/Observation?" + values.Encode()}}}
	for i := range page.observations {
		o := &page.observations[i]
		b.Entry = append(b.Entry, entry{base + "/Observation/" + o.ID, located(toObservation(o), page.wards[i], o.Bed), &entryMatch{"match"}})
	}
	limited(&b, sc)
	if page.next != nil {
		next := q.query(values, ids, page.next.String()+"."+s.proof(account, *page.next))
		b.Link = append(b.Link, link{"next", base + "/Observation?" + next})
	}
	return &answer{status: http.StatusOK, body: b, count: uint64(len(page.observations)), patients: asked}
}

// askedFor gives the ids of the patients that a search is about, and for the event the pseudonyms that it names.
func (s *Server) askedFor(ctx context.Context, q *search) (ids, asked []string, err error) {
	ids, asked = slices.Clone(q.patients), s.pseudonymsOf(ctx, q.patients...)
	if q.identifiers == nil {
		return ids, asked, nil
	}
	found, named, err := s.resolve(ctx, q.identifiers)
	if err != nil {
		return nil, nil, err
	}
	ids = nil
	for _, p := range found {
		// Both parameters together mean patients that both name.
		if q.patients == nil || slices.Contains(q.patients, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	return ids, append(asked, named...), nil
}
