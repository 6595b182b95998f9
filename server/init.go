package server

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/server/alerts"
	"wardlink/server/api"
	"wardlink/server/api/client"
	"wardlink/server/ca"
	"wardlink/server/ca/acmedb"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/node"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
)

// The places of a server's directory.
func databaseFile(dir string) string { return filepath.Join(dir, "wardlink.db") }
func journalDir(dir string) string   { return filepath.Join(dir, "journal") }
func logDir(dir string) string       { return filepath.Join(dir, "log") }
func clockFile(dir string) string    { return filepath.Join(dir, "clock") }
func ekTrustDir(dir string) string   { return filepath.Join(dir, "ek-trust") }

// OperatorFile is the operator's file that Init makes.
func OperatorFile(dir string) string { return filepath.Join(dir, "operator", "operator.json") }

// InitOptions are what a new server is told.
type InitOptions struct {
	Dir        string
	Config     Config
	Passphrase string   // of the recovery file; at least 16 characters
	Operator   string   // name of the first operator
	Password   string   // of the database's login, where Config names PostgreSQL; "": it needs none
	EKTrust    []string // PEM or DER files of TPM vendors' roots and intermediates, copied into DIR/ek-trust
}

// Init makes a new server's directory: keys, recovery file, configuration, empty stores and the first operator's file. It refuses a
// directory that holds anything; after an error in the middle the directory is to be removed and made anew.
func Init(ctx context.Context, o InitOptions) error {
	if err := o.Config.Check(); err != nil {
		return err
	}
	if _, err := o.Config.run(nil); err != nil {
		return err
	}
	if err := spiffe.ValidName(o.Operator); err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	trust, err := readTrust(o.EKTrust) // before anything is made: what is wrong with a file is mended and init run again
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	entries, err := os.ReadDir(o.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("init: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("init: %s is not empty; name a new directory, or remove this one if nothing in it is needed", o.Dir)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	now := time.Now()
	if err := keys.Create(o.Dir, o.Config.TrustDomain, o.Passphrase, now); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if err := writeTrust(ekTrustDir(o.Dir), trust); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if o.Password != "" {
		if err := durable.WriteFile(filepath.Join(o.Dir, passwordFile), []byte(o.Password+"\n"), 0o600); err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	if err := createStores(o.Dir, o.Config); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(o.Dir, ConfigFile), configText(o.Config), 0o644); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if _, err = NewOperator(ctx, o.Dir, o.Operator, registry.Admin); err == nil && o.Config.Services.main() && !o.Config.Services.Has(ServiceCA) {
		_, err = MakeAPIIdentity(ctx, o.Dir)
	}
	return err
}

func createStores(dir string, c Config) error {
	k, err := keys.Open(dir)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(k.LogSigner)
	if err != nil {
		return fmt.Errorf("log key: %w", err)
	}
	path, err := c.database(dir)
	if err != nil {
		return err
	}
	if err := sqldb.Create(path, c.migrations()...); err != nil {
		return err
	}
	if c.Database == "" {
		if err := journal.Create(journalConfig(dir)); err != nil {
			return err
		}
	}
	return translog.Create(translog.Config{Dir: logDir(dir), Origin: signer.Name(), Signer: signer})
}

func migrations() []sqldb.Migration {
	var all []sqldb.Migration
	for _, m := range [][]sqldb.Migration{sqldb.OutboxMigrations(), registry.Migrations(), records.Migrations(), api.Migrations(), alerts.Migrations(), restoreMigrations(), node.Migrations()} {
		all = append(all, m...)
	}
	return append(all, acmedb.Migrations()...)
}

// readTrust reads certificates of TPM vendors, by the name of their file.
func readTrust(files []string) (map[string][]byte, error) {
	trust := map[string][]byte{}
	for _, f := range files {
		if _, err := ca.ReadTrustFile(f); err != nil {
			return nil, err
		}
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("ek-trust: %w", err)
		}
		if _, twice := trust[filepath.Base(f)]; twice {
			return nil, fmt.Errorf("ek-trust: two files are called %s; rename one", filepath.Base(f))
		}
		trust[filepath.Base(f)] = data
	}
	return trust, nil
}

func writeTrust(dir string, trust map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range trust {
		if err := durable.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// configText is the configuration with a word for each key.
func configText(c Config) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# wardlink-server. Unknown keys are errors. The server reads this file at its start.\n\n")
	fmt.Fprintf(&b, "# In every certificate; cannot be changed.\ntrust_domain: %s\n\n", c.TrustDomain)
	fmt.Fprintf(&b, "# Host names and addresses by which gateways and the hospital reach this server.\nnames:\n")
	for _, n := range c.Names {
		fmt.Fprintf(&b, "  - %q\n", n)
	}
	fmt.Fprintf(&b, "\n# Listen addresses. Nothing else is opened.\ngateways: %q\nhospital: %q\noperators: %q\n", c.Gateways, c.Hospital, c.Operators)
	if c.Database != "" {
		fmt.Fprintf(&b, "\n# PostgreSQL; its password is in %s.\ndatabase: %q\n", passwordFile, c.Database)
		if c.Services != nil {
			fmt.Fprintf(&b, "\n# What 'wardlink-server run' runs here; sessions are then taken by ingest nodes ('wardlink-server node add').\nservices: [%s]\n", strings.Join(c.Services, ", "))
		}
		if len(c.CA) > 0 {
			fmt.Fprintf(&b, "\n# The gateways' ports of the processes with the service ca, for 'api' and for nodes.\nca:\n")
			for _, a := range c.CA {
				fmt.Fprintf(&b, "  - %q\n", a)
			}
		}
	}
	fmt.Fprintf(&b, "\n# The hospital's own certificate for FHIR; without it one of our CA is used.\n# hospital_tls: {cert: /path/fhir.crt, key: /path/fhir.key}\n")
	fmt.Fprintf(&b, "\n# Where alerts go; docs/ALERTS.md has all keys.\n# alerts:\n#   targets:\n#     - {name: pager, webhook: \"https://pager.example/wardlink\", secret_file: /etc/wardlink/pager.secret, minimum: critical}\n#     - {name: siem, syslog: \"tls://siem.example:6514\"}\n")
	fmt.Fprintf(&b, "\n# While the CA cannot issue, gateways are admitted so long after their certificates' end; 0 is never, 72h the most.\nexpired_grace: %s\n", c.ExpiredGrace)
	fmt.Fprintf(&b, "\n# Limits of the gateways' port; docs/OPERATING.md has all keys. The defaults let 10,000 gateways behind one address come back at once.\n")
	if c.Limits == (Limits{}) {
		fmt.Fprintf(&b, "# limits: {sessions: 20000}\n")
	} else {
		fmt.Fprintf(&b, "limits:\n")
		for _, r := range c.Limits.ranges() {
			if r.value != 0 {
				fmt.Fprintf(&b, "  %s: %d\n", r.name, r.value)
			}
		}
	}
	b.WriteString(retentionText(c.Retention))
	fmt.Fprintf(&b, "\n# text or json\nlog: %s\n", c.Log)
	return []byte(b.String())
}

// announce leaves the event of an operator's certificate in the outbox, and operator and certificate in the registry.
func announce(ctx context.Context, dir, name string, role registry.Role, cert *x509.Certificate) error {
	detail := certificateDetail(cert)
	detail["by"] = "wardlink-server operator"
	if role != "" {
		detail["role"] = string(role)
	}
	return leave(ctx, dir, audit.Event{Type: audit.CertIssued, Target: cert.URIs[0].String(), Detail: detail}, func(tx *sql.Tx) error {
		now := time.Now()
		if _, err := registry.AddIdentity(tx, now, "wardlink-server operator", registry.Identity{Kind: spiffe.Operator, Name: name, Owner: name, Role: role}); err != nil {
			return err
		}
		return registry.AddCertificate(tx, now, spiffe.Operator, name, "", registry.IdentityCertificate{
			Serial: ca.Serial(cert), SPKI: sha256.Sum256(cert.RawSubjectPublicKeyInfo), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter})
	})
}

// NewOperator makes an operator's file, with a new key, in the server's directory. It needs the CA's key, so it runs on the server,
// beside a running one or without. The certificate's event is in the database before the file exists; the server moves it to the log.
//
// role "" leaves one that is there with its role, and gives a new one that of registry.Operate. One that is suspended or revoked gets no file.
func NewOperator(ctx context.Context, dir, name string, role registry.Role) (path string, err error) {
	if err := spiffe.ValidName(name); err != nil {
		return "", fmt.Errorf("operator: %w", err)
	}
	if role != "" {
		if err := registry.CheckRole(role); err != nil {
			return "", fmt.Errorf("operator: %w", err)
		}
	}
	c, err := LoadConfig(dir)
	if err != nil {
		return "", err
	}
	k, err := keys.Open(dir)
	if err != nil {
		return "", err
	}
	cert, err := issue(k, spiffe.ID{TrustDomain: c.TrustDomain, Kind: spiffe.Operator, Name: name}, nil, api.OperatorLife, time.Now())
	if err != nil {
		return "", err
	}
	host := c.Names[0]
	_, port, err := net.SplitHostPort(c.Operators)
	if err != nil {
		return "", err
	}
	data, err := json.MarshalIndent(client.Credentials{
		Server: "https://" + net.JoinHostPort(host, port), TrustDomain: c.TrustDomain,
		Roots:       string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Root.Raw})),
		Certificate: string(cert.chain), Key: string(cert.key),
	}, "", "  ")
	if err != nil {
		return "", err
	}
	if err := announce(ctx, dir, name, role, cert.leaf); err != nil {
		return "", fmt.Errorf("the operator's certificate is withheld, its event cannot be kept: %w", err)
	}
	path = OperatorFile(dir)
	if name != "operator" {
		if _, err := os.Stat(path); err == nil {
			path = filepath.Join(filepath.Dir(path), name+".json")
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, durable.WriteFile(path, append(data, '\n'), 0o600)
}
