package server

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/server/alerts/watch"
	"wardlink/server/ca"
	"wardlink/server/keys"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

// Term is one certificate or key of a server: how long it lives, and who renews it.
type Term struct {
	What      string     `json:"what"`             // root, issuing CA, operator, ...
	Name      string     `json:"name"`             //
	Serial    string     `json:"serial,omitempty"` // lower-case hex
	NotBefore *time.Time `json:"not_before,omitempty"`
	NotAfter  *time.Time `json:"not_after,omitempty"` // absent: it has no end
	Used      float64    `json:"used"`                // share of its life
	State     string     `json:"state"`               // "ok"; "due", "late", "ended": an alert; "" where nothing is to be done
	Renewal   string     `json:"renewal"`

	warn, late float64 // 0: its end is nobody's business
}

// When what somebody must renew is an alert, and a critical one.
const (
	dueAt  = 0.5
	lateAt = 0.75
)

// gone is how long an operator or an account whose last certificate has ended is still told of.
const gone = 14 * 24 * time.Hour

func certificateTerm(what, name string, c *x509.Certificate, renewal string, warn, late float64) Term {
	from, to := c.NotBefore.UTC(), c.NotAfter.UTC()
	return Term{What: what, Name: name, Serial: ca.Serial(c), NotBefore: &from, NotAfter: &to, Renewal: renewal, warn: warn, late: late}
}

// judged fills in what the clock says.
func (t Term) judged(now time.Time) Term {
	if t.NotAfter == nil {
		return t
	}
	w := t.watched()
	t.Used = w.Used(now)
	if t.warn == 0 {
		return t
	}
	due, late := w.Due(now)
	switch {
	case !now.Before(*t.NotAfter):
		t.State = "ended"
	case late:
		t.State = "late"
	case due:
		t.State = "due"
	default:
		t.State = "ok"
	}
	return t
}

// watched is it for the alerts.
func (t Term) watched() watch.Term {
	return watch.Term{Subject: t.What + " " + t.Name, NotBefore: *t.NotBefore, NotAfter: *t.NotAfter, Warn: t.warn, Late: t.late, Renewal: t.Renewal}
}

// keyTerms are those of the server's keys and of what is in its directory.
func keyTerms(dir string, cfg Config, k *keys.Keys) ([]Term, error) {
	next, err := keys.Prepared(dir)
	if err != nil {
		return nil, err
	}
	former, err := keys.FormerIssuing(dir)
	if err != nil {
		return nil, err
	}
	rotate := "wardlink-server rotate issuing --dir " + dir
	out := []Term{certificateTerm("root", cfg.TrustDomain, k.Root, "no command yet: gateways trust it by their kits; a release must bring them the next one before it ends", dueAt, lateAt)}
	if k.Issuing != nil { // else the processes that hold it have not said yet
		out = append(out, certificateTerm("issuing CA", cfg.TrustDomain, k.Issuing, rotate, dueAt, lateAt))
	}
	if next != nil && !next.Equal(k.Issuing) {
		out = append(out, certificateTerm("next issuing CA", cfg.TrustDomain, next, "prepared; the running server takes it up within a minute, else its next start does", 0, 0))
	}
	if former != nil && !former.Equal(k.Issuing) {
		out = append(out, certificateTerm("former issuing CA", cfg.TrustDomain, former, "its key is destroyed; what it issued lives on until it ends", 0, 0))
	}
	if k.Attestation != nil {
		out = append(out, certificateTerm("attestation CA", cfg.TrustDomain, k.Attestation, "itself, when the server is started past half of its life: end every process with the service ca on this directory, then start them", dueAt, lateAt))
	}
	verifier, err := note.NewVerifier(k.LogVerifier)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	recordsKey := k.Records.Public().ID()
	return append(out,
		Term{What: "log key", Name: verifier.Name(), Renewal: "a restore begins the next log with a key of its own"},
		Term{What: "records key", Name: hex.EncodeToString(recordsKey[:]), Renewal: "never: it is in the recovery file"},
		Term{What: "config key", Name: shortHash(k.Config.Public().(ed25519.PublicKey)), Renewal: "never: it is in the recovery file, and every kit trusts it"},
	), nil
}

func shortHash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// holderTerms are those of people and of the hospital's systems, each with the newest of its certificates.
func holderTerms(ctx context.Context, dir string, r *registry.Registry, now time.Time) (out []Term, err error) {
	term := func(what string, h registry.Holder, renewal string, warn, late float64) {
		out = append(out, Term{What: what, Name: h.Name, Serial: h.Serial, NotBefore: &h.NotBefore, NotAfter: &h.NotAfter, Renewal: renewal, warn: warn, late: late})
	}
	operators, err := r.Operators(ctx, now.Add(-gone))
	if err != nil {
		return nil, err
	}
	for _, h := range operators {
		term("operator", h, "the operator's tool, when it is used; once it has ended: wardlink-server operator --dir "+dir+" --name "+h.Name, lateAt, .9)
	}
	accounts, err := r.Accounts(ctx, now.Add(-gone))
	if err != nil {
		return nil, err
	}
	for _, h := range accounts { // they live for a day, and renew themselves
		term("service account", h, "itself, by 'wardlink access keep'; else wardlink access issue "+h.Name+" --renew", .9, 1)
	}
	return out, nil
}

// Terms lists what is in a server's directory, whether or not the server runs. What lives in its memory alone is listed as a rule.
func Terms(ctx context.Context, dir string) (out []Term, err error) {
	cfg, err := LoadConfig(dir)
	if err != nil {
		return nil, err
	}
	k, err := keys.Open(dir)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if out, err = keyTerms(dir, cfg, k); err != nil {
		return nil, err
	}
	out = append(out, Term{What: "server", Name: "ingest, fhir, api", Renewal: "themselves, at half of their 7 days, in memory"})
	pair, err := cfg.hospitalCertificate()
	if err != nil {
		return nil, err
	}
	if pair != nil {
		out = append(out, hospitalTerm(cfg, pair.Leaf))
	}
	db, err := openBeside(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	outbox, err := sqldb.NewOutbox(db, nil, nil)
	if err != nil {
		return nil, err
	}
	r, err := registry.New(registry.Config{DB: db, Outbox: outbox})
	if err != nil {
		return nil, err
	}
	held, err := holderTerms(ctx, dir, r, now)
	if err != nil {
		return nil, err
	}
	out = append(out, held...)
	out = append(out, Term{What: "revocation list", Name: listURL(cfg), Renewal: "itself, when it is asked for; good for 24 hours, for others: nothing of wardlink's reads it"})
	out = append(out, Term{What: "gateways", Name: "all", Renewal: "themselves, at half of their 24 hours, by their TPMs (alert certificate-late)"})
	for i := range out {
		out[i] = out[i].judged(now)
	}
	return out, nil
}

func hospitalTerm(cfg Config, leaf *x509.Certificate) Term {
	return certificateTerm("hospital certificate", cfg.HospitalTLS.Cert, leaf, "put the new files there; the server reads them within a minute", dueAt, lateAt)
}

// terms are the server's own certificates and keys, as the running server knows them.
func (s *Server) terms() ([]Term, error) {
	k := *s.keys
	k.Issuing, k.Attestation = s.authority.Certificates()
	terms, err := keyTerms(s.dir, s.cfg, &k)
	if err != nil {
		return nil, err
	}
	s.services.Range(func(name, value any) bool {
		cert := value.(*serviceCert)
		_, _ = cert.get() // it renews itself when it is asked for; nobody may have connected for days
		if leaf := cert.leaf(); leaf != nil {
			terms = append(terms, certificateTerm("server", name.(string), leaf, "itself; the server's log says why it does not", .75, .9))
		}
		return true
	})
	if own := s.hospital.Load(); own != nil {
		terms = append(terms, hospitalTerm(s.cfg, own.Leaf))
	}
	return terms, nil
}

// watchedTerms are those whose end somebody must see coming.
func (s *Server) watchedTerms(ctx context.Context) ([]watch.Term, error) {
	terms, err := s.terms()
	if err != nil {
		return nil, err
	}
	held, err := holderTerms(ctx, s.dir, s.registry, time.Now())
	if err != nil {
		return nil, err
	}
	var out []watch.Term
	for _, t := range append(terms, held...) {
		if t.warn > 0 {
			out = append(out, t.watched())
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Subject < out[j].Subject })
	return out, nil
}
