package spiffe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// sign makes a certificate; a nil authority signs itself.
func (a *authority) sign(t *testing.T, id ID, from, to time.Time, ca bool) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(from.Unix()), Subject: pkix.Name{CommonName: id.Name}, NotBefore: from, NotAfter: to,
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if !ca {
		uri, err := url.Parse(id.String())
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{uri}
	}
	parent, signer := template, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// TestFloorForgivesDatesAndNothingElse: a gateway that boots in 1970 can tell its server from anybody else.
func TestFloorForgivesDatesAndNothingElse(t *testing.T) {
	day := 24 * time.Hour
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	want := ID{"ward.example", Service, "ingest"}
	root := (*authority)(nil).sign(t, ID{Name: "root"}, now.Add(-300*day), now.Add(3000*day), true)
	issuing := root.sign(t, ID{Name: "issuing"}, now.Add(-30*day), now.Add(300*day), true)
	foreign := (*authority)(nil).sign(t, ID{Name: "root"}, now.Add(-300*day), now.Add(3000*day), true)
	roots := x509.NewCertPool()
	roots.AddCert(root.cert)
	at1970 := time.Unix(60, 0)
	for name, c := range map[string]struct {
		leaf   *authority
		moment Moment
		ok     bool
	}{
		"present":                         {issuing.sign(t, want, now.Add(-day), now.Add(day), false), Moment{Time: now}, true},
		"1970, taken at its word":         {issuing.sign(t, want, now.Add(-day), now.Add(day), false), Moment{Time: at1970}, false},
		"1970, a floor":                   {issuing.sign(t, want, now.Add(-day), now.Add(day), false), Moment{at1970, true}, true},
		"floor within the leaf's life":    {issuing.sign(t, want, now.Add(-day), now.Add(day), false), Moment{now, true}, true},
		"floor after the leaf's end":      {issuing.sign(t, want, now.Add(-3*day), now.Add(-day), false), Moment{now, true}, false},
		"leaf that begins after floor":    {issuing.sign(t, want, now.Add(day), now.Add(2*day), false), Moment{now, true}, true},
		"expired, present":                {issuing.sign(t, want, now.Add(-3*day), now.Add(-day), false), Moment{Time: now}, false},
		"ends before its issuer began":    {issuing.sign(t, want, now.Add(-60*day), now.Add(-40*day), false), Moment{at1970, true}, false},
		"foreign root":                    {foreign.sign(t, want, now.Add(-day), now.Add(day), false), Moment{at1970, true}, false},
		"another service":                 {issuing.sign(t, ID{"ward.example", Service, "api"}, now.Add(-day), now.Add(day), false), Moment{at1970, true}, false},
		"another trust domain":            {issuing.sign(t, ID{"evil.example", Service, "ingest"}, now.Add(-day), now.Add(day), false), Moment{at1970, true}, false},
		"a gateway of the name":           {issuing.sign(t, ID{"ward.example", Gateway, "ingest"}, now.Add(-day), now.Add(day), false), Moment{at1970, true}, false},
		"no CA, but it signed the leaf's": {issuing.sign(t, want, now.Add(-day), now.Add(day), false).sign(t, want, now.Add(-day), now.Add(day), false), Moment{at1970, true}, false},
	} {
		cs := tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.leaf.cert, issuing.cert}}
		if err := VerifyServer(cs, roots, want, c.moment.At(cs.PeerCertificates)); (err == nil) != c.ok {
			t.Errorf("%s: %v; expected ok %t", name, err, c.ok)
		}
	}
}
