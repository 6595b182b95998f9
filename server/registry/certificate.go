package registry

import (
	"context"
	"fmt"
	"time"
)

// Certificate is the newest certificate of a gateway.
type Certificate struct {
	Gateway             string
	NotBefore, NotAfter time.Time
}

// Certificates gives the newest certificate of each gateway that may have one. It takes a few seeks for each gateway, however many
// certificates there have been.
func (r *Registry) Certificates(ctx context.Context) ([]Certificate, error) {
	rows, err := r.db.Query(ctx, certificatesQuery, string(Active))
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Certificate
	for rows.Next() {
		var c Certificate
		var notBefore, notAfter int64
		if err := rows.Scan(&c.Gateway, &notBefore, &notAfter); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		c.NotBefore, c.NotAfter = instant(notBefore), instant(notAfter)
		// A gateway that was set up anew has a key for each time.
		if n := len(out); n == 0 || out[n-1].Gateway != c.Gateway {
			out = append(out, c)
		} else if c.NotAfter.After(out[n-1].NotAfter) {
			out[n-1] = c
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// CROSS JOIN keeps the order, gateways first: the planner would rather read all certificates.
const certificatesQuery = `SELECT g.id, c.not_before, c.not_after FROM gateways g CROSS JOIN gateway_keys k CROSS JOIN gateway_certificates c
	WHERE g.state = $1 AND k.gateway = g.id
	AND c.spki = k.spki AND c.added = (SELECT MAX(x.added) FROM gateway_certificates x WHERE x.spki = k.spki)
	AND NOT EXISTS (SELECT 1 FROM revocations v WHERE v.gateway = g.id)
	ORDER BY g.id`
