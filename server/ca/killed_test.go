package ca

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"wardlink/audit"
	"wardlink/enroll/verify"
	"wardlink/server/boot"
	"wardlink/server/ca/acmedb"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// killable is a CA in a process of its own. Its registry admits every TPM as gw-1 and writes down which keys it was given; with hold it stops
// for ever in that step, and says so.
type killable struct {
	dir, hold string
}

func childCA() error {
	k := killable{os.Getenv("WARDLINK_TEST_CA"), os.Getenv("WARDLINK_TEST_HOLD")}
	db, err := sqldb.Open(os.Getenv("WARDLINK_TEST_DB"), acmedb.Migrations()...)
	if err != nil {
		return err
	}
	cfg := Config{TrustDomain: domain, DNSNames: []string{"127.0.0.1"}, DB: db, Registry: k, Events: k.event, Log: slog.New(slog.DiscardHandler)}
	read := func(name string) (*x509.Certificate, any, error) {
		data, err := os.ReadFile(filepath.Join(k.dir, name))
		if err != nil {
			return nil, nil, err
		}
		certBlock, rest := pem.Decode(data)
		keyBlock, _ := pem.Decode(rest)
		cert, err := x509.ParseCertificate(certBlock.Bytes)
		if err != nil {
			return nil, nil, err
		}
		key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
		return cert, key, err
	}
	root, _, err := read("root")
	if err != nil {
		return err
	}
	cfg.Roots = []*x509.Certificate{root}
	for name, into := range map[string]func(*x509.Certificate, any){
		"issuing":     func(c *x509.Certificate, key any) { cfg.Issuing, cfg.IssuingKey = c, key.(crypto.Signer) },
		"attestation": func(c *x509.Certificate, key any) { cfg.Attestation, cfg.AttestationKey = c, key.(crypto.Signer) },
	} {
		cert, key, err := read(name)
		if err != nil {
			return err
		}
		into(cert, key)
	}
	c, err := New(cfg)
	if err != nil {
		return err
	}
	server := httptest.NewTLSServer(c)
	fmt.Println(server.Listener.Addr())
	select {}
}

// at is called in a step of an issue.
func (k killable) at(step, what string) error {
	if step == "AddKey" || step == "event" {
		f, err := os.OpenFile(filepath.Join(k.dir, "steps"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(f, step, what); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if step == k.hold {
		fmt.Println("held")
		select {}
	}
	return nil
}

func (k killable) ByEK(context.Context, [32]byte) (string, error) { return "gw-1", nil }
func (k killable) Wait(context.Context, Waiting) error            { return nil }
func (k killable) Contend(context.Context, Contention) error      { return nil }
func (k killable) Attested(context.Context, string, *verify.Verified, string, boot.Measurement) error {
	return nil
}
func (k killable) AddKey(_ context.Context, key Key) error {
	return k.at("AddKey", fmt.Sprintf("%x", key.SPKI))
}
func (k killable) event(_ context.Context, e audit.Event) error {
	if e.Type != audit.CertIssued {
		return nil
	}
	return k.at("event", e.Detail["serial"])
}

// process is a child that runs, and can be killed.
type process struct {
	t       *testing.T
	dir, db string
	cmd     *exec.Cmd
	lines   *bufio.Scanner
	address string
}

func (p *process) start(hold string) {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), "WARDLINK_TEST_CA="+p.dir, "WARDLINK_TEST_DB="+p.db, "WARDLINK_TEST_HOLD="+hold)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	if p.lines = bufio.NewScanner(out); !p.lines.Scan() {
		p.t.Fatal("the CA does not start")
	}
	p.address = p.lines.Text()
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// newProcess makes a CA's keys and database, and starts it.
func newProcess(t *testing.T) *process {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	root, rootKey, err := NewRoot(domain, now)
	must(err)
	issuing, issuingKey, err := NewIssuing(domain, root, rootKey, now)
	must(err)
	attestation, attestationKey, err := NewAttestation(domain, now)
	must(err)
	p := &process{t: t, dir: t.TempDir()}
	for name, pair := range map[string]struct {
		cert *x509.Certificate
		key  *ecdsa.PrivateKey
	}{"root": {root, rootKey}, "issuing": {issuing, issuingKey}, "attestation": {attestation, attestationKey}} {
		der, err := x509.MarshalECPrivateKey(pair.key)
		must(err)
		must(os.WriteFile(filepath.Join(p.dir, name), append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.cert.Raw}),
			pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...), 0o600))
	}
	_, p.db = sqldbtest.New(t, acmedb.Migrations()...)
	p.start("")
	t.Cleanup(func() { p.kill() })
	return p
}

// TestKilledBetweenRequests: the CA is killed after each answer of an enrolment, in turn; the client goes on with the next life as if nothing
// had been.
func TestKilledBetweenRequests(t *testing.T) {
	p := newProcess(t)
	kills := 0
	for victim := int64(1); ; victim++ {
		b := &balancer{to: func(int64) string { return p.address }, after: func(n int64) {
			if n == victim {
				kills++
				p.kill()
				p.start("")
			}
		}}
		board := newSoftBoard(t, behind, &http.Client{Transport: b})
		cert, err := board.Enrol(t.Context(), "gw-1")
		if err != nil {
			t.Fatalf("killed after request %d: %v", victim, err)
		}
		if cert.Subject.CommonName != "gw-1" {
			t.Errorf("%v", cert.Subject)
		}
		if b.requests.Load() < victim {
			break
		}
	}
	if kills < 10 {
		t.Errorf("%d kills; expected one after each request", kills)
	}
}

// TestKilledWhileItIssues: the CA is killed with the key in the registry, or the event in the journal, and no certificate handed out. No half of
// the order is left that would give one out; the client orders anew and gets one.
func TestKilledWhileItIssues(t *testing.T) {
	for _, step := range []string{"AddKey", "event"} {
		t.Run(step, func(t *testing.T) {
			p := newProcess(t)
			board := newSoftBoard(t, behind, &http.Client{Transport: &balancer{to: func(int64) string { return p.address }}})
			ctx := t.Context()
			chain, err := board.Attest(ctx)
			if err != nil {
				t.Fatal(err)
			}
			client, err := board.newClient()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil {
				t.Fatal(err)
			}
			order, err := board.Prove(ctx, client, "gw-1", chain)
			if err != nil {
				t.Fatal(err)
			}
			p.kill()
			p.start(step)
			failed := make(chan error, 1)
			go func() { _, err := board.Finalize(ctx, client, order, board.Key); failed <- err }()
			if !p.lines.Scan() || p.lines.Text() != "held" {
				t.Fatal("the step was not reached")
			}
			p.kill()
			if err := <-failed; err == nil {
				t.Fatal("a certificate from a CA that was killed")
			}
			p.start("")
			_, err = board.Finalize(ctx, client, order, board.Key)
			var problem *acme.Error
			if !errors.As(err, &problem) || problem.StatusCode/100 != 4 || !strings.Contains(problem.Detail, "order again") {
				t.Errorf("finalized again: %v; expected to be told to order again", err)
			}
			if got, err := client.GetOrder(ctx, order.URI); err != nil || got.CertURL != "" {
				t.Errorf("%+v, %v", got, err)
			}
			if _, err := board.Certify(ctx, client, "gw-1", chain); err != nil {
				t.Errorf("ordered anew: %v", err)
			}
			steps, err := os.ReadFile(filepath.Join(p.dir, "steps"))
			if want := map[string]int{"AddKey": 3, "event": 4}[step]; err != nil || strings.Count(string(steps), "\n") != want {
				t.Errorf("%s, %v; expected %d steps", steps, err, want)
			}
		})
	}
}
