package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/registry"
)

// identityRoutes are those by which it is said who may do what.
func (a *API) identityRoutes() map[string]handler {
	return map[string]handler{
		"POST /v1/access":                           a.issueAccess,
		"GET /v1/identities":                        a.listIdentities,
		"GET /v1/identities/{kind}/{name}":          a.showIdentity,
		"POST /v1/identities/{kind}/{name}/explain": a.explainIdentity,
		"POST /v1/identities/{kind}/{name}/change":  a.changeIdentity,
		"POST /v1/identities/{kind}/{name}/state":   a.setIdentityState,
		"POST /v1/identities/{kind}/{name}/rotate":  a.rotateIdentity,
	}
}

// issueAccess certifies a service account's key, and makes the account where there is none. Both are registered, with their events,
// before the certificate leaves.
func (a *API) issueAccess(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.AccessRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := spiffe.ValidName(in.Name); err != nil {
		return badRequest{err}
	}
	csr, err := csrOf(in.CSR)
	if err != nil {
		return err
	}
	i, err := a.Registry.IdentityOf(r.Context(), spiffe.Access, in.Name)
	switch {
	case errors.Is(err, registry.ErrUnknown):
		if i, err = a.newAccount(r, who, in); err != nil {
			return err
		}
	case err != nil:
		return err
	case in.Scope != nil || in.Owner != "" || in.Contact != "":
		return a.denied(r, who, audit.Event{Type: audit.AccessIssued, Target: in.Name, Reason: "the account is there already"},
			badRequest{fmt.Errorf("account %[1]s is there already; if its files are missing, 'wardlink access issue %[1]s --renew' alone makes others; what it may see changes 'wardlink access scope %[1]s', and whose it is 'wardlink access owner %[1]s'", in.Name)})
	}
	grant, err := a.certify(r, who, spiffe.Access, in.Name, "", csr)
	if err != nil {
		return err
	}
	grant.Scope = i.Scope.String()
	if in.Scope != nil {
		grant.Warnings = a.strayWards(r.Context(), i.Scope)
	}
	return writeJSON(w, grant)
}

func (a *API) newAccount(r *http.Request, who who, in client.AccessRequest) (i registry.Identity, err error) {
	i = registry.Identity{Kind: spiffe.Access, Name: in.Name, Owner: in.Owner, Contact: in.Contact}
	if i.Owner == "" {
		i.Owner = who.identity.Name
	}
	if in.Scope != nil {
		if i.Scope, err = a.scopeOf(*in.Scope); err != nil {
			return i, err
		}
	}
	if err := registry.CheckIdentity(i); err != nil {
		return i, badRequest{err}
	}
	return i, a.Registry.Enter(r.Context(), who.actor, who.peer, i)
}

// scopeOf reads a scope as a request gives it. A patient's identifier goes no further than here.
func (a *API) scopeOf(in client.Scope) (registry.Scope, error) {
	out := registry.Scope{All: in.All, Wards: in.Wards, Codes: in.Codes, Subjects: slices.Clone(in.Patients)}
	for _, o := range in.Operations {
		out.Operations = append(out.Operations, registry.Operation(o))
	}
	for _, id := range in.Patients { // which one it is stays untold: it may be an identifier
		if b, err := hex.DecodeString(id); err != nil || len(b) != 16 || strings.ToLower(id) != id {
			return registry.Scope{}, badRequest{errors.New("a patient is none of ours: expected the 32 hex digits that FHIR shows behind Patient/, or its identifier: --identifier 'SYSTEM|VALUE'")}
		}
	}
	for _, text := range in.Identifiers {
		id, err := a.patient("", text)
		if err != nil {
			return registry.Scope{}, err
		}
		out.Subjects = append(out.Subjects, id)
	}
	out, err := out.Checked()
	if err != nil {
		return registry.Scope{}, badRequest{err}
	}
	return out, nil
}

// strayWards are the wards of a scope in which no gateway stands or stood, each in a sentence: a scope compares them byte by byte. They are not refused,
// since an account may be made before its ward's gateways.
func (a *API) strayWards(ctx context.Context, s registry.Scope) (out []string) {
	if len(s.Wards) == 0 {
		return nil
	}
	known, err := a.Registry.WardNames(ctx)
	if err != nil {
		a.Log.Error("wards of a scope cannot be compared with the registry's", "error", err)
		return nil
	}
	for _, w := range s.Wards {
		if slices.Contains(known, w) {
			continue
		}
		var alike []string
		for _, k := range known {
			if plainWard(k) == plainWard(w) {
				alike = append(alike, strconv.Quote(k))
			}
		}
		mend := "'wardlink gateway list' shows the wards"
		if len(alike) > 0 {
			mend = "is it " + strings.Join(alike, " or ") + "? A ward must be written as the registry has it"
		}
		out = append(out, fmt.Sprintf("no gateway is or was in ward %q, so nothing is seen of it; %s", w, mend))
	}
	return out
}

// plainWard is a ward's name without what people write now so, now otherwise.
func plainWard(name string) string {
	return strings.NewReplacer(" ", "", "-", "", "_", "").Replace(strings.ToLower(name))
}

// patient is the pseudonym of a patient that is named by it, or by an identifier.
func (a *API) patient(id, identifier string) (string, error) {
	if identifier == "" {
		return id, nil
	}
	system, value, ok := strings.Cut(identifier, "|")
	if !ok || value == "" {
		return "", badRequest{errors.New("patient: expected <system>|<value> as FHIR's patient.identifier has it, with the system, which makes it one patient")}
	}
	return a.PatientID(system, value), nil
}

// shownScope is a scope as an answer has it.
func shownScope(s registry.Scope) *client.Scope {
	out := &client.Scope{All: s.All, Wards: s.Wards, Codes: s.Codes, Patients: s.Subjects}
	for _, o := range s.Operations {
		out.Operations = append(out.Operations, string(o))
	}
	return out
}

// shownIdentity is an operator or a service account as an answer has it.
func shownIdentity(i registry.Identity) client.Identity {
	c := i.Certificate
	out := client.Identity{
		Kind: string(i.Kind), Name: i.Name, Owner: i.Owner, Contact: i.Contact, Role: string(i.Role), State: string(i.State), Reason: i.Reason, Changed: i.Changed, By: i.ChangedBy,
		Created: i.Created, Creator: i.Creator, Used: client.Use{Time: i.Used}, UsedFor: i.UsedFor, Serial: c.Serial, Expires: c.Ends, Valid: i.Valid,
	}
	out.Scope, out.Renewal = string(i.Role), "its tool, when it is used past half of its life"
	if i.Kind == spiffe.Access {
		out.Scope, out.Holds, out.Renewal = i.Scope.String(), shownScope(i.Scope), "itself, by 'wardlink access keep'"
	}
	if !c.NotAfter.IsZero() && i.State == registry.Active {
		out.Next = halfOf(c.NotBefore, c.NotAfter)
	}
	return out
}

func halfOf(from, to time.Time) time.Time { return from.Add(to.Sub(from) / 2).UTC() }

// listIdentities gives every identity that is not a patient: of one kind, or all with kind absent.
func (a *API) listIdentities(w http.ResponseWriter, r *http.Request, who who) error {
	kind := r.URL.Query().Get("kind")
	is, err := a.Registry.Identities(r.Context())
	if err != nil {
		return err
	}
	out := []client.Identity{}
	for _, i := range is {
		out = append(out, shownIdentity(i))
	}
	if kind != string(spiffe.Access) && kind != string(spiffe.Operator) {
		gateways, err := a.gatewayIdentities(r)
		if err != nil {
			return err
		}
		others, err := a.Others(r.Context())
		if err != nil {
			return err
		}
		out = append(append(out, gateways...), others...)
	}
	if kind != "" {
		out = slices.DeleteFunc(out, func(i client.Identity) bool { return i.Kind != kind })
	}
	if err := a.event(r, who, audit.Event{Type: audit.IdentitiesRead, Target: "identities", Outcome: audit.Success, Count: uint64(len(out))}); err != nil {
		return err
	}
	return writeJSON(w, out)
}

// gatewayIdentities are the gateways with their newest certificates.
func (a *API) gatewayIdentities(r *http.Request) (out []client.Identity, err error) {
	gs, err := a.Registry.List(r.Context())
	if err != nil {
		return nil, err
	}
	certs, err := a.Registry.Certificates(r.Context())
	if err != nil {
		return nil, err
	}
	newest := make(map[string]registry.Certificate, len(certs))
	for _, c := range certs {
		newest[c.Gateway] = c
	}
	seen, err := a.Seen(r.Context())
	if err != nil {
		return nil, err
	}
	for _, g := range gs {
		one := client.Identity{
			Kind: string(spiffe.Gateway), Name: g.ID, Owner: g.Ward, Scope: "publishes, profile " + g.Profile, State: string(g.State), Created: g.Added,
			Used: client.Use{Time: seen[g.ID]}, Renewal: "itself, by its TPM",
		}
		if c, ok := newest[g.ID]; ok {
			one.Expires, one.Next = c.NotAfter, halfOf(c.NotBefore, c.NotAfter)
		}
		out = append(out, one)
	}
	return out, nil
}

// identityKind reads the kind and the name of the request's path.
func identityKind(r *http.Request) (spiffe.Kind, string, error) {
	kind, name := spiffe.Kind(r.PathValue("kind")), r.PathValue("name")
	if kind != spiffe.Access && kind != spiffe.Operator {
		return "", "", badRequest{fmt.Errorf("%.40q: expected %s or %s", kind, spiffe.Access, spiffe.Operator)}
	}
	if err := spiffe.ValidName(name); err != nil {
		return "", "", badRequest{err}
	}
	return kind, name, nil
}

// readIdentity gives the identity of the request's path, and journals that it is shown.
func (a *API) readIdentity(r *http.Request, who who) (registry.Identity, error) {
	kind, name, err := identityKind(r)
	if err != nil {
		return registry.Identity{}, err
	}
	i, err := a.Registry.IdentityOf(r.Context(), kind, name)
	if err != nil {
		return registry.Identity{}, err
	}
	return i, a.event(r, who, audit.Event{Type: audit.IdentitiesRead, Target: i.Subject(), Outcome: audit.Success, Count: 1})
}

func (a *API) showIdentity(w http.ResponseWriter, r *http.Request, who who) error {
	i, err := a.readIdentity(r, who)
	if err != nil {
		return err
	}
	out := shownIdentity(i)
	if i.Kind == spiffe.Operator {
		out.May = routesOf(i.Role)
	}
	return writeJSON(w, out)
}

// changeIdentity gives an identity another owner, contact, role or scope.
func (a *API) changeIdentity(w http.ResponseWriter, r *http.Request, who who) error {
	kind, name, err := identityKind(r)
	if err != nil {
		return err
	}
	var in client.ChangeRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	var scope registry.Scope
	if in.Scope != nil {
		if scope, err = a.scopeOf(*in.Scope); err != nil {
			return err
		}
	}
	set := func(i *registry.Identity) {
		if in.Owner != nil {
			i.Owner = *in.Owner
		}
		if in.Contact != nil {
			i.Contact = *in.Contact
		}
		if in.Role != nil {
			i.Role = registry.Role(*in.Role)
		}
		if in.Scope != nil {
			i.Scope = scope
		}
	}
	i, err := a.Registry.IdentityOf(r.Context(), kind, name)
	if err != nil {
		return a.deniedIdentity(r, who, audit.IdentityChanged, err)
	}
	if set(&i); registry.CheckIdentity(i) != nil {
		return badRequest{registry.CheckIdentity(i)}
	}
	i, err = a.Registry.Change(r.Context(), who.actor, who.peer, kind, name, set)
	if err != nil {
		return a.deniedIdentity(r, who, audit.IdentityChanged, err)
	}
	out := shownIdentity(i)
	if in.Scope != nil {
		out.Warnings = a.strayWards(r.Context(), scope)
	}
	return writeJSON(w, out)
}

// deniedIdentity journals an act on the identity of the request's path that the registry refused.
func (a *API) deniedIdentity(r *http.Request, who who, act audit.Type, err error) error {
	var inactive *registry.IdentityError
	if !errors.Is(err, registry.ErrUnknown) && !errors.Is(err, registry.ErrConflict) && !errors.As(err, &inactive) {
		return err
	}
	return a.denied(r, who, audit.Event{Type: act, Target: fmt.Sprintf("%.20s/%.64s", r.PathValue("kind"), r.PathValue("name")), Reason: whyDenied(err)}, err)
}

// setIdentityState suspends, resumes or revokes. It is answered although its event is not journaled, as the revocation of a gateway is.
func (a *API) setIdentityState(w http.ResponseWriter, r *http.Request, who who) error {
	kind, name, err := identityKind(r)
	if err != nil {
		return err
	}
	var in client.StateRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	acts := map[registry.State]audit.Type{registry.Active: audit.IdentityResumed, registry.Suspended: audit.IdentitySuspended, registry.Revoked: audit.IdentityRevoked}
	to := registry.State(in.State)
	if acts[to] == "" {
		return badRequest{fmt.Errorf("state %.20q: expected %s, %s or %s", in.State, registry.Active, registry.Suspended, registry.Revoked)}
	}
	if err := registry.CheckReason(in.Reason); err != nil {
		return badRequest{err}
	}
	i, again, err := a.Registry.SetState(r.Context(), who.actor, who.peer, kind, name, to, in.Reason)
	late := a.late(string(acts[to]), i.Subject(), err)
	if err != nil && !late {
		return a.deniedIdentity(r, who, acts[to], err)
	}
	return writeJSON(w, client.StateAnswer{Identity: shownIdentity(i), Already: again, Journaled: !late})
}

// rotateIdentity has an identity's certificates end after an overlap.
func (a *API) rotateIdentity(w http.ResponseWriter, r *http.Request, who who) error {
	kind, name, err := identityKind(r)
	if err != nil {
		return err
	}
	var in client.RotateRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if err := registry.CheckReason(in.Reason); err != nil {
		return badRequest{err}
	}
	if most := int64(registry.MaxOverlap / time.Second); in.Overlap < 0 || in.Overlap > most {
		return badRequest{fmt.Errorf("overlap: expected 0 to %d seconds", most)}
	}
	end, n, err := a.Registry.Rotate(r.Context(), who.actor, who.peer, kind, name, in.Reason, time.Duration(in.Overlap)*time.Second)
	late := a.late(string(audit.IdentityRotated), string(kind)+"/"+name, err)
	if err != nil && !late {
		return a.deniedIdentity(r, who, audit.IdentityRotated, err)
	}
	return writeJSON(w, client.RotateAnswer{Ends: end, Certificates: n, Journaled: !late})
}

// explainIdentity says whether a service account may see something, by the rules that FHIR goes by.
func (a *API) explainIdentity(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.Question
	if err := readJSON(r, &in); err != nil {
		return err
	}
	id, err := a.patient(in.Patient, in.Identifier)
	if err != nil {
		return err
	}
	var code registry.Coding
	if in.Code != "" {
		if code, err = registry.ParseCoding(in.Code); err != nil {
			return badRequest{err}
		}
	}
	i, err := a.readIdentity(r, who)
	if err != nil {
		return err
	}
	if i.Kind != spiffe.Access {
		return badRequest{errors.New("a scope is a service account's; what an operator may do 'wardlink operator show' says")}
	}
	out := client.Explanation{Identity: shownIdentity(i), Allowed: true}
	check := func(what string, holds bool, yes, no string) {
		why := yes
		if !holds {
			why, out.Allowed = no, false
		}
		out.Checks = append(out.Checks, client.Check{What: what, Holds: holds, Why: why})
	}
	check("state", i.State == registry.Active, "the account is active", fmt.Sprintf("the account is %s: %s", i.State, i.Reason))
	check("certificate", i.Valid > 0, fmt.Sprintf("%d count now", i.Valid), "none counts now; make one with 'wardlink access issue "+i.Name+" --renew'")
	s := i.Scope
	check("scope", !s.Empty(), s.String(), "it has none, so it sees nothing; give it one with 'wardlink access scope "+i.Name+"'")
	if in.Operation != "" {
		check("operation "+in.Operation, s.May(registry.Operation(in.Operation)), "granted", "not granted: a request is refused (403); of waveforms: they are left out")
	}
	if in.Ward != "" {
		check("ward "+in.Ward, s.HoldsWard(in.Ward), "in the scope", "outside: readings that were taken in there are left out")
	}
	if in.Code != "" {
		check("code "+in.Code, s.Reaches(code), "in the scope", "outside: a search for it alone is refused (403), readings of it are left out")
	}
	if id != "" {
		check("patient", s.HoldsSubject(id), "in the scope", "outside: a search for it alone is refused (403), its readings are not found")
	}
	return writeJSON(w, out)
}
