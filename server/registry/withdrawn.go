package registry

import (
	"context"
	"fmt"
	"time"
)

// Withdrawn is a certificate that counts no more although it has not ended.
type Withdrawn struct {
	Serial string // lower-case hex
	At     time.Time
	Why    Withdrawal
}

// Withdrawal is why a certificate counts no more.
type Withdrawal int

// The highest counts where several hold. The query names them by their numbers.
const (
	WithdrawnRotated  Withdrawal = iota // another certificate of the same account or operator took its place
	WithdrawnReplaced                   // its gateway has another board
	WithdrawnHeld                       // its holder is suspended, which may be taken back
	WithdrawnEnded                      // its gateway is decommissioned
	WithdrawnRevoked
)

// longestLife is that of any certificate: the issuing CA's, of a year. Whoever was cut off before has none that has not ended, since none is issued to him.
const longestLife = 366 * 24 * time.Hour

// Withdrawn lists the certificates of gateways, service accounts and operators that have not ended and count no more, each once. More than most are an error:
// a list with gaps would vouch for those that it leaves out.
func (r *Registry) Withdrawn(ctx context.Context, most int) (out []Withdrawn, err error) {
	now := r.now()
	rows, err := r.db.Query(ctx, withdrawnQuery, now.UnixMilli(), now.Add(-longestLife).UnixMilli(), most+1, string(Decommissioned))
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var w Withdrawn
		var at int64
		if err := rows.Scan(&w.Serial, &at, &w.Why); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
		w.At = instant(at)
		out = append(out, w)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if len(out) > most {
		return nil, fmt.Errorf("registry: more than %d certificates are withdrawn and have not ended", most)
	}
	return out, nil
}

const withdrawnQuery = `SELECT serial, MIN(at), MAX(why) FROM (
	SELECT c.serial AS serial, v.at AS at, 4 AS why FROM revocations v CROSS JOIN gateway_keys k CROSS JOIN gateway_certificates c
		WHERE v.at > $2 AND k.gateway = v.gateway AND c.spki = k.spki AND c.not_after > $1
	UNION ALL SELECT c.serial, h.at, CASE g.state WHEN $4 THEN 3 ELSE 2 END FROM gateway_holds h CROSS JOIN gateways g CROSS JOIN gateway_keys k CROSS JOIN gateway_certificates c
		WHERE h.at > $2 AND g.id = h.gateway AND k.gateway = h.gateway AND c.spki = k.spki AND c.not_after > $1
	UNION ALL SELECT c.serial, COALESCE((SELECT MAX(e.at) FROM retired_eks e WHERE e.gateway = k.gateway), c.added), 1 FROM retired_keys k CROSS JOIN gateway_certificates c
		WHERE k.not_after > $1 AND c.spki = k.spki AND c.not_after > $1
	UNION ALL SELECT c.serial, i.changed, CASE i.state WHEN 'revoked' THEN 4 ELSE 2 END FROM identities i CROSS JOIN identity_certificates c
		WHERE i.state <> 'active' AND c.kind = i.kind AND c.name = i.name AND c.not_after > $1
	UNION ALL SELECT c.serial, c.ends, 0 FROM identity_certificates c WHERE c.not_after > $1 AND c.ends <= $1
	) AS withdrawn GROUP BY serial ORDER BY serial LIMIT $3`
