package registry

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"wardlink/internal/refusal"
	"wardlink/internal/spiffe"
)

//go:embed identities_0001.sql
var identities1 string

// Revocation, quarantine and the like are words of gateways; an identity is Active, Suspended or Revoked.

// Identity is who may ask the server for something: a service account of a hospital's system (spiffe.Access) or an operator
// (spiffe.Operator).
type Identity struct {
	Kind    spiffe.Kind
	Name    string // SPIFFE name
	Owner   string // the person or team that answers for it
	Contact string
	Role    Role  // of an operator
	Scope   Scope // of a service account

	// Set by the registry.
	State     State
	Changed   time.Time // when the state was set; zero: never
	ChangedBy string
	Reason    string
	Created   time.Time
	Creator   string    // the SPIFFE id of who made it; "" where nobody knows
	Used      time.Time // when it last did anything but renew itself, a minute or so late; zero: never
	UsedFor   string

	// Of the newest certificate, as List and Show give them; of the one that was shown, as Authorise does.
	Certificate IdentityCertificate
	Valid       int // certificates that count now; List and Show alone
}

// IdentityCertificate is one certificate of an identity.
type IdentityCertificate struct {
	Serial              string   // lower-case hex
	SPKI                [32]byte // zero: of an operator from before the registry kept it
	NotBefore, NotAfter time.Time
	Ends                time.Time // when it counts no more: NotAfter, or earlier after a rotation
}

// Rotated says whether the certificate ends before its time: it is to be renewed at once.
func (c IdentityCertificate) Rotated() bool { return c.Ends.Before(c.NotAfter) }

// Subject names an identity in events: access/ehr, operator/jane.
func (i Identity) Subject() string { return string(i.Kind) + "/" + i.Name }

// IdentityError is why an identity that is in the registry is not let in.
type IdentityError struct {
	Subject string
	State   State  // Suspended, Revoked; Active where it is the certificate that ended
	Reason  string // as an operator gave it
	says    string
}

func (e *IdentityError) Error() string { return e.says }

// Unwrap gives ErrNotActive.
func (e *IdentityError) Unwrap() error { return ErrNotActive }

// admissible says why an identity is not let in now; nil when it is.
func (i Identity) admissible() error {
	switch i.State {
	case Active:
		return nil
	case Suspended:
		return &IdentityError{i.Subject(), i.State, i.Reason, fmt.Sprintf("%s is suspended: %s", i.Subject(), i.Reason)}
	}
	return &IdentityError{i.Subject(), i.State, i.Reason, fmt.Sprintf("%s is revoked: %s", i.Subject(), i.Reason)}
}

// Authorise says who shows a certificate, as the registry has it at this moment: it is asked at each request, so that what an operator
// takes away is gone at once, in every process and on connections that stand. ErrUnknown for a certificate that is not in the registry or
// is in it for another name or key; an *IdentityError when it counts no more. Any other error means that the registry cannot be asked:
// then nobody is let in. It is one look at two rows.
func (r *Registry) Authorise(ctx context.Context, kind spiffe.Kind, name string, c IdentityCertificate) (Identity, error) {
	var spki []byte
	got, err := scanIdentity(r.db.QueryRow(ctx, "SELECT "+identityColumns+`, c.serial, c.spki, c.not_before, c.not_after, c.ends
		FROM identity_certificates c JOIN identities i ON i.kind = c.kind AND i.name = c.name WHERE c.serial = $1`, c.Serial), &spki)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Identity{}, fmt.Errorf("certificate: %w", ErrUnknown)
	case err != nil:
		return Identity{}, fmt.Errorf("registry: %w", err)
	case got.Kind != kind || got.Name != name || spki != nil && got.Certificate.SPKI != c.SPKI:
		return Identity{}, refusal.New(ErrUnknown, "the certificate is not the one that was issued")
	}
	if err := got.admissible(); err != nil {
		return got, err
	}
	if now := r.now(); !now.Before(got.Certificate.Ends) {
		return got, &IdentityError{got.Subject(), Active, "", fmt.Sprintf("the certificate of %s ended at %s", got.Subject(), got.Certificate.Ends.Format(time.RFC3339))}
	}
	return got, nil
}

const identityColumns = "i.kind, i.name, i.owner, i.contact, i.role, i.scope, i.state, i.changed, i.changed_by, i.reason, i.created, i.creator, i.used, i.used_for"

// scanIdentity reads identityColumns and a certificate.
func scanIdentity(row interface{ Scan(...any) error }, spki *[]byte) (i Identity, err error) {
	var scope string
	var changed, created, used, notBefore, notAfter, ends int64
	c := &i.Certificate
	if err := row.Scan(&i.Kind, &i.Name, &i.Owner, &i.Contact, &i.Role, &scope, &i.State, &changed, &i.ChangedBy, &i.Reason, &created, &i.Creator, &used, &i.UsedFor,
		&c.Serial, spki, &notBefore, &notAfter, &ends); err != nil {
		return Identity{}, err
	}
	if i.Scope, err = ParseScope(scope); err != nil {
		return Identity{}, fmt.Errorf("%s: %w", i.Subject(), err)
	}
	copy(c.SPKI[:], *spki)
	i.Changed, i.Created, i.Used = instant(changed), instant(created), instant(used)
	c.NotBefore, c.NotAfter, c.Ends = instant(notBefore), instant(notAfter), instant(ends)
	return i, nil
}

// newestCertificate picks one certificate of identity i. An identity has one from its beginning; the outer join is for one whose making
// was cut short.
const newestCertificate = ` LEFT JOIN identity_certificates c ON c.serial = (SELECT x.serial FROM identity_certificates x
	WHERE x.kind = i.kind AND x.name = i.name ORDER BY x.not_after DESC, x.serial LIMIT 1)`

const certificateColumns = "COALESCE(c.serial, ''), c.spki, COALESCE(c.not_before, 0), COALESCE(c.not_after, 0), COALESCE(c.ends, 0)"

// IdentityOf gives one identity with its newest certificate, or ErrUnknown.
func (r *Registry) IdentityOf(ctx context.Context, kind spiffe.Kind, name string) (i Identity, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		i, err = identityOf(tx, r.now(), kind, name)
		return err
	})
	if err != nil && !errors.Is(err, ErrUnknown) {
		return Identity{}, fmt.Errorf("registry: %w", err)
	}
	return i, err
}

func identityOf(tx *sql.Tx, now time.Time, kind spiffe.Kind, name string) (Identity, error) {
	var spki []byte
	i, err := scanIdentity(tx.QueryRow("SELECT "+identityColumns+", "+certificateColumns+" FROM identities i"+newestCertificate+" WHERE i.kind = $1 AND i.name = $2",
		string(kind), name), &spki)
	if errors.Is(err, sql.ErrNoRows) {
		return Identity{}, refusal.New(ErrUnknown, "%s %.64q: not in the registry; 'wardlink %s list' shows those that are there", kindName(kind), name, commandOf(kind))
	}
	if err == nil {
		err = tx.QueryRow("SELECT COUNT(*) FROM identity_certificates WHERE kind = $1 AND name = $2 AND ends > $3", string(kind), name, now.UnixMilli()).Scan(&i.Valid)
	}
	return i, err
}

// kindName is what people call a kind.
func kindName(k spiffe.Kind) string {
	if k == spiffe.Access {
		return "service account"
	}
	return string(k)
}

// Identities gives all service accounts and operators, by kind and name, each with its newest certificate.
func (r *Registry) Identities(ctx context.Context) (out []Identity, err error) {
	err = r.db.Read(ctx, func(tx *sql.Tx) error {
		out, err = identities(ctx, tx, r.now())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

func identities(ctx context.Context, tx *sql.Tx, now time.Time) (out []Identity, err error) {
	valid := make(map[string]int)
	counts, err := tx.QueryContext(ctx, "SELECT kind, name, COUNT(*) FROM identity_certificates WHERE ends > $1 GROUP BY kind, name", now.UnixMilli())
	if err != nil {
		return nil, err
	}
	for counts.Next() {
		var kind, name string
		var n int
		if err := counts.Scan(&kind, &name, &n); err != nil {
			return nil, errors.Join(err, counts.Close())
		}
		valid[kind+"/"+name] = n
	}
	if err := errors.Join(counts.Err(), counts.Close()); err != nil {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, "SELECT "+identityColumns+", "+certificateColumns+" FROM identities i"+newestCertificate+" ORDER BY i.kind, i.name")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var spki []byte
		i, err := scanIdentity(rows, &spki)
		if err != nil {
			return nil, err
		}
		i.Valid = valid[i.Subject()]
		out = append(out, i)
	}
	return out, rows.Err()
}
