package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	x509pkix "crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"wardlink/enroll/verify"
	"wardlink/internal/swtpmtest"
)

// testMaker signs certificates for EKs of which swtpm's own maker signs none.
type testMaker struct {
	t    *testing.T
	key  *rsa.PrivateKey
	root *x509.Certificate
}

func newTestMaker(t *testing.T) *testMaker {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m := &testMaker{t: t, key: key}
	m.root = m.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, key.Public())
	return m
}

func (m *testMaker) sign(template *x509.Certificate, key any) *x509.Certificate {
	m.t.Helper()
	template.SerialNumber, template.Subject = big.NewInt(1), x509pkix.Name{CommonName: "a maker"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := m.root
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return cert
}

// certify is a certificate of this TPM's EK of one kind.
func (m *testMaker) certify(d *TPM, kind int) []byte {
	m.t.Helper()
	var public []byte
	k := ekKinds()[kind]
	if err := d.do(m.t.Context(), "derive an EK", func(c *conn) error {
		e, err := c.deriveEK(&k)
		if err != nil {
			return err
		}
		public, err = pkix(&e.public)
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.sign(&x509.Certificate{UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}}, key).Raw
}

// nvWrite has data in an NV index, which its maker does by platform authority; nil removes it.
func nvWrite(t *testing.T, d *TPM, index uint32, data []byte) {
	t.Helper()
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	if err := d.do(t.Context(), "write NV", func(c *conn) error {
		if old, err := (tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}).Execute(c); err == nil {
			if _, err := (tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: old.NVName}}).Execute(c); err != nil {
				return err
			}
		}
		if data == nil {
			return nil
		}
		if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256,
			Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true}, DataSize: uint16(len(data))})}).Execute(c); err != nil {
			return err
		}
		for at := 0; at < len(data); {
			public, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(c)
			if err != nil {
				return err
			}
			part := data[at:min(at+512, len(data))]
			if _, err := (tpm2.NVWrite{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: public.NVName},
				Data: tpm2.TPM2BMaxNVBuffer{Buffer: part}, Offset: uint16(at)}).Execute(c); err != nil {
				return err
			}
			at += len(part)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestEachKindOfEK: whichever EK its maker certified is the one by which a TPM makes keys, proves them and signs; what it shows chains.
func TestEachKindOfEK(t *testing.T) {
	const rsaLow, p256Low, rsaHigh, p256High, p384High = 0, 1, 2, 3, 4
	m := newTestMaker(t)
	for name, row := range map[string]struct {
		certified int // -1: no certificate
		algorithm string
	}{
		"RSA-2048, low range": {rsaLow, "RSA-2048"}, "P-256, low range": {p256Low, "P-256"}, "RSA-2048, high range": {rsaHigh, "RSA-2048"},
		"P-256, high range": {p256High, "P-256"}, "P-384, high range": {p384High, "P-384"}, "none": {-1, "RSA-2048"},
	} {
		t.Run(name, func(t *testing.T) {
			sw := swtpmtest.Start(t)
			d := open(t, sw.Path)
			nvWrite(t, d, 0x01C00002, nil)
			nvWrite(t, d, 0x01C00016, nil)
			m.t = t
			between := m.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, m.key.Public()).Raw
			if row.certified >= 0 {
				der := m.certify(d, row.certified)
				nvWrite(t, d, ekKinds()[row.certified].certificate, append(der, bytes.Repeat([]byte{0xFF}, 64)...))
				// A chain in two indices, the border amid a certificate, with padding behind it.
				nvWrite(t, d, 0x01C00100, between[:300])
				nvWrite(t, d, 0x01C00101, append(append(bytes.Clone(between[300:]), 0, 0, 0), m.root.Raw...))
			}
			ek, err := d.EK(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := verify.KeyAlgorithm(ek.Public); got != row.algorithm || (ek.Certificate != nil) != (row.certified >= 0) || ek.Certificate != nil && len(ek.Chain) != 2 {
				t.Fatalf("%s, %d bytes of certificate, %d certificates above it", got, len(ek.Certificate), len(ek.Chain))
			}
			dir := t.TempDir()
			keys, err := CreateKeys(t.Context(), d, dir)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AddCert(m.root)
			ak := keys.AK()
			r := &verify.Request{EK: ek.Public, AttestParams: verify.Params{Public: ak.Public, CreateData: ak.CreateData, CreateAttestation: ak.CreateAttestation, CreateSignature: ak.CreateSignature}}
			if ek.Certificate != nil {
				r.EKCerts = append([][]byte{ek.Certificate}, ek.Chain...)
			}
			v, err := verify.Attestation(r, verify.Trust{Roots: roots}, time.Now())
			if err != nil || v.Chain != (row.certified >= 0) {
				t.Fatalf("%v; %+v", err, v)
			}
			answers(t, keys, v)
			// Over a restart, and with another EK's certificate than when the keys were made: the key files say which EK it is.
			d.Close()
			sw.Restart()
			d = open(t, sw.Path)
			if row.certified != rsaLow {
				nvWrite(t, d, 0x01C00002, m.certify(d, rsaLow))
			} else {
				nvWrite(t, d, 0x01C00002, nil)
				nvWrite(t, d, 0x01C00016, m.certify(d, p384High))
			}
			again, err := OpenKeys(t.Context(), d, dir)
			if err != nil {
				t.Fatal(err)
			}
			if now, err := d.EK(t.Context()); err != nil || now.Hash != ek.Hash {
				t.Fatalf("the EK is another one: %v", err)
			}
			answers(t, again, v)
			if n := loaded(t, d); n != 0 {
				t.Fatalf("%d slots are left occupied", n)
			}
		})
	}
}

// answers has the keys do all that they are for.
func answers(t *testing.T, keys *Keys, v *verify.Verified) {
	t.Helper()
	plain := []byte("thirty-two bytes of the server's")
	challenge, err := v.Seal(rand.Reader, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := keys.ActivateCredential(t.Context(), challenge.Credential, challenge.Secret); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("activate: %v", err)
	}
	if _, err := keys.Certify(t.Context(), sha256.Sum256(nil)); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	if _, err := keys.Device().Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
}

// Key files of another TPM pin nothing, whatever EKs there are.
func TestForeignKeyFilesPinNothing(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Path)
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.pin(t.Context(), [32]byte{1}); !errors.Is(err, ErrForeign) {
		t.Errorf("an EK that is not there: %v", err)
	}
	if now, err := d.EK(t.Context()); err != nil || now.Hash != ek.Hash {
		t.Errorf("afterwards: %v, another EK", err)
	}
}
