package fhir

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"

	"wardlink/server/records"
	"wardlink/server/registry"
)

// What a scope does to a request (decisions/0040). An operation that is not granted, and a search that names only what is outside, are
// refused (403) before anything is looked at, so that the refusal tells nothing of what is stored. Any other search is narrowed to the scope
// and says so. A resource outside is not found (404), like one that is not there: else whoever guesses learns who is in the hospital.
// Each of these is an event with its reason.

const (
	outside = "outside the account's scope"
	explain = "; 'wardlink access explain' says what the account may see"

	// maxLooked bounds the readings that one page looks at for those of a scope's wards; the next link goes on behind them. Wards are not in
	// an index: they are those of the gateways at the time.
	maxLooked = 5 * maxCount
	// lookStep is how many readings are looked at together at least, and of each patient of whom a request wants to know whether he is in the scope.
	lookStep = 200
)

// granted refuses an operation that is not in the account's scope; nil lets it pass.
func granted(account registry.Identity, o registry.Operation) *answer {
	if account.Scope.Empty() {
		return refuse(http.StatusForbidden, "forbidden", "the account has no scope", "the account has no scope yet, so it may see nothing; an operator gives it one: wardlink access scope "+account.Name+" --ward WARD")
	}
	if !account.Scope.May(o) {
		return refuse(http.StatusForbidden, "forbidden", "operation "+string(o)+" is "+outside, "the account may not "+string(o)+explain)
	}
	return nil
}

// beyond is a refusal of a search that names only what is outside.
func beyond(parameter string, asked []string) *answer {
	a := refuse(http.StatusForbidden, "forbidden", parameter+" "+outside, parameter+": nothing of it is in the account's scope"+explain)
	a.patients = asked
	return a
}

// hidden is how a resource outside of the scope is answered.
func (s *Server) hidden() *answer {
	a := s.failed(records.ErrNotFound)
	a.denied, a.reason = true, outside
	return a
}

// holdsSeries says whether readings of a series are in the scope, their wards aside.
func holdsSeries(sc registry.Scope, one records.Series) bool {
	switch {
	case one.Waveform && !sc.May(registry.Waveforms):
		return false
	case len(sc.Codes) == 0: // spares the codings of each reading
		return sc.HoldsCode()
	}
	return sc.HoldsCode(registryCodings(codingsOf(one.Code, one.UCUM, one.UnitUnknown))...)
}

// holds says whether a reading, taken in in a ward, is in the scope.
func holds(sc registry.Scope, o *records.Observation, ward string) bool {
	return sc.HoldsSubject(o.Patient.ID) && sc.HoldsWard(ward) &&
		holdsSeries(sc, records.Series{Code: o.Code, UCUM: o.Unit.UCUM, UnitUnknown: unitUnknown(o), Waveform: o.Waveform != nil})
}

func registryCodings(in []coding) []registry.Coding {
	out := make([]registry.Coding, len(in))
	for i, c := range in {
		out[i] = registry.Coding{System: c.System, Code: c.Code}
	}
	return out
}

// reaches says whether one of the codes that a search names can be of a reading in the scope.
func reaches(sc registry.Scope, tokens []token) bool {
	return sc.All || len(sc.Codes) == 0 || slices.ContainsFunc(tokens, func(t token) bool {
		switch {
		case t.code == "": // any code of a system
			return true
		case t.system != nil:
			return sc.Reaches(registry.Coding{System: *t.system, Code: t.code})
		}
		return sc.Reaches(registry.Coding{System: systemLOINC, Code: t.code}) || sc.Reaches(registry.Coding{System: systemMDC, Code: t.code}) ||
			slices.ContainsFunc(sc.Codes, func(c string) bool { return len(c) > len(t.code) && c[len(c)-len(t.code)-1:] == "|"+t.code })
	})
}

// found is a page of what an account may see.
type found struct {
	observations []records.Observation
	wards        []string          // of each
	next         *records.Position // where the next page goes on; nil: there is none
}

// look searches within a scope. What of it the index knows, patients and codes, the caller has put into q; wards are looked at here, on as
// many readings as that takes, up to most: a page may hold fewer than asked for, or none, and there are more behind it.
func (s *Server) look(ctx context.Context, q records.Query, sc registry.Scope, most int) (out found, err error) {
	want := q.Limit
	narrowed := len(sc.Wards) > 0
	for looked := 0; ; {
		if narrowed {
			q.Limit = min(max(want, lookStep), most-looked)
		}
		page, err := s.cfg.Store.Search(ctx, q)
		if err != nil {
			return found{}, err
		}
		wards, err := s.wardsOf(ctx, page.Observations)
		if err != nil {
			return found{}, err
		}
		for i := range page.Observations {
			o := &page.Observations[i]
			at := o.Position()
			q.After = &at
			if !holds(sc, o, wards[i]) {
				continue
			}
			out.observations, out.wards = append(out.observations, *o), append(out.wards, wards[i])
			if len(out.observations) == want {
				if page.More || i < len(page.Observations)-1 {
					out.next = &at
				}
				return out, nil
			}
		}
		looked += len(page.Observations)
		full := len(page.Observations) < q.Limit && len(out.observations) > 0 // the page's room, not the count, ended it
		switch {
		case !page.More || len(page.Observations) == 0:
			return out, nil
		case !narrowed, full, looked >= most:
			out.next = q.After
			return out, nil
		}
	}
}

// sees says whether a patient is in the scope: named by it, or one of whose newest readings is. of is how many patients the request asks about: they share
// what a request may look at, so that it costs no more by naming a hundred of whom the wards see nothing. The newest 200 of each are looked at always.
func (s *Server) sees(ctx context.Context, sc registry.Scope, patient string, of int) (bool, error) {
	if !sc.HoldsSubject(patient) {
		return false, nil
	}
	if sc.All || len(sc.Wards)+len(sc.Codes) == 0 {
		return true, nil
	}
	got, err := s.look(ctx, records.Query{Patients: []string{patient}, Limit: 1, Room: pageRoom, Match: func(one records.Series) bool { return holdsSeries(sc, one) }}, sc,
		max(lookStep, maxLooked/max(of, 1)))
	return len(got.observations) > 0, err
}

// seen leaves the patients of a search by patient that are in a scope of wards: else the next link of a page without any reading would tell that there
// are some, when, and by which pseudonym. The others are answered as nobody is.
func (s *Server) seen(ctx context.Context, sc registry.Scope, patients []string) (out []string, err error) {
	if len(sc.Wards) == 0 {
		return patients, nil
	}
	for _, p := range patients {
		in, err := s.sees(ctx, sc, p, len(patients))
		if err != nil {
			return nil, err
		}
		if in {
			out = append(out, p)
		}
	}
	return out, nil
}

// limited adds to a bundle that it is narrowed, if it may be.
func limited(b *bundle, sc registry.Scope) {
	if limit := sc.Limit(); limit != "" {
		b.Entry = append(b.Entry, entry{Resource: operationOutcome{ResourceType: "OperationOutcome", Issue: []issue{{
			Severity: "information", Code: "suppressed", Diagnostics: "what is shown is limited to the account's scope: " + limit,
		}}}, Search: &entryMatch{"outcome"}})
	}
}

// proofBytes of the keyed hash bind a cursor to its account.
const proofBytes = 16

// proof binds a place in the results to the account that was shown it, so that a link that got into other hands leads nowhere, whatever
// their scope.
func (s *Server) proof(account registry.Identity, at records.Position) string {
	mac := hmac.New(sha256.New, s.cfg.Pseudonym)
	mac.Write([]byte("wardlink/cursor/1\x00" + account.Name + "\x00" + at.String()))
	return hex.EncodeToString(mac.Sum(nil)[:proofBytes])
}
