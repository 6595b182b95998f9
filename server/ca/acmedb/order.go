package acmedb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/smallstep/certificates/acme"
)

// state is an order's.
type state int

const (
	pending state = iota
	attested
	claimed
	issued
	refused
)

// order is a row of ca_orders: order, authorization, challenge and certificate.
type order struct {
	id, account, provisioner, gateway, token string
	notBefore, notAfter, ends, validated     int64
	state                                    state
	problem                                  *acme.Error
	fingerprint                              string
}

const orderColumns = "id, account, provisioner, gateway, token, not_before, not_after, ends, validated, state, error, fingerprint"

// order reads an order that has not ended. A row that has means nothing, pruned or not.
func (s *Store) order(ctx context.Context, what, id string) (*order, error) {
	o, err := scanOrder(s.db.QueryRow(ctx, "SELECT "+orderColumns+" FROM ca_orders WHERE id = $1 AND ends > $2", id, s.now().UnixMilli()))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, acme.NewDetailedError(acme.ErrorMalformedType, "there is no such %s, or it has expired", what)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return o, nil
}

func scanOrder(row interface{ Scan(...any) error }) (*order, error) {
	var o order
	var problem []byte
	if err := row.Scan(&o.id, &o.account, &o.provisioner, &o.gateway, &o.token, &o.notBefore, &o.notAfter, &o.ends, &o.validated, &o.state,
		&problem, &o.fingerprint); err != nil {
		return nil, err
	}
	if problem != nil {
		if err := json.Unmarshal(problem, &o.problem); err != nil {
			return nil, err
		}
	}
	return &o, nil
}

func (o *order) identifier() acme.Identifier {
	return acme.Identifier{Type: acme.PermanentIdentifier, Value: o.gateway}
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// acme is the order as smallstep knows it. What is claimed shows as ready: who tries again to finalize it is told why that cannot be.
func (o *order) acme() *acme.Order {
	out := &acme.Order{ID: o.id, AccountID: o.account, ProvisionerID: o.provisioner, ExpiresAt: at(o.ends), Identifiers: []acme.Identifier{o.identifier()},
		NotBefore: at(o.notBefore), NotAfter: at(o.notAfter), AuthorizationIDs: []string{o.id}}
	switch o.state {
	case pending:
		out.Status = acme.StatusPending
	case attested, claimed:
		out.Status = acme.StatusReady
	case issued:
		out.Status, out.CertificateID = acme.StatusValid, o.id
	default:
		out.Status, out.Error = acme.StatusInvalid, o.problem
	}
	return out
}

// proof is the status of authorization and challenge.
func (o *order) proof() acme.Status {
	switch o.state {
	case pending:
		return acme.StatusPending
	case attested, claimed, issued:
		return acme.StatusValid
	default:
		return acme.StatusInvalid
	}
}

func (o *order) challenge() *acme.Challenge {
	ch := &acme.Challenge{ID: o.id, AccountID: o.account, AuthorizationID: o.id, Value: o.gateway, Type: acme.DEVICEATTEST01, Status: o.proof(),
		Token: o.token, Error: o.problem}
	if o.validated != 0 {
		ch.ValidatedAt = at(o.validated).Format(time.RFC3339)
	}
	return ch
}

// authorization is invalid as soon as its only challenge is (RFC 8555, 7.1.6), for which smallstep's own store waits a day.
func (o *order) authorization() *acme.Authorization {
	return &acme.Authorization{ID: o.id, AccountID: o.account, Token: o.token, Fingerprint: o.fingerprint, Identifier: o.identifier(), Status: o.proof(),
		Challenges: []*acme.Challenge{o.challenge()}, ExpiresAt: at(o.ends), Error: o.problem}
}

// Bounds of a problem that is stored: its texts hold the client's words.
const (
	maxText        = 300
	maxSubproblems = 4
	maxProblem     = 2 << 10
)

// problem is e as it is stored.
func problem(e *acme.Error) []byte {
	if e == nil {
		return nil
	}
	short := &acme.Error{Type: e.Type, Detail: cut(e.Detail)}
	for _, p := range e.Subproblems[:min(len(e.Subproblems), maxSubproblems)] {
		short.Subproblems = append(short.Subproblems, acme.Subproblem{Type: p.Type, Detail: cut(p.Detail)})
	}
	body, err := json.Marshal(short)
	if err != nil || len(body) > maxProblem {
		body, _ = json.Marshal(&acme.Error{Type: e.Type}) // texts only; escapes made it long
	}
	return body
}

func cut(s string) string { return s[:min(len(s), maxText)] }
