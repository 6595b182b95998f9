package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
)

// TestAnUnknownGatewayGetsOnlyAPlaceInTheList goes through every door of the gateways' port, with a TPM that nobody has entered, with a certificate
// of its own making and with none. What it may have is a challenge for its own TPM, the public time, the terms of ACME, and its place.
func TestAnUnknownGatewayGetsOnlyAPlaceInTheList(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.start()
	b.send("M1")
	h.await("the waiting list", func(ctx context.Context) (bool, error) {
		s, err := b.status(ctx)
		if err == nil && (s.Gateway != "" || s.Uplink.Connected) {
			return false, fmt.Errorf("an unknown gateway is %+v", s)
		}
		return err == nil && s.Waiting != "", nil
	})

	own := selfMade(t, "spiffe://ward.example/gateway/icu-7")
	for name, cert := range map[string]*tls.Certificate{"without a certificate": {}, "with a certificate of its own making": &own} {
		// Go's client would not show a certificate of an authority that the server does not name.
		show := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, GetClientCertificate: show, NextProtos: []string{"http/1.1"}}}}
		for _, door := range []struct {
			method, path, kind, body string
			allowed                  int // 0: must be refused
		}{
			{"POST", "/attestation/attest", "application/json", "{}", 0},
			{"POST", "/attestation/secret", "application/json", `{"secret":"AAAA"}`, 0},
			{"GET", "/seen", "", "", 0},
			{"GET", "/acme/attest/directory", "", "", http.StatusOK},
			{"POST", "/acme/attest/new-order", "application/jose+json", "{}", 0},
			{"POST", "/acme/attest/revoke-cert", "application/jose+json", "{}", 0},
			{"POST", "/acme/attest/key-change", "application/jose+json", "{}", 0},
			{"GET", "/acme/attest/certificate/1", "", "", 0},
			{"GET", "/provisioners", "", "", 0}, {"GET", "/roots", "", "", 0}, {"POST", "/sign", "application/json", "{}", 0},
			{"POST", "/renew", "application/json", "{}", 0}, {"GET", "/v1/kit", "", "", 0}, {"GET", "/v1/gateways", "", "", 0},
			{"GET", "/fhir/Observation", "", "", 0}, {"GET", "/metrics", "", "", 0}, {"GET", "/", "", "", 0},
		} {
			req, err := http.NewRequestWithContext(t.Context(), door.method, "https://"+h.gateways+door.path, strings.NewReader(door.body))
			if err != nil {
				t.Fatal(err)
			}
			if door.kind != "" {
				req.Header.Set("Content-Type", door.kind)
			}
			answer, err := c.Do(req)
			if cert == &own {
				if err == nil {
					answer.Body.Close()
					t.Errorf("%s: %s %s is answered %s", name, door.method, door.path, answer.Status)
				}
				continue // the handshake ends it
			}
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
			answer.Body.Close()
			if refused := answer.StatusCode >= 400 && answer.StatusCode < 500; door.allowed == 0 && !refused || door.allowed != 0 && answer.StatusCode != door.allowed {
				t.Errorf("%s: %s %s is answered %s: %.100s", name, door.method, door.path, answer.Status, body)
			}
			if bytes.Contains(body, []byte("BEGIN CERTIFICATE")) || bytes.Contains(body, []byte("icu-")) {
				t.Errorf("%s: %s %s tells %.200s", name, door.method, door.path, body)
			}
		}
		conn, err := tls.Dial("tcp", h.gateways, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: show, NextProtos: []string{"mqtt"}})
		if err != nil {
			continue
		}
		_, _ = io.WriteString(conn, "\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05icu-7")
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if answer, err := io.ReadAll(conn); len(answer) > 0 || os.IsTimeout(err) {
			t.Errorf("%s: MQTT is answered %x, %v", name, answer, err)
		}
		conn.Close()
	}

	// The agent itself has gone on asking, as often as it may; what it has is its place, once, and nothing else has been done for it.
	if _, err := os.Stat(filepath.Join(b.state(), "identity", "identity.pem")); !os.IsNotExist(err) {
		t.Errorf("it has a certificate: %v", err)
	}
	var list gatewayList
	h.ask(&list, "gateway", "list")
	if len(list.Waiting) != 1 || len(list.Gateways) != 0 {
		t.Errorf("%+v", list)
	}
	h.await("its event in the log, which is about a second behind", func(context.Context) (bool, error) {
		return len(h.audit("--type", "gateway.waiting")) > 0, nil
	})
	waits := 0
	for _, it := range h.audit() {
		switch it.Type {
		case "gateway.waiting":
			waits++
		case "ak.certified", "session.opened", "publish", "gateway.approved":
			t.Errorf("an unknown gateway caused %+v", it)
		case "certificate.issued":
			if strings.Contains(it.Target, "/gateway/") {
				t.Errorf("an unknown gateway was issued %+v", it)
			}
		}
	}
	if waits != 1 {
		t.Errorf("%d events of waiting; expected one", waits)
	}
	if out, err := child.Output(t.Context(), program("wardlink"), "audit", "verify", "--dir", h.server()); err != nil {
		t.Errorf("%s %v", out, err)
	}
}

// selfMade is a certificate that anybody can make.
func selfMade(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, URIs: []*url.URL{uri},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		&x509.Certificate{Subject: pkix.Name{CommonName: "x"}}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
