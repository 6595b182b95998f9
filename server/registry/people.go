package registry

import (
	"context"
	_ "embed"
	"time"

	"wardlink/internal/spiffe"
)

//go:embed operators_0001.sql
var operators1 string

// Holder is an operator or a service account with the newest of its certificates.
type Holder struct {
	Name                string // SPIFFE name
	Serial              string // lower-case hex
	NotBefore, NotAfter time.Time
}

// Operators gives every active operator whose newest certificate ends after since, by name.
func (r *Registry) Operators(ctx context.Context, since time.Time) ([]Holder, error) {
	return r.holders(ctx, spiffe.Operator, since)
}

// Accounts gives every active service account whose newest certificate ends after since, by name.
func (r *Registry) Accounts(ctx context.Context, since time.Time) ([]Holder, error) {
	return r.holders(ctx, spiffe.Access, since)
}

func (r *Registry) holders(ctx context.Context, kind spiffe.Kind, since time.Time) (out []Holder, err error) {
	all, err := r.Identities(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if c := i.Certificate; i.Kind == kind && i.State == Active && c.NotAfter.After(since) {
			out = append(out, Holder{Name: i.Name, Serial: c.Serial, NotBefore: c.NotBefore, NotAfter: c.NotAfter})
		}
	}
	return out, nil
}
