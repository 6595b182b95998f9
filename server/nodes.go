package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/server/keys"
	"wardlink/server/node"
	"wardlink/server/sqldb"
)

// NodeOptions are what a new ingest node is told.
type NodeOptions struct {
	Dir      string   // of the server
	Out      string   // directory of the node, made here
	Name     string   // of the node, a SPIFFE name
	Hosts    []string // host names and addresses of its gateways' port, beside those of the server
	Gateways string   // listen address of its gateways' port
	Health   string   // listen address of a balancer's checks; "": none
	Server   []string // addresses of the server's gateways' port; none: those that kits name
	// Balancers are addresses or networks of the balancers before the node's gateways' port, which send PROXY headers; none: gateways come by themselves, or
	// have their balancer's address.
	Balancers []string
	Database  string // URL by which the node reaches the database, without user and password; "": the server's
}

// maxNodeName leaves room in the name of its login.
const maxNodeName = 30

// loginOf is a node's login in the database. Logins belong to the whole database server, which several hospitals may share.
func loginOf(trustDomain, name string) string {
	sum := sha256.Sum256([]byte(trustDomain))
	return sqldb.IngestRole + "_" + strings.ReplaceAll(name, "-", "_") + "_" + hex.EncodeToString(sum[:4])
}

// AddNode makes an ingest node: its row and its event in one transaction, then its login in the database, then its directory, which holds no
// other key than its own. It runs on the server, beside a running one or without. After a crash in between there is a node without a
// directory: 'node remove' ends it.
func AddNode(ctx context.Context, o NodeOptions) error {
	c, err := LoadConfig(o.Dir)
	if err != nil {
		return err
	}
	if c.Database == "" {
		return errors.New("node: this server's database is SQLite, which one process has; ingest nodes need a server made with 'wardlink-server init --database postgres://...'")
	}
	nc, login, err := o.config(c)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if entries, err := os.ReadDir(o.Out); err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
		return errors.Join(fmt.Errorf("node: %s is not empty; name a new directory", o.Out), err)
	}
	k, err := keys.Open(o.Dir)
	if err != nil {
		return err
	}
	made, err := makeNode(k, c, o)
	if err != nil {
		return err
	}
	password := rand.Text() + rand.Text()
	detail := certificateDetail(made.cert.leaf)
	detail["login"] = login
	spki := sha256.Sum256(made.cert.leaf.RawSubjectPublicKeyInfo)
	err = leave(ctx, o.Dir, audit.Event{Type: audit.NodeAdded, Target: o.Name, Detail: detail}, func(tx *sql.Tx) error {
		return node.Add(tx, node.Node{Name: o.Name, SPKI: spki, Hosts: o.Hosts, Login: login, Added: time.Now(),
			NotBefore: made.cert.leaf.NotBefore, NotAfter: made.cert.leaf.NotAfter})
	})
	if err == nil {
		err = besideDB(o.Dir, func(db *sqldb.DB) error { return db.SetLogin(ctx, login, password) })
	}
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return made.write(o, nc, k, password)
}

// config is the node's configuration, and its login.
func (o NodeOptions) config(c Config) (nc Config, login string, err error) {
	if err := spiffe.ValidName(o.Name); err != nil {
		return nc, "", err
	}
	u, err := databaseURL(c.Database)
	if err != nil {
		return nc, "", err
	}
	if len(o.Name) > maxNodeName {
		return nc, "", fmt.Errorf("name %s: %d bytes; at most %d", o.Name, len(o.Name), maxNodeName)
	}
	login = loginOf(c.TrustDomain, o.Name)
	if o.Database != "" {
		if u, err = url.Parse(o.Database); err != nil || u.User != nil {
			return nc, "", errors.New("database: expected postgres://HOST/DATABASE, without user and password")
		}
	}
	u.User = url.User(login)
	nc = DefaultConfig()
	nc.TrustDomain, nc.Names, nc.Services, nc.Database = c.TrustDomain, append(append([]string{}, o.Hosts...), c.Names...), Services{ServiceIngest}, u.String()
	nc.Gateways, nc.Health, nc.Server, nc.CA, nc.ExpiredGrace, nc.Log = o.Gateways, o.Health, o.Server, c.CA, c.ExpiredGrace, c.Log
	nc.Balancers = o.Balancers
	if len(nc.Server) == 0 {
		nc.Server = (&Server{cfg: c}).gatewayAddresses()
	}
	return nc, login, nc.Check()
}

// madeNode are a node's keys and certificates.
type madeNode struct {
	cert    issued // its own
	service issued // of its gateways' port: a node must be able to start while its server is away
}

func makeNode(k *keys.Keys, c Config, o NodeOptions) (m madeNode, err error) {
	now := time.Now()
	if m.cert, err = issue(k, spiffe.ID{TrustDomain: c.TrustDomain, Kind: spiffe.Node, Name: o.Name}, nil, node.Life, now); err != nil {
		return m, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return m, err
	}
	cert, err := ca.NewCertificate(k.Issuing, k.IssuingKey, node.ServiceTemplate(c.TrustDomain, &key.PublicKey, append(append([]string{}, o.Hosts...), c.Names...)), now)
	if err != nil {
		return m, err
	}
	text, err := pemKey(key)
	m.service = issued{leaf: cert, chain: pemChain([]*x509.Certificate{cert, k.Issuing}), key: text}
	return m, err
}

// write makes the node's directory. The configuration comes last: without it there is no node to run.
func (m madeNode) write(o NodeOptions, nc Config, k *keys.Keys, password string) error {
	root := pemChain([]*x509.Certificate{k.Root})
	for _, f := range []struct {
		name string
		data []byte
		perm os.FileMode
	}{
		{nodeKeyFile, m.cert.key, 0o600},
		{nodeServiceFile, append(append([]byte{}, m.service.chain...), m.service.key...), 0o600},
		{passwordFile, []byte(password + "\n"), 0o600},
		{nodeCertFile, m.cert.chain, 0o644},
		{"public/root.crt", root, 0o644},
		{keys.LogPublicFile, []byte(k.LogVerifier + "\n"), 0o644},
		{ConfigFile, nodeConfigText(nc), 0o644},
	} {
		path := filepath.Join(o.Out, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("node: %w", err)
		}
		if err := durable.WriteFile(path, f.data, f.perm); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
	return nil
}

func nodeConfigText(c Config) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# wardlink-server, an ingest node. Unknown keys are errors. The node reads this file at its start.\n\n")
	fmt.Fprintf(&b, "services: [%s]\ntrust_domain: %s\nnames:\n", ServiceIngest, c.TrustDomain)
	for _, n := range c.Names {
		fmt.Fprintf(&b, "  - %q\n", n)
	}
	fmt.Fprintf(&b, "\n# The server that this node belongs to: the gateways' port of it.\nserver:\n")
	for _, a := range c.Server {
		fmt.Fprintf(&b, "  - %q\n", a)
	}
	if len(c.CA) > 0 {
		fmt.Fprintf(&b, "\n# The processes with the service ca: their gateways' ports.\nca:\n")
		for _, a := range c.CA {
			fmt.Fprintf(&b, "  - %q\n", a)
		}
	}
	fmt.Fprintf(&b, "\n# The journal and what is looked at of the registry. The password of this login is in %s.\ndatabase: %q\n", passwordFile, c.Database)
	fmt.Fprintf(&b, "\n# Listen addresses. Health is plain HTTP, GET /readyz, for a balancer's checks; keep it off the network that gateways are in.\ngateways: %q\n", c.Gateways)
	if c.Health != "" {
		fmt.Fprintf(&b, "health: %q\n", c.Health)
	} else {
		fmt.Fprintf(&b, "# health: 127.0.0.1:8884\n")
	}
	fmt.Fprintf(&b, "\n# Balancers that say by the PROXY protocol where a connection comes from (HAProxy: send-proxy-v2). From there none is taken without it.\n")
	if len(c.Balancers) > 0 {
		fmt.Fprintf(&b, "balancers: [\"%s\"]\n", strings.Join(c.Balancers, `", "`))
	} else {
		fmt.Fprintf(&b, "# balancers: [10.1.0.5]\n")
	}
	fmt.Fprintf(&b, "\n# As the server has it: while the CA cannot issue, gateways are admitted so long after their certificates' end.\nexpired_grace: %s\n\n# text or json\nlog: %s\n", c.ExpiredGrace, c.Log)
	return []byte(b.String())
}

// RemoveNode ends a node: from the commit on its certificate counts for nothing; then its login is dropped and its connections to the
// database are ended. It runs on the server, beside a running one or without.
func RemoveNode(ctx context.Context, dir, name string) error {
	var gone node.Node
	err := leave(ctx, dir, audit.Event{Type: audit.NodeRemoved, Target: name}, func(tx *sql.Tx) (err error) {
		gone, err = node.Remove(tx, name, time.Now())
		return err
	})
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if err := besideDB(dir, func(db *sqldb.DB) error { return db.DropLogin(ctx, gone.Login) }); err != nil {
		return fmt.Errorf("node %s is removed, but its login %s is still there, and may append to the journal; drop it: %w", name, gone.Login, err)
	}
	return nil
}

// besideDB opens the database of dir beside the server for f.
func besideDB(dir string, f func(*sqldb.DB) error) error {
	db, err := openBeside(dir)
	if err != nil {
		return err
	}
	return errors.Join(f(db), db.Close())
}

// Nodes gives the nodes of a server's directory.
func Nodes(ctx context.Context, dir string) (out []node.Node, err error) {
	db, err := openBeside(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return node.List(ctx, db)
}
