package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/certtest"
)

// devicePKI is the hospital's PKI for devices: it has nothing to do with the gateways' own.
type devicePKI struct {
	*testing.T
	*certtest.Authority
}

// issue makes a certificate for one name, which a device shows, or a gateway.
func (p *devicePKI) issue(name string, from, to time.Duration) tls.Certificate {
	p.Helper()
	return p.Issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, from, to)
}

// monitor sends a message over TLS under a certificate of its own, and gives the answer.
func (p *devicePKI) monitor(addr, name string, from, to time.Duration, text string) (string, error) {
	p.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", addr, &tls.Config{RootCAs: p.Pool(), ServerName: "gateway.ward", Certificates: []tls.Certificate{p.issue(name, from, to)}})
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// TestDevicesWithCertificates: a device proves who it is, and its bed with it; one whose certificate has ended is refused, which the
// gateway shows; a new certificate for the gateway needs no restart; and the account balances.
func TestDevicesWithCertificates(t *testing.T) {
	t.Parallel()
	w := wardOf(t, initHospital(t))
	pki := &devicePKI{t, certtest.New(t, "devices", -time.Hour, 24*time.Hour)}
	files := func() {
		cert, key := pki.Files(pki.issue("gateway.ward", -time.Hour, 90*24*time.Hour))
		for name, data := range map[string][]byte{"ca.pem": pki.PEM(), "devices.pem": cert, "devices.key": key} {
			if err := os.WriteFile(filepath.Join(w.box.dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	files()
	secure := freeAddr(t)
	w.box.rewrite(fmt.Sprintf("sources: [{id: bed-1, mllp: %q}]\n", w.box.mllp), fmt.Sprintf("sources:\n  - {id: bed-1, mllp: %q}\n  - id: icu\n    mllp: %q\n    tls: {certificate: %[3]s/devices.pem, key: %[3]s/devices.key, client_ca: %[3]s/ca.pem}\n"+
		"    bindings: [{certificate: monitor-7.icu, bed: ICU-7, id: icu-7}]\n", w.box.mllp, secure, w.box.dir))
	w.box.reportsOften()
	w.box.start()
	w.register()
	w.box.awaitIdle()

	send := func(control string, value int) {
		t.Helper()
		if a, err := pki.monitor(secure, "monitor-7.icu", -time.Hour, time.Hour, unnamed(control, "MON", value)); err != nil || !strings.Contains(a, "MSA|AA|"+control) {
			t.Fatalf("%s is answered %q, %v", control, a, err)
		}
	}
	send("T1", 61)
	if a, err := pki.monitor(secure, "monitor-7.icu", -2*time.Hour, -time.Hour, unnamed("T2", "MON", 62)); err == nil {
		t.Fatalf("a certificate that has ended is answered %q", a)
	}
	if a := func() string {
		c, err := net.Dial("tcp", secure)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = c.Write([]byte(unnamed("T3", "MON", 63)))
		b := make([]byte, 4096)
		n, _ := c.Read(b)
		return string(b[:n])
	}(); strings.Contains(a, "MSA") {
		t.Fatalf("a device without TLS is answered %q", a)
	}
	status := string(w.must("wardlink-agent", "status", "--config", w.box.config()))
	if !strings.Contains(status, "1 refused handshake of certificates that have ended") {
		t.Errorf("status:\n%s", status)
	}
	files() // new ones in place, and no restart
	send("T4", 64)
	w.box.awaitIdle()
	w.balanced(t, "icu-7")
	w.await("the readings", func(context.Context) (bool, error) {
		_, found, _ := w.searchFor("patient:missing=true")
		return len(found) == 2, nil
	})
	// Files that others may read are refused at the next start, and named; the rest of the gateway goes on.
	w.box.agent.Stop()
	key := filepath.Join(w.box.dir, "devices.key")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, r := w.box.doctor(); !strings.Contains(fmt.Sprint(r), "chmod 600 "+key) {
		t.Errorf("doctor: %+v", r)
	}
	w.box.start()
	if ack := w.box.send("M9"); !strings.Contains(ack, "MSA|CA|M9") {
		t.Errorf("the source beside it answers %q", ack)
	}
	if status := string(w.must("wardlink-agent", "status", "--config", w.box.config())); !strings.Contains(status, "chmod 600 "+key) {
		t.Errorf("status:\n%s", status)
	}
}
