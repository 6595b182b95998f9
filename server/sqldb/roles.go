package sqldb

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// loginConnections is how many connections an ingest node's login may have: its journal's, its readers', and one more of each while a node
// that was killed is not yet given up by the server.
const loginConnections = 2 * (maxReaders + 4)

var loginName = regexp.MustCompile(`^` + IngestRole + `_[a-z0-9][a-z0-9_]{0,39}$`)

// SetLogin makes an ingest node's login, or gives the one that is there this password and lets no other stand. It may do what IngestRole may
// in this database and nothing else: it appends to the journal, and reads the views of ingest_view. name is IngestRole, "_" and up to 40
// small letters, digits and underscores. PostgreSQL gets a verifier of the password (SCRAM-SHA-256, RFC 7677) and never sees it. db must
// be opened by a role that may make roles (CREATEROLE).
func (d *DB) SetLogin(ctx context.Context, name, password string) error {
	if d.url == "" {
		return errors.New("SQLite has no logins; ingest nodes need PostgreSQL")
	}
	if !loginName.MatchString(name) {
		return fmt.Errorf("login %q: expected %s_ and up to 40 small letters, digits and underscores", name, IngestRole)
	}
	if len(password) < 16 || strings.ContainsFunc(password, func(r rune) bool { return r < '!' || r > '~' }) {
		return fmt.Errorf("login %s: expected a password of 16 printable ASCII characters or more, without spaces", name)
	}
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return err
	}
	verifier, err := scramVerifier(password, salt)
	if err != nil {
		return err
	}
	tx, err := d.writer.BeginTx(ctx, nil)
	if err != nil {
		return explain(d.path, err)
	}
	defer func() { _ = tx.Rollback() }()
	var there bool
	var database string
	if err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1), quote_ident(current_database())", name).Scan(&there, &database); err != nil {
		return explain(d.path, err)
	}
	verb := "CREATE"
	if there {
		verb = "ALTER"
	}
	// The statement's words are a name that was checked, numbers and base64.
	for _, s := range []string{
		fmt.Sprintf("%s ROLE %s LOGIN INHERIT CONNECTION LIMIT %d PASSWORD '%s'", verb, name, loginConnections, verifier),
		fmt.Sprintf("GRANT %s TO %s", IngestRole, name),
		fmt.Sprintf("GRANT %s TO CURRENT_USER", name), // whoever is to end its connections must be a member
		fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET search_path = ingest_view, public", name, database),
		fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s", database, IngestRole),
		fmt.Sprintf("REVOKE CONNECT, TEMPORARY ON DATABASE %s FROM PUBLIC", database),
	} {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return explain(d.path, fmt.Errorf("login %s: %w", name, err))
		}
	}
	return explain(d.path, tx.Commit())
}

// DropLogin removes an ingest node's login and ends its connections. One that is not there is no error.
func (d *DB) DropLogin(ctx context.Context, name string) error {
	if d.url == "" {
		return nil
	}
	if !loginName.MatchString(name) {
		return fmt.Errorf("login %q: expected %s_ and up to 40 small letters, digits and underscores", name, IngestRole)
	}
	if err := d.shutLogin(ctx, name); err != nil {
		return err
	}
	_, err := d.writer.ExecContext(ctx, "DROP ROLE IF EXISTS "+name)
	return explain(d.path, err)
}

// LoginFaults says, by login, what is wrong with logins that SetLogin made: one that was shut out or is gone, and one that somebody gave more than
// SetLogin did. What IngestRole itself and PUBLIC may do is not looked at.
func (d *DB) LoginFaults(ctx context.Context, names []string) (map[string]string, error) {
	if d.url == "" || len(names) == 0 {
		return nil, nil
	}
	rows, err := d.readers.QueryContext(ctx, `SELECT n.name, CASE
			WHEN r.oid IS NULL THEN 'it is not there'
			WHEN NOT r.rolcanlogin THEN 'it is shut out, since it kept transactions open again and again, or by hand'
			WHEN r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls THEN 'it has an attribute of an administrator'
			WHEN EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND m.roleid <> i.oid) THEN 'it is a member of another role'
			WHEN EXISTS (SELECT FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = r.oid)
				OR EXISTS (SELECT FROM pg_proc p, aclexplode(p.proacl) a WHERE a.grantee = r.oid) THEN 'something was granted to it by name'
			WHEN EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid) THEN 'it owns a table'
			ELSE '' END
		FROM unnest($1::text[]) n(name) LEFT JOIN pg_roles r ON r.rolname = n.name LEFT JOIN pg_roles i ON i.rolname = $2`, names, IngestRole)
	if err != nil {
		return nil, explain(d.path, err)
	}
	defer func() { _ = rows.Close() }()
	out := make(map[string]string)
	for rows.Next() {
		var name, fault string
		if err := rows.Scan(&name, &fault); err != nil {
			return nil, explain(d.path, err)
		}
		if fault != "" {
			out[name] = fault
		}
	}
	return out, explain(d.path, rows.Err())
}

// shutLogin lets nobody in by a login any more, and ends its connections.
func (d *DB) shutLogin(ctx context.Context, name string) error {
	if !loginName.MatchString(name) {
		return fmt.Errorf("login %.64q is no ingest node's", name)
	}
	const end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
	// Once before: a transaction of its own about itself (ALTER ROLE ... PASSWORD) would hold this one up.
	if _, err := d.writer.ExecContext(ctx, end, name); err != nil {
		return explain(d.path, err)
	}
	if _, err := d.writer.ExecContext(ctx, `DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '`+name+`') THEN ALTER ROLE `+name+` NOLOGIN; END IF; END $$`); err != nil {
		return explain(d.path, err)
	}
	_, err := d.writer.ExecContext(ctx, end, name)
	return explain(d.path, err)
}

// scramIterations are PostgreSQL's own (scram_iterations).
const scramIterations = 4096

// scramVerifier is what PostgreSQL keeps of a password: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey (RFC 5802, 3). The password is
// printable ASCII, which SASLprep leaves as it is.
func scramVerifier(password string, salt []byte) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, scramIterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(what string) []byte {
		m := hmac.New(sha256.New, salted)
		m.Write([]byte(what))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", scramIterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}
