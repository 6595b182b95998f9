package alerts

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

func document(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/ALERTS.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func block(t *testing.T, language string) string {
	t.Helper()
	m := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(document(t))
	if m == nil {
		t.Fatalf("no block of %s in docs/ALERTS.md", language)
	}
	return m[1]
}

// The table of types is the list of kinds, and the configuration of the page holds every key with its default.
func TestDocumentHoldsTypesAndKeys(t *testing.T) {
	text := document(t)
	for _, k := range Kinds() {
		row := fmt.Sprintf("| `%s` | %s | %s | %s | %s |\n", k.Type, k.Severity, interval(k.Repeat), k.Subject, k.Meaning)
		if !strings.Contains(text, row) {
			t.Errorf("docs/ALERTS.md lacks\n%s", row)
		}
	}
	var c struct {
		Alerts Settings `yaml:"alerts"`
	}
	if err := yaml.UnmarshalWithOptions([]byte(block(t, "yaml")), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if err := c.Alerts.Check(); err != nil {
		t.Error(err)
	}
	if got := c.Alerts.Limits; got != (Limits{}).WithDefaults() {
		t.Errorf("the page's defaults are %+v, ours %+v", got, Limits{}.WithDefaults())
	}
}

func interval(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dm", d/time.Minute)
}

// The receiver of the page, as it stands there, takes what we send and nothing else.
func TestDocumentsReceiver(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	put("main.go", []byte(block(t, "go")))
	put("go.mod", []byte("module receiver\n\ngo 1.26\n"))
	build := exec.Command("go", "build", "-o", "receiver", ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cert, key := certificate(t)
	ca := put("cert.pem", cert)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	cmd := exec.Command(filepath.Join(dir, "receiver"), addr, ca, put("key.pem", key))
	cmd.Env = append(os.Environ(), "WEBHOOK_SECRET="+secretText)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	await(t, "the receiver listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})

	target := Target{Name: "page", Webhook: "https://" + addr, SecretFile: secretFile(t, secretText), CAFile: ca}
	forged := target
	forged.Name, forged.SecretFile = "forged", secretFile(t, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	d := newDesk(t, Settings{Targets: []Target{target, forged}})
	results, err := d.Test(context.Background(), "")
	if err != nil || results[0].Err != nil || results[1].Err == nil || !strings.Contains(results[1].Err.Error(), "401") {
		t.Fatalf("%+v, %v", results, err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "msg_") || !strings.Contains(line, `"type":"alert.test"`) {
		t.Errorf("%q, %v", line, err)
	}
	// A message that somebody kept and sends again later is too old.
	hook := d.targets[0].sender.(*webhook)
	hook.now = func() time.Time { return time.Now().Add(-6 * time.Minute) }
	if results, _ := d.Test(context.Background(), "page"); results[0].Err == nil {
		t.Error("a message of six minutes ago is taken")
	}
}

func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}
