// Command interop holds the two halves of enrolment, and what they issue, against programs that others made: stock step and step-ca, openssl and
// go-spiffe, with TPMs that are emulated and otherwise real. It prints a table; exit status 1: something did not go as it must.
//
//	scripts/interop
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wardlink/e2e/stepca"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/internal/child"
	"wardlink/internal/swtpm"
)

// domain is that of both hospitals: the one whose server is ours, and the one that runs a stock step-ca.
const domain = "ward.example"

func main() {
	s := &stage{names: map[string]string{}}
	flag.StringVar(&s.bin, "bin", "bin", "`DIR` of wardlink and wardlink-server")
	flag.StringVar(&s.step, "step", "step", "stock step")
	flag.StringVar(&s.stepCA, "step-ca", "step-ca", "stock step-ca")
	flag.StringVar(&s.spiffe, "spiffe", "", "go-spiffe's verifier, e2e/interop/spiffe")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	s.ctx = ctx
	missed, err := s.run(os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(2)
	}
	if missed > 0 {
		fmt.Printf("%d rows are not as they must be\n", missed)
		os.Exit(1)
	}
}

// stage is what the rows play on.
type stage struct {
	ctx                       context.Context
	bin, step, stepCA, spiffe string
	dir                       string
	names                     map[string]string // addresses by what they are for
	running                   []interface{ Stop() }
	watch                     []*child.Process
	boxes                     map[string]*swtpm.Process // TPMs by gateway
	otherRoot                 string                    // step-ca's root, PEM
}

// row is one thing that must go well or, for wrong, must be refused with these words.
type row struct {
	what  string
	run   func() (string, error)
	wrong string
}

func (s *stage) run(out io.Writer) (missed int, err error) {
	if s.dir, err = os.MkdirTemp("", "wlinterop"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(s.dir)
	defer func() {
		for i := range s.running {
			s.running[len(s.running)-1-i].Stop()
		}
	}()
	if err := errors.Join(s.startServer(), s.startTPMs("icu-1", "icu-2"), s.startStepCA()); err != nil {
		return 0, err
	}
	root, other := s.file("server/public/root.crt"), s.otherRoot
	for _, r := range []row{
		{"stock step asks for another gateway's name", func() (string, error) { return s.stepEnrols("icu-1", "icu-2", "stranger.crt") }, "doesn't match any of the attested hardware identifiers"},
		{"stock step enrols with our server", func() (string, error) { return s.stepEnrols("icu-1", "icu-1", "step.crt") }, ""},
		{"stock step enrols again, by the AK that it kept", func() (string, error) { return s.stepEnrols("icu-1", "icu-1", "again.crt") }, ""},
		{"our agent enrols with our server", func() (string, error) { return s.agentEnrols("icu-2", s.ours(), "agent.crt") }, ""},
		{"our agent enrols with stock step-ca and our attestation CA", func() (string, error) { return s.agentEnrols("icu-2", s.names["step-ca"], "other.crt") }, ""},
		{"openssl verifies what our server issued to step", func() (string, error) { return s.openssl(root, "step.crt") }, ""},
		{"openssl verifies what our server issued to our agent", func() (string, error) { return s.openssl(root, "agent.crt") }, ""},
		{"openssl verifies what step-ca issued to our agent", func() (string, error) { return s.openssl(other, "other.crt") }, ""},
		{"openssl verifies it against our list of revoked certificates", func() (string, error) { return s.againstList("agent.crt") }, ""},
		{"openssl verifies it under the other root", func() (string, error) { return s.openssl(other, "agent.crt") }, "verification failed"},
		{"go-spiffe takes what our server issued to step", func() (string, error) { return s.goSPIFFE(domain, root, "step.crt", "icu-1") }, ""},
		{"go-spiffe takes what our server issued to our agent", func() (string, error) { return s.goSPIFFE(domain, root, "agent.crt", "icu-2") }, ""},
		{"go-spiffe takes what step-ca issued to our agent", func() (string, error) { return s.goSPIFFE(domain, other, "other.crt", "icu-2") }, ""},
		{"go-spiffe takes it for another trust domain", func() (string, error) { return s.goSPIFFE("elsewhere.example", root, "agent.crt", "icu-2") }, "no X.509 bundle found"},
		{"go-spiffe takes our root's key for an identity", func() (string, error) { return s.goSPIFFE(domain, root, "server/public/issuing.crt", "icu-2") }, "leaf certificate"},
		{"openssl verifies a revoked gateway's against our list", func() (string, error) { return s.revoked("icu-2", "agent.crt") }, "certificate revoked"},
		{"openssl verifies another's against that list", func() (string, error) { return s.againstList("step.crt") }, ""},
	} {
		began := time.Now()
		said, err := r.run()
		verdict := "ok"
		switch {
		case r.wrong == "" && err != nil:
			verdict, said = "MISS", err.Error()
		case r.wrong != "" && err == nil:
			verdict, said = "MISS", "it is not refused"
		case r.wrong != "" && !strings.Contains(err.Error(), r.wrong):
			verdict, said = "MISS", "refused, for another reason: "+err.Error()
		case r.wrong != "":
			said = "refused"
		}
		if verdict != "ok" {
			missed++
		}
		fmt.Fprintf(out, "%-60s %-5s %5.1f s  %s\n", r.what, verdict, time.Since(began).Seconds(), said)
	}
	return missed, nil
}

func (s *stage) file(name string) string { return filepath.Join(s.dir, name) }

// ours is the address of our server's gateways' port.
func (s *stage) ours() string { return s.names["gateways"] }

func (s *stage) operator(args ...string) error {
	_, err := child.Output(s.ctx, filepath.Join(s.bin, "wardlink"), append([]string{"--operator", s.file("server/operator/operator.json")}, args...)...)
	return err
}

func (s *stage) startServer() error {
	var doors child.Doors
	var err error
	for _, name := range []string{"gateways", "hospital", "operators", "step-ca"} {
		if s.names[name], err = doors.Free(); err != nil {
			return err
		}
	}
	program := filepath.Join(s.bin, "wardlink-server")
	if _, err := child.Output(s.ctx, program, "init", "--dir", s.file("server"), "--trust-domain", domain, "--name", "127.0.0.1",
		"--gateways", s.names["gateways"], "--hospital", s.names["hospital"], "--operators", s.names["operators"]); err != nil {
		return err
	}
	return s.start("server", func() error { return s.operator("status", "--json") }, program, "run", "--dir", s.file("server"))
}

// start runs a program until the stage ends, and waits until it is ready.
func (s *stage) start(name string, ready func() error, program string, args ...string) error {
	p, err := child.Start(name, s.file(name+".log"), program, args...)
	if err != nil {
		return err
	}
	s.running, s.watch = append(s.running, p), append(s.watch, p)
	return child.Until(s.ctx, name, s.watch, func(context.Context) (bool, error) { return ready() == nil, nil })
}

// startTPMs makes a TPM for each gateway and enters it by its endorsement key.
func (s *stage) startTPMs(gateways ...string) error {
	factory, err := swtpm.NewFactory(s.file("factory"))
	if err != nil {
		return err
	}
	s.boxes = map[string]*swtpm.Process{}
	csv := "id,ek_sha256,site,ward,profile\n"
	for _, g := range gateways {
		if err := factory.Make(s.ctx, s.file("tpm-"+g)); err != nil {
			return err
		}
		p, err := swtpm.Start(s.ctx, s.file("tpm-"+g), s.file(g))
		if err != nil {
			return err
		}
		s.running, s.boxes[g] = append(s.running, p), p
		d, err := tpm.Open(s.ctx, "swtpm:"+p.Socket)
		if err != nil {
			return err
		}
		ek, err := d.EK(s.ctx)
		if err = errors.Join(err, d.Close()); err != nil {
			return err
		}
		csv += fmt.Sprintf("%s,%s,site,ward,default\n", g, hex.EncodeToString(ek.Hash[:]))
	}
	if err := os.WriteFile(s.file("gateways.csv"), []byte(csv), 0o600); err != nil {
		return err
	}
	return s.operator("gateway", "import", s.file("gateways.csv"))
}

// startStepCA runs a stock step-ca, which believes our server's attestation CA.
func (s *stage) startStepCA() error {
	attestation, err := os.ReadFile(s.file("server/public/attestation.crt"))
	if err != nil {
		return err
	}
	other, err := stepca.Start(s.ctx, stepca.Config{Program: s.stepCA, Dir: s.dir, Addr: s.names["step-ca"], TrustDomain: domain, Attestation: attestation})
	if err != nil {
		return err
	}
	s.otherRoot, s.running = other.Root, append(s.running, other)
	return nil
}

// client trusts both hospitals' servers.
func (s *stage) client() (*http.Client, error) {
	pool := x509.NewCertPool()
	for _, f := range []string{s.file("server/public/root.crt"), s.otherRoot} {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s: no certificate", f)
		}
	}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}}, nil
}

// stepEnrols has stock step get a certificate for name with a gateway's TPM.
func (s *stage) stepEnrols(gateway, name, out string) (string, error) {
	root := s.file("server/public/root.crt")
	c := exec.CommandContext(s.ctx, s.step, "ca", "certificate", name, s.file(out), s.file(out+".key"), "--acme", "https://"+s.ours()+"/acme/attest/directory", "--root", root,
		"--attestation-uri", "tpmkms:name="+out+";device="+s.boxes[gateway].Socket, "--attestation-ca-url", "https://"+s.ours()+"/attestation", "--attestation-ca-root", root,
		"--tpm-storage-directory", s.file("step-store"), "--kty", "EC", "--crv", "P-256")
	c.Env = append(os.Environ(), "STEPPATH="+s.file("steppath"), "NO_COLOR=1")
	if said, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(said)), " "))
	}
	return s.describe(out)
}

// agentEnrols has our agent's half get a certificate from the ACME server at directory, its TPM attested by our server.
func (s *stage) agentEnrols(gateway, directory, out string) (string, error) {
	client, err := s.client()
	if err != nil {
		return "", err
	}
	d, err := tpm.Open(s.ctx, "swtpm:"+s.boxes[gateway].Socket)
	if err != nil {
		return "", err
	}
	defer d.Close()
	dir := s.file("agent-" + out)
	e, err := enroll.New(enroll.Config{TPM: d, Dir: dir, Attestation: "https://" + s.ours() + "/attestation", Directory: "https://" + directory + "/acme/attest/directory",
		HTTP: client, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", err
	}
	if _, err := e.Enroll(s.ctx); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(dir, "identity.pem"), s.file(out)); err != nil {
		return "", err
	}
	return s.describe(out)
}

// describe says whose certificate it is.
func (s *stage) describe(name string) (string, error) {
	data, err := os.ReadFile(s.file(name))
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", fmt.Errorf("%s holds no certificate", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	if len(cert.URIs) != 1 {
		return "", fmt.Errorf("%s: %d URIs; expected a SPIFFE id", name, len(cert.URIs))
	}
	return fmt.Sprintf("%s for %.0f h", cert.URIs[0], time.Until(cert.NotAfter).Hours()), nil
}

func (s *stage) openssl(root, chain string, more ...string) (string, error) {
	args := append([]string{"verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", root, "-untrusted", s.file(chain)}, more...)
	said, err := exec.CommandContext(s.ctx, "openssl", append(args, s.file(chain))...).CombinedOutput()
	words := strings.ReplaceAll(strings.Join(strings.Fields(string(said)), " "), s.dir+"/", "")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, words)
	}
	return words, nil
}

func (s *stage) goSPIFFE(trustDomain, root, chain, gateway string) (string, error) {
	said, err := exec.CommandContext(s.ctx, s.spiffe, trustDomain, root, s.file(chain)).CombinedOutput()
	words := strings.TrimSpace(string(said))
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, words)
	}
	if want := "spiffe://" + domain + "/gateway/" + gateway; words != want {
		return "", fmt.Errorf("it is %s; expected %s", words, want)
	}
	return words, nil
}
