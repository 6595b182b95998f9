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

// loginFaults looks at what was granted by name, to the login or to IngestRole, in what PostgreSQL itself remembers of all roles (pg_shdepend has
// every kind of object, columns and large objects included), and at what the login may in the end, by whichever way: by PUBLIC, too. What belongs to
// an extension may be anybody's.
const loginFaults = `WITH allowed AS (
		SELECT 'pg_namespace'::regclass::oid AS class, oid AS object FROM pg_namespace WHERE nspname IN ('public', 'ingest_view')
		UNION ALL SELECT 'pg_class'::regclass, oid FROM pg_class WHERE relnamespace = 'ingest_view'::regnamespace
		UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname IN ('journal_append', 'journal_open', 'journal_try', 'bump_session')
		UNION ALL SELECT 'pg_database'::regclass, oid FROM pg_database -- what it may there is asked below
	), here AS (SELECT oid FROM pg_database WHERE datname = current_database()
	), schemas AS (SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
	), extended AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')
	SELECT n.name, CASE
		WHEN r.oid IS NULL THEN 'it is not there'
		WHEN NOT r.rolcanlogin THEN 'it is shut out, since it kept transactions open again and again, or by hand'
		WHEN r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
			OR i.rolsuper OR i.rolcreaterole OR i.rolcreatedb OR i.rolreplication OR i.rolbypassrls THEN 'it or its role has an attribute of an administrator'
		WHEN EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND m.roleid <> i.oid) THEN 'it is a member of another role'
		WHEN EXISTS (SELECT FROM pg_auth_members m WHERE m.member = i.oid) THEN 'its role is a member of another role'
		WHEN EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND m.admin_option) THEN 'it may give its role to others'
		ELSE coalesce(
			(SELECT (CASE s.deptype WHEN 'o' THEN 'it owns ' ELSE 'something was granted to it by name: ' END)
				|| CASE WHEN s.dbid IN (0, here.oid) THEN pg_describe_object(s.classid, s.objid, s.objsubid) ELSE 'in another database' END
				FROM pg_shdepend s, here WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid LIMIT 1),
			(SELECT 'its role was granted or owns ' || pg_describe_object(s.classid, s.objid, s.objsubid)
				FROM pg_shdepend s, here WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = i.oid AND s.dbid IN (0, here.oid)
				AND (s.deptype <> 'a' OR s.objsubid <> 0 OR (s.classid, s.objid) NOT IN (SELECT class, object FROM allowed)) LIMIT 1),
			(SELECT 'it may make temporary tables or schemas in the database' FROM here WHERE has_database_privilege(r.oid, here.oid, 'CREATE, TEMPORARY')),
			(SELECT 'it may create in schema ' || nspname FROM schemas s WHERE has_schema_privilege(r.oid, s.oid, 'CREATE') LIMIT 1),
			(SELECT 'it may use ' || c.oid::regclass::text FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace
				WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (c.relnamespace <> 'ingest_view'::regnamespace AND has_any_column_privilege(r.oid, c.oid, 'SELECT')
					OR has_any_column_privilege(r.oid, c.oid, 'INSERT, UPDATE, REFERENCES') OR has_table_privilege(r.oid, c.oid, 'DELETE, TRUNCATE, TRIGGER'))
				AND ('pg_class'::regclass, c.oid) NOT IN (SELECT classid, objid FROM extended) LIMIT 1),
			(SELECT 'it may use ' || c.oid::regclass::text FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace
				WHERE CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(r.oid, c.oid, 'USAGE, SELECT, UPDATE') ELSE false END LIMIT 1),
			(SELECT 'it may call ' || p.oid::regprocedure::text FROM pg_proc p JOIN schemas s ON s.oid = p.pronamespace
				WHERE p.prosecdef AND has_function_privilege(r.oid, p.oid, 'EXECUTE') AND ('pg_proc'::regclass, p.oid) NOT IN (SELECT class, object FROM allowed)
				AND ('pg_proc'::regclass, p.oid) NOT IN (SELECT classid, objid FROM extended) LIMIT 1),
			(SELECT 'everybody may use large object ' || l.oid FROM pg_largeobject_metadata l, aclexplode(l.lomacl) a WHERE a.grantee = 0 LIMIT 1),
			'') END
	FROM unnest($1::text[]) n(name) LEFT JOIN pg_roles r ON r.rolname = n.name LEFT JOIN pg_roles i ON i.rolname = $2`

// LoginFaults says, by login, what is wrong with logins that SetLogin made: one that was shut out or is gone, and one that may more than SetLogin
// and the migrations gave it, by its own name, by IngestRole's or by PUBLIC. It names the first that it finds.
func (d *DB) LoginFaults(ctx context.Context, names []string) (map[string]string, error) {
	if d.url == "" || len(names) == 0 {
		return nil, nil
	}
	rows, err := d.readers.QueryContext(ctx, loginFaults, names, IngestRole)
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
