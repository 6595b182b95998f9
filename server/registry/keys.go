package registry

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardlink/enroll"
	"wardlink/internal/refusal"
	"wardlink/server/sqldb"
)

// Key is a device key of a gateway and the certificate that was issued for it last.
type Key struct {
	Gateway             string
	EK                  [32]byte // the endorsement key under which the TPM attested it; AddKey alone needs it
	SPKI                [32]byte // SHA-256 of Public
	Public              []byte   // PKIX DER
	Serial              string   // lower-case hex
	NotBefore, NotAfter time.Time
}

// AddKey enters a key and its certificate into the gateway's history, before the certificate is handed out: a sealing record that
// the key signs must find it. Entering the same again is harmless. A key of another gateway is ErrConflict, and a gateway that may not
// have a certificate now, or not under that EK, ErrNotActive: no certificate can slip past a revocation or a replacement that it races. The act itself is the
// issuing of the certificate, which the CA journals; AddKey adds no event.
func (r *Registry) AddKey(ctx context.Context, k Key) error {
	if sha256.Sum256(k.Public) != k.SPKI {
		return errors.New("device key: the SPKI hash is not that of the public key")
	}
	if k.Serial == "" || len(k.Serial) > 64 {
		return errors.New("device key: expected a certificate serial of 1 to 64 hex digits")
	}
	err := r.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		g, err := get(tx, r.now(), k.Gateway)
		if err == nil {
			err = g.admissible(r.now())
		}
		if err != nil {
			return err
		}
		if !slices.Contains(g.EKs, k.EK) {
			return fmt.Errorf("endorsement key %s is not gateway %s's: %w", enroll.Fingerprint(k.EK), k.Gateway, ErrNotActive)
		}
		now := r.now().UnixMilli()
		if _, err := tx.Exec(`INSERT INTO gateway_keys (spki, gateway, public, added) VALUES ($1, $2, $3, $4)
			ON CONFLICT (spki) DO NOTHING`, k.SPKI[:], k.Gateway, k.Public, now); err != nil {
			return err
		}
		var owner string
		if err := tx.QueryRow("SELECT gateway FROM gateway_keys WHERE spki = $1", k.SPKI[:]).Scan(&owner); err != nil {
			return err
		}
		if owner != k.Gateway {
			return refusal.New(ErrConflict, "device key of gateway %s belongs to gateway %s", k.Gateway, owner)
		}
		if _, err := tx.Exec(`INSERT INTO gateway_certificates (serial, spki, not_before, not_after, added) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (serial) DO NOTHING`, k.Serial, k.SPKI[:], millis(k.NotBefore), millis(k.NotAfter), now); err != nil {
			return err
		}
		var spki []byte
		if err := tx.QueryRow("SELECT spki FROM gateway_certificates WHERE serial = $1", k.Serial).Scan(&spki); err != nil {
			return err
		}
		if [32]byte(spki) != k.SPKI {
			return refusal.New(ErrConflict, "certificate serial %s is taken by another key", k.Serial)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// KeyBySPKI gives the key with that hash, of whatever age, or ErrUnknown.
func (r *Registry) KeyBySPKI(ctx context.Context, spki [32]byte) (Key, error) {
	k := Key{SPKI: spki}
	var notBefore, notAfter int64
	err := r.db.QueryRow(ctx, `SELECT k.gateway, k.public, c.serial, c.not_before, c.not_after
		FROM gateway_keys k JOIN gateway_certificates c ON c.spki = k.spki
		WHERE k.spki = $1 ORDER BY c.added DESC, c.serial LIMIT 1`, spki[:]).
		Scan(&k.Gateway, &k.Public, &k.Serial, &notBefore, &notAfter)
	if errors.Is(err, sql.ErrNoRows) {
		return Key{}, fmt.Errorf("device key %x: %w", spki[:8], ErrUnknown)
	}
	if err != nil {
		return Key{}, fmt.Errorf("registry: %w", err)
	}
	k.NotBefore, k.NotAfter = instant(notBefore), instant(notAfter)
	return k, nil
}

// HoldsNewest says whether a certificate is one of the gateway's and of its newest key. Another certificate of the same key may be newer:
// one can have been entered here that its gateway never got.
func (r *Registry) HoldsNewest(ctx context.Context, gateway string, spki [32]byte, serial string) (bool, error) {
	var n int
	err := r.db.QueryRow(ctx, `SELECT COUNT(*) FROM gateway_certificates WHERE serial = $1 AND spki = $2 AND spki =
		(SELECT k.spki FROM gateway_keys k JOIN gateway_certificates c ON c.spki = k.spki WHERE k.gateway = $3 ORDER BY c.added DESC, c.not_after DESC LIMIT 1)`,
		serial, spki[:], gateway).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("registry: %w", err)
	}
	return n == 1, nil
}
