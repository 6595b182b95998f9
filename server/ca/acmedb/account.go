package acmedb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/smallstep/certificates/acme"

	"wardlink/server/sqldb"
)

// Bounds of what an account holds.
const (
	maxKey     = 2 << 10 // a JWK of RSA with 8,192 bits has 1.4 KB
	maxContact = 1 << 10
)

const accountColumns = "id, key, contact, status, location, provisioner, provisioner_name"

// account reads one account. acme.ErrNotFound.
func (s *Store) account(ctx context.Context, where string, arg any) (*acme.Account, error) {
	a := new(acme.Account)
	var key []byte
	var contact string
	err := s.db.QueryRow(ctx, "SELECT "+accountColumns+" FROM ca_accounts WHERE "+where+" = $1", arg).
		Scan(&a.ID, &key, &contact, &a.Status, &a.LocationPrefix, &a.ProvisionerID, &a.ProvisionerName)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, acme.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("account: %w", err)
	}
	if err := errors.Join(json.Unmarshal(key, &a.Key), json.Unmarshal([]byte(contact), &a.Contact)); err != nil {
		return nil, fmt.Errorf("account %s: %w", a.ID, err)
	}
	return a, nil
}

// GetAccount implements acme.DB.
func (r *Request) GetAccount(ctx context.Context, id string) (*acme.Account, error) {
	return r.s.account(ctx, "id", id)
}

// GetAccountByKeyID implements acme.DB.
func (r *Request) GetAccountByKeyID(ctx context.Context, kid string) (*acme.Account, error) {
	return r.s.account(ctx, "key_id", kid)
}

// CreateAccount implements acme.DB. Of two requests with one key, wherever they arrive, both get the one account.
func (r *Request) CreateAccount(ctx context.Context, a *acme.Account) error {
	if int(r.s.rows.accounts.Load()) >= r.s.limits.Accounts {
		return ErrFull
	}
	kid, err := acme.KeyToID(a.Key)
	if err != nil {
		return err
	}
	key, err := json.Marshal(a.Key)
	if err != nil {
		return fmt.Errorf("account: %w", err)
	}
	if len(key) > maxKey {
		return acme.NewDetailedError(acme.ErrorBadPublicKeyType, "the account's key has %d bytes; expected at most %d", len(key), maxKey)
	}
	contact, err := contacts(a)
	if err != nil {
		return err
	}
	ends := r.s.now().Add(LifePending).UnixMilli()
	made := false
	err = r.s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) (err error) {
		made, err = changed(tx.Exec(`INSERT INTO ca_accounts (id, key_id, key, contact, status, location, provisioner, provisioner_name, ends)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (key_id) DO NOTHING`,
			id(), kid, key, contact, string(a.Status), a.LocationPrefix, a.ProvisionerID, a.ProvisionerName, ends))
		if err != nil {
			return err
		}
		return tx.QueryRow("SELECT id, status FROM ca_accounts WHERE key_id = $1", kid).Scan(&a.ID, &a.Status)
	})
	if err != nil {
		return fmt.Errorf("account: %w", err)
	}
	if made {
		r.s.rows.accounts.Add(1)
	}
	return nil
}

// UpdateAccount implements acme.DB. A deactivated account stays so (RFC 8555, 7.3.6).
func (r *Request) UpdateAccount(ctx context.Context, a *acme.Account) error {
	contact, err := contacts(a)
	if err != nil {
		return err
	}
	return r.s.db.WriteTogether(ctx, func(tx *sqldb.SharedTx) error {
		ok, err := changed(tx.Exec("UPDATE ca_accounts SET contact = $1, status = $2 WHERE id = $3 AND status = $4",
			contact, string(a.Status), a.ID, string(acme.StatusValid)))
		if err == nil && !ok {
			err = acme.NewDetailedError(acme.ErrorAccountDoesNotExistType, "the account is not active")
		}
		return err
	})
}

func contacts(a *acme.Account) (string, error) {
	text, err := json.Marshal(a.Contact)
	if err != nil {
		return "", fmt.Errorf("account: %w", err)
	}
	if len(text) > maxContact {
		return "", acme.NewDetailedError(acme.ErrorInvalidContactType, "the contacts have %d bytes; expected at most %d", len(text), maxContact)
	}
	return string(text), nil
}
