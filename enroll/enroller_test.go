package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/enroll/tpm"
	"wardlink/internal/durable"
	"wardlink/internal/swtpmtest"
)

func TestMain(m *testing.M) { swtpmtest.Main(m) }

// canned answers each path with the same response.
type canned map[string]*http.Response

func (c canned) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, ok := c[r.URL.Path]
	if !ok {
		return nil, errors.New("unexpected request to " + r.URL.Path)
	}
	return answer, nil
}

func response(status int, kind, body string) *http.Response {
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Content-Type": {kind}},
		Body: io.NopCloser(strings.NewReader(body))}
}

func enroller(t *testing.T, d *tpm.TPM, dir string, transport http.RoundTripper) *Enroller {
	t.Helper()
	e, err := New(Config{TPM: d, Dir: dir, Attestation: "https://gw.ward.example/attestation", Directory: "https://gw.ward.example/acme/attest/directory",
		HTTP: &http.Client{Transport: transport}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func openTPM(t *testing.T) *tpm.TPM {
	t.Helper()
	d, err := tpm.Open(t.Context(), swtpmtest.Start(t).Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestAnswersOfTheAttestationCA(t *testing.T) {
	d := openTPM(t)
	dir := t.TempDir()
	var waiting *WaitingError
	for name, row := range map[string]struct {
		answer *http.Response
		check  func(error) bool
	}{
		"waiting": {response(403, "application/problem+json", `{"type":"urn:wardlink:waiting","fingerprint":"AAAA-BBBB-CCCC-DDDD"}`),
			func(err error) bool { return errors.As(err, &waiting) && waiting.Fingerprint == "AAAA-BBBB-CCCC-DDDD" }},
		"another problem": {response(403, "application/problem+json; charset=utf-8", `{"type":"urn:wardlink:attestation","detail":"AK: may decrypt"}`),
			func(err error) bool {
				return !errors.As(err, new(*WaitingError)) && strings.Contains(err.Error(), "AK: may decrypt")
			}},
		"not a problem document": {response(502, "text/html", "<html>"), func(err error) bool { return strings.Contains(err.Error(), "Bad Gateway") }},
		"endless":                {response(200, "application/json", strings.Repeat(" ", maxAnswer+10)), func(err error) bool { return strings.Contains(err.Error(), "longer than") }},
		"not JSON":               {response(200, "application/json", "["), func(err error) bool { return err != nil }},
		"no challenge":           {response(200, "application/json", "{}"), func(err error) bool { return strings.Contains(err.Error(), "credential") }},
	} {
		_, err := enroller(t, d, dir, canned{"/attestation/attest": row.answer}).Enroll(t.Context())
		if err == nil || !row.check(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoad(t *testing.T) {
	d := openTPM(t)
	dir := t.TempDir()
	e := enroller(t, d, dir, canned{})
	if _, err := e.Load(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("a fresh gateway: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "device.tpm")); err == nil {
		t.Error("Load made keys")
	}
	// A certificate of another key, and one that is no certificate: they can be had again, so the gateway enrols again.
	if _, err := tpm.CreateKeys(t.Context(), d, dir); err != nil {
		t.Fatal(err)
	}
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gw-1"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, soft.Public(), soft)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"of another key": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"damaged":        pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der[:50]}),
		"no PEM":         []byte("certificate"),
		"huge":           bytes.Repeat([]byte("x"), maxChain+1),
	} {
		if err := os.WriteFile(filepath.Join(dir, chainFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := enroller(t, d, dir, canned{}).Load(t.Context()); !errors.Is(err, ErrNone) {
			t.Errorf("a chain %s: %v", name, err)
		}
	}
	// Without its keys the same directory is an enrolled gateway that lost them.
	if err := os.Remove(filepath.Join(dir, "device.tpm")); err != nil {
		t.Fatal(err)
	}
	if _, err := enroller(t, d, dir, canned{}).Load(t.Context()); !errors.Is(err, tpm.ErrMissing) {
		t.Errorf("lost keys: %v", err)
	}
}

func TestAccountKeyIsKept(t *testing.T) {
	e := &Enroller{cfg: Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}}
	made, err := e.accountKey()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := e.accountKey()
	if err != nil || !made.Equal(kept) {
		t.Errorf("the account key changes: %v", err)
	}
	if err := os.WriteFile(filepath.Join(e.cfg.Dir, accountFile), []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	anew, err := e.accountKey()
	if err != nil || anew.Equal(made) {
		t.Fatalf("a damaged account key holds up the enrolment: %v", err)
	}
	if kept, err := e.accountKey(); err != nil || !anew.Equal(kept) {
		t.Errorf("the new account key changes: %v", err)
	}
	if raw, err := os.ReadFile(filepath.Join(e.cfg.Dir, accountFile+durable.DamagedSuffix)); err != nil || string(raw) != "key" {
		t.Errorf("set aside: %q, %v", raw, err)
	}
}

func TestNewRefusesHalfAConfiguration(t *testing.T) {
	whole := Config{TPM: &tpm.TPM{}, Dir: "d", Attestation: "https://a", Directory: "https://d", HTTP: http.DefaultClient, Log: slog.Default()}
	if _, err := New(whole); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no TPM": func(c *Config) { c.TPM = nil }, "no directory": func(c *Config) { c.Dir = "" },
		"plain HTTP": func(c *Config) { c.Directory = "http://d" }, "no client": func(c *Config) { c.HTTP = nil },
	} {
		c := whole
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A SubjectAltName as the attestation CA writes it: a directory name, the permanent identifier gw-1, a URI.
const akNames = "301ea00f06082b06010505070803a0030c0130a00b0603550403a0040c0267310601" // the last is cut

func TestPermanentIdentifiers(t *testing.T) {
	san, err := hex.DecodeString("3015a01306082b06010505070803a00730050c0367772d")
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{Extensions: []pkix.Extension{{Id: oidSubjectAltName, Value: san}}}
	if names, err := PermanentIdentifiers(cert); err != nil || !slices.Equal(names, []string{"gw-"}) {
		t.Errorf("%q %v", names, err)
	}
	cut, err := hex.DecodeString(akNames)
	if err != nil {
		t.Fatal(err)
	}
	cert.Extensions[0].Value = cut
	if names, err := PermanentIdentifiers(cert); err == nil {
		t.Errorf("a cut name: %q", names)
	}
}

func FuzzPermanentIdentifiers(f *testing.F) {
	for _, seed := range []string{akNames, "3015a01306082b06010505070803a00730050c0367772d", "3000"} {
		der, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, san []byte) {
		_, _ = PermanentIdentifiers(&x509.Certificate{Extensions: []pkix.Extension{{Id: oidSubjectAltName, Value: san}}})
	})
}

func FuzzParseChain(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("junk"))
	f.Fuzz(func(t *testing.T, data []byte) { _ = parseChain(data) })
}
