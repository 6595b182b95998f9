package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	x509pkix "crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"wardlink/enroll/verify"
)

func TestEndorsement(t *testing.T) {
	verdict := func(t *testing.T, change func(*verify.Request), by verify.Trust, now time.Time) (*verify.Verified, error) {
		t.Helper()
		r := request(t)
		change(r)
		return verify.Attestation(r, by, now)
	}
	whole := trust(t)
	now := within(t)
	same := func(*verify.Request) {}

	if _, err := verdict(t, func(r *verify.Request) { r.EK = []byte("ek") }, whole, now); !errors.Is(err, verify.ErrEK) {
		t.Errorf("junk for an EK: %v", err)
	}
	ec := func(curve elliptic.Curve) any {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key.Public()
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	odd := func(bits int) *big.Int { return new(big.Int).SetBit(big.NewInt(1), bits-1, 1) }
	for name, key := range map[string]any{
		"RSA-3072": &rsa.PublicKey{N: odd(3072), E: 65537}, "RSA-2048 with an exponent of 3": &rsa.PublicKey{N: odd(2048), E: 3},
		"P-521": ec(elliptic.P521()), "P-224": ec(elliptic.P224()), "Ed25519": ed,
	} {
		if _, err := verdict(t, func(r *verify.Request) { r.EK, r.EKCerts = pkix(t, key), nil }, whole, now); !errors.Is(err, verify.ErrEK) {
			t.Errorf("%s as EK: %v", name, err)
		}
	}
	// A key that is an EK by its form and that nobody can encrypt to.
	even, err := verdict(t, func(r *verify.Request) {
		r.EK, r.EKCerts = pkix(t, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537}), nil
	}, whole, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := even.Seal(rand.Reader, make([]byte, 32)); err == nil {
		t.Error("a secret is sealed to a key with an even modulus")
	}
	p384, err := verify.UnwrapCertificate(readFile(t, "nv-p384.der"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verdict(t, func(r *verify.Request) { r.EKCerts = [][]byte{p384} }, whole, now); !errors.Is(err, verify.ErrEKCert) {
		t.Errorf("the certificate of the TPM's other EK: %v", err)
	}
	for name, row := range map[string]struct {
		change func(*verify.Request)
		trust  verify.Trust
		now    time.Time
	}{
		"no certificate":     {func(r *verify.Request) { r.EKCerts = nil }, whole, now},
		"an unknown maker":   {same, verify.Trust{Roots: x509.NewCertPool(), Intermediates: whole.Intermediates}, now},
		"no trusted maker":   {same, verify.Trust{}, now},
		"no intermediate":    {same, verify.Trust{Roots: whole.Roots}, now},
		"not yet valid":      {same, whole, now.Add(-100 * 24 * time.Hour)},
		"unreadable":         {func(r *verify.Request) { r.EKCerts = [][]byte{[]byte("certificate")} }, whole, now},
		"a cut certificate":  {func(r *verify.Request) { r.EKCerts[0] = r.EKCerts[0][:300] }, whole, now},
		"a broken signature": {func(r *verify.Request) { r.EKCerts[0][len(r.EKCerts[0])-1] ^= 1 }, whole, now},
	} {
		v, err := verdict(t, row.change, row.trust, row.now)
		if err != nil || v.Chain || v.ChainErr == nil {
			t.Errorf("%s: %v, chain %v", name, err, v)
		} else if v.Manufacturer == "" || v.Model == "" || v.Version == "" {
			t.Errorf("%s: the TPM is not described: %+v", name, v)
		}
	}
	if v, err := verdict(t, same, verify.Trust{}, now); err != nil || v.ChainErr != verify.ErrNoTrust {
		t.Errorf("without trust the system's roots are asked: %v %v", v, err)
	}
	// The ECC EK is as good: its challenge can be made.
	cert, err := x509.ParseCertificate(p384)
	if err != nil {
		t.Fatal(err)
	}
	der := pkix(t, cert.PublicKey)
	v, err := verdict(t, func(r *verify.Request) { r.EK, r.EKCerts = der, [][]byte{p384} }, whole, now)
	if err != nil || !v.Chain {
		t.Fatalf("P-384: %v %v", v, err)
	}
	if _, err := v.Seal(rand.Reader, make([]byte, 32)); err != nil {
		t.Error(err)
	}
}

// A certificate of the maker's CA that is not for an EK does not make one.
func TestUsageIsChecked(t *testing.T) {
	platform := readFile(t, "not-ek.der")
	cert, err := x509.ParseCertificate(platform)
	if err != nil {
		t.Fatal(err)
	}
	der := pkix(t, cert.PublicKey)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	r := request(t)
	r.EK, r.EKCerts = der, [][]byte{platform}
	v, err := verify.Attestation(r, verify.Trust{Roots: pool}, cert.NotBefore.Add(time.Hour))
	if err != nil || v.Chain || !strings.Contains(v.ChainErr.Error(), "2.23.133.8.1") {
		t.Errorf("%v, chain %+v", err, v)
	}
}

func pkix(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// maker is a TPM maker with a root and an intermediate.
type maker struct {
	t          *testing.T
	root, ca   *x509.Certificate
	rootK, caK *rsa.PrivateKey
}

func newMaker(t *testing.T, root, ca *rsa.PrivateKey) *maker {
	m := &maker{t: t, rootK: root, caK: ca}
	sign := func(name string, parent *x509.Certificate, key, by *rsa.PrivateKey) *x509.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkixName(name), NotBefore: within(t).Add(-time.Hour), NotAfter: within(t).Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		if parent == nil {
			parent = template
		}
		return m.certificate(template, parent, key.Public(), by)
	}
	m.root = sign("root", nil, m.rootK, m.rootK)
	m.ca = sign("between", m.root, m.caK, m.rootK)
	return m
}

func pkixName(name string) x509pkix.Name { return x509pkix.Name{CommonName: "a maker's " + name} }

func (m *maker) certificate(template, parent *x509.Certificate, key any, by *rsa.PrivateKey) *x509.Certificate {
	m.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return cert
}

// ek is the certificate of the recorded TPM's EK by this maker.
func (m *maker) ek() *x509.Certificate {
	m.t.Helper()
	key, err := x509.ParsePKIXPublicKey(request(m.t).EK)
	if err != nil {
		m.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: x509pkix.Name{OrganizationalUnit: []string{"aaaaaaaa", "bbbbbbbb"}}, NotBefore: within(m.t).Add(-time.Hour), NotAfter: within(m.t).Add(time.Hour),
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}}
	return m.certificate(template, m.ca, key, m.caK)
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// TestShownCertificates: what TPMs hold in the field, and what a stranger would like to pass for it.
func TestShownCertificates(t *testing.T) {
	m := newMaker(t, softKey(t, 0), softKey(t, 1))
	ek := m.ek()
	header := append([]byte{0x10, 0x01, 0x00, byte(len(ek.Raw) >> 8), byte(len(ek.Raw))}, ek.Raw...)
	padded := append(bytes.Clone(ek.Raw), bytes.Repeat([]byte{0xff}, 100)...)
	stranger := newMaker(t, softKey(t, 1), softKey(t, 0)) // another root of the same name
	for name, row := range map[string]struct {
		shown [][]byte
		trust verify.Trust
		chain bool
	}{
		"the intermediate in the bundle": {[][]byte{ek.Raw}, verify.Trust{Roots: pool(m.root), Intermediates: pool(m.ca)}, true},
		"in the TPM":                     {[][]byte{ek.Raw, m.ca.Raw}, verify.Trust{Roots: pool(m.root)}, true},
		"in both":                        {[][]byte{ek.Raw, m.ca.Raw}, verify.Trust{Roots: pool(m.root), Intermediates: pool(m.ca)}, true},
		"before the certificate":         {[][]byte{m.ca.Raw, ek.Raw}, verify.Trust{Roots: pool(m.root)}, true},
		"nowhere":                        {[][]byte{ek.Raw}, verify.Trust{Roots: pool(m.root)}, false},
		"a root that the TPM brings":     {[][]byte{ek.Raw, m.ca.Raw, m.root.Raw}, verify.Trust{Roots: pool(stranger.root)}, false},
		"a chain without a certificate":  {[][]byte{m.ca.Raw}, verify.Trust{Roots: pool(m.root)}, false},
		"padded":                         {[][]byte{padded}, verify.Trust{Roots: pool(m.root), Intermediates: pool(m.ca)}, true},
		"behind a TCG header":            {[][]byte{header}, verify.Trust{Roots: pool(m.root), Intermediates: pool(m.ca)}, true},
		"junk before the right one":      {[][]byte{{1, 2, 3}, {0x30, 0}, ek.Raw}, verify.Trust{Roots: pool(m.root), Intermediates: pool(m.ca)}, true},
		"key under RSAES-OAEP":           {[][]byte{m.reencoded(ek, oaep)}, verify.Trust{Roots: pool(m.root), Intermediates: pool(m.ca)}, true},
		"a set that is not in order":     {[][]byte{m.reencoded(ek, disorder)}, verify.Trust{Roots: pool(m.root), Intermediates: pool(m.ca)}, true},
	} {
		r := request(t)
		r.EKCerts = row.shown
		v, err := verify.Attestation(r, row.trust, within(t))
		if err != nil || v.Chain != row.chain || v.Chain != (v.ChainErr == nil) {
			t.Errorf("%s: %v; %+v", name, err, v)
		}
	}
	r := request(t)
	r.EKCerts = [][]byte{{1, 2, 3}}
	if v, err := verify.Attestation(r, trust(t), within(t)); err != nil || !strings.Contains(v.ChainErr.Error(), "not a DER sequence") {
		t.Errorf("junk: %v; %+v", err, v)
	}
	// Trust grows by nothing that was shown.
	by := verify.Trust{Roots: pool(m.root), Intermediates: pool()}
	for _, shown := range [][][]byte{{ek.Raw, m.ca.Raw}, {ek.Raw}} {
		r := request(t)
		r.EKCerts = shown
		if v, err := verify.Attestation(r, by, within(t)); err != nil || v.Chain != (len(shown) == 2) {
			t.Errorf("%d shown: %v; %+v", len(shown), err, v)
		}
	}
}

// reencoded is a certificate whose signed part was changed, with the maker's signature over it.
func (m *maker) reencoded(cert *x509.Certificate, change func(t *testing.T, tbs []byte) []byte) []byte {
	m.t.Helper()
	tbs := change(m.t, bytes.Clone(cert.RawTBSCertificate))
	sum := sha256.Sum256(tbs)
	sig, err := rsa.SignPKCS1v15(nil, m.caK, crypto.SHA256, sum[:])
	if err != nil {
		m.t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm x509pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, x509pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
	if err != nil {
		m.t.Fatal(err)
	}
	return der
}

// swapped has one piece of DER in another's place, of the same length.
func swapped(t *testing.T, tbs, from, to []byte) []byte {
	t.Helper()
	if len(from) != len(to) || bytes.Count(tbs, from) != 1 {
		t.Fatalf("%d times in the certificate; expected once", bytes.Count(tbs, from))
	}
	return bytes.Replace(tbs, from, to, 1)
}

// oaep names the key's algorithm RSAES-OAEP instead of rsaEncryption.
func oaep(t *testing.T, tbs []byte) []byte {
	spki := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0}
	as := bytes.Clone(spki)
	as[8] = 7
	return swapped(t, tbs, spki, as)
}

// disorder has the members of a set in the subject in the wrong order, which DER does not allow and Nuvoton's certificates have.
func disorder(t *testing.T, tbs []byte) []byte {
	return swapped(t, swapped(t, swapped(t, tbs, []byte("aaaaaaaa"), []byte("cccccccc")), []byte("bbbbbbbb"), []byte("aaaaaaaa")), []byte("cccccccc"), []byte("bbbbbbbb"))
}

func TestSplitCertificates(t *testing.T) {
	m := newMaker(t, softKey(t, 0), softKey(t, 1))
	text := append(append(append([]byte{0, 0}, m.ca.Raw...), 0xff, 0xff), m.root.Raw...)
	got := verify.SplitCertificates(append(text, 0xff), 4)
	if len(got) != 2 || !bytes.Equal(got[0], m.ca.Raw) || !bytes.Equal(got[1], m.root.Raw) {
		t.Errorf("%d certificates", len(got))
	}
	if len(verify.SplitCertificates(text, 1)) != 1 || verify.SplitCertificates(m.ca.Raw[:100], 4) != nil {
		t.Error("more than asked for, or a part of one")
	}
}

func TestUnwrapCertificate(t *testing.T) {
	der := request(t).EKCerts[0]
	header := append([]byte{0x10, 0x01, 0x00, byte(len(der) >> 8), byte(len(der))}, der...)
	for name, nv := range map[string][]byte{
		"bare":                der,
		"padded with FF":      append(bytes.Clone(der), bytes.Repeat([]byte{0xff}, 500)...),
		"padded with 00":      append(bytes.Clone(der), make([]byte, 500)...),
		"TCG header":          header,
		"TCG header, padding": append(bytes.Clone(header), bytes.Repeat([]byte{0xff}, 9)...),
	} {
		got, err := verify.UnwrapCertificate(nv)
		if err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, nv := range map[string][]byte{
		"nothing": nil, "only padding": bytes.Repeat([]byte{0xff}, 100), "cut": der[:len(der)-1], "header lies": header[:len(header)-1],
		"not a sequence": {0x04, 0x02, 1, 2},
	} {
		if _, err := verify.UnwrapCertificate(nv); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// What is found lies in the text, in its order, and is not more than was asked for.
func FuzzSplitCertificates(f *testing.F) {
	der := request(f).EKCerts[0]
	f.Add(append(bytes.Clone(der), der...))
	f.Add(append(append([]byte{0xff, 0x00}, der...), 0x30, 0))
	f.Fuzz(func(t *testing.T, text []byte) {
		found := verify.SplitCertificates(text, 3)
		if len(found) > 3 {
			t.Fatalf("%d", len(found))
		}
		for _, der := range found {
			at := bytes.Index(text, der)
			if at < 0 || len(der) < 2 {
				t.Fatal("a certificate that is not there")
			}
			text = text[at+len(der):]
		}
	})
}

func FuzzUnwrapCertificate(f *testing.F) {
	f.Add(request(f).EKCerts[0])
	f.Add(readFile(f, "nv-p384.der"))
	f.Add([]byte{0x10, 0x01, 0x00, 0x00, 0x02, 0x30, 0x00, 0xff})
	f.Fuzz(func(t *testing.T, nv []byte) {
		der, err := verify.UnwrapCertificate(nv)
		if err == nil && !bytes.Contains(nv, der) {
			t.Fatal("the certificate is not in the index")
		}
	})
}
