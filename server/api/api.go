// Package api is the operators' API: JSON over HTTP, mutual TLS, one route for each act of the operator's tool. Each act is journaled
// before it is answered. It also answers health probes, which need no certificate and tell no more than which
// part of the server is ill.
package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/wipe"
	"wardlink/internal/spiffe"
	"wardlink/server/alerts"
	"wardlink/server/api/client"
	"wardlink/server/ca"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/registry"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// Config is what the API needs. Every field is required.
type Config struct {
	TrustDomain string
	Servers     []string // default addresses of a kit: host:port of the gateways' listener
	HospitalURL string   // https://host:port of the hospital's listener, as its systems reach it
	Root        *x509.Certificate
	RecordsKey  seal.PublicKey
	ConfigKey   ed25519.PublicKey
	SignOrder   func(wipe.Order) ([]byte, error) // with the config key
	LogDir      string
	LogVerifier string
	Registry    *registry.Registry
	Journal     journal.Appender
	Refusals    Refusals
	CA          CA
	Clock       *Clock
	Records     Records
	Accounts    Accounts
	PatientID   func(system, value string) string                       // a patient's pseudonym
	Seen        func(ctx context.Context) (map[string]time.Time, error) // when each gateway last reported
	Others      func(ctx context.Context) ([]client.Identity, error)    // identities of the server itself, its nodes and its keys
	Agents      func(ctx context.Context) (map[string]string, error)    // the release of each gateway's agent, as far as it is known
	Connections Connections
	Salvage     *ingest.Salvage
	Held        func(ctx context.Context, gateway string) ([]telemetry.Held, error) // numbers of batches that are journaled
	Alerts      *alerts.Alerts
	Configs     *Configs
	Status      func(ctx context.Context) (client.Status, error)
	Trace       func(ctx context.Context, gateway, source string) ([]client.Trace, error) // registry.ErrUnknown when there is no such thing
	Ready       func(ctx context.Context) error                                           // nil when every part works; else a *NotReady
	Metrics     http.Handler
	Log         *slog.Logger
}

// CA issues certificates of service accounts.
type CA interface {
	// Issue returns once the certificate is journaled; its leaf comes first. who and peer are the operator's.
	Issue(ctx context.Context, who audit.Actor, peer string, t ca.Template) ([]*x509.Certificate, error)
}

// Refusals takes refusals of peers that have proven nothing, to be journaled in aggregate.
type Refusals interface {
	Add(peer net.Addr, reason string)
}

// API is the handler.
type API struct {
	Config
	mux  *http.ServeMux
	told atomic.Pointer[string] // what the last probe was told
}

// maxBody bounds a request: a manifest of 200,000 rows is the largest.
const maxBody = 33 << 20

// New makes the handler. It panics for a route without roles: that is a fault of the program, and nobody could use the route.
func New(cfg Config) *API {
	a := &API{Config: cfg, mux: http.NewServeMux()}
	a.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	a.mux.HandleFunc("GET /readyz", a.readyz)
	routes := []map[string]handler{{
		"GET /metrics": func(w http.ResponseWriter, r *http.Request, _ who) error {
			a.Metrics.ServeHTTP(w, r)
			return nil
		},
		"GET /v1/status":                  a.status,
		"GET /v1/clock":                   a.showClock,
		"POST /v1/clock/confirm":          a.confirmClock,
		"POST /v1/gateways/{id}/clock":    a.clockToken,
		"GET /v1/kit":                     a.kit,
		"GET /v1/gateways":                a.listGateways,
		"GET /v1/gateways/{id}":           a.showGateway,
		"POST /v1/gateways/import":        a.importGateways,
		"POST /v1/gateways/approve":       a.approveGateway,
		"POST /v1/gateways/approve-batch": a.approveBatch,
		"GET /v1/trace":                   a.trace,
		"GET /v1/accounts":                a.listAccounts,
		"GET /v1/accounts/{id}":           a.showAccount,
		"GET /v1/records/dead":            a.deadBatches,
		"POST /v1/records/reopen":         a.reopenBatches,
		"GET /v1/records/reopen/{n}":      a.reopening,
		"GET /v1/audit":                   a.listAudit,
		"GET /v1/audit/proof":             a.proveAudit,
		"GET /v1/audit/log-verifier":      a.logVerifier,
		"POST /v1/gateways/{id}/revoke":   a.revokeGateway,
		"GET /v1/records/retention":       a.retention,
		"GET /v1/self":                    a.self,
		"POST /v1/self/renew":             a.renew,
	}, a.alertRoutes(), a.lifeRoutes(), a.configRoutes(), a.salvageRoutes(), a.bootRoutes(), a.identityRoutes(), a.grantRoutes()}
	table := permissions()
	for _, some := range routes {
		for pattern, h := range some {
			roles := table[pattern]
			if len(roles) == 0 {
				panic("api: route " + pattern + " is not in the table of roles")
			}
			a.mux.Handle(pattern, a.proven(spiffe.Operator, "operators' API", roles, h))
		}
	}
	return a
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.guarded(a.mux).ServeHTTP(w, r) }

// guarded keeps a request's panic and its length to itself.
func (a *API) guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				a.Log.Error("API request failed", "route", r.Pattern, "stack", string(debug.Stack()))
				writeProblem(w, http.StatusInternalServerError, "internal error", "")
			}
		}()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h.ServeHTTP(w, r)
	})
}

// who is a proven identity and where the request came from.
type who struct {
	actor    audit.Actor
	peer     string
	identity registry.Identity
}

type handler func(w http.ResponseWriter, r *http.Request, who who) error

// proven lets only identities of one kind through that the registry knows and lets in at this moment, and of operators those of some roles.
// Everybody else is refused, and the refusal journaled. While the registry cannot be asked nobody is let in. door names the port in events.
func (a *API) proven(kind spiffe.Kind, door string, roles []registry.Role, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, leaf, err := a.identify(r, kind)
		if err != nil {
			a.refuse(w, r, door, id, leaf, map[spiffe.Kind]string{spiffe.Operator: "not an operator", spiffe.Access: "not a service account"}[kind], err)
			return
		}
		i, ok := a.admit(w, r, door, roles, id, leaf)
		if !ok {
			return
		}
		// A body may take a minute to come, and who sends it may be cut off meanwhile. So it is here before it is asked a second time.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			a.answerError(w, r, unread(err))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if len(body) > 0 {
			if i, ok = a.admit(w, r, door, roles, id, leaf); !ok {
				return
			}
		}
		if i.Certificate.Rotated() {
			w.Header().Set(client.RenewHeader, "now")
		}
		err = h(w, r, who{audit.Actor{ID: id.String(), Serial: ca.Serial(leaf)}, r.RemoteAddr, i})
		if err == nil && roles != nil && !own(r.Pattern) {
			a.Registry.Use(i, r.Pattern)
		}
		a.answerError(w, r, err)
	})
}

// admit asks the registry about a proven identity, and the table of roles. False when it has answered.
func (a *API) admit(w http.ResponseWriter, r *http.Request, door string, roles []registry.Role, id spiffe.ID, leaf *x509.Certificate) (registry.Identity, bool) {
	i, err := a.authorise(r.Context(), id, leaf)
	var inactive *registry.IdentityError
	switch {
	case errors.Is(err, registry.ErrUnknown):
		a.refuse(w, r, door, id, leaf, "certificate not in the registry", err)
	case errors.As(err, &inactive) && inactive.State == registry.Active:
		a.refuse(w, r, door, id, leaf, "certificate has ended", err)
	case errors.As(err, &inactive):
		a.refuse(w, r, door, id, leaf, "identity is "+string(inactive.State), err)
	case err != nil:
		a.Log.Error("registry cannot be asked", "error", err)
		writeProblem(w, http.StatusServiceUnavailable, "the server cannot do this now", "the registry cannot be asked who you are; try again later")
	default:
		if err := mayNot(i, r.Pattern, roles); err != nil {
			a.refuse(w, r, door, id, leaf, "role "+string(i.Role)+" may not", err)
			return i, false
		}
		return i, true
	}
	return i, false
}

// unread is what answers a body that did not come whole.
func unread(err error) error {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return err
	}
	return badRequest{fmt.Errorf("the body did not come whole: %w", err)}
}

// own says whether a route is one by which an identity looks after itself, which is no use of it.
func own(pattern string) bool { return pattern == "GET /v1/self" || pattern == "POST /v1/self/renew" }

// answerError answers what went wrong, if anything did.
func (a *API) answerError(w http.ResponseWriter, r *http.Request, err error) {
	var bad badRequest
	var large *http.MaxBytesError
	var inactive *registry.IdentityError
	switch {
	case err == nil:
	case errors.As(err, &bad):
		writeProblem(w, http.StatusBadRequest, "bad request", bad.Error())
	case errors.Is(err, alerts.ErrBad):
		writeProblem(w, http.StatusBadRequest, "bad request", err.Error())
	case errors.As(err, &large):
		writeProblem(w, http.StatusRequestEntityTooLarge, "request is too large", fmt.Sprintf("at most %d bytes", large.Limit))
	case errors.Is(err, registry.ErrUnknown), errors.Is(err, alerts.ErrUnknown):
		writeProblem(w, http.StatusNotFound, "not found", err.Error())
	case errors.Is(err, registry.ErrConflict), errors.Is(err, ErrDoubt), errors.As(err, &inactive):
		writeProblem(w, http.StatusConflict, "conflict", err.Error())
	default:
		a.Log.Error("API request failed", "route", r.Pattern, "error", err)
		writeProblem(w, http.StatusServiceUnavailable, "the server cannot do this now", err.Error())
	}
}

// identify reads an identity of one kind from the verified chain. A chain that the listener did not verify does not exist here.
func (a *API) identify(r *http.Request, kind spiffe.Kind) (spiffe.ID, *x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return spiffe.ID{}, nil, errors.New("no client certificate; use the operator's file that 'wardlink-server init' made, or the files of 'wardlink access issue'")
	}
	leaf := r.TLS.VerifiedChains[0][0]
	id, err := spiffe.FromCertificate(leaf)
	if err != nil {
		return spiffe.ID{}, leaf, err
	}
	if id.TrustDomain != a.TrustDomain || id.Kind != kind {
		return id, leaf, fmt.Errorf("%s is no %s of %s", id, kind, a.TrustDomain)
	}
	if time.Now().After(leaf.NotAfter) {
		return id, leaf, errors.New("the certificate has expired")
	}
	return id, leaf, nil
}

// refuse answers somebody who is not let in. The connection ends with it: a refusal of a proven identity is an event, and whoever carries
// off a gateway or a service account's key pays for each with a handshake.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, door string, id spiffe.ID, leaf *x509.Certificate, why string, reason error) {
	w.Header().Set("Connection", "close")
	if id.Kind == "" { // nothing is proven: an event for each would let anyone fill the log, so they are counted
		a.unproven(r)
		writeProblem(w, http.StatusUnauthorized, "not authorised", reason.Error())
		return
	}
	err := journal.AppendEvent(r.Context(), a.Journal, audit.Event{
		Type: audit.Refused, Actor: audit.Actor{ID: id.String(), Serial: ca.Serial(leaf)}, Peer: r.RemoteAddr,
		Target: door, Outcome: audit.Denied, Reason: why, Detail: map[string]string{"route": r.Pattern},
	})
	if err != nil {
		a.Log.Error("refusal cannot be journaled", "error", err)
	}
	writeProblem(w, http.StatusForbidden, "not authorised", reason.Error())
}

func (a *API) unproven(r *http.Request) {
	reason := "api: no client certificate"
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		reason = "api: a certificate without an identity"
	}
	var peer net.Addr
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		peer = net.TCPAddrFromAddrPort(at)
	}
	a.Refusals.Add(peer, reason)
}

// NotReady names the part that does not do its work. A probe is told the part alone; why is for operators and the log.
type NotReady struct {
	Part string // one of a few constants
	Err  error
}

// Error names the part and why.
func (n *NotReady) Error() string { return n.Part + ": " + n.Err.Error() }

// Unwrap gives why.
func (n *NotReady) Unwrap() error { return n.Err }

func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	text := "ready"
	err := a.Ready(r.Context())
	if err != nil {
		text = "not ready"
		if part := (*NotReady)(nil); errors.As(err, &part) {
			text += ": " + part.Part
		}
	}
	// Only what is new is told: anybody may probe, and none shall fill the log of the process.
	if former := a.told.Swap(&text); err != nil && (former == nil || *former != text) {
		a.Log.Warn("not ready", "error", err)
	}
	if err != nil {
		http.Error(w, text, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func (a *API) status(w http.ResponseWriter, r *http.Request, _ who) error {
	s, err := a.Status(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, s)
}

// kit gives the kit. Its fingerprint is in the log, so that a gateway's own fingerprint can be held against it.
func (a *API) kit(w http.ResponseWriter, r *http.Request, who who) error {
	servers := r.URL.Query()["server"]
	if len(servers) == 0 {
		servers = a.Servers
	}
	data, err := enroll.Kit{
		TrustDomain: a.TrustDomain, Servers: servers, Roots: []*x509.Certificate{a.Root},
		RecordsKey: a.RecordsKey, ConfigKey: a.ConfigKey, LogKey: a.LogVerifier,
	}.Marshal()
	if err != nil {
		return badRequest{err}
	}
	k, err := enroll.ParseKit(data)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{
		Type: audit.KitIssued, Outcome: audit.Success, Detail: map[string]string{"sha256": fmt.Sprintf("%x", k.Fingerprint)},
	}); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(data)
	return err
}

func (a *API) logVerifier(w http.ResponseWriter, _ *http.Request, _ who) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := io.WriteString(w, a.LogVerifier+"\n")
	return err
}

// event journals an act before it is answered.
func (a *API) event(r *http.Request, who who, ev audit.Event) error {
	ev.Actor, ev.Peer = who.actor, who.peer
	if err := journal.AppendEvent(r.Context(), a.Journal, ev); err != nil {
		return fmt.Errorf("nothing is answered that cannot be journaled: %w", err)
	}
	return nil
}

// badRequest is a mistake of the asker.
type badRequest struct{ error }

func (b badRequest) Unwrap() error { return b.error }

func readJSON(r *http.Request, into any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return badRequest{fmt.Errorf("body: %w", err)}
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

func writeProblem(w http.ResponseWriter, status int, title, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(client.Problem{Type: "about:blank", Title: title, Status: status, Detail: detail})
}
