package acmedb

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"

	"github.com/smallstep/certificates/acme"

	"wardlink/server/sqldb"
)

// Request is the store as one HTTP request sees it; it is not for use by two at a time. smallstep makes an order in three steps and accepts an
// attestation in two; between the steps only a Request knows of them, so what the database holds is whole.
type Request struct {
	s *Store

	making      *acme.Authorization // for the order that follows
	read        *order              // as this request has read it last; smallstep reads order, authorization and challenge, which are one row
	answering   *acme.Challenge     // that was read
	fingerprint string              // of the key that was found attested
	claim       string              // the order of this id is claimed by this Request
	claimed     string
}

var _ acme.DB = (*Request)(nil)

// Request begins a request.
func (s *Store) Request() *Request { return &Request{s: s} }

// CreateNonce implements acme.DB.
func (r *Request) CreateNonce(context.Context) (acme.Nonce, error) { return r.s.newNonce(), nil }

// DeleteNonce implements acme.DB: a nonce is used up, once among all processes.
func (r *Request) DeleteNonce(ctx context.Context, nonce acme.Nonce) error {
	return r.s.useNonce(ctx, nonce)
}

// CreateChallenge implements acme.DB. Nothing is written before CreateOrder.
func (r *Request) CreateChallenge(_ context.Context, ch *acme.Challenge) error {
	if ch.Type != acme.DEVICEATTEST01 {
		return fmt.Errorf("challenge of type %s; expected %s", ch.Type, acme.DEVICEATTEST01)
	}
	ch.ID = id()
	return nil
}

// CreateAuthorization implements acme.DB. Nothing is written before CreateOrder.
func (r *Request) CreateAuthorization(_ context.Context, az *acme.Authorization) error {
	if len(az.Challenges) != 1 {
		return acme.NewDetailedError(acme.ErrorRejectedIdentifierType, "%d challenges for an identifier of type %q; expected one", len(az.Challenges), cut(string(az.Identifier.Type)))
	}
	az.ID = az.Challenges[0].ID
	r.making = az
	return nil
}

// maxName bounds an identifier; the caller is stricter.
const maxName = 255

// CreateOrder implements acme.DB: order, authorization and challenge are there, or none of them.
func (r *Request) CreateOrder(ctx context.Context, o *acme.Order) error {
	az := r.making
	r.making = nil
	if az == nil || len(o.AuthorizationIDs) != 1 || len(o.Identifiers) != 1 || o.AuthorizationIDs[0] != az.ID {
		return acme.NewDetailedError(acme.ErrorRejectedIdentifierType, "expected an order with one identifier")
	}
	name := o.Identifiers[0]
	if name.Type != acme.PermanentIdentifier || name.Value == "" || len(name.Value) > maxName || name != az.Identifier {
		return acme.NewDetailedError(acme.ErrorRejectedIdentifierType, "expected a permanent-identifier of at most %d bytes", maxName)
	}
	if int(r.s.rows.orders.Load()) >= r.s.limits.Orders {
		return ErrFull
	}
	ends := r.s.now().Add(LifePending)
	if err := r.s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		// An account that is pruned meanwhile has no order: pruning asks for orders under the same lock.
		ok, err := changed(tx.Exec("UPDATE ca_accounts SET ends = $1 WHERE id = $2 AND status = $3", ends.UnixMilli(), o.AccountID, string(acme.StatusValid)))
		if err != nil {
			return err
		}
		if !ok {
			return acme.NewDetailedError(acme.ErrorAccountDoesNotExistType, "the account has expired or is not active")
		}
		_, err = tx.Exec(`INSERT INTO ca_orders (id, account, provisioner, gateway, token, not_before, not_after, ends, state, validated, fingerprint, claim)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, '', '')`,
			az.ID, o.AccountID, o.ProvisionerID, name.Value, az.Token, o.NotBefore.UnixMilli(), o.NotAfter.UnixMilli(), ends.UnixMilli(), int(pending))
		return err
	}); err != nil {
		return fmt.Errorf("order: %w", err)
	}
	r.s.rows.orders.Add(1)
	o.ID, o.ExpiresAt = az.ID, at(ends.UnixMilli())
	return nil
}

// order is Store.order, once for a request: what it then does to the order is a step from the state in which it stands, whatever was read.
func (r *Request) order(ctx context.Context, what, id string) (*order, error) {
	if r.read != nil && r.read.id == id {
		return r.read, nil
	}
	o, err := r.s.order(ctx, what, id)
	r.read = o
	return o, err
}

// GetOrder implements acme.DB.
func (r *Request) GetOrder(ctx context.Context, id string) (*acme.Order, error) {
	o, err := r.order(ctx, "order", id)
	if err != nil {
		return nil, err
	}
	return o.acme(), nil
}

// UpdateOrder implements acme.DB. A status that follows from the row is not written again: ready follows from the attestation, invalid from
// the end, and CreateCertificate has entered the certificate with its state.
func (r *Request) UpdateOrder(_ context.Context, o *acme.Order) error {
	switch o.Status {
	case acme.StatusReady, acme.StatusInvalid:
		return nil
	case acme.StatusValid:
		if o.ID == r.claimed && o.CertificateID == o.ID {
			return nil
		}
	}
	return fmt.Errorf("order %s: a step to %s by a request that has no certificate for it", o.ID, o.Status)
}

// GetAuthorization implements acme.DB.
func (r *Request) GetAuthorization(ctx context.Context, id string) (*acme.Authorization, error) {
	o, err := r.order(ctx, "authorization", id)
	if err != nil {
		return nil, err
	}
	return o.authorization(), nil
}

// UpdateAuthorization implements acme.DB. The fingerprint that an attestation yields is entered by Attest; a status follows from the row.
func (r *Request) UpdateAuthorization(_ context.Context, az *acme.Authorization) error {
	r.fingerprint = az.Fingerprint
	return nil
}

// GetChallenge implements acme.DB.
func (r *Request) GetChallenge(ctx context.Context, id, authorization string) (*acme.Challenge, error) {
	if id != authorization {
		return nil, acme.NewDetailedError(acme.ErrorMalformedType, "there is no such challenge, or it has expired")
	}
	o, err := r.order(ctx, "challenge", id)
	if err != nil {
		return nil, err
	}
	r.answering = o.challenge()
	return r.answering, nil
}

// Answering is the challenge that this request has read, with the payload that smallstep entered; nil without one.
func (r *Request) Answering() *acme.Challenge { return r.answering }

// UpdateChallenge implements acme.DB for a challenge that failed. One that was answered is Attest's.
func (r *Request) UpdateChallenge(ctx context.Context, ch *acme.Challenge) error {
	if ch.Status != acme.StatusInvalid {
		return fmt.Errorf("challenge %s: a step to %s without an endorsement key", ch.ID, ch.Status)
	}
	return r.step(ctx, ch, "UPDATE ca_orders SET state = $1, error = $2, ends = $3 WHERE id = $4 AND state = $5 AND ends > $6",
		int(refused), problem(ch.Error), r.s.now().Add(LifePending).UnixMilli(), ch.ID, int(pending), r.s.now().UnixMilli())
}

// Proof is what an attestation proves.
type Proof struct {
	EK   [32]byte // SHA-256 of the endorsement key behind it, PKIX DER
	SPKI [32]byte // SHA-256 of the attested key, PKIX DER
}

// Attest accepts the attestation. When another request was faster, ch is what that one made of it.
func (r *Request) Attest(ctx context.Context, ch *acme.Challenge, p Proof) error {
	if r.fingerprint == "" || len(r.fingerprint) > maxText { // smallstep would compare no key with the CSR's
		return errors.New("an attestation without the fingerprint of its key")
	}
	now := r.s.now()
	return r.step(ctx, ch, "UPDATE ca_orders SET state = $1, validated = $2, ek = $3, spki = $4, fingerprint = $5, ends = $6 WHERE id = $7 AND state = $8 AND ends > $9",
		int(attested), now.UnixMilli(), p.EK[:], p.SPKI[:], r.fingerprint, now.Add(LifeAttested).UnixMilli(), ch.ID, int(pending), now.UnixMilli())
}

// step takes a pending order one step on. Who comes second gets what the first one stored.
func (r *Request) step(ctx context.Context, ch *acme.Challenge, update string, args ...any) error {
	r.read = nil
	return r.s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		ok, err := changed(tx.Exec(update, args...))
		if err != nil || ok {
			return err
		}
		o, err := scanOrder(tx.QueryRow("SELECT "+orderColumns+" FROM ca_orders WHERE id = $1", ch.ID))
		if errors.Is(err, sql.ErrNoRows) || err == nil && o.ends <= r.s.now().UnixMilli() {
			return acme.NewDetailedError(acme.ErrorMalformedType, "the challenge has expired")
		}
		if err != nil {
			return err
		}
		stored := o.challenge()
		ch.Status, ch.Error, ch.ValidatedAt = stored.Status, stored.Error, stored.ValidatedAt
		return nil
	})
}

// Claim is an order that this request alone may make the certificate for, and what it was attested for.
type Claim struct {
	Gateway string
	Proof
}

// Claim takes an attested order: of all requests, in all processes, one gets it, once. An error of ACME says that there is nothing to claim.
func (r *Request) Claim(ctx context.Context, orderID string) (Claim, error) {
	r.read, r.claim = nil, id()
	var c Claim
	var ek, spki []byte
	err := r.s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		return tx.QueryRow("UPDATE ca_orders SET state = $1, claim = $2 WHERE id = $3 AND state = $4 AND ends > $5 RETURNING gateway, ek, spki",
			int(claimed), r.claim, orderID, int(attested), r.s.now().UnixMilli()).Scan(&c.Gateway, &ek, &spki)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return c, acme.NewDetailedError(acme.ErrorUnauthorizedType, "the attestation is too old, or a certificate was made for it already; order again")
	case err != nil:
		return c, fmt.Errorf("claim the order: %w", err)
	case len(ek) != len(c.EK) || len(spki) != len(c.SPKI):
		return c, fmt.Errorf("order %s is attested without an endorsement key or a key", orderID)
	}
	c.Proof, r.claimed = Proof{[32]byte(ek), [32]byte(spki)}, orderID
	return c, nil
}

// CreateCertificate implements acme.DB: from here on the certificate can be fetched. The order must be claimed by this Request.
func (r *Request) CreateCertificate(ctx context.Context, cert *acme.Certificate) error {
	if cert.OrderID != r.claimed {
		return fmt.Errorf("order %s: a certificate by a request that has not claimed it", cert.OrderID)
	}
	chain := cert.Leaf.Raw
	for _, c := range cert.Intermediates {
		chain = append(chain[:len(chain):len(chain)], c.Raw...)
	}
	ends := r.s.now().Add(LifeIssued).UnixMilli()
	err := r.s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		ok, err := changed(tx.Exec("UPDATE ca_orders SET state = $1, chain = $2, ends = $3 WHERE id = $4 AND state = $5 AND claim = $6",
			int(issued), chain, ends, cert.OrderID, int(claimed), r.claim))
		if err == nil && !ok {
			return fmt.Errorf("order %s is no longer claimed by this request", cert.OrderID)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	cert.ID = cert.OrderID
	return nil
}

// GetCertificate implements acme.DB.
func (r *Request) GetCertificate(ctx context.Context, id string) (*acme.Certificate, error) {
	out := &acme.Certificate{ID: id, OrderID: id}
	var der []byte
	err := r.s.db.QueryRow(ctx, "SELECT account, chain FROM ca_orders WHERE id = $1 AND state = $2 AND ends > $3", id, int(issued), r.s.now().UnixMilli()).
		Scan(&out.AccountID, &der)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, acme.NewDetailedError(acme.ErrorMalformedType, "there is no such certificate, or it is not kept here any longer")
	}
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	chain, err := x509.ParseCertificates(der)
	if err != nil || len(chain) == 0 {
		return nil, fmt.Errorf("certificate %s: %d, %w", id, len(chain), err)
	}
	out.Leaf, out.Intermediates = chain[0], chain[1:]
	return out, nil
}

// maxListed bounds the orders of an account that are shown.
const maxListed = 100

// GetOrdersByAccountID implements acme.DB: those that are pending.
func (r *Request) GetOrdersByAccountID(ctx context.Context, account string) (out []string, err error) {
	rows, err := r.s.db.Query(ctx, "SELECT id FROM ca_orders WHERE account = $1 AND state = $2 AND ends > $3 ORDER BY id LIMIT $4",
		account, int(pending), r.s.now().UnixMilli(), maxListed)
	if err != nil {
		return nil, fmt.Errorf("orders: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("orders: %w", err)
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

// errNotServed is of what smallstep asks for requests that this server does not serve: revocation over ACME and external account bindings.
// The registry revokes, and an attestation is all the binding there is.
var errNotServed = errors.New("not part of this server")

// GetAuthorizationsByAccountID implements acme.DB for revocation over ACME, which is not served.
func (r *Request) GetAuthorizationsByAccountID(context.Context, string) ([]*acme.Authorization, error) {
	return nil, errNotServed
}

// GetCertificateBySerial implements acme.DB for revocation over ACME, which is not served.
func (r *Request) GetCertificateBySerial(context.Context, string) (*acme.Certificate, error) {
	return nil, errNotServed
}

// CreateExternalAccountKey implements acme.DB; it is not served, as are the six that follow.
func (r *Request) CreateExternalAccountKey(context.Context, string, string) (*acme.ExternalAccountKey, error) {
	return nil, errNotServed
}

// GetExternalAccountKey is not served.
func (r *Request) GetExternalAccountKey(context.Context, string, string) (*acme.ExternalAccountKey, error) {
	return nil, errNotServed
}

// GetExternalAccountKeys is not served.
func (r *Request) GetExternalAccountKeys(context.Context, string, string, int) ([]*acme.ExternalAccountKey, string, error) {
	return nil, "", errNotServed
}

// GetExternalAccountKeyByReference is not served.
func (r *Request) GetExternalAccountKeyByReference(context.Context, string, string) (*acme.ExternalAccountKey, error) {
	return nil, errNotServed
}

// GetExternalAccountKeyByAccountID is not served.
func (r *Request) GetExternalAccountKeyByAccountID(context.Context, string, string) (*acme.ExternalAccountKey, error) {
	return nil, errNotServed
}

// DeleteExternalAccountKey is not served.
func (r *Request) DeleteExternalAccountKey(context.Context, string, string) error {
	return errNotServed
}

// UpdateExternalAccountKey is not served.
func (r *Request) UpdateExternalAccountKey(context.Context, string, *acme.ExternalAccountKey) error {
	return errNotServed
}
