package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"wardlink/internal/balancer"
	"wardlink/internal/child"
	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/keys"
)

// cell is a hospital on PostgreSQL with ingest nodes behind a balancer.
type cell struct {
	*hospital
	pg       *pgserver.Server
	nodes    []*ingestNode
	balancer *child.Process
	front    string // the balancer's address
}

type ingestNode struct {
	name, dir, gateways, health string
	proc                        *child.Process
}

// newCell makes and runs a server, its nodes and the balancer before them. Passwords count: only the server's owner is let in without.
func newCell(t *testing.T, nodes int) *cell {
	t.Helper()
	c := &cell{hospital: placeHospital(t), front: freeAddr(t)}
	c.pg = pgtest.Own(t, pgserver.Config{HBA: []string{"local all postgres trust", "local all wardlink trust", "local all all scram-sha-256"}})
	for _, q := range []string{"CREATE ROLE wardlink LOGIN CREATEROLE", "CREATE DATABASE wardlink OWNER wardlink TEMPLATE template0"} {
		if err := c.pg.Exec(t.Context(), "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	c.must("wardlink-server", "init", "--dir", c.server(), "--trust-domain", "ward.example", "--name", "localhost", "--name", "127.0.0.1", "--passphrase-file", c.passphrase(),
		"--gateways", c.gateways, "--hospital", c.hospital.hospital, "--operators", c.operators,
		"--database", c.pg.URL("wardlink", "wardlink"), "--services", "ca,records,log,api")
	c.run()
	var behind []balancer.Node
	for i := range nodes {
		n := &ingestNode{name: fmt.Sprintf("node-%d", i+1), gateways: freeAddr(t), health: freeAddr(t)}
		n.dir = filepath.Join(c.dir, n.name)
		c.must("wardlink-server", "node", "add", "--dir", c.server(), "--name", n.name, "--out", n.dir, "--gateways", n.gateways, "--health", n.health, "--balancer", balancer.Address)
		c.nodes = append(c.nodes, n)
		behind = append(behind, balancer.Node{Name: n.name, Gateways: n.gateways, Health: n.health})
		c.runNode(n)
	}
	var err error
	if c.balancer, err = balancer.Start(c.dir, c.front, behind); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.balancer.Stop)
	c.must("wardlink", "--operator", c.operator(), "provision", "kit", "--server", c.front, "--out", c.kit())
	return c
}

func (c *cell) runNode(n *ingestNode) {
	c.t.Helper()
	var err error
	if n.proc, err = child.Start(n.name, filepath.Join(c.dir, n.name+".log"), program("wardlink-server"), "run", "--dir", n.dir); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(n.proc.Stop)
}

// sessions are the live ones that the server knows of, by its own word and its nodes'.
func (c *cell) sessions() int {
	c.t.Helper()
	var s struct{ Sessions int }
	c.ask(&s, "status")
	return s.Sessions
}

// cutWithin is how long a revoked gateway's session may live on, at whatever node, from the start of the operator's command; on a machine that is so
// busy that a command which only looks takes a tenth of it, twenty times as long as that.
const cutWithin = 2 * time.Second

// TestNodesBehindABalancer: gateways enrol and deliver through any of the nodes; one that dies costs nothing that was acknowledged; an operator's
// revocation cuts a session at each of the nodes within two seconds.
func TestNodesBehindABalancer(t *testing.T) {
	t.Parallel()
	c := newCell(t, 2)
	b := c.newBox("box", c.kit())
	b.deliverAs("icu-7")
	c.await("the node's word of the session", func(context.Context) (bool, error) { return c.sessions() == 1, nil })
	for i := range 3 {
		victim := c.nodes[i%len(c.nodes)]
		victim.proc.Kill()
		if ack := b.send(fmt.Sprintf("K%d", i)); !strings.Contains(ack, "MSA|CA|") {
			t.Fatalf("acknowledgement %q", ack)
		}
		b.awaitIdle()
		c.runNode(victim)
	}
	// Each at a node of its own, since the other one is dead.
	gateways := []struct {
		id string
		*box
	}{{"icu-7", b}, {"icu-8", c.newBox("other", c.kit())}}
	gateways[1].deliverAs("icu-8")
	for i, g := range gateways {
		other := c.nodes[1-i]
		other.proc.Kill()
		g.send("A1")
		g.awaitIdle()
		looked := time.Now()
		c.must("wardlink", "--operator", c.operator(), "gateway", "list")
		within := max(cutWithin, 20*time.Since(looked))
		begun := time.Now()
		c.must("wardlink", "--operator", c.operator(), "gateway", "revoke", g.id, "--reason", "stolen")
		c.await("the cut", func(ctx context.Context) (bool, error) {
			s, err := g.status(ctx)
			return err == nil && !s.Uplink.Connected, nil
		})
		took := time.Since(begun).Round(10 * time.Millisecond)
		if t.Logf("cut at %s %s after the start of the command", c.nodes[i].name, took); took > within {
			t.Errorf("%s: a revoked gateway's session lived on for %s; expected at most %s", c.nodes[i].name, took, within)
		}
		c.runNode(other)
	}
	// The log has the gateways' own addresses, which the balancer's headers say.
	out := string(c.must("wardlink", "audit", "list", "--dir", c.server(), "--limit", "100000", "--json"))
	if !strings.Contains(out, `"127.0.0.1:`) || strings.Contains(out, `"`+balancer.Address+`:`) {
		t.Errorf("the log has the balancer's address, or none:\n%.2000s", out)
	}
	c.proc.Stop()
	c.must("wardlink", "audit", "verify", "--dir", c.server())
}

// TestWhatAThiefOfANodeGets: all files of a node's directory and its database login open no batch, read and write no record, make no gateway and
// no operator, and are worth nothing once the node is removed.
func TestWhatAThiefOfANodeGets(t *testing.T) {
	t.Parallel()
	c := newCell(t, 1)
	n := c.nodes[0]
	if k, err := keys.OpenOf(n.dir, "records", "log"); err == nil {
		t.Errorf("a node holds keys: %+v", k)
	}
	if _, err := keys.Open(n.dir); err == nil {
		t.Error("a node holds a server's keys")
	}
	var secrets []string
	err := walk(n.dir, func(path string, data []byte) {
		if strings.Contains(string(data), "PRIVATE KEY") || strings.Contains(string(data), "WARDLINK") || strings.Contains(path, "password") {
			secrets = append(secrets, filepath.Base(path))
		}
	})
	if slices.Sort(secrets); err != nil || fmt.Sprint(secrets) != "[database.password ingest.pem node.key]" {
		t.Errorf("a node's secrets are %v, %v", secrets, err)
	}
	password, err := os.ReadFile(filepath.Join(n.dir, "keys", "database.password"))
	if err != nil {
		t.Fatal(err)
	}
	var list []struct{ Login string }
	if err := json.Unmarshal(c.must("wardlink-server", "node", "list", "--json", "--dir", c.server()), &list); err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	login, err := url.Parse(c.pg.URL("wardlink", list[0].Login))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := pgx.Connect(ctx, login.String()); err == nil {
		t.Error("the node's login needs no password")
	}
	login.User = url.UserPassword(list[0].Login, strings.TrimSpace(string(password)))
	conn, err := pgx.Connect(ctx, login.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, q := range []string{
		"SELECT * FROM public.readings", "SELECT * FROM public.journal_groups", "SELECT * FROM public.gateways", "SELECT * FROM public.nodes", "SELECT * FROM public.identities", "SELECT * FROM public.identity_certificates",
		"DELETE FROM public.journal_groups", "UPDATE public.registry_state SET revision = 0", "UPDATE public.identities SET role = 'admin'",
		"INSERT INTO public.nodes (name, spki, hosts, login, added, removed) VALUES ('x', '', '', 'x', 0, 0)", "LOCK TABLE public.write_lock", "CREATE TABLE public.x (a INT)",
	} {
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var refused *pgconn.PgError
		if _, err := tx.Exec(ctx, q); !errors.As(err, &refused) || refused.Code != "42501" {
			t.Errorf("a node's login may, or it was not asked: %s: %v", q, err)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
	}
	pair := func(cert, key string) tls.Certificate {
		p, err := tls.LoadX509KeyPair(filepath.Join(n.dir, cert), filepath.Join(n.dir, key))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	own, service := pair("node.crt", "keys/node.key"), pair("keys/ingest.pem", "keys/ingest.pem")
	for name, cert := range map[string]tls.Certificate{"its own": own, "its port's": service} {
		web := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}}}
		for _, u := range []string{c.hospital.hospital + "/fhir/Observation", c.operators + "/v1/gateways", c.operators + "/v1/kit"} {
			resp, err := web.Get("https://" + u)
			if err != nil {
				continue
			}
			if resp.Body.Close(); resp.StatusCode < 400 {
				t.Errorf("with the certificate that is %s: %s answers %s", name, u, resp.Status)
			}
		}
		// No session of a gateway, at the node or anywhere.
		mqtt, err := tls.Dial("tcp", n.gateways, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, NextProtos: []string{"mqtt"}})
		if err != nil {
			continue
		}
		_, _ = io.WriteString(mqtt, "\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05icu-7")
		_ = mqtt.SetReadDeadline(time.Now().Add(20 * time.Second))
		if answer, err := io.ReadAll(mqtt); len(answer) >= 4 && answer[3] == 0 || os.IsTimeout(err) {
			t.Errorf("with the certificate that is %s: MQTT answers %x, %v", name, answer, err)
		}
		mqtt.Close()
	}
	// Removed: neither its certificate nor its login count, and its process can journal nothing.
	c.must("wardlink-server", "node", "remove", "--dir", c.server(), "--name", n.name)
	if err := conn.Ping(ctx); err == nil {
		t.Error("a removed node's connection lives on")
	}
	if _, err := pgx.Connect(ctx, login.String()); err == nil {
		t.Error("a removed node's login is let in")
	}
	web := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{own}}}}
	resp, err := web.Post("https://"+c.gateways+"/node/news", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a removed node is answered %s", resp.Status)
	}
}

// TestStandby: a second process takes records and log over when the first one is killed, both live through a kill of the database, and a copy
// of the log's directory is no place for a standby.
func TestStandby(t *testing.T) {
	t.Parallel()
	c := newCell(t, 1)
	b := c.newBox("box", c.kit())
	b.deliverAs("icu-7")
	copied := filepath.Join(c.dir, "copied")
	if err := os.CopyFS(copied, os.DirFS(c.server())); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(copied, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(c.dir, "standby.log")
	standby, err := child.Start("standby", log, program("wardlink-server"), "run", "--dir", c.server(), "--services", "records,log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(standby.Stop)
	said := func(what string) bool {
		text, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(text), what)
	}
	c.await("the standby", func(context.Context) (bool, error) { return said("stands by\" service=log"), nil })
	c.proc.Kill()
	begun := time.Now()
	c.await("the takeover", func(context.Context) (bool, error) {
		return said("runs service=log generation=2") && said("runs service=records generation=2"), standby.Died()
	})
	t.Logf("taken over %s after the kill", time.Since(begun).Round(10*time.Millisecond))
	leaves := len(c.audit("--limit", "100000"))
	b.send("M2")
	b.awaitIdle()
	c.await("the log's growth without the server", func(context.Context) (bool, error) { return len(c.audit("--limit", "100000")) > leaves, standby.Died() })

	if err := c.pg.Kill(); err != nil {
		t.Fatal(err)
	}
	if ack := b.send("M3"); !strings.Contains(ack, "MSA|CA|M3") {
		t.Errorf("acknowledgement %q", ack)
	}
	if err := c.pg.Start(); err != nil {
		t.Fatal(err)
	}
	b.awaitIdle()
	c.await("the standby's next turn", func(context.Context) (bool, error) {
		return said("runs service=log generation=3") && said("runs service=records generation=3"), standby.Died()
	})
	c.run() // ports and CA are back, and records and log stay where they are
	c.await("the log's end", func(context.Context) (bool, error) {
		var s struct {
			Pending int  `json:"pending"`
			Ready   bool `json:"ready"`
		}
		c.ask(&s, "status")
		return s.Ready && s.Pending == 0, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := child.Output(ctx, program("wardlink-server"), "run", "--dir", copied, "--services", "records,log"); err == nil || !strings.Contains(err.Error(), "copy or an older state") {
		t.Errorf("a standby on a copy of the directory: %v", err)
	}
	c.must("wardlink", "--operator", c.operator(), "account", "--check")
	standby.Stop()
	c.proc.Stop()
	c.must("wardlink", "audit", "verify", "--dir", c.server())
}
