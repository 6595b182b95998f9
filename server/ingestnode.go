package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/internal/sdnotify"
	"wardlink/internal/spiffe"
	"wardlink/server/ingest"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/node"
)

// The files of an ingest node's directory, beside its configuration and the public ones. It has no other key.
const (
	nodeKeyFile     = "keys/node.key"   // by which its server knows it
	nodeCertFile    = "node.crt"        // and the certificate
	nodeServiceFile = "keys/ingest.pem" // key and certificate of its gateways' port
)

// Node is an ingest node: one process that takes sessions in, journals what they bring in PostgreSQL, and passes everything else on to its
// server. It can open nothing and decide nothing: the registry is read, and every document comes signed.
type Node struct {
	dir     string
	cfg     Config
	log     *slog.Logger
	root    *x509.Certificate
	name    string
	client  *node.Client
	journal journal.Store
	view    *view
	ingest  *ingest.Server
	at      *handshakes

	gateways, health net.Listener // health: nil without an address
	closers          closers
}

// NewNode opens an ingest node's directory, its database and its listeners. The server that it belongs to may be away.
func NewNode(dir string, log *slog.Logger) (*Node, error) {
	n := &Node{dir: dir, log: log}
	for _, step := range []func() error{n.openKeys, n.openStores, n.openListeners} {
		if err := step(); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

func (n *Node) openKeys() (err error) {
	if n.cfg, err = LoadConfig(n.dir); err != nil {
		return err
	}
	if _, err := n.cfg.run(Services{ServiceIngest}); err != nil {
		return fmt.Errorf("config %s: %w", filepath.Join(n.dir, ConfigFile), err)
	}
	k, err := keys.OpenOf(n.dir)
	if err != nil {
		return err
	}
	if err := k.Belong(n.cfg.TrustDomain); err != nil {
		return err
	}
	n.root = k.Root
	key, err := readKey(filepath.Join(n.dir, nodeKeyFile))
	if err != nil {
		return err
	}
	n.client, err = node.NewClient(node.ClientConfig{
		TrustDomain: n.cfg.TrustDomain, Roots: poolOf(n.root), Servers: n.cfg.Server, Authorities: n.cfg.CA, Key: key, Certificate: filepath.Join(n.dir, nodeCertFile), Log: n.log,
	})
	if err != nil {
		return err
	}
	n.name = n.client.Name()
	return nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("node's key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("node's key %s: expected PEM", path)
	}
	defer clear(block.Bytes)
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := any.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("node's key %s: expected an ECDSA key in PKCS #8", path)
	}
	return key, nil
}

func (n *Node) openStores() (err error) {
	if n.journal, err = openSharedJournal(n.dir, n.cfg, n.log); err != nil {
		return err
	}
	n.closers = append(n.closers, n.journal.Close)
	if n.view, err = openView(n.dir, n.cfg); err != nil {
		return err
	}
	n.closers = append(n.closers, n.view.db.Close)
	n.at = newHandshakes(n.cfg.Limits.handshakes())
	n.ingest = ingest.New(ingest.Config{
		Journal: n.journal, Registry: n.view, Sessions: n.view.sessions(), TrustDomain: n.cfg.TrustDomain, Roots: poolOf(n.root), Log: n.log,
		Grace: ingest.Grace{For: time.Duration(n.cfg.ExpiredGrace), CA: n.client.CA}, Down: n.client.Documents,
		Limits: n.cfg.Limits.ingest(), Turns: n.at.cores,
	})
	return nil
}

func (n *Node) openListeners() (err error) {
	open := func(key, addr string) (net.Listener, error) {
		ln, err := listenAt(n.dir, key, addr)
		if err == nil {
			n.closers = append(n.closers, func() error { _ = ln.Close(); return nil })
		}
		return ln, err
	}
	if n.gateways, err = open("gateways", n.cfg.Gateways); err != nil || n.cfg.Health == "" {
		return err
	}
	n.health, err = open("health", n.cfg.Health)
	return err
}

// serviceCert is the certificate of the gateways' port, renewed by the server.
func (n *Node) serviceCert() *serviceCert {
	return &serviceCert{
		id: spiffe.ID{TrustDomain: n.cfg.TrustDomain, Kind: spiffe.Service, Name: "ingest"}, now: time.Now, file: filepath.Join(n.dir, nodeServiceFile),
		sign: func(key *ecdsa.PrivateKey) ([]*x509.Certificate, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return n.client.Certify(ctx, key)
		},
	}
}

// Run serves until ctx ends. Then the sessions are drained: what is journaled is answered.
func (n *Node) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, n.close()) }()
	behind, err := n.cfg.Balancers.prefixes()
	if err != nil {
		return err
	}
	n.log.Info("ingest node started", "trust_domain", n.cfg.TrustDomain, "node", n.name, "gateways", n.gateways.Addr().String(), "server", n.cfg.Server)
	if err := n.event(ctx, audit.ServerStarted); err != nil {
		n.log.Error("the start is not journaled; nothing is taken in until the journal can be written", "error", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return endpoint{ln: n.gateways, cert: n.serviceCert().get, root: n.root, ingest: n.ingest, http: n.client.Proxy(), mqtt: true,
			at: n.at, behind: behind, log: n.log}.serve(gctx)
	})
	g.Go(func() error { return n.ingest.Run(gctx) })
	g.Go(func() error { return n.client.Run(gctx, n.ingest) })
	g.Go(func() error { sdnotify.Run(gctx, sdnotify.Service{Alive: n.alive, Log: n.log}); return nil })
	if n.health != nil {
		g.Go(func() error { return n.serveHealth(gctx) })
	}
	err = g.Wait()
	n.log.Info("ingest node stops")
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	return errors.Join(err, n.event(stop, audit.ServerStopped))
}

func (n *Node) event(ctx context.Context, t audit.Type) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return journal.AppendEvent(ctx, n.journal, audit.Event{
		Type: t, Actor: audit.Actor{ID: n.id()}, Outcome: audit.Success, Detail: map[string]string{"version": build.Version, "services": ServiceIngest},
	})
}

func (n *Node) id() string {
	return spiffe.ID{TrustDomain: n.cfg.TrustDomain, Kind: spiffe.Node, Name: n.name}.String()
}

// ready is nil while a gateway that comes here is served: the journal takes what it brings, and the registry says who it is.
func (n *Node) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	if err := n.journal.Health(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if _, err := n.view.Revision(ctx); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

func (n *Node) alive(ctx context.Context) (string, error) {
	if err := n.journal.Alive(ctx); err != nil {
		return "", err
	}
	sessions := len(n.ingest.Sessions())
	if err := n.ready(ctx); err != nil {
		return fmt.Sprintf("%d gateways connected; not ready: %v", sessions, err), nil
	}
	return fmt.Sprintf("%d gateways connected; ready", sessions), nil
}

// serveHealth answers a balancer's checks: whether gateways are served here, and no more.
func (n *Node) serveHealth(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := n.ready(r.Context()); err != nil {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 4 << 10, ErrorLog: quietHTTP(n.log)}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(n.health); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("health listener: %w", err)
	}
	return nil
}

func (n *Node) close() error { return n.closers.close() }
