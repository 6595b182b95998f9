package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"wardlink/audit"
)

// akCertificate is what an AK certificate is made of.
type akCertificate struct {
	template *x509.Certificate
	names    []asn1.RawValue // of SubjectAltName: the TPM's description, the permanent identifier, the EK
	usage    []asn1.ObjectIdentifier
	public   crypto.PublicKey
	by       *x509.Certificate
	key      crypto.Signer
}

// without makes the description lack one of its attributes.
func without(t *testing.T, directory asn1.RawValue, oid asn1.ObjectIdentifier) asn1.RawValue {
	t.Helper()
	var rdns pkix.RDNSequence
	if _, err := asn1.Unmarshal(directory.Bytes, &rdns); err != nil {
		t.Fatal(err)
	}
	var left pkix.RDNSequence
	for _, set := range rdns {
		if !set[0].Type.Equal(oid) {
			left = append(left, set)
		}
	}
	if len(left) != len(rdns)-1 {
		t.Fatalf("the description has no %v", oid)
	}
	der, err := asn1.Marshal(left)
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: der}
}

// TestAKCertificateProfile: AK certificates that differ from what our attestation CA issues in one thing, all but three signed by it. With none of them is a
// certificate had, none is answered with a fault of ours, and each refusal is counted once.
func TestAKCertificateProfile(t *testing.T) {
	var refused atomic.Int64
	h := hospitalOf(t, func(c *Config) {
		c.PerSource = 1 << 20
		c.Refused = func(string, string) { refused.Add(1) }
	})
	board := newSoftBoard(t, h.server.URL, h.server.Client())
	h.registry.active[board.Hash()] = "gw-1"
	ctx := t.Context()
	chain, err := board.Attest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := x509.ParseCertificate(chain[0])
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
	elliptical, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, strangersKey, err := NewAttestation(domain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	identifier := func(name string) asn1.RawValue {
		der, err := asn1.MarshalWithParams(permanentIdentifierName{Type: oidPermanentIdentifier, Value: permanentIdentifier{name}}, "tag:0")
		if err != nil {
			t.Fatal(err)
		}
		return asn1.RawValue{FullBytes: der}
	}
	other := asn1.ObjectIdentifier{2, 23, 133, 8, 1} // of an EK
	counted := func() int64 { return refused.Load() + int64(h.count(audit.Refused)) }
	for what, change := range map[string]func(*akCertificate){
		"":                      func(*akCertificate) {},
		"with a subject":        func(a *akCertificate) { a.template.Subject.CommonName = "gw-1" },
		"of an authority":       func(a *akCertificate) { a.template.IsCA, a.template.KeyUsage = true, x509.KeyUsageCertSign },
		"for no use":            func(a *akCertificate) { a.usage = nil },
		"for another use":       func(a *akCertificate) { a.usage[0] = other },
		"for another use first": func(a *akCertificate) { a.usage = append([]asn1.ObjectIdentifier{other}, a.usage...) },
		"without manufacturer":  func(a *akCertificate) { a.names[0] = without(t, a.names[0], oidManufacturer) },
		"without model":         func(a *akCertificate) { a.names[0] = without(t, a.names[0], oidModel) },
		"without version":       func(a *akCertificate) { a.names[0] = without(t, a.names[0], oidVersion) },
		"without description":   func(a *akCertificate) { a.names = a.names[1:] },
		"without any name":      func(a *akCertificate) { a.names = nil },
		"for no gateway":        func(a *akCertificate) { a.names = []asn1.RawValue{a.names[0], a.names[2]} },
		"for another gateway":   func(a *akCertificate) { a.names[1] = identifier("gw-2") },
		"for two gateways":      func(a *akCertificate) { a.names = append(a.names, identifier("gw-2")) },
		"without an EK":         func(a *akCertificate) { a.names = a.names[:2] },
		"with an EK of no form": func(a *akCertificate) { a.names[2].Bytes = []byte(ekPrefix + "AAAA") },
		"with an EK that nobody has": func(a *akCertificate) {
			a.names[2].Bytes = []byte(ekPrefix + base64.StdEncoding.EncodeToString(make([]byte, 32)))
		},
		"with a demand that is unknown": func(a *akCertificate) {
			a.template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		},
		"that has ended": func(a *akCertificate) { a.template.NotAfter = time.Now().Add(-time.Minute) },
		"that has not begun": func(a *akCertificate) {
			a.template.NotBefore = time.Now().Add(time.Hour)
			a.template.NotAfter = time.Now().Add(2 * time.Hour)
		},
		"of another key":       func(a *akCertificate) { a.public = h.ca.cfg.AttestationKey.Public() },
		"of an elliptical key": func(a *akCertificate) { a.public = elliptical.Public() },
		"of a stranger's CA":   func(a *akCertificate) { a.by, a.key = stranger, strangersKey },
		"of the issuing CA":    func(a *akCertificate) { a.by, a.key = h.ca.Issuer(), h.ca.cfg.IssuingKey },
		"of the root":          func(a *akCertificate) { a.by, a.key = h.root, h.rootKey },
	} {
		t.Run(what, func(t *testing.T) {
			a := &akCertificate{
				template: &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: genuine.NotBefore.Add(-time.Hour), NotAfter: genuine.NotAfter,
					KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true},
				usage: []asn1.ObjectIdentifier{oidAIKCertificate}, public: genuine.PublicKey, by: h.ca.cfg.Attestation, key: h.ca.cfg.AttestationKey,
			}
			for _, e := range genuine.Extensions {
				if e.Id.Equal(oidSubjectAltName) {
					if _, err := asn1.Unmarshal(e.Value, &a.names); err != nil || len(a.names) != 3 {
						t.Fatalf("%d names, %v", len(a.names), err)
					}
				}
			}
			for i := range a.names { // RawValue would write what it was read from
				a.names[i].FullBytes = nil
			}
			change(a)
			der := a.sign(t)
			board.answers(t, client, counted, what == "", func(keyAuthorization string) []byte {
				payload, err := board.Payload(keyAuthorization, [][]byte{der, a.by.Raw})
				if err != nil {
					t.Fatal(err)
				}
				return payload
			})
		})
	}
}

// sign makes the certificate.
func (a *akCertificate) sign(t *testing.T) []byte {
	t.Helper()
	if a.names != nil {
		san, err := asn1.Marshal(a.names)
		if err != nil {
			t.Fatal(err)
		}
		a.template.ExtraExtensions = append(a.template.ExtraExtensions, pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: san})
	}
	if a.usage != nil {
		usage, err := asn1.Marshal(a.usage)
		if err != nil {
			t.Fatal(err)
		}
		a.template.ExtraExtensions = append(a.template.ExtraExtensions, pkix.Extension{Id: oidExtKeyUsage, Value: usage})
	}
	der, err := x509.CreateCertificate(rand.Reader, a.template, a.by, a.public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
