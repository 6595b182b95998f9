package api

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/ca"
	"wardlink/server/registry"
)

// How long certificates live. A system that runs always renews itself at half of a day. An operator comes back after a holiday, and
// renews by using the tool; what limits a stolen file is that it can be revoked within seconds.
const (
	AccessLife   = 24 * time.Hour
	OperatorLife = 30 * 24 * time.Hour
)

// maxCSR bounds a certificate request in bytes: one of a P-256 key has some 300.
const maxCSR = 16 << 10

// csrOf reads a certificate request that is signed by its own key. Nothing but the key counts of it.
func csrOf(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, badRequest{fmt.Errorf("csr: %d bytes; at most %d", len(der), maxCSR)}
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, badRequest{fmt.Errorf("csr: %w", err)}
	}
	return csr, nil
}

// certify issues a certificate to an identity, and enters it before it is handed out: whoever is cut off meanwhile gets none. shown is the serial of the one by
// which the holder asks; "" when an operator does.
func (a *API) certify(r *http.Request, who who, kind spiffe.Kind, name, shown string, csr *x509.CertificateRequest) (client.AccessGrant, error) {
	life := AccessLife
	if kind == spiffe.Operator {
		life = OperatorLife
	}
	id := spiffe.ID{TrustDomain: a.TrustDomain, Kind: kind, Name: name}
	chain, err := a.CA.Issue(r.Context(), who.actor, who.peer, ca.Template{ID: id, Public: csr.PublicKey, Life: life})
	if err != nil {
		return client.AccessGrant{}, badRequest{err}
	}
	leaf := chain[0]
	if err := a.Registry.Certify(r.Context(), who.actor, who.peer, kind, name, shown, registry.IdentityCertificate{
		Serial: ca.Serial(leaf), SPKI: sha256.Sum256(leaf.RawSubjectPublicKeyInfo), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
	}); err != nil {
		return client.AccessGrant{}, err
	}
	var text []byte
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return client.AccessGrant{
		Certificate: string(text), NotAfter: leaf.NotAfter, ID: id.String(), Hospital: a.HospitalURL,
		Root: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root.Raw})),
	}, nil
}

// self tells an identity what it is. It is no use of it, and no event: who watches over a certificate asks each minute.
func (a *API) self(w http.ResponseWriter, _ *http.Request, who who) error {
	i := who.identity
	out := client.Own{ID: who.actor.ID, NotAfter: i.Certificate.NotAfter, Ends: i.Certificate.Ends, Renew: i.Certificate.Rotated()}
	if i.Kind == spiffe.Operator {
		out.Role = string(i.Role)
	} else {
		out.Scope = i.Scope.String()
	}
	return writeJSON(w, out)
}

// renew certifies another key of who asks, by the certificate that it shows. Both certificates count until their ends.
func (a *API) renew(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.RenewRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	csr, err := csrOf(in.CSR)
	if err != nil {
		return err
	}
	i := who.identity
	if sha256.Sum256(csr.RawSubjectPublicKeyInfo) == sha256.Sum256(r.TLS.VerifiedChains[0][0].RawSubjectPublicKeyInfo) {
		return badRequest{errors.New("csr: it is of the key that is in use; a renewal is for a new one")}
	}
	grant, err := a.certify(r, who, i.Kind, i.Name, who.actor.Serial, csr)
	if err != nil {
		return err
	}
	grant.Scope = i.Scope.String()
	return writeJSON(w, grant)
}

// Paths at the hospital's port by which service accounts look after their certificates.
const (
	SelfPath  = "/access/self"
	RenewPath = "/access/renew"
)

// Hospital is the handler of the hospital's port: FHIR, and beside it what service accounts need to renew themselves.
func (a *API) Hospital(fhir http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", fhir)
	mux.Handle("GET "+SelfPath, a.proven(spiffe.Access, "hospital's port", nil, a.self))
	mux.Handle("POST "+RenewPath, a.proven(spiffe.Access, "hospital's port", nil, a.renew))
	return a.guarded(mux)
}

// authorise asks the registry about a proven certificate, at each request.
func (a *API) authorise(ctx context.Context, id spiffe.ID, leaf *x509.Certificate) (registry.Identity, error) {
	return a.Registry.Authorise(ctx, id.Kind, id.Name, registry.IdentityCertificate{Serial: ca.Serial(leaf), SPKI: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)})
}

// mayNot says why a role is not enough; nil when it is. roles nil is of routes that are everybody's own.
func mayNot(i registry.Identity, pattern string, roles []registry.Role) error {
	if roles == nil || slices.Contains(roles, i.Role) {
		return nil
	}
	return fmt.Errorf("%s has the role %s, which %s is not granted to; an admin may change it: wardlink operator role %s ROLE", i.Name, i.Role, pattern, i.Name)
}
