package client

import (
	"context"
	"net/url"
	"time"
)

// Scope is what a service account may see, as a request gives it. Patients are named by their ids, or by identifiers, which the server
// turns into ids and does not keep.
type Scope struct {
	All         bool     `json:"all,omitempty"`
	Operations  []string `json:"operations,omitempty"`
	Wards       []string `json:"wards,omitempty"`
	Codes       []string `json:"codes,omitempty"`       // loinc|8867-4, mdc|147842, <URI>|<code>
	Patients    []string `json:"subjects,omitempty"`    // ids, as FHIR shows them
	Identifiers []string `json:"identifiers,omitempty"` // <system>|<value>; never in an answer
}

// AccessRequest asks for a service account's certificate, and for the account where there is none of that name: then with the scope that is
// given, or with none, which sees nothing. The key never leaves the requester.
type AccessRequest struct {
	Name    string `json:"name"`
	CSR     []byte `json:"csr"`               // PKCS #10 DER
	Owner   string `json:"owner,omitempty"`   // of a new account; "": the operator
	Contact string `json:"contact,omitempty"` // of a new account
	Scope   *Scope `json:"scope,omitempty"`   // of a new account; refused for one that is there
}

// AccessGrant is the certificate.
type AccessGrant struct {
	Certificate string    `json:"certificate"` // PEM chain, leaf first
	Root        string    `json:"root"`        // PEM
	NotAfter    time.Time `json:"not_after"`
	ID          string    `json:"id"`
	Scope       string    `json:"scope"`              // in one line
	Hospital    string    `json:"hospital,omitempty"` // https://host:port of the port at which it counts
	Warnings    []string  `json:"warnings,omitempty"` // what the scope may not have meant
}

// RenewRequest asks for the next certificate of who asks, for another key.
type RenewRequest struct {
	CSR []byte `json:"csr"` // PKCS #10 DER
}

// Own is what an identity is told of itself.
type Own struct {
	ID       string    `json:"id"`
	Scope    string    `json:"scope,omitempty"`
	Role     string    `json:"role,omitempty"`
	NotAfter time.Time `json:"not_after"` // of the certificate that was shown
	Ends     time.Time `json:"ends"`      // when it counts no more
	Renew    bool      `json:"renew"`     // it was rotated out: renew now
}

// Identity is one that is no patient and, but for operators, no person.
type Identity struct {
	Kind     string    `json:"kind"` // access, operator; in the table of all also gateway, node, server, key
	Name     string    `json:"name"`
	Owner    string    `json:"owner,omitempty"`
	Contact  string    `json:"contact,omitempty"`
	Role     string    `json:"role,omitempty"`
	Scope    string    `json:"scope,omitempty"` // in one line
	Holds    *Scope    `json:"holds,omitempty"` // the same; of service accounts
	State    string    `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Changed  time.Time `json:"changed,omitzero"` // when the state was set
	By       string    `json:"changed_by,omitempty"`
	Created  time.Time `json:"created,omitzero"`
	Creator  string    `json:"created_by,omitempty"`
	Used     Use       `json:"last_used,omitzero"` // absent: never; null: nobody notes when it is used
	Warnings []string  `json:"warnings,omitempty"` // what a change may not have meant
	UsedFor  string    `json:"last_used_for,omitempty"`
	Serial   string    `json:"serial,omitempty"`
	Expires  time.Time `json:"expires,omitzero"` // when its newest certificate counts no more; absent: never
	Valid    int       `json:"certificates,omitempty"`
	Next     time.Time `json:"next_rotation,omitzero"`
	Renewal  string    `json:"renewed_by,omitempty"`
	May      []string  `json:"may,omitempty"` // of an operator that is shown alone: the routes of its role
}

// ChangeRequest changes an identity; what is absent stays.
type ChangeRequest struct {
	Owner   *string `json:"owner,omitempty"`
	Contact *string `json:"contact,omitempty"`
	Role    *string `json:"role,omitempty"`
	Scope   *Scope  `json:"scope,omitempty"`
}

// StateRequest suspends, resumes or revokes an identity.
type StateRequest struct {
	State  string `json:"state"` // active, suspended, revoked
	Reason string `json:"reason"`
}

// StateAnswer is what became of it.
type StateAnswer struct {
	Identity  Identity `json:"identity"`
	Already   bool     `json:"already"`   // it was so; nothing is changed
	Journaled bool     `json:"journaled"` // else the event follows once the journal can be written
}

// RotateRequest has an identity's certificates end.
type RotateRequest struct {
	Reason  string `json:"reason"`
	Overlap int64  `json:"overlap_seconds"` // until they do
}

// RotateAnswer says when.
type RotateAnswer struct {
	Ends         time.Time `json:"ends"`
	Certificates int64     `json:"certificates"`
	Journaled    bool      `json:"journaled"`
}

// Question is whether a service account may do something; what is absent is not asked.
type Question struct {
	Operation  string `json:"operation,omitempty"`
	Ward       string `json:"ward,omitempty"`
	Code       string `json:"code,omitempty"`
	Patient    string `json:"subject,omitempty"`
	Identifier string `json:"identifier,omitempty"`
}

// Explanation is the answer, by the rules that FHIR goes by.
type Explanation struct {
	Identity Identity `json:"identity"`
	Allowed  bool     `json:"allowed"`
	Checks   []Check  `json:"checks"`
}

// Check is one of the things that were asked.
type Check struct {
	What  string `json:"what"`
	Holds bool   `json:"holds"`
	Why   string `json:"why"`
}

func identityPath(kind, name string) string {
	return "/v1/identities/" + kind + "/" + url.PathEscape(name)
}

// Identity gives one service account ("access") or operator.
func (c *Client) Identity(ctx context.Context, kind, name string) (out Identity, err error) {
	return out, c.Get(ctx, identityPath(kind, name), nil, &out)
}

// Identities gives all identities of the server, or those of one kind.
func (c *Client) Identities(ctx context.Context, kind string) (out []Identity, err error) {
	return out, c.Get(ctx, "/v1/identities", url.Values{"kind": {kind}}, &out)
}

// IdentityAct posts an act on one: change, state, rotate, explain.
func (c *Client) IdentityAct(ctx context.Context, kind, name, act string, in, out any) error {
	return c.Post(ctx, identityPath(kind, name)+"/"+act, in, out)
}

// Use is when an identity was last used.
type Use struct {
	time.Time      // zero: never
	Untracked bool // nobody notes it: a key is used all the time
}

// IsZero says whether it was never used, as far as that is noted.
func (u Use) IsZero() bool { return u.Time.IsZero() && !u.Untracked }

// MarshalJSON gives null for what is not noted.
func (u Use) MarshalJSON() ([]byte, error) {
	if u.Untracked {
		return []byte("null"), nil
	}
	return u.Time.MarshalJSON()
}

// UnmarshalJSON reads what MarshalJSON gives.
func (u *Use) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*u = Use{Untracked: true}
		return nil
	}
	return u.Time.UnmarshalJSON(b)
}
