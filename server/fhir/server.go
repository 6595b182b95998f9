// Package fhir lets the hospital's systems read observations as FHIR R4 (4.0.1): read and search of Observation and Patient, and
// the CapabilityStatement.
//
// A reader is a service account: a client certificate with a SPIFFE id of kind "access" that the registry knows. Each request that
// comes from a proven identity, also a refused one, is in the journal before its answer leaves; if the journal cannot be written the
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

// Access is what a Server needs of the registry: registry.ErrUnknown for a certificate that it did not enter.
type Access interface {
	AccessBySerial(ctx context.Context, serial string) (registry.Access, error)
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
	actor, refused := s.identify(r)
	if refused != nil && actor.ID == "" {
		if s.unproven(r, refused.reason) {
			write(w, r, refused)
			return
		}
		actor.ID = "peer"
	}
	a := refused
	if a == nil {
		a = s.handle(r)
	}
	if err := s.record(r, actor, a); err != nil {
		s.cfg.Log.Error("a read could not be journaled and was not answered", "error", err)
		a = refuse(http.StatusServiceUnavailable, "transient", "", "the access could not be recorded, so nothing is shown; try again later")
	}
	write(w, r, a)
}

// identify says who asks. A refusal with an empty actor means that nothing was proven.
func (s *Server) identify(r *http.Request) (actor audit.Actor, refused *answer) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return actor, refuse(http.StatusUnauthorized, "login", "no client certificate", "present the client certificate of wardlink access issue")
	}
	cert := r.TLS.VerifiedChains[0][0]
	id, err := spiffe.FromCertificate(cert)
	if err != nil || id.TrustDomain != s.cfg.TrustDomain {
		return actor, refuse(http.StatusUnauthorized, "login", "foreign client certificate", "the client certificate is not of this trust domain; present the one of wardlink access issue")
	}
	actor = audit.Actor{ID: id.String(), Serial: cert.SerialNumber.Text(16)}
	if id.Kind != spiffe.Access {
		return actor, refuse(http.StatusForbidden, "forbidden", "not a service account", "the client certificate is not a service account's; make one with wardlink access issue")
	}
	return actor, s.authorise(r.Context(), cert, id, actor.Serial)
}

// authorise holds a service account's certificate against the registry and the clock.
func (s *Server) authorise(ctx context.Context, cert *x509.Certificate, id spiffe.ID, serial string) *answer {
	access, err := s.cfg.Access.AccessBySerial(ctx, serial)
	if errors.Is(err, registry.ErrUnknown) {
		return refuse(http.StatusForbidden, "forbidden", "service account unknown", "the service account's certificate is not in the registry; make one with wardlink access issue")
	}
	if err != nil {
		s.cfg.Log.Error("registry cannot be asked", "error", err)
		return refuse(http.StatusServiceUnavailable, "transient", "registry unavailable", "the registry cannot be asked; try again later")
	}
	if access.Name != id.Name || access.SPKI != sha256.Sum256(cert.RawSubjectPublicKeyInfo) {
		return refuse(http.StatusForbidden, "forbidden", "service account's certificate differs from the registry's", "the certificate is not the one that was issued; make one with wardlink access issue")
	}
	if now := s.cfg.Now(); now.After(access.NotAfter) || now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
		return refuse(http.StatusForbidden, "expired", "service account's certificate has expired", "the service account's certificate has expired; make one with wardlink access issue")
	}
	return nil
}

// handle routes a request of an authorised reader.
func (s *Server) handle(r *http.Request) *answer {
	if len(r.RequestURI) > maxURL {
		return refuse(http.StatusRequestURITooLong, "too-long", "URL too long", "the URL is longer than "+strconv.Itoa(maxURL)+" bytes; name fewer values")
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/fhir/")
	parts := strings.Split(path, "/")
	if !ok || len(parts) > 2 || !slices.Contains([]string{"metadata", "Patient", "Observation"}, parts[0]) || (parts[0] == "metadata" && len(parts) > 1) {
		return refuse(http.StatusNotFound, "not-found", "no such resource type", "this server has /fhir/metadata, /fhir/Observation and /fhir/Patient")
	}
	a := s.route(r, parts)
	a.target = parts[0]
	a.query = names(r.URL.RawQuery)
	return a
}

func (s *Server) route(r *http.Request, parts []string) *answer {
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
		a = s.read(r, parts[0], parts[1])
		a.interaction = "read"
	case parts[0] == "Patient":
		a = s.searchPatients(r, base)
		a.interaction = "search"
	default:
		a = s.searchObservations(r, base)
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
	case a.status == http.StatusUnauthorized || a.status == http.StatusForbidden:
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
