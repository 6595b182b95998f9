package ca

import (
	"crypto/x509"
	"errors"

	"github.com/smallstep/certificates/db"
)

// noAuthDB is smallstep's db.AuthDB. Under ACME its authority asks it nothing: what was issued and what is revoked is the registry's, tokens
// and SSH are not served. Whatever would ask is refused, so that nothing is ever allowed because a table is empty.
type noAuthDB struct{}

var _ db.AuthDB = noAuthDB{}

var errNotServed = errors.New("not part of this server")

func (noAuthDB) IsRevoked(string) (bool, error)                   { return true, errNotServed }
func (noAuthDB) IsSSHRevoked(string) (bool, error)                { return true, errNotServed }
func (noAuthDB) Revoke(*db.RevokedCertificateInfo) error          { return errNotServed }
func (noAuthDB) RevokeSSH(*db.RevokedCertificateInfo) error       { return errNotServed }
func (noAuthDB) GetCertificate(string) (*x509.Certificate, error) { return nil, errNotServed }
func (noAuthDB) UseToken(string, string) (bool, error)            { return false, errNotServed }
func (noAuthDB) IsSSHHost(string) (bool, error)                   { return false, errNotServed }
func (noAuthDB) GetSSHHostPrincipals() ([]string, error)          { return nil, errNotServed }
func (noAuthDB) Shutdown() error                                  { return nil } // the database is the server's
