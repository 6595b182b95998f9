package ca

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/verify"
	"wardlink/internal/spiffe"
)

// Bounds of what this handler does at a time and takes in.
const (
	maxBody        = 64 << 10 // of an ACME request; an attestation has 3 to 6 KB
	maxLong        = 64       // requests with event logs, whose bodies have up to verify.MaxSecretRequest
	maxLongOfOne   = 16       // of one source: a hospital behind one address is served in turns
	maxConcurrent  = 64
	maxReading     = 512 // requests whose bodies are on their way
	bodyTimeout    = 15 * time.Second
	requestTimeout = 30 * time.Second // from the whole body on
	problemPrefix  = "urn:wardlink:"
	secretPath     = "/attestation/secret"
)

// routes serves the two protocols, the list of revoked certificates, and nothing else.
func (c *CA) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /attestation/attest", c.attest)
	mux.HandleFunc("POST "+secretPath, c.secret)
	mux.HandleFunc("/acme/", c.acme)
	mux.HandleFunc("/acme", c.acme) // else mux would send elsewhere
	mux.HandleFunc("GET "+ListPath, c.serveList)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusNotFound, enroll.Problem{Type: problemPrefix + "not-found", Detail: "expected /attestation/attest, /attestation/secret, /acme/attest/directory or GET /crl"})
	})
	reading, slots, long := newPlaces(maxReading, maxReading), newPlaces(maxConcurrent, maxConcurrent), newPlaces(maxLong, maxLongOfOne)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer c.recover(w, r)
		from := source(r.RemoteAddr)
		if !c.enter(w, r, reading) {
			return
		}
		body, ok := c.body(w, r, long)
		reading.leave(from)
		if !ok || !c.enter(w, r, slots) {
			return
		}
		defer slots.leave(from)
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r = r.WithContext(context.WithValue(ctx, peerKey{}, r.RemoteAddr))
		r.Body = io.NopCloser(bytes.NewReader(body))
		mux.ServeHTTP(w, r)
	})
}

// enter takes a place; false when there is none, and that is answered.
func (c *CA) enter(w http.ResponseWriter, r *http.Request, p *places) bool {
	if p.take(source(r.RemoteAddr)) {
		return true
	}
	w.Header().Set("Retry-After", "5")
	c.refuse(w, r, http.StatusServiceUnavailable, "busy", "too many requests at a time")
	return false
}

// body reads a body of the length that its path may have. Long ones, which only answered challenges are, have fewer places: what is on its way
// takes memory, 24 MB of it at most. One source has a few of these places: whoever sends nothing for its time holds up itself.
func (c *CA) body(w http.ResponseWriter, r *http.Request, long *places) ([]byte, bool) {
	if r.URL.Path != secretPath || r.ContentLength <= maxBody {
		return c.wholeBody(w, r, maxBody)
	}
	if !c.enter(w, r, long) {
		return nil, false
	}
	defer long.leave(source(r.RemoteAddr))
	return c.wholeBody(w, r, verify.MaxSecretRequest)
}

// places are what requests may have at a time. One source may have most of them and never the last ones: what one more may have shrinks with what is free
// (Choudhury and Hahne, Dynamic queue length thresholds, 1998). So a flood from one address keeps out itself, and a hospital behind one address is served.
type places struct {
	each int // for one source at most
	mu   sync.Mutex
	free int
	of   map[netip.Prefix]int // by source, of those that have one
}

// shareOfFree is how many times what is free a source may have.
const shareOfFree = 3

func newPlaces(n, each int) *places {
	return &places{each: each, free: n, of: make(map[netip.Prefix]int)}
}

// take takes a place for a source; false when there is none for it.
func (p *places) take(from netip.Prefix) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if has := p.of[from]; p.free == 0 || has >= p.each || has > 0 && has >= shareOfFree*p.free {
		return false
	}
	p.free--
	p.of[from]++
	return true
}

func (p *places) leave(from netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	if p.of[from]--; p.of[from] == 0 {
		delete(p.of, from)
	}
}

// wholeBody reads the body before anything is begun for it: a slow sender must neither hold a place that others need nor use up the time
// that the CA has, or its request would fail here and count against the CA. False when it has answered already.
func (c *CA) wholeBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	deadlines := http.NewResponseController(w)
	_ = deadlines.SetReadDeadline(time.Now().Add(c.bodyTime))
	body, ok := readBody(w, r, limit)
	// net/http reads on, to see the peer hang up, and would take the deadline for that.
	_ = deadlines.SetReadDeadline(time.Now().Add(2 * requestTimeout))
	return body, ok
}

// acme serves ACME, as far as the tables could be opened.
func (c *CA) acme(w http.ResponseWriter, r *http.Request) {
	if e := c.authority.Load(); e != nil {
		e.ServeHTTP(w, r)
		return
	}
	c.unavailable(w, "the CA's tables", errNoStore)
}

// recover turns a panic into an answer: one request's fault must not close the connection of another.
func (c *CA) recover(w http.ResponseWriter, r *http.Request) {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			panic(p)
		}
		c.cfg.Log.Error("panic while answering", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
		reply(w, http.StatusInternalServerError, enroll.Problem{Type: problemPrefix + "internal", Detail: "this is a fault of the server"})
	}
}

type peerKey struct{}

// peerOf is the requester's ip:port, which smallstep's database hooks get only through the context.
func peerOf(ctx context.Context) string {
	peer, _ := ctx.Value(peerKey{}).(string)
	return peer
}

// readBody reads a bounded body; false when it has answered already.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		return body, true
	}
	status, detail := http.StatusBadRequest, "the body could not be read"
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		status, detail = http.StatusRequestEntityTooLarge, "the body is too long"
	}
	reply(w, status, enroll.Problem{Type: problemPrefix + "malformed", Detail: detail})
	return nil, false
}

// refuse answers a stranger and counts the refusal. Details of the verdict help an honest operator and tell an attacker nothing
// that the source does not.
func (c *CA) refuse(w http.ResponseWriter, r *http.Request, status int, kind, detail string) {
	c.cfg.Refused(r.RemoteAddr, "enrolment: "+kind)
	c.cfg.Log.Info("enrolment refused", "peer", r.RemoteAddr, "kind", kind, "detail", clean(detail))
	reply(w, status, enroll.Problem{Type: problemPrefix + kind, Detail: clean(detail)})
}

// revokedReason is why a revoked gateway is refused, in the log. Why it was revoked stands in the event of the revocation.
const revokedReason = "gateway is revoked"

// gateway is the actor of an act whose TPM has proven to be that gateway's; "" is a peer of which no more is known.
func (c *CA) gateway(name string) audit.Actor {
	if name == "" {
		return audit.Actor{ID: "peer"}
	}
	return audit.Actor{ID: spiffe.ID{TrustDomain: c.cfg.TrustDomain, Kind: spiffe.Gateway, Name: name}.String()}
}

// denied journals the refusal of a proven TPM. The refusal stands whether or not that works. The peer cannot keep it out of the log by
// hanging up: its context does not count.
func (c *CA) denied(ctx context.Context, e audit.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	e.Type, e.Time, e.Peer, e.Outcome = audit.Refused, c.cfg.Now().UnixMilli(), peerOf(ctx), audit.Denied
	if e.Actor.ID == "" {
		e.Actor = c.gateway("")
	}
	if err := c.cfg.Events(ctx, e); err != nil {
		c.cfg.Log.Error("a refusal could not be journaled", "target", e.Target, "error", err)
	}
}

// unavailable answers for a fault of our own. Its cause is for the log, not for the peer.
func (c *CA) unavailable(w http.ResponseWriter, what string, err error) {
	c.cfg.Log.Error("enrolment failed", "at", what, "error", err)
	w.Header().Set("Retry-After", "10")
	reply(w, http.StatusServiceUnavailable, enroll.Problem{Type: problemPrefix + "unavailable", Detail: "the server cannot do this now: " + what})
}

func reply(w http.ResponseWriter, status int, p enroll.Problem) {
	p.Status = status
	body, err := json.Marshal(p)
	if err != nil { // a Problem holds strings and a number
		panic(err)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func answer(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil { // only our own byte slices
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

// clean keeps a detail short and on one line: parts of it were the peer's words.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 300)]
}
