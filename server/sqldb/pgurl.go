package sqldb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// IsPostgres reports whether path names a PostgreSQL database (postgres://...) and not SQLite's file.
func IsPostgres(path string) bool {
	return strings.HasPrefix(path, "postgres://") || strings.HasPrefix(path, "postgresql://")
}

// Display is a database as errors and logs name it: a file's path, or a URL with neither password nor parameters.
func Display(path string) string {
	if !IsPostgres(path) {
		return path
	}
	u, err := url.Parse(path)
	if err != nil {
		return "postgres://(its URL cannot be read)"
	}
	user := ""
	if name := u.User.Username(); name != "" {
		user = url.User(name).String() + "@"
	}
	host, socket := u.Host, ""
	if list := u.Query().Get("host"); strings.HasPrefix(list, "/") {
		socket = "?host=" + list
	} else if list != "" {
		host = list
	}
	return "postgres://" + user + host + u.EscapedPath() + socket
}

const (
	// connectTime bounds the making of a connection, TLS and login included.
	connectTime = 5 * time.Second
	// statementTime bounds a statement of the running server; a change of schema and Check have no bound.
	statementTime = 5 * time.Minute
	// idleTime bounds how long a write may hold its transaction, and so everybody's lock, without saying anything to the database.
	idleTime = time.Minute
	// deadTime bounds how long a connection whose other end is silent counts as alive, in both directions.
	deadTime = 20 * time.Second
)

// postgresConfig reads a URL. What it leaves open is safe: a host beyond this machine must show a certificate for its name
// (sslmode=verify-full). The modes that fall back to plain text in silence are refused there.
func postgresConfig(path string) (*pgx.ConnConfig, error) {
	u, err := url.Parse(path)
	if err != nil {
		return nil, errors.New("its URL cannot be read; expected postgres://user@host:5432/database?sslmode=verify-full, with the special characters of a password percent-encoded")
	}
	q := u.Query()
	mode := q.Get("sslmode")
	if mode == "" {
		q.Set("sslmode", "disable")
		if beyond(u) {
			q.Set("sslmode", "verify-full")
		}
	} else if beyond(u) && slices.Contains([]string{"allow", "prefer"}, mode) {
		return nil, fmt.Errorf("sslmode=%s falls back to plain text in silence, and the database is on another machine; use verify-full (with sslrootcert=FILE for the hospital's own CA)", mode)
	}
	if q.Get("connect_timeout") == "" {
		q.Set("connect_timeout", fmt.Sprint(int(connectTime/time.Second)))
	}
	u.RawQuery = q.Encode()
	c, err := pgx.ParseConfig(u.String())
	if err != nil {
		// The driver's error quotes the URL, which may hold a password.
		var parse *pgconn.ParseConfigError
		if errors.As(err, &parse) && parse.Unwrap() != nil && errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("a file that its URL names: %w", os.ErrNotExist)
		}
		return nil, errors.New("its URL cannot be used; expected postgres://user@host:5432/database?sslmode=verify-full&sslrootcert=FILE; see OPERATING.md, PostgreSQL")
	}
	if c.Database == "" || strings.Trim(u.Path, "/") == "" {
		return nil, errors.New("its URL names no database; expected postgres://user@host:5432/database")
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadTime / 4, Interval: deadTime / 4, Count: 3}, Control: giveUp}
	c.DialFunc = dialer.DialContext
	return c, nil
}

// giveUp makes the kernel end a connection whose other end does not take what is sent: keepalive alone does not begin while data waits.
func giveUp(network, _ string, raw syscall.RawConn) (err error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadTime/time.Millisecond))
	}), err)
}

// beyond reports whether the URL's database is reached over a network. A list of hosts is, unless all are of this machine.
func beyond(u *url.URL) bool {
	hosts := strings.Split(u.Host, ",")
	if list := u.Query().Get("host"); list != "" {
		hosts = strings.Split(list, ",")
	}
	return slices.ContainsFunc(hosts, func(host string) bool {
		if strings.HasPrefix(host, "/") || host == "" && u.Query().Get("host") == "" && os.Getenv("PGHOST") == "" {
			return false
		}
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		return host != "localhost" && (ip == nil || !ip.IsLoopback())
	})
}

// postgresFloor is the oldest PostgreSQL that the tests run on.
const postgresFloor = 15

// settings are those without which a commit is not durable, or without which order and comparison are others than SQLite's. They are
// looked at on each new connection: they may be of a login, of a database, or of a server that was started again meanwhile.
func suitable(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var fsync, pages, commit, encoding string
	var standby bool
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('fsync'), current_setting('full_page_writes'),
		current_setting('synchronous_commit'), current_setting('server_encoding'), pg_is_in_recovery()`).Scan(&version, &fsync, &pages, &commit, &encoding, &standby); err != nil {
		return err
	}
	why := ""
	switch {
	case version/10000 < postgresFloor:
		why = fmt.Sprintf("PostgreSQL %d is too old, expected %d or later; upgrade the database server", version/10000, postgresFloor)
	case encoding != "UTF8":
		why = fmt.Sprintf("the database's encoding is %s, expected UTF8; make it with CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'", encoding)
	case standby:
		why = "it is a standby, which takes no writes; point the URL at the primary, or promote this one"
	case fsync != "on":
		why = "fsync is off: a power cut would lose what gateways were told is kept; set fsync = on in postgresql.conf and restart PostgreSQL"
	case pages != "on":
		why = "full_page_writes is off: a power cut could tear pages; set full_page_writes = on in postgresql.conf and reload"
	case commit == "off":
		why = "synchronous_commit is off: a crash would lose what gateways were told is kept; set synchronous_commit = on in postgresql.conf and reload, and for this role and database (ALTER ROLE ... RESET synchronous_commit, ALTER DATABASE ... RESET synchronous_commit)"
	}
	if why != "" {
		return &unsuitable{why}
	}
	return nil
}

// unsuitable says why a server is not used although it answers.
type unsuitable struct{ why string }

func (u *unsuitable) Error() string { return u.why }
