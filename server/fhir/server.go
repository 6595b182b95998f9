// Package fhir lets the hospital's systems read observations as FHIR R4 (4.0.1): read and search of Observation and Patient, and
// the CapabilityStatement.
//
// A reader is a service account: a client certificate with a SPIFFE id of kind "access" that the registry knows, and asks about at each
// request. It sees what is in its scope (scope.go). Each request that comes from a proven identity, also a refused one, is in the journal before its answer leaves; if the journal cannot be written the
// answer is 503 and holds no data. Events name parameters and the patient's pseudonym, never a value. Errors and logs hold no PHI.
package fhir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/secret"
	"wardlink/internal/spiffe"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
)

// Journal is what a Server needs of the journal.
type Journal interface {
	NextID() audit.EventID
	Append(ctx context.Context, entries ...journal.Entry) error
}

// Access is what a Server needs of the registry; see registry.Registry.
type Access interface {
	Authorise(ctx context.Context, kind spiffe.Kind, name string, c registry.IdentityCertificate) (registry.Identity, error)
	Use(i registry.Identity, what string)
}

// Refusals takes refusals of peers that have proven nothing, to be journaled in aggregate.
type Refusals interface {
	Add(peer net.Addr, reason string)
}

// Config is what a Server needs.
type Config struct {
	Store       *records.Store
	Journal     Journal
	Access      Access
	Wards       Wards        // nil: readings do not say where they were taken in
	Refusals    Refusals     // nil: refusals of unproven peers are journaled one by one
	Pseudonym   secret.Bytes // the key of records.PatientID, the same that the records use
	TrustDomain string
	BaseURL     string         // the server's own URL up to and including /fhir, as clients reach it; "" takes the request's Host
	Zone        *time.Location // of dates in searches that name none; nil: UTC
	Log         *slog.Logger
	Now         func() time.Time // nil: time.Now
}

// journalTime bounds how long a read waits for its event to be durable.
const journalTime = 10 * time.Second

// Server is the handler of /fhir/.
type Server struct {
	cfg Config
}

// New makes the handler. The listener in front of it verifies client certificates' chains.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Journal == nil || cfg.Access == nil || cfg.Log == nil || len(cfg.Pseudonym) == 0 {
		return nil, errors.New("fhir: Store, Journal, Access, Pseudonym and Log are required")
	}
	if err := spiffe.ValidTrustDomain(cfg.TrustDomain); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Zone == nil {
		cfg.Zone = time.UTC
	}
	cfg.BaseURL = strings.TrimSuffix(cfg.BaseURL, "/")
	return &Server{cfg}, nil
}

// answer is what a request comes to, before it is journaled and written.
type answer struct {
	status int
	body   any
	allow  string // Allow header of a 405

	// for the event
	target      string // resource type
	interaction string
	query       string   // parameter names
	patients    []string // pseudonyms
	count       uint64
	reason      string // of a refusal; one of a few constants
	denied      bool   // it is one, whatever the status says
}

// refuse is an answer with an OperationOutcome. diagnostics go to the client, reason to the event.
func refuse(status int, code, reason, diagnostics string) *answer {
	return &answer{status: status, reason: reason, body: operationOutcome{
		ResourceType: "OperationOutcome",
		Issue:        []issue{{Severity: "error", Code: code, Diagnostics: diagnostics}},
	}}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	account, actor, refused := s.identify(r)
	if refused != nil && actor.ID == "" {
		if s.unproven(r, refused.reason) {
			write(w, r, refused)
			return
		}
		actor.ID = "peer"
	}
	a := refused
	if a == nil {
		a = s.handle(r, account)
		if a.status < 400 {
			s.cfg.Access.Use(account, a.interaction+" "+a.target)
		}
	}
	if err := s.record(r, actor, a); err != nil {
		s.cfg.Log.Error("a read could not be journaled and was not answered", "error", err)
		a = refuse(http.StatusServiceUnavailable, "transient", "", "the access could not be recorded, so nothing is shown; try again later")
	}
	write(w, r, a)
}

// identify says who asks. A refusal with an empty actor means that nothing was proven.
func (s *Server) identify(r *http.Request) (account registry.Identity, actor audit.Actor, refused *answer) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return account, actor, refuse(http.StatusUnauthorized, "login", "no client certificate", "present the client certificate of wardlink access issue")
	}
	cert := r.TLS.VerifiedChains[0][0]
	id, err := spiffe.FromCertificate(cert)
	if err != nil || id.TrustDomain != s.cfg.TrustDomain {
		return account, actor, refuse(http.StatusUnauthorized, "login", "foreign client certificate", "the client certificate is not of this trust domain; present the one of wardlink access issue")
	}
	actor = audit.Actor{ID: id.String(), Serial: cert.SerialNumber.Text(16)}
	if id.Kind != spiffe.Access {
		return account, actor, refuse(http.StatusForbidden, "forbidden", "not a service account", "the client certificate is not a service account's; make one with wardlink access issue")
	}
	account, refused = s.authorise(r.Context(), cert, id, actor.Serial)
	return account, actor, refused
}

// authorise holds a service account's certificate against the registry and the clock.
func (s *Server) authorise(ctx context.Context, cert *x509.Certificate, id spiffe.ID, serial string) (registry.Identity, *answer) {
	account, err := s.cfg.Access.Authorise(ctx, id.Kind, id.Name, registry.IdentityCertificate{Serial: serial, SPKI: sha256.Sum256(cert.RawSubjectPublicKeyInfo)})
	var inactive *registry.IdentityError
	switch {
	case errors.Is(err, registry.ErrUnknown):
		return account, refuse(http.StatusForbidden, "forbidden", "service account unknown", err.Error()+"; make one with wardlink access issue")
	case errors.As(err, &inactive) && inactive.State == registry.Active:
		return account, refuse(http.StatusForbidden, "expired", "service account's certificate has ended", err.Error()+": it has expired or was rotated out; 'wardlink access keep' renews in time, wardlink access issue makes another")
	case errors.As(err, &inactive):
		return account, refuse(http.StatusForbidden, "forbidden", "service account is "+string(inactive.State), err.Error())
	case err != nil:
		s.cfg.Log.Error("registry cannot be asked", "error", err)
		return account, refuse(http.StatusServiceUnavailable, "transient", "registry unavailable", "the registry cannot be asked; try again later")
	}
	if now := s.cfg.Now(); now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
		return account, refuse(http.StatusForbidden, "expired", "service account's certificate has ended", "the service account's certificate has expired; make one with wardlink access issue")
	}
	return account, nil
}

// handle routes a request of an authorised reader.
func (s *Server) handle(r *http.Request, account registry.Identity) *answer {
	if len(r.RequestURI) > maxURL {
		return refuse(http.StatusRequestURITooLong, "too-long", "URL too long", "the URL is longer than "+strconv.Itoa(maxURL)+" bytes; name fewer values")
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/fhir/")
	parts := strings.Split(path, "/")
	if !ok || len(parts) > 2 || !slices.Contains([]string{"metadata", "Patient", "Observation"}, parts[0]) || (parts[0] == "metadata" && len(parts) > 1) {
		return refuse(http.StatusNotFound, "not-found", "no such resource type", "this server has /fhir/metadata, /fhir/Observation and /fhir/Patient")
	}
	a := s.route(r, parts, account)
	a.target = parts[0]
	a.query = names(r.URL.RawQuery)
	return a
}

func (s *Server) route(r *http.Request, parts []string, account registry.Identity) *answer {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		a := refuse(http.StatusMethodNotAllowed, "not-supported", "method not allowed", "this server is read only; use GET")
		a.allow = "GET, HEAD"
		return a
	}
	if !acceptable(r.Header.Values("Accept")) {
		return refuse(http.StatusNotAcceptable, "not-supported", "format not supported", "this server gives application/fhir+json")
	}
	var a *answer
	switch base := s.base(r); {
	case parts[0] == "metadata":
		a = &answer{status: http.StatusOK, body: s.capabilities(base), interaction: "capabilities"}
		if _, err := parseQuery(r.URL.RawQuery, []string{"_format"}); err != nil {
			a = s.failed(err)
		}
	case len(parts) == 2:
		if a = granted(account, registry.Read); a == nil {
			a = s.read(r, parts[0], parts[1], account.Scope)
		}
		a.interaction = "read"
	default:
		if a = granted(account, registry.Search); a == nil && parts[0] == "Patient" {
			a = s.searchPatients(r, base, account.Scope)
		} else if a == nil {
			a = s.searchObservations(r, base, account)
		}
		a.interaction = "search"
	}
	return a
}

// base is the server's URL as the client sees it.
func (s *Server) base(r *http.Request) string {
	if s.cfg.BaseURL != "" {
		return s.cfg.BaseURL
	}
	return "https://" + r.Host + "/fhir"
}

// acceptable tells whether one of the media ranges includes FHIR's JSON.
func acceptable(accept []string) bool {
	if len(accept) == 0 {
		return true
	}
	for _, line := range accept {
		for _, m := range strings.Split(line, ",") {
			m, _, _ = strings.Cut(m, ";")
			switch strings.ToLower(strings.TrimSpace(m)) {
			case "*/*", "application/*", "application/fhir+json", "application/json":
				return true
			}
		}
	}
	return false
}

// names gives the known parameter names of a query string, sorted; an unknown one is "?", since it could be anything.
func names(raw string) string {
	seen := make(map[string]bool)
	for _, pair := range strings.SplitN(raw, "&", maxParams+1) {
		name, _, _ := strings.Cut(pair, "=")
		name = strings.ReplaceAll(name, "%3A", ":")
		switch {
		case name == "":
		case slices.Contains(observationParams, name), slices.Contains(patientParams, name):
			seen[name] = true
		default:
			seen["?"] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), " ")
}

// record makes the access durable in the journal. It does not give up because the client did: what was looked up was looked up.
func (s *Server) record(r *http.Request, actor audit.Actor, a *answer) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), journalTime)
	defer cancel()
	ev := audit.Event{
		ID: s.cfg.Journal.NextID(), Type: audit.RecordsRead, Time: s.cfg.Now().UnixMilli(), Actor: actor, Peer: r.RemoteAddr,
		Target: a.target, Outcome: audit.Success, Reason: a.reason, Count: a.count,
		Detail: map[string]string{"status": strconv.Itoa(a.status)},
	}
	switch {
	case a.denied || a.status == http.StatusUnauthorized || a.status == http.StatusForbidden:
		ev.Outcome = audit.Denied
	case a.status >= 400:
		ev.Outcome = audit.Failed
	}
	for key, value := range map[string]string{"interaction": a.interaction, "query": a.query, "patient": pseudonyms(a.patients)} {
		if value != "" {
			ev.Detail[key] = value
		}
	}
	head, err := audit.EncodeEvent(ev)
	if err != nil {
		return err
	}
	return s.cfg.Journal.Append(ctx, journal.Entry{ID: ev.ID, Kind: journal.KindEvent, Head: head})
}

// maxPseudonyms is how many patients an event names; one detail holds at most 1 KB.
const maxPseudonyms = 24

func pseudonyms(patients []string) string {
	patients = slices.Compact(slices.Sorted(slices.Values(patients)))
	if more := len(patients) - maxPseudonyms; more > 0 {
		return strings.Join(patients[:maxPseudonyms], " ") + " and " + strconv.Itoa(more) + " more"
	}
	return strings.Join(patients, " ")
}

// unproven hands a refusal of somebody who has proven nothing to those who aggregate such, if there are any.
func (s *Server) unproven(r *http.Request, reason string) bool {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if s.cfg.Refusals == nil || err != nil {
		return false
	}
	s.cfg.Refusals.Add(net.TCPAddrFromAddrPort(addr), "fhir: "+reason)
	return true
}

// write sends the answer. It is encoded whole before its header leaves, so that an error cannot cut it short.
func write(w http.ResponseWriter, r *http.Request, a *answer) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(a.body); err != nil {
		// Only a value that is no JSON number could do that, and decimal lets none through.
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/fhir+json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if a.status == http.StatusUnauthorized || a.status == http.StatusForbidden {
		h.Set("Connection", "close") // a refusal of a proven identity is an event: who has no business here pays for each with a handshake
	}
	if a.allow != "" {
		h.Set("Allow", a.allow)
	}
	w.WriteHeader(a.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body.Bytes())
	}
}
