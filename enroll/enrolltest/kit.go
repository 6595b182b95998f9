// Package enrolltest makes kits for tests of gateways whose hospital answers nobody.
package enrolltest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/enroll"
	"wardlink/internal/certtest"
	"wardlink/telemetry/seal"
)

// Kit is the file of a kit of a trust domain with one server and the given records key, so that the test can open what is sealed to it. Root,
// config key and log key are new, and nobody holds their private halves; the root ends in an hour.
func Kit(t testing.TB, domain, server string, records seal.PublicKey) []byte {
	t.Helper()
	config, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, log, err := note.GenerateKey(rand.Reader, domain+"/log/1")
	if err != nil {
		t.Fatal(err)
	}
	kit, err := enroll.Kit{TrustDomain: domain, Servers: []string{server}, Roots: []*x509.Certificate{certtest.New(t, "root", -time.Hour, time.Hour).Cert}, RecordsKey: records, ConfigKey: config, LogKey: log}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return kit
}
