package acmedb

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/smallstep/certificates/acme"

	"wardlink/server/sqldb"
)

// A nonce is the generation in which it was given out (8 bytes, big endian), 16 random bytes, and the first 16 bytes of the HMAC-SHA-256 of
// both, as base64url. Giving one out writes nothing: whoever asks for a million nonces costs no row. Using one enters it into ca_nonces,
// whose primary key lets it in once, whichever process it reached.
//
// A nonce is good in its generation and the next. The generation is a number in the database, not a time: rows are pruned when it has made them
// void, so no clock that is wrong anywhere lets a nonce be used twice.
const (
	nonceKeySize = 32
	saltSize     = 16
	nonceSize    = 8 + saltSize + 16
)

// nonces is what a process needs to give nonces out and to use them.
type nonces struct {
	key        []byte
	generation atomic.Int64 // as of the last transaction
	began      time.Time    // when this process last began one, or itself; of Open, then of Prune alone
}

func (n *nonces) mac(body []byte) []byte {
	h := hmac.New(sha256.New, n.key)
	_, _ = h.Write([]byte("wardlink/ca/nonce/1\x00"))
	_, _ = h.Write(body)
	return h.Sum(nil)[:nonceSize-8-saltSize]
}

func (s *Store) newNonce() acme.Nonce {
	out := make([]byte, 8+saltSize, nonceSize)
	binary.BigEndian.PutUint64(out, uint64(s.nonces.generation.Load()))
	_, _ = rand.Read(out[8:])
	return acme.Nonce(base64.RawURLEncoding.EncodeToString(append(out, s.nonces.mac(out)...)))
}

var errBadNonce = errors.New("expected a nonce of the last minutes that was not used")

// badNonce is the answer upon which a client tries again with the nonce that came with it (RFC 8555, 6.5).
func badNonce() error { return acme.WrapError(acme.ErrorBadNonceType, errBadNonce, "nonce") }

// useNonce uses a nonce up: of all who present it, in any process, one gets nil.
func (s *Store) useNonce(ctx context.Context, nonce acme.Nonce) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(string(nonce))
	if err != nil || len(raw) != nonceSize || !hmac.Equal(s.nonces.mac(raw[:8+saltSize]), raw[8+saltSize:]) {
		return badNonce()
	}
	of, salt, fresh := int64(binary.BigEndian.Uint64(raw)), raw[8:8+saltSize], false
	if err := s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		var generation int64
		if err := tx.QueryRow("SELECT generation FROM ca_state").Scan(&generation); err != nil {
			return err
		}
		s.nonces.generation.Store(generation)
		if of < generation-1 || of > generation {
			return nil // too old, and its row is gone; or of a database that was since restored
		}
		fresh, err = changed(tx.Exec("INSERT INTO ca_nonces (generation, salt) VALUES ($1, $2) ON CONFLICT (generation, salt) DO NOTHING", of, salt))
		return err
	}); err != nil {
		return err
	}
	if !fresh {
		return badNonce()
	}
	return nil
}

// pruneNonces begins the next generation when the present one is over, and deletes what is no longer good. A clock that was set back must not
// keep one generation for ever, and processes whose clocks disagree must not hurry each other.
func (s *Store) pruneNonces(ctx context.Context) error {
	now := s.now()
	var generation int64
	if err := s.db.Write(ctx, func(tx *sql.Tx) error {
		var advanced int64
		if err := tx.QueryRowContext(ctx, "SELECT generation, advanced FROM ca_state").Scan(&generation, &advanced); err != nil {
			return err
		}
		if within(now.Sub(time.UnixMilli(advanced))) || within(now.Sub(s.nonces.began)) {
			return nil
		}
		generation++
		_, err := tx.ExecContext(ctx, "UPDATE ca_state SET generation = $1, advanced = $2", generation, now.UnixMilli())
		return err
	}); err != nil {
		return err
	}
	if s.nonces.generation.Swap(generation) < generation {
		s.nonces.began = now
	}
	return s.prune(ctx, `DELETE FROM ca_nonces WHERE generation < $1
		AND salt IN (SELECT salt FROM ca_nonces WHERE generation < $1 ORDER BY generation LIMIT $2)`, generation-1)
}

// within says whether a generation that began so long ago goes on.
func within(age time.Duration) bool { return age > -2*lifeNonces && age < lifeNonces }
