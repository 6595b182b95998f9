package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a maker's root, and by signs one under it.
func makersCA(t *testing.T, name string, by *x509.Certificate, byKey *ecdsa.PrivateKey, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if by == nil {
		by, byKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, key.Public(), byKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// TestTrustDir: an operator's files, DER or PEM, roots or intermediates; extended and spoilt beside a running server.
func TestTrustDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ek-trust")
	var log bytes.Buffer
	d, err := OpenTrustDir(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	root, rootKey := makersCA(t, "root", nil, nil, true)
	between, betweenKey := makersCA(t, "between", root, rootKey, true)
	leaf, _ := makersCA(t, "leaf", between, betweenKey, false)
	chains := func() bool {
		t.Helper()
		d.looked = time.Time{}
		trust := d.Trust()
		_, err := leaf.Verify(x509.VerifyOptions{Roots: trust.Roots, Intermediates: trust.Intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err == nil
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	asPEM := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	if chains() {
		t.Error("an empty bundle trusts")
	}
	write("vendor-root.cer", root.Raw)
	if chains() {
		t.Error("without the intermediate")
	}
	write("vendor.pem", append([]byte("# a vendor's comment\n"), asPEM(between)...))
	if !chains() {
		t.Fatalf("root as DER, intermediate as PEM: no chain\n%s", log.String())
	}
	for name, data := range map[string][]byte{"empty": nil, "words": []byte("certificate\n"), "key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}),
		"leaf": asPEM(leaf), "cut": root.Raw[:100], "long": make([]byte, maxTrustFile+1)} {
		log.Reset()
		write("spoilt-"+name, data)
		if !chains() {
			t.Errorf("%s: what was read before does not hold", name)
		}
		if !strings.Contains(log.String(), "spoilt-"+name) {
			t.Errorf("%s: the log does not name the file: %s", name, log.String())
		}
		if _, err := OpenTrustDir(dir, slog.Default()); err == nil || !strings.Contains(err.Error(), "spoilt-"+name) {
			t.Errorf("%s: a start says %v", name, err)
		}
		if err := os.Remove(filepath.Join(dir, "spoilt-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "vendor-root.cer")); err != nil {
		t.Fatal(err)
	}
	if chains() {
		t.Error("a maker that was removed is trusted")
	}
	// What cannot be read for a moment is read again, though no file's name, size or time has changed.
	write("vendor-root.cer", root.Raw)
	if !chains() {
		t.Fatal("a maker that is back is not trusted")
	}
	later := filepath.Join(t.TempDir(), "later.pem")
	if err := errors.Join(os.Remove(filepath.Join(dir, "vendor-root.cer")), os.Symlink(later, filepath.Join(dir, "linked.pem"))); err != nil {
		t.Fatal(err)
	}
	if !chains() {
		t.Error("what was read before does not hold while a file cannot be read")
	}
	if err := os.WriteFile(later, asPEM(between), 0o600); err != nil {
		t.Fatal(err)
	}
	if chains() {
		t.Error("a maker that was removed while another file could not be read is trusted for ever")
	}
}

// An operator's file is read or refused.
func FuzzParseTrust(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		if certs, err := parseTrust(data); (err == nil) != (len(certs) > 0) {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
	})
}
