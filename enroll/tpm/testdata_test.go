package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"flag"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wardlink/enroll/verify"
	"wardlink/internal/swtpmtest"
)

var makeTestdata = flag.Bool("make-testdata", false, "write enroll/verify/testdata from a fresh swtpm")

// TestRecordedRequestIsCurrent holds the verifier's recorded request against what this package makes today, field by field, and with
// -make-testdata writes it anew.
func TestRecordedRequestIsCurrent(t *testing.T) {
	dir := filepath.Join("..", "verify", "testdata")
	id := swtpmtest.Shared(t)
	d := open(t, id.Start(t).Path)
	request, p384 := record(t, d)
	if *makeTestdata {
		files := map[string][]byte{"request.json": request, "nv-p384.der": p384, "not-ek.der": notEK(t)}
		for name, from := range map[string]string{"root.pem": "swtpm-localca-rootca-cert.pem", "issuer.pem": "issuercert.pem"} {
			data, err := os.ReadFile(filepath.Join(id.CA, from))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = data
		}
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	recorded, err := os.ReadFile(filepath.Join(dir, "request.json"))
	if err != nil {
		t.Fatal(err)
	}
	var was, is verify.Request
	for data, into := range map[*verify.Request][]byte{&was: recorded, &is: request} {
		if err := json.Unmarshal(into, data); err != nil {
			t.Fatal(err)
		}
	}
	if was.TPMInfo.Model != is.TPMInfo.Model || len(was.EK) != len(is.EK) || len(was.EKCerts) != len(is.EKCerts) ||
		len(was.AttestParams.Public) != len(is.AttestParams.Public) || len(was.AttestParams.CreateAttestation) != len(is.AttestParams.CreateAttestation) {
		t.Error("the recorded request has another shape than one made now; run go test ./enroll/tpm -make-testdata")
	}
}

// record is an attestation request and the raw content of the P-384 EK certificate's NV index.
func record(t *testing.T, d *TPM) (request, p384 []byte) {
	t.Helper()
	keys, err := CreateKeys(t.Context(), d, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ak := keys.AK()
	request, err = json.MarshalIndent(verify.Request{
		TPMInfo: verify.TPMInfo{Version: 2, Manufacturer: info.Manufacturer, Model: info.Model, FirmwareVersion: info.Firmware},
		EK:      ek.Public, EKCerts: [][]byte{ek.Certificate},
		AttestParams: verify.Params{Public: ak.Public, CreateData: ak.CreateData, CreateAttestation: ak.CreateAttestation, CreateSignature: ak.CreateSignature},
	}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.do(t.Context(), "read NV", func(c *conn) error { p384, err = c.certificate(0x01C00016); return err }); err != nil {
		t.Fatal(err)
	}
	return request, p384
}

// notEK is a certificate of another TCG usage, tcg-kp-PlatformAttributeCertificate.
func notEK(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().AddDate(10, 0, 0),
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 2}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
