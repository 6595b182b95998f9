// Package enrolltest makes kits for tests of gateways whose hospital answers nobody.
package enrolltest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/enroll"
	"wardlink/telemetry/seal"
)

// Kit is the file of a kit of a trust domain with one server and the given records key, so that the test can open what is sealed to it. Root,
// config key and log key are new, and nobody holds their private halves; the root ends in an hour.
func Kit(t testing.TB, domain, server string, records seal.PublicKey) []byte {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	config, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, log, err := note.GenerateKey(rand.Reader, domain+"/log/1")
	if err != nil {
		t.Fatal(err)
	}
	kit, err := enroll.Kit{TrustDomain: domain, Servers: []string{server}, Roots: []*x509.Certificate{root}, RecordsKey: records, ConfigKey: config, LogKey: log}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return kit
}
