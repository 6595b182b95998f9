package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/verify"
	"wardlink/internal/spiffe"
	"wardlink/internal/swtpmtest"
	"wardlink/server/ca/acmedb"
)

func TestSecretIsSingleUseAndShortLived(t *testing.T) {
	now := time.Now()
	h := newHospital(t, func(c *Config) { c.Now = func() time.Time { return now } })
	a := h.attacker(t, swtpmtest.Start(t).Path)
	h.registry.active[a.ek.Hash] = "gw-1"

	if status, _ := a.post("/attestation/secret", verify.SecretRequest{Secret: make([]byte, secretSize)}); status != http.StatusForbidden {
		t.Errorf("a guessed secret: %d", status)
	}
	right := a.activate(a.challenge(a.request()))
	wrong := bytes.Clone(right)
	wrong[31] ^= 1
	if status, _ := a.post("/attestation/secret", verify.SecretRequest{Secret: wrong}); status != http.StatusForbidden {
		t.Errorf("a wrong secret: %d", status)
	}
	if status, _ := a.post("/attestation/secret", verify.SecretRequest{Secret: right}); status != http.StatusOK {
		t.Errorf("the right secret: %d", status)
	}
	if status, _ := a.post("/attestation/secret", verify.SecretRequest{Secret: right}); status != http.StatusForbidden {
		t.Errorf("a replayed secret: %d", status)
	}
	late := a.activate(a.challenge(a.request()))
	now = now.Add(acmedb.LifeChallenge + time.Second)
	if status, _ := a.post("/attestation/secret", verify.SecretRequest{Secret: late}); status != http.StatusForbidden {
		t.Errorf("a secret after its minute: %d", status)
	}
	if n := h.count(audit.AKCertified); n != 1 {
		t.Errorf("%d AK events; expected 1", n)
	}
}

// An AK of one TPM beside the EK of another: the challenge opens in neither, and nobody enters the waiting list.
func TestForeignAK(t *testing.T) {
	h := newHospital(t, nil)
	mine := h.attacker(t, swtpmtest.Start(t).Path)
	victim := h.attacker(t, swtpmtest.Manufacture(t).Start(t).Path)
	h.registry.active[victim.ek.Hash] = "gw-victim"
	r := mine.request()
	r.EK, r.EKCerts = victim.ek.Public, [][]byte{victim.ek.Certificate}
	c := mine.challenge(r)
	if _, err := mine.keys.ActivateCredential(t.Context(), c.Credential, c.Secret); err == nil {
		t.Error("the AK's TPM opened the challenge for another EK")
	}
	if _, err := victim.keys.ActivateCredential(t.Context(), c.Credential, c.Secret); err == nil {
		t.Error("the EK's TPM opened the challenge for another AK")
	}
	r = mine.request()
	r.EKCerts = [][]byte{victim.ek.Certificate}
	if status, body := mine.post("/attestation/attest", r); status != http.StatusForbidden || !strings.Contains(string(body), verify.ErrEKCert.Error()) {
		t.Errorf("the certificate of another EK: %d %s", status, body)
	}
	if len(h.registry.waiting) != 0 {
		t.Error("an unproven EK is on the waiting list")
	}
}

func TestOrderForAnotherGateway(t *testing.T) {
	h := newHospital(t, nil)
	a := h.attacker(t, swtpmtest.Start(t).Path)
	h.registry.active[a.ek.Hash] = "gw-mine"
	chain := a.akChain()

	_, challenge, err := a.prove("gw-victim", chain, -257)
	if err != nil || challenge.Status != acme.StatusInvalid {
		t.Errorf("an order under another name: %v, challenge %+v", err, challenge)
	}
	// The same with an AK certificate that names nobody, which smallstep alone would accept.
	nameless := h.nameless(t, a)
	_, challenge, err = a.prove("gw-mine", nameless, -257)
	if err != nil || challenge.Status != acme.StatusInvalid || !strings.Contains(challenge.Error.Error(), "not for gw-mine") {
		t.Errorf("an AK certificate without a name: %v, challenge %+v", err, challenge)
	}
	if n := h.count(audit.Refused); n != 1 {
		t.Errorf("%d refusals journaled; expected 1", n)
	}
	// An honest attestation whose registry entry is another gateway's by now.
	h.registry.set(func() { h.registry.active[a.ek.Hash] = "gw-other" })
	_, challenge, err = a.prove("gw-mine", chain, -257)
	if err != nil || challenge.Status != acme.StatusInvalid || !strings.Contains(challenge.Error.Error(), "not the gateway") {
		t.Errorf("an EK that was moved: %v, challenge %+v", err, challenge)
	}
	for _, ids := range [][]acme.AuthzID{
		{{Type: "dns", Value: "gw-mine"}},
		{{Type: "permanent-identifier", Value: "gw-mine"}, {Type: "permanent-identifier", Value: "gw-victim"}},
		{{Type: "permanent-identifier", Value: "gw/../operator/admin"}},
	} {
		_, err := a.acme.AuthorizeOrder(t.Context(), ids)
		refusedWith(t, "a strange order", err, "identifier")
	}
	_, err = a.acme.AuthorizeOrder(t.Context(), []acme.AuthzID{{Type: "permanent-identifier", Value: "gw-mine"}},
		acme.WithOrderNotAfter(time.Now().Add(30*24*time.Hour)))
	refusedWith(t, "a certificate for a month", err, "validity")
	if len(h.registry.keys) != 0 || h.count(audit.CertIssued) != 0 {
		t.Error("something was issued")
	}
}

// nameless signs an AK certificate without PermanentIdentifier by the attestation CA's own key.
func (h *hospital) nameless(t *testing.T, a *attacker) [][]byte {
	t.Helper()
	r := a.request()
	v, err := verify.Attestation(&r, h.ca.trust(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	san, err := akNames(v, "nobody")
	if err != nil {
		t.Fatal(err)
	}
	var names []asn1.RawValue
	if _, err := asn1.Unmarshal(san, &names); err != nil {
		t.Fatal(err)
	}
	if san, err = asn1.Marshal([]asn1.RawValue{names[0], names[2]}); err != nil {
		t.Fatal(err)
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{oidAIKCertificate})
	if err != nil {
		t.Fatal(err)
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: san}, {Id: oidExtKeyUsage, Value: usage}},
	}, h.ca.cfg.Attestation, v.AKPublic, h.ca.cfg.AttestationKey)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{der, h.ca.cfg.Attestation.Raw}
}

func TestCSR(t *testing.T) {
	h := newHospital(t, nil)
	a := h.attacker(t, swtpmtest.Start(t).Path)
	h.registry.active[a.ek.Hash] = "gw-1"
	chain := a.akChain()
	ready := func() *acme.Order {
		t.Helper()
		order, challenge, err := a.prove("gw-1", chain, -257)
		if err != nil || challenge.Status != acme.StatusValid {
			t.Fatalf("%v, challenge %+v", err, challenge)
		}
		return order
	}
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	order := ready()
	_, err = a.finalize(order, soft, x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-1"}})
	refusedWith(t, "a key that was not attested", err, "unauthorized")
	_, err = a.finalize(order, a.keys.Device(), x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-2"}})
	refusedWith(t, "another name", err, "badCSR")

	// What else a CSR asks for is not granted.
	der, err := a.finalize(order, a.keys.Device(), x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-1", Organization: []string{"admins"}},
		DNSNames: []string{"server.ward.example"}, EmailAddresses: []string{"a@ward.example"}})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := checkSVID(leaf, spiffe.ID{TrustDomain: domain, Kind: spiffe.Gateway, Name: "gw-1"}); err != nil {
		t.Error(err)
	}

	// Suspended between attestation and certificate: nothing leaves.
	order = ready()
	h.registry.set(func() { h.registry.blocked[a.ek.Hash] = true })
	_, err = a.finalize(order, a.keys.Device(), x509.CertificateRequest{})
	refusedWith(t, "suspended meanwhile", err, "does not admit")
	if n := h.count(audit.CertIssued); n != 1 {
		t.Errorf("%d certificates; expected 1", n)
	}
	status, body := a.post("/attestation/secret", verify.SecretRequest{Secret: a.activate(a.challenge(a.request()))})
	if status != http.StatusForbidden || !strings.Contains(string(body), "not-active") {
		t.Errorf("a suspended gateway: %d %s", status, body)
	}
	_, challenge, err := a.prove("gw-1", chain, -257)
	if err != nil || challenge.Status != acme.StatusInvalid {
		t.Errorf("suspended, with an AK certificate that is still good: %v %+v", err, challenge)
	}
	h.registry.set(func() { h.registry.blocked[a.ek.Hash] = false })
	_, challenge, err = a.prove("gw-1", chain, -65535)
	if err != nil || challenge.Status != acme.StatusInvalid {
		t.Errorf("a SHA-1 attestation: %v %+v", err, challenge)
	}
}

func TestExpiredAK(t *testing.T) {
	// smallstep looks at the real clock, so the attestation CA's is behind: its AK certificates are over when they are used.
	h := newHospital(t, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-2 * time.Hour) } })
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.active[g.ek] = "gw-1"
	if _, err := g.e.Enroll(t.Context()); err == nil || !strings.Contains(err.Error(), "invalid") {
		t.Fatalf("an expired AK certificate: %v", err)
	}
	if h.count(audit.AKCertified) != 1 || h.count(audit.CertIssued) != 0 {
		t.Error("expected an AK certificate and no other")
	}
}

// No certificate leaves before its key and its event are on record.
func TestIssuanceWaitsForTheRecord(t *testing.T) {
	h := newHospital(t, nil)
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.active[g.ek] = "gw-1"
	for _, kind := range []audit.Type{audit.AKCertified, audit.CertIssued} {
		h.fail = kind
		if _, err := g.e.Enroll(t.Context()); err == nil {
			t.Errorf("enrolled although %s could not be journaled", kind)
		}
	}
	h.fail = ""
	if h.count(audit.CertIssued) != 0 {
		t.Error("a certificate was journaled")
	}
	if _, err := os.Stat(filepath.Join(g.dir, "identity.pem")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the gateway holds a certificate")
	}
	if _, err := h.ca.Issue(t.Context(), audit.Actor{ID: "server"}, "", Template{}); err == nil {
		t.Error("issued an empty template")
	}
	if _, err := g.e.Enroll(t.Context()); err != nil {
		t.Errorf("once the journal works: %v", err)
	}
}

// A TPM of an unknown maker is admitted once the registry holds its EK, and not before.
func TestPinnedEK(t *testing.T) {
	h := newHospital(t, func(c *Config) { c.EKTrust, c.CertLife = nil, time.Minute })
	g := h.gateway(t, swtpmtest.Start(t).Path)
	var waiting *enroll.WaitingError
	if _, err := g.e.Enroll(t.Context()); !errors.As(err, &waiting) {
		t.Fatalf("an unknown TPM: %v", err)
	}
	if w := h.registry.waiting[g.ek]; w.Chain {
		t.Error("a chain was verified against no root")
	}
	h.registry.set(func() { h.registry.active[g.ek] = "gw-pinned" })
	id, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if life := id.NotAfter.Sub(id.NotBefore); id.Gateway != "gw-pinned" || life < time.Minute || life > 65*time.Second {
		t.Errorf("enrolled as %s for %v", id.Gateway, life)
	}
}

// Neither the device key nor the AK is in any file of the gateway in a form that software could use.
func TestKeysAreNotOnDisk(t *testing.T) {
	h := newHospital(t, nil)
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.active[g.ek] = "gw-1"
	id, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	if err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Name() != "identity.pem" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", d.Name(), info.Mode())
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				if id.Certificate.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(key.(crypto.Signer).Public()) {
					t.Errorf("%s holds the device key in the clear", path)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if files != 4 {
		t.Errorf("%d files; expected AK, device key, account key and chain", files)
	}
}

func TestStrangersGetProblemDocuments(t *testing.T) {
	h := newHospital(t, nil)
	a := h.attacker(t, swtpmtest.Start(t).Path)
	for _, row := range []struct {
		path   string
		body   []byte
		status int
	}{
		{"/attestation/attest", []byte("{"), http.StatusBadRequest},
		{"/attestation/attest", []byte("{}"), http.StatusForbidden},
		{"/attestation/attest", make([]byte, verify.MaxRequest+1), http.StatusRequestEntityTooLarge},
		{"/attestation/secret", []byte("[]"), http.StatusBadRequest},
		{"/attestation/secret", make([]byte, verify.MaxSecretRequest+1), http.StatusRequestEntityTooLarge},
		{"/acme/attest/new-account", make([]byte, maxBody+1), http.StatusRequestEntityTooLarge},
		{"/acme/attest/revoke-cert", nil, http.StatusNotFound},
		{"/1.0/sign", nil, http.StatusNotFound},
		{"/provisioners", nil, http.StatusNotFound},
	} {
		if status, body := a.post(row.path, row.body); status != row.status {
			t.Errorf("%s with %d bytes: %d %s; expected %d", row.path, len(row.body), status, body, row.status)
		}
	}
	_, err := a.acme.GetOrder(t.Context(), h.server.URL+"/acme/attest/order/none")
	refusedWith(t, "an order that does not exist", err, "malformed")
	_, err = a.acme.GetAuthorization(t.Context(), h.server.URL+"/acme/attest/authz/none")
	refusedWith(t, "an authorization that does not exist", err, "malformed")
}

// A fault in what we call becomes one request's 500, and a registry that is down a 503: nothing is issued or listed.
func TestFaultsStayWithTheirRequest(t *testing.T) {
	h := newHospital(t, nil)
	a := h.attacker(t, swtpmtest.Start(t).Path)
	h.registry.set(func() { h.registry.fail = errors.New("database is locked") })
	status, body := a.post("/attestation/secret", verify.SecretRequest{Secret: a.activate(a.challenge(a.request()))})
	if status != http.StatusServiceUnavailable || strings.Contains(string(body), "locked") {
		t.Errorf("registry down: %d %s", status, body)
	}
	h.registry.set(func() { h.registry.waiting, h.registry.fail = nil, nil }) // the next Wait writes to a nil map and panics
	status, _ = a.post("/attestation/secret", verify.SecretRequest{Secret: a.activate(a.challenge(a.request()))})
	if status != http.StatusInternalServerError {
		t.Errorf("a panic: %d", status)
	}
	if status, _ := a.post("/attestation/attest", a.request()); status != http.StatusOK {
		t.Errorf("after a panic: %d", status)
	}
}
