package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/server/keys"
)

// AddCA makes the directory of a further process with the service ca: the CA's two keys, what is public, the TPM makers' certificates, the database's
// password, and no other key. It runs where the CA's keys are. Its event is in the database before the directory exists. Such a process has no row and no
// login of its own: it is the CA, and enters gateways' keys as every other one does.
func AddCA(ctx context.Context, o NodeOptions) error {
	c, err := LoadConfig(o.Dir)
	if err != nil {
		return err
	}
	if c.Database == "" {
		return errors.New("node: this server's database is SQLite, which one process has; several processes with the service ca need a server made with 'wardlink-server init --database postgres://...'")
	}
	if len(o.Hosts)+len(o.Server)+len(o.Balancers) > 0 || o.Health != "" {
		return errors.New("node: host, server, balancer and health are an ingest node's; nodes come to a process with the service ca by the names of the server")
	}
	nc := DefaultConfig()
	nc.TrustDomain, nc.Names, nc.Services, nc.Database, nc.Gateways, nc.Log, nc.Limits = c.TrustDomain, c.Names, Services{ServiceCA}, c.Database, o.Gateways, c.Log, c.Limits
	if o.Database != "" {
		u, err := databaseURL(c.Database)
		if err != nil {
			return err
		}
		other, err := url.Parse(o.Database)
		if err != nil || other.User != nil {
			return errors.New("node: database: expected postgres://HOST/DATABASE, without user and password")
		}
		other.User = u.User
		nc.Database = other.String()
	}
	if err := nc.Check(); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if entries, err := os.ReadDir(o.Out); err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
		return errors.Join(fmt.Errorf("node: %s is not empty; name a new directory", o.Out), err)
	}
	files, err := caFiles(o.Dir)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	detail := map[string]string{"services": ServiceCA}
	if err := leave(ctx, o.Dir, audit.Event{Type: audit.NodeAdded, Target: o.Name, Detail: detail}, nil); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	// The configuration comes last: without it there is nothing to run.
	for _, name := range append(slices.Sorted(maps.Keys(files)), ConfigFile) {
		data, perm := files[name], os.FileMode(0o644)
		if name == ConfigFile {
			data = caConfigText(nc)
		}
		if strings.HasPrefix(name, "keys/") {
			perm = 0o600
		}
		path := filepath.Join(o.Out, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("node: %w", err)
		}
		if err := durable.WriteFile(path, data, perm); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
	return nil
}

// caFiles are what a process with the service ca reads in a directory, without its configuration.
func caFiles(dir string) (map[string][]byte, error) {
	files, err := keys.CAFiles(dir)
	if err != nil {
		return nil, err
	}
	trust, err := filepath.Glob(filepath.Join(ekTrustDir(dir), "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range trust {
		if files[filepath.Join("ek-trust", filepath.Base(path))], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	password, err := databasePassword(dir)
	if password != "" {
		files[passwordFile] = []byte(password + "\n")
	}
	return files, err
}

func caConfigText(c Config) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# wardlink-server, a process that is the CA and nothing else. Unknown keys are errors. It reads this file at its start.\n\n")
	fmt.Fprintf(&b, "services: [%s]\ntrust_domain: %s\n\n# Host names and addresses of the server, as they stand in its server.yaml.\nnames:\n", ServiceCA, c.TrustDomain)
	for _, n := range c.Names {
		fmt.Fprintf(&b, "  - %q\n", n)
	}
	fmt.Fprintf(&b, "\n# Listen address for the nodes and for the process with the service api, whose server.yaml name it in 'ca'.\ngateways: %q\n", c.Gateways)
	fmt.Fprintf(&b, "\n# PostgreSQL; its password is in %s.\ndatabase: %q\n\n# text or json\nlog: %s\n", passwordFile, c.Database, c.Log)
	return []byte(b.String())
}
