package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"wardlink/e2e/load"
	"wardlink/e2e/stepca"
	"wardlink/internal/child"
	"wardlink/server/ca/softboard"
)

// domain is that of both servers' certificates.
const domain = "ward.example"

// subject is a server that is measured.
type subject struct {
	name      string
	pid       int
	directory string // of ACME
}

// stage is two servers and the gateways that both certify.
type stage struct {
	options
	gateways   []*gateway
	ours       *subject
	other      *subject
	addr       string // of our gateways' port
	attestedBy []byte // PEM of our attestation CA
	roots      *x509.CertPool
	running    []interface{ Stop() }
}

// gateway is a board with a connection of its own to each server, from an address of its own.
type gateway struct {
	name    string
	board   *softboard.Board
	chain   [][]byte // of an AK certificate that is good for the whole run
	account map[*subject]*acme.Client
}

// act is a way to a certificate at a server.
type act struct {
	what   string
	server *subject
	beside string // step-ca's act that it is held against; "" for step-ca's own
	run    func(ctx context.Context, g *gateway) error
}

// acts are what is measured. A gateway of ours proves its TPM with each certificate, in two more requests and with a quote; step-ca has no attestation CA, so
// that AK certificates are there before. The last one of ours is what both do: ACME by an AK certificate that is good, as stock step does for a month.
func (s *stage) acts() []act {
	enrolment, renewal := "enrolment", "renewal"
	attested := func(run func(context.Context, *gateway, [][]byte) error) func(context.Context, *gateway) error {
		return func(ctx context.Context, g *gateway) error {
			chain, err := g.board.Attest(ctx)
			if err != nil {
				return err
			}
			return run(ctx, g, chain)
		}
	}
	enrol := func(at *subject) func(context.Context, *gateway, [][]byte) error {
		return func(ctx context.Context, g *gateway, chain [][]byte) error {
			client, err := g.board.Client(at.directory)
			if err != nil {
				return err
			}
			return g.certify(ctx, client, chain)
		}
	}
	renew := func(at *subject) func(context.Context, *gateway, [][]byte) error {
		return func(ctx context.Context, g *gateway, chain [][]byte) error {
			return g.certify(ctx, g.account[at], chain)
		}
	}
	without := func(run func(context.Context, *gateway, [][]byte) error) func(context.Context, *gateway) error {
		return func(ctx context.Context, g *gateway) error { return run(ctx, g, g.chain) }
	}
	return []act{
		{enrolment, s.ours, enrolment, attested(enrol(s.ours))},
		{enrolment, s.other, "", without(enrol(s.other))},
		{renewal, s.ours, renewal, attested(renew(s.ours))},
		{renewal, s.other, "", without(renew(s.other))},
		{"renewal without attestation", s.ours, renewal, without(renew(s.ours))},
	}
}

// certify gets a certificate, and holds it against what it must be.
func (g *gateway) certify(ctx context.Context, client *acme.Client, chain [][]byte) error {
	cert, err := g.board.Certify(ctx, client, g.name, chain)
	if err != nil {
		return err
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if want := "spiffe://" + domain + "/gateway/" + g.name; !ok || !key.Equal(g.board.Key.Public()) || len(cert.URIs) != 1 || cert.URIs[0].String() != want {
		return fmt.Errorf("a certificate for %v; expected %s and the board's key", cert.URIs, want)
	}
	return nil
}

func (s *stage) end() {
	for i := range s.running {
		s.running[len(s.running)-1-i].Stop()
	}
}

func (s *stage) prepare(ctx context.Context) error {
	ready, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s.roots = x509.NewCertPool()
	for _, step := range []func(context.Context) error{s.startOurs, s.startStepCA, s.enter, s.warm, s.verifies} {
		if err := step(ready); err != nil {
			return err
		}
	}
	return nil
}

// startOurs runs a whole server, as 'wardlink-server run' is: registry, journal, log, records.
func (s *stage) startOurs(ctx context.Context) (err error) {
	var doors child.Doors
	var at [3]string
	for i := range at {
		if at[i], err = doors.Free(); err != nil {
			return err
		}
	}
	s.addr = at[0]
	program := filepath.Join(s.bin, "wardlink-server")
	if _, err := child.Output(ctx, program, "init", "--dir", s.file("server"), "--trust-domain", domain, "--name", "127.0.0.1",
		"--gateways", at[0], "--hospital", at[1], "--operators", at[2]); err != nil {
		return err
	}
	p, err := child.Start("server", s.file("server.log"), program, "run", "--dir", s.file("server"))
	if err != nil {
		return err
	}
	s.running = append(s.running, p)
	s.ours = &subject{"wardlink-server", p.PID(), "https://" + s.addr + "/acme/attest/directory"}
	if s.attestedBy, err = os.ReadFile(s.file("server/public/attestation.crt")); err != nil {
		return err
	}
	return errors.Join(s.trust(s.file("server/public/root.crt")), child.Until(ctx, "the server", []*child.Process{p}, func(ctx context.Context) (bool, error) {
		return s.operator(ctx, "status", "--json") == nil, nil
	}))
}

func (s *stage) operator(ctx context.Context, args ...string) error {
	_, err := child.Output(ctx, filepath.Join(s.bin, "wardlink"), append([]string{"--operator", s.file("server/operator/operator.json")}, args...)...)
	return err
}

func (s *stage) trust(root string) error {
	data, err := os.ReadFile(root)
	if err == nil && !s.roots.AppendCertsFromPEM(data) {
		err = fmt.Errorf("%s: no certificate", root)
	}
	return err
}

func (s *stage) startStepCA(ctx context.Context) error {
	var doors child.Doors
	addr, err := doors.Free()
	if err != nil {
		return err
	}
	p, err := stepca.Start(ctx, stepca.Config{Program: s.stepCA, Dir: s.dir, Addr: addr, TrustDomain: domain, Attestation: s.attestedBy})
	if err != nil {
		return err
	}
	s.running = append(s.running, p)
	s.other = &subject{"step-ca", p.PID(), p.Directory}
	return s.trust(p.Root)
}

// enter makes the boards and enters them.
func (s *stage) enter(ctx context.Context) error {
	var csv strings.Builder
	csv.WriteString("id,ek_sha256,site,ward,profile\n")
	for i := range clients {
		dialer := &net.Dialer{LocalAddr: load.Source(i)}
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13}}}
		ek, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return err
		}
		ak, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return err
		}
		board, err := softboard.New("https://"+s.addr, client, ek, ak)
		if err != nil {
			return err
		}
		board.Quotes = true
		g := &gateway{name: load.Name(i), board: board, account: map[*subject]*acme.Client{}}
		for _, at := range []*subject{s.ours, s.other} {
			if g.account[at], err = board.Client(at.directory); err != nil {
				return err
			}
		}
		hash := board.Hash()
		fmt.Fprintf(&csv, "%s,%s,site,ward,default\n", g.name, hex.EncodeToString(hash[:]))
		s.gateways = append(s.gateways, g)
	}
	if err := os.WriteFile(s.file("gateways.csv"), []byte(csv.String()), 0o600); err != nil {
		return err
	}
	return s.operator(ctx, "gateway", "import", s.file("gateways.csv"))
}

// warm has each gateway attested, and certified once by each server.
func (s *stage) warm(ctx context.Context) (err error) {
	for _, g := range s.gateways {
		if g.chain, err = g.board.Attest(ctx); err != nil {
			return err
		}
		for at, client := range g.account {
			if err := g.certify(ctx, client, g.chain); err != nil {
				return fmt.Errorf("%s: %w", at.name, err)
			}
		}
	}
	return nil
}

// verifies looks whether both servers judge what they are shown: a rate of one that signs anything would say nothing.
func (s *stage) verifies(ctx context.Context) error {
	honest, ak := s.gateways[0], s.gateways[1].board.AK
	forger := *honest.board
	forger.AK = ak // its certificate is for another key
	for _, at := range []*subject{s.ours, s.other} {
		client, err := forger.Client(at.directory)
		if err != nil {
			return err
		}
		if _, err := forger.Certify(ctx, client, honest.name, honest.chain); err == nil {
			return fmt.Errorf("%s certifies by a signature of another attestation key; its rate would mean nothing", at.name)
		}
	}
	return nil
}
