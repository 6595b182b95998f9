package server

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const (
	// passwordFile holds the database's password, readable by the server's user alone.
	passwordFile = "keys/database.password"
	// passwordCredential is the systemd credential (LoadCredential=) that takes its place.
	passwordCredential = "wardlink-database-password"
	// maxPassword bounds it.
	maxPassword = 1 << 10
)

// database is what sqldb opens for a directory: SQLite's file, or PostgreSQL's URL with its password. The result must go into no log.
func (c Config) database(dir string) (string, error) {
	if c.Database == "" {
		return databaseFile(dir), nil
	}
	u, err := databaseURL(c.Database)
	if err != nil {
		return "", fmt.Errorf("database: %w", err)
	}
	password, err := databasePassword(dir)
	if err != nil {
		return "", fmt.Errorf("database: %w", err)
	}
	if password != "" {
		u.User = url.UserPassword(u.User.Username(), password)
	}
	return u.String(), nil
}

// databaseURL reads a URL as it may stand in a file that everybody may read.
func databaseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || strings.Trim(u.Path, "/") == "" || u.User.Username() == "" {
		return nil, errors.New("expected postgres://USER@HOST/DATABASE") // not what was given: it may hold a password
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") {
		return nil, fmt.Errorf("its URL holds a password, which whoever sees the configuration or the list of processes could read; put it into DIR/%s (mode 0600) or the systemd credential %s", passwordFile, passwordCredential)
	}
	return u, nil
}

// databasePassword reads the password from systemd's credentials or from DIR; "" when there is none: a socket's peer may need none.
func databasePassword(dir string) (string, error) {
	places := []string{filepath.Join(dir, passwordFile)}
	if credentials := os.Getenv("CREDENTIALS_DIRECTORY"); credentials != "" {
		places = append([]string{filepath.Join(credentials, passwordCredential)}, places...)
	}
	for _, place := range places {
		text, err := readPassword(place)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		return text, err
	}
	return "", nil
}

func readPassword(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others than its owner; chmod 600 it", path)
	}
	if info.Size() > maxPassword {
		return "", fmt.Errorf("%s has %d bytes; expected a password on one line", path, info.Size())
	}
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}

// checkParts judges the keys of a server in several processes.
func (c Config) checkParts() error {
	if c.Database != "" {
		if _, err := databaseURL(c.Database); err != nil {
			return fmt.Errorf("database: %w", err)
		}
	}
	if c.Services != nil {
		if err := c.Services.Check(); err != nil {
			return err
		}
	}
	if c.Services.Node() != (len(c.Server) > 0) {
		return errors.New("server: the addresses of the server's gateways' port; expected with services: [ingest], and only there")
	}
	for key, addrs := range map[string][]string{"server": c.Server, "ca": c.CA} {
		if len(addrs) > 8 {
			return fmt.Errorf("%s: %d addresses; at most 8", key, len(addrs))
		}
		for _, addr := range addrs {
			if host, _, err := net.SplitHostPort(addr); err != nil || host == "" {
				return fmt.Errorf("%s: %q; expected host:port such as wardlink.hospital.example:8883", key, addr)
			}
		}
	}
	return nil
}

// run is what a process on this directory runs: what its command says, else what the configuration says, else all.
func (c Config) run(asked Services) (Services, error) {
	s := asked
	if s == nil {
		s = c.Services
	}
	if s == nil {
		s = AllServices()
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	if c.Services.Node() != s.Node() {
		if s.Node() {
			return nil, errors.New("services: ingest alone runs on an ingest node's directory; make one with 'wardlink-server node add'")
		}
		return nil, fmt.Errorf("services: %s on an ingest node's directory; it has no keys but a node's", s)
	}
	if s.main() && !s.Has(ServiceCA) && len(c.CA) == 0 {
		return nil, fmt.Errorf("services: %s: expected in 'ca:' the addresses of the processes with the service ca, such as [\"10.1.0.21:8883\", \"10.1.0.22:8883\"]", s)
	}
	if c.Database == "" && len(s) != len(AllServices()) {
		return nil, fmt.Errorf("services: %s: on SQLite all services run in one process; a server whose services run apart needs 'database: postgres://...' (see OPERATING.md, Several nodes)", s)
	}
	return s, nil
}
