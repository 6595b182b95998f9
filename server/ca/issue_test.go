package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
)

func TestIssue(t *testing.T) {
	h := newHospital(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	who := audit.Actor{ID: "spiffe://ward.example/operator/ann"}
	operator := spiffe.ID{TrustDomain: domain, Kind: spiffe.Operator, Name: "ann"}
	chain, err := h.ca.Issue(t.Context(), who, "192.0.2.1:1", Template{ID: operator, Public: key.Public(), Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(h.root)
	intermediates.AddCert(chain[1])
	verified := func(usage x509.ExtKeyUsage) error {
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	if err := verified(x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	if verified(x509.ExtKeyUsageServerAuth) == nil {
		t.Error("an operator's certificate passes for a server's")
	}
	if got, err := spiffe.FromCertificate(chain[0]); err != nil || got != operator {
		t.Errorf("names %v: %v", got, err)
	}
	if h.events[len(h.events)-1].Actor != who || h.events[len(h.events)-1].Detail["serial"] != Serial(chain[0]) {
		t.Errorf("event: %+v", h.events[len(h.events)-1])
	}
	service := spiffe.ID{TrustDomain: domain, Kind: spiffe.Service, Name: "ingest"}
	if chain, err = h.ca.Issue(t.Context(), who, "", Template{ID: service, Public: key.Public(), Life: time.Hour, DNSNames: []string{"gw.ward.example"}}); err != nil {
		t.Fatal(err)
	}
	if err := verified(x509.ExtKeyUsageServerAuth); err != nil || chain[0].VerifyHostname("gw.ward.example") != nil {
		t.Errorf("a service's certificate: %v", err)
	}
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]Template{
		"a gateway":      {ID: spiffe.ID{TrustDomain: domain, Kind: spiffe.Gateway, Name: "gw-1"}, Public: key.Public(), Life: time.Hour},
		"no life":        {ID: operator, Public: key.Public()},
		"a weak key":     {ID: operator, Public: weak.Public(), Life: time.Hour},
		"a server name":  {ID: operator, Public: key.Public(), Life: time.Hour, DNSNames: []string{"x.example"}},
		"a strange name": {ID: spiffe.ID{TrustDomain: domain, Kind: spiffe.Operator, Name: "a/b"}, Public: key.Public(), Life: time.Hour},
	} {
		if _, err := h.ca.Issue(t.Context(), who, "", bad); err == nil {
			t.Errorf("issued %s", what)
		}
	}
}

// A certificate never outlives its issuer, and short lives are exact.
func TestValidity(t *testing.T) {
	now := time.Now()
	for life, end := range map[time.Duration]time.Time{time.Minute: now.Add(time.Minute), 24 * time.Hour: now.Add(time.Hour)} {
		v := validity{&CA{cfg: Config{CertLife: life, Now: func() time.Time { return now }}}}
		v.ca.issuer.Store(&issuer{cert: &x509.Certificate{NotAfter: now.Add(time.Hour)}})
		leaf := &x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour)}
		if err := v.Enforce(leaf); err != nil {
			t.Fatal(err)
		}
		if !leaf.NotAfter.Equal(end) || now.Sub(leaf.NotBefore) > life/20 {
			t.Errorf("life %v: from %v to %v", life, leaf.NotBefore, leaf.NotAfter)
		}
	}
	over := validity{&CA{cfg: Config{CertLife: time.Hour, Now: time.Now}}}
	over.ca.issuer.Store(&issuer{cert: &x509.Certificate{NotAfter: now.Add(-time.Hour)}})
	if err := over.Enforce(&x509.Certificate{NotAfter: now.Add(time.Hour)}); err == nil {
		t.Error("issued by an expired CA")
	}
}
