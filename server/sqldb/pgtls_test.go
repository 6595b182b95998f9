package sqldb_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wardlink/internal/certtest"
	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/sqldb"
)

// TestPostgresOverTLS: on a network the server's certificate must be of the hospital's CA, for the name that was asked for and in time; a server
// that shows another, or none, gets no password and no row.
func TestPostgresOverTLS(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ln.Close()
	s := pgtest.Own(t, pgserver.Config{
		Settings: map[string]string{"listen_addresses": "127.0.0.1", "port": port},
		HBA:      []string{"local all all trust", "host all all 127.0.0.1/32 scram-sha-256"},
	})
	for _, q := range []string{"CREATE ROLE cell LOGIN CREATEROLE PASSWORD 'a password of the cell'", "CREATE DATABASE cell OWNER cell TEMPLATE template0 ENCODING 'UTF8'"} {
		if err := s.Exec(t.Context(), "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	hospital, other := certtest.New(t, "hospital", -time.Hour, time.Hour), certtest.New(t, "other", -time.Hour, time.Hour)
	roots := map[*certtest.Authority]string{}
	for _, a := range []*certtest.Authority{hospital, other} {
		roots[a] = filepath.Join(t.TempDir(), "root.pem")
		if err := os.WriteFile(roots[a], a.PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(mode string, root *certtest.Authority) string {
		q := url.Values{"sslmode": {mode}}
		if root != nil {
			q.Set("sslrootcert", roots[root])
		}
		u := url.URL{Scheme: "postgres", User: url.UserPassword("cell", "a password of the cell"), Host: "127.0.0.1:" + port, Path: "/cell", RawQuery: q.Encode()}
		return u.String()
	}
	// show has the server show a certificate from its next start on.
	show := func(c tls.Certificate) {
		t.Helper()
		data := filepath.Join(s.Dir(), "data")
		info, err := os.Stat(data)
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		cert, key := hospital.Files(c)
		for name, text := range map[string][]byte{"server.crt": cert, "server.key": key} {
			path := filepath.Join(data, name)
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Halt(); err != nil {
			t.Fatal(err)
		}
		if err := s.Set(map[string]string{"ssl": "on"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, url string) {
		t.Helper()
		if db, err := sqldb.OpenBeside(url, numbers); err == nil {
			_ = db.Close()
			t.Errorf("%s: it is let through", what)
		} else if strings.Contains(err.Error(), "a password") {
			t.Errorf("%s: the error has the password: %v", what, err)
		}
	}
	mine := func() *x509.Certificate {
		return &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	}
	if err := sqldb.Create(at("disable", nil), numbers); err != nil { // on this machine, and because its URL says so
		t.Fatal(err)
	}
	refused("a server without TLS", at("verify-full", hospital))

	show(hospital.Issue(mine(), -time.Hour, time.Hour))
	db, err := sqldb.Open(at("verify-full", hospital), numbers)
	if err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), db, "x"); err != nil || count(t, db) != 1 {
		t.Errorf("by TLS: %v", err)
	}
	var plain int
	if err := db.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'cell' AND NOT ssl").Scan(&plain); err != nil || plain != 0 {
		t.Errorf("%d connections are not encrypted, %v", plain, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	refused("a CA that is not trusted", at("verify-full", other))
	foreign := mine()
	foreign.IPAddresses, foreign.DNSNames = nil, []string{"db.example"}
	show(hospital.Issue(foreign, -time.Hour, time.Hour))
	refused("another server's certificate", at("verify-full", hospital))
	show(hospital.Issue(mine(), -2*time.Hour, -time.Hour))
	refused("a certificate that has ended", at("verify-full", hospital))
}

// TestBeyondThisMachineIsVerified: a URL that says nothing of TLS gets the strictest, without a way back to plain text.
func TestBeyondThisMachineIsVerified(t *testing.T) {
	c, err := sqldb.NativeConfig("postgres://u@db.example/w", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.TLSConfig == nil || c.TLSConfig.InsecureSkipVerify || c.TLSConfig.ServerName != "db.example" {
		t.Errorf("%+v", c.TLSConfig)
	}
	for _, f := range c.Fallbacks {
		if f.TLSConfig == nil {
			t.Errorf("falls back to plain text: %+v", f)
		}
	}
}
