package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wardlink/internal/child"
	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/keys"
)

// caProcess is one process that is the CA and nothing else.
type caProcess struct {
	name, dir, gateways string
	proc                *child.Process
}

// newSplitCell makes and runs a server whose services ca and api are apart: two processes with ca, one with the rest, and an ingest node.
func newSplitCell(t *testing.T) (*cell, []*caProcess) {
	t.Helper()
	c := &cell{hospital: placeHospital(t)}
	c.pg = pgtest.Own(t, pgserver.Config{HBA: []string{"local all postgres trust", "local all wardlink trust", "local all all scram-sha-256"}})
	for _, q := range []string{"CREATE ROLE wardlink LOGIN CREATEROLE", "CREATE DATABASE wardlink OWNER wardlink TEMPLATE template0"} {
		if err := c.pg.Exec(t.Context(), "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	cas := []*caProcess{{name: "ca-1", dir: c.server(), gateways: freeAddr(t)}, {name: "ca-2", dir: filepath.Join(c.dir, "ca-2"), gateways: freeAddr(t)}}
	c.must("wardlink-server", "init", "--dir", c.server(), "--trust-domain", "ward.example", "--name", "localhost", "--name", "127.0.0.1", "--passphrase-file", c.passphrase(),
		"--gateways", c.gateways, "--hospital", c.hospital.hospital, "--operators", c.operators,
		"--database", c.pg.URL("wardlink", "wardlink"), "--services", "records,log,api", "--ca", cas[0].gateways, "--ca", cas[1].gateways)
	c.must("wardlink-server", "node", "add", "--services", "ca", "--dir", c.server(), "--name", cas[1].name, "--out", cas[1].dir, "--gateways", cas[1].gateways)
	for _, one := range cas {
		c.runCA(one)
	}
	c.run()
	n := &ingestNode{name: "node-1", dir: filepath.Join(c.dir, "node-1"), gateways: freeAddr(t)}
	c.must("wardlink-server", "node", "add", "--dir", c.server(), "--name", n.name, "--out", n.dir, "--gateways", n.gateways)
	c.nodes = append(c.nodes, n)
	c.runNode(n)
	c.must("wardlink", "--operator", c.operator(), "provision", "kit", "--server", n.gateways, "--out", c.kit())
	return c, cas
}

func (c *cell) runCA(one *caProcess) {
	c.t.Helper()
	var err error
	if one.proc, err = child.Start(one.name, filepath.Join(c.dir, one.name+".log"), program("wardlink-server"), "run", "--dir", one.dir, "--services", "ca", "--gateways", one.gateways); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(one.proc.Stop)
}

// orders counts the orders of certificates in the CA's tables: those that wait for their attestation, and those whose certificate was made.
func (c *cell) orders(conn *pgx.Conn) (pending, issued int) {
	c.t.Helper()
	if err := conn.QueryRow(c.t.Context(), "SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 3) FROM ca_orders").Scan(&pending, &issued); err != nil {
		c.t.Fatal(err)
	}
	return pending, issued
}

// TestSeveralCAs: a gateway enrols with each of its requests at another process with the service ca; one that is killed between order and certificate
// costs nothing but a further try, and the survivor enrols, renews, and certifies for the API, which holds none of the CA's keys.
func TestSeveralCAs(t *testing.T) {
	t.Parallel()
	c, cas := newSplitCell(t)
	if _, err := keys.OpenOf(cas[1].dir, "ca"); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"records", "log", "api"} {
		if _, err := keys.OpenOf(cas[1].dir, other); err == nil {
			t.Errorf("the CA's directory holds the keys of %s", other)
		}
	}
	conn, err := pgx.Connect(t.Context(), c.pg.URL("wardlink", "wardlink"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())

	b := c.newBox("box", c.kit())
	b.enter("icu-7")
	b.start()
	c.await("the first order", func(context.Context) (bool, error) {
		pending, issued := c.orders(conn)
		return pending+issued > 0, nil
	})
	pending, _ := c.orders(conn)
	cas[0].proc.Kill()
	t.Logf("ca-1 is killed with %d orders pending", pending)
	b.send("M1")
	b.awaitDelivered()

	// Without its certificate it asks for the next one, as at half of its life.
	b.agent.Stop()
	if err := os.Remove(filepath.Join(b.state(), "identity", "identity.pem")); err != nil {
		t.Fatal(err)
	}
	_, before := c.orders(conn)
	b.start()
	c.await("another certificate", func(context.Context) (bool, error) {
		_, issued := c.orders(conn)
		return issued > before, nil
	})
	b.accepts("M2")
	b.awaitDelivered()
	c.must("wardlink", "--operator", c.operator(), "access", "issue", "ehr", "--out", filepath.Join(c.dir, "ehr.pem"))

	// The other way round, in the process that was made for it.
	c.runCA(cas[0])
	cas[1].proc.Kill()
	c.newBox("other", c.kit()).deliverAs("icu-8")
	unwell := func() string {
		var s struct {
			CA string `json:"ca_unwell"`
		}
		c.ask(&s, "status")
		return s.CA
	}
	if why := unwell(); why != "" {
		t.Errorf("with one of two: %s", why)
	}
	// Without any no certificate is renewed, and the server says so.
	cas[0].proc.Kill()
	begun := time.Now()
	c.await("the word that there is no CA", func(context.Context) (bool, error) {
		return strings.Contains(unwell(), "no process with the service ca answers"), nil
	})
	t.Logf("said %s after the last one's end", time.Since(begun).Round(time.Second))
	c.runCA(cas[1])
	c.await("the CA's return", func(context.Context) (bool, error) {
		return unwell() == "", nil
	})
	c.must("wardlink", "--operator", c.operator(), "account", "--check")
	c.proc.Stop()
	c.must("wardlink", "audit", "verify", "--dir", c.server())
}
