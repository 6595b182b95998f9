package registry

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"time"
)

//go:embed operators_0001.sql
var operators1 string

// Holder is an operator or a service account with the newest of its certificates.
type Holder struct {
	Name                string // SPIFFE name
	Serial              string // lower-case hex
	NotBefore, NotAfter time.Time
}

// AddOperator enters an operator's certificate in tx, before it is handed out.
func AddOperator(tx *sql.Tx, h Holder) error {
	_, err := tx.Exec("INSERT INTO operators (serial, name, not_before, not_after) VALUES ($1, $2, $3, $4)",
		h.Serial, h.Name, millis(h.NotBefore), millis(h.NotAfter))
	if err != nil {
		return fmt.Errorf("registry: operator: %w", err)
	}
	return nil
}

// Operators gives every operator whose newest certificate ends after since, by name.
func (r *Registry) Operators(ctx context.Context, since time.Time) ([]Holder, error) {
	return r.holders(ctx, `SELECT name, serial, not_before, not_after FROM operators o
		WHERE not_after > $1 AND not_after = (SELECT MAX(x.not_after) FROM operators x WHERE x.name = o.name) ORDER BY name`, since)
}

// Accounts gives every service account whose newest certificate ends after since, by name.
func (r *Registry) Accounts(ctx context.Context, since time.Time) ([]Holder, error) {
	return r.holders(ctx, `SELECT name, serial, added, not_after FROM access o
		WHERE not_after > $1 AND not_after = (SELECT MAX(x.not_after) FROM access x WHERE x.name = o.name) ORDER BY name`, since)
}

func (r *Registry) holders(ctx context.Context, query string, since time.Time) (out []Holder, err error) {
	rows, err := r.db.Query(ctx, query, millis(since))
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var h Holder
		var notBefore, notAfter int64
		if err := rows.Scan(&h.Name, &h.Serial, &notBefore, &notAfter); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		h.NotBefore, h.NotAfter = instant(notBefore), instant(notAfter)
		if n := len(out); n == 0 || out[n-1].Name != h.Name { // two may end at the same instant
			out = append(out, h)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}
