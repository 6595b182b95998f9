package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/acme"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/enroll/verify"
	"wardlink/internal/spiffe"
	"wardlink/internal/swtpmtest"
)

// attacker drives the protocols step by step, so that each step can be wrong.
type attacker struct {
	t    *testing.T
	h    *hospital
	tpm  *tpm.TPM
	ek   tpm.EK
	keys *tpm.Keys
	acme *acme.Client
}

func (h *hospital) attacker(t *testing.T, path string) *attacker {
	t.Helper()
	d, err := tpm.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := tpm.CreateKeys(t.Context(), d, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := &acme.Client{Key: account, DirectoryURL: h.server.URL + "/acme/attest/directory", HTTPClient: h.server.Client(),
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 }}
	if _, err := client.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	return &attacker{t: t, h: h, tpm: d, ek: ek, keys: keys, acme: client}
}

// post returns the status and the body.
func (a *attacker) post(path string, body any) (int, []byte) {
	a.t.Helper()
	data, ok := body.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(body); err != nil {
			a.t.Fatal(err)
		}
	}
	answer, err := a.h.server.Client().Post(a.h.server.URL+path, "application/json", bytes.NewReader(data))
	if err != nil {
		a.t.Fatal(err)
	}
	defer answer.Body.Close()
	out, err := io.ReadAll(answer.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode >= 400 && kind != "application/problem+json" {
		a.t.Errorf("%s: a refusal of type %q", path, kind)
	}
	return answer.StatusCode, out
}

func (a *attacker) request() verify.Request {
	ak := a.keys.AK()
	return verify.Request{EK: a.ek.Public, EKCerts: [][]byte{a.ek.Certificate}, AttestParams: verify.Params{Public: ak.Public,
		CreateData: ak.CreateData, CreateAttestation: ak.CreateAttestation, CreateSignature: ak.CreateSignature}}
}

func (a *attacker) challenge(r verify.Request) verify.Challenge {
	a.t.Helper()
	status, body := a.post("/attestation/attest", r)
	var c verify.Challenge
	if err := json.Unmarshal(body, &c); status != http.StatusOK || err != nil {
		a.t.Fatalf("attest: %d %s %v", status, body, err)
	}
	return c
}

func (a *attacker) activate(c verify.Challenge) []byte {
	a.t.Helper()
	plain, err := a.keys.ActivateCredential(a.t.Context(), c.Credential, c.Secret)
	if err != nil {
		a.t.Fatal(err)
	}
	return plain
}

func (a *attacker) akChain() [][]byte {
	a.t.Helper()
	status, body := a.post("/attestation/secret", verify.SecretRequest{Secret: a.activate(a.challenge(a.request()))})
	var answer verify.SecretResponse
	if err := json.Unmarshal(body, &answer); status != http.StatusOK || err != nil {
		a.t.Fatalf("secret: %d %s %v", status, body, err)
	}
	return answer.Chain
}

// prove answers the challenge of a new order for name.
func (a *attacker) prove(name string, chain [][]byte, algorithm int) (*acme.Order, *acme.Challenge, error) {
	a.t.Helper()
	ctx := a.t.Context()
	order, err := a.acme.AuthorizeOrder(ctx, []acme.AuthzID{{Type: "permanent-identifier", Value: name}})
	if err != nil {
		return nil, nil, err
	}
	authorization, err := a.acme.GetAuthorization(ctx, order.AuthzURLs[0])
	if err != nil {
		return nil, nil, err
	}
	challenge := authorization.Challenges[0]
	keyAuthorization, err := a.acme.HTTP01ChallengeResponse(challenge.Token)
	if err != nil {
		return nil, nil, err
	}
	certified, err := a.keys.Certify(ctx, sha256.Sum256([]byte(keyAuthorization)))
	if err != nil {
		a.t.Fatal(err)
	}
	object, err := cbor.Marshal(map[string]any{"fmt": "tpm", "attStmt": map[string]any{"ver": "2.0", "alg": algorithm, "x5c": chain,
		"sig": certified.Signature, "certInfo": certified.Info, "pubArea": certified.Public}})
	if err != nil {
		a.t.Fatal(err)
	}
	challenge.Payload, err = json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(object)})
	if err != nil {
		a.t.Fatal(err)
	}
	answered, err := a.acme.Accept(ctx, challenge)
	return order, answered, err
}

func (a *attacker) finalize(order *acme.Order, key crypto.Signer, template x509.CertificateRequest) ([][]byte, error) {
	a.t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), 10*time.Second)
	defer cancel()
	chain, _, err := a.acme.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	return chain, err
}

// refusedWith expects a problem document of a 4xx status.
func refusedWith(t *testing.T, what string, err error, want string) {
	t.Helper()
	var problem *acme.Error
	if !errors.As(err, &problem) || problem.StatusCode < 400 || problem.StatusCode > 499 || !strings.Contains(problem.Error(), want) {
		t.Errorf("%s: %v; expected a 4xx problem with %q", what, err, want)
	}
}

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
	now = now.Add(pendingLife + time.Second)
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
	h := newHospital(t, func(c *Config) { c.EKRoots, c.EKIntermediates = nil, nil })
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
	if id.Gateway != "gw-pinned" {
		t.Errorf("enrolled as %s", id.Gateway)
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
		{"/attestation/secret", make([]byte, 5<<10), http.StatusRequestEntityTooLarge},
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

// The payload of a challenge has passed smallstep's parser when ours sees it; ours must not rely on that. The seed is the payload of
// a real enrolment.
func FuzzParseAttestation(f *testing.F) {
	seed, err := os.ReadFile(filepath.Join("testdata", "payload.json"))
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseAttestation(seed); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"attObj":"oA"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		a, err := parseAttestation(payload)
		if (err == nil) != (a != nil && a.ak != nil) {
			t.Fatal("neither a result nor an error")
		}
	})
}
